"""A step in parts: gradients that are added up until they are those of the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import HookContract
from ..types import Batch
from .objective import Objective, Outcome, Update
from .pieces import cut
from .probe import nothing_moves

GradientAt = Callable[..., Mapping[str, Tensor]]


def parts_of(batch: Batch, count: int, most: int | None = None) -> dict[str, Batch]:
    """At most `count` parts of a batch, in its order, by what tells their draws apart; an image is never left alone.

    All have as many images, but the last may have fewer. A share of several processes, of which the largest has `most`
    images, has as many parts in each: they differ by one image, and may be of one, or of none.
    """
    if count == 1:
        return {"": batch}
    rows = cut(torch.arange(len(batch.y), device=batch.y.device), count, most)
    return _named(batch, rows, " part" if most is None else " piece")


def _named(batch: Batch, rows: Sequence[Tensor], word: str) -> dict[str, Batch]:
    named = {f"{word} {number}" if number else "": part for number, part in enumerate(rows)}
    return {
        name: Batch(batch.x[part], batch.y[part], batch.index[part], batch.occurrence[part])
        for name, part in named.items()
    }


def together(parts: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """What is known of a batch, from what is known of its parts."""
    whole: Mapping[str, Any] = joined(parts)
    return whole


def joined(values: Sequence[Any]) -> Any:
    """A value of the whole batch, from those of its parts."""
    first = values[0]
    if len(values) == 1:
        return first
    if isinstance(first, Mapping):
        return {name: joined([value[name] for value in values]) for name in first}
    if is_dataclass(first) and not isinstance(first, type):
        return replace(first, **{f.name: joined([getattr(value, f.name) for value in values]) for f in fields(first)})
    if not isinstance(first, Tensor):
        return first
    return torch.cat(list(values)) if first.dim() else torch.stack(list(values)).all()  # whether all was finite


def summed(updates: Sequence[Update], owner: str) -> GradientAt:
    """`gradient_at` of the batch, from those of its parts."""
    gradients: list[GradientAt] = [update.gradient_at(owner) for update in updates]

    def gradient_at(*arguments: Any, **named: Any) -> Mapping[str, Tensor]:
        total = dict(gradients[0](*arguments, **named))
        for of_part in gradients[1:]:
            for name, value in of_part(*arguments, **named).items():
                total[name] = total[name] + value
        return total

    return gradients[0] if len(gradients) == 1 else gradient_at


def backward(
    objective: Objective, updates: Sequence[Update], shift: Mapping[str, Tensor], forget: Callable[[], None]
) -> Outcome:
    """The loss of the batch at theta + `shift`, its gradient in `.grad`: a forward and a backward for each part.

    `forget` drops the gradients of the step before, once there is a loss to have new ones of.
    """
    outcomes: list[Outcome] = []
    for update in updates:
        outcome = objective(update, shift)
        if not outcome.loss.requires_grad:
            owner = update.stage.owner("base_loss")
            base, *others = update.stage.terms
            named = ", ".join([f"{base} of {owner.plugin.name}" if owner else base, *others])
            raise HookContract(
                f"The loss ({named}) has no gradient, so nothing would be learnt; "
                "return terms that depend on the logits, undetached."
            )
        if not outcomes:
            forget()
        with nothing_moves(objective.model, "the backward", update.contract.values):
            outcome.loss.backward()
        outcomes.append(replace(outcome, loss=outcome.loss.detach()))
    if len(outcomes) == 1:
        return outcomes[0]
    return Outcome(
        loss=torch.stack([outcome.loss for outcome in outcomes]).sum(),
        raw=_sums([outcome.raw for outcome in outcomes]),
        weighted=_sums([outcome.weighted for outcome in outcomes]),
        logits=joined([outcome.logits for outcome in outcomes]),
    )


def _sums(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}
