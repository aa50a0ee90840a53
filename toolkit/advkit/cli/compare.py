"""`advkit compare`: runs on the same images, best against last."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import OptionError
from .evaluate import Asked, evaluation_options
from .main import print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ..evaluation.results import Verdicts
    from ..studies.subject import Subject

CHECKPOINTS = ("best", "last")
WORST = "worst case"


@click.command("compare")
@click.argument("runs", metavar="RUN RUN ...", nargs=-1)
@evaluation_options
def command(runs: tuple[str, ...], as_json: bool, **typed: Any) -> None:
    """Compare runs on the same test images: one table, with paired differences to the first run.

    \b
    advkit compare runs/pgd-at-1 runs/awp-1 --attacks clean,pgd-20,cw-20

    Both checkpoints of every run are evaluated, as `advkit evaluate` does; verdicts that are known are not asked
    again. How far `last` falls behind `best` is robust overfitting. Intervals are over images (Bonett and Price);
    they say nothing about other seeds: `advkit ablate` trains those.
    """
    if len(runs) < 2 or len({Path(run).resolve() for run in runs}) < len(runs):
        raise OptionError("Name two or more runs to compare, each once.")
    asked = Asked(**typed)
    _refuse_other_settings(asked, runs)
    results, verdicts = [], []
    first: Subject | None = None
    for run in runs:
        for which in CHECKPOINTS:
            subject = asked.subject(run, which)
            first = first or subject
            if first.images(asked.split, asked.count).fingerprint() != (
                subject.images(asked.split, asked.count).fingerprint()
            ):
                raise OptionError(f"{run} is judged on other images than {runs[0]}; compare runs of one data set.")
            result, found = asked.evaluate(subject)
            results.append(result)
            verdicts.append(found)
    table = compared(results, verdicts)
    if as_json:
        print_json(table)
    else:
        _show(table)


def _refuse_other_settings(asked: Asked, runs: Sequence[str]) -> None:
    """Only runs judged on the same images in the same ball are comparable; says so before anything is loaded."""
    from ..storage.run_folder import RunFolder
    from ..training.launch import resolve_folder

    first, *others = [resolve_folder(RunFolder.open(Path(run))) for run in runs]
    for run, other in zip(runs[1:], others, strict=True):
        if first.data.name != other.data.name:
            raise OptionError(
                f"{run} is judged on {other.data.name}, {runs[0]} on {first.data.name}; compare runs of one data set."
            )
        if first.attack.norm != other.attack.norm:
            raise OptionError(
                f"{run} was trained in {other.attack.norm}, {runs[0]} in {first.attack.norm}; compare one norm."
            )
        if asked.eps is None and first.attack.eps != other.attack.eps:
            raise OptionError(
                f"{run} was trained at eps {other.attack.eps:g}, {runs[0]} at {first.attack.eps:g}; "
                "say at which both are judged: --eps E."
            )


def compared(results: list[dict[str, Any]], verdicts: list[dict[str, Verdicts]]) -> dict[str, Any]:
    """Accuracies; differences to the first run, at the same checkpoint; best minus last of each run."""
    from ..evaluation.results import worst_cases
    from ..evaluation.statistics import image_interval

    norm = results[0]["norm"]

    def robust(found: dict[str, Verdicts]) -> dict[str, Tensor]:
        worst = worst_cases(found.values())
        return {name: each.robust for name, each in found.items()} | ({WORST: worst[norm]} if norm in worst else {})

    def difference(one: Tensor, other: Tensor) -> dict[str, Any]:
        values = (one.double() - other.double()).tolist()
        return {"difference": sum(values) / len(values), "interval": image_interval(values)}

    tables = [robust(found) for found in verdicts]
    rows, overfitting = [], []
    for place, (result, mine) in enumerate(zip(results, tables, strict=True)):
        base = tables[CHECKPOINTS.index(result["checkpoint"])]
        to_first = {} if mine is base else {name: {"to_first": difference(mine[name], base[name])} for name in mine}
        row = {key: result[key] for key in ("run", "checkpoint", "epoch", "suspect", "audit")}
        row["attacks"] = [
            {key: each[key] for key in ("name", "norm", "eps", "accuracy", "interval")} | to_first.get(each["name"], {})
            for each in result["attacks"]
        ]
        row["worst_case"] = result["worst_case"] and result["worst_case"] | to_first.get(WORST, {})
        rows.append(row)
        if result["checkpoint"] == "last":
            best = tables[place - 1]
            gaps = {name: difference(best[name], mine[name]) for name in mine}
            lowest = gaps.pop(WORST, None)
            attacks = [{"name": name, **gap} for name, gap in gaps.items()]
            overfitting.append({"run": result["run"], "attacks": attacks, "worst_case": lowest})
    head = {key: results[0][key] for key in ("split", "n", "images", "norm", "eps", "seed", "versions")}
    return head | {"runs": rows, "best_minus_last": overfitting}


def _show(found: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from .display import stdout

    console = stdout()
    console.print(Text(f"{found['split']} split, {found['images']}, {found['norm']}, eps {found['eps']:.4g}"))
    table = Table(box=None, pad_edge=False, header_style="bold")
    heads = ("run", "checkpoint", "attack", "accuracy", "95 % interval", "minus the first run", "best minus last")
    for name in heads:
        table.add_column(name, no_wrap=name != "run")
    gaps = {
        each["run"]: {row["name"]: row for row in each["attacks"]} | {WORST: each["worst_case"]}
        for each in found["best_minus_last"]
    }
    for run in found["runs"]:
        name, which = run["run"], f"{run['checkpoint']} (epoch {run['epoch'] + 1})"
        worst = [{"name": WORST, **run["worst_case"]}] if run["worst_case"] else []
        for row in run["attacks"] + worst:
            low, high = row["interval"]
            gap = gaps[run["run"]][row["name"]] if run["checkpoint"] == "last" else None
            cells = (row["name"], f"{row['accuracy']:.3f}", f"{low:.3f} to {high:.3f}")
            table.add_row(Text(name), which, *cells, _signed(row.get("to_first")), _signed(gap))
            name = which = ""
    console.print(table)
    console.print(Text("Differences are to the same checkpoint of the first run, and paired by image.", style="dim"))
    for run in found["runs"]:
        for check in run["audit"]:
            if check["alarm"]:
                where = f"{run['run']} {run['checkpoint']}"
                console.print(Text(f"Suspect, {where}, {check['name']}: {check['sentence']}", style="yellow"))


def _signed(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    low, high = found["interval"]
    return f"{found['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
