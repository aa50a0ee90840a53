"""What a person sees: data on stdout, progress on stderr; live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..errors import Interrupted, Stopped

if TYPE_CHECKING:
    from ..training.loop import Trainer
    from ..training.step_report import Report

SHOWN = 12
"""Epochs in the live table; metrics.jsonl has all."""


class _Results(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # for `run`; rich would exit with 1, but a reader that goes away is no failure


def stdout() -> Console:
    """For results."""
    return _Results(width=None if sys.stdout.isatty() else 160, soft_wrap=not sys.stdout.isatty())


class _Progress(Console):
    def on_broken_pipe(self) -> None:
        """Nobody watches any more, which is no reason to end a run."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def stderr() -> Console:
    """For progress and warnings."""
    return _Progress(stderr=True, width=None if sys.stderr.isatty() else 160, soft_wrap=not sys.stderr.isatty())


def say(sentence: str) -> None:
    """A line of progress."""
    stderr().print(Text(sentence))


@contextmanager
def bar(total: int, label: str) -> Iterator[Callable[[int], None]]:
    """A bar on stderr if that is a terminal, else a line every ten seconds; yields the function to advance it."""
    if not sys.stderr.isatty():
        yield _lines(total, label)
        return
    with Progress(
        TextColumn(label),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=stderr(),
        transient=True,
    ) as progress:
        task = progress.add_task(label, total=total)
        yield lambda done: progress.advance(task, done)


def _lines(total: int, label: str) -> Callable[[int], None]:
    count, said = 0, time.monotonic()

    def advance(done: int) -> None:
        nonlocal count, said
        count += done
        if time.monotonic() - said > 10:
            said = time.monotonic()
            say(f"{label}: {count} of {total}")

    return advance


class Signals:
    """The first SIGINT or SIGTERM stops a run after its step, with a checkpoint; the second stops it at once."""

    def __init__(self) -> None:
        self.requested: type[Stopped] | None = None

    def __enter__(self) -> Signals:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            raise KeyboardInterrupt
        self.requested = Interrupted if number == signal.SIGINT else Stopped


class AtOnce(Signals):
    """For work that is kept as it goes: the first signal stops it where it is, with `sentence`."""

    def __init__(self, sentence: str) -> None:
        super().__init__()
        self.sentence = sentence

    def _note(self, number: int, frame: FrameType | None) -> None:
        raise (Interrupted if number == signal.SIGINT else Stopped)(self.sentence)


class Quiet:
    """Shows nothing but warnings; stops on signals."""

    def __init__(self, signals: Signals) -> None:
        self.signals = signals

    def begin(self, trainer: Trainer) -> None: ...
    def stepped(self, trainer: Trainer, report: Report) -> None: ...
    def finished_epoch(self, row: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...

    def warn(self, sentence: str) -> None:
        say(sentence)

    def stop_requested(self) -> type[Stopped] | None:
        return self.signals.requested


class Plain(Quiet):
    """One line an epoch."""

    def begin(self, trainer: Trainer) -> None:
        self.epochs = trainer.resolved.run.epochs

    def finished_epoch(self, row: Mapping[str, Any]) -> None:
        cells = " ".join(f"{name} {value}" for name, value in _cells(row).items() if value)
        say(f"epoch {row['epoch'] + 1}/{self.epochs} {cells}")


class Rich(Quiet):
    """A live table of the last epochs above a bar over the current one."""

    def __init__(self, signals: Signals) -> None:
        super().__init__(signals)
        self.console = stderr()
        self.rows: list[Mapping[str, Any]] = []
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=self.console,
        )
        self.live = Live(console=self.console, refresh_per_second=4, get_renderable=self._render)
        self._drawn = 0.0

    def begin(self, trainer: Trainer) -> None:
        at, self.epochs = trainer.position, trainer.resolved.run.epochs
        self.rows = list(trainer.history)
        self.steps = len(trainer.feed.batches(at.epoch))
        self.all = self.bar.add_task(
            "run", total=self.epochs * self.steps, completed=at.epoch * self.steps + at.step, loss=""
        )
        self.now = self.bar.add_task(self._title(at.epoch), total=self.steps, completed=at.step, loss="")
        self.live.start(refresh=True)  # at once: a short first epoch may be over before the next refresh

    def stepped(self, trainer: Trainer, report: Report) -> None:
        self.bar.advance(self.all)
        self.bar.advance(self.now)
        if time.monotonic() - self._drawn > 0.5:  # reading the loss synchronises a GPU
            self._drawn = time.monotonic()
            self.bar.update(self.now, loss=f"loss {float(report.loss):.3f}")

    def finished_epoch(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)
        if row["epoch"] + 1 < self.epochs:
            self.bar.reset(self.now, description=self._title(row["epoch"] + 1), total=self.steps, loss="")

    def warn(self, sentence: str) -> None:
        self.console.print(Text(sentence, style="yellow"))

    def close(self) -> None:
        self.live.stop()

    def _title(self, epoch: int) -> str:
        return f"epoch {min(epoch + 1, self.epochs)}/{self.epochs}"

    def _render(self) -> Group:
        return Group(epoch_table(self.rows[-SHOWN:]), self.bar)


def epoch_table(rows: list[Mapping[str, Any]]) -> Table:
    """The epochs' figures; `*` marks the best so far."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")  # fits into 80 columns
    table.add_column("epoch", justify="right")
    for row in rows:
        for name, value in _cells(row).items():
            if value and name not in [column.header for column in table.columns]:
                table.add_column(name, justify="right")
    for row in rows:
        cells = _cells(row)
        best = "*" if row.get("best") else " "
        table.add_row(f"{row['epoch'] + 1}{best}", *(cells.get(str(column.header), "") for column in table.columns[1:]))
    return table


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    """An epoch's figures as short texts, in the order shown."""

    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    cells = {
        "lr": f"{row['lr']:.3g}",
        "loss": f"{row['loss']:.3f}",
        "train-adv": share(row["train_adversarial_accuracy"]),
        "success": share(row["attack_success"]),
        "radius": f"{row['mean_radius']:.4f}",
    }
    for name, value in (row["validation"] or {}).items():
        if isinstance(value, float) and name != "selected":
            cells[f"val-{name}"] = share(value)
    return cells | {"s": f"{row['seconds']['wall']:.1f}"}


def progress(kind: str, signals: Signals) -> Quiet:
    """`auto` is live on a terminal and plain lines elsewhere."""
    if kind == "auto":
        kind = "rich" if sys.stderr.isatty() else "plain"
    return {"rich": Rich, "plain": Plain, "none": Quiet}[kind](signals)
