"""What a step costs, and compared with what."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

from ..compose.stage import Stage


def pgd_at_cost(steps: int) -> int:
    """PGD-AT in forwards: an input backward counts 1, a full backward 2."""
    return 2 * steps + 3


def cost_of(stage: Stage, steps: int | None) -> float:
    """Of a step in forwards, in the mean over an epoch of so many, at whose first one all are asked; None: of many."""
    if not steps:
        return stage.cost
    spared = sum(passes.cost * (1 - ceil(steps / every) / steps) for every, passes in stage.seldom)
    return sum(passes.cost for passes in stage.passes.values()) - spared


def cost_words(plan: Mapping[str, Any]) -> str:
    """What a step costs and beside what: "1.30 x PGD-AT with 10 steps", the run's; of several stages the dearest."""
    steps = plan["settings"]["attack.steps"]["value"]
    beside = "standard training" if not steps else f"PGD-AT with {steps} step{'s' * (steps > 1)}"
    return f"{plan['relative_cost']:.2f} x {beside}" + (" at its dearest" if len(plan["stages"]) > 1 else "")
