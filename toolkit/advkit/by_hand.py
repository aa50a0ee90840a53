"""`advkit.pgd`, with which anybody attacks a net by hand: what is wrong with a call is told in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from . import ascent
from .arguments import a_whole_number, checked, described, per_image, where
from .ascent import Ball, Observer, Transform
from .errors import OptionError
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
    step_size: Tensor | float,
    limit: Tensor | None = None,
    observe: Observer | None = None,
    transform: Transform | None = None,
    keep_start: bool = False,
) -> AttackResult:
    """Increase `objective` for `steps` iterations from `begin`, inside `ball`; the last iterate counts.

    `model` maps images in [0, 1] to logits (B, K) with frozen parameters. `step_size`, (B,) or a number for all, is in
    the unit of the radius; both are finite and not negative. `limit` (B,) int64 stops samples after that many moves, an
    `observe`r earlier; a `transform` changes moves. `finite` is of x_adv, too. Raises OptionError for arguments that
    are none of that or return something else, and for a model that fails, returns no logits or has no gradient at its
    images.
    """
    refuse_place()
    steps, size = a_whole_number("steps", steps, 0, 2**31 - 1), per_image("step_size", step_size, ball.x)
    _refuse_values(ball, begin, size, limit)

    def net(x: Tensor) -> Tensor:
        with calling(x.shape):
            logits = model(x)
        return checked_logits(logits, len(x))

    def goal(logits: Tensor) -> Tensor:
        loss = objective(logits)
        if not isinstance(loss, Tensor) or loss.shape != (len(logits),):
            remedy = "such as F.cross_entropy(logits, y, reduction='none')"
            raise OptionError(
                f"objective must return ({len(logits)},), one value for each image, {remedy}, not {described(loss)}."
            )
        return loss

    with explained(), set_aside(model.parameters() if isinstance(model, nn.Module) else ()):
        result = ascent.pgd(
            net,
            ball,
            begin,
            goal,
            steps=steps,
            step_size=size,
            limit=limit,
            observe=_observer(observe, ball.x),
            transform=_transform(transform, ball.x),
            keep_start=keep_start,
        )
    assert result.finite is not None
    return replace(result, finite=result.finite & result.x_adv.isfinite().all())  # no gradient follows the last move


def _refuse_values(ball: Ball, begin: Tensor, size: Tensor, limit: Tensor | None) -> None:
    """OptionError for what would attack, but not as was meant."""
    x = ball.x
    if not bool(((x >= 0) & (x <= 1)).all()):
        raise OptionError("x leaves [0, 1]; pass images in [0, 1] and normalise them inside the model.")
    for name, sizes in (("radius", ball.radius), ("step_size", size)):
        if not bool((sizes.isfinite() & (sizes >= 0)).all()):
            raise OptionError(f"{name} must be finite and not negative; pass a number >= 0, or one for each image.")
    if described(begin) != described(x):
        raise OptionError(f"begin must be {described(x)}, as the images of the ball, not {described(begin)}.")
    if not bool(begin.isfinite().all()):
        raise OptionError("begin holds NaN or Inf; pass images, such as x itself.")
    if limit is not None and (limit.shape, limit.dtype, limit.device) != ((len(x),), torch.int64, x.device):
        raise OptionError(f"limit must be ({len(x)},) int64{where(x)}, moves of each image, not {described(limit)}.")
    if limit is not None and bool((limit < 0).any()):
        raise OptionError("limit is negative; it counts moves, from 0.")


def _observer(observe: Observer | None, x: Tensor) -> Observer | None:
    """It, held to what it must return."""
    if observe is None:
        return None
    _refuse_no_function("observe", observe)

    def checked_mask(**iterate: Any) -> Tensor:
        mask = observe(**iterate)
        if not isinstance(mask, Tensor) or (mask.shape, mask.dtype, mask.device) != (x.shape[:1], torch.bool, x.device):
            expected = f"({len(x)},) bool{where(x)}, whether each image goes on"
            raise OptionError(f"observe must return {expected}, not {described(mask)}.")
        return mask

    return checked_mask


def _transform(transform: Transform | None, x: Tensor) -> Transform | None:
    """The same."""
    if transform is None:
        return None
    _refuse_no_function("transform", transform)

    def checked_move(**iterate: Any) -> Tensor:
        move = transform(**iterate)
        if not isinstance(move, Tensor) or described(move) != described(x):
            raise OptionError(f"transform must return a move {described(x)}, as the images, not {described(move)}.")
        return move.detach()

    return checked_move


def _refuse_no_function(name: str, value: object) -> None:
    if not callable(value):
        raise OptionError(f"{name} must be a function or None, not {described(value)}.")
