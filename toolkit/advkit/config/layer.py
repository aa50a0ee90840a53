"""What was written in one place, before anything is checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .. import registry
from ..errors import OptionError, named
from ..own_file import FLAGS, OwnFile, over
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
    files: Mapping[str, OwnFile] = field(default_factory=dict)
    """By setting, the FILE.py:NAME that it names; the setting itself has no folder."""
    trackers: tuple[str, ...] = ()
    """Those that were named among the plugins; no part of what is trained."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of its plugins, sorted."""
        return tuple(sorted(plugin if isinstance(plugin, str) else plugin.name for plugin in self.plugins or ()))

    @property
    def values(self) -> dict[str, object]:
        """Its settings and options, as `Resolved.values` has those of a run."""
        return {**self.settings, **flat(self.options)}

    @property
    def empty(self) -> bool:
        """Whether nothing is written in it."""
        return self.plugins is None and not (self.settings or self.options or self.no_companion)


def flat(options: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    """{"cat-eps.eta": 0.02} of {"cat-eps": {"eta": 0.02}}."""
    return {f"{name}.{key}": value for name, own in options.items() for key, value in own.items()}


def chosen(plugins: str | Iterable[PluginChoice] | None) -> tuple[PluginChoice, ...] | None:
    """Plugins as they may be given: "a,b", names, classes, instances; None where nothing was."""
    if isinstance(plugins, str):
        names = tuple(part.strip() for part in plugins.split(",") if part.strip())
        if plugins.strip() and not names:
            raise OptionError(
                f"{named('--plugins')} {plugins!r} names no plugin; leave it out for PGD-AT, or name some: a,b."
            )
        return names
    return None if plugins is None else tuple(plugins)


def with_trackers(layer: Layer) -> Layer:
    """A layer whose trackers are told from its plugins; where it names nothing else, it names no plugins."""
    trackers = tuple(name for name in layer.plugins or () if isinstance(name, str) and _is_tracker(name))
    if not trackers:
        return layer
    methods = tuple(choice for choice in layer.plugins or () if choice not in trackers)
    return replace(layer, plugins=methods or None, trackers=trackers)


def _is_tracker(name: str) -> bool:
    return name in registry.names("tracker") and name not in registry.names("plugin")


def with_files(layer: Layer) -> Layer:
    """A layer of what a person typed or passed: what it names as FILE.py:NAME is read, and may run."""
    files = {key: file for key in FLAGS if (file := OwnFile.typed(key, layer.settings.get(key)))}
    settings = {**layer.settings, **{key: file.short for key, file in files.items()}}
    return replace(layer, settings=settings, files=files) if files else layer


def files_of(layers: Iterable[Layer]) -> dict[str, OwnFile]:
    """The files in force, by setting; layers go from the lowest to the highest."""
    files: dict[str, OwnFile] = {}
    for layer in layers:
        files = over({key: file for key, file in files.items() if _same(file, layer)}, layer.files)
    return files


def _same(file: OwnFile, layer: Layer) -> bool:
    """Whether a layer above says nothing else."""
    return layer.settings.get(file.key, file.short) == file.short
