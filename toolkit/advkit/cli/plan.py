"""`advkit plan`: who answers what, what it costs and where every setting comes from, before a minute is spent."""

from __future__ import annotations

from typing import Any

import click

from ..own_file import load_all
from .main import print_json
from .run_options import request, run_options

DEFAULT = "default"
"""Where a setting comes from that nobody has changed."""


@click.command("plan")
@run_options
@click.option("--defaults", is_flag=True, help="Show the settings that are their defaults, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool, defaults: bool, **typed: Any) -> None:
    """Show what a run would do and cost, without running it. No data files are opened; a run checks those."""
    from ..config.resolve import Resolved
    from ..training.plan import own_net, plan

    resolved = Resolved.of(request(**typed))
    load_all(resolved.files)
    planned = plan(resolved, None, own_net(resolved))
    if as_json:
        print_json(planned)
    else:
        from .display import stdout

        show_plan(stdout(), planned, defaults=defaults)


def show_plan(console: Any, plan: dict[str, Any], settings: bool = True, defaults: bool = False) -> None:
    """The plan as tables; of its settings those that are no defaults, unless `defaults`."""
    from ..training.cost import cost_words
    from .display import table_of, text

    table = table_of("hook", "owner", "rule", wrap=("hook", "owner", "rule"))
    added = plan["companions"]
    quiet = ("setup", "commit_attack")
    for hook, owners in plan["hooks"].items():
        if hook in quiet:
            continue
        shown = [f"{owner} (added by {added[owner]['for']})" if owner in added else owner for owner in owners]
        table.add_row(hook, ", ".join(shown), plan["rules"][hook])
    if "base_loss" not in plan["hooks"]:
        table.add_row("base_loss", "core: soft cross-entropy on x_adv", "exclusive")
    console.print(table)
    facts = table_of("fact", "value", wrap=("fact", "value"), header=False)
    for stage in plan["stages"]:
        when = "per step" if len(plan["stages"]) == 1 else f"per step, from epoch {stage['from_epoch'] + 1}"
        facts.add_row(when, passes_text(stage["passes"]))
    facts.add_row("cost", cost_words(plan))
    for name, source in plan["modules"].items():
        facts.add_row("net beside", f"{name}: {source}; its forwards are auxiliary ones, and not in the cost")
    if plan["state"]:
        facts.add_row("state", ", ".join(f"{name}{_size(size)}" for name, size in plan["state_bytes"].items()))
    if plan["standard"]:
        facts.add_row("attack", "none: this is standard training, judged at its last checkpoint")
    for caution in plan["cautions"]:
        facts.add_row(text("caution", "yellow"), caution)
    console.print(facts)
    if settings:
        heads = ("setting", "value", "from")
        values = table_of(*heads, wrap=heads)
        known = plan["settings"]
        listed = {key: each for key, each in known.items() if defaults or each["from"] != DEFAULT}
        for key, setting in listed.items():
            values.add_row(key, _plain(setting["value"]), setting["from"])
        console.print()
        console.print(values)
        if folded := len(known) - len(listed):
            console.print(text(f"{folded} settings are their defaults; `advkit plan --defaults` shows them.", "dim"))


def passes_text(passes: dict[str, dict[str, int]]) -> str:
    """attack 11 forward, 10 input backward | update 3 forward, 3 full backward"""
    return " | ".join(
        f"{phase} " + ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
        for phase, counts in passes.items()
    )


def _size(size: dict[str, int | None]) -> str:
    """How much of memory a state takes, as far as it is known."""
    from ..claims import in_bytes  # which imports torch

    if size["total"] is not None:
        return f" ({in_bytes(size['total'])})"
    return f" ({in_bytes(size['per_sample'])} a sample)" if size["per_sample"] else ""


def _plain(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
