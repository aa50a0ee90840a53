"""Label smoothing: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna: Rethinking the Inception Architecture (CVPR 2016),
section 7."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from advkit import Company, Order, Plugin, PluginOptions, Real, hookimpl, option

Over = Literal["all", "others"]


def smoothed(target: Tensor, alpha: float, over: Over) -> Tensor:
    """`alpha` of each row of target (B, K) spread evenly over all K classes, or over those that it was not given to.

    For one-hot rows: 1 - alpha + alpha / K on the label and alpha / K elsewhere, or 1 - alpha and alpha / (K - 1).
    """
    classes = target.shape[1]
    if over == "all":
        return (1 - alpha) * target + alpha / classes
    return (1 - alpha) * target + alpha * (1 - target) / (classes - 1)


class LabelSmoothing(Plugin):
    """Gives a fixed share of every label to the other classes."""

    name = "label-smoothing"
    order = {"target_label": Order(before=frozenset({"dirichlet-ls"}))}

    class Options(PluginOptions):
        alpha: Real = option(0.1, symbol="α", ge=0, le=1, help="share that is spread; 0.3 over others in LAS-AT")
        over: Over = option("all", help="all classes, the label's too (Szegedy et al.), or the others (LAS-AT)")
        attack: bool = option(False, help="attack the smoothed label too, not the hard one")

    options: Options

    @property
    def by_sample(self) -> bool:
        return True

    def join(self, company: Company) -> list[str]:
        if self.options.alpha > 0.5:
            return [f"label-smoothing.alpha = {self.options.alpha:g} leaves the label less than half"]
        return []

    @hookimpl
    def target_label(self, target: Tensor, phase: str) -> Tensor:
        if phase == "attack" and not self.options.attack:
            return target
        return smoothed(target, self.options.alpha, self.options.over)
