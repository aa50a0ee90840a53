"""`advkit.pgd`, with which anybody attacks a net by hand: what is wrong with a call is told in one sentence."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from . import ascent
from .arguments import checked
from .ascent import Ball, Observer, Transform
from .explained import calling, explained
from .gradients import set_aside
from .judging import checked_logits, refuse_place
from .types import AttackResult, Objective


@checked("observe", "transform")
def pgd(
    model: Callable[[Tensor], Tensor],
    ball: Ball,
    begin: Tensor,
    objective: Objective,
    *,
    steps: int,
    step_size: Tensor,
    limit: Tensor | None = None,
    observe: Observer | None = None,
    transform: Transform | None = None,
    keep_start: bool = False,
) -> AttackResult:
    """Increase `objective` for `steps` iterations from `begin`, inside `ball`; the last iterate counts.

    `model` maps images to logits (B, K) with frozen parameters. `step_size` (B,) is in the unit of the radius.
    `limit` (B,) int64 stops samples after that many moves, an `observe`r earlier; a `transform` changes moves. Raises
    OptionError for a model that fails, returns no logits or has no gradient at its images.
    """
    refuse_place()

    def net(x: Tensor) -> Tensor:
        with calling(x.shape):
            logits = model(x)
        return checked_logits(logits, len(x))

    with explained(), set_aside(model.parameters() if isinstance(model, nn.Module) else ()):
        return ascent.pgd(
            net,
            ball,
            begin,
            objective,
            steps=steps,
            step_size=step_size,
            limit=limit,
            observe=observe,
            transform=transform,
            keep_start=keep_start,
        )
