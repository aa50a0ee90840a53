"""The losses of both papers, per sample: from logits (B, K) to (B,)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .types import Objective


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-sum_k target_k log softmax(logits)_k: (B,) from (B, K) and rows on the simplex (B, K)."""
    return -(target * F.log_softmax(logits, dim=1)).sum(dim=1)


def kl_divergence(clean_logits: Tensor, adv_logits: Tensor) -> Tensor:
    """KL(p(x) || p(x')), both softmax of logits (B, K): (B,). Gradients flow through both."""
    log_clean, log_adv = F.log_softmax(clean_logits, dim=1), F.log_softmax(adv_logits, dim=1)
    return (log_clean.exp() * (log_clean - log_adv)).sum(dim=1)


def cross_entropy(y: Tensor) -> Objective:
    """Cross-entropy with the hard labels y (B,)."""
    return lambda logits: F.cross_entropy(logits, y, reduction="none")


def margin(y: Tensor) -> Objective:
    """max_{j != y} Z_j - Z_y, unclipped: what both papers call C&W under PGD."""

    def objective(logits: Tensor) -> Tensor:
        own = F.one_hot(y, logits.shape[1]).bool()
        rival = logits.masked_fill(own, -torch.inf).amax(1)
        return rival - logits.gather(1, y[:, None]).squeeze(1)

    return objective
