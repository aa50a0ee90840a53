"""What is asked of a run, and which source wins if two of them say something. Nowhere else is precedence decided.

Settings, lowest first: the core, the data set, plugins' unanimous preferences, recipe, run file, command line or
arguments. Options: the plugin, the plugin that asked for it as companion, then recipe, file and so on. Whoever names
plugins replaces those below, whose options for plugins that are gone go with them; declined companions add up.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .. import registry
from ..compose.companions import loaded
from ..compose.registration import HOOKS, check, hooks_of
from ..errors import OptionError, PluginLoad, did_you_mean, named, shown, spoken
from ..numerals import parse_number
from ..optimizers import KNOWN, OptimizerSettings
from ..own_file import OwnFile
from ..plain import plain
from ..plugin import Plugin
from ..settings import DataSettings, known_setting
from . import recipes, runfile, suggested
from .layer import Layer, PluginChoice, with_files, with_trackers

PASSED = "python:"
"""Starts the name of a model or of data that were passed as objects, and that no file can bring back."""

MODEL = "small-cnn"
"""What is trained where nothing names a model."""

OPTIMIZER = OptimizerSettings.model_fields["name"].default
OF_THE_OPTIMIZER = {"optimizer.name", *(f"optimizer.{key}" for key in KNOWN)}
"""Settings that are said of one optimizer, and of no other."""

SHORT = {
    "dataset": "data.name",
    "data_root": "data.root",
    "limit": "data.limit",
    "model": "model.name",
    "epochs": "run.epochs",
    "batch_size": "run.batch_size",
    "eps": "attack.eps",
    "seed": "run.seed",
}
"""Flags and arguments that are short for a setting."""


def registered(name: str) -> bool:
    """Whether a model or data set is an installed one: neither passed from Python nor FILE.py:NAME."""
    return not name.startswith(PASSED) and OwnFile.written("", name) is None


@dataclass(frozen=True)
class Request:
    """Layers, the lowest first. The command line, `advkit.train` and `ablate` build it alike."""

    layers: tuple[Layer, ...]

    @classmethod
    def of(cls, top: Layer, recipe: str | None = None, config: str | Path | None = None) -> Request:
        """What is typed or passed, over a run file, over a recipe."""
        below, top = [], with_trackers(top)
        _refuse_methods(top.plugins or ())
        if recipe is not None:
            below.append(runfile.parse(recipes.load(recipe).table, f"recipe {recipe}", f"recipe {recipe}"))
        if config is not None:
            below.append(runfile.load(Path(config)))
        if len(below) == 2 and _replaced(*below):
            raise OptionError(
                f"{config} replaces all of the recipe {recipe}, which would change nothing; leave one out."
            )
        root = top.settings.get("data.root")
        if root and isinstance(root, str):
            if not root.isascii() and root.encode(errors="replace") != root.encode(errors="surrogatepass"):
                raise OptionError(f"data.root = {root!r} is no UTF-8, so no run file can hold it; rename the folder.")
            top = replace(top, settings={**top.settings, "data.root": str(Path(os.path.expanduser(root)).absolute())})
        return cls((*map(with_trackers, below), with_files(top)))

    @property
    def top(self) -> Layer:
        return self.layers[-1]

    @property
    def plugins(self) -> tuple[PluginChoice, ...]:
        """Those of the highest layer that names some."""
        return next((layer.plugins for layer in reversed(self.layers) if layer.plugins is not None), ())

    @property
    def trackers(self) -> tuple[str, ...]:
        """Those that any layer names."""
        return tuple(dict.fromkeys(name for layer in self.layers for name in layer.trackers))

    @property
    def declined(self) -> tuple[str, ...]:
        """Hooks whose companions are declined, in any layer: below one that names plugins, those they ask for."""
        asked_for = {wish for plugin in self._types() for wish in plugin.companions}
        wishes: set[str] = set()
        replaced = False
        for layer in reversed(self.layers):
            wishes |= {wish for wish in layer.no_companion if wish in asked_for or not replaced}
            replaced = replaced or layer.plugins is not None
        return tuple(sorted(wishes))

    def over(self, layer: Layer) -> Request:
        """The request with one layer more, the highest."""
        return Request((*self.layers, layer))

    def with_typed(self, more: Layer) -> Request:
        """As if these settings and options had been typed with the others: what names a net drops none of those."""
        options = {name: {**self.top.options.get(name, {}), **own} for name, own in more.options.items()}
        top = replace(
            self.top,
            settings={**self.top.settings, **more.settings},
            options={**self.top.options, **options},
            files={**self.top.files, **more.files},
        )
        return Request((*self.layers[:-1], top))

    def in_force(self) -> list[Layer]:
        """The layers without the options of plugins that a layer above has replaced; companions keep theirs.

        `update.*` goes too: it names forwards that those plugins demand.
        """
        declined = self.declined
        present = {plugin.name for plugin in self._types()} | {
            name for plugin in self._types() for wish, (name, _) in plugin.companions.items() if wish not in declined
        }
        kept: list[Layer] = []
        changed = False
        for layer in reversed(self.layers):
            known = {name: values for name, values in layer.options.items() if name in present or not changed}
            settings = {key: v for key, v in layer.settings.items() if not (changed and key.startswith("update."))}
            kept.insert(0, replace(layer, options=known, settings=settings))
            changed = changed or layer.plugins is not None or bool(layer.no_companion)
        return kept

    def _types(self) -> list[type[Plugin]]:
        """The classes of the plugins."""
        plugins = [loaded(choice) if isinstance(choice, str) else choice for choice in self.plugins]
        types = [plugin if isinstance(plugin, type) else type(plugin) for plugin in plugins]
        for plugin in types:
            check(plugin)  # its companions are read next
        return types


PGD_AT = ("at", "pgd", "pgd-at", "madry", "adversarial-training")
"""What people call training without a plugin."""


def _replaced(lower: Layer, upper: Layer) -> bool:
    """Whether nothing of a layer is left below another one."""
    kept = [name for name in lower.options if upper.plugins is None or name in upper.names]
    options = any(lower.options[name].keys() - upper.options.get(name, {}).keys() for name in kept)
    plugins = lower.plugins is not None and upper.plugins is None
    return not (plugins or options or lower.no_companion or lower.settings.keys() - upper.settings.keys())


def _refuse_methods(plugins: Sequence[PluginChoice]) -> None:
    """PluginLoad for what is a method to people and no plugin, with how it is typed."""
    for name in plugins:
        if not isinstance(name, str) or name in registry.names("plugin"):
            continue
        if spoken(name) in PGD_AT:
            raise PluginLoad(f"{name} is no plugin: training without any is PGD-AT; leave it out.")
        if spoken(name) not in registry.names("plugin") and (methods := recipes.called(name)):
            others = f", or {', '.join(methods[1:])}" if methods[1:] else ""
            raise PluginLoad(
                f"{name} is no plugin but a recipe, which has plugins and settings: "
                f"{named('--recipe', methods[0])}{others}."
            )


def merged(
    settings: Mapping[str, object], short: Mapping[str, tuple[str, object]], as_written: str
) -> dict[str, object]:
    """Settings and what is short for one, {"attack.eps": ("--eps", 0.1)}; refused where the two differ."""
    both = dict(settings)
    for key, (name, value) in short.items():
        if key in both and _plain(both[key]) != _plain(value):
            raise OptionError(
                f"{name} {value} and {as_written.format(key=key, value=both[key])} differ; they are the same setting, "
                "give one."
            )
        both[key] = value
    return both


def _plain(value: object) -> object:
    """One value for all spellings of it, such as 8/255 and 0.0313..."""
    try:
        return parse_number(value) if isinstance(value, str) else plain(value)
    except ValueError:
        return value


def options_of(layers: Sequence[Layer]) -> tuple[dict[str, dict[str, object]], dict[str, str]]:
    """Options by plugin, and the origin of each, by "plugin.key"."""
    raw: dict[str, dict[str, object]] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        for name, options in layer.options.items():
            for key, value in options.items():
                raw.setdefault(name, {})[key] = value
                origins[f"{name}.{key}"] = layer.origin
    return raw, origins


def refuse_options_of_strangers(layers: Sequence[Layer], plugins: Mapping[str, type[Plugin]]) -> None:
    for name in options_of(layers)[0]:
        if name not in plugins:
            run = ", ".join(sorted(plugins)) or "none"
            raise OptionError(
                f"Options are given for {name}, which is not in this run.{did_you_mean(name, plugins)} "
                f"Its plugins: {run}."
            )


def settings_of(
    layers: Sequence[Layer], plugins: Mapping[str, type[Plugin]]
) -> tuple[dict[str, object], dict[str, str], list[str]]:
    """Settings that anybody gives, the origin of each, and cautions; those nobody gives are the core's defaults."""
    given: dict[str, object] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        model = given.get("model.name", MODEL)
        if layer.settings.get("model.name", model) != model:
            for key in [key for key in given if key.startswith("model.")]:  # the options of another model
                del given[key], origins[key]
        for key in _of_another_optimizer(layer.settings, given):
            del given[key], origins[key]
        for key, value in layer.settings.items():
            known_setting(key)
            given[key], origins[key] = value, layer.origin
    below: dict[str, object] = {}
    name = given.get("data.name", DataSettings.model_fields["name"].default)
    if not isinstance(name, str):
        raise OptionError(
            f"data.name = {shown(name)} must be a name; installed: {', '.join(registry.names('data set'))}."
        )
    if registered(name):
        for key, value in suggested.of_data(name).items():
            below[key] = value
            origins.setdefault(key, f"data set {name}")
    preferred, cautions = _preferences(plugins, given)
    for key, (value, owner) in preferred.items():
        below[key] = value
        if key not in given:
            origins[key] = f"plugin {owner}"
    for key in _of_another_optimizer(given, below):
        del below[key]
        if key not in given:
            del origins[key]
    return below | given, origins, cautions


def _of_another_optimizer(settings: Mapping[str, object], below: Mapping[str, object]) -> list[str]:
    """The keys of `below` that are said of another optimizer than `settings` name, if they name one."""
    present = below.get("optimizer.name", OPTIMIZER)
    same = str(settings.get("optimizer.name", present)).lower() == str(present).lower()
    return [] if same else [key for key in below if key in OF_THE_OPTIMIZER]


def _preferences(
    plugins: Mapping[str, type[Plugin]], given: Mapping[str, object]
) -> tuple[dict[str, tuple[object, str]], list[str]]:
    """Unanimous preferences apply; where owners disagree the core's default stands, with a caution naming both."""
    stated: dict[str, list[tuple[object, str]]] = {}
    for name, plugin in sorted(plugins.items()):
        for key, value in plugin.prefers.items():
            preferring = [hook for hook, spec in HOOKS.items() if spec.prefers]
            if not set(hooks_of(plugin)) & set(preferring):
                raise PluginLoad(
                    f"Plugin {name} prefers {key}, but owns none of {', '.join(preferring)}; "
                    "it may only state a caution."
                )
            suggested.refuse_unknown(key, f"plugin {name}")
            stated.setdefault(key, []).append((value, name))
    agreed, cautions = {}, []
    for key, wishes in stated.items():
        different = next((wish for wish in wishes if wish[0] != wishes[0][0]), None)
        if different is None:
            agreed[key] = (wishes[0][0], ", ".join(name for _, name in wishes))
        elif key not in given:
            (one, first), (other, second) = wishes[0], different
            cautions.append(
                f"{first} prefers {key}={one} and {second} {key}={other}; the default is used unless you set {key}"
            )
    return agreed, cautions
