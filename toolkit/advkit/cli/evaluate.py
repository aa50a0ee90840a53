"""`advkit evaluate`: accuracies of a net under attack, with intervals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import registry
from ..errors import GateMissed, OptionError
from .main import assignments, names, parse_value, print_json

if TYPE_CHECKING:
    from ..evaluation.results import Verdicts
    from ..studies.subject import Subject

ATTACKS = f"{', '.join(registry.spellings())}."


def evaluation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What `evaluate` and `compare` share."""
    for option in reversed(
        (
            click.option("--attacks", default="clean,pgd-20,cw-20", show_default=True, metavar="A,B", help=ATTACKS),
            click.option("--eps", metavar="E", help="Perturbation budget; the run's by default."),
            click.option("--eps-l2", metavar="E", help="That of attacks that end in -l2, where the run's is linf."),
            click.option("--eps-linf", metavar="E", help="That of linf attacks, where the run's is l2."),
            click.option(
                "--step", default="eps/5", show_default=True, metavar="S", help="Step of PGD: eps/N or SHARE eps."
            ),
            click.option(
                "--n", "count", default="1000", show_default=True, metavar="N", help="N images at random; 0: all."
            ),
            click.option("--split", default="test", show_default=True, type=click.Choice(["test", "train"])),
            click.option("--seed", default="0", show_default=True, metavar="N", help="Of random starts and searches."),
            click.option("--batch-size", default="100", show_default=True, metavar="B", help="Images at once."),
            click.option("--fresh", is_flag=True, help="Forget the verdicts that are known; ask all again."),
            click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        )
    ):
        command = option(command)
    return command


@click.command("evaluate")
@click.argument("subject", metavar="RUN|WEIGHTS")
@evaluation_options
@click.option("--checkpoint", "which", default="best", show_default=True, type=click.Choice(["best", "last"]))
@click.option("--min-robust", metavar="SHARE", help="Exit with 3 where the worst case is below.")
@click.option("--out", metavar="DIR", help="For the verdicts; RUN/evaluations, for WEIGHTS runs/evaluations.")
@click.option("--model", metavar="NAME", help="WEIGHTS: the model they fit.")
@click.option("--dataset", metavar="NAME", help="WEIGHTS: the data set to judge on.")
@click.option("--data-root", metavar="DIR", help="Folder or zip of the data; the run's by default.")
@click.option("--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="WEIGHTS: such as model.width=16.")
def command(subject: str, which: str, min_robust: str | None, out: str | None, as_json: bool, **typed: Any) -> int:
    """Evaluate the run in the folder RUN, or a file of WEIGHTS (.safetensors, or a state dict of torch.save).

    \b
    advkit evaluate runs/lsiw-1 --attacks clean,pgd-20,cw-20,apgd-t,square --n 200
    advkit evaluate net.safetensors --model small-cnn --dataset digits --eps 0.15

    Every verdict is kept at once: killed and started again, an evaluation goes on where it was. An image that is
    misclassified as it is counts as broken under every attack. Attacks start from the image itself.
    """
    gate = None if min_robust is None else number("--min-robust", min_robust)
    if gate is not None and not gate <= 1:
        raise OptionError(f"--min-robust {min_robust} must be a share from 0 to 1, such as 0.45.")
    asked = Asked(**typed)
    chosen = asked.subject(subject, which)
    if gate is not None and not any(
        each.name != "clean" and each.norm in (None, chosen.norm) for each in asked.attacks
    ):
        raise OptionError(f"--min-robust needs an attack in {chosen.norm}; add one to --attacks, such as pgd-20,cw-20.")
    found, _ = asked.evaluate(chosen, Path(out) if out else None)
    if as_json:
        print_json(found)
    else:
        show(found)
    if gate is not None and found["worst_case"]["accuracy"] < gate:
        share = found["worst_case"]["accuracy"]
        raise GateMissed(f"The robust accuracy {share:.3f} is below --min-robust {gate:g}.")
    return 0


class Asked:
    """An evaluation as it was typed, checked before anything is loaded."""

    def __init__(
        self,
        attacks: str,
        eps: str | None,
        eps_l2: str | None,
        eps_linf: str | None,
        step: str,
        count: str,
        split: str,
        seed: str,
        fresh: bool,
        batch_size: str = "100",
        model: str | None = None,
        dataset: str | None = None,
        data_root: str | None = None,
        settings: tuple[str, ...] = (),
    ) -> None:
        from ..evaluation.attacks import parse_attacks

        self.eps = number("--eps", eps)
        typed = {norm: number(f"--eps-{norm}", text) for norm, text in (("l2", eps_l2), ("linf", eps_linf))}
        self.by_norm = {norm: value for norm, value in typed.items() if value is not None}
        self.attacks = parse_attacks(names(attacks) or (), pace(step), data_root)
        self.count, self.split, self.seed, self.fresh = whole("--n", count), split, whole("--seed", seed), fresh
        self.batch_size = whole("--batch-size", batch_size) or None
        self.given = {"model.name": model, "data.name": dataset, "data.root": data_root}
        self.settings = settings

    def subject(self, text: str, which: str) -> Subject:
        """The run or the weights that were named."""
        from ..config.layer import Layer
        from ..config.resolve import resolve
        from ..studies.subject import of_run, of_weights

        path = Path(text)
        given = {key: value for key, value in self.given.items() if value is not None}
        if path.is_dir() or not path.suffix:
            if set(given) - {"data.root"} or self.settings:
                raise OptionError(
                    f"{text} is a run: its own model and data are used; leave --model, --dataset and --set."
                )
            return of_run(path, which, given.get("data.root"))
        if not {"model.name", "data.name"} <= set(given):
            raise OptionError(f"{text} is a file of weights; say which net and data: --model NAME --dataset NAME.")
        typed = {**assignments(self.settings, "--set", "--set section.key=value"), **given}
        if self.eps is not None:
            typed.setdefault("attack.eps", self.eps)
        return of_weights(path, resolve((), [Layer("command line", typed, {})]))

    def evaluate(self, subject: Subject, base: Path | None = None) -> tuple[dict[str, Any], dict[str, Verdicts]]:
        """The result, which is kept on disk too, and the verdicts by attack."""
        from ..data.base import choice
        from ..evaluation.audit.brief import judged, measured
        from ..evaluation.results import summary
        from ..evaluation.verdicts import budgets, verdicts
        from ..studies.transfer import refuse_itself
        from ..studies.verdict_store import Store, columns, folder_of, identity, merged, robustbench, versions
        from .display import AtOnce, bar

        for attack in self.attacks:
            refuse_itself(attack, subject.identity())
        norm = subject.norm
        eps = subject.eps if self.eps is None else self.eps
        if norm in self.by_norm:
            raise OptionError(f"{subject.name} is judged in {norm}, whose eps is --eps; leave --eps-{norm} out.")
        radii = {norm: eps} | self.by_norm
        budgets(self.attacks, radii, norm, 1)  # refused before anything is written
        dataset = subject.images(self.split, self.count)
        known = identity(subject, self.split, eps, self.seed, self.count)
        home = Path(subject.name) / "evaluations" if Path(subject.name).is_dir() else Path("runs/evaluations")
        folder = folder_of(base or home, subject, known)
        again = "the same command again, without --fresh," if self.fresh else "the same command again"
        stopped = f"Stopped; the verdicts so far are in {folder}. Give {again} to go on."
        with Store(folder, known, self.fresh) as kept:
            with AtOnce(stopped), bar(len(dataset) * len(self.attacks), "evaluating") as tick:
                found = verdicts(
                    subject.model,
                    dataset,
                    self.attacks,
                    eps=radii,
                    norm=norm,
                    seed=self.seed,
                    kept=kept,
                    batch_size=self.batch_size,
                    tick=tick,
                )
            head = {
                "run": subject.name,
                "dataset": subject.resolved.data.name,
                "model": subject.resolved.model_name,
                **subject.record,
                "split": self.split,
                "n": len(dataset),
                "images": choice(len(dataset), len(subject.images(self.split))),
                "norm": norm,
                "eps": eps,
                "seed": self.seed,
                "versions": versions(),
            }
            result = head | summary(list(found.values()), norm)
            every = merged(found.values(), kept.complete(len(dataset)))
            stored = head | summary(every, norm)
            size = self.batch_size
            asked = (
                measured(subject.model, dataset, eps=eps, norm=norm, seed=self.seed, batch_size=size) if eps else None
            )
            for part, judges in ((result, found.values()), (stored, every)):
                part["robustbench"] = robustbench(subject, part)
                checks = [] if asked is None else judged(asked, judges, norm)
                part["audit"] = [check.as_dict() for check in checks]
            for place, column in enumerate(columns(every)):
                for rows in (stored["attacks"], result["attacks"]):
                    if place < len(rows):
                        rows[place]["column"] = column
            kept.finish(stored, dataset, every)
        return result | {"folder": str(kept.results(len(dataset)))}, found


def show(found: dict[str, Any]) -> None:
    """For people."""
    from rich.table import Table
    from rich.text import Text

    from .display import stdout

    console = stdout()
    where = f"checkpoint {found['checkpoint']} (epoch {found['epoch'] + 1}), " if found["checkpoint"] else ""
    console.print(Text(f"{found['run']}  {where}{found['split']} split, {found['images']}, {found['norm']}"))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, justify in (
        ("attack", "left"),
        ("eps", "right"),
        ("step", "right"),
        ("accuracy", "right"),
        ("95 % interval", "left"),
        ("passes an image", "right"),
        ("s", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in found["attacks"]:
        passes = sum(row["passes"].values())
        eps = "" if row["eps"] is None else f"{row['eps']:.4g}" + (" l2" if row["norm"] != found["norm"] else "")
        step = f"{row['step_size']:.4g}" if "step_size" in row else ""
        table.add_row(*_cells(row["name"], eps, step, row), f"{passes:.0f}", f"{row['seconds']:.1f}")
    for norm, row in found.get("worst_case_by_norm", {found["norm"]: found["worst_case"]}).items():
        label = "worst case" if norm == found["norm"] else f"worst case {norm}"
        if row is not None:
            table.add_row(*_cells(label, "", "", row), "", "")
    console.print(table)
    for row in found["attacks"]:
        for note in row.get("notes", ()):
            console.print(Text(f"{row['name']}: {note}", style="yellow"))
    if found["selected_on"] == "test":
        console.print("The checkpoint was chosen on the test split: these figures are optimistic.", style="yellow")
    alarms = [check for check in found["audit"] if check["alarm"]]
    for check in alarms:
        console.print(Text(f"Suspect, {check['name']}: {check['sentence']}", style="yellow"))
    ran = sum(check["alarm"] is not None for check in found["audit"])
    if alarms:
        console.print(Text(f"The accuracies may be too high; see `advkit audit {found['run']}`.", style="yellow"))
    elif ran:
        console.print(Text(f"Audit in short: {ran} checks, no alarm. `advkit audit` runs all.", style="dim"))
    console.print(Text(f"Verdicts: {found['folder']}", style="dim"))


def _cells(name: str, eps: str, step: str, row: dict[str, Any]) -> tuple[str, ...]:
    low, high = row["interval"]
    return name, eps, step, f"{row['accuracy']:.3f}", f"{low:.3f} to {high:.3f}"


def number(flag: str, text: str | None) -> float | None:
    """A finite number >= 0; None where nothing was typed."""
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


def pace(text: str) -> float:
    """A step as a share of eps: `eps/5`, `0.2 eps` or `eps`."""
    from math import isfinite

    plain = text.replace(" ", "")
    try:
        if plain.startswith("eps/"):
            value = 1 / float(plain.removeprefix("eps/"))
        else:
            value = float(plain.removesuffix("eps") or "1") if plain.endswith("eps") else -1.0
    except (ValueError, ZeroDivisionError):
        value = -1.0
    if not isfinite(value) or value <= 0:
        raise OptionError(f"--step {text} must be a share of eps, such as eps/5 or 0.2 eps.")
    return value


def whole(flag: str, text: str) -> int:
    """A count; 0 means all."""
    value = parse_value(text)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise OptionError(f"{flag} {text} must be a whole number >= 0.")
    return value
