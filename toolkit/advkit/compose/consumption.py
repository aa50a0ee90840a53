"""Nobody is ignored: answers that nothing would consume are refused, or cautioned if one phase consumes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import HookConflict
from .stage import LOSS_HOOKS

if TYPE_CHECKING:
    from .composition import Composition


def unconsumed(composition: Composition) -> list[str]:
    """Nobody is ignored: refuse answers that nothing consumes, caution where one phase does not."""
    attack = composition.answers["inner_attack"]
    if attack:
        name, listed = attack[0].plugin.name, attack[0].arguments
        for hook, argument in (
            ("perturbation_budget", "radius"),
            ("budget_scale", "radius"),
            ("attack_objective", "objective"),
        ):
            if composition.answers[hook] and argument not in listed:
                raise HookConflict(
                    f"Plugin {composition.owners(hook)[0]} answers {hook}, but the inner attack {name} does not use "
                    f"`{argument}`, so nothing would come of it; leave one of them out of --plugins."
                )
        if composition.answers["attack_step"] and "attack_step" not in attack[0].plugin.honours:
            raise HookConflict(
                f"Plugin {composition.owners('attack_step')[0]} observes attack steps, but the inner attack {name} "
                "declares that it asks no observers; leave one of them out of --plugins."
            )
    commit = composition.answers["commit_attack"]
    if commit and commit[0].plugin.name != composition.owner("perturbation_budget"):
        raise HookConflict(
            f"Plugin {commit[0].plugin.name} answers commit_attack, but perturbation_budget is owned by "
            f"{composition.owner('perturbation_budget')}; only the owner of the budget may write it."
        )
    terms = {"base_loss", *composition.owners("extra_regularizer")}
    for answer in composition.answers["instance_weight"]:
        if not answer.plugin.terms:
            raise HookConflict(
                f"Plugin {answer.plugin.name} answers instance_weight but names no loss term to weigh; set its "
                f"`terms`, for example terms = ('base_loss',); the terms of this run are {', '.join(sorted(terms))}."
            )
        stray = [term for term in answer.plugin.terms if term not in terms]
        if stray:
            raise HookConflict(
                f"Plugin {answer.plugin.name} weighs the term {stray[0]}, which no chosen plugin adds; the terms of "
                f"this run are {', '.join(sorted(terms))}."
            )
    return [*_labels(composition), *_idle_attack(composition)]


def _labels(composition: Composition) -> list[str]:
    if not composition.answers["target_label"]:
        return []
    objective = composition.answers["attack_objective"]
    in_objective = not objective or "target" in objective[0].arguments
    attack = composition.answers["inner_attack"]
    in_attack = (
        "target" in attack[0].arguments or ("objective" in attack[0].arguments and in_objective)
        if attack
        else in_objective
    )
    base = composition.answers["base_loss"]
    readers = {hook for hook in LOSS_HOOKS for answer in composition.answers[hook] if "target" in answer.arguments}
    in_training = not base or bool(readers - {"instance_weight"})
    labels = ", ".join(composition.owners("target_label"))
    if not in_attack and not in_training and not readers:
        raise HookConflict(
            f"Plugin {labels} changes the target label, but neither the attack objective of "
            f"{composition.owner('attack_objective')} nor the loss of {composition.owner('base_loss')} uses it; "
            "leave one of them out of --plugins."
        )
    found = []
    if not in_attack:
        found.append(f"the soft labels of {labels} do not reach the attack of {composition.owner('attack_objective')}")
    if not in_training:
        found.append(f"the soft labels of {labels} do not reach the loss of {composition.owner('base_loss')}")
    return found


def _idle_attack(composition: Composition) -> list[str]:
    if composition.setting.steps or composition.answers["inner_attack"]:
        return []
    idle = [hook for hook in ("attack_objective", "attack_step") if composition.answers[hook]]
    if idle:
        raise HookConflict(
            f"Plugin {composition.owners(idle[0])[0]} answers {idle[0]}, but attack.steps is 0, so there is no attack; "
            "leave it out of --plugins or set attack.steps."
        )
    if composition.answers["perturbation_budget"]:
        return [f"attack.steps is 0, so the budgets of {composition.owner('perturbation_budget')} bound nothing"]
    return []
