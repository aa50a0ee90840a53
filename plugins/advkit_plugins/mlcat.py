"""MLCAT with loss scaling: Yu, Han, Shen, Yu, Gong, Gong, Liu: Understanding Robust Overfitting of Adversarial Training
and Beyond (ICML 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from advkit import Company, Plugin, PluginOptions, Run, Schedule, hookimpl, option, soft_cross_entropy

SURE = 1024
"""Times the rounding of the logits' type: losses below are as good as 0, and their gradients rounding alone."""


def raised(losses: Tensor, least: float) -> Tensor:
    """max(1, least / l_i): what takes each loss (B,) that is below `least` up to it, as far as its type can tell it."""
    return (least / losses.clamp(min=SURE * torch.finfo(losses.dtype).eps)).clamp(min=1)


class Mlcat(Plugin):
    """Scales small adversarial losses up to a minimum, so that no sample is fitted completely (MLCAT)."""

    name = "mlcat"
    terms = ("base_loss",)

    class Options(PluginOptions):
        least: Schedule = option(
            1.5, symbol="l_min", help="loss below which a sample weighs least / loss, by epoch; 0 switches it off"
        )

    options: Options

    @property
    def by_sample(self) -> bool:
        return True

    def active(self, hook: str, epoch: int) -> bool:
        return self.options.least.at(epoch) > 0

    def join(self, company: Company) -> list[str]:
        if (owner := company.owner("base_loss")) == "core":
            return []
        return [f"mlcat weighs the base loss of {owner} by the cross-entropy on x_adv, which is another loss"]

    @hookimpl
    def instance_weight(self, target: Tensor, adv_logits: Tensor, run: Run) -> Tensor:
        return raised(soft_cross_entropy(adv_logits, target), self.options.least.at(run.epoch))
