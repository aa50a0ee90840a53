"""Companions: who joins a run because a chosen plugin asks for somebody to answer a hook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .. import registry
from ..errors import HookConflict, OptionError, did_you_mean
from ..options import validate
from ..plugin import Plugin
from .registration import check, hooks_of


def loaded(name: str) -> type[Plugin]:
    kind: type[Plugin] = registry.load("plugin", name)
    check(kind)
    return kind


def _provided(
    wish: str,
    kinds: Mapping[str, type[Plugin]],
    built: Mapping[str, Plugin],
    raw_options: Mapping[str, Mapping[str, object]],
) -> bool:
    """Whether a chosen plugin answers a companion's wish: a hook, or "instance_weight:TERM"."""
    hook, _, term = wish.partition(":")
    for name, kind in kinds.items():
        if hook not in hooks_of(kind):
            continue
        if not term:
            return True
        given = raw_options.get(name, {})
        # What eps and decays are plays no part in `terms`.
        plugin = built.get(name) or kind(validate(kind.Options, given, where=name, eps=1.0, decays=range(1, 10_000)))
        if term in plugin.terms:
            return True
    return False


def add_companions(
    kinds: dict[str, type[Plugin]],
    built: Mapping[str, Plugin],
    declined: Sequence[str],
    raw_options: Mapping[str, Mapping[str, object]],
) -> dict[str, tuple[str, str]]:
    """Add to `kinds` the companions that are missing: {name: (hook, asker)}. Companions add no companions."""
    wishes: dict[str, list[tuple[str, str, Mapping[str, object]]]] = {}
    for asker, kind in sorted(kinds.items()):
        for wish, (name, options) in kind.companions.items():
            wishes.setdefault(wish, []).append((asker, name, options))
    unknown = [wish for wish in declined if wish not in wishes]
    if unknown:
        raise OptionError(
            f"--no-companion {unknown[0]} declines nothing: "
            + (
                f"the companions of this run answer {', '.join(sorted(wishes))}."
                if wishes
                else "no plugin asks for one."
            )
            + did_you_mean(unknown[0], wishes)
        )
    before, added = dict(kinds), {}
    for wish, askers in wishes.items():
        if wish in declined or _provided(wish, before, built, raw_options):
            continue
        first = askers[0]
        if first[1] in before:
            continue  # the user named it, and with options of which it answers something else
        for other in askers[1:]:
            if other[1] != first[1]:  # the same one with other options: `companion_options` says so
                raise HookConflict(
                    f"Plugins {first[0]} and {other[0]} ask for different companions on {wish} "
                    f"({first[1]} and {other[1]}); name the one you want in --plugins."
                )
        kinds[first[1]] = loaded(first[1])
        added[first[1]] = (wish, first[0])
    return added


def companion_options(
    kinds: Mapping[str, type[Plugin]], declined: Sequence[str]
) -> dict[str, tuple[Mapping[str, object], str]]:
    """Options that askers give their companions, also to one that the user named: {name: (options, asker)}."""
    asked: dict[str, tuple[Mapping[str, object], str]] = {}
    for asker, kind in sorted(kinds.items()):
        for wish, (name, options) in kind.companions.items():
            if wish in declined or name not in kinds or not options:
                continue
            if name in asked and asked[name][0] != options:
                raise HookConflict(
                    f"Plugins {asked[name][1]} and {asker} give {name} different options; "
                    f"decline one with --no-companion {wish} and set -o {name}.KEY=VALUE."
                )
            asked[name] = (options, asker)
    return asked
