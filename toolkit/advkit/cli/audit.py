"""`advkit audit`: whether a net's accuracies under attack can be believed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import AdvkitError, GateMissed, OptionError
from .evaluate import Asked
from .main import print_json

if TYPE_CHECKING:
    from ..studies.subject import Subject


@click.command("audit")
@click.argument("subject", metavar="RUN|WEIGHTS")
@click.option("--n", "count", default="200", show_default=True, metavar="N", help="N images at random; 0: all.")
@click.option("--split", default="test", show_default=True, type=click.Choice(["test", "train"]))
@click.option("--eps", metavar="E", help="Perturbation budget; the run's by default.")
@click.option("--transfer", metavar="RUN", help="Try examples made on this run's net as well.")
@click.option("--batch-size", default="100", show_default=True, metavar="B", help="Images at once.")
@click.option("--seed", default="0", show_default=True, metavar="N", help="Of random starts and searches.")
@click.option("--checkpoint", "which", default="best", show_default=True, type=click.Choice(["best", "last"]))
@click.option("--model", metavar="NAME", help="WEIGHTS: the model they fit.")
@click.option("--dataset", metavar="NAME", help="WEIGHTS: the data set to judge on.")
@click.option("--data-root", metavar="DIR", help="Folder or zip of the data; the run's by default.")
@click.option("--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="WEIGHTS: such as model.width=16.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(subject: str, which: str, transfer: str | None, as_json: bool, **typed: Any) -> int:
    """Look for masked gradients in the run in the folder RUN, or in a file of WEIGHTS.

    \b
    advkit audit runs/lsiw-1
    advkit audit runs/lsiw-1 --transfer runs/pgd-at-1

    Exits with 3 where a check raises an alarm. The result is kept in RUN/audit.json. Silence proves nothing: it says
    that no known symptom was found.
    """
    from ..evaluation.verdicts import refuse_gray_levels

    asked = Asked(attacks="clean", eps_l2=None, eps_linf=None, step="eps/5", fresh=False, **typed)
    chosen = asked.subject(subject, which)
    eps = chosen.eps if asked.eps is None else asked.eps
    if not eps:
        raise OptionError("An audit needs a radius above 0; give --eps E.")
    refuse_gray_levels(eps, chosen.norm)
    found = _audit(chosen, asked, eps, transfer)
    if as_json:
        print_json(found)
    else:
        show(found)
    _keep(found)
    if all(check["alarm"] is None for check in found["checks"]):
        raise GateMissed(f"No check could be run, so nothing is known of this net. {found['checks'][0]['sentence']}")
    if found["alarms"]:
        names = ", ".join(found["alarms"])
        raise GateMissed(f"The accuracies under attack can not be believed as they are: {names}; see docs/audit.md.")
    return 0


def _audit(subject: Subject, asked: Asked, eps: float, transfer: str | None) -> dict[str, Any]:
    """The result, which is kept in the run's folder."""

    from ..data.base import choice
    from ..evaluation.attacks import parse_attack
    from ..evaluation.audit import RULES, audit
    from ..studies.transfer import refuse_itself
    from ..studies.verdict_store import versions
    from .display import bar

    other = None
    if transfer is not None:
        other = parse_attack(f"transfer:{transfer}", root=asked.given["data.root"])
        refuse_itself(other, subject.identity())
    dataset = subject.images(asked.split, asked.count)
    with bar(len(RULES), "auditing") as advance:
        found = audit(
            subject.model,
            dataset,
            eps=eps,
            norm=subject.norm,
            seed=asked.seed,
            transfer=other,
            batch_size=asked.batch_size,
            tick=advance,
        )
    n = len(dataset)
    return {
        "run": subject.name,
        **subject.record,
        "split": asked.split,
        "n": n,
        "images": choice(n, len(subject.images(asked.split))),
        "norm": subject.norm,
        "eps": eps,
        "seed": asked.seed,
        "passes": {"forward": found.forwards / n, "input_backward": found.backwards / n},
        "checks": [check.as_dict() for check in found.checks],
        "alarms": found.alarms,
        "versions": versions(),
    }


def _keep(found: dict[str, Any]) -> None:
    """RUN/audit.json, after everything has been shown: what was measured is not lost to a folder that is read-only."""
    import json

    from ..storage.files import write_atomic
    from .display import say

    if not Path(found["run"]).is_dir():
        return
    try:
        write_atomic(Path(found["run"]) / "audit.json", (json.dumps(found, indent=1, allow_nan=False) + "\n").encode())
    except (OSError, AdvkitError) as error:
        say(f"The audit is not kept: {error}")


def show(found: dict[str, Any]) -> None:
    """For people: a line a check."""
    from rich.table import Table
    from rich.text import Text

    from .display import stdout

    console = stdout()
    where = f"checkpoint {found['checkpoint']}, " if found["checkpoint"] else ""
    console.print(
        Text(
            f"{found['run']}  {where}{found['split']} split, {found['images']}, {found['norm']}, eps {found['eps']:.4g}"
        )
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, justify in (("", "left"), ("check", "left"), ("figure", "right"), ("alarm above", "right")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("")
    for check in found["checks"]:
        sign = {True: Text("ALARM", style="bold red"), False: Text("ok"), None: Text("-")}[check["alarm"]]
        figure = "" if check["figure"] is None else f"{check['figure']:.3g}"
        table.add_row(sign, check["name"], figure, f"{check['threshold']:g}", Text(check["sentence"]))
    console.print(table)
    passes = sum(found["passes"].values())
    alarms = ", ".join(found["alarms"]) or "none"
    ran = sum(check["alarm"] is not None for check in found["checks"])
    console.print(Text(f"Alarms: {alarms}, of {ran} checks that ran. {passes:.0f} passes an image."))
