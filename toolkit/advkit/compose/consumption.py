"""Nobody is ignored: answers that nothing would consume are refused, or cautioned if one phase consumes them."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import HookConflict
from ..plugin import CORE
from .declarations import declared
from .mixing import of_one_label
from .stage import Answer, readers

Answers = Mapping[str, tuple[Answer, ...]]

NEEDS = {"perturbation_budget": "radius", "budget_scale": "radius", "attack_objective": "objective"}
LEAVE = "leave one of them out."


def unconsumed(answers: Answers, steps: int, epochs: range) -> list[str]:
    """Cautions for what one phase ignores; HookConflict for what all do. `steps` are those of the attack."""
    _refuse_deaf_attack(answers)
    _refuse_foreign_commit(answers)
    _refuse_stray_weights(answers)
    return [*_labels(answers, epochs), *of_one_label(answers), *_idle_attack(answers, steps)]


def _refuse_deaf_attack(answers: Answers) -> None:
    for attack in answers["inner_attack"]:
        name = attack.plugin.name
        for hook, argument in NEEDS.items():
            if answers[hook] and argument not in attack.arguments:
                raise HookConflict(
                    f"Plugin {answers[hook][0].plugin.name} answers {hook}, but the inner attack {name} does not use "
                    f"`{argument}`, so nothing would come of it; {LEAVE}"
                )
        if answers["attack_step"] and "observe" not in attack.arguments:
            raise HookConflict(
                f"Plugin {answers['attack_step'][0].plugin.name} observes attack steps, but the inner attack {name} "
                f"declares that it asks no observers; {LEAVE}"
            )
        for hook, what in (("attack_start", "begins"), ("attack_move", "moves")):
            for answer in answers[hook]:
                raise HookConflict(
                    f"Plugin {answer.plugin.name} answers {hook}, but the inner attack {name} {what} as it likes; "
                    f"{LEAVE}"
                )


def _refuse_foreign_commit(answers: Answers) -> None:
    owner = _owner(answers, "perturbation_budget")
    for commit in answers["commit_attack"]:
        if commit.plugin.name != owner:
            raise HookConflict(
                f"Plugin {commit.plugin.name} answers commit_attack, but perturbation_budget is owned by "
                f"{owner}; only the owner of the budget may write it."
            )


def _refuse_stray_weights(answers: Answers) -> None:
    terms = {"base_loss", *_names(answers, "extra_regularizer")}
    for answer in answers["instance_weight"]:
        weighed = declared(answer.plugin, "terms")
        if not weighed:
            raise HookConflict(
                f"Plugin {answer.plugin.name} answers instance_weight but names no loss term to weigh; set its "
                f"`terms`, for example terms = ('base_loss',); the terms of this run are {', '.join(sorted(terms))}."
            )
        stray = [term for term in weighed if term not in terms]
        if stray:
            raise HookConflict(
                f"Plugin {answer.plugin.name} weighs the term {stray[0]}, which no chosen plugin adds; the terms of "
                f"this run are {', '.join(sorted(terms))}."
            )


def _labels(answers: Answers, epochs: range) -> list[str]:
    if not (labels := ", ".join(_names(answers, "target_label"))):
        return []
    goals = [a for a in answers["attack_objective"] if any(declared(a.plugin, "active", a.hook, e) for e in epochs)]
    in_attack = in_objective = all("target" in answer.arguments for answer in goals)
    for attack in answers["inner_attack"]:
        in_attack = "target" in attack.arguments or ("objective" in attack.arguments and in_objective)
    reading = readers(answers, "target")
    in_training = not answers["base_loss"] or any(not answer.spec.detached for answer in reading)
    if not in_attack and not in_training and not reading:
        raise HookConflict(
            f"Plugin {labels} changes the target label, but neither the attack objective of "
            f"{_owner(answers, 'attack_objective')} nor the loss of {_owner(answers, 'base_loss')} uses it; {LEAVE}"
        )
    cautions = []
    attacker = goals[0].plugin.name if goals else _owner(answers, "inner_attack")
    unused = ", ".join(name for name in _names(answers, "target_label") if name != attacker)  # who has both means it
    if not in_attack and unused:
        cautions.append(f"the soft labels of {unused} do not reach the attack of {attacker}")
    if not in_training:
        cautions.append(f"the soft labels of {labels} do not reach the loss of {_owner(answers, 'base_loss')}")
    return cautions


def _idle_attack(answers: Answers, steps: int) -> list[str]:
    if steps or any("attack.steps" in one.plugin.replaces.get("inner_attack", ()) for one in answers["inner_attack"]):
        return []
    for hook in ("inner_attack", "attack_objective", "attack_start", "attack_step", "attack_move"):
        for answer in answers[hook]:
            raise HookConflict(
                f"Plugin {answer.plugin.name} answers {hook}, but attack.steps is 0, so there is no attack; "
                "leave it out, or set attack.steps."
            )
    budgets = _names(answers, "perturbation_budget")
    return [f"attack.steps is 0, so the budgets of {name} have no effect" for name in budgets]


def _names(answers: Answers, hook: str) -> list[str]:
    return [answer.plugin.name for answer in answers[hook]]


def _owner(answers: Answers, hook: str) -> str:
    return next(iter(_names(answers, hook)), CORE)
