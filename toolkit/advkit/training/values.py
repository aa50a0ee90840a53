"""What a step computes, in its order: the first value that is not finite says whose it is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..errors import NonFinite
from ..run import RunState
from ..types import Objective
from .sums import finite

REMEDY = "lower optimizer.lr or look at the options of the plugins in this run"
"""For what is not finite where nobody else is to blame."""

EARLY = "no update was made yet, so look at what the model returns, or at the options of the plugins in this run"
"""The same of the first step."""

ATTACK, LOSS, GRADIENT = "an input gradient of the attack", "the loss", "a parameter gradient"

LOGITS = "the logits of the model"

USUAL = 1e6
"""More than the logits of any net that has not diverged."""


@dataclass(frozen=True)
class Value:
    """`what` it is, and `whose`: " (hook of plugin)", or "" where no plugin has made it."""

    what: str
    whose: str
    value: Tensor
    """Itself, or of a large one () bool: whether it is finite."""

    @property
    def broken(self) -> bool:
        """Whether it is not finite. -Inf as the logit of a class that is masked is as it should be. Synchronises."""
        value = self.value
        if self.what == LOGITS:
            value = value[~masked(value)]
        return not (finite(value) if value.dtype != torch.bool or value.dim() else bool(value))


class Values:
    """Keeps them by reference, for nobody waits for a device before something has failed; or none, unless `kept`."""

    def __init__(self, kept: bool = True) -> None:
        self._kept, self._values = kept, list[Value]()

    def add(self, what: str, *values: object, whose: str = "") -> None:
        """Whatever of `values` is a tensor, which nobody but `whose` has made."""
        if self._kept:
            self._values += [Value(what, whose, one.detach()) for one in values if isinstance(one, Tensor)]

    def answer(self, who: str, hook: str, *values: object) -> None:
        """What a plugin has answered."""
        self.add(hook, *values, whose=f" ({hook} of {who})")

    def objective(self, who: str, hook: str, goal: Objective) -> Objective:
        """The `goal` of a plugin, whose gradients at the logits are added: with those it may break an attack."""

        def noted(logits: Tensor) -> Tensor:
            if self._kept and logits.requires_grad:
                add = partial(self.add, ATTACK, whose=f" ({hook} of {who})")
                logits.register_hook(lambda gradient: add(gradient))  # type: ignore[no-untyped-call]
            return goal(logits)

        return noted

    def first(self) -> Value | None:
        """The first that is not finite."""
        return next((value for value in self._values if value.broken), None)

    def refuse(self, state: RunState) -> None:
        """NonFinite where that is no plugin's: what fails afterwards fails of it."""
        if (first := self.first()) is not None and not first.whose:
            raise NonFinite(f"NaN or Inf in {first.what} at {state.place}. The step was not applied; {remedy(state)}.")


def remedy(state: RunState) -> str:
    """What to do where a step is not finite."""
    return EARLY if state.epoch == state.step == 0 else REMEDY


def masked(logits: Tensor) -> Tensor:
    """(B, K) bool: where a net masks a class with -Inf, of all images or of some, beside others of the usual size.

    Elsewhere -Inf is an overflow: a net that diverges has it beside logits that are as large, or alone.
    """
    low = logits == -torch.inf
    usual = bool((logits[~low].abs() < USUAL).all()) and not bool(low.all(1).any())  # false of NaN
    return low if usual else torch.zeros_like(low)
