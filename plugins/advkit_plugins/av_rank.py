"""ISEAT's instance weights: Li and Spratling 2023, Eq. 10 (vulnerability) and Eq. 15 (weights by rank)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from advkit import Batch, Company, Plugin, PluginOptions, Real, Run, hookimpl, option


def vulnerability(adv_logits: Tensor, clean_logits: Tensor, target: Tensor) -> Tensor:
    """AV_i = CE(f(x_i'; theta+v), y_i) - CE(f(x_i; theta), y_i), Eq. 10: (B,), in float32 at least.

    `target` is hard (B,) or soft (B, K).
    """
    wide = torch.promote_types(adv_logits.dtype, torch.float32)
    adversarial = F.cross_entropy(adv_logits.detach().to(wide), target, reduction="none")
    return adversarial - F.cross_entropy(clean_logits.detach().to(wide), target, reduction="none")


def ranks(values: Tensor, index: Tensor) -> Tensor:
    """0 for the largest value, m - 1 for the smallest; ties by sample index. (m,) int64."""
    by_index = torch.argsort(index, stable=True)
    order = by_index[torch.argsort(values[by_index], descending=True, stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    return rank


def rank_weights(rank: Tensor, scheme: str, share: float, dtype: torch.dtype) -> Tensor:
    """Eq. 15 (linear): 1 - rank / m; Eq. 9 (top-k): 1 for the first share * m, rounded down, at least one; or 1."""
    m = len(rank)
    if scheme == "linear":
        return 1 - rank.to(dtype) / m
    if scheme == "top-k":
        return (rank < max(1, int(share * m + 1e-9))).to(dtype)
    return torch.ones(m, dtype=dtype, device=rank.device)


class AvRank(Plugin):
    """Weights a regularizer's instances by their rank in adversarial vulnerability (ISEAT)."""

    name = "av-rank"

    class Options(PluginOptions):
        term: str = option("lsiw", help="the loss term to weight: a plugin's name, or base_loss")
        scheme: Literal["linear", "top-k", "uniform"] = option("linear", help="Eq. 15, Eq. 9, or no weighing")
        share: Real = option(
            0.1,
            gt=0,
            le=1,
            under="scheme=top-k",
            help="top-k: share of the batch that gets weight 1: rounded down, at least one",
        )
        target: Literal["hard", "soft"] = option(
            "hard", under="scheme=linear,top-k", help="labels of both cross-entropies in AV"
        )
        normalise: Literal["auto", "none", "radius"] = option(
            "auto",
            under="scheme=linear,top-k",
            help="rank AV_i or AV_i / radius_i; auto: by radius where a plugin sets budgets per sample",
        )

    options: Options

    @property
    def terms(self) -> tuple[str, ...]:
        return (self.options.term,)

    def join(self, company: Company) -> list[str]:
        owner = company.owner("perturbation_budget")
        auto = "radius" if owner != "core" else "none"
        self.normalise = auto if self.options.normalise == "auto" else self.options.normalise
        cautions = []
        if self.options.normalise == "auto" and auto == "radius":
            cautions.append(f"av-rank ranks AV_i / radius_i, because {owner} sets a radius per sample")
        if self.options.target == "soft" and not company.owners("target_label"):
            cautions.append("av-rank.target=soft plays no part where no plugin makes soft labels")
        if self.options.normalise == "radius" and auto == "none":
            cautions.append("av-rank.normalise=radius plays no part where no plugin sets budgets per sample")
        if self.options.term == "base_loss":
            cautions.append("av-rank weighs the base loss: ISEAT argues against it, as it overfits the training attack")
        return cautions

    @hookimpl
    def instance_weight(
        self,
        batch: Batch,
        target: Tensor,
        radius: Tensor,
        adv_logits: Tensor,
        clean_logits_base: Tensor,
        run: Run,
    ) -> Tensor:
        labels = batch.y if self.options.target == "hard" else target
        key = vulnerability(adv_logits, clean_logits_base, labels)
        if self.normalise == "radius":
            key = torch.where(radius > 0, key / radius, torch.zeros_like(key))
        rank = ranks(key, batch.index)
        return rank_weights(rank, self.options.scheme, self.options.share, adv_logits.dtype)
