"""Counts the passes a step really runs, and remembers who demanded each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import fields

from torch import Tensor

from ..torch_func import at_once
from ..types import Passes
from .values import LOGITS, Values

PHASES = ("attack", "update")


class Ledger:
    """One step's passes. Forwards are booked when run; backwards when a gradient really reaches the logits.

    A pass takes every image of the batch once: one for each of `parts`, where the step is in parts.
    """

    def __init__(self, parts: int = 1, values: Values | None = None) -> None:
        self.parts, self.values = parts, values or Values()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.demanded: dict[str, set[str]] = {}
        self.answered: dict[tuple[str, int], tuple[Tensor, int, Tensor]] = {}
        """By auxiliary net and id of its images: the images, their version then, and its logits."""

    def forward(self, phase: str, label: str, owners: Iterable[str], logits: Tensor, backward: str) -> Tensor:
        """Book one forward with output `logits`, and its backward ("input_backward", "full_backward") if it comes.

        None is booked where `backward` is empty.
        """
        self.counts[phase, "forward"] += 1
        self.demanded.setdefault(f"{phase}.{label}", set()).update(owners)
        self.values.add(LOGITS, logits)
        if backward and logits.requires_grad:
            logits.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: self.backward(phase, backward, at_once(gradient))
            )
        return logits

    def backward(self, phase: str, kind: str, times: int = 1) -> None:
        """Book one, or several."""
        self.counts[phase, kind] += times

    def auxiliary(self, phase: str, label: str, owner: str) -> None:
        """Book a forward of a net beside the model."""
        self.counts[phase, "auxiliary_forward"] += 1
        self.demanded.setdefault(f"{phase}.{label}", set()).add(owner)

    def include(self, other: Ledger) -> None:
        """Book passes of the whole batch that another ledger has."""
        self.counts.update({pass_: times * self.parts for pass_, times in other.counts.items()})
        for label, owners in other.demanded.items():
            self.demanded.setdefault(label, set()).update(owners)

    def passes(self) -> dict[str, Passes]:
        """By phase."""

        def whole(phase: str, kind: str) -> int:
            return -(-self.counts[phase, kind] // self.parts)

        return {phase: Passes(*(whole(phase, kind.name) for kind in fields(Passes))) for phase in PHASES}

    def demanded_by(self) -> dict[str, list[str]]:
        """Who demanded each forward: {"update.clean_logits_base": ["av-rank", "lsiw"], ...}."""
        return {label: sorted(owners) for label, owners in sorted(self.demanded.items())}
