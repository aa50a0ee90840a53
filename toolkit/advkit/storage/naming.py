"""Which checkpoint of a run is `last` and which `best`: the newest step knows, and names.json is judged by it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ..errors import CheckpointError, OptionError, named
from . import checkpoint, schema
from .files import past_damage

NAMES = ("last", "best")


def found(folder: Path, name: str) -> Path | None:
    """The step called `name` ("last", "best") in a folder of checkpoints; None where there is none yet.

    Names may be older than the steps, for a run was killed or a copy is half done: `last` is the newest step that is
    intact, `best` the end of the epoch that it calls so. Where what is named is damaged or lost, that is what loading
    it says. Raises CheckpointError, OptionError for another name.
    """
    if name not in NAMES:
        raise OptionError(f"checkpoint = {name!r} must be {' or '.join(map(repr, NAMES))}.")
    told = checkpoint.resolve(folder, name) if checkpoint.named(folder, name) else None
    if name == "last":
        newest = told if told in checkpoint.steps(folder)[:1] else checkpoint.newest(folder)
        return max(filter(None, (told, newest)), key=lambda step: int(step.name[5:]), default=None)
    best, damage = None, list[CheckpointError]()
    with past_damage(damage.append):
        last = found(folder, "last")
        best = position(last).best if last else None
    if damage:
        return told
    if best is None:
        return None
    if told and ends(told, best.epoch):
        return told
    right = end_of(folder, best.epoch)
    if right is None and told and checkpoint.verified(told):
        raise CheckpointError(
            f"{folder}: the best checkpoint, of epoch {best.epoch + 1}, is lost or damaged; restore it, or read "
            f"another: {named('--checkpoint', 'last')}."
        )
    return right or told


def position(step: Path) -> schema.Position:
    """Where the run was at a step. Raises CheckpointError."""
    return schema.state_of(checkpoint.load_state(step)).position


def ends(step: Path, epoch: int) -> bool:
    """Whether a step is of the end of an epoch (from 0). Raises CheckpointError where it may not be read."""
    with past_damage():
        at = position(step)
        return (at.epoch, at.step) == (epoch + 1, 0)
    return False


def end_of(folder: Path, epoch: int) -> Path | None:
    """The intact checkpoint of the end of an epoch (from 0), if there is one."""
    return next((step for step in checkpoint.steps(folder) if ends(step, epoch) and checkpoint.verified(step)), None)


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
            was = position(before[0]).best if before else None
            for name, step in told.items():
                killed = step in before if name == "last" else was is not None and ends(step, was.epoch)
                if step != right[name] and not killed:
                    return (
                        f"{folder} calls {step.name} {name}, but by the newest checkpoint, {newest.name}, that is "
                        f"{getattr(right[name], 'name', 'none')}, which is taken"
                    )
    return ""
