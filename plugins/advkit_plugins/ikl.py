"""Improved KL: Cui, Tian, Zhong, Qi, Yu, Zhang: Decoupled Kullback-Leibler Divergence Loss (NeurIPS 2024)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from advkit import Batch, Company, Plugin, PluginOptions, Real, Run, Schedule, hookimpl, option, soft_cross_entropy


def spread(clean_logits: Tensor, adv_logits: Tensor, weights: Tensor) -> Tensor:
    """1/4 sum_jk w_j w_k ((z_j - z_k) - (z'_j - z'_k))^2, all (B, K): (B,). Gradients flow through both logits.

    The pairs need no (B, K, K): they are half the weighted variance of the shifts, times (sum_j w_j)^2.
    """
    masked = (clean_logits == -torch.inf) & (adv_logits == -torch.inf)  # classes that do not move
    shift, total = (clean_logits - adv_logits).masked_fill(masked, 0), weights.sum(dim=1, keepdim=True)
    mean = (weights * shift).sum(dim=1, keepdim=True) / total
    return 0.5 * (total * weights * (shift - mean).square()).sum(dim=1)


def said(clean_logits: Tensor, adv_logits: Tensor) -> Tensor:
    """-sum_k p(x)_k log p(x')_k with p(x) held constant: (B,)."""
    return soft_cross_entropy(adv_logits, clean_logits.detach().softmax(dim=1))


class Ikl(Plugin):
    """The KL of TRADES in two parts: class-weighted differences of logits, and cross-entropy with p(x) (IKL)."""

    name = "ikl"
    held_constant = "p(x) of the cross-entropy"
    # Start, mode and order of the forwards of the authors' code.
    prefers = {"attack.init": "normal", "attack.mode": "eval", "update.batch_norm": "adv_logits,clean_logits"}

    class Options(PluginOptions):
        alpha: Schedule = option(4.0, symbol="α", help="weight of the cross-entropy with p(x), by epoch")
        beta: Schedule = option(20.0, symbol="β", help="weight of the differences of logits, by epoch")
        gamma: Real = option(1.0, ge=0, symbol="γ", help="power of the class weights; 0 weighs all classes alike")
        temperature: Real = option(
            4.0,
            gt=0,
            symbol="T",
            help="softmax temperature of the class means that weigh the next epoch; 4 or 1 in the code",
        )
        base: Literal["clean", "adversarial"] = option(
            "clean", help="images of the cross-entropy with the label: as TRADES, or as PGD-AT"
        )
        attack: Literal["cross-entropy", "whole", "label"] = option(
            "cross-entropy",
            help="what the attack increases: cross-entropy with p(x), that plus differences (code of 2023), "
            "or with the label",
        )

    options: Options

    @property
    def by_sample(self) -> bool:
        return self.options.gamma == 1  # elsewhere the weights are divided by their mean over the batch

    def active(self, hook: str, epoch: int) -> bool:
        return hook != "observe_update" or self.options.gamma > 0

    def demands(self, hook: str, epoch: int) -> set[str] | None:
        return {f"{'adv' if self.options.base == 'adversarial' else 'clean'}_logits"} if hook == "base_loss" else None

    def join(self, company: Company) -> list[str]:
        if company.attacks_from_x and self.options.attack != "label":
            return [
                "attack.init is zero, where what the attack of ikl increases has no gradient beyond rounding, so some "
                "samples may never be attacked; set attack.init=normal"
            ]
        if self.options.attack != "label" and (labels := ", ".join(company.owners("target_label"))):
            return [f"the soft labels of {labels} do not reach the attack of ikl"]
        return []

    @hookimpl
    def setup(self, run: Run) -> None:
        classes, dtype = run.num_classes, torch.promote_types(run.dtype, torch.float32)
        alike = torch.ones(classes, classes, dtype=dtype) / max(1, classes)
        self.weights = run.tensor_state("weights", alike, least=0, most=1)  # of this epoch, a row for each label
        self.sums = run.tensor_state("sums", torch.zeros_like(alike), least=0)  # for the next

    @hookimpl
    def attack_objective(
        self, batch: Batch, target: Tensor, clean_logits: Tensor, run: Run
    ) -> Callable[[Tensor], Tensor]:
        if run.step == 0:  # of an epoch, before anything is added; a class that has not been seen stays as it was
            seen = self.sums.sum(dim=1, keepdim=True)
            self.weights.copy_(torch.where(seen > 0, self.sums / seen, self.weights))
            self.sums.zero_()
        if self.options.attack == "label":
            return lambda logits: soft_cross_entropy(logits, target)
        weights = self._weights(batch) if self.options.attack == "whole" else None

        def objective(logits: Tensor) -> Tensor:
            found = said(clean_logits, logits)
            return found if weights is None else found + spread(clean_logits, logits, weights)

        return objective

    @hookimpl
    def base_loss(self, target: Tensor, clean_logits: Tensor | None, adv_logits: Tensor | None) -> Tensor:
        logits = adv_logits if clean_logits is None else clean_logits
        assert logits is not None  # `demands` asks for one
        return soft_cross_entropy(logits, target)

    @hookimpl
    def extra_regularizer(self, batch: Batch, adv_logits: Tensor, clean_logits: Tensor, run: Run) -> Tensor:
        alpha, beta = self.options.alpha.at(run.epoch), self.options.beta.at(run.epoch)
        differences = spread(clean_logits, adv_logits, self._weights(batch))
        return alpha * said(clean_logits, adv_logits) + beta * differences

    @hookimpl
    def observe_update(self, batch: Batch, clean_logits: Tensor) -> None:
        p = (clean_logits / self.options.temperature).softmax(dim=1).to(self.sums.dtype)
        self.sums += one_hot(batch.y, len(self.sums)).to(p.dtype).T @ p

    def _weights(self, batch: Batch) -> Tensor:
        """Those of each sample's classes, (B, K), by its label; the squares of their sums have mean 1."""
        weights = self.weights[batch.y].to(batch.x.dtype)
        if self.options.gamma == 1:  # rows sum to 1
            return weights
        weights = weights**self.options.gamma
        return weights / weights.sum(dim=1).square().mean().sqrt()
