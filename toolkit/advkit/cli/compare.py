"""`advkit compare`: runs on the same images, best against last."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import OptionError
from .evaluate import Asked, evaluation_options
from .main import print_json

if TYPE_CHECKING:
    from ..evaluation import Verdicts
    from ..subject import Subject

CHECKPOINTS = ("best", "last")


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
    from ..folder import RunFolder

    if len(runs) < 2 or len({Path(run).resolve() for run in runs}) < len(runs):
        raise OptionError("Name two or more runs to compare, each once.")
    asked = Asked(**typed)
    for run in runs:
        RunFolder.open(Path(run))  # before the first of them is evaluated
    results, verdicts = [], []
    first: Subject | None = None
    for run in runs:
        for which in CHECKPOINTS:
            subject = asked.subject(run, which)
            first = first or subject
            _refuse_difference(asked, first, subject)
            result, found = asked.evaluate(subject)
            results.append(result)
            verdicts.append(found)
    table = compared(results, verdicts)
    if as_json:
        print_json(table)
    else:
        _show(table)


def _refuse_difference(asked: Asked, first: Subject, other: Subject) -> None:
    """Only runs judged on the same images in the same ball are comparable."""
    if first.images(asked.split, asked.count).fingerprint() != other.images(asked.split, asked.count).fingerprint():
        raise OptionError(f"{other.name} is judged on other images than {first.name}; compare runs of one data set.")
    if first.norm != other.norm:
        raise OptionError(f"{other.name} was trained in {other.norm}, {first.name} in {first.norm}; compare one norm.")
    if asked.eps is None and first.eps != other.eps:
        raise OptionError(
            f"{other.name} was trained at eps {other.eps:g}, {first.name} at {first.eps:g}; "
            "say at which both are judged: --eps E."
        )


def compared(results: list[dict[str, Any]], verdicts: list[dict[str, Verdicts]]) -> dict[str, Any]:
    """Accuracies; differences to the first run, at the same checkpoint; best minus last of each run."""
    from ..paired import image_interval

    def difference(one: Verdicts, other: Verdicts) -> dict[str, Any]:
        values = (one.robust.double() - other.robust.double()).tolist()
        return {"difference": sum(values) / len(values), "interval": image_interval(values)}

    rows, overfitting = [], []
    for place, (result, found) in enumerate(zip(results, verdicts, strict=True)):
        base = verdicts[CHECKPOINTS.index(result["checkpoint"])]
        rows.append(
            {
                "run": result["run"],
                "checkpoint": result["checkpoint"],
                "epoch": result["epoch"],
                "attacks": [
                    {key: row[key] for key in ("name", "norm", "eps", "accuracy", "interval")}
                    | ({} if found is base else {"to_first": difference(found[row["name"]], base[row["name"]])})
                    for row in result["attacks"]
                ],
                "worst_case": result["worst_case"],
                "suspect": result["suspect"],
                "audit": result["audit"],
            }
        )
        if result["checkpoint"] == "last":
            best = verdicts[place - 1]
            overfitting.append(
                {"run": result["run"], "attacks": [{"name": n, **difference(best[n], found[n])} for n in found]}
            )
    head = {key: results[0][key] for key in ("split", "n", "norm", "eps", "seed", "versions")}
    return head | {"runs": rows, "best_minus_last": overfitting}


def _show(found: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from .display import stdout

    console = stdout()
    console.print(Text(f"{found['split']} split, n = {found['n']}, {found['norm']}, eps {found['eps']:.4g}"))
    table = Table(box=None, pad_edge=False, header_style="bold")
    heads = ("run", "checkpoint", "attack", "accuracy", "95 % interval", "minus the first run", "best minus last")
    for name in heads:
        table.add_column(name, no_wrap=name != "run")
    gaps = {each["run"]: {row["name"]: row for row in each["attacks"]} for each in found["best_minus_last"]}
    for run in found["runs"]:
        name, which = run["run"], f"{run['checkpoint']} (epoch {run['epoch'] + 1})"
        for row in run["attacks"]:
            low, high = row["interval"]
            gap = gaps[run["run"]][row["name"]] if run["checkpoint"] == "last" else None
            cells = (row["name"], f"{row['accuracy']:.3f}", f"{low:.3f} to {high:.3f}")
            table.add_row(Text(name), which, *cells, _signed(row.get("to_first")), _signed(gap))
            name = which = ""
    console.print(table)
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
