"""From what was asked for to what will run: plugins, their companions, and every setting with its origin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, cast

from .. import registry
from ..compose.companions import add_companions, companion_options, loaded
from ..compose.composition import Composition
from ..compose.declarations import build
from ..compose.parts import WHOLE, refuse_parts
from ..compose.registration import check
from ..compose.replaced import standard
from ..compose.stage import Setting
from ..errors import OptionError, named
from ..net_arguments import arguments
from ..numerals import parse_number
from ..optimizers import OptimizerSettings
from ..options import OptionModel, refuse_none, validate
from ..own_file import FLAGS, OwnFile, over
from ..plugin import Plugin
from ..settings import (
    SECTIONS,
    AttackSettings,
    CheckpointSettings,
    DataSettings,
    RunSettings,
    UpdateSettings,
    ValidationSettings,
)
from . import runfile
from .idle import unused
from .layer import Layer, PluginChoice, chosen, files_of, flat
from .outgrown import outgrown
from .request import MODEL, PASSED, Request, options_of, refuse_options_of_strangers, registered, settings_of
from .suggested import told


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
    files: Mapping[str, OwnFile] = field(default_factory=dict)
    """By setting, the FILE.py:NAME that gives the net or the data."""

    @classmethod
    def of(cls, request: Request) -> Resolved:
        """What is asked for. Refused where a run file's companions are no longer those its plugins get."""
        run = resolve(request.plugins, request.in_force(), no_companion=request.declined)
        for layer in reversed(request.layers):
            runfile.same_companions(layer.companions, run, layer.origin)
            if layer.plugins is not None or layer.no_companion:
                break  # those of the layers below are replaced
        types = [type(choice) if isinstance(choice, Plugin) else choice for choice in request.plugins]

        def defaults(settings: Mapping[str, object]) -> Mapping[str, object]:
            return resolve(types, [Layer("", settings)], no_companion=request.declined).values()

        return replace(run, cautions=(*run.cautions, *outgrown(request.in_force(), run.values(), defaults)))

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

    @property
    def net(self) -> str:
        """Its name, with the architecture where that is one of a library's: timm:resnet18."""
        return ":".join(filter(None, (self.model_name, str(self.model_options.get("architecture", "")))))

    @property
    def standard(self) -> bool:
        """Whether nothing is attacked in training; it is judged at its last checkpoint then, and else at its best."""
        return standard(self.values(), self.composition)

    def with_files(self, files: Mapping[str, OwnFile]) -> Resolved:
        """A run, of which a person has now named what gives its net or its data; OptionError for what gives others."""
        for key, file in files.items():
            name, known = str(self.values()[key]), self.files.get(key)
            what = {"model.name": "net", "data.name": "data"}[key]
            if registered(name):
                raise OptionError(f"The run's {what} is {name}, which is installed; leave {named(FLAGS[key])} out.")
            if known is not None and known.name != file.name:
                typed = named(FLAGS[key], f"{known.path}:{known.name}")
                raise OptionError(f"The run's {what} is {name}, not {file.short}; name that, {typed}.")
        return replace(self, files=over(self.files, files))

    def values(self) -> dict[str, object]:
        """Every setting and option in force: {"attack.eps": 0.15, "model.width": 32, "cat-eps.eta": 0.0239}."""
        order = {hook: list(names) for hook, names in self.composition.setting.order.items()}
        return {
            **flat({section: options.model_dump() for section, options in self.sections.items()}),
            **flat({"model": {"name": self.model_name, **self.model_options}, "order": order}),
            **flat({plugin.name: plugin.options.model_dump() for plugin in self.composition.plugins}),
        }


def resolve(
    plugins: str | Iterable[PluginChoice],
    layers: Sequence[Layer] = (),
    *,
    no_companion: Iterable[str] = (),
    decays_known: bool = True,
    epochs_known: bool = True,
) -> Resolved:
    """Check and build everything that does not need the images. Any failure is one sentence.

    `layers` go from the lowest to the highest; what they name beside settings and options plays no part here.
    `decays_known`, `epochs_known`: whether the settings say when the learning rate decays and how long the run is, as
    they do of all but a loop of one's own.
    """
    declined = tuple(sorted(set(no_companion)))
    types: dict[str, type[Plugin]] = {}
    passed: dict[str, Plugin] = {}
    for choice in chosen(plugins) or ():
        plugin = loaded(choice) if isinstance(choice, str) else choice if isinstance(choice, type) else type(choice)
        if not isinstance(choice, str):
            check(plugin)
        if plugin.name in types:
            raise OptionError(f"Plugin {plugin.name} is named twice; name it once.")
        types[plugin.name] = plugin
        if isinstance(choice, Plugin):
            passed[plugin.name] = choice
    draft = _draft(types, passed, layers, declined, decays_known)
    # A companion is missed by what the plugins are with their options, and may prefer settings itself.
    added = add_companions(draft.plugins, declined)
    joined = {**types, **{name: loaded(name) for name in added}}
    refuse_options_of_strangers(layers, joined)
    if added:
        draft = _draft(joined, passed, layers, declined, decays_known)

    run, attack = cast(RunSettings, draft.sections["run"]), cast(AttackSettings, draft.sections["attack"])
    update = cast(UpdateSettings, draft.sections["update"])
    setting = Setting(
        attack=attack,
        epochs=run.epochs,
        epochs_known=epochs_known,
        batch_norm=update.views,
        clean_at_start=update.clean == "start",
        order=_order(draft.settings),
        parts=run.accumulate,
    )
    try:
        composition = Composition(draft.plugins.values(), setting, added)
    except OptionError as error:
        for caution in draft.cautions:  # the other half of the reason, where nobody chose the setting
            preferred = caution.partition(" prefers ")[2].partition("=")[0]
            if preferred and preferred in str(error):
                raise OptionError(f"{error}. {caution.partition(';')[0]}, so the default is used.") from None
        raise
    if run.accumulate > 1:
        refuse_parts(composition, f"run.accumulate = {run.accumulate}", (*WHOLE, "train_transform"))
    with told(draft.origins):
        model_name, model_options = net_of(draft.settings, attack.eps)
    return Resolved(
        composition=composition,
        sections=draft.sections,
        model_name=model_name,
        model_options=model_options,
        chosen=tuple(sorted(types)),
        no_companion=declined,
        origins=draft.origins,
        cautions=(*draft.cautions, *composition.cautions, *unused(layers, composition, draft.sections)),
        files=files_of(layers),
    )


@dataclass(frozen=True)
class _Draft:
    """A set of plugins with the settings it gets, before anybody asks whether it is complete."""

    plugins: Mapping[str, Plugin]
    settings: Mapping[str, object]
    """As they were given, model and order among them."""
    sections: Mapping[str, OptionModel]
    origins: Mapping[str, str]
    cautions: Sequence[str]


def _draft(
    types: Mapping[str, type[Plugin]],
    passed: Mapping[str, Plugin],
    layers: Sequence[Layer],
    declined: Sequence[str],
    decays_known: bool,
) -> _Draft:
    settings, origins, cautions = settings_of(layers, types)
    with told(origins):
        sections = _sections(settings)
    eps, rates = cast(AttackSettings, sections["attack"]).eps, cast(OptimizerSettings, sections["optimizer"])
    epochs = cast(RunSettings, sections["run"]).epochs
    decays = rates.decays(epochs) if decays_known else None
    if rates.warmup > epochs:
        cautions.append(
            f"optimizer.warmup is {rates.warmup:g} epochs long: a run of {epochs} never reaches the full rate"
        )
    cautions += rates.cautions(epochs if decays_known else None)
    raw, option_origins = options_of(layers)
    asked_for = companion_options(types, declined)
    plugins = {}
    for name, plugin in sorted(types.items()):
        defaults, asker = asked_for.get(name, ({}, ""))
        given = raw.get(name, {})
        if name in passed:
            if given:
                raise OptionError(f"Plugin {name} was passed as an object; set its options on the object.")
            refuse_none(passed[name].options, name)
            plugins[name] = passed[name]
        else:
            options = validate(plugin.Options, {**defaults, **given}, where=name, eps=eps, decays=decays)
            plugins[name] = build(plugin, options)
        origins |= {f"{name}.{key}": f"companion of {asker}" for key in defaults}
        origins |= {f"{name}.{key}": option_origins[f"{name}.{key}"] for key in given}
    return _Draft(plugins, settings, sections, origins, cautions)


def _sections(raw: Mapping[str, object]) -> dict[str, OptionModel]:
    eps = raw.get("attack.eps", AttackSettings.model_fields["eps"].default)
    try:
        value = parse_number(eps) if isinstance(eps, str) else float(cast(Any, eps))
        known: float | None = value if isfinite(value) else None
    except (ValueError, TypeError, OverflowError):
        known = None  # validation says what is wrong with it
    sections = {}
    for section, options in SECTIONS.items():
        given = {key.partition(".")[2]: v for key, v in raw.items() if key.partition(".")[0] == section}
        sections[section] = validate(options, given, where=section, eps=known)
    return sections


def net_of(raw: Mapping[str, object], eps: float = 1.0) -> tuple[str, dict[str, object]]:
    """The name of the net that settings name, and its options: timm:resnet18 is a net of timm."""
    given = {key.partition(".")[2]: v for key, v in raw.items() if key.startswith("model.")}
    name = given.pop("name", MODEL)
    if not isinstance(name, str):
        installed = ", ".join(registry.names("model"))
        raise OptionError(f"model.name = {name!r} must be a name; installed: {installed}.", "model.name")
    if name.startswith(PASSED):
        return name, {}
    if not registered(name):
        return name, arguments(given)
    family, colon, architecture = name.partition(":")
    if colon and family in registry.names("model"):  # timm:resnet18
        name = family
        if "architecture" not in cast(Any, registry.load("model", family)).Options.model_fields:
            raise OptionError(
                f"model = {family}:{architecture} names no net: {family} is one; leave :{architecture} out."
            )
        if given.setdefault("architecture", architecture) != architecture:
            raise OptionError(
                f"model = {family}:{architecture} and model.architecture = {given['architecture']!r} are two nets; "
                "leave one of them out."
            )
    builder = cast(Any, registry.load("model", name))
    return name, validate(builder.Options, given, where="model", eps=eps).model_dump()


def _order(raw: Mapping[str, object]) -> dict[str, tuple[str, ...]]:
    order = {}
    for key, value in raw.items():
        if key.startswith("order."):
            names = value.split(",") if isinstance(value, str) else value
            if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
                raise OptionError(f"{key} = {value!r} must be plugin names, such as {key}=a,b.")
            order[key.partition(".")[2]] = tuple(name.strip() for name in names)
    return order
