"""One stage of the schedule: the answers in force, the forwards that they demand, and the passes of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from ..errors import blamed
from ..hookspec import VIEWS, HookSpec, Rule
from ..plugin import CORE, Costs, Plugin
from ..settings import AttackSettings
from ..types import Passes
from .declarations import declared


@dataclass(frozen=True)
class Answer:
    """One plugin's method for one hook, and the arguments it lists."""

    spec: HookSpec
    plugin: Plugin
    function: Callable[..., Any]
    arguments: tuple[str, ...]
    own: frozenset[str] = frozenset()
    """What may change with the epoch, as the plugin says it itself: of active, demands, detached, passes."""

    @property
    def hook(self) -> str:
        return self.spec.name

    @property
    def key(self) -> tuple[str, str]:
        """(hook, plugin)."""
        return self.hook, self.plugin.name

    def __call__(self, known: Mapping[str, Any]) -> Any:
        place = known["run"]._state.place
        with blamed(f"in plugin {self.plugin.name}, hook {self.hook}, {place}"):
            return self.function(**{name: known[name] for name in self.arguments})

    def of_epoch(self, epoch: int, costs: Costs) -> tuple[object, ...]:
        """What tells the stages of two epochs apart where it is active."""
        asked = {"demands": epoch, "detached": epoch, "passes": costs}
        return *self.key, *(getattr(self, name)(asked[name]) for name in asked if name in self.own)

    def demands(self, epoch: int) -> frozenset[str]:
        """The demanding arguments it needs in this epoch."""
        listed = frozenset(self.arguments) & {*VIEWS, "success"}
        wanted = declared(self.plugin, "demands", self.hook, epoch)
        return listed if wanted is None else listed & frozenset(wanted)

    def passes(self, costs: Costs) -> Passes:
        """The passes it runs by itself."""
        return cast(Passes, declared(self.plugin, "passes", self.hook, costs))

    def detached(self, epoch: int) -> frozenset[str]:
        """The views it takes without gradient."""
        return frozenset(VIEWS if self.spec.detached else declared(self.plugin, "detached", self.hook, epoch))


@dataclass(frozen=True)
class View:
    """One forward of the update phase: who demands it, whether a gradient flows, whether BatchNorm moves."""

    owners: tuple[str, ...]
    gradient: bool
    moves_statistics: bool


@dataclass(frozen=True)
class Stage:
    """The hooks of one stage. Answers are in canonical order (chains in their declared order)."""

    answers: Mapping[str, tuple[Answer, ...]]
    views: Mapping[str, View]
    forwards: tuple[str, ...]
    """The views in the order in which they run, those that move statistics first. One that comes again only moves."""
    aliases: Mapping[str, str]
    """Base views that are the plain ones, because nothing perturbs the weights."""
    demands: Mapping[tuple[str, str], frozenset[str]]
    """By (hook, plugin)."""
    detached: Mapping[tuple[str, str], frozenset[str]]
    attack_view: tuple[str, ...]
    """Who demands f(x; theta) in the attack phase."""
    success: tuple[str, ...]
    objective_terms: tuple[str, ...]
    """The loss terms that demand no base view: what `gradient_at(loss="objective")` sums."""
    objective_views: Mapping[str, bool]
    """The forwards they need; whether a gradient flows."""
    seldom: Sequence[tuple[int, Passes]]
    """At every how many steps `observe_update` is asked of each, and the passes of that."""
    passes: Mapping[str, Passes]
    """By phase, of a step in which everybody is asked."""

    def owner(self, hook: str) -> Answer | None:
        """Who answers an exclusive hook; None is the core."""
        return self.answers[hook][0] if self.answers[hook] else None

    @property
    def terms(self) -> tuple[str, ...]:
        """The loss terms, in the order they are added."""
        return ("base_loss", *(answer.plugin.name for answer in self.answers["extra_regularizer"]))

    def weights_of(self, term: str) -> tuple[Answer, ...]:
        """Who weighs the instances of a loss term."""
        return tuple(a for a in self.answers["instance_weight"] if term in declared(a.plugin, "terms"))

    @property
    def cost(self) -> float:
        """In forwards, in the mean over steps."""
        spared = sum(passes.cost * (1 - 1 / every) for every, passes in self.seldom)
        return sum(passes.cost for passes in self.passes.values()) - spared


@dataclass(frozen=True)
class Setting:
    """What a composition must know of the run it is for."""

    attack: AttackSettings
    epochs: int = 1
    epochs_known: bool = True
    """Whether the settings say how long the run is, as they do of all but a loop of one's own."""
    batch_norm: tuple[str, ...] | None = None
    """Views whose forwards move BatchNorm's running statistics, in that order; None: those of base_loss."""
    clean_at_start: bool = False
    """Whether the update's clean logits are those of the attack's start."""
    order: Mapping[str, Sequence[str]] = field(default_factory=dict)
    parts: int = 1  # of a batch


def stage(epoch: int, active: Mapping[str, tuple[Answer, ...]], setting: Setting) -> Stage:
    """What the active answers demand of the forwards, and what a step then costs."""
    answers = [answer for answered in active.values() for answer in answered]
    demands = {answer.key: answer.demands(epoch) for answer in answers}
    detached = {answer.key: answer.detached(epoch) for answer in answers}
    bare = ("adv_logits_base", "clean_logits_base")
    aliases = {} if active["weight_perturbation"] else {name: name.removesuffix("_base") for name in bare}
    loss = [answer for answer in answers if answer.spec.phase == "update"]
    based = {
        answer.plugin.name for answer in active["extra_regularizer"] if demands[answer.key] & {*bare} - aliases.keys()
    }
    inner = [a for a in loss if not (a.hook == "extra_regularizer" and a.plugin.name in based)]
    default = {("base_loss", CORE)} if not active["base_loss"] else set()  # the core's own needs adv_logits

    moving = None if setting.batch_norm is None else [aliases.get(name, name) for name in setting.batch_norm]

    def askers(view: str, answers: Sequence[Answer]) -> set[tuple[str, str]]:
        asking = {a.key for a in answers if any(aliases.get(name, name) == view for name in demands[a.key])}
        return asking | (default if view == "adv_logits" else set())

    def differentiated(answers: Sequence[Answer]) -> set[str]:
        names = {name for answer in answers for name in demands[answer.key] - detached[answer.key]}
        return {aliases.get(name, name) for name in names} | ({"adv_logits"} if default else set())

    views = {
        view: View(
            owners=tuple(sorted({plugin for _, plugin in asking})),
            gradient=view in differentiated(loss),
            moves_statistics=view in moving if moving is not None else any(hook == "base_loss" for hook, _ in asking),
        )
        for view in VIEWS
        if (asking := askers(view, loss))
    }
    listed = [view for view in moving or () if view in views]
    forwards = (*listed, *(view for view in views if view not in listed))
    adding = [answer for answer in inner if not answer.spec.detached]
    objective_views = {view: view in differentiated(adding) for view in VIEWS if askers(view, adding)}
    costs = Costs(setting.attack.steps, adv_ce=Passes(1, full_backward=1), objective=Passes(), epoch=epoch)
    objective = Passes(len(objective_views), full_backward=sum(objective_views.values()))
    objective = sum((a.passes(costs) for a in adding if a.hook != "weight_perturbation"), objective)
    # Nets beside the model answer once for the same images, be the loss taken at several weights.
    costs = replace(costs, objective=replace(objective, auxiliary_forward=0))

    def own(phase: str) -> Passes:
        return sum((answer.passes(costs) for answer in answers if answer.spec.phase == phase), Passes())

    attack_view = {a.plugin.name for a in answers if a.spec.phase == "attack" and "clean_logits" in demands[a.key]}
    success = tuple(answer.plugin.name for answer in answers if "success" in demands[answer.key])
    core = Passes() if active["inner_attack"] else setting.attack.passes
    return Stage(
        answers=active,
        views=views,
        forwards=forwards,
        aliases=aliases,
        demands=demands,
        detached=detached,
        attack_view=tuple(sorted(attack_view)),
        success=success,
        objective_terms=("base_loss", *(a.plugin.name for a in active["extra_regularizer"] if a in inner)),
        objective_views=objective_views,
        seldom=[(declared(a.plugin, "every", a.hook), a.passes(costs)) for a in active["observe_update"]],
        passes={
            "attack": own("attack") + core + Passes(bool(attack_view) + bool(success)),
            "update": own("update")
            + Passes(len(forwards), full_backward=sum(view.gradient for view in views.values())),
        },
    )


def readers(answers: Mapping[str, tuple[Answer, ...]], argument: str) -> list[Answer]:
    """Who lists an argument in the update, logs aside."""
    every = [answer for answered in answers.values() for answer in answered]
    updating = [a for a in every if a.spec.phase == "update" and a.spec.rule is not Rule.NOTIFY]
    return [answer for answer in updating if argument in answer.arguments]
