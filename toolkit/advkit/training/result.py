"""What a run returns, also one that was finished before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..config.resolve import Resolved
from ..storage.run_folder import RunFolder
from ..storage.weights import EVALUATED, put_weights, under
from .same_run import refuse_other_file


@dataclass(frozen=True)
class TrainResult:
    """What `advkit.train` returns: the module with its last weights, and a line for each epoch.

    `averaged` are weights by name that a plugin has judged in their place, {} where none did.
    """

    model: nn.Module = field(repr=False)
    history: list[dict[str, Any]] = field(repr=False)
    best: Mapping[str, Any] | None
    folder: Path | None
    stopped: str = ""
    """Why a plugin ended the run before its last epoch, "" where none did."""
    averaged: Mapping[str, Tensor] = field(default_factory=dict, repr=False)


def ended(path: Path, stopped: str) -> str:
    """The sentence on a run of which nothing is left to do; `stopped` is why a plugin ended it."""
    why = f" ({stopped})" if stopped else ""
    return f"The run in {path} is finished{why}; nothing is left to do."


def finished(folder: RunFolder, resolved: Resolved) -> str:
    """`ended` of the run in a folder; "" where something is left to do, or no checkpoint is intact.

    Raises ResumeMismatch where the checkpoint is of another run, which then may need what is not here.
    """
    known = folder.known()
    if known is None:
        return ""
    refuse_other_file(known.run, resolved)
    if not (known.position.stopped or known.position.epoch >= resolved.run.epochs):
        return ""
    return ended(folder.path, known.position.stopped)


def left_by(folder: RunFolder, model: nn.Module) -> TrainResult:
    """What a finished run has left in its folder; `model` gets its last weights."""
    tensors, state = folder.load("last")
    put_weights(model, tensors, str(folder.path))
    at = state["position"]
    averaged = under(tensors, EVALUATED)
    return TrainResult(model, folder.history(), at["best"], folder.path, at.get("stopped", ""), averaged)
