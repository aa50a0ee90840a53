"""`advkit compare`: runs on the same images, best against last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .evaluate import DATA_ROOT, checked, evaluation_options, own_options
from .main import PLACE, print_json

if TYPE_CHECKING:
    from ..studies.paired_records import ComparedAccuracy, Comparison, Difference


@click.command("compare")
@click.argument("runs", metavar="RUN RUN ...", type=PLACE, nargs=-1)
@evaluation_options
@own_options
@DATA_ROOT
def command(runs: tuple[str, ...], as_json: bool, **typed: Any) -> None:
    """Compare runs on the same test images: one table, with paired differences to the first run.

    \b
    advkit compare runs/pgd-at-1 runs/awp-1 --attacks clean,pgd-20,cw-20

    Both checkpoints of every run are evaluated, as `advkit evaluate` does; known verdicts are reused. How far `last`
    falls behind `best` is robust overfitting. Intervals are over images (Bonett and Price); they say nothing about
    other seeds: `advkit ablate` trains those.
    """
    from ..studies.compare import compare
    from .display import bar

    with bar() as watch:
        comparison = compare(runs, **checked(typed), watch=watch)
    if as_json:
        print_json(comparison.as_dict())
    else:
        show(comparison)


def show(comparison: Comparison) -> None:
    """For people."""
    from ..studies.evaluation_request import WORST
    from .display import stdout, table_of, text

    console = stdout()
    console.print(text(f"{comparison.split} split, {comparison.images}, {comparison.norm}, eps {comparison.eps:.4g}"))
    heads = ("run", "checkpoint", "attack", "accuracy", "95 % interval", "minus the first run", "best minus last")
    table = table_of(*heads, wrap=("run",))
    gaps: dict[str, dict[str, Difference | None]] = {
        run.run: {**{row.name: row for row in run.attacks}, WORST: run.worst_case} for run in comparison.best_minus_last
    }
    own = (None, comparison.norm)
    rows = [*comparison.rows()]
    for run in rows:
        averaged = ", averaged" if run.weights == "averaged" else ""
        name, which = run.run, f"{run.checkpoint} (epoch {(run.epoch or 0) + 1}{averaged})"
        named: list[tuple[str, str, ComparedAccuracy]] = [
            (row.name, "" if row.eps is None or row.norm in own else f" ({row.eps:.4g} {row.norm})", row)
            for row in run.attacks
        ]
        for attack, ball, row in [*named, *([(WORST, "", run.worst_case)] if run.worst_case else [])]:
            low, high = row.interval
            gap = gaps[run.run][attack] if run.checkpoint == "last" else None
            cells = (attack + ball, f"{row.accuracy:.3f}", f"{low:.3f} to {high:.3f}")
            table.add_row(text(name), which, *cells, _signed(row.to_first), _signed(gap))
            name = which = ""
    console.print(table)
    console.print(text("Differences are to the same checkpoint of the first run, and paired by image.", "dim"))
    for note in dict.fromkeys(f"{run.run}: {note}" for run in rows for note in run.notes):
        console.print(text(note, "yellow"))
    for run in rows:
        for check in run.audit:
            if check.alarm:
                where = f"{run.run} {run.checkpoint}"
                console.print(text(f"Suspect, {where}, {check.name}: {check.sentence}", "yellow"))
        if run.hopeless:
            said = f"There is nothing to be robust in {run.run} {run.checkpoint}: {run.hopeless}."
            console.print(text(said, "yellow"))
    if not any(run.alarms or run.hopeless for run in rows):
        console.print(text("Audits in short: no alarm. `advkit audit` runs all checks.", "dim"))


def _signed(gap: Difference | None) -> str:
    if gap is None:
        return ""
    low, high = gap.interval
    return f"{gap.difference:+.3f} ({low:+.3f} to {high:+.3f})"
