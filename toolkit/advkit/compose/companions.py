"""Companions: who joins a run because a chosen plugin asks for somebody to answer a hook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .. import registry
from ..errors import HookConflict, OptionError, did_you_mean, named
from ..plugin import Plugin
from .registration import check, hooks_of


def loaded(name: str) -> type[Plugin]:
    """The plugin of that name, checked against the hook specification."""
    plugin: type[Plugin] = registry.load("plugin", name)
    check(plugin)
    return plugin


def _provided(wish: str, plugins: Mapping[str, Plugin]) -> bool:
    """Whether a chosen plugin answers a companion's wish: a hook, or "instance_weight:TERM"."""
    hook, _, term = wish.partition(":")
    owners = [plugin for plugin in plugins.values() if hook in hooks_of(type(plugin))]
    return any(not term or term in plugin.terms for plugin in owners)


def add_companions(plugins: Mapping[str, Plugin], declined: Sequence[str]) -> dict[str, tuple[str, str]]:
    """The companions that are missing among these plugins: {name: (hook, asker)}. Companions add no companions."""
    wishes: dict[str, list[tuple[str, str]]] = {}
    for asker, plugin in sorted(plugins.items()):
        for wish, (name, _) in plugin.companions.items():
            wishes.setdefault(wish, []).append((asker, name))
    unknown = [wish for wish in declined if wish not in wishes]
    if unknown:
        raise OptionError(
            f"{named('--no-companion')} {unknown[0]} declines nothing: "
            + (
                f"the companions of this run answer {', '.join(sorted(wishes))}."
                if wishes
                else "no plugin asks for one."
            )
            + did_you_mean(unknown[0], wishes)
        )
    added = {}
    for wish, askers in wishes.items():
        if wish in declined or _provided(wish, plugins):
            continue
        (asker, name), *others = askers
        if name in plugins:
            continue  # the user named it, and with options of which it answers something else
        for other, another in others:
            if another != name:  # the same one with other options: `companion_options` says so
                raise HookConflict(
                    f"Plugins {asker} and {other} ask for different companions on {wish} "
                    f"({name} and {another}); name the one you want among the plugins."
                )
        added[name] = (wish, asker)
    return added


def companion_options(
    types: Mapping[str, type[Plugin]], declined: Sequence[str]
) -> dict[str, tuple[Mapping[str, object], str]]:
    """Options that askers give their companions, also to one that the user named: {name: (options, asker)}."""
    options_given: dict[str, tuple[Mapping[str, object], str]] = {}
    for asker, plugin_type in sorted(types.items()):
        for wish, (name, options) in plugin_type.companions.items():
            if wish in declined or name not in types or not options:
                continue
            if name in options_given and options_given[name][0] != options:
                raise HookConflict(
                    f"Plugins {options_given[name][1]} and {asker} give {name} different options; "
                    f"decline one with {named('--no-companion')} {wish} and set {name}.KEY=VALUE."
                )
            options_given[name] = (options, asker)
    return options_given
