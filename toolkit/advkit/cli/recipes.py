"""`advkit recipes`: published settings by name, with their figures and what the official code does differently."""

from __future__ import annotations

import click

from .completion import complete
from .main import print_json

WRAPPED = ("plugins", "summary", "published, robust %")


@click.group("recipes")
def command() -> None:
    """List recipes, or show one."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """Installed recipes, and the twins of them that train in minutes on a laptop."""
    from ..config import recipes

    installed = {name: recipes.load(name) for name in recipes.names()}
    if as_json:
        keys = ("name", "distribution", "summary", "paper", "published", "at_epochs")
        print_json([{key: getattr(recipe, key) for key in keys} for recipe in installed.values()])
        return
    from .display import stdout, table_of, text

    heads = ("recipe", "in minutes", "plugins", "summary", ">AT epochs", "published, robust %")
    table = table_of(*heads, wrap=WRAPPED)
    for name, recipe in installed.items():
        if name != recipe.mini:
            plugins = ",".join(recipe.table.get("plugins", ())) or "none"
            figures = (
                f"{row['attack']} {row['robust']:.2f}, {row['net']} ({row['source']})" for row in recipe.published
            )
            cost = "" if recipe.at_epochs is None else f"{recipe.at_epochs:.0f}"
            table.add_row(name, recipe.mini or "", plugins, recipe.summary, cost, "\n".join(figures))
    stdout().print(table)
    stdout().print(text("Figures are of papers; `advkit recipes show NAME` says what advkit does otherwise."))


@command.command("show")
@click.argument("name", shell_complete=complete("recipe"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str, as_json: bool) -> None:
    """A recipe's plugins, settings, options, notes and published figures."""
    from ..config import recipes

    recipe = recipes.load(name)
    if as_json:
        print_json(recipe.as_dict())
        return
    import tomli_w

    from .display import stdout, table_of, text

    console = stdout()
    console.print(text(f"{name}  ({recipe.distribution})", "bold"))
    console.print(text(recipe.summary))
    console.print(text(recipe.paper, "dim"))
    for note in recipe.notes:
        console.print(text(f"- {note}"))
    if recipe.at_epochs is not None:
        console.print(text(f"It costs as much as {recipe.at_epochs:.0f} epochs of PGD-AT with ten steps."))
    if recipe.published:
        heads = ("published: net", ">clean %", "attack", ">robust %", "eps", "source")
        table = table_of(*heads, wrap=("published: net", "attack", "source"))
        for figure in recipe.published:
            clean = f"{figure['clean']:.2f}" if "clean" in figure else ""
            cells = (figure["net"], clean, figure["attack"], f"{figure['robust']:.2f}", figure["eps"], figure["source"])
            table.add_row(*cells)
        console.print()
        console.print(table)
    console.print()
    console.print(text(tomli_w.dumps(dict(recipe.table)).rstrip()))
    console.print(text(f"\nNext: advkit plan --recipe {name}, advkit train --recipe {name}"))
