"""The options that describe a run, shared by `train` and `plan`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import OptionError
from .main import assignments, names, parse_value

if TYPE_CHECKING:
    from ..resolve import Layer, Resolved

F = TypeVar("F", bound=Callable[..., Any])

FLAGS = {
    "dataset": "data.name",
    "data_root": "data.root",
    "limit": "data.limit",
    "model": "model.name",
    "epochs": "run.epochs",
    "batch_size": "run.batch_size",
    "eps": "attack.eps",
    "seed": "run.seed",
}
"""Flags that are short for a setting."""


def run_options(function: F) -> F:
    """Add the options to a command; they arrive as keyword arguments for `Typed`."""
    for option in reversed(
        (
            click.option("--plugins", metavar="A,B", help="Methods to combine, in any order; none is PGD-AT."),
            click.option("--dataset", metavar="NAME", help="digits (default), image-folder, or an installed one."),
            click.option("--data-root", metavar="DIR", help="Folder or zip of the data."),
            click.option("--limit", metavar="N", help="At most N images a split, balanced over classes."),
            click.option("--model", metavar="NAME", help="small-cnn (default), preact-resnet18, or an installed one."),
            click.option("--epochs", metavar="N", help="Passes over the training set."),
            click.option("--batch-size", metavar="N", help="Samples a step."),
            click.option("--eps", metavar="E", help="Perturbation budget in [0, 1] pixels, such as 8/255."),
            click.option("--seed", metavar="N", help="Every random number derives from it."),
            click.option("-o", "options", metavar="PLUGIN.KEY=VALUE", multiple=True, help="A plugin's option."),
            click.option("--set", "settings", metavar="SECTION.KEY=VALUE", multiple=True, help="A setting of the run."),
            click.option("--config", metavar="FILE", help="A run file, such as a finished run's run.toml."),
            click.option("--recipe", metavar="NAME", help="Not available yet."),
            click.option(
                "--no-companion", metavar="HOOK", multiple=True, help="Decline a companion that a plugin asks for."
            ),
        )
    ):
        function = option(function)
    return function


@dataclass(frozen=True)
class Typed:
    """What was typed of a run, before anything is resolved."""

    plugins: tuple[str, ...] | None
    layer: Layer
    config: Path | None
    no_companion: tuple[str, ...]

    @classmethod
    def of(
        cls,
        plugins: str | None,
        options: tuple[str, ...],
        settings: tuple[str, ...],
        config: str | None,
        recipe: str | None,
        no_companion: tuple[str, ...],
        **flags: str | None,
    ) -> Typed:
        from ..resolve import Layer

        if recipe is not None:
            raise OptionError(f"There is no recipe {recipe}: this version of advkit ships none. Use --config FILE.")
        by_setting = assignments(settings, "--set", "--set section.key=value")
        for flag, key in FLAGS.items():
            text = flags.get(flag)
            if text is None:
                continue
            value = text if key in ("data.name", "data.root", "model.name") else parse_value(text)
            if key in by_setting and not _same(by_setting[key], value):
                name = flag.replace("_", "-")
                raise OptionError(
                    f"--{name} {text} and --set {key}={by_setting[key]} differ; they are the same setting, give one."
                )
            by_setting[key] = value
        if by_setting.get("data.root") and isinstance(by_setting["data.root"], str):
            by_setting["data.root"] = str(Path(str(by_setting["data.root"])).expanduser().absolute())
        by_plugin: dict[str, dict[str, object]] = {}
        for key, value in assignments(options, "-o", "-o plugin.key=value").items():
            plugin, _, name = key.partition(".")
            by_plugin.setdefault(plugin, {})[name] = value
        declined = tuple(each for text in no_companion for each in names(text) or ())
        return cls(
            names(plugins), Layer("command line", by_setting, by_plugin), Path(config) if config else None, declined
        )

    @property
    def empty(self) -> bool:
        """Whether nothing was typed that could change a run."""
        return not (
            self.plugins is not None or self.layer.settings or self.layer.options or self.config or self.no_companion
        )

    def resolve(self) -> Resolved:
        """The run: command line over file over defaults."""
        from .. import config
        from ..resolve import resolve

        if self.config is None:
            return resolve(self.plugins or (), [self.layer], no_companion=self.no_companion)
        file = config.load(self.config)
        plugins = self.plugins if self.plugins is not None else file.plugins or ()
        declined = {*file.no_companion, *self.no_companion}
        layers = [file.layer, self.layer]
        if self.plugins is not None or self.no_companion:
            layers[0] = _without_strangers(file.layer, plugins, declined)
        resolved = resolve(plugins, layers, no_companion=declined)
        if self.plugins is None and not self.no_companion:
            config.same_companions(file.companions, resolved, file.layer.origin)
        return resolved


def _same(one: object, other: object) -> bool:
    """Whether two spellings, such as 8/255 and 0.0313..., are one value."""
    from ..options import parse_number

    def plain(value: object) -> object:
        try:
            return parse_number(value) if isinstance(value, str) else value
        except ValueError:
            return value

    return plain(one) == plain(other)


def _without_strangers(layer: Layer, plugins: tuple[str, ...], declined: set[str]) -> Layer:
    """A file's layer without the options of plugins that the command line took out; companions keep theirs."""
    from dataclasses import replace

    from .. import discovery
    from ..registration import check

    wanted = set(plugins)
    for name in plugins:
        kind: Any = discovery.load("plugin", name)
        check(kind)
        wanted |= {companion for wish, (companion, _) in kind.companions.items() if wish not in declined}
    options: Mapping[str, Mapping[str, object]] = {n: v for n, v in layer.options.items() if n in wanted}
    return replace(layer, options=options)
