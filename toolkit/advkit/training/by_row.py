"""What is given for each sample of a batch, in an answer to a hook or to a service of `run`, and what it must be."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..arguments import a_number, described, where
from ..errors import HookContract
from ..types import Batch, Objective


class Rows:
    """Checks what is given for each sample of `batch`. `values` also checks what is in it, for which a GPU waits."""

    def __init__(self, batch: Batch, values: bool) -> None:
        self.batch, self.rows, self.values = batch, batch.x.shape[0], values

    def size(self, who: str, hook: str, name: str, value: Tensor, other: str = "") -> None:
        """A radius, or the length of a step, of each: (B,). `other` is what else it might have been."""
        self._per_sample(who, hook, name, value, other=other)
        self._true(who, hook, lambda: value >= 0, f"{name} must not be negative")

    def asked(self, who: str, service: str, name: str, value: Tensor | float) -> Tensor:
        """The same of a service of `run`, which takes a number for all as well."""
        x = self.batch.x
        if not isinstance(value, Tensor):
            value = x.new_full((self.rows,), a_number(f"Plugin {who}: {name} of {service}", value))
        elif not value.dim() and value.dtype != torch.bool and not value.is_complex():
            value = value.to(x).expand(self.rows)
        self.size(who, service, name, value, " or a number")
        return value

    def box(self, who: str, hook: str) -> None:
        """The images are such."""
        x = self.batch.x
        self._true(who, hook, lambda: ((x >= 0) & (x <= 1)).flatten(1).all(1), "images leave [0, 1]")

    def labels(self, who: str, hook: str, classes: int) -> None:
        """The labels are classes."""
        y = self.batch.y
        self._true(who, hook, lambda: (y >= 0) & (y < classes), f"labels leave 0..{classes - 1}")

    def _per_sample(self, who: str, hook: str, name: str, value: object, finite: bool = True, other: str = "") -> None:
        shape, device = (self.rows,), self.batch.x.device
        if (
            not isinstance(value, Tensor)
            or (value.shape, value.device) != (shape, device)
            or not value.is_floating_point()
        ):
            expected = f"({self.rows},) floating point{where(self.batch.x)}{other}"
            raise HookContract.broken(who, hook, f"{name} must be {expected}, not {described(value)}")
        if finite:
            self._true(who, hook, value.isfinite, f"{name} is not finite")

    def _true(self, who: str, hook: str, test: Callable[[], Tensor], complaint: str) -> None:
        if not self.values:
            return
        holds = test()
        if not bool(holds.all()):
            rows = (~holds).nonzero().flatten().tolist() if holds.shape == (self.rows,) else []
            place = f" (dataset index {int(self.batch.index[rows[0]])})" if rows else ""
            raise HookContract.broken(who, hook, complaint + place)


def a_loss(who: str, hook: str, loss: object, logits: Tensor) -> Tensor:
    """What an objective has made of logits (B, K): (B,)."""
    if not isinstance(loss, Tensor) or loss.shape != (len(logits),):
        raise HookContract.broken(who, hook, f"it must return ({len(logits)},), not {described(loss)}")
    if loss.is_complex():
        raise HookContract.broken(who, hook, "its values must be real numbers")
    if torch.is_grad_enabled() and logits.requires_grad and loss.grad_fn is None:
        raise HookContract.broken(who, hook, "its values must depend on the logits, undetached")
    return loss


def refuse_no_function(who: str, service: str, value: object) -> None:
    """HookContract for what can not be called."""
    if not callable(value):
        raise HookContract.broken(who, service, f"a callable is expected, not {type(value).__name__}")


def a_goal(who: str, service: str, goal: Objective) -> Objective:
    """What a plugin gives to a service of `run` as an objective."""
    refuse_no_function(who, service, goal)
    return lambda logits: a_loss(who, service, goal(logits), logits)
