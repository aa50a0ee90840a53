"""Dynamic adversarial training: Wang, Ma, Bailey, Yi, Zhou, Gu: On the Convergence and Robustness of Adversarial
Training (ICML 2019), Eq. 5 (the criterion) and Algorithm 1."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from advkit import Batch, Company, Plugin, PluginOptions, Real, Run, hookimpl, option


def stationarity(gradient: Tensor, shift: Tensor, radius: Tensor, norm: str) -> Tensor:
    """First-order stationary condition (B,): radius ||g||_dual - <shift, g>, 0 where no point of the ball is better.

    `gradient` is each sample's own, (B, C, H, W), `shift` the iterate less the ball's centre.
    """
    dual: Tensor = torch.linalg.vector_norm(gradient.flatten(1), 1 if norm == "linf" else 2, dim=1)
    return radius * dual - (shift * gradient).flatten(1).sum(1)


def threshold(epoch: int, until: float, c_max: float) -> float:
    """c_t = max(0, c_max - c_max t / T'), T' being `until`, in epochs."""
    return max(0.0, c_max * (1 - epoch / until))


class Fosc(Plugin):
    """Stops the attack on a sample once its FOSC is small enough for the epoch: dynamic adversarial training."""

    name = "fosc"

    class Options(PluginOptions):
        c_max: Real = option(0.5, ge=0, help="criterion at which the attack stops in the first epoch")
        until: Real = option(
            "5/6", gt=0, le=1, help="share of the epochs after which the attack runs in full; 100 of 120"
        )
        centre: Literal["image", "start"] = option(
            "image", help="where the shift is counted from: the image, or the attack's start, as the code"
        )

    options: Options

    @property
    def by_sample(self) -> bool:
        return True

    def join(self, company: Company) -> list[str]:
        self.until = company.share_of_run("fosc.until", self.options.until)
        if company.attack.init == "zero" and self.options.centre == "start":
            return ["fosc.centre=start is the image where the attack starts at it (attack.init)"]
        return []

    @hookimpl
    def attack_step(self, batch: Batch, x_adv: Tensor, gradient: Tensor, radius: Tensor, step: int, run: Run) -> Tensor:
        if step == 0:  # Algorithm 1 asks after the first move
            self.start = x_adv.clone() if self.options.centre == "start" else batch.x
            return torch.ones_like(batch.y, dtype=torch.bool)
        criterion = stationarity(gradient, x_adv - self.start, radius, run.attack.norm)
        return criterion > threshold(run.epoch, self.until, self.options.c_max)
