"""`advkit evaluate`: accuracies of a run under attack, with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import OptionError
from .main import parse_value, print_json


@click.command("evaluate")
@click.argument("run", metavar="DIR")
@click.option(
    "--attacks", default="clean,pgd-20,cw-20", show_default=True, metavar="A,B", help="clean, fgsm, pgd-K, cw-K."
)
@click.option("--eps", metavar="E", help="Perturbation budget; the run's by default.")
@click.option(
    "--n", "count", default="1000", show_default=True, metavar="N", help="The first N images of the split; 0: all."
)
@click.option("--split", default="test", show_default=True, type=click.Choice(["test", "train"]))
@click.option("--checkpoint", "which", default="best", show_default=True, type=click.Choice(["best", "last"]))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(run: str, attacks: str, eps: str | None, count: str, split: str, which: str, as_json: bool) -> None:
    """Evaluate the run in DIR.

    PGD from the image itself with step eps/5; cw-K ascends the margin max_j Z_j - Z_y instead of the
    cross-entropy. A run whose two accuracies differ by more than 0.06 is marked as suspect.
    """
    from ..data.base import Dataset
    from ..evaluation import parse_attacks, summary, verdicts
    from ..folder import RunFolder
    from ..runs import data_of, evaluate_folder, on_this_machine, resolve_folder

    chosen = parse_attacks([name.strip() for name in attacks.split(",") if name.strip()])
    budget, wanted = _number("--eps", eps), whole("--n", count)
    folder = RunFolder.open(Path(run))
    resolved = on_this_machine(resolve_folder(folder))
    splits = data_of(resolved)
    model, position = evaluate_folder(folder, resolved, splits, which)
    full = splits.test if split == "test" else splits.train
    rows = slice(0, wanted or len(full))
    dataset = Dataset(full.name, full.images[rows], full.labels[rows], full.classes)
    at = resolved.attack.eps if budget is None else budget

    from .display import bar

    with bar(len(dataset) * len(chosen), "evaluating") as tick:
        kept = verdicts(model, dataset, chosen, eps=at, norm=resolved.attack.norm, tick=tick)
    best = position["best"] or {}
    found: dict[str, Any] = {
        "run": run,
        "checkpoint": which,
        "epoch": max(0, position["epoch"] - (position["step"] == 0)),
        "selected_on": best.get("split") if which == "best" else None,
        "split": split,
        "n": len(dataset),
        "norm": resolved.attack.norm,
        **summary(kept, chosen, at),
    }
    if as_json:
        print_json(found)
        return
    _show(found)


def _show(found: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from .display import stdout

    console = stdout()
    console.print(
        Text(
            f"{found['run']}  checkpoint {found['checkpoint']} (epoch {found['epoch'] + 1}), "
            f"{found['split']} split, n = {found['n']}, {found['norm']}"
        )
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, justify in (("attack", "left"), ("eps", "right"), ("accuracy", "right"), ("95 % interval", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in [*found["attacks"], {"name": "worst case", "eps": "", **found["worst_case"]}]:
        eps = f"{row['eps']:.4g}" if row["eps"] != "" else ""
        low, high = row["interval"]
        table.add_row(row["name"], eps, f"{row['accuracy']:.3f}", f"{low:.3f} to {high:.3f}")
    console.print(table)
    if found["selected_on"] == "test":
        console.print("The checkpoint was chosen on the test split: these figures are optimistic.", style="yellow")
    if found["suspect"]:
        console.print(
            "Suspect: accuracies under cross-entropy and margin PGD differ by more than 0.06, "
            "a sign of masked gradients.",
            style="yellow",
        )


def _number(flag: str, text: str | None) -> float | None:
    from math import isfinite

    from ..options import parse_number

    if text is None:
        return None
    try:
        value = parse_number(text)
    except (ValueError, OverflowError):
        value = -1.0
    if not isfinite(value) or value < 0:
        raise OptionError(f"{flag} {text} must be a finite number >= 0, or a fraction such as 8/255.")
    return value


def whole(flag: str, text: str) -> int:
    """A count; 0 means all."""
    value = parse_value(text)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise OptionError(f"{flag} {text} must be a whole number >= 0.")
    return value
