"""`advkit attacks`: what `evaluate --attacks` takes."""

from __future__ import annotations

import click

from .main import print_json


@click.group("attacks")
def command() -> None:
    """List attacks."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """Installed attacks and how they are typed, read from their source without importing them."""
    from .. import registry

    installed = registry.attacks()
    if as_json:
        keys = ("name", "distribution", "version", "summary")
        print_json([{key: getattr(one, key) for key in keys} | {"typed": list(typed)} for one, typed in installed])
        return
    from .display import stdout, table_of

    table = table_of("attack", "from", "summary", wrap=("attack", "summary"))
    for one, typed in installed:
        summary = "(no source to read)" if one.summary is None else one.summary
        table.add_row(", ".join(typed), f"{one.distribution} {one.version}", summary)
    stdout().print(table)
