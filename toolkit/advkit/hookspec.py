"""The two markers of the hook system. pluggy does the rest; what it lacks is what a hook says about itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any, Literal, TypeVar

import pluggy

F = TypeVar("F", bound=Callable[..., Any])

VIEWS = ("adv_logits", "clean_logits", "adv_logits_base", "clean_logits_base")
"""The forwards that an argument's name demands, in the order in which the update runs them."""

Phase = Literal["data", "attack", "update", "run"]
MAY_DEMAND: dict[Phase, tuple[str, ...]] = {
    "data": (),
    "attack": ("clean_logits", "success"),
    "update": (*VIEWS, "gradient_at"),
    "run": (),
}
"""What the core can compute for the hooks of a phase."""


class Rule(Enum):
    """How the answers of several plugins to one hook combine."""

    EXCLUSIVE = "exclusive"
    """At most one owner; two are an error that names both."""
    SUM = "sum"
    """Answers are added, in canonical (name) order."""
    PRODUCT = "product"
    """Answers are multiplied, in canonical (name) order."""
    AND = "and"
    """Masks are and-ed."""
    CHAIN = "chain"
    """Each answer is the next one's input; neighbours must have a declared order."""
    NOTIFY = "notify"
    """Everybody is told, in canonical order; nothing is returned."""


@dataclass(frozen=True)
class HookSpec:
    """All that a hook says about itself; every list of hooks is derived from it."""

    name: str
    function: Callable[..., Any]
    rule: Rule
    phase: Phase
    asked_by: Literal["step", "loop"]
    """"loop": by `advkit.train` alone; a `Step` in a loop of one's own refuses plugins that answer it."""
    detached: bool
    """Whether demanded logits come without gradient, whoever else wants one; in the attack phase they always do."""
    prefers: bool
    """Whether who answers it may prefer settings of the run."""
    default: str
    """What the core does where nobody answers."""

    @cached_property  # every check of a plugin's methods asks for it
    def signature(self) -> inspect.Signature:
        return inspect.signature(self.function)

    @property
    def arguments(self) -> tuple[str, ...]:
        """What a method may list, `self` aside."""
        return tuple(self.signature.parameters)[1:]


_specification = pluggy.HookspecMarker("advkit")

hookimpl = pluggy.HookimplMarker("advkit")
"""Marks a plugin's method as the answer to the hook of the same name."""


def hookspec(
    rule: Rule,
    phase: Phase,
    *,
    asked_by: Literal["step", "loop"] = "step",
    detached: bool = False,
    prefers: bool = False,
    default: str = "",
) -> Callable[[F], F]:
    """Declare a hook; the fields are those of `HookSpec`."""

    def mark(function: F) -> F:
        detached_there = detached or phase == "attack"
        spec = HookSpec(function.__name__, function, rule, phase, asked_by, detached_there, prefers, default)
        never = {name for names in MAY_DEMAND.values() for name in names} - {*MAY_DEMAND[phase]}
        if impossible := never & {*spec.arguments}:
            raise TypeError(f"{spec.name} is of phase {phase}, where nothing computes {', '.join(sorted(impossible))}")
        function.spec = spec  # type: ignore[attr-defined]
        return _specification(function)

    return mark
