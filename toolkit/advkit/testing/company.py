"""Whom a plugin can train with: alone or beside whom it needs, in twos, and in a crowd."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from .. import registry
from ..compose.registration import HOOKS, check, hooks_of
from ..config.layer import Layer
from ..config.resolve import Resolved, resolve
from ..errors import AdvkitError, HookConflict, OptionError, PluginLoad
from ..hookspec import Rule
from ..plugin import Plugin

Choice = str | type[Plugin]
Options = Mapping[str, Mapping[str, object]]
"""By plugin."""
NONE: Options = MappingProxyType({})
Refusal = Callable[[tuple[Any, ...]], str]
"""Why a set of plugins can not train, "" where it can."""


def resolved(chosen: Sequence[Choice], options: Options = NONE, settings: Mapping[str, object] = {}) -> Resolved:
    """A run of these plugins, named as a `Step` names what is passed to it: nothing else is looked up."""
    own = {"model.name": "python:model", "data.name": "python:data"}
    given = {name: values for name, values in options.items() if values}
    return resolve(list(chosen), [Layer("testing", {**own, **settings}, given)])


def refusal(chosen: Sequence[Choice], options: Options = NONE) -> str:
    """Why a set of plugins is refused, "" if it runs."""
    try:
        resolved(chosen, options)
    except (HookConflict, OptionError) as sentence:
        return str(sentence)
    return ""


def installed(but: str = "") -> tuple[list[type[Plugin]], list[type[Plugin]]]:
    """All installed plugins that can be imported, but one: those that can be registered, and those that can not."""
    classes: tuple[list[type[Plugin]], list[type[Plugin]]] = ([], [])
    for name in registry.names("plugin"):
        if name != but:
            try:
                plugin = registry.load("plugin", name)
            except PluginLoad:
                continue  # broken, claimed twice or not allowed: somebody else's failure
            classes[not registers(plugin)].append(plugin)
    return classes


def registers(plugin: type[Plugin]) -> bool:
    """Whether its hooks are such that a run can have it."""
    try:
        check(plugin)
    except AdvkitError:
        return False
    return True


def alone(plugin: Choice, others: Sequence[Choice], refused: Refusal = refusal) -> tuple[Any, ...]:
    """The smallest set with this plugin that runs: itself, or itself and somebody it needs. Or an AdvkitError."""
    for chosen in ((plugin,), *((plugin, other) for other in others)):
        if not refused(chosen):
            return chosen
    name = plugin if isinstance(plugin, str) else plugin.name
    raise AdvkitError(f"{name} runs neither alone nor beside another one: {refused((plugin,))}")


def crowd(begin: tuple[Any, ...], others: Sequence[Choice], refused: Refusal = refusal) -> tuple[Any, ...]:
    """A set with these plugins to which no other can be added."""
    chosen, before = begin, ()
    owned = {one: _owned(one) for one in (*begin, *others)}
    while chosen != before:  # again, as some fit only beside one that came later
        before = chosen
        for other in others:
            free = other not in chosen and not any(owned[other] & owned[one] for one in chosen)
            if free and not refused((*chosen, other)):
                chosen = (*chosen, other)
    return chosen


def _owned(plugin: Choice) -> set[str]:
    """The hooks of one owner that it answers: two who share one are refused, whatever their options."""
    plugin_type = registry.load("plugin", plugin) if isinstance(plugin, str) else plugin
    return {hook for hook in hooks_of(plugin_type) if HOOKS[hook].rule is Rule.EXCLUSIVE}
