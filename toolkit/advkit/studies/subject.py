"""What is evaluated, audited or exported: a net with its data, from a run folder or from a file of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import registry
from ..config.resolve import Resolved
from ..data.base import Dataset, Splits
from ..storage.run_folder import RunFolder
from ..storage.weights import digest, put_weights
from ..training.launch import resolve_folder
from ..training.parts import build_model, data_of, load_data, on_this_machine, put_file


@dataclass(frozen=True)
class Subject:
    """A net, the images it is judged on, and whence both come."""

    name: str
    model: nn.Module
    splits: Splits
    resolved: Resolved
    record: Mapping[str, Any]
    """For the result: checkpoint, weights ("raw", "averaged"), epoch, selected_on, sha256_of_weights."""

    @property
    def norm(self) -> str:
        return self.resolved.attack.norm

    @property
    def eps(self) -> float:
        return self.resolved.attack.eps

    def images(self, split: str, count: int = 0) -> Dataset:
        """`count` images of "test" or "train", chosen at random; 0: all, in order."""
        full = self.splits.test if split == "test" else self.splits.train
        return full.sample(count)

    def identity(self) -> dict[str, Any]:
        """What tells this net from others: two architectures may share names and shapes of all their weights."""
        return {
            "weights": self.record["sha256_of_weights"],
            "model": self.resolved.model_name,
            "options": dict(self.resolved.model_options),
            **registry.code(registry.load("model", self.resolved.model_name)),
        }


def of_run(path: Path, checkpoint: str = "best", root: str | None = None) -> Subject:
    """The weights of a run's checkpoint, "best" or "last"; averaged ones where a plugin provided some.

    `root` is where the data lies now, if it was moved.
    """
    folder = RunFolder.open(path)
    resolved = on_this_machine(_without_gpu(resolve_folder(folder)))
    data = resolved.data
    splits = load_data(data.name, root, data.limit) if root else data_of(resolved)
    tensors, state = folder.load(checkpoint)
    position = state["position"]
    model = build_model(resolved, splits.train).to(resolved.run.device)
    put_weights(model, tensors, str(path), averaged=True)
    best = position["best"] or {}
    record = {
        "checkpoint": checkpoint,
        "weights": "averaged" if any(name.startswith("evaluated/") for name in tensors) else "raw",
        "epoch": max(0, position["epoch"] - (position["step"] == 0)),
        "selected_on": best.get("split") if checkpoint == "best" else None,
        "sha256_of_weights": digest(model.state_dict()),
    }
    return Subject(str(path), model, splits, resolved, record)


def of_weights(path: Path, resolved: Resolved) -> Subject:
    """A file of weights in the model, on the data, at the eps and norm that `resolved` names."""
    resolved = on_this_machine(resolved)
    splits = data_of(resolved)
    model = build_model(resolved, splits.train).to(resolved.run.device)
    put_file(model, path, resolved)
    record = {
        "checkpoint": None,
        "weights": "raw",
        "epoch": None,
        "selected_on": None,
        "sha256_of_weights": digest(model.state_dict()),
    }
    return Subject(str(path), model, splits, resolved, record)


def _without_gpu(resolved: Resolved) -> Resolved:
    """A run that was trained on a GPU is judged on the CPU where there is none."""
    if not resolved.run.device.startswith("cuda") or torch.cuda.is_available():
        return resolved
    run = resolved.run.model_copy(update={"device": "cpu"})
    return replace(resolved, sections={**resolved.sections, "run": run})
