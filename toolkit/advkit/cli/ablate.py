"""`advkit ablate`: what each plugin of a set is worth, by leaving it out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .evaluate import ATTACKS
from .main import PLACE, print_json
from .run_options import request, run_options

if TYPE_CHECKING:
    from ..studies.paired_records import AblationRow


@click.command("ablate")
@run_options
@click.option("--seeds", default="0,1,2", show_default=True, metavar="A,B", help="Every set is trained at each.")
@click.option("--attacks", default="clean,pgd-20,cw-20", show_default=True, metavar="A,B", help=ATTACKS)
@click.option("--n", default="1000", show_default=True, metavar="N", help="N test images at random; 0: all.")
@click.option(
    "--out", metavar="DIR", type=PLACE, required=True, help="Folder of all runs and the table; give it again to go on."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(seeds: str, attacks: str, n: str, out: str, as_json: bool, **typed: Any) -> None:
    """Train a set of plugins, the set without each of them, and none, and compare.

    \b
    advkit ablate --plugins cat-eps,dirichlet-ls,lsiw --eps 0.15 --out ablation

    Runs are paired: the same seeds, images and random numbers. A stopped ablation goes on where it was when the
    same command is given again; finished runs are kept. The table is also written to DIR/table.json and table.md.
    """
    from ..studies.ablation import ablate_request
    from ..studies.evaluation_request import EvaluationRequest
    from ..studies.inputs import seeds as parse_seeds, whole
    from .display import Quiet, Signals, say

    asked_for, numbers = request(**typed), parse_seeds("--seeds", seeds)
    judging = EvaluationRequest.of(attacks, n=whole("--n", n))
    with Signals() as signals:
        rows = ablate_request(asked_for, numbers, judging, Path(out), lambda: Quiet(signals), say)
    if as_json:
        print_json([row.as_dict() for row in rows])
    else:
        show(rows)


def show(rows: Sequence[AblationRow]) -> None:
    """For people."""
    from ..studies.paired_tables import HEADER, LEGEND, table
    from .display import stdout, table_of, text

    cells, notes = table(rows)
    console, shown = stdout(), table_of(*HEADER)
    for line in cells:
        shown.add_row(*(text(cell) for cell in line))
    console.print(shown)
    console.print(text(LEGEND, "dim"))
    for note in notes:
        console.print(text(note, "yellow"))
