"""What the plan announced before the run, for a step to be held against."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..compose.stage import Stage
from ..errors import HookContract
from ..types import Passes


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
