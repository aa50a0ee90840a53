"""From a set of plugins to plain callables: who answers which hook, what that demands, and what it costs.

A `Composition` is checked once; `at(epoch)` gives the `Stage` in force, in which demand and cost are fixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from itertools import combinations, pairwise
from typing import Any, cast

from ..errors import AmbiguousOrder, HookConflict, OptionError
from ..hookspec import Rule
from ..plugin import Budgets, Company, Costs, Order, Plugin
from ..types import Passes
from .consumption import unconsumed
from .declarations import declared, stated
from .registration import HOOKS, register
from .stage import Answer, Setting, Stage, stage


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
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise HookConflict(f"Plugin {twice[0]} is named twice; name it once.")
        manager = register(list(self.plugins))
        self.answers = {hook: self._collect(manager, hook) for hook in HOOKS}
        for hook, spec in HOOKS.items():
            if spec.rule is Rule.EXCLUSIVE and len(self.answers[hook]) > 1:
                first, second = (answer.plugin.name for answer in self.answers[hook][:2])
                raise HookConflict(
                    f"Plugins {first} and {second} both own {hook}, which takes one owner; leave one of them out."
                )
            if spec.rule is Rule.CHAIN:
                self.answers[hook] = self._chained(hook)
        self._changing = [answer for held in self.answers.values() for answer in held if answer.own]
        self._stages, self._by_epoch = dict[tuple[object, ...], Stage](), dict[int, Stage]()
        self._refuse_loose_orders()
        self.cautions = unconsumed(self.answers, setting.attack.steps, self._epochs)
        self.company = Company(
            answering={hook: self.owners(hook) for hook in HOOKS},
            attack=setting.attack,
            epochs=setting.epochs,
            attacks_from_x=setting.attack.init == "zero" and not self.always("inner_attack", "attack_start"),
            _largest_budget=self._largest_budget,
            _loss_views=self._loss_views,
            epochs_known=setting.epochs_known,
            parts=setting.parts,
        )
        for plugin in self.plugins:
            self.cautions += declared(plugin, "join", self.company)
        for answer in self.answers["budget_scale"]:
            if (most := declared(answer.plugin, "largest_scale", setting.attack)) > 1:
                self.cautions.append(f"{answer.plugin.name} attacks up to {most:.4g} times as far as the budget allows")
        self._settings_have_a_use()

    def owners(self, hook: str) -> tuple[str, ...]:
        """The names of all that answer a hook, in order."""
        return tuple(answer.plugin.name for answer in self.answers[hook])

    def _largest_budget(self) -> Budgets:
        eps = self.setting.attack.eps
        for answer in self.answers["perturbation_budget"]:
            return cast(Budgets, declared(answer.plugin, "largest_budget", eps))
        return Budgets(attack=eps, label=eps)

    def _loss_views(self, plugin: str) -> frozenset[str]:
        every = [answer for answers in self.answers.values() for answer in answers]
        own = [answer for answer in every if answer.plugin.name == plugin and answer.spec.phase == "update"]
        return frozenset(view for a in own for epoch in (self._epochs if a.own else [0]) for view in a.demands(epoch))

    def always(self, *hooks: str) -> bool:
        """Whether in every epoch one of these hooks is answered."""
        asked = [(answer.plugin, hook) for hook in hooks for answer in self.answers[hook]]
        return all(any(declared(plugin, "active", hook, epoch) for plugin, hook in asked) for epoch in self._epochs)

    @property
    def _epochs(self) -> range:  # of a loop of unknown length the default says nothing
        return range(self.setting.epochs if self.setting.epochs_known else 1000)

    # ------------------------------------------------------------------ stages

    def at(self, epoch: int) -> Stage:
        """The stage that `epoch` lies in."""
        if epoch not in self._by_epoch:
            self._by_epoch[epoch] = self._at(epoch)
        return self._by_epoch[epoch]

    def _at(self, epoch: int) -> Stage:
        if not self._changing and self._stages:
            return next(iter(self._stages.values()))
        asked = (answer for answer in self._changing if "active" in answer.own)
        off = {a.key for a in asked if not declared(a.plugin, "active", a.hook, epoch)}
        active = {hook: tuple(a for a in held if a.key not in off) for hook, held in self.answers.items()}
        terms = {"base_loss", *(answer.plugin.name for answer in active["extra_regularizer"])}
        active["instance_weight"] = tuple(
            answer for answer in active["instance_weight"] if terms & {*declared(answer.plugin, "terms")}
        )
        # With one pass for each call, by which passes of one's own that change with the epoch are told apart.
        costs = Costs(self.setting.attack.steps, Passes(1), Passes(full_backward=1), epoch)
        signature = tuple(answer.of_epoch(epoch, costs) for answers in active.values() for answer in answers)
        if signature not in self._stages:
            self._stages[signature] = stage(epoch, active, self.setting)
        return self._stages[signature]

    def stages(self) -> list[tuple[int, Stage]]:
        """(first epoch, stage) for every change over the run's epochs."""
        changes: list[tuple[int, Stage]] = []
        for epoch in range(max(1, self.setting.epochs)):
            now = self.at(epoch)
            if not changes or changes[-1][1] is not now:
                changes.append((epoch, now))
        return changes

    # ------------------------------------------------------------------ checks

    def _collect(self, manager: Any, hook: str) -> tuple[Answer, ...]:
        answers = (
            Answer(HOOKS[hook], own.plugin, own.function, tuple(own.argnames), stated(own.plugin))
            for own in getattr(manager.hook, hook).get_hookimpls()
        )
        return tuple(sorted(answers, key=lambda answer: answer.plugin.name))

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
                f"set order.{hook}={','.join(circle)}."
            ) from None
        for position, (first, second) in enumerate(pairwise(order)):
            if first not in earlier[second]:
                # Whole orders: one that names only these two would forget what was chosen before.
                swapped = [*order[:position], second, first, *order[position + 2 :]]
                one, other = sorted((",".join(order), ",".join(swapped)))
                raise AmbiguousOrder(
                    f"Plugins {' and '.join(sorted((first, second)))} both change {hook} and neither declares its "
                    f"place; set order.{hook}={one} or order.{hook}={other}."
                )
        return tuple(answers[name] for name in order)

    def _refuse_loose_orders(self) -> None:
        chains = ", ".join(name for name, spec in HOOKS.items() if spec.rule is Rule.CHAIN)
        for hook in self.setting.order:
            if hook not in chains.split(", "):
                raise OptionError(f"order.{hook} orders nothing; only chained hooks have an order: {chains}.")

    def _settings_have_a_use(self) -> None:
        attack, inner = self.setting.attack, self.owners("inner_attack")
        if inner and (attack.judged or attack.l2_projection != "ball-box"):
            raise HookConflict(
                f"attack.restarts, final_loss, l2_projection are for the core's attack, not {inner[0]}'s; drop them."
            )
        if attack.restarts > 1 and self.company.attacks_from_x:
            raise OptionError("attack.restarts: with init=zero each attack starts at x; choose uniform or normal.")
        computed = {name for _, part in self.stages() for name in part.views}
        if self.setting.clean_at_start and not any(name.startswith("clean") for name in computed):
            raise OptionError("update.clean is start, but this run's update has no clean logits; leave it out.")
        if absent := [name for name in self.setting.batch_norm or () if name not in computed]:
            raise OptionError(
                f"update.batch_norm names {absent[0]}, a forward that this run never computes; "
                f"it computes {', '.join(sorted(computed))}."
            )
