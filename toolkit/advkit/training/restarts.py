"""Several attacks on one batch: of each image the strongest counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..ascent import per_sample
from ..types import AttackResult


def strongest(attempt: Callable[[int], AttackResult], judged: int, loss: Callable[[Tensor], Tensor]) -> AttackResult:
    """Of each image the attempt whose x_adv has the largest `loss` (B,), between equals the last (Rice et al. 2020).

    `attempt` is asked by number. Where none is `judged` there is one attempt, and nobody asks for its loss.
    """
    if not judged:
        return attempt(0)
    kept = _numbered(attempt(0), 0)
    highest = loss(kept.x_adv)
    for number in range(1, judged):
        other = _numbered(attempt(number), number)
        value = loss(other.x_adv)
        kept = _of_each(value >= highest, other, kept)
        highest = torch.maximum(value, highest)
    return kept


def _numbered(result: AttackResult, number: int) -> AttackResult:
    return replace(result, restart=torch.full((len(result.x_adv),), number, device=result.x_adv.device))


def _of_each(rows: Tensor, one: AttackResult, other: AttackResult) -> AttackResult:
    """`one` in the rows (B,) that are true, `other` elsewhere; both by `pgd`, with the same things kept."""

    def chosen(here: Tensor | None, there: Tensor | None) -> Tensor | None:
        return None if here is None or there is None else torch.where(per_sample(rows, here), here, there)

    finite = None if one.finite is None or other.finite is None else one.finite & other.finite
    return AttackResult(
        torch.where(per_sample(rows, one.x_adv), one.x_adv, other.x_adv),
        steps=chosen(one.steps, other.steps),
        finite=finite,
        zero_gradients=chosen(one.zero_gradients, other.zero_gradients),
        start=chosen(one.start, other.start),
        restart=chosen(one.restart, other.restart),
    )
