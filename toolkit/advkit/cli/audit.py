"""`advkit audit`: whether a net's accuracies under attack can be believed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..errors import GateMissed
from ..torchrun import rank
from .evaluate import BATCH_SIZE, CHECKPOINT, checked, weights_options
from .main import PLACE, assignments, print_json

if TYPE_CHECKING:
    from ..studies.records import AuditRecord


@click.command("audit")
@click.argument("subject", metavar="RUN|WEIGHTS", type=PLACE)
@click.option("--n", default="200", show_default=True, metavar="N", help="N images at random; 0: all.")
@click.option("--split", default="test", show_default=True, type=click.Choice(["test", "train"]))
@click.option("--eps", metavar="E", help="Perturbation budget; the run's by default.")
@click.option("--transfer", type=PLACE, metavar="RUN", help="Try examples made on this run's net as well.")
@BATCH_SIZE
@click.option("--seed", default="0", show_default=True, metavar="N", help="Seed of random starts and searches.")
@CHECKPOINT
@weights_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(subject: str, settings: tuple[str, ...], as_json: bool, **typed: Any) -> int:
    """Look for masked gradients in the run in the folder RUN, or in a file of WEIGHTS.

    \b
    advkit audit runs/lsiw-1
    advkit audit runs/lsiw-1 --transfer runs/pgd-at-1

    Exits with 3 where a check raises an alarm. The result is stored in RUN/audit.json. Silence proves nothing: it
    means only that no known symptom was found.
    """
    from ..studies.audit import audit
    from .display import bar, say

    given = assignments(settings, "--set", "--set section.key=value")
    unsaid: list[str] = []  # after everything has been shown
    with bar() as watch:
        shown = None if rank() else watch
        record = audit(subject, **checked(typed), settings=given, together=True, watch=shown, tell=unsaid.append)
    if rank():  # the first speaks for all
        return 0
    if as_json:
        print_json(record.as_dict())
    else:
        show(record)
    for sentence in unsaid:
        say(sentence)
    if all(check.alarm is None for check in record.checks):
        raise GateMissed(f"No check could be run, so nothing is known of this net. {record.checks[0].sentence}")
    if record.hopeless:
        raise GateMissed(f"Nothing is known of this net's robustness: {record.hopeless}.")
    if record.alarms:
        names = ", ".join(record.alarms)
        raise GateMissed(f"The accuracies under attack can not be believed as they are: {names}; see docs/audit.md.")
    return 0


def show(record: AuditRecord) -> None:
    """For people: a line a check."""
    from .display import stdout, table_of, text

    console = stdout()
    where = f"checkpoint {record.checkpoint}, " if record.checkpoint else ""
    console.print(text(f"{record.run}  {where}{record.judged_on}, {record.norm}, eps {record.eps:.4g}"))
    table = table_of("", "check", ">figure", "95 % interval", ">images", ">alarm", "", wrap=("",))
    signs = {True: text("ALARM", "bold red"), False: text("ok"), None: text("-")}
    for check in record.checks:
        figure = "" if check.figure is None else f"{check.figure:.3g}"
        ends = "{:.3f} to {:.3f}".format(*check.interval) if check.interval else ""
        table.add_row(signs[check.alarm], check.name, figure, ends, check.images, check.bound, text(check.sentence))
    console.print(table)
    for note in record.notes:
        console.print(text(note, "yellow"))
    passes = sum((record.passes or {}).values())
    alarms = ", ".join(record.alarms) or "none"
    ran = sum(check.alarm is not None for check in record.checks)
    console.print(text(f"Alarms: {alarms}, of {ran} checks that ran. {passes:.0f} passes an image."))
