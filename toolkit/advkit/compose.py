"""From a set of plugins to plain callables: who answers which hook, what that demands, and what it costs.

A `Composition` is checked once; `at(epoch)` gives the `Interval` in force, in which demand and cost are fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from itertools import combinations, pairwise
from typing import Any

from .errors import AdvkitError, AmbiguousOrder, HookConflict, OptionError
from .hookspec import Rule
from .plugin import Budgets, Costs, Order, Plugin
from .registration import HOOKS, RULES, register
from .types import Passes

VIEWS = ("adv_logits", "clean_logits", "adv_logits_base", "clean_logits_base")
"""The forwards of the update phase, in the order they are run."""

ATTACK_VIEW_HOOKS = ("perturbation_budget", "budget_scale", "target_label", "attack_objective")
"""Hooks whose `clean_logits` is f(x; theta) in the attack mode, without gradient."""

LOSS_HOOKS = ("base_loss", "extra_regularizer", "instance_weight")
ATTACK_HOOKS = (*ATTACK_VIEW_HOOKS, "inner_attack", "attack_step", "commit_attack")
PREFERRING_HOOKS = ("perturbation_budget", "attack_objective", "inner_attack", "base_loss")

CORE = "core"


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
        """The views it takes without gradient; weights of instances never have one."""
        return frozenset(VIEWS if self.hook == "instance_weight" else self.plugin.detached(self.hook, epoch))


@dataclass(frozen=True)
class View:
    """One forward of the update phase: who demands it, whether a gradient flows, whether BatchNorm moves."""

    owners: tuple[str, ...]
    gradient: bool
    moves_statistics: bool


@dataclass(frozen=True)
class Interval:
    """The hooks of one schedule interval. Answers are in canonical order (chains in their declared order)."""

    from_epoch: int
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
    objective_views: tuple[str, ...]
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
    batch_norm: tuple[str, ...] | None = None
    """Views whose forwards move BatchNorm's running statistics; None: those that base_loss demands."""
    order: Mapping[str, Sequence[str]] = field(default_factory=dict)


class Composition:
    """A checked set of plugins. Raises HookConflict, AmbiguousOrder, UnknownHook or OptionError.

    The order of `plugins` does not matter. `added` maps companions to (hook, the plugin that asked).
    """

    def __init__(
        self,
        plugins: Iterable[Plugin],
        setting: Setting,
        added: Mapping[str, tuple[str, str]] | None = None,
    ) -> None:
        self.plugins = tuple(sorted(plugins, key=lambda plugin: plugin.name))
        self.setting = setting
        self.added = dict(added or {})
        names = [plugin.name for plugin in self.plugins]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise HookConflict(f"Plugin {twice[0]} is named twice; name it once.")
        manager = register(list(self.plugins))
        self.answers = {hook: self._collect(manager, hook) for hook in HOOKS}
        for hook, rule in RULES.items():
            if rule is Rule.EXCLUSIVE and len(self.answers[hook]) > 1:
                first, second = (answer.plugin.name for answer in self.answers[hook][:2])
                raise HookConflict(
                    f"Plugins {first} and {second} both own {hook}, which takes one owner; "
                    "leave one of them out of --plugins."
                )
            if rule is Rule.CHAIN:
                self.answers[hook] = self._chained(hook)
        self._intervals: dict[tuple[object, ...], Interval] = {}
        self.cautions = [*self._consumption(), *self._loose_orders()]
        for plugin in self.plugins:
            self.cautions += plugin.join(self)
        self._batch_norm_views_exist()

    # ------------------------------------------------------------------ what plugins may ask

    def owner(self, hook: str) -> str:
        """The name of an exclusive hook's owner, "core" where no plugin answers."""
        return self.answers[hook][0].plugin.name if self.answers[hook] else CORE

    def owners(self, hook: str) -> tuple[str, ...]:
        """The names of all that answer a hook, in order."""
        return tuple(answer.plugin.name for answer in self.answers[hook])

    @property
    def largest_budget(self) -> Budgets:
        """The largest budgets any sample can get."""
        owner = self.answers["perturbation_budget"]
        eps = self.setting.eps
        return owner[0].plugin.largest_budget(eps) if owner else Budgets(attack=eps, label=eps)

    # ------------------------------------------------------------------ intervals

    def at(self, epoch: int) -> Interval:
        """The interval that `epoch` lies in."""
        active = {
            hook: tuple(answer for answer in answers if answer.plugin.active(hook, epoch))
            for hook, answers in self.answers.items()
        }
        terms = {"base_loss", *(answer.plugin.name for answer in active["extra_regularizer"])}
        active["instance_weight"] = tuple(
            answer for answer in active["instance_weight"] if terms & set(answer.plugin.terms)
        )
        demands = {
            (hook, answer.plugin.name): answer.demands(epoch) for hook, answers in active.items() for answer in answers
        }
        signature = (
            *((hook, *(a.plugin.name for a in answers)) for hook, answers in active.items()),
            *demands.values(),
            *(answer.detached(epoch) for answers in active.values() for answer in answers),
        )
        if signature not in self._intervals:
            self._intervals[signature] = self._interval(epoch, active, demands)
        return self._intervals[signature]

    def intervals(self) -> list[tuple[int, Interval]]:
        """(first epoch, interval) for every change over the run's epochs."""
        changes: list[tuple[int, Interval]] = []
        for epoch in range(max(1, self.setting.epochs)):
            interval = self.at(epoch)
            if not changes or changes[-1][1] is not interval:
                changes.append((epoch, interval))
        return changes

    def _interval(
        self,
        epoch: int,
        active: Mapping[str, tuple[Answer, ...]],
        demands: Mapping[tuple[str, str], frozenset[str]],
    ) -> Interval:
        aliases = (
            {}
            if active["weight_perturbation"]
            else {"adv_logits_base": "adv_logits", "clean_logits_base": "clean_logits"}
        )
        wanted: dict[str, list[tuple[str, str]]] = {view: [] for view in VIEWS}
        differentiated = set() if active["base_loss"] else {"adv_logits"}
        for hook in LOSS_HOOKS:
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
                    if self.setting.batch_norm is None
                    else name in self.setting.batch_norm
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
            if any(hook != "instance_weight" and plugin not in based for hook, plugin in wanted[view])
        ]
        costs = Costs(
            steps=self.setting.steps,
            adv_ce=Passes(forward=1, full_backward=1),
            objective=Passes(forward=len(objective_views), full_backward=len(objective_views)),
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
        steps = 0 if active["inner_attack"] else self.setting.steps
        return Interval(
            from_epoch=epoch,
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
            objective_views=tuple(objective_views),
            passes={
                "attack": own["attack"] + Passes(steps + bool(attack_view) + bool(success), steps),
                "update": own["update"]
                + Passes(len(views), full_backward=sum(view.gradient for view in views.values())),
            },
        )

    # ------------------------------------------------------------------ checks

    def _collect(self, manager: Any, hook: str) -> tuple[Answer, ...]:
        found = (
            Answer(hook, implementation.plugin, implementation.function, tuple(implementation.argnames))
            for implementation in getattr(manager.hook, hook).get_hookimpls()
        )
        return tuple(sorted(found, key=lambda answer: answer.plugin.name))

    def _chained(self, hook: str) -> tuple[Answer, ...]:
        """The one order that the declarations allow. The user's `order.HOOK` counts as a declaration."""
        answers = {answer.plugin.name: answer for answer in self.answers[hook]}
        chosen = list(self.setting.order.get(hook, ()))
        stranger = next((name for name in chosen if name not in answers), None)
        if stranger is not None:
            raise OptionError(f"order.{hook} names {stranger}, which does not answer {hook} in this run.")
        earlier: dict[str, set[str]] = {name: set() for name in answers}
        for name, answer in answers.items():
            place = answer.plugin.order.get(hook, Order())
            earlier[name] |= place.after & answers.keys()
            for later in place.before & answers.keys():
                earlier[later].add(name)
        for first, second in combinations(dict.fromkeys(chosen), 2):
            earlier[first].discard(second)
            earlier[second].add(first)
        try:
            order = list(TopologicalSorter({name: sorted(earlier[name]) for name in earlier}).static_order())
        except CycleError as error:
            circle = sorted(error.args[1][1:])
            raise AmbiguousOrder(
                f"Plugins {' and '.join(circle)} declare places on {hook} that contradict each other; "
                f"choose with --set order.{hook}={','.join(circle)}."
            ) from None
        for position, (first, second) in enumerate(pairwise(order)):
            if first not in earlier[second]:
                # Whole orders: one that names only these two would forget what was chosen before.
                swapped = [*order[:position], second, first, *order[position + 2 :]]
                one, other = sorted((",".join(order), ",".join(swapped)))
                raise AmbiguousOrder(
                    f"Plugins {' and '.join(sorted((first, second)))} both change {hook} and neither declares its "
                    f"place; choose one: --set order.{hook}={one} or --set order.{hook}={other}."
                )
        return tuple(answers[name] for name in order)

    def _loose_orders(self) -> list[str]:
        for hook in self.setting.order:
            if RULES.get(hook) is not Rule.CHAIN:
                chains = ", ".join(name for name, rule in RULES.items() if rule is Rule.CHAIN)
                raise OptionError(f"order.{hook} orders nothing; only chained hooks have an order: {chains}.")
        return []

    def _consumption(self) -> list[str]:
        """Nobody is ignored: refuse answers that nothing consumes, caution where one phase does not."""
        attack = self.answers["inner_attack"]
        if attack:
            name, listed = attack[0].plugin.name, attack[0].arguments
            for hook, argument in (
                ("perturbation_budget", "radius"),
                ("budget_scale", "radius"),
                ("attack_objective", "objective"),
            ):
                if self.answers[hook] and argument not in listed:
                    raise HookConflict(
                        f"Plugin {self.owners(hook)[0]} answers {hook}, but the inner attack {name} does not use "
                        f"`{argument}`, so nothing would come of it; leave one of them out of --plugins."
                    )
            if self.answers["attack_step"] and "attack_step" not in attack[0].plugin.honours:
                raise HookConflict(
                    f"Plugin {self.owners('attack_step')[0]} observes attack steps, but the inner attack {name} "
                    "declares that it asks no observers; leave one of them out of --plugins."
                )
        commit = self.answers["commit_attack"]
        if commit and commit[0].plugin.name != self.owner("perturbation_budget"):
            raise HookConflict(
                f"Plugin {commit[0].plugin.name} answers commit_attack, but perturbation_budget is owned by "
                f"{self.owner('perturbation_budget')}; only the owner of the budget may write it."
            )
        terms = {"base_loss", *self.owners("extra_regularizer")}
        for answer in self.answers["instance_weight"]:
            stray = [term for term in answer.plugin.terms if term not in terms]
            if stray or not answer.plugin.terms:
                raise HookConflict(
                    f"Plugin {answer.plugin.name} weighs the term {stray[0] if stray else '(none)'}, which no chosen "
                    f"plugin adds; the terms of this run are {', '.join(sorted(terms))}."
                )
        return [*self._label_consumption(), *self._idle_attack()]

    def _label_consumption(self) -> list[str]:
        if not self.answers["target_label"]:
            return []
        objective = self.answers["attack_objective"]
        in_objective = not objective or "target" in objective[0].arguments
        attack = self.answers["inner_attack"]
        in_attack = (
            "target" in attack[0].arguments or ("objective" in attack[0].arguments and in_objective)
            if attack
            else in_objective
        )
        base = self.answers["base_loss"]
        in_training = not base or any(
            "target" in answer.arguments for hook in LOSS_HOOKS for answer in self.answers[hook]
        )
        labels = ", ".join(self.owners("target_label"))
        if not in_attack and not in_training:
            raise HookConflict(
                f"Plugin {labels} changes the target label, but neither the attack objective of "
                f"{self.owner('attack_objective')} nor the loss of {self.owner('base_loss')} uses it; "
                "leave one of them out of --plugins."
            )
        if not in_attack:
            return [f"the soft labels of {labels} do not reach the attack of {self.owner('attack_objective')}"]
        if not in_training:
            return [f"the soft labels of {labels} do not reach the loss of {self.owner('base_loss')}"]
        return []

    def _idle_attack(self) -> list[str]:
        if self.setting.steps or self.answers["inner_attack"]:
            return []
        idle = [hook for hook in ("attack_objective", "attack_step") if self.answers[hook]]
        if idle:
            raise HookConflict(
                f"Plugin {self.owners(idle[0])[0]} answers {idle[0]}, but attack.steps is 0, so there is no attack; "
                "leave it out of --plugins or set attack.steps."
            )
        if self.answers["perturbation_budget"]:
            return [f"attack.steps is 0, so the budgets of {self.owner('perturbation_budget')} bound nothing"]
        return []

    def _batch_norm_views_exist(self) -> None:
        chosen = self.setting.batch_norm
        if chosen is None:
            return
        computed = {name for _, interval in self.intervals() for name in interval.views}
        absent = [name for name in chosen if name not in computed]
        if absent:
            raise OptionError(
                f"update.batch_norm names {absent[0]}, a forward that this run never computes; "
                f"it computes {', '.join(sorted(computed))}."
            )
