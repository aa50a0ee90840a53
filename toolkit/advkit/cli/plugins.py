"""`advkit plugins`: what is installed, one method in full, whether it behaves, and a new one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from .completion import complete
from .main import PLACE, assignments, echo, print_json


@click.group("plugins")
def command() -> None:
    """List installed plugins, show or check one, or begin a new one."""


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
    from . import options_shown

    plugin: Any = registry.load("plugin", name)
    check(plugin)
    described = next(one for one in registry.describe("plugin") if one.name == name)
    shown = {
        "name": name,
        "distribution": described.distribution,
        "version": described.version,
        "summary": (plugin.__doc__ or "").strip().splitlines()[0] if plugin.__doc__ else "",
        "source": (__import__(plugin.__module__, fromlist=["_"]).__doc__ or "").strip().replace("\n", " "),
        "hooks": list(hooks_of(plugin)),
        "options": options_shown.facts(plugin.Options),
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
    options_shown.show(console, plugin.Options)


@command.command("check")
@click.argument("name", shell_complete=complete("plugin"))
@click.option("-o", "options", metavar="NAME.KEY=VALUE", multiple=True, help="An option to check it with.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(name: str, options: Sequence[str], as_json: bool) -> int:
    """Check a plugin by small trainings, a minute at most. Exit code 1 where a check fails.

    \b
    advkit plugins check cat-eps
    """
    from ..errors import OptionError
    from ..testing import Subject, drawn, findings

    given = {}
    for key, value in assignments(options, "-o", "PLUGIN.KEY=VALUE").items():
        plugin, _, option = key.partition(".")
        if plugin != name:
            raise OptionError(f"Options are given for {plugin}; `advkit plugins check {name}` takes those of {name}.")
        given[option] = value
    ended = []
    for finding in findings(Subject.of(name, given or None)):
        ended.append(finding)
        if not as_json:
            echo(f"{SIGNS[finding.state]:<6}{finding.check}{': ' if finding.said else ''}{finding.said}")
            if finding.state == "fails":
                echo(f"      expected: {finding.expected}")
    count = Counter(finding.state for finding in ended)
    if as_json:
        print_json([vars(finding) for finding in ended])
    else:
        echo(f"{name}: {count['holds']} checks hold, {count['fails']} fail, {count['not run']} were not run.")
        if not drawn.installed():
            echo(drawn.ABSENT)
    return 1 if count["fails"] else 0


SIGNS = {"holds": "ok", "fails": "FAIL", "not run": "-"}


@command.command("new")
@click.argument("name")
@click.option(
    "--in",
    "into",
    metavar="DIR",
    type=PLACE,
    default=".",
    help="Where the package goes; the current folder by default.",
)
def new(name: str, into: str) -> None:
    """A new plugin as a package that passes its tests: a module, its entry point, tests, a README.

    \b
    advkit plugins new acme-margin
    """
    import shlex

    from ..testing.package import new_package
    from .main import is_typed

    for path in new_package(name, Path(into), is_typed("into")):
        echo(f"wrote {path}")
    folder = shlex.quote(str(Path(into) / name))
    echo(f"Next: pip install -e {folder}, then pytest {folder} and advkit plugins check {name}")


def _known_hook(hook: str) -> None:
    from ..errors import OptionError, cut, did_you_mean
    from ..hooks import Hooks

    known = [name for name in vars(Hooks) if not name.startswith("_")]
    if hook not in known:
        raise OptionError(f"Unknown hook {cut(hook)}.{did_you_mean(hook, known)} Known: {', '.join(known)}.")
