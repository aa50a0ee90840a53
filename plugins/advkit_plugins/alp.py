"""Adversarial logit pairing: Kannan, Kurakin, Goodfellow (2018, arXiv:1803.06373), Eq. 2 and 3."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from advkit import Company, Plugin, PluginOptions, Run, Schedule, hookimpl, option, soft_cross_entropy


def pairing(clean_logits: Tensor, adv_logits: Tensor, over: Literal["mean", "sum"]) -> Tensor:
    """(f_k(x') - f_k(x))^2, averaged or summed over classes: (B,). A class that is -inf in both adds nothing."""
    masked = (adv_logits == -torch.inf) & (clean_logits == -torch.inf)
    squares = (adv_logits - clean_logits).masked_fill(masked, 0).square()
    return squares.mean(dim=1) if over == "mean" else squares.sum(dim=1)


class Alp(Plugin):
    """Cross-entropy on clean and attacked images, and lam times the squared difference of their logits (ALP)."""

    name = "alp"
    # The authors' code attacks in eval mode and takes both halves in one forward in train mode.
    prefers = {"attack.mode": "eval", "update.batch_norm": "clean_logits,adv_logits"}

    class Options(PluginOptions):
        lam: Schedule = option(0.5, symbol="λ", help="lambda, weight of the pairing, by epoch; 0.5 on ImageNet")
        mixed: bool = option(
            True, help="cross-entropy averaged over clean and attacked images (Eq. 2); else attacked images alone"
        )
        over: Literal["mean", "sum"] = option(
            "mean", help="over classes: the mean, as the authors' code, or the sum, the squared l2 norm"
        )

    options: Options

    @property
    def by_sample(self) -> bool:
        return True

    def active(self, hook: str, epoch: int) -> bool:
        return hook != "extra_regularizer" or self.options.lam.at(epoch) > 0

    def demands(self, hook: str, epoch: int) -> set[str] | None:
        return {"adv_logits"} if hook == "base_loss" and not self.options.mixed else None

    def join(self, company: Company) -> list[str]:
        return [
            "logit pairing is known to mislead gradient attacks more than to withstand them (Engstrom et al. 2018); "
            "judge the net by autoattack and by the audit"
        ]

    @hookimpl
    def base_loss(self, target: Tensor, adv_logits: Tensor, clean_logits: Tensor | None) -> Tensor:
        adversarial = soft_cross_entropy(adv_logits, target)
        if clean_logits is None:
            return adversarial
        return (soft_cross_entropy(clean_logits, target) + adversarial) / 2

    @hookimpl
    def extra_regularizer(self, adv_logits: Tensor, clean_logits: Tensor, run: Run) -> Tensor:
        return self.options.lam.at(run.epoch) * pairing(clean_logits, adv_logits, self.options.over)
