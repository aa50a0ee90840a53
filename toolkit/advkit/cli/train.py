"""`advkit train`: start a run, resume one, or only say what it would be."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import AdvkitError, DataError, OptionError
from ..own_file import words
from ..torchrun import several
from .main import PLACE
from .run_options import request, run_options
from .signals import duration
from .streams import data_stream

if TYPE_CHECKING:
    from ..config.request import Request
    from ..config.resolve import Resolved
    from ..training.result import TrainResult
    from ..training.tracking import Tracked


@click.command("train")
@run_options
@click.option("--out", type=PLACE, metavar="DIR", help="The run's new folder; runs/PLUGINS-N by default.")
@click.option("--resume", type=PLACE, metavar="DIR", help="Continue the run in DIR, bit for bit.")
@click.option(
    "--init-from", type=PLACE, metavar="RUN", help="Start from the best weights of a run, or from a file of weights."
)
@click.option("--partial-head", is_flag=True, help="With --init-from: leave out a last layer that does not fit.")
@click.option("--progress", type=click.Choice(["auto", "rich", "plain", "none"]), default="auto", show_default=True)
@click.option("--max-time", metavar="T", help="Stop after 90s, 30m or 2h as on SIGTERM: saved, exit code 75.")
@click.option("--check-hooks", is_flag=True, help="Check the values of every hook's answer at every step.")
@click.option("--dry-run", is_flag=True, help="Run one step, show plan, size and time; write nothing.")
@click.option("--print-config", is_flag=True, help="Print the resolved run file and stop.")
def command(
    out: str | None,
    resume: str | None,
    init_from: str | None,
    partial_head: bool,
    progress: str,
    max_time: str | None,
    check_hooks: bool,
    dry_run: bool,
    print_config: bool,
    **typed: Any,
) -> None:
    """Train a model adversarially with any combination of plugins.

    \b
    advkit train --plugins cat-eps,dirichlet-ls,lsiw
    advkit train --plugins lsiw -o 'lsiw.lam=0.1 after decay 1' --eps 0.15
    advkit train --recipe trades-mini
    advkit train --resume runs/lsiw-1
    """
    if several() and (dry_run or print_config):
        raise OptionError("--dry-run and --print-config are of one process; start them without torchrun.")
    if check_hooks:
        typed["settings"] = (*typed["settings"], "run.check_hooks=true")
    seconds = None if max_time is None else duration("--max-time", max_time)
    if resume is not None:
        if out or init_from or partial_head or dry_run or print_config:
            raise OptionError("--resume continues a run as it is; leave --out, --init-from and the others out.")
        if typed["config"] or typed["recipe"] or typed["no_companion"]:
            raise OptionError(
                "--resume takes its settings from the run; leave --config, --recipe and --no-companion out."
            )
        _resume(Path(resume), request(**typed), progress, seconds)
        return
    if partial_head and not init_from:
        raise OptionError("--partial-head is about the weights of --init-from; give both, or leave it out.")
    if dry_run and print_config:
        raise OptionError("--dry-run runs a step, and --print-config stops before; give one of the two.")
    from ..config import runfile
    from ..config.resolve import Resolved
    from .display import say

    wanted = request(**typed)
    resolved = Resolved.of(wanted)
    if dry_run or print_config:
        mode, beside = "--dry-run" if dry_run else "--print-config", {"--init-from": init_from, "--max-time": max_time}
        for flag in (flag for flag, given in beside.items() if given):
            say(f"{flag} plays no part in {mode}.")
    if print_config:
        click.echo(runfile.dump(resolved), data_stream(), nl=False)
    elif dry_run:
        _dry_run(resolved)
    else:
        _start(resolved, wanted.trackers, out, init_from, partial_head, progress, seconds)


def _start(
    resolved: Resolved,
    trackers: Sequence[str],
    out: str | None,
    init_from: str | None,
    partial_head: bool,
    shown_as: str,
    seconds: float | None,
) -> None:
    from ..storage.run_folder import fresh
    from ..training.launch import start
    from ..training.parts import on_this_machine, prepared
    from ..training.ranks import here
    from ..training.tracking import tracked
    from .display import Signals, progress

    resolved = on_this_machine(resolved, resolved.run.timeout)
    splits, model = prepared(resolved)
    ranks = here()
    shown_as = "none" if ranks.rank else shown_as
    folder = Path(out or "runs") if out or ranks.rank else fresh(Path("runs"), resolved.chosen)
    with Signals(seconds) as signals:
        shown = progress(shown_as, signals)
        try:
            _announce(resolved, shown_as)
            with tracked(shown, trackers, folder) as seen:
                result = start(
                    resolved,
                    splits,
                    model,
                    out=folder,
                    init_from=Path(init_from) if init_from else None,
                    partial_head=partial_head,
                    progress=seen,
                )
                _attach_report(seen, folder, resolved)
        finally:
            shown.close()
            if not out and not ranks.rank:
                with suppress(OSError):
                    folder.rmdir()  # if it was refused before anything was written
    _farewell(result, shown_as, resolved)


def _resume(path: Path, wanted: Request, shown_as: str, seconds: float | None) -> None:
    from ..storage.run_folder import RunFolder
    from ..training.launch import resume
    from ..training.parts import on_this_machine, prepared
    from ..training.ranks import here
    from ..training.result import finished
    from ..training.same_run import resolve_folder
    from ..training.tracking import tracked
    from .display import Signals, progress, say

    folder, typed = RunFolder.open(path), wanted.top
    resolved = resolve_folder(folder, typed)
    resolved = on_this_machine(resolved, resolved.run.timeout)
    try:
        splits, model = prepared(resolved, typed.settings.get("data.root"))
    except DataError:  # which a finished run needs no more
        if not (over := finished(folder, resolved)):
            raise
        if not here().rank:
            say(over)
        return
    shown_as = "none" if here().rank else shown_as
    with Signals(seconds) as signals:
        shown = progress(shown_as, signals)
        try:
            with tracked(shown, wanted.trackers, folder.path) as seen:
                result = resume(folder, resolved, splits, model, seen)
                _attach_report(seen, folder.path, resolved)
        finally:
            shown.close()
    _farewell(result, shown_as, resolved)


def _attach_report(seen: Tracked, folder: Path, resolved: Resolved) -> None:
    """The report as it is right after training, to the trackers of the run; a run is no failure for want of it."""
    if not seen.opened:
        return
    from ..studies.report import report

    own = {key: f"{file.path}:{file.name}" for key, file in resolved.files.items()}
    try:
        report(folder, folder / "report.html", model=own.get("model.name"), dataset=own.get("data.name"))
        seen.attach(folder / "report.html")
    except AdvkitError as error:
        seen.warn(f"No report for the trackers: {error}")


def _announce(resolved: Resolved, shown_as: str) -> None:
    """The plan in short, on stderr."""
    if shown_as == "none":
        return
    from ..training.plan import plan
    from .display import stderr
    from .plan import show_plan

    show_plan(stderr(), plan(resolved), settings=False)


def _farewell(result: TrainResult, shown_as: str, resolved: Resolved) -> None:
    if shown_as == "none":
        return
    from ..training.validation import judged_on
    from .display import stderr, text

    console, best = stderr(), result.best
    if best and best["selected"] is not None:
        rows = [row["validation"] for row in result.history if row["epoch"] == best["epoch"]]
        which = f"the {best['split']} split"  # the line of a resumed run may be lost
        if rows and rows[0]:
            which = judged_on(best["split"], rows[0]["n"], resolved.validation.fraction)
        note = " (chosen on the test split: test figures are optimistic)" if best["split"] == "test" else ""
        console.print(text(f"Best epoch {best['epoch'] + 1}: {best['selected']:.3f} under attack, of {which}{note}."))
    judged = shlex.join(["advkit", "evaluate", str(result.folder), *words(resolved.files)])
    console.print(text(f"Run folder: {result.folder}\nNext: {judged}"))


def _dry_run(resolved: Resolved) -> None:
    """One step, and what follows from it."""
    from ..training.loop import Trainer
    from ..training.parts import on_this_machine, prepared
    from ..training.plan import plan
    from .display import stdout, text
    from .plan import show_plan

    resolved = on_this_machine(resolved)
    trainer = Trainer(resolved, *prepared(resolved))
    batches = trainer.feed.batches(0)
    trainer.one_step(batches[0])  # the first pays for allocations
    began = time.perf_counter()
    trainer.one_step(batches[0])
    seconds = time.perf_counter() - began
    console = stdout()
    show_plan(console, plan(resolved))
    count = sum(p.numel() for p in trainer.model.parameters())
    total = seconds * len(batches) * resolved.run.epochs
    compiling = trainer.step.engine.compile_seconds
    compiled = "" if compiling is None else f" after {compiling:.0f} s of compiling"
    console.print(
        text(
            f"\n{count:,} parameters; {len(trainer.feed.training):,} images to train on, "
            f"{len(trainer.feed.validation):,} to validate"
            f"\n{1000 * seconds:.0f} ms a step, {len(batches)} steps an epoch: about {total / 60:.1f} min for "
            f"{resolved.run.epochs} epochs without validation{compiled}; nothing was written"
        )
    )
