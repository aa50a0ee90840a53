"""One schedule stage: the answers in force, the forwards that they demand, and the passes of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import AdvkitError
from ..plugin import CORE, Costs, Plugin
from ..types import Passes

VIEWS = ("adv_logits", "clean_logits", "adv_logits_base", "clean_logits_base")
"""The forwards of the update phase, in the order they are run."""

ATTACK_VIEW_HOOKS = ("perturbation_budget", "budget_scale", "target_label", "attack_objective")
"""Hooks whose `clean_logits` is f(x; theta) in the attack mode, without gradient."""

LOSS_HOOKS = ("base_loss", "extra_regularizer", "instance_weight")
OBSERVING_HOOKS = ("instance_weight", "observe_update")
"""Hooks that get every view without gradient."""

VIEW_HOOKS = (*LOSS_HOOKS, "observe_update")
ATTACK_HOOKS = (*ATTACK_VIEW_HOOKS, "inner_attack", "attack_step", "commit_attack")
PREFERRING_HOOKS = ("perturbation_budget", "attack_objective", "inner_attack", "base_loss")


@dataclass(frozen=True)
class Answer:
    """One plugin's method for one hook, and the arguments it lists."""

    hook: str
    plugin: Plugin
    function: Callable[..., Any]
    arguments: tuple[str, ...]

    def __call__(self, known: Mapping[str, Any]) -> Any:
        try:
            return self.function(**{name: known[name] for name in self.arguments})
        except AdvkitError:
            raise
        except Exception as error:
            run = known["run"]
            error.add_note(f"in plugin {self.plugin.name}, hook {self.hook}, epoch {run.epoch}, step {run.step}")
            raise

    def demands(self, epoch: int) -> frozenset[str]:
        """The demanding arguments it needs in this epoch."""
        listed = frozenset(self.arguments) & {*VIEWS, "success"}
        wanted = self.plugin.demands(self.hook, epoch)
        return listed if wanted is None else listed & frozenset(wanted)

    def detached(self, epoch: int) -> frozenset[str]:
        """The views it takes without gradient; weights of instances and observers never have one."""
        return frozenset(VIEWS if self.hook in OBSERVING_HOOKS else self.plugin.detached(self.hook, epoch))


@dataclass(frozen=True)
class View:
    """One forward of the update phase: who demands it, whether a gradient flows, whether BatchNorm moves."""

    owners: tuple[str, ...]
    gradient: bool
    moves_statistics: bool


@dataclass(frozen=True)
class Stage:
    """The hooks of one schedule stage. Answers are in canonical order (chains in their declared order)."""

    answers: Mapping[str, tuple[Answer, ...]]
    views: Mapping[str, View]
    aliases: Mapping[str, str]
    """Base views that are the plain ones, because nothing perturbs the weights."""
    demands: Mapping[tuple[str, str], frozenset[str]]
    """By (hook, plugin)."""
    attack_view: tuple[str, ...]
    """Who demands f(x; theta) in the attack phase."""
    success: tuple[str, ...]
    objective_terms: tuple[str, ...]
    """The loss terms that demand no base view: what `gradient_at(loss="objective")` sums."""
    objective_views: Mapping[str, bool]
    """The forwards they need; whether a gradient flows."""
    passes: Mapping[str, Passes]

    def owner(self, hook: str) -> Answer | None:
        """Who answers an exclusive hook; None is the core."""
        return self.answers[hook][0] if self.answers[hook] else None

    @property
    def terms(self) -> tuple[str, ...]:
        """The loss terms, in the order they are added."""
        return ("base_loss", *(answer.plugin.name for answer in self.answers["extra_regularizer"]))

    def weights_of(self, term: str) -> tuple[Answer, ...]:
        """Who weighs the instances of a loss term."""
        return tuple(a for a in self.answers["instance_weight"] if term in a.plugin.terms)

    @property
    def cost(self) -> int:
        """In forwards."""
        return sum(passes.cost for passes in self.passes.values())


@dataclass(frozen=True)
class Setting:
    """What a composition must know of the run it is for."""

    eps: float
    steps: int = 10
    epochs: int = 1
    attack_mode: str = "eval"
    attack_init: str = "zero"
    batch_norm: tuple[str, ...] | None = None
    """Views whose forwards move BatchNorm's running statistics; None: those that base_loss demands."""
    order: Mapping[str, Sequence[str]] = field(default_factory=dict)


def stage(
    epoch: int,
    active: Mapping[str, tuple[Answer, ...]],
    demands: Mapping[tuple[str, str], frozenset[str]],
    setting: Setting,
) -> Stage:
    """What the active answers demand of the forwards, and what a step then costs."""
    aliases = (
        {} if active["weight_perturbation"] else {"adv_logits_base": "adv_logits", "clean_logits_base": "clean_logits"}
    )
    wanted: dict[str, list[tuple[str, str]]] = {view: [] for view in VIEWS}
    differentiated = set() if active["base_loss"] else {"adv_logits"}
    for hook in VIEW_HOOKS:
        for answer in active[hook]:
            names = demands[hook, answer.plugin.name]
            for name in names:
                wanted[aliases.get(name, name)].append((hook, answer.plugin.name))
            differentiated |= {aliases.get(name, name) for name in names - answer.detached(epoch)}
    if not active["base_loss"]:
        wanted["adv_logits"].append(("base_loss", CORE))
    views = {
        name: View(
            owners=tuple(sorted({plugin for _, plugin in askers})),
            gradient=name in differentiated,
            moves_statistics=(
                any(hook == "base_loss" for hook, _ in askers)
                if setting.batch_norm is None
                else name in setting.batch_norm
            ),
        )
        for name, askers in wanted.items()
        if askers
    }
    attack_view = tuple(
        sorted(
            {
                plugin
                for (hook, plugin), names in demands.items()
                if hook in ATTACK_VIEW_HOOKS and "clean_logits" in names
            }
        )
    )
    success = tuple(plugin for (_, plugin), names in demands.items() if "success" in names)
    based = {
        plugin
        for (hook, plugin), names in demands.items()
        if hook == "extra_regularizer" and any(name.endswith("_base") for name in names - aliases.keys())
    }
    objective_views = [
        view
        for view in VIEWS
        if any(hook not in OBSERVING_HOOKS and plugin not in based for hook, plugin in wanted[view])
    ]
    objective_gradients = {"adv_logits"} if not active["base_loss"] else set()
    for hook in ("base_loss", "extra_regularizer"):
        for answer in active[hook]:
            if answer.plugin.name not in based:
                names = demands[hook, answer.plugin.name] - answer.detached(epoch)
                objective_gradients |= {aliases.get(name, name) for name in names}
    costs = Costs(
        steps=setting.steps,
        adv_ce=Passes(forward=1, full_backward=1),
        objective=Passes(forward=len(objective_views), full_backward=len(objective_gradients)),
    )
    own = {
        phase: sum(
            (
                answer.plugin.passes(hook, costs)
                for hook, answers in active.items()
                if (hook in ATTACK_HOOKS) == (phase == "attack")
                for answer in answers
            ),
            Passes(),
        )
        for phase in ("attack", "update")
    }
    steps = 0 if active["inner_attack"] else setting.steps
    return Stage(
        answers=active,
        views=views,
        aliases=aliases,
        demands=demands,
        attack_view=attack_view,
        success=success,
        objective_terms=(
            "base_loss",
            *(a.plugin.name for a in active["extra_regularizer"] if a.plugin.name not in based),
        ),
        objective_views={view: view in objective_gradients for view in objective_views},
        passes={
            "attack": own["attack"] + Passes(steps + bool(attack_view) + bool(success), steps),
            "update": own["update"] + Passes(len(views), full_backward=sum(view.gradient for view in views.values())),
        },
    )
