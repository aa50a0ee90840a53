"""The end of an epoch: plugins are told, may probe, and may end the run."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..errors import blame, called, says
from ..own_file import words
from ..types import Batch
from .probes import between_steps
from .visits import occurrences

if TYPE_CHECKING:
    from .loop import Trainer


def tell_plugins(trainer: Trainer, row: dict[str, Any], this: dict[str, Any]) -> None:
    """`epoch_end`; `row` is the epoch's line, and `this` what `best` is where it is the best one.

    Where a plugin ends the run with this epoch, the run is `stopped`, for a reason that names the checkpoint to take.
    """
    state, best = trainer.panel.state, trainer.best
    trainer.best = this if row["best"] else best
    listed = any("batch" in answer.arguments for answer in trainer.panel.stage.answers["epoch_end"])
    known = {"metrics": MappingProxyType(deepcopy(row)), "batch": _first(trainer) if listed else None}
    with trainer.panel.watching(True), between_steps(trainer.step):
        trainer.panel.notify("epoch_end", epoch=row["epoch"], **known)
    ending, state.ending = state.ending, None
    if ending is None:
        return
    if not ending.keep and row["best"]:
        row["best"], trainer.best = False, best
    reason = ending.reason.strip().rstrip(".")
    take = f"best, of epoch {trainer.best['epoch'] + 1}" if trainer.best else "last"
    trainer.stopped = row["stopped"] = (
        f"{ending.plugin} stopped the run after epoch {row['epoch'] + 1}: {reason}; take its checkpoint {take}"
    )


def break_off(trainer: Trainer, error: BaseException) -> None:
    """End a run that fails with `error`, which is what is told; what goes wrong in that is a note to it."""
    for name, last in (("a checkpoint", trainer.writer.wait), ("teardown", partial(trainer.panel.notify, "teardown"))):
        try:
            last()
        except Exception as late:
            blame(error, f"and then {name} failed: {type(late).__name__}: {says(late)}")


def written(trainer: Trainer) -> None:
    """Wait until what was saved is on the disk: of several processes none goes on to read it before."""
    trainer.writer.wait()
    trainer.ranks.told(None)


def farewell(trainer: Trainer) -> str:
    """What a run says that is stopped before its end, once its checkpoint is there."""
    at = trainer.position
    written(trainer)
    kept = ""
    if trainer.folder:
        again = called("train", ["--resume", str(trainer.folder.path), *words(trainer.resolved.files)])
        kept = f" Continue with: {again}"
    return f"Stopped in epoch {at.epoch + 1} after step {at.step}; everything is saved.{kept}"


def _first(trainer: Trainer) -> Batch:
    """The first batch of the epoch that ends, once more: a function of the seed."""
    batches = trainer.feed.batches(trainer.panel.state.epoch)
    seen = occurrences(batches)[0]
    return Batch(*trainer.feed.images(batches[0], seen), seen.to(trainer.device))
