"""What the plan announced before the run, for a step to be held against."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..compose.composition import Composition
from ..compose.declarations import declared
from ..compose.stage import Stage
from ..errors import HookContract, shown
from ..registry import by_advkit
from ..types import Passes


def refuse_changed(composition: Composition, epoch: int) -> None:
    """HookContract for a plugin that answers, demands or detaches otherwise than the plan of this epoch has it.

    Each is asked twice: who says yes and no in turn might say today what it said then.
    """
    stage = composition.at(epoch)
    for hook, answers in composition.answers.items():
        answering = {answer.plugin.name for answer in stage.answers[hook]}
        for answer in answers * 2:
            planned, who = answer.plugin.name in answering, answer.plugin.name
            idle = hook == "instance_weight" and not planned  # perhaps for want of the terms that it weighs
            now = idle or declared(answer.plugin, "active", hook, epoch)
            said: list[tuple[str, object, object]] = [("active", planned or idle, now)]
            if planned:
                said += [
                    ("demands", sorted(stage.demands[answer.key]), sorted(answer.demands(epoch))),
                    ("detached", sorted(stage.detached[answer.key]), sorted(answer.detached(epoch))),
                ]
            for name, then, today in said:
                if then != today:
                    raise HookContract(
                        f"Plugin {who}: {name} of {hook} in epoch {epoch} is {shown(today)}, and was {shown(then)} "
                        "when the run was planned; let it depend on options, hook and epoch alone."
                    )


def as_declared(stage: Stage, step: int, ran: Mapping[str, Passes], plugins: Iterable[str]) -> None:
    """HookContract where a phase of the step ran other passes than its stage announced."""
    spared = sum((passes for every, passes in stage.seldom if step % every), Passes())
    planned = {**stage.passes, "update": stage.passes["update"] + spared * -1}
    for phase, passes in ran.items():
        if passes != planned[phase]:
            raise HookContract(
                f"{_suspects(stage, phase, plugins)} ran other passes than declared: {passes.as_dict()} in the {phase} "
                f"phase, where the plan says {planned[phase].as_dict()}. Declare them in Plugin.passes or "
                "Plugin.detached.",
                "passes",
            )


def _suspects(stage: Stage, phase: str, plugins: Iterable[str]) -> str:
    """Who may have run them: those who answer hooks of the phase, without advkit's own where a stranger does."""
    asked = {answer.plugin for answers in stage.answers.values() for answer in answers if answer.spec.phase == phase}
    strangers = {plugin for plugin in asked if not by_advkit(type(plugin))}
    first, *others = sorted(plugin.name for plugin in strangers or asked) or [*plugins]
    return f"One of the plugins {', '.join([first, *others])}" if others else f"Plugin {first}"
