"""Inputs that nobody has chosen, drawn by Hypothesis where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

ABSENT = (
    "Hypothesis is not installed, so checks try their fixed inputs alone; pip install hypothesis and they draw others."
)


def installed() -> bool:
    """Whether Hypothesis is."""
    return find_spec("hypothesis") is not None


def for_drawn(strategy: Callable[[Any], Any], holds: Callable[..., None], examples: int) -> None:
    """Calls `holds` with values of `strategy(hypothesis.strategies)`, the same ones each time, and shrinks what fails.

    Without Hypothesis nothing is called.
    """
    if not installed():
        return
    from hypothesis import HealthCheck, Phase, given, settings, strategies

    phases = (Phase.generate, Phase.shrink)
    limits: dict[str, Any] = {"max_examples": examples, "derandomize": True, "database": None, "deadline": None}
    tried: Any = given(strategy(strategies))(holds)  # type: ignore[no-untyped-call]
    settings(**limits, phases=phases, suppress_health_check=list(HealthCheck), print_blob=False)(tried)()
