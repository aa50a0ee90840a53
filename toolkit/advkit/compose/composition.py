"""From a set of plugins to plain callables: who answers which hook, what that demands, and what it costs.

A `Composition` is checked once; `at(epoch)` gives the `Stage` in force, in which demand and cost are fixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from itertools import combinations, pairwise
from typing import Any

from ..errors import AmbiguousOrder, HookConflict, OptionError
from ..hookspec import Rule
from ..plugin import CORE, Budgets, Order, Plugin
from .consumption import unconsumed
from .registration import HOOKS, RULES, register
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
        self._stages: dict[tuple[object, ...], Stage] = {}
        self._by_epoch: dict[int, Stage] = {}
        self.cautions = [*unconsumed(self), *self._loose_orders()]
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

    # ------------------------------------------------------------------ stages

    def at(self, epoch: int) -> Stage:
        """The stage that `epoch` lies in."""
        if epoch not in self._by_epoch:
            self._by_epoch[epoch] = self._at(epoch)
        return self._by_epoch[epoch]

    def _at(self, epoch: int) -> Stage:
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
        if signature not in self._stages:
            self._stages[signature] = stage(epoch, active, demands, self.setting)
        return self._stages[signature]

    def stages(self) -> list[tuple[int, Stage]]:
        """(first epoch, stage) for every change over the run's epochs."""
        changes: list[tuple[int, Stage]] = []
        for epoch in range(max(1, self.setting.epochs)):
            stage = self.at(epoch)
            if not changes or changes[-1][1] is not stage:
                changes.append((epoch, stage))
        return changes

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

    def _batch_norm_views_exist(self) -> None:
        chosen = self.setting.batch_norm
        if chosen is None:
            return
        computed = {name for _, stage in self.stages() for name in stage.views}
        absent = [name for name in chosen if name not in computed]
        if absent:
            raise OptionError(
                f"update.batch_norm names {absent[0]}, a forward that this run never computes; "
                f"it computes {', '.join(sorted(computed))}."
            )
