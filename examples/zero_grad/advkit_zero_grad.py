"""ZeroGrad: Golgooni, Saberi, Eskandar, Rohban: ZeroGrad: Mitigating and Explaining Catastrophic Overfitting in FGSM
Adversarial Training (2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from advkit import Company, Plugin, PluginOptions, Real, hookimpl, option


def without_small(move: Tensor, gradient: Tensor, q: float) -> Tensor:
    """`move` (B, C, H, W) with 0 where |gradient| is among the share q of the smallest of its image."""
    size = gradient.abs().flatten(1)
    least = size.sort(dim=1).values[:, int(q * size.shape[1])]
    return torch.where((size < least[:, None]).view_as(move), 0, move)


class ZeroGrad(Plugin):
    """Leaves pixels alone whose gradient is small, so that one step is no step too far (ZeroGrad)."""

    name = "zero-grad"
    falls_short = "pixels with small gradients stay: that is the method"

    class Options(PluginOptions):
        q: Real = option(0.35, ge=0, lt=1, help="share of an image's pixels that do not move; 0 switches it off")

    options: Options

    @property
    def by_sample(self) -> bool:
        return True

    def active(self, hook: str, epoch: int) -> bool:
        return self.options.q > 0

    def join(self, company: Company) -> list[str]:
        if company.attack.steps == 1:
            return []
        return [f"ZeroGrad is a method of one step, and attack.steps is {company.attack.steps}"]

    @hookimpl
    def attack_move(self, move: Tensor, gradient: Tensor) -> Tensor:
        return without_small(move, gradient, self.options.q)
