"""From what was typed to what will run: plugins, their companions, and every setting with its origin.

Precedence, lowest first: the core, the data set, plugins' unanimous preferences, recipe, file, command line.
For options: the plugin, the plugin that asked for it as companion, recipe, file, command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, cast

from .. import registry
from ..compose.companions import add_companions, companion_options, loaded
from ..compose.composition import Composition
from ..compose.registration import HOOKS, build, check, hooks_of
from ..compose.stage import Setting
from ..errors import OptionError, PluginLoad, did_you_mean
from ..options import OptionModel, parse_number, validate
from ..plugin import Plugin
from ..settings import (
    SECTIONS,
    AttackSettings,
    CheckpointSettings,
    DataSettings,
    OptimizerSettings,
    RunSettings,
    UpdateSettings,
    ValidationSettings,
    known_setting,
)
from .layer import Layer

PASSED = "python:"
"""Starts the name of a model or of data that were passed as objects, and that no file can bring back."""

MODEL = "small-cnn"
"""What is trained where nothing names a model."""

PluginChoice = str | type[Plugin] | Plugin


@dataclass(frozen=True)
class Resolved:
    """A run that can start: validated settings, built plugins, and where each value came from."""

    composition: Composition
    sections: Mapping[str, OptionModel]
    model_name: str
    model_options: Mapping[str, object]
    chosen: tuple[str, ...]
    no_companion: tuple[str, ...]
    origins: Mapping[str, str]
    cautions: tuple[str, ...]

    @property
    def run(self) -> RunSettings:
        return cast(RunSettings, self.sections["run"])

    @property
    def data(self) -> DataSettings:
        return cast(DataSettings, self.sections["data"])

    @property
    def attack(self) -> AttackSettings:
        return cast(AttackSettings, self.sections["attack"])

    @property
    def optimizer(self) -> OptimizerSettings:
        return cast(OptimizerSettings, self.sections["optimizer"])

    @property
    def validation(self) -> ValidationSettings:
        return cast(ValidationSettings, self.sections["validation"])

    @property
    def checkpoint(self) -> CheckpointSettings:
        return cast(CheckpointSettings, self.sections["checkpoint"])

    def values(self) -> dict[str, object]:
        """Every setting and option in force: {"attack.eps": 0.15, "model.width": 32, "cat-eps.eta": 0.0239}."""
        flat: dict[str, object] = {
            f"{section}.{key}": value
            for section, options in self.sections.items()
            for key, value in options.model_dump().items()
        }
        flat["model.name"] = self.model_name
        flat |= {f"model.{key}": value for key, value in self.model_options.items()}
        flat |= {f"order.{hook}": list(names) for hook, names in self.composition.setting.order.items()}
        for plugin in self.composition.plugins:
            flat |= {f"{plugin.name}.{key}": value for key, value in plugin.options.model_dump().items()}
        return flat


def resolve(
    plugins: Iterable[PluginChoice],
    layers: Sequence[Layer] = (),
    *,
    no_companion: Iterable[str] = (),
) -> Resolved:
    """Check and build everything that does not need the images. Any failure is one sentence."""
    declined = tuple(sorted(set(no_companion)))
    built: dict[str, Plugin] = {}
    kinds: dict[str, type[Plugin]] = {}
    for choice in plugins.split(",") if isinstance(plugins, str) else plugins:
        kind = _class_of(choice)
        if kind.name in kinds:
            raise OptionError(f"Plugin {kind.name} is named twice in --plugins; name it once.")
        kinds[kind.name] = kind
        if isinstance(choice, Plugin):
            built[kind.name] = choice
    chosen = tuple(sorted(kinds))
    raw_options, option_origins = _options_by_origin(layers)
    added = add_companions(kinds, built, declined, raw_options)
    _refuse_options_of_strangers(raw_options, kinds)

    raw, origins, cautions = _settings_by_origin(kinds, layers)
    sections, eps = _sections(raw)
    model_name, model_options = _model(raw, eps)
    run, rates = cast(RunSettings, sections["run"]), cast(OptimizerSettings, sections["optimizer"])
    decays = rates.decays(run.epochs)
    if decays and decays[0] >= run.epochs and isinstance(rates.milestones[0], int):
        cautions.append(f"optimizer.milestones start at {decays[0]}, so in {run.epochs} epochs nothing decays")
    asked = companion_options(kinds, declined)
    for name, kind in sorted(kinds.items()):
        defaults, asker = asked.get(name, ({}, ""))
        given = raw_options.get(name, {})
        if name in built:
            if given:
                raise OptionError(f"Plugin {name} was passed as an object; set its options on the object.")
        else:
            options = validate(kind.Options, {**defaults, **given}, where=name, eps=eps, decays=decays)
            built[name] = build(kind, options)
        origins |= {f"{name}.{key}": f"companion of {asker}" for key in defaults}
        origins |= {f"{name}.{key}": option_origins[name, key] for key in given}

    attack = cast(AttackSettings, sections["attack"])
    composition = Composition(
        built.values(),
        Setting(
            attack=attack,
            epochs=run.epochs,
            batch_norm=cast(UpdateSettings, sections["update"]).views,
            order=_order(raw),
        ),
        added,
    )
    return Resolved(
        composition=composition,
        sections=sections,
        model_name=model_name,
        model_options=model_options,
        chosen=chosen,
        no_companion=declined,
        origins=origins,
        cautions=(*cautions, *composition.cautions),
    )


# ---------------------------------------------------------------------- plugins and companions


def _class_of(choice: PluginChoice) -> type[Plugin]:
    kind = registry.load("plugin", choice) if isinstance(choice, str) else choice
    kind = type(kind) if isinstance(kind, Plugin) else kind
    check(kind)
    return kind


def _refuse_options_of_strangers(
    raw_options: Mapping[str, Mapping[str, object]], kinds: Mapping[str, type[Plugin]]
) -> None:
    for name in raw_options:
        if name not in kinds:
            run = ", ".join(sorted(kinds)) or "none"
            raise OptionError(
                f"Options are given for {name}, which is not in this run.{did_you_mean(name, kinds)} "
                f"Its plugins: {run}."
            )


# ---------------------------------------------------------------------- settings


def _options_by_origin(
    layers: Sequence[Layer],
) -> tuple[dict[str, dict[str, object]], dict[tuple[str, str], str]]:
    raw: dict[str, dict[str, object]] = {}
    origins: dict[tuple[str, str], str] = {}
    for layer in layers:
        for name, options in layer.options.items():
            for key, value in options.items():
                raw.setdefault(name, {})[key] = value
                origins[name, key] = layer.origin
    return raw, origins


def _settings_by_origin(
    kinds: Mapping[str, type[Plugin]], layers: Sequence[Layer]
) -> tuple[dict[str, object], dict[str, str], list[str]]:
    given: dict[str, object] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        model = given.get("model.name", MODEL)
        if layer.settings.get("model.name", model) != model:
            for key in [key for key in given if key.startswith("model.")]:  # the options of another model
                del given[key], origins[key]
        for key, value in layer.settings.items():
            known_setting(key)
            given[key], origins[key] = value, layer.origin
    below: dict[str, object] = {}
    name = str(given.get("data.name", DataSettings.model_fields["name"].default))
    if not name.startswith(PASSED):
        for key, value in getattr(registry.load("data set", name), "defaults", {}).items():
            below[key] = value
            origins.setdefault(key, f"data set {name}")
    preferred, cautions = _preferences(kinds, given)
    for key, (value, owner) in preferred.items():
        below[key] = value
        if key not in given:
            origins[key] = f"plugin {owner}"
    return below | given, origins, cautions


def _preferences(
    kinds: Mapping[str, type[Plugin]], given: Mapping[str, object]
) -> tuple[dict[str, tuple[object, str]], list[str]]:
    """Unanimous preferences apply; where owners disagree the core's default stands, with a caution naming both."""
    stated: dict[str, list[tuple[object, str]]] = {}
    for name, kind in sorted(kinds.items()):
        for key, value in kind.prefers.items():
            preferring = [hook for hook, spec in HOOKS.items() if spec.prefers]
            if not set(hooks_of(kind)) & set(preferring):
                raise PluginLoad(
                    f"Plugin {name} prefers {key}, but owns none of {', '.join(preferring)}; "
                    "it may only state a caution."
                )
            known_setting(key)
            stated.setdefault(key, []).append((value, name))
    agreed, cautions = {}, []
    for key, wishes in stated.items():
        different = next((wish for wish in wishes if wish[0] != wishes[0][0]), None)
        if different is None:
            agreed[key] = (wishes[0][0], ", ".join(name for _, name in wishes))
        elif key not in given:
            (one, first), (other, second) = wishes[0], different
            cautions.append(
                f"{first} prefers {key}={one} and {second} {key}={other}; "
                f"the default stands, choose with --set {key}=..."
            )
    return agreed, cautions


def _sections(raw: Mapping[str, object]) -> tuple[dict[str, OptionModel], float]:
    eps = raw.get("attack.eps", AttackSettings.model_fields["eps"].default)
    known: float | None
    try:
        value = parse_number(eps) if isinstance(eps, str) else float(cast(Any, eps))
        known = value if isfinite(value) else None
    except (ValueError, TypeError, OverflowError):
        known = None  # validation says what is wrong with it
    sections = {}
    for section, kind in SECTIONS.items():
        given = {key.partition(".")[2]: v for key, v in raw.items() if key.partition(".")[0] == section}
        sections[section] = validate(kind, given, where=section, eps=known)
    return sections, cast(AttackSettings, sections["attack"]).eps


def _model(raw: Mapping[str, object], eps: float) -> tuple[str, dict[str, object]]:
    given = {key.partition(".")[2]: v for key, v in raw.items() if key.startswith("model.")}
    name = given.pop("name", MODEL)
    if not isinstance(name, str):
        raise OptionError(f"model.name = {name!r} must be a name; installed: {', '.join(registry.names('model'))}.")
    if name.startswith(PASSED):
        return name, {}
    kind = cast(Any, registry.load("model", name))
    return name, validate(kind.Options, given, where="model", eps=eps).model_dump()


def _order(raw: Mapping[str, object]) -> dict[str, tuple[str, ...]]:
    order = {}
    for key, value in raw.items():
        if key.startswith("order."):
            names = value.split(",") if isinstance(value, str) else value
            if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
                raise OptionError(f"{key} = {value!r} must be plugin names, such as {key}=a,b.")
            order[key.partition(".")[2]] = tuple(name.strip() for name in names)
    return order


def without_strangers(layer: Layer, plugins: Iterable[str], declined: Iterable[str] = ()) -> Layer:
    """A layer without the options of plugins that are no longer in the run; companions keep theirs."""
    wanted = set(plugins)
    for name in set(wanted):
        wanted |= {companion for wish, (companion, _) in loaded(name).companions.items() if wish not in declined}
    return replace(layer, options={name: values for name, values in layer.options.items() if name in wanted})
