"""CURE: Moosavi-Dezfooli, Fawzi, Uesato, Frossard: Robustness via Curvature Regularization, and Vice Versa (CVPR
2019)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from advkit import (
    Batch,
    Company,
    Costs,
    Passes,
    Plugin,
    PluginOptions,
    Run,
    Schedule,
    hookimpl,
    option,
    soft_cross_entropy,
)


def of_unit_length(direction: Tensor) -> Tensor:
    """Each of (B, C, H, W) divided by its l2 norm; 0 stays 0."""
    length = direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return torch.where(length > 0, direction / length, 0)


class Cure(Plugin):
    """Curvature regularization: penalizes changes of the input gradient along its own sign (CURE)."""

    name = "cure"

    class Options(PluginOptions):
        lam: Schedule = option(
            0.03,
            symbol="λ",
            help="weight of the regularizer, by epoch; the 4 of the official class, which averages losses, over 128",
        )
        h: Schedule = option(3.0, help="l2 length of the step along the sign, by epoch; the official code ramps it up")
        power: Literal["squared", "norm"] = option(
            "norm", help="l2 norm of the difference, as the official code, or squared"
        )

    options: Options

    @property
    def by_sample(self) -> bool:
        return True

    def active(self, hook: str, epoch: int) -> bool:
        return self.options.lam.at(epoch) > 0

    def passes(self, hook: str, costs: Costs) -> Passes:
        return Passes(forward=2, input_backward=2, full_backward=2)

    def join(self, company: Company) -> list[str]:
        if not company.attack.steps:
            return []
        return ["CURE trains without an attack, attack.steps=0; this run attacks, and regularizes beside it"]

    @hookimpl
    def extra_regularizer(self, batch: Batch, target: Tensor, run: Run) -> Tensor:
        def loss(logits: Tensor) -> Tensor:
            return soft_cross_entropy(logits, target)

        here = run.input_gradient(batch.x, loss, create_graph=True)
        step = self.options.h.at(run.epoch) * of_unit_length(here.detach().sign())
        there = run.input_gradient(batch.x + step, loss, create_graph=True)
        change = (there - here).flatten(1)
        size = change.square().sum(1) if self.options.power == "squared" else change.norm(dim=1)
        return self.options.lam.at(run.epoch) * size
