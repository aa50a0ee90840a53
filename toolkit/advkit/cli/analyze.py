"""`advkit analyze`: vulnerability, margins, loss landscapes and budgets of a run, as figures, arrays and pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import OptionError
from .evaluate import BATCH_SIZE, CHECKPOINT, DATA_ROOT, checked, own_options
from .main import PLACE, is_typed, print_json

if TYPE_CHECKING:
    from ..studies.analysis import Study
    from ..studies.records import AnalysisRecord

Option = Callable[[Callable[..., Any]], Callable[..., Any]]

ATTACK = ("attack", "eps", "step")
LAST = click.option("--checkpoint", default="last", show_default=True, type=click.Choice(["best", "last"]))


@click.group("analyze")
def command() -> None:
    """What training did to each sample: figures, arrays (.npz) and pictures (.png, .svg) in RUN/analysis.

    \b
    advkit analyze vulnerability runs/lsiw-1
    advkit analyze landscape runs/lsiw-1 --kind iseat --index 7
    """


def options(n: str | None = None, checkpoint: Option = CHECKPOINT, attacked: bool = True) -> Option:
    """What the analyses share; those that look at some images take --split and --n, those that attack their attack."""
    shared = [
        checkpoint,
        DATA_ROOT,
        BATCH_SIZE,
        click.option("--out", type=PLACE, metavar="DIR", help="Where the files go; RUN/analysis by default."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    ]
    if n is not None:
        splits = click.Choice(["train", "validation", "test"])
        shared += [
            click.option(
                "--split", default="train", show_default=True, type=splits, help="train: without held-out ones."
            ),
            click.option("--n", default=n, show_default=True, metavar="N", help="N images at random; 0: all."),
        ]
    if attacked:
        shared += [
            click.option("--attack", default="pgd-50", show_default=True, metavar="A", help="pgd-K, from the image."),
            click.option("--eps", metavar="E", help="Perturbation budget; the run's by default."),
            click.option("--step", default="eps/4", show_default=True, metavar="S", help="eps/N or SHARE eps."),
        ]

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        function = click.argument("run", metavar="RUN", type=PLACE)(function)
        for option in reversed(shared):
            function = option(function)
        return own_options(function)

    return add


@command.command("vulnerability")
@options(n="0")
def vulnerability(as_json: bool, **typed: Any) -> None:
    """How much the attack raises each sample's loss: AV_i = CE(x_i + delta_i) - CE(x_i) (ISEAT, Eq. 3, Table 1)."""
    _run(typed, as_json, lambda study: study.vulnerability())


@command.command("margin")
@options(n="1000")
@click.option("--cap", default="50", show_default=True, metavar="MU", help="Where the scan ends, L2.")
@click.option("--precision", default="0.1", show_default=True, metavar="MU", help="Step of the scan, L2.")
@click.option("--clip/--no-clip", default=True, show_default=True, help="Keep the images in [0, 1].")
def margin(cap: str, precision: str, clip: bool, as_json: bool, **typed: Any) -> None:
    """How far along the adversarial direction each prediction holds: the first flip mu (ISEAT, Eq. 7, Fig. 1b)."""
    from ..studies.inputs import amount

    end, pitch = amount("--cap", cap), amount("--precision", precision)
    _run(typed, as_json, lambda study: study.margin(end, pitch, clip))


@command.command("landscape")
@options(n="16")
@click.option(
    "--kind",
    default="cat",
    show_default=True,
    type=click.Choice(["cat", "iseat"]),
    help="cat: gradient's sign x Rademacher (Fig. 2), no attack; iseat: adversarial x random direction in L2 (Eq. 8).",
)
@click.option("--index", "place", metavar="I", help="One image, by its place in the split, instead of a mean over --n.")
@click.option("--points", default="41", show_default=True, metavar="P", help="Grid points a side, odd.")
@click.option(
    "--extent", metavar="E", help="The axes end at +-E; 0.1 (cat), twice the budget in L2 (iseat) by default."
)
@click.option("--clip/--no-clip", default=None, help="Keep the images in [0, 1]; by default for iseat alone.")
@click.option("--seed", default="0", show_default=True, metavar="N", help="Seed of the random direction.")
def landscape(
    kind: Any,
    place: str | None,
    points: str,
    extent: str | None,
    clip: bool | None,
    seed: str,
    as_json: bool,
    **typed: Any,
) -> None:
    """The loss on a plane around one image, or its mean over some (CAT, Fig. 2; ISEAT, Fig. 3).

    --attack, --eps and --step are for --kind iseat. The files are named after kind and index: landscape-iseat-7.json.
    """
    from ..studies.inputs import amount, whole

    size, start = whole("--points", points), whole("--seed", seed)
    far = None if extent is None else amount("--extent", extent)
    one = None if place is None else whole("--index", place)
    if one is not None and is_typed("n"):
        raise OptionError("--n: --index is of one image; leave one of the two out.")
    if kind == "cat":
        typed = _unattacked(typed)
    _run(typed, as_json, lambda study: study.landscape(kind, one, size, far, clip, start))


def _unattacked(typed: dict[str, Any]) -> dict[str, Any]:
    """`typed` without the attack's options. Raises OptionError where one was given: it would change nothing."""
    given = [f"--{name}" for name in ATTACK if is_typed(name)]
    if given:
        raise OptionError(f"{', '.join(given)}: --kind cat attacks nothing; leave it out, or choose --kind iseat.")
    return {name: value for name, value in typed.items() if name not in ATTACK}


@command.command("budget")
@options(checkpoint=LAST, attacked=False)
def budget(as_json: bool, **typed: Any) -> None:
    """The budgets eps_i of a run of cat-eps: over the epochs, by class, and the hardest samples (CAT)."""
    _run(typed, as_json, lambda study: study.budget())


def _run(typed: dict[str, Any], as_json: bool, analysis: Callable[[Study], AnalysisRecord]) -> None:
    numbers = checked(typed)
    from ..studies.analysis import Study
    from .display import bar, say

    with bar() as watch:
        record = analysis(Study(**numbers, watch=watch))
    drawn = bool(record.pictures)
    if not drawn:
        from ..studies.analysis.record import NO_PICTURE

        say(NO_PICTURE)
    if as_json:
        print_json(record.as_dict())
    else:
        show(record, drawn)


def show(record: AnalysisRecord, drawn: bool) -> None:
    """For people."""
    from ..studies.analysis.words import figure_rows, setting_rows
    from .display import stdout, table_of, text

    console, attack, name = stdout(), record.attack, str(record.analysis)
    by = f", {attack['name']} at eps {attack['eps']:.4g} ({attack['norm']})" if attack else ""
    console.print(
        text(
            f"{record.run}  {name}, checkpoint {record.checkpoint} (epoch {(record.epoch or 0) + 1}), "
            f"{record.judged_on}{by}"
        )
    )
    table = table_of("figure", "value", wrap=("value",), header=False)
    which = name.partition("-")[0]
    for label, value in (*setting_rows(which, record), *figure_rows(which, record)[0]):
        table.add_row(text(label), text(value))
    console.print(table)
    for note in record.notes:
        console.print(text(note, "yellow"))
    suffixes = "json, npz, png, svg" if drawn else "json, npz"
    console.print(text(f"{Path(str(record.folder)) / name}.{{{suffixes}}}"))
