"""The two markers of the hook system. pluggy does the rest; what it lacks is a combination rule a hook."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

import pluggy

F = TypeVar("F", bound=Callable[..., Any])


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


_specification = pluggy.HookspecMarker("advkit")

hookimpl = pluggy.HookimplMarker("advkit")
"""Marks a plugin's method as the answer to the hook of the same name."""


def hookspec(rule: Rule) -> Callable[[F], F]:
    """Declare a hook together with its combination rule."""

    def mark(function: F) -> F:
        function.rule = rule  # type: ignore[attr-defined]
        return _specification(function)

    return mark
