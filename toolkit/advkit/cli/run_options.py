"""The options that describe a run, shared by `train` and `plan`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import OptionError
from .completion import complete
from .main import assignments, names, parse_value

if TYPE_CHECKING:
    from ..config.layer import Layer
    from ..config.resolve import Resolved

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
            click.option(
                "--plugins",
                metavar="A,B",
                help="Methods to combine, in any order; none is PGD-AT.",
                shell_complete=complete("plugin", comma=True),
            ),
            click.option(
                "--dataset",
                metavar="NAME",
                shell_complete=complete("data set"),
                help="digits (default), image-folder, or an installed one.",
            ),
            click.option("--data-root", metavar="DIR", help="Folder or zip of the data."),
            click.option("--limit", metavar="N", help="At most N images a split, balanced over classes."),
            click.option(
                "--model",
                metavar="NAME",
                shell_complete=complete("model"),
                help="small-cnn (default), preact-resnet18, or an installed one.",
            ),
            click.option("--epochs", metavar="N", help="Passes over the training set."),
            click.option("--batch-size", metavar="N", help="Samples a step."),
            click.option("--eps", metavar="E", help="Perturbation budget in [0, 1] pixels, such as 8/255."),
            click.option("--seed", metavar="N", help="Every random number derives from it."),
            click.option("-o", "options", metavar="PLUGIN.KEY=VALUE", multiple=True, help="A plugin's option."),
            click.option("--set", "settings", metavar="SECTION.KEY=VALUE", multiple=True, help="A setting of the run."),
            click.option("--config", metavar="FILE", help="A run file, such as a finished run's run.toml."),
            click.option(
                "--recipe",
                metavar="NAME",
                shell_complete=complete("recipe"),
                help="Published settings; `advkit recipes list` shows which.",
            ),
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
    recipe: str | None
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
        from ..config.layer import Layer

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
            by_setting["data.root"] = str(Path(os.path.expanduser(str(by_setting["data.root"]))).absolute())
        by_plugin: dict[str, dict[str, object]] = {}
        for key, value in assignments(options, "-o", "-o plugin.key=value").items():
            plugin, _, name = key.partition(".")
            by_plugin.setdefault(plugin, {})[name] = value
        declined = tuple(each for text in no_companion for each in names(text) or ())
        return cls(
            names(plugins),
            Layer("command line", by_setting, by_plugin),
            Path(config) if config else None,
            recipe,
            declined,
        )

    @property
    def empty(self) -> bool:
        """Whether nothing was typed that could change a run."""
        typed = (self.layer.settings, self.layer.options, self.config, self.recipe, self.no_companion)
        return self.plugins is None and not any(typed)

    def resolve(self) -> Resolved:
        """The run: command line over file over recipe over defaults."""
        from ..config.resolve import resolve

        plugins, layers, declined = self.parts()
        resolved = resolve(plugins, layers, no_companion=declined)
        if self.config and self.plugins is None and not self.no_companion:
            from ..config import runfile

            file = runfile.load(self.config)
            runfile.same_companions(file.companions, resolved, file.layer.origin)
        return resolved

    def parts(self) -> tuple[tuple[str, ...], list[Layer], set[str]]:
        """Plugins, layers from the lowest to the highest, and declined companions: what `resolve` takes.

        Whoever names plugins replaces those below, whose options for plugins that are gone go with them.
        """
        from ..config import recipes, runfile
        from ..config.resolve import without_strangers

        files = [recipes.load(self.recipe).file()] if self.recipe is not None else []
        files += [runfile.load(self.config)] if self.config is not None else []
        chosen = [self.plugins, *(file.plugins for file in reversed(files))]
        plugins = next((each for each in chosen if each is not None), ())
        declined = {*self.no_companion, *(name for file in files for name in file.no_companion)}
        layers, changed = [self.layer], self.plugins is not None or bool(self.no_companion)
        for file in reversed(files):
            layers.insert(0, without_strangers(file.layer, plugins, declined) if changed else file.layer)
            changed = changed or file.plugins is not None or bool(file.no_companion)
        return plugins, layers, declined


def _same(one: object, other: object) -> bool:
    """Whether two spellings, such as 8/255 and 0.0313..., are one value."""
    from ..options import parse_number

    def plain(value: object) -> object:
        try:
            return parse_number(value) if isinstance(value, str) else value
        except ValueError:
            return value

    return plain(one) == plain(other)
