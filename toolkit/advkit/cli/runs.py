"""`advkit runs`: which runs there are, and what one is."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import CheckpointError
from .main import PLACE, print_json

if TYPE_CHECKING:
    from ..studies.runs import LoadedRun


@click.group("runs")
def command() -> None:
    """List runs, or show one."""


@command.command("list")
@click.argument("folder", metavar="[DIR]", type=PLACE, default="runs")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(folder: str, as_json: bool) -> None:
    """The runs in DIR and below it; in runs by default."""
    from ..errors import CheckpointError
    from ..storage.files import there
    from ..studies.runs import runs_below

    if not (there(Path(folder)) and os.path.isdir(folder)):
        raise CheckpointError(f"{folder} is no folder; name the one that your runs are in.")
    rows = list(runs_below(Path(folder)))
    if as_json:
        told = [{"damaged": run} if isinstance(run, str) else _summary(run) for _, run in rows]
        print_json([{"folder": str(path)} | facts for (path, _), facts in zip(rows, told, strict=True)])
        return
    from .display import say, stdout, table_of, text

    table = table_of(
        "run", "plugins", "model", "data", ">epochs", ">best", ">under attack", ">images", wrap=("plugins",)
    )
    for path, run in rows:
        if not isinstance(run, str):
            facts = _summary(run)
            best = "" if run.best is None else str(run.best["epoch"] + 1)
            share = "" if facts["selected"] is None else f"{facts['selected']:.3f}"
            images = "" if facts["selected_of"] is None else str(facts["selected_of"])
            plugins = ",".join(run.plugins) or "none"
            done = f"{len(run.history)} of {run.epochs}"
            table.add_row(str(path), plugins, str(facts["model"]), str(facts["data"]), done, best, share, images)
    console = stdout()
    if rows:
        console.print(table)
    noted: dict[str, list[str]] = {}
    for path, run in rows:
        if isinstance(run, str):
            console.print(text(f"{path}: {run}", "yellow"))
        else:
            for note in dict.fromkeys(run.notes):
                noted.setdefault(note, []).append(str(path))
    for note, of in noted.items():
        say(f"{'All' if 1 < len(of) == len(rows) else ', '.join(of)}: {note}.")
    if not rows:
        first = shlex.quote(f"{folder}/first")
        console.print(text(f"No run is in {folder}; `advkit train --out {first}` makes one."))


def _summary(run: LoadedRun) -> dict[str, Any]:
    from ..studies.kept import net_named

    best = run.best or {}
    validation = best.get("validation") or {}
    return {
        "plugins": list(run.plugins),
        "model": net_named(run.settings),
        "data": run.settings.get("data.name"),
        "epochs": run.epochs,
        "done": len(run.history),
        "finished": run.finished,
        "best_epoch": best.get("epoch"),
        "selected": validation.get("selected"),
        "selected_of": validation.get("n"),
        "notes": list(run.notes),
    }


@command.command("show")
@click.argument("run", metavar="RUN", type=PLACE)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: every setting, every epoch.")
def show(run: str, as_json: bool) -> None:
    """A run's settings, its best epoch and all finished epochs."""
    from ..compose.replaced import without_plugins
    from ..studies.runs import load_run

    loaded = load_run(run)
    if as_json:
        print_json(loaded.as_dict())
        return
    from .display import EpochLines, say, stdout, table_of, text

    console = stdout()
    state = "finished" if loaded.finished else "not finished"
    console.print(text(f"{run}  {len(loaded.history)} of {loaded.epochs} epochs, {state}", "bold"))
    table = table_of("setting", "value", wrap=("value",), header=False)
    table.add_row("plugins", ", ".join(loaded.plugins) or f"none: {without_plugins(loaded.settings)}")
    for key in dict.fromkeys(("model.name", "data.name", "attack.norm", "attack.eps", *loaded.given)):
        value = loaded.settings.get(key)
        table.add_row(key, f"{value:.6g}" if isinstance(value, float) else str(value))
    if loaded.init_from:
        table.add_row("--init-from", loaded.init_from)
    console.print(table)
    lines = EpochLines()
    console.print()
    for row in loaded.history:
        try:
            shown = [*lines.of(row)]
        except (LookupError, TypeError, ValueError, AttributeError):  # its figures are what somebody made of them
            raise CheckpointError(
                f"{run}/metrics.jsonl is damaged in the line of epoch {row['epoch'] + 1}; restore it, or remove it to "
                "go on without."
            ) from None
        for line, style in shown:
            console.print(text(line, style))
    if loaded.validated_on:
        console.print(text(f"\nValidation: {loaded.validated_on}."))
    if loaded.best:
        averaged = ", by averaged weights" if loaded.weights == "averaged" else ""
        console.print(text(f"\n* the best so far; now epoch {loaded.best['epoch'] + 1}{averaged}"))
    for note in loaded.notes:
        say(f"{run}: {note}.")
