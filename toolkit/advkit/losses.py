"""The losses of CAT and ISEAT, per sample: from logits (B, K) to (B,)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .types import Objective


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-sum_k target_k log softmax(logits)_k: (B,) from (B, K) and rows on the simplex (B, K).

    A logit of -inf, a masked class, adds nothing where its target is 0: the limit, where the product is NaN.
    """
    log = F.log_softmax(logits, dim=1)
    return -(target * log.masked_fill((target == 0) & (log == -torch.inf), 0)).sum(dim=1)


def kl_divergence(clean_logits: Tensor, adv_logits: Tensor) -> Tensor:
    """KL(p(x) || p(x')), both softmax of logits (B, K): (B,). Gradients flow through both.

    A class that p(x) gives 0 adds nothing, whatever its logits: the limit, where the product is NaN.
    """
    log_clean, log_adv = F.log_softmax(clean_logits, dim=1), F.log_softmax(adv_logits, dim=1)
    p, ratio = log_clean.exp(), log_clean - log_adv
    return (p * ratio.masked_fill((p == 0) & ~ratio.isfinite(), 0)).sum(dim=1)


def cross_entropy(y: Tensor) -> Objective:
    """Cross-entropy with the hard labels y (B,)."""
    return lambda logits: F.cross_entropy(logits, y, reduction="none")


def margin(y: Tensor) -> Objective:
    """max_{j != y} Z_j - Z_y, unclipped: what CAT and ISEAT call C&W under PGD."""

    def objective(logits: Tensor) -> Tensor:
        own = F.one_hot(y, logits.shape[1]).bool()
        rival = logits.masked_fill(own, -torch.inf).amax(1)
        return rival - logits.gather(1, y[:, None]).squeeze(1)

    return objective
