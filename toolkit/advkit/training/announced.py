"""What plugins and plan announced before the run, for a step to be held against: largest budgets, and passes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..compose.composition import Composition
from ..compose.stage import Answer, Stage
from ..errors import HookContract
from ..plugin import Budgets, Plugin
from ..types import Passes


def largest_budgets(composition: Composition) -> Budgets | None:
    """What budgets may not exceed: where their owner says so, or somebody makes labels of them; None elsewhere."""
    says = any(type(answer.plugin).largest_budget is not Plugin.largest_budget for answer in _budgets(composition))
    matters = _budgets(composition) and composition.answers["target_label"]
    return composition.company.largest_budget if says or matters else None


def _budgets(composition: Composition) -> tuple[Answer, ...]:
    return composition.answers["perturbation_budget"]


def as_declared(stage: Stage, ran: Mapping[str, Passes], plugins: Iterable[str]) -> None:
    """HookContract where a phase ran other passes than its stage announced."""
    for phase, passes in ran.items():
        if passes != stage.passes[phase]:
            owner = stage.owner("inner_attack" if phase == "attack" else "weight_perturbation")
            who = f"Plugin {owner.plugin.name}" if owner else f"The plugins {', '.join(plugins)}"
            raise HookContract(
                f"{who} ran other passes than declared: {passes.as_dict()} in the {phase} phase, where the plan says "
                f"{stage.passes[phase].as_dict()}. Declare them in Plugin.passes or Plugin.detached."
            )
