"""`advkit recipes`: published settings by name, with their figures and what the official code does differently."""

from __future__ import annotations

import click

from .completion import complete
from .main import print_json


@click.group("recipes")
def command() -> None:
    """List recipes, or show one."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """Installed recipes, and the twins of them that train in minutes on a laptop."""
    from ..config import recipes

    found = {name: recipes.load(name) for name in recipes.names()}
    if as_json:
        keys = ("name", "distribution", "summary", "paper")
        print_json([{key: getattr(each, key) for key in keys} for each in found.values()])
        return
    from rich.table import Table
    from rich.text import Text

    from .display import stdout

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("recipe", "in minutes", "plugins"):
        table.add_column(column, no_wrap=True)
    table.add_column("summary")
    for name, each in found.items():
        if name != each.mini:
            plugins = ",".join(each.table.get("plugins", ())) or "none"
            table.add_row(*(Text(cell) for cell in (name, each.mini or "", plugins, each.summary)))
    stdout().print(table)


@command.command("show")
@click.argument("name", shell_complete=complete("recipe"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str, as_json: bool) -> None:
    """A recipe's plugins, settings, options, notes and published figures."""
    from ..config import recipes

    found = recipes.load(name)
    if as_json:
        print_json(found.as_dict())
        return
    import tomli_w
    from rich.table import Table
    from rich.text import Text

    from .display import stdout

    console = stdout()
    console.print(Text(f"{name}  ({found.distribution})", style="bold"))
    console.print(Text(found.summary))
    console.print(Text(found.paper, style="dim"))
    for note in found.notes:
        console.print(Text(f"- {note}"))
    if found.published:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("published: net", "clean %", "attack", "robust %", "eps", "source"):
            table.add_column(column, justify="right" if "%" in column else "left")
        for figure in found.published:
            clean = f"{figure['clean']:.2f}" if "clean" in figure else ""
            cells = (figure["net"], clean, figure["attack"], f"{figure['robust']:.2f}", figure["eps"], figure["source"])
            table.add_row(*(Text(cell) for cell in cells))
        console.print()
        console.print(table)
    console.print()
    console.print(Text(tomli_w.dumps(dict(found.table)).rstrip()))
    console.print(Text(f"\nNext: advkit plan --recipe {name}, advkit train --recipe {name}"))
