"""Which checkpoint of a run is `last` and which `best`: the newest step knows, and names.json is judged by it.

So is the checkpoint itself, for folders of two runs may have been merged.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import CheckpointError, OptionError, named
from . import checkpoint, schema
from .files import past_damage, read

if TYPE_CHECKING:
    from .run_folder import RunFolder

Load = Callable[["RunFolder", str], tuple[dict[str, Tensor], dict[str, Any]]]
NAMES = ("last", "best")
METRICS, METRICS_CAP = "metrics.jsonl", 1 << 30
"""Beside the folder of checkpoints, and the bytes of it, judged before it is read."""


def found(folder: Path, name: str) -> Path | None:
    """The step called `name` ("last", "best") in a folder of checkpoints; None where there is none yet.

    Names may be older than the steps, for a run was killed or a copy is half done: `last` is the newest step that is
    intact, `best` the end of the epoch that it calls so. Where what is named is damaged or lost, that is what loading
    it says. Raises CheckpointError, also for a `best` that is of another run; OptionError for another name.
    """
    if name not in NAMES:
        raise OptionError(f"checkpoint = {name!r} must be {' or '.join(map(repr, NAMES))}.")
    told = checkpoint.resolve(folder, name) if checkpoint.named(folder, name) else None
    if name == "last":
        intact = told if told in checkpoint.steps(folder)[:1] else checkpoint.newest(folder)
        return max(filter(None, (told, intact)), key=lambda step: int(step.name[5:]), default=None)
    newest, damage = None, list[CheckpointError]()
    with past_damage(damage.append):
        last = found(folder, "last")
        newest = position(last) if last else None
    if damage:
        return told
    if newest is None or newest.best is None:
        return None
    if told and is_best(told, newest):
        return told
    right = best_of(folder, newest)
    if right is None and (told is None or checkpoint.verified(told)):
        raise CheckpointError(
            f"{folder}: the best checkpoint, of epoch {newest.best.epoch + 1}, is {missing(folder, newest)}; restore "
            f"it, or read another: {named('--checkpoint', 'last')}."
        )
    return right or told


def settled(load: Load) -> Load:
    """Once more where training has put another step in the place of what was read, or removed it, meanwhile."""

    @wraps(load)
    def again(run: RunFolder, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tries = 10
        while True:
            before = _steps(run.checkpoints)
            try:
                return load(run, name)
            except CheckpointError:
                tries -= 1
                if not tries or _steps(run.checkpoints) == before:
                    raise

    return again


def _steps(folder: Path) -> list[tuple[str, int]]:
    """Of each step its name and which folder that is."""
    with suppress(OSError):
        return [(step.name, step.stat().st_ino) for step in checkpoint.steps(folder)]
    return []


def position(step: Path) -> schema.Position:
    """Where the run was at a step. Raises CheckpointError."""
    return schema.state_of(checkpoint.load_state(step)).position


def is_best(step: Path, newest: schema.Position, *, of_the_run: bool = True) -> bool:
    """Whether a step is what the newest calls `best`: the end of that epoch, and of the same run as far as known.

    Raises CheckpointError where it may not be read.
    """
    with past_damage():
        at, best = position(step), newest.best
        there = best is not None and (at.epoch, at.step) == (best.epoch + 1, 0)
        return there and (not of_the_run or (at.best == best and not _of_two_runs(step.parent, at, newest)))
    return False


def best_of(folder: Path, newest: schema.Position) -> Path | None:
    """The intact checkpoint that the newest calls `best`, if there is one."""
    steps = checkpoint.steps(folder)
    return next((step for step in steps if is_best(step, newest) and checkpoint.verified(step)), None)


def missing(folder: Path, newest: schema.Position) -> str:
    """What the best checkpoint is where `best_of` finds none."""
    there = [step for step in checkpoint.steps(folder) if is_best(step, newest, of_the_run=False)]
    other = any(not is_best(step, newest) for step in there)
    return "of another run than the newest" if other else "lost or damaged"


def fits(at: schema.Position, lines: bytes) -> bool:
    """Whether a checkpoint was made with this metrics.jsonl, which may have gone on since.

    One of 0.1.0 tells its size alone.
    """
    crc = zlib.crc32(lines[: at.metrics_size]) if "metrics_crc" in at.model_fields_set else at.metrics_crc
    return len(lines) >= at.metrics_size and crc == at.metrics_crc


def _of_two_runs(folder: Path, at: schema.Position, newest: schema.Position) -> bool:
    """Whether metrics.jsonl tells so: it is the newest's from its first epoch on, and not that of a step before it.

    Lines may be lost, or edited: then it tells nothing.
    """
    with suppress(CheckpointError):
        lines = read(folder.parent / METRICS, METRICS_CAP)
        whole = lines.count(b"\n", 0, newest.metrics_size) == newest.epoch
        return whole and fits(newest, lines) and not fits(at, lines)
    return False


def doubt(folder: Path) -> str:
    """Which name is of another step than it should be, and which is taken; "" where a kill explains as much.

    A run that was killed between a checkpoint and its names has those of the step before, one or both.
    """
    with suppress(CheckpointError):
        told = {name: checkpoint.resolve(folder, name) for name in NAMES if checkpoint.named(folder, name)}
        right = {name: found(folder, name) for name in told}
        if newest := right.get("last"):
            steps = checkpoint.steps(folder)
            before = [step for step in steps if int(step.name[5:]) < int(newest.name[5:])][:1]
            was = position(before[0]) if before else None
            for name, step in told.items():
                killed = step in before if name == "last" else was is not None and is_best(step, was)
                if step != right[name] and not killed:
                    return (
                        f"{folder} calls {step.name} {name}, but by the newest checkpoint, {newest.name}, that is "
                        f"{getattr(right[name], 'name', 'none')}, which is taken"
                    )
    return ""
