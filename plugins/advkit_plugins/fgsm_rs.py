"""FGSM from a random start: Wong, Rice, Kolter: Fast is better than free (ICLR 2020), Algorithm 3; with noise and no
projection, N-FGSM: de Jorge et al.: Make Some Noise (NeurIPS 2022), Algorithm 1."""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

from advkit import (
    AttackSettings,
    Batch,
    BudgetScale,
    Company,
    OptionError,
    Plugin,
    PluginOptions,
    Real,
    Run,
    hookimpl,
    option,
    per_sample,
)


def largest_only(move: Tensor, gradient: Tensor, share: float) -> Tensor:
    """`move` (B, C, H, W) without the pixels that have the smallest `share` of each sample's |gradient| (ZeroGrad)."""
    size = gradient.flatten(1).abs()
    rank = ceil(share * (size.shape[1] - 1)) + 1  # the first at or above the quantile, of those in order
    least = size.kthvalue(rank, dim=1).values
    return torch.where(gradient.abs() >= per_sample(least, gradient), move, 0.0)


class FgsmRs(Plugin):
    """Attacks with one large step from a random start (FGSM-RS), or from noise without projection (N-FGSM)."""

    name = "fgsm-rs"
    prefers = {
        "attack.steps": 1,
        "attack.step_size": "1.25 eps",
        "attack.init": "uniform",
        "attack.mode": "train",
    }

    class Options(PluginOptions):
        noise: Real = option(
            0.0, symbol="k", ge=0, le=100, help="N-FGSM: start in U(-k eps, k eps) and do not project; 2 in its paper"
        )
        zero_share: Real = option(
            0.0, symbol="q", ge=0, lt=1, help="ZeroGrad: share of pixels, those of smallest gradient, that do not move"
        )

    options: Options

    @property
    def by_sample(self) -> bool:
        return True

    def active(self, hook: str, epoch: int) -> bool:
        return self.options.zero_share > 0 if hook == "attack_move" else self.options.noise > 0

    def largest_scale(self, attack: AttackSettings) -> float:
        """N-FGSM's start and step, end to end, in budgets: nothing is projected but onto the box."""
        if not self.options.noise or not attack.eps:
            return 1.0
        return self.options.noise + attack.step_size * attack.steps / attack.eps

    def join(self, company: Company) -> list[str]:
        attack = company.attack
        if (self.options.noise or self.options.zero_share) and attack.norm != "linf":
            raise OptionError(f"fgsm-rs.noise and zero_share are for attack.norm = linf, not {attack.norm}; drop them.")
        cautions = []
        if attack.steps != 1:
            cautions.append(f"fgsm-rs is a method of one step, and attack.steps is {attack.steps}")
        if self.options.noise and attack.step_size != attack.eps:
            cautions.append("N-FGSM steps by eps (attack.step_size=eps); this run by another length")
        return cautions

    @hookimpl
    def budget_scale(self, run: Run) -> BudgetScale:
        return BudgetScale(radius=self.largest_scale(run.attack))

    @hookimpl
    def attack_start(self, batch: Batch, radius: Tensor, restart: int, run: Run) -> Tensor:
        wide = per_sample(radius * (self.options.noise / self.largest_scale(run.attack)), batch.x)
        noise = run.draws("noise", batch).uniform(*batch.x.shape[1:], low=-1, high=1, draw=restart, dtype=run.dtype)
        return (batch.x + wide * noise).clamp(0, 1)

    @hookimpl
    def attack_move(self, move: Tensor, gradient: Tensor) -> Tensor:
        return largest_only(move, gradient, self.options.zero_share)
