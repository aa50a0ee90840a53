"""Label smoothing: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna: Rethinking the Inception Architecture (CVPR 2016)."""

from __future__ import annotations

from torch import Tensor

from advkit import Order, Plugin, PluginOptions, Real, hookimpl, option


def smooth(target: Tensor, alpha: float) -> Tensor:
    """(1 - alpha) target + alpha / K: rows on the simplex, (B, K), from such rows."""
    return (1 - alpha) * target + alpha / target.shape[1]


class UniformLabels(Plugin):
    """Label smoothing by the same uniform noise for every sample."""

    name = "uniform-labels"
    api_version = "1.0"
    # The dataset's labels are smoothed first; what depends on a sample's budget comes on top.
    order = {"target_label": Order(before=frozenset({"dirichlet-ls"}))}

    class Options(PluginOptions):
        alpha: Real = option(0.1, ge=0, lt=1, help="share of the label that is spread evenly; 0 switches it off")

    options: Options

    def active(self, hook: str, epoch: int) -> bool:
        return self.options.alpha > 0

    @hookimpl
    def target_label(self, target: Tensor) -> Tensor:
        return smooth(target, self.options.alpha)
