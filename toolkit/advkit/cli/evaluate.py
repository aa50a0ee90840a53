"""`advkit evaluate`: accuracies of a net under attack, with intervals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import registry
from ..errors import GateMissed, OptionError
from .main import PLACE, assignments, print_json

if TYPE_CHECKING:
    from ..studies.records import Accuracy, Evaluation

ATTACKS = f"{', '.join(registry.spellings())}."
CHECKPOINT = click.option(
    "--checkpoint",
    type=click.Choice(["best", "last"]),
    help="By default best, or last where training attacked nothing.",
)


DATA_ROOT = click.option(
    "--data-root", type=PLACE, metavar="DIR", help="Folder or zip of the data; the run's by default."
)

BATCH_SIZE = click.option(
    "--batch-size", metavar="B", help="Images at once; as many as in training, 100 at most, by default."
)


def evaluation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What `evaluate` and `compare` share."""
    for option in reversed(
        (
            click.option("--attacks", default="clean,pgd-20,cw-20", show_default=True, metavar="A,B", help=ATTACKS),
            click.option("--eps", metavar="E", help="Perturbation budget; the run's by default."),
            click.option(
                "--eps-l2", metavar="E", help="Budget of attacks that end in -l2, where the run's norm is linf."
            ),
            click.option("--eps-linf", metavar="E", help="Budget of linf attacks, where the run's norm is l2."),
            click.option(
                "--step", default="eps/5", show_default=True, metavar="S", help="Step of PGD: eps/N or SHARE eps."
            ),
            click.option("--n", default="1000", show_default=True, metavar="N", help="N images at random; 0: all."),
            click.option("--split", default="test", show_default=True, type=click.Choice(["test", "train"])),
            click.option(
                "--seed", default="0", show_default=True, metavar="N", help="Seed of random starts and searches."
            ),
            BATCH_SIZE,
            click.option("--fresh", is_flag=True, help="Ignore stored verdicts; run all attacks again."),
            click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        )
    ):
        command = option(command)
    return command


def own_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What names the code that a run was trained on again."""
    for flag, what in (("--dataset", "data"), ("--model", "net")):
        help = f"The file of the run's {what}, where it came from a file or from Python."
        command = click.option(flag, metavar="FILE.py:NAME", help=help)(command)
    return command


def weights_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What `evaluate` and `audit` need to know of a file of weights."""
    for option in reversed(
        (
            click.option(
                "--model", metavar="NAME", help="WEIGHTS: the model they fit. RUN: its FILE.py:NAME, if it has one."
            ),
            click.option("--dataset", metavar="NAME", help="WEIGHTS: the data to judge on. RUN: as --model."),
            DATA_ROOT,
            click.option(
                "--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="WEIGHTS: such as model.width=16."
            ),
        )
    ):
        command = option(command)
    return command


@click.command("evaluate")
@click.argument("subject", metavar="RUN|WEIGHTS", type=PLACE)
@evaluation_options
@CHECKPOINT
@click.option("--min-robust", metavar="SHARE", help="Exit with 3 where the worst case is below SHARE.")
@click.option(
    "--out",
    type=PLACE,
    metavar="DIR",
    help="Where verdicts go; by default RUN/evaluations, for WEIGHTS runs/evaluations.",
)
@weights_options
def command(
    subject: str,
    checkpoint: str | None,
    min_robust: str | None,
    out: str | None,
    as_json: bool,
    model: str | None,
    dataset: str | None,
    data_root: str | None,
    settings: tuple[str, ...],
    **typed: Any,
) -> int:
    """Evaluate the run in the folder RUN, or a file of WEIGHTS (.safetensors, or a state dict of torch.save).

    \b
    advkit evaluate runs/lsiw-1 --attacks clean,pgd-20,cw-20,apgd-t,square --n 200
    advkit evaluate net.safetensors --model small-cnn --dataset digits --eps 0.15

    Verdicts are stored as they come: an evaluation that was killed continues where it was. An image that is
    misclassified without an attack counts as broken under every attack. Attacks start from the image itself.
    """
    from ..studies.evaluate import evaluate_subject
    from ..studies.evaluation_request import EvaluationRequest
    from ..studies.inputs import amount
    from ..studies.subject import subject_of
    from ..training.ranks import here
    from .display import bar

    gate = None if min_robust is None else amount("--min-robust", min_robust)
    if gate is not None and not gate <= 1:
        raise OptionError(f"--min-robust {min_robust} must be a share from 0 to 1, such as 0.45.")
    by_norm = {"l2": typed.pop("eps_l2"), "linf": typed.pop("eps_linf")}
    request = EvaluationRequest.of(**checked(typed), by_norm=by_norm, data_root=data_root)
    net = subject_of(
        subject,
        checkpoint,
        model=model,
        dataset=dataset,
        data_root=data_root,
        settings=assignments(settings, "--set", "--set section.key=value"),
        eps=request.eps,
        batch_size=request.batch_size,
        together=True,
    )
    if gate is not None:
        request.refuse_without_attack(net.norm)
    team = here()
    with bar() as watch:
        place = Path(out) if out else None
        result, _ = evaluate_subject(net, request, place, team=team, watch=None if team.rank else watch)
    if team.rank:  # the first speaks for all
        return 0
    if as_json:
        print_json(result.as_dict())
    else:
        show(result)
    if gate is not None and result.worst_case and result.worst_case.accuracy < gate:
        share = result.worst_case.accuracy
        raise GateMissed(f"The robust accuracy {share:.3f} ({result.judged_on}) is below --min-robust {gate:g}.")
    return 0


def checked(typed: dict[str, Any]) -> dict[str, Any]:
    """Numbers of an evaluation, an audit or an analysis, under the names of their options where they are wrong."""
    from ..studies.inputs import amount, pace, whole

    numbers: dict[str, Callable[[str, str], object]] = {"eps": amount, "n": whole, "seed": whole, "batch_size": whole}
    values = {
        name: numbers[name](f"--{name.replace('_', '-')}", value) if name in numbers and value is not None else value
        for name, value in typed.items()
    }
    if "step" in typed:
        pace("--step", typed["step"])
    return values


def show(result: Evaluation) -> None:
    """For people."""
    from .display import stdout, table_of, text as plain

    console = stdout()
    where = f"checkpoint {result.checkpoint} (epoch {(result.epoch or 0) + 1}), " if result.checkpoint else ""
    console.print(plain(f"{result.run}  {where}{result.judged_on}, {result.norm}"))
    table = table_of("attack", ">eps", ">step", ">accuracy", "95 % interval", ">passes an image", ">s")
    for row in result.attacks:
        eps = "" if row.eps is None else f"{row.eps:.4g}" + ("" if row.norm in (None, result.norm) else f" {row.norm}")
        step = f"{row.step_size:.4g}" if isinstance(row.step_size, float) else row.step_size or ""
        passes = sum((row.passes or {}).values())
        table.add_row(*_cells(row.name, eps, step, row), f"{passes:.0f}", f"{row.seconds or 0:.1f}")
    for norm, worst in result.worst.items():
        label = "worst case" if norm == result.norm else f"worst case {norm}"
        table.add_row(*_cells(label, "", "", worst), "", "")
    console.print(table)
    for note in (*result.notes, *(f"{row.name}: {note}" for row in result.attacks for note in row.notes)):
        console.print(plain(note, "yellow"))
    checks = result.audit or []
    alarms = [check for check in checks if check.alarm]
    for check in alarms:
        console.print(plain(f"Suspect, {check.name}: {check.sentence}", "yellow"))
    ran = sum(check.alarm is not None for check in checks)
    if alarms:
        console.print(plain("The accuracies may be too high; `advkit audit`, given the same net, says more.", "yellow"))
    elif result.hopeless:
        console.print(plain(f"There is nothing to be robust: {result.hopeless}.", "yellow"))
    elif ran:
        console.print(plain(f"Audit in short: {ran} checks, no alarm. `advkit audit` runs all.", "dim"))
    console.print(plain(f"Verdicts: {result.folder}", "dim"))


def _cells(name: str, eps: str, step: str, row: Accuracy) -> tuple[str, ...]:
    low, high = row.interval
    return name, eps, step, f"{row.accuracy:.3f}", f"{low:.3f} to {high:.3f}"
