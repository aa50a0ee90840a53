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

    installed = registry.describe("plugin")
    if hook is not None:
        _known_hook(hook)
        installed = [plugin for plugin in installed if plugin.hooks is None or hook in plugin.hooks]
    if as_json:
        print_json([plugin.as_dict() for plugin in installed])
        return
    from .display import stdout, table_of

    table = table_of("plugin", "from", "summary", wrap=("summary",))
    for plugin in installed:
        summary = "(no source to read)" if plugin.summary is None else plugin.summary
        table.add_row(plugin.name, f"{plugin.distribution} {plugin.version}", summary)
    stdout().print(table)


@command.command("show")
@click.argument("name", shell_complete=complete("plugin"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str, as_json: bool) -> None:
    """A plugin's hooks, options, companions and preferences."""
    from .. import registry
    from ..compose.registration import check, hooks_of

    plugin: Any = registry.load("plugin", name)
    check(plugin)
    described = next(one for one in registry.describe("plugin") if one.name == name)
    fields = {
        key: {
            "default": _default(field.default),
            "unit": (field.json_schema_extra or {}).get("unit", ""),
            "help": field.description or "",
            "limits": ", ".join(str(limit) for limit in field.metadata if "imit" not in type(limit).__name__),
        }
        for key, field in plugin.Options.model_fields.items()
    }
    shown = {
        "name": name,
        "distribution": described.distribution,
        "version": described.version,
        "summary": (plugin.__doc__ or "").strip().splitlines()[0] if plugin.__doc__ else "",
        "source": (__import__(plugin.__module__, fromlist=["_"]).__doc__ or "").strip().replace("\n", " "),
        "hooks": list(hooks_of(plugin)),
        "options": {key: {k: v for k, v in field.items() if k != "limits"} for key, field in fields.items()},
        "schema": plugin.Options.model_json_schema(),
        "prefers": dict(plugin.prefers),
        "companions": {hook: {"plugin": p, "options": dict(o)} for hook, (p, o) in plugin.companions.items()},
    }
    if as_json:
        print_json(shown)
        return
    from .display import stdout, table_of, text

    console = stdout()
    console.print(text(f"{name}  ({shown['distribution']} {shown['version']})", "bold"))
    console.print(text(shown["summary"]))
    console.print(text(shown["source"], "dim"))
    facts = table_of("fact", "value", wrap=("value",), header=False)
    facts.add_row("hooks", ", ".join(hooks_of(plugin)))
    for hook, (companion, options) in plugin.companions.items():
        facts.add_row("companion", f"{companion} for {hook} {dict(options) or ''}")
    for key, value in plugin.prefers.items():
        facts.add_row("prefers", f"{key} = {value}")
    console.print(facts)
    if fields:
        table = table_of("option", "default", "unit", "meaning", wrap=("default", "unit", "meaning"))
        for key, field in fields.items():
            table.add_row(*(str(part) for part in (key, field["default"], field["unit"], field["help"])))
        console.print(table)


def _default(value: Any) -> Any:
    return value.plain() if hasattr(value, "plain") else value


def _known_hook(hook: str) -> None:
    from ..errors import OptionError, did_you_mean
    from ..hooks import Hooks

    known = [name for name in vars(Hooks) if not name.startswith("_")]
    if hook not in known:
        raise OptionError(f"Unknown hook {hook}.{did_you_mean(hook, known)} Known: {', '.join(known)}.")
