"""GradAlign: Andriushchenko, Flammarion: Understanding and Improving Fast Adversarial Training (NeurIPS 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from advkit import (
    Batch,
    Company,
    Costs,
    Passes,
    Plugin,
    PluginOptions,
    Real,
    Run,
    Schedule,
    hookimpl,
    option,
    per_sample,
    soft_cross_entropy,
)

FITTED = 16 / 255
"""The largest eps that the paper fits lambda to."""


def misalignment(one: Tensor, other: Tensor) -> Tensor:
    """1 - cos of gradients (B, C, H, W), scaled so that the mean over B is that over samples where both are not 0."""
    one, other = one.flatten(1), other.flatten(1)
    both = (one.norm(dim=1) > 0) & (other.detach().norm(dim=1) > 0)
    one, other = (torch.where(both.unsqueeze(1), value, torch.ones_like(value)) for value in (one, other))
    cosine = (one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1))
    share: Tensor = both.sum().clamp(min=1) / len(both)
    return torch.where(both, 1 - cosine, 0) / share


class GradAlign(Plugin):
    """Aligns the input gradients at an image and at a random point beside it, against catastrophic overfitting."""

    name = "gradalign"
    held_constant = "the input gradient at the image itself, as in the official code"

    class Options(PluginOptions):
        lam: Schedule = option(0.2, symbol="λ", help="lambda at eps 8/255, by epoch; 0.2 on CIFAR-10, 2.5 on SVHN")
        growth: Real = option(
            10.0,
            gt=0,
            help="lambda grows by this factor for 8/255 of eps, up to 16/255; 10 on CIFAR-10, 1.6 on SVHN; 1: none",
        )

    options: Options

    def active(self, hook: str, epoch: int) -> bool:
        return self.options.lam.at(epoch) > 0

    def passes(self, hook: str, costs: Costs) -> Passes:
        return Passes(forward=2, input_backward=2, full_backward=1)

    def scale(self, eps: float) -> float:
        return float(self.options.growth ** (min(eps, FITTED) / (8 / 255) - 1))

    def join(self, company: Company) -> list[str]:
        eps = company.attack.eps
        if eps <= FITTED or self.options.growth == 1:
            return []
        return [
            f"gradalign.lam is times {self.scale(eps):.3g}, as at eps 16/255, up to which the paper knows it; "
            f"eps is {eps:.3g}"
        ]

    @hookimpl
    def extra_regularizer(self, batch: Batch, target: Tensor, radius: Tensor, run: Run) -> Tensor:
        x = batch.x
        beside = run.draws("beside", batch).uniform(*x.shape[1:], low=-1, high=1, dtype=x.dtype)

        def loss(logits: Tensor) -> Tensor:
            return soft_cross_entropy(logits, target)

        here = run.input_gradient(x, loss)
        there = run.input_gradient(x + per_sample(radius, x) * beside, loss, create_graph=True)
        return self.options.lam.at(run.epoch) * self.scale(run.attack.eps) * misalignment(here, there)
