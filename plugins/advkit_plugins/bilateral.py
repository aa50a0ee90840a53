"""Bilateral adversarial training: Wang and Zhang: Bilateral Adversarial Training: Towards Fast Training of More Robust
Models Against Adversarial Attacks (ICCV 2019)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from advkit import Batch, Company, Plugin, PluginOptions, Real, Run, hookimpl, option, soft_cross_entropy

Aim = Literal["likely", "random", "none"]


def adversarial_label(logits: Tensor, y: Tensor, gamma: float, factor: float) -> Tensor:
    """(B, K): what a wrong class gets grows with its l_k = -log p_k of logits (B, K), from l_min + gamma on.

    The label gets `factor` times the largest of the others. A class that is masked, by -inf or by about the least
    number of its type (whose sums overflow), gets nothing.
    """
    own = F.one_hot(y, logits.shape[1]).bool()
    other = ~own & (logits > torch.finfo(logits.dtype).min / 2)
    cost = -logits.log_softmax(1)
    rise = torch.where(other, cost - cost.masked_fill(~other, torch.inf).amin(1, keepdim=True) + gamma, 0.0)
    total = rise.sum(1, keepdim=True)
    spread = 1 / (1 + factor * rise.amax(1, keepdim=True) / total)
    return torch.where(own, 1 - spread, spread * rise / total)


def other_class(scores: Tensor, y: Tensor) -> Tensor:
    """(B,): the class of the highest score (B, K) that is not y."""
    return scores.masked_fill(F.one_hot(y, scores.shape[1]).bool(), -torch.inf).argmax(1)


class Bilateral(Plugin):
    """One step towards a wrong class, and a share of the label to unlikely classes (bilateral adversarial training)."""

    name = "bilateral"
    prefers = {"attack.steps": 1, "attack.step_size": "eps", "attack.init": "uniform", "attack.mode": "eval"}

    class Options(PluginOptions):
        factor: Real = option(9.0, symbol="M", ge=0, help="label over the largest other entry; 0: the label stays hard")
        gamma: Real = option(
            0.01, symbol="γ", gt=0, under="factor", help="what the most likely wrong class gets, before scaling"
        )
        target: Aim = option("likely", help="what the attack aims at: the likeliest wrong class, a random one, or none")

    options: Options

    @property
    def by_sample(self) -> bool:
        return True

    def active(self, hook: str, epoch: int) -> bool:
        return self.options.factor > 0 if hook == "target_label" else self.options.target != "none"

    def demands(self, hook: str, epoch: int) -> tuple[str, ...] | None:
        return () if hook == "attack_objective" and self.options.target == "random" else None

    def join(self, company: Company) -> list[str]:
        cautions = []
        if 0 < self.options.factor <= 1:
            cautions.append(f"bilateral.factor = {self.options.factor:g} leaves the label no more than another class")
        if company.attack.steps != 1:
            cautions.append(f"bilateral is a method of one step, and attack.steps is {company.attack.steps}")
        return cautions

    @hookimpl
    def attack_objective(self, batch: Batch, clean_logits: Tensor | None, run: Run) -> Callable[[Tensor], Tensor]:
        if clean_logits is None:
            drawn = run.draws("target", batch).uniform(run.num_classes, dtype=batch.x.dtype)
            aimed = other_class(drawn, batch.y)
        else:
            aimed = other_class(clean_logits, batch.y)
        wanted = F.one_hot(aimed, run.num_classes).to(batch.x.dtype)
        return lambda logits: -soft_cross_entropy(logits, wanted)

    @hookimpl
    def target_label(self, target: Tensor, batch: Batch, clean_logits: Tensor, phase: str) -> Tensor:
        if phase == "attack":
            return target
        return adversarial_label(clean_logits, batch.y, self.options.gamma, self.options.factor).to(target.dtype)
