"""What was written in one place, before anything is checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import OptionError
from ..plugin import Plugin

PluginChoice = str | type[Plugin] | Plugin


@dataclass(frozen=True)
class Layer:
    """Settings ("section.key") and options (by plugin) of one origin, as they were written: a recipe, a run file,
    a command line, the arguments of a call."""

    origin: str
    settings: Mapping[str, object] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    plugins: tuple[PluginChoice, ...] | None = None
    """None: it names none, and those of the layer below stay."""
    no_companion: tuple[str, ...] = ()
    companions: Mapping[str, Any] | None = None
    """Those that a run file was resolved with."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of its plugins, sorted."""
        return tuple(sorted(plugin if isinstance(plugin, str) else plugin.name for plugin in self.plugins or ()))

    @property
    def empty(self) -> bool:
        """Whether nothing is written in it."""
        return self.plugins is None and not (self.settings or self.options or self.no_companion)


def chosen(plugins: str | Iterable[PluginChoice] | None) -> tuple[PluginChoice, ...] | None:
    """Plugins as they may be given: "a,b", names, classes, instances; None where nothing was."""
    if isinstance(plugins, str):
        names = tuple(part.strip() for part in plugins.split(",") if part.strip())
        if plugins.strip() and not names:
            raise OptionError(f"--plugins {plugins!r} names no plugin; leave it out for PGD-AT, or name some: a,b.")
        return names
    return None if plugins is None else tuple(plugins)
