"""`advkit ablate`: what each plugin of a set is worth, by leaving it out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .evaluate import ATTACKS
from .main import PLACE, print_json
from .run_options import request, run_options

if TYPE_CHECKING:
    from ..config.request import Request
    from ..studies.arms import Study
    from ..studies.paired_records import AblationRow
    from ..studies.paired_tables import Layout

F = TypeVar("F", bound=Callable[..., Any])


def study_options(function: F) -> F:
    """What an ablation and a sweep are asked for, beside their runs."""
    for option in reversed(
        (
            click.option(
                "--seeds", default="3", show_default=True, metavar="N|A,B", help="How many (0, 1, 2), or which."
            ),
            click.option("--attacks", default="clean,pgd-20,cw-20", show_default=True, metavar="A,B", help=ATTACKS),
            click.option("--n", default="1000", show_default=True, metavar="N", help="N images at random; 0: all."),
            click.option(
                "--out",
                metavar="DIR",
                type=PLACE,
                required=True,
                help="Folder of all runs and the table; give it again to continue.",
            ),
            click.option("--task", metavar="K", help="Only the K-th run, from 1, and no table: a task of a job array."),
            click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        )
    ):
        function = option(function)
    return function


@click.command("ablate")
@run_options
@study_options
def command(seeds: str, task: str | None, as_json: bool, **typed: Any) -> None:
    """Train a set of plugins, the set without each of them and of their companions, and none, and compare.

    \b
    advkit ablate --plugins cat-eps,dirichlet-ls,lsiw --eps 0.15 --out ablation

    Runs are paired: the same seeds, images and random numbers. A stopped ablation continues where it was when the
    same command is given again; finished runs are kept. The table is also written to DIR/table.json and table.md.
    """
    from ..studies.ablation import ablate_request
    from ..studies.inputs import seeds as parse_seeds
    from ..studies.paired_tables import ABLATION

    numbers = parse_seeds("--seeds", seeds)
    carry_out(ABLATION, as_json, task, typed, lambda asked, study, k: ablate_request(asked, numbers, study, k))


def carry_out(
    layout: Layout,
    as_json: bool,
    task: str | None,
    typed: dict[str, Any],
    rows_of: Callable[[Request, Study, int | None], list[AblationRow]],
) -> None:
    """Runs, judged as was typed, and their table."""
    from ..studies.arms import Study, refuse_failed
    from ..studies.evaluation_request import EvaluationRequest
    from ..studies.inputs import whole
    from .display import Quiet, Signals, say

    out, judging = Path(typed.pop("out")), EvaluationRequest.of(typed.pop("attacks"), n=whole("--n", typed.pop("n")))
    asked, number = request(**typed), None if task is None else whole("--task", task)
    with Signals() as signals:
        study = Study(out, judging, layout, asked.trackers, lambda: Quiet(signals), say)
        rows = rows_of(asked, study, number)
    if number is not None:
        return
    if as_json:
        print_json([row.as_dict() for row in rows])
    else:
        show(rows, layout)
    refuse_failed(rows)


def show(rows: Sequence[AblationRow], layout: Layout) -> None:
    """For people."""
    from ..studies.paired_tables import table
    from .display import stdout, table_of, text

    cells, notes = table(rows, layout)
    console, shown = stdout(), table_of(*layout.header)
    for line in cells:
        shown.add_row(*(text(cell) for cell in line))
    console.print(shown)
    console.print(text(layout.legend(rows), "dim"))
    for note in notes:
        console.print(text(note, "yellow"))
