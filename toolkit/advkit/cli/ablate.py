"""`advkit ablate`: what each plugin of a set is worth, by leaving it out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import OptionError
from .evaluate import ATTACKS
from .main import parse_value
from .run_options import request, run_options


@click.command("ablate")
@run_options
@click.option("--seeds", default="0,1,2", show_default=True, metavar="A,B", help="Every set is trained at each.")
@click.option("--attacks", default="clean,pgd-20,cw-20", show_default=True, metavar="A,B", help=ATTACKS)
@click.option("--n", "count", default="1000", show_default=True, metavar="N", help="N test images at random; 0: all.")
@click.option("--out", metavar="DIR", required=True, help="Folder of all runs and the table; give it again to go on.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(seeds: str, attacks: str, count: str, out: str, as_json: bool, **typed: Any) -> None:
    """Train a set of plugins, the set without each of them, and none, and compare.

    \b
    advkit ablate --plugins cat-eps,dirichlet-ls,lsiw --eps 0.15 --out ablation

    Runs are paired: the same seeds, images and random numbers. A stopped ablation goes on where it was when the
    same command is given again; finished runs are kept. The table is also written to DIR/table.json and table.md.
    """
    import json

    from ..errors import Stopped
    from ..evaluation.attacks import parse_attacks
    from ..storage import files
    from ..studies import ablation
    from ..training.parts import data_of
    from .display import Quiet, Signals
    from .evaluate import whole

    asked = request(**typed)
    if any("run.seed" in layer.settings for layer in asked.layers):
        raise OptionError("An ablation takes its seeds from --seeds; leave run.seed and --seed out.")
    chosen, wanted = parse_attacks([name.strip() for name in attacks.split(",") if name.strip()]), whole("--n", count)
    arms = ablation.arms(asked, _seeds(seeds))
    some = next(iter(next(arm.resolved for arm in arms if arm.resolved).values()))
    folder = Path(out)

    def tell(line: str) -> None:
        click.echo(line, err=True)

    with Signals() as signals:
        try:
            rows = ablation.run(arms, data_of(some), folder, chosen, wanted, lambda: Quiet(signals), tell)
        except Stopped as stopped:
            raise type(stopped)("Stopped; everything is saved. Give the same command again to go on.") from None
    files.write_atomic(folder / "table.json", (json.dumps(rows, indent=1) + "\n").encode())
    files.write_atomic(folder / "table.md", ablation.markdown(rows).encode())
    if as_json:
        from .main import print_json

        print_json(rows)
    else:
        _show(rows)


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from ..studies import ablation
    from .display import stdout

    cells, notes = ablation.table(rows)
    console, table = stdout(), Table(box=None, pad_edge=False, header_style="bold")
    for name in ablation.HEADER:
        table.add_column(Text(name), no_wrap=True)
    for line in cells:
        table.add_row(*(Text(cell) for cell in line))
    console.print(table)
    console.print(Text(ablation.LEGEND, style="dim"))
    for note in notes:
        console.print(Text(note, style="yellow"))


def _seeds(text: str) -> list[int]:
    found = [parse_value(part.strip()) for part in text.split(",") if part.strip()]
    if not found or len(set(found)) != len(found) or any(type(each) is not int or each < 0 for each in found):
        raise OptionError(f"--seeds {text} must be whole numbers >= 0, each once, such as 0,1,2.")
    return [each for each in found if isinstance(each, int)]
