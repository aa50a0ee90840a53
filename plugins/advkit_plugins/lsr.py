"""Logit stability regularization: Li and Spratling: Understanding and Combating Robust Overfitting via Input Loss
Landscape Analysis and Regularization (Pattern Recognition 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from advkit import Company, Plugin, PluginOptions, Real, Run, Schedule, hookimpl, option


def largest_shifts(clean_logits: Tensor, adv_logits: Tensor, share: float) -> Tensor:
    """|f_k(x') - f_k(x)| where it is among the largest `share` of all B K entries, 0 elsewhere: summed to (B,).

    At least one entry is taken. A class that is -inf in both, masked, is no entry.
    """
    masked = (adv_logits == -torch.inf) & (clean_logits == -torch.inf)
    shift = (adv_logits - clean_logits).masked_fill(masked, 0).abs()
    count = max(1, int(share * shift.numel()))
    kept = torch.zeros_like(shift, dtype=torch.bool).flatten()
    kept.index_fill_(0, shift.detach().flatten().topk(count).indices, True)
    return (shift * kept.view_as(shift)).sum(dim=1)


class Lsr(Plugin):
    """Keeps the logits that an attack moves most in a batch near the clean ones: lam |f(x') - f(x)| (LSR)."""

    name = "lsr"

    class Options(PluginOptions):
        lam: Schedule = option(0.3, symbol="λ", help="lambda, by epoch; 0.3 with PGD-10, 0.4 with averaged weights")
        top: Real = option(0.1, gt=0, le=1, help="share of the batch's B K logits that count; 1 is all of them")

    options: Options

    def active(self, hook: str, epoch: int) -> bool:
        return self.options.lam.at(epoch) > 0

    def join(self, company: Company) -> list[str]:
        if company.attack.mode == "eval":
            return ["the official LSR code attacks in train mode; this run attacks in eval mode"]
        return []

    @hookimpl
    def extra_regularizer(self, adv_logits: Tensor, clean_logits: Tensor, run: Run) -> Tensor:
        return self.options.lam.at(run.epoch) * largest_shifts(clean_logits, adv_logits, self.options.top)
