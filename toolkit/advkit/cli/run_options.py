"""The options that describe a run, shared by `train` and `plan`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .completion import complete
from .main import PLACE, assignments, names, parse_value

if TYPE_CHECKING:
    from ..config.request import Request

F = TypeVar("F", bound=Callable[..., Any])

TEXTS = ("data.name", "data.root", "model.name")
"""Settings that a flag gives as they are typed."""


def run_options(function: F) -> F:
    """Add the options to a command; they arrive as keyword arguments for `request`."""
    for option in reversed(
        (
            click.option(
                "--plugins",
                metavar="A,B",
                help="Methods to combine, in any order, and trackers (tensorboard, wandb, mlflow); none is PGD-AT.",
                shell_complete=complete("plugin", comma=True),
            ),
            click.option(
                "--dataset",
                metavar="NAME",
                shell_complete=complete("data set"),
                help="digits (default), image-folder, an installed one, or FILE.py:NAME.",
            ),
            click.option("--data-root", metavar="DIR", help="Folder or zip of the data."),
            click.option(
                "--limit",
                metavar="N",
                help="At most N images a split, at random; data.balance: as many of each class.",
            ),
            click.option(
                "--model",
                metavar="NAME",
                shell_complete=complete("model"),
                help="small-cnn (default), preact-resnet18, timm:NAME, an installed one, or FILE.py:NAME.",
            ),
            click.option("--epochs", metavar="N", help="Passes over the training set."),
            click.option("--batch-size", metavar="N", help="Samples per step."),
            click.option("--eps", metavar="E", help="Perturbation budget in [0, 1] pixels, such as 8/255."),
            click.option("--seed", metavar="N", help="Every random number derives from it."),
            click.option("-o", "options", metavar="PLUGIN.KEY=VALUE", multiple=True, help="A plugin's option."),
            click.option("--set", "settings", metavar="SECTION.KEY=VALUE", multiple=True, help="A setting of the run."),
            click.option("--config", type=PLACE, metavar="FILE", help="A run file, such as a finished run's run.toml."),
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


def request(
    plugins: str | None,
    options: tuple[str, ...],
    settings: tuple[str, ...],
    config: str | None,
    recipe: str | None,
    no_companion: tuple[str, ...],
    **flags: str | None,
) -> Request:
    """What was typed of a run, over its run file and its recipe."""
    from ..config.layer import Layer, chosen
    from ..config.request import SHORT, Request, merged

    by_setting = merged(
        assignments(settings, "--set", "--set section.key=value"),
        {
            key: (f"--{flag.replace('_', '-')}", text if key in TEXTS else parse_value(text))
            for flag, key in SHORT.items()
            if (text := flags.get(flag)) is not None
        },
        "--set {key}={value}",
    )
    by_plugin: dict[str, dict[str, object]] = {}
    for key, value in assignments(options, "-o", "-o plugin.key=value").items():
        plugin, _, name = key.partition(".")
        by_plugin.setdefault(plugin, {})[name] = value
    declined = tuple(name for text in no_companion for name in names(text) or ())
    top = Layer("command line", by_setting, by_plugin, chosen(plugins), declined)
    return Request.of(top, recipe=recipe, config=config)
