"""What a person sees: data on stdout, progress on stderr; live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType, RenderResult
from rich.live import Live
from rich.measure import measure_renderables
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from ..errors import Stopped
from ..escapes import escaped
from ..stopping import Signals
from .streams import data_stream

if TYPE_CHECKING:
    from ..training.loop import Trainer
    from ..training.step_report import Report

__all__ = [
    "Plain",
    "Quiet",
    "Rich",
    "Signals",
    "bar",
    "progress",
    "say",
    "stderr",
    "stdout",
    "table_of",
    "text",
]

SHOWN = 12
"""Epochs shown of a run that goes on; metrics.jsonl has all."""
GAP, LONGEST = 2, 20
"""Characters between the columns of a table, and of a word that is not broken in those whose lines may break."""


class _Printed(Console):
    """Shows terminal escapes, wherever they come from, instead of sending them."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            plain = segment.control or segment.text.isprintable()
            yield segment if plain else Segment(escaped(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # for `run`; rich would exit with 1, but a reader that goes away is no failure


def stdout() -> Console:
    """For results."""
    file = data_stream()
    return _Printed(file=file, width=None if file.isatty() else 160, soft_wrap=not file.isatty())


def stderr() -> Console:
    """For progress and warnings."""
    return _Printed(stderr=True, width=None if sys.stderr.isatty() else 160, soft_wrap=not sys.stderr.isatty())


def text(content: object, style: str = "") -> Text:
    """Plain text: no markup, no escapes."""
    return Text(escaped(str(content)), style=style)


class _Rows(Table):
    """Cells that are strings are text, never markup. Nothing is cut: rows that have no room are a list."""

    def add_row(self, *cells: RenderableType | None, **how: Any) -> None:
        super().add_row(*(text(cell) if isinstance(cell, str) else cell for cell in cells), **how)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        need = sum(self._least(console, column) for column in self.columns) + GAP * (len(self.columns) - 1)
        if console.soft_wrap:  # no terminal: nobody cuts
            options = options.update(width=max(need, options.max_width))
        if need <= options.max_width:
            yield from super().__rich_console__(console, options)
            return
        heads = [str(column.header) if self.show_header else "" for column in self.columns]
        for cells in zip(*(column.cells for column in self.columns), strict=True):
            said = [
                Text(f"{head} " if number and head else "").append_text(cell if isinstance(cell, Text) else text(cell))
                for number, (head, cell) in enumerate(zip(heads, cells, strict=True))
                if str(cell)
            ]
            yield from console.render(Text(", ").join(said), options)

    def _least(self, console: Console, column: Column) -> int:
        """The width in which no line of a column is cut; where lines may break, none of its words."""
        shown = [column.header] * self.show_header + [*column.cells]
        found = measure_renderables(console, console.options.update(width=1 << 16), shown)
        return found.maximum if column.no_wrap else found.minimum if console.soft_wrap else min(found.minimum, LONGEST)


def table_of(*heads: str, wrap: Sequence[str] = (), header: bool = True) -> Table:
    """A table with these columns; a head that starts with ">" is of numbers, those in `wrap` may break lines."""
    table = _Rows(box=None, pad_edge=False, header_style="bold", show_header=header)
    for head in heads:
        justify: JustifyMethod = "right" if head.startswith(">") else "left"
        name = head.removeprefix(">")
        table.add_column(text(name), justify=justify, no_wrap=name not in wrap, overflow="fold")
    return table


def say(sentence: str) -> None:
    """A line of progress."""
    stderr().print(text(sentence))


@contextmanager
def bar() -> Iterator[Callable[[int, int, str], None]]:
    """A bar on stderr if that is a terminal, else a line every ten seconds; yields what is told of the progress."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(12), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr(), transient=True) as shown:
        task = shown.add_task("", total=None)
        yield lambda done, total, what: shown.update(task, completed=done, total=total, description=escaped(what))


def _lines() -> Callable[[int, int, str], None]:
    said, last = time.monotonic(), ""

    def told(done: int, total: int, what: str) -> None:
        nonlocal said, last
        line = f"{what}: {done} of {total}"
        if time.monotonic() - said > 10 and line != last:  # a part of AutoAttack may take minutes
            said, last = time.monotonic(), line
            say(line)

    return told


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
        _say_validation(trainer)

    def finished_epoch(self, row: Mapping[str, Any]) -> None:
        cells = " ".join(f"{name} {value}" for name, value in _cells(row).items() if value)
        say(f"epoch {row['epoch'] + 1}/{self.epochs} {cells}")


class Rich(Quiet):
    """A line for every finished epoch, which stays; below them a bar over the run and one over the current epoch."""

    def __init__(self, signals: Signals) -> None:
        super().__init__(signals)
        self.console = stderr()
        self.lines = EpochLines()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=self.console,
        )
        self.live = Live(self.bar, console=self.console, refresh_per_second=4)
        self._drawn = 0.0

    def begin(self, trainer: Trainer) -> None:
        at, self.epochs = trainer.position, trainer.resolved.run.epochs
        self.steps = len(trainer.feed.batches(at.epoch))
        self.all = self.bar.add_task(
            "run", total=self.epochs * self.steps, completed=at.epoch * self.steps + at.step, loss=""
        )
        self.now = self.bar.add_task(self._title(at.epoch), total=self.steps, completed=at.step, loss="")
        _say_validation(trainer)
        self.live.start(refresh=True)  # at once: a short first epoch may be over before the next refresh
        for row in trainer.history[-SHOWN:]:
            self._line(row)

    def stepped(self, trainer: Trainer, report: Report) -> None:
        self.bar.advance(self.all)
        self.bar.advance(self.now)
        if time.monotonic() - self._drawn > 0.5:  # reading the loss synchronises a GPU
            self._drawn = time.monotonic()
            self.bar.update(self.now, loss=f"loss {float(report.loss):.3f}")

    def finished_epoch(self, row: Mapping[str, Any]) -> None:
        self._line(row)
        if row["epoch"] + 1 < self.epochs:
            self.bar.reset(self.now, description=self._title(row["epoch"] + 1), total=self.steps, loss="")

    def warn(self, sentence: str) -> None:
        self.console.print(text(sentence, "yellow"))

    def close(self) -> None:
        self.live.stop()

    def _title(self, epoch: int) -> str:
        return f"epoch {min(epoch + 1, self.epochs)}/{self.epochs}"

    def _line(self, row: Mapping[str, Any]) -> None:
        for line, style in self.lines.of(row):
            self.console.print(Text(line, style=style, no_wrap=True, overflow="ignore"), crop=False)


def _say_validation(trainer: Trainer) -> None:
    """Of which images the accuracies in the lines of epochs are."""
    from ..training.validation import judged_on  # which imports torch

    if split := trainer.selecting_split():
        n = len(trainer.splits.test if split == "test" else trainer.feed.validation)
        say(f"Validation: {judged_on(split, n, trainer.resolved.validation.fraction)}.")


class EpochLines:
    """Epochs as the lines of a table that grows: a header first, and again where an epoch has more columns."""

    def __init__(self) -> None:
        self.widths: dict[str, int] = {}

    def of(self, row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """The line of an epoch with its style, after a header where one is due; `*` marks the best so far."""
        cells = {"epoch": f"{row['epoch'] + 1}{'*' if row.get('best') else ' '}"} | _cells(row)
        cells = {name: cell for name, cell in cells.items() if cell}
        if not cells.keys() <= self.widths.keys():
            # The order is that of the fullest epoch; together they fit into 80 columns.
            names = list(dict.fromkeys((*cells, *self.widths)))
            least = {"lr": 6, "loss": 5, "s": 5}
            self.widths = {name: max(len(name), least.get(name, 6 if name == "radius" else 5)) for name in names}
            yield " ".join(name.rjust(width) for name, width in self.widths.items()), "bold"
        yield " ".join(cells.get(name, "").rjust(width) for name, width in self.widths.items()), ""


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


def progress(shown: str, signals: Signals) -> Quiet:
    """`auto` is live on a terminal and plain lines elsewhere."""
    if shown == "auto":
        shown = "rich" if sys.stderr.isatty() else "plain"
    return {"rich": Rich, "plain": Plain, "none": Quiet}[shown](signals)
