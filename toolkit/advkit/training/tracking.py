"""Trackers: other people's tools that a run's figures go to. They see what `Progress` sees, and change no bit.

A tracker is no plugin, though it is named among them: it answers no hook, is in no composition, no run.toml and no
comparison. RUN/tracking.json says which trackers a run has and what they call it, for a resume to go on there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .. import registry
from ..errors import AdvkitError, CheckpointError, OptionError, PluginImport, PluginLoad, Stopped, called, says, shown
from ..global_state import undone
from ..storage.files import read, there, write_atomic
from .progress import Aloud, Progress
from .step_report import Report

if TYPE_CHECKING:
    from .loop import Trainer

EVERY = 50
"""Steps whose figures go to the trackers at once: reading them synchronises a GPU."""

FILE, CAP = "tracking.json", 1 << 16
TABLES = ("run.toml", "environment.json", "metrics.jsonl")
"""What of a run's folder is attached at the end, beside the report."""


class Tracker:
    """Base of all trackers. The first line of a subclass's docstring is its summary.

    Whatever a method raises is told, and the run goes on without the tracker. What __init__ raises, or `begin` of a
    run that the tracker does not know yet, ends the run. What one leaves of the process otherwise than it was, such as
    threads or the working folder, is put back and told.
    """

    name: ClassVar[str]
    """Equal to the entry point's name, in the group `advkit.trackers`."""

    def begin(self, folder: Path, settings: Mapping[str, object], known_as: str | None, step: int) -> str:
        """Begin, or go on as `known_as` after `step` steps; what the tracker calls the run from now on.

        `folder` is the run's; `settings` are all that are in force, {"attack.eps": 0.03, "plugins": "awp,lsiw"}.
        """
        raise NotImplementedError

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures after so many steps of the run. After a crash steps may come again, with the same values."""
        raise NotImplementedError

    def attach(self, path: Path) -> None:
        """A file of the run, to be kept with it."""

    def close(self, finished: bool) -> None:
        """Nothing more comes; not `finished` where the run has failed or was stopped."""


def library(module: str, package: str, tracker: str) -> Any:
    """The imported module; PluginImport says how to install its package for the tracker."""
    try:
        return import_module(module)
    except ImportError as error:
        raise PluginImport(
            f"The tracker {tracker} needs {package} ({error}); install it with `pip install 'advkit[track]'`, or leave "
            f"{tracker} out."
        ) from None


@contextmanager
def tracked(shown_by: Progress | None, names: Sequence[str], folder: Path | None) -> Iterator[Tracked]:
    """A `Progress` that shows by another and logs to the trackers of these names, and to those a run has already.

    The trackers are closed at the end of the scope. One that can not be made, as without its library, is refused where
    it is named, and told where the run has it. Raises OptionError where trackers are named and there is no folder.
    """
    if names and folder is None:
        raise OptionError(f"{names[0]} keeps what it calls a run in the run's folder; name one, out=...")
    seen = Tracked(Aloud() if shown_by is None else shown_by, {} if folder is None else _known(folder / FILE))
    for name in dict.fromkeys((*names, *seen.identities)):
        try:
            seen.trackers.append(_made(name, seen))
        except PluginLoad as error:
            if name in names:
                raise
            seen.warn(f"The run goes on without {name}. {error}")
    finished = False
    try:
        yield seen
        finished = True
    finally:
        seen.close(finished)


def _made(name: str, seen: Tracked) -> Tracker:
    """The tracker of a name; PluginLoad where there is none, PluginImport where it or its library fails."""
    with seen.scope(name):
        made = registry.load("tracker", name)
        try:
            return made()  # type: ignore[no-any-return]
        except (PluginLoad, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise PluginImport(f"The tracker {name} can not start ({_told(error)}); leave it out.") from error


def _known(path: Path) -> dict[str, str]:
    """What trackers call the run of a folder, {} where it has none."""
    if not there(path):
        return {}
    try:
        stored = json.loads(read(path, CAP))
    except (ValueError, RecursionError):
        stored = None
    if not isinstance(stored, dict) or not all(isinstance(value, str) for value in stored.values()):
        raise CheckpointError(f"{path} is damaged; restore it, or remove it to go on without trackers.")
    return stored


class Tracked:
    """Passes a run on to who shows it, and its figures to trackers, by the first of several processes."""

    def __init__(self, shown_by: Progress, identities: dict[str, str]) -> None:
        self.shown_by, self.identities = shown_by, identities
        self.trackers: list[Tracker] = []
        self.opened: list[Tracker] = []
        """Those that log now."""
        self._steps: list[tuple[int, dict[str, Tensor]]] = []
        self._trainer: Trainer | None = None
        self._moved = set[str]()
        """Those of which is said that they have changed something of the process."""

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """A scope for the code of a tracker, after which the process is as it was; what is put back is told once."""

        def told(what: Sequence[str]) -> None:
            if name not in self._moved:
                self._moved.add(name)
                self.warn(
                    f"The tracker {name} changed {', '.join(what)}, for the whole process; that was put back, "
                    "since a tracker must not change the run."
                )

        with undone(told):
            yield

    def begin(self, trainer: Trainer) -> None:
        self.shown_by.begin(trainer)
        if not self.trackers or trainer.folder is None:
            return
        self._trainer, folder, run = trainer, trainer.folder.path, trainer.resolved
        settings = {**run.values(), "plugins": ",".join(plugin.name for plugin in run.composition.plugins)}
        for tracker in self.trackers:
            known_as = self.identities.get(tracker.name)
            try:
                with self.scope(tracker.name):
                    name = _begun(tracker, folder, dict(settings), known_as, trainer.global_step)
            except AdvkitError as refused:
                if known_as is None:
                    again = called("train", ["--resume", str(folder)])
                    raise type(refused)(f"{refused}; leave it out, as `{again}` does.") from refused.__cause__
                self.warn(f"{refused}; the run goes on without it.")  # FILE names it, so it can not be left out
                continue
            self.opened.append(tracker)
            self.identities[tracker.name] = name
            write_atomic(folder / FILE, json.dumps(self.identities, indent=1).encode() + b"\n")
        if trainer.history:  # a kill may have come between the end of its epoch and this line
            ended = trainer.global_step - trainer.panel.state.step
            self._all(lambda tracker: tracker.log(ended, of_epoch(trainer.history[-1])))

    def stepped(self, trainer: Trainer, report: Report) -> None:
        self.shown_by.stepped(trainer, report)
        if self.opened:
            self._steps.append((trainer.global_step, of_step(report)))
            saved = trainer.global_step % trainer.resolved.checkpoint.every_steps == 0
            if saved or len(self._steps) >= EVERY:  # steps before a checkpoint are not run again
                self._flush()

    def finished_epoch(self, row: Mapping[str, Any]) -> None:
        self.shown_by.finished_epoch(row)
        if self._trainer is not None:
            self._flush()
            step = self._trainer.global_step
            self._all(lambda tracker: tracker.log(step, of_epoch(row)))

    def warn(self, sentence: str) -> None:
        self.shown_by.warn(sentence)

    def stop_requested(self) -> type[Stopped] | None:
        return self.shown_by.stop_requested()

    def attach(self, path: Path) -> None:
        """Give the trackers a file of the run."""
        self._all(lambda tracker: tracker.attach(path))

    def close(self, finished: bool) -> None:
        """The last figures, the run's tables, and the end."""
        self._flush()
        folder = self._trainer.folder if self._trainer else None
        for path in (folder.path / name for name in TABLES) if folder else ():
            if path.is_file():
                self.attach(path)
        self._all(lambda tracker: tracker.close(finished))
        self.opened.clear()

    def _flush(self) -> None:
        """All figures of the steps that wait, read from the device at once."""
        waiting, self._steps = self._steps, []
        values = [value for _, figures in waiting for value in figures.values()]
        if not self.opened or not values:
            return
        numbers = iter(torch.stack([value.double() for value in values]).tolist())
        logs = [(step, {name: next(numbers) for name in figures}) for step, figures in waiting]

        def log(tracker: Tracker) -> None:
            for step, figures in logs:
                tracker.log(step, dict(figures))  # its own, or it could change what the next one sees

        self._all(log)

    def _all(self, action: Callable[[Tracker], None]) -> None:
        """Do it with each; one that fails is told of and left out, for a run is worth more than its log."""
        for tracker in tuple(self.opened):
            try:
                with self.scope(tracker.name):
                    action(tracker)
            except KeyboardInterrupt:  # the user's
                raise
            except BaseException as error:  # some libraries leave the process
                self.opened.remove(tracker)
                self.warn(f"The tracker {tracker.name} failed ({_told(error)}); the run goes on without it.")


def _begun(tracker: Tracker, folder: Path, settings: Mapping[str, object], known_as: str | None, step: int) -> str:
    """What it calls the run; PluginImport, or AdvkitError for no text, with the beginning of a sentence."""
    try:
        name: object = tracker.begin(folder, settings, known_as, step)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise PluginImport(f"The tracker {tracker.name} can not start ({_told(error)})") from error
    if isinstance(name, str):
        return name
    with suppress(Exception, SystemExit):
        tracker.close(False)
    raise AdvkitError(f"The tracker {tracker.name} can not start (its begin gave {shown(name)}, which is no text)")


def _told(error: BaseException) -> str:
    if isinstance(error, AdvkitError):
        return str(error).removesuffix(".")
    return f"{type(error).__name__}: {shown(next(iter(says(error).splitlines()), ''))}"


def of_step(report: Report) -> dict[str, Tensor]:
    """A step's figures by name, () each and on the device; shares and means over the batch."""
    sums = {
        "adversarial_accuracy": report.adv_correct,
        "clean_accuracy": report.clean_correct,
        "attack_success": report.success,
        "mean_radius": report.radius,
    }
    terms = {f"term/{name}": value for name, value in report.weighted.items()}
    means = {name: value / report.count for name, value in (sums | terms).items() if value is not None}
    return {f"step/{name}": value.detach() for name, value in {"loss": report.loss, **means}.items()}


def of_epoch(row: Mapping[str, Any], under: str = "epoch") -> dict[str, float]:
    """The numbers of an epoch's line by name: "epoch/loss", "epoch/validation/pgd-10"."""
    figures: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            figures |= of_epoch(value, f"{under}/{name}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            figures[f"{under}/{name}"] = float(value)
    return figures
