"""`advkit plugins`: what is installed, and one method in full."""

from __future__ import annotations

from typing import Any

import click

from .completion import complete
from .main import print_json


@click.group("plugins")
def command() -> None:
    """List installed plugins, or show one."""


@command.command("list")
@click.option("--hook", metavar="HOOK", help="Only plugins that answer this hook.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(hook: str | None, as_json: bool) -> None:
    """Installed plugins, read from their source without importing them."""
    from .. import registry

    found = [each.as_dict() for each in registry.describe("plugin")]
    if hook is not None:
        _known_hook(hook)
        found = [each for each in found if each["hooks"] is None or hook in each["hooks"]]  # type: ignore[operator]
    if as_json:
        print_json(found)
        return
    from rich.table import Table
    from rich.text import Text

    from .display import stdout

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("plugin", no_wrap=True)
    table.add_column("from", no_wrap=True)
    table.add_column("summary")
    for each in found:
        summary = each["summary"] if each["summary"] is not None else "(no source to read)"
        table.add_row(Text(str(each["name"])), Text(f"{each['distribution']} {each['version']}"), Text(str(summary)))
    stdout().print(table)


@command.command("show")
@click.argument("name", shell_complete=complete("plugin"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str, as_json: bool) -> None:
    """A plugin's hooks, options, companions and preferences."""
    from .. import registry
    from ..compose.registration import check, hooks_of

    kind: Any = registry.load("plugin", name)
    check(kind)
    described = next(each for each in registry.describe("plugin") if each.name == name)
    fields = {
        key: {
            "default": _default(field.default),
            "unit": (field.json_schema_extra or {}).get("unit", ""),
            "help": field.description or "",
            "limits": ", ".join(str(limit) for limit in field.metadata if "imit" not in type(limit).__name__),
        }
        for key, field in kind.Options.model_fields.items()
    }
    found = {
        "name": name,
        "distribution": described.distribution,
        "version": described.version,
        "summary": (kind.__doc__ or "").strip().splitlines()[0] if kind.__doc__ else "",
        "source": (__import__(kind.__module__, fromlist=["_"]).__doc__ or "").strip().replace("\n", " "),
        "hooks": list(hooks_of(kind)),
        "options": {key: {k: v for k, v in each.items() if k != "limits"} for key, each in fields.items()},
        "schema": kind.Options.model_json_schema(),
        "prefers": dict(kind.prefers),
        "companions": {hook: {"plugin": p, "options": dict(o)} for hook, (p, o) in kind.companions.items()},
    }
    if as_json:
        print_json(found)
        return
    from rich.table import Table
    from rich.text import Text

    from .display import stdout

    console = stdout()
    console.print(Text(f"{name}  ({found['distribution']} {found['version']})", style="bold"))
    console.print(Text(str(found["summary"])))
    console.print(Text(str(found["source"]), style="dim"))
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_row("hooks", ", ".join(hooks_of(kind)))
    for hook, (companion, options) in kind.companions.items():
        facts.add_row("companion", Text(f"{companion} for {hook} {dict(options) or ''}"))
    for key, value in kind.prefers.items():
        facts.add_row("prefers", Text(f"{key} = {value}"))
    console.print(facts)
    if fields:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("option", "default", "unit", "meaning"):
            table.add_column(column)
        for key, each in fields.items():
            table.add_row(*(Text(str(part)) for part in (key, each["default"], each["unit"], each["help"])))
        console.print(table)


def _default(value: Any) -> Any:
    return value.plain() if hasattr(value, "plain") else value


def _known_hook(hook: str) -> None:
    from ..errors import OptionError, did_you_mean
    from ..hooks import Hooks

    known = [name for name in vars(Hooks) if not name.startswith("_")]
    if hook not in known:
        raise OptionError(f"Unknown hook {hook}.{did_you_mean(hook, known)} Known: {', '.join(known)}.")
