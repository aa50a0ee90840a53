"""CAT's mixed loss: Cheng et al. 2022, section 3.3: cross-entropy plus the margin of Carlini and Wagner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from advkit import Batch, Budget, Plugin, PluginOptions, Real, hookimpl, option, soft_cross_entropy


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{j != y} Z_j - Z_y: (B,) from logits (B, K) and hard labels (B,)."""
    own = F.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(own, -torch.inf).amax(dim=1) - logits.gather(1, y[:, None]).squeeze(1)


class CatMargin(Plugin):
    """Adds the margin max(max_j Z_j - Z_y, -kappa) to the attack's objective and to the loss (CAT's mixed loss)."""

    name = "cat-margin"
    prefers = {"attack.init": "zero", "attack.mode": "eval"}

    class Options(PluginOptions):
        kappa: Real = option(10.0, symbol="κ", ge=0, unit="logits", help="how far a margin may go before it saturates")
        inner: Literal["literal", "mirrored"] = option(
            "literal",
            help="in the attack: max(margin, -kappa) as printed, or min(margin, kappa) as the official code, which "
            "keeps its gradient on confident samples",
        )
        weight: Literal["one", "eps", "eps-sum"] = option(
            "one",
            help="weight of the margin: 1 as printed, eps_i, or batch size times eps_i as in the code",
        )

    options: Options

    @property
    def by_sample(self) -> bool:
        return self.options.weight != "eps-sum"

    @hookimpl
    def attack_objective(self, batch: Batch, target: Tensor, radius: Tensor) -> Callable[[Tensor], Tensor]:
        kappa, weight = self.options.kappa, self._weight(radius)

        def objective(logits: Tensor) -> Tensor:
            gap = margin(logits, batch.y)
            hinge = gap.clamp(min=-kappa) if self.options.inner == "literal" else gap.clamp(max=kappa)
            return soft_cross_entropy(logits, target) + weight * hinge

        return objective

    @hookimpl
    def extra_regularizer(self, batch: Batch, budget: Budget, adv_logits: Tensor) -> Tensor:
        hinge = margin(adv_logits, batch.y).clamp(min=-self.options.kappa)
        return self._weight(budget.label) * hinge

    def _weight(self, eps: Tensor) -> Tensor:
        """(B,), from the budgets in force."""
        if self.options.weight == "one":
            return torch.ones_like(eps)
        return eps * len(eps) if self.options.weight == "eps-sum" else eps
