"""`advkit models`: which nets there are, and what one can be told."""

from __future__ import annotations

from typing import Any

import click

from .completion import complete
from .main import print_json


@click.group("models")
def command() -> None:
    """List nets, or show one."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """Installed nets, read from their source without importing them."""
    from .. import registry

    installed = [{k: v for k, v in one.as_dict().items() if k != "hooks"} for one in registry.describe("model")]
    if as_json:
        print_json(installed)
        return
    from .display import stdout, table_of, text

    table = table_of("model", "from", "summary", wrap=("summary",))
    for one in installed:
        summary = "(no source to read)" if one["summary"] is None else one["summary"]
        table.add_row(str(one["name"]), f"{one['distribution']} {one['version']}", str(summary))
    console = stdout()
    console.print(table)
    console.print(text("A net of your own: --model FILE.py:NAME"))


@command.command("show")
@click.argument("name", shell_complete=complete("model"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str, as_json: bool) -> None:
    """What a net is, and its options: settings below model."""
    import inspect

    from .. import registry
    from ..config.resolve import net_of
    from ..models.elsewhere import Elsewhere
    from . import options_shown

    published: dict[str, str] = {}
    family, options = net_of({"model.name": name})
    builder: Any = registry.load("model", family)
    if family != name and isinstance(made := builder(builder.Options(**options)), Elsewhere):  # timm:resnet18
        published = {
            tag or "(no tag)": ",".join(f"{one:.9g}" for one in (*mean, *std))
            for tag, (mean, std) in made.published().items()
        }
    said = inspect.getdoc(builder) or ""
    if as_json:
        print_json(
            {"name": name, "about": said, "options": options_shown.facts(builder.Options), "published": published}
        )
        return
    from .display import stdout, table_of, text

    console = stdout()
    console.print(text(name, "bold"))
    console.print(text(said))
    console.print()
    options_shown.show(console, builder.Options, "model.")
    if published:
        table = table_of("published weights", "expect (model.normalise)")
        for tag, numbers in published.items():
            table.add_row(tag, numbers)
        console.print(table)
    console.print(text(f"\nNext: advkit plan --model {name}"))
