"""What is evaluated, audited or exported: a net with its data, from a run folder or from a file of weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import registry
from ..arguments import refuse_unused
from ..config.layer import Layer
from ..config.resolve import Resolved, resolve
from ..data.base import Dataset, Splits, choice, population
from ..errors import CheckpointError, DataError, OptionError
from ..fingerprint import code
from ..models.base import ModelBuilder
from ..storage.machine import installed
from ..storage.run_folder import RunFolder
from ..storage.weights import EVALUATED, digest, put_weights
from ..training.feed import parted
from ..training.launch import resolve_folder
from ..training.parts import build_model, data_of, on_this_machine, put_file

SPLITS = ("test", "train", "validation")


@dataclass(frozen=True)
class Subject:
    """A net, the images it is judged on, and whence both come."""

    name: str
    model: nn.Module
    splits: Splits
    resolved: Resolved
    record: Mapping[str, Any]
    """For the result: checkpoint, weights ("raw", "averaged"), epoch, selected_on, sha256_of_weights, notes if any."""
    parts: tuple[Tensor, Tensor] | None = None
    """Positions in the training split of what it was trained on, and of what was held out; None where nobody knows."""
    own_images: bool = True
    """Whether these are the training images it was trained on, as far as anybody knows."""

    @property
    def norm(self) -> str:
        return self.resolved.attack.norm

    @property
    def eps(self) -> float:
        return self.resolved.attack.eps

    @property
    def is_run(self) -> bool:
        return self.record["checkpoint"] is not None

    def images(self, split: str, count: int = 0) -> Dataset:
        """`count` images at random, 0: all, in order; of "test", "train" (without those held out), "validation"."""
        if split not in SPLITS:
            raise OptionError(f"split = {split!r} must be one of {', '.join(SPLITS)}.")
        if split == "test":
            return self.splits.test.sample(count)
        if self.parts is None:
            return self.splits.train.sample(count)
        if not self.own_images:
            raise DataError(
                f"The training images of {self.splits.train.name} are not those of {self.name}, or in another order, "
                f"so --split {split} would mix what it was trained on with what was held out; restore them."
            )
        places = self.parts[split == "validation"]
        if not len(places):
            raise OptionError(f"--split {split} has no images: this run held none out (validation.fraction).")
        return self.splits.train.take(places).sample(count)

    def described(self, split: str, count: int) -> str:
        """What the `count` images of a split are, for tables: how many of how many, and how they were chosen."""
        data = self.resolved.data
        whole = self.splits.test if split == "test" else self.splits.train
        return choice(count, len(self.images(split))) + population(len(whole), data.limit, data.balance)

    def identity(self) -> dict[str, Any]:
        """What tells this net from others: two architectures may share names and shapes of all their weights."""
        builder = cast(type[ModelBuilder], registry.load("model", self.resolved.model_name))
        return {
            "weights": self.record["sha256_of_weights"],
            "model": self.resolved.model_name,
            "options": dict(self.resolved.model_options),
            **code(builder),
            **({"library": installed(builder.distribution)} if builder.distribution else {}),
        }


def standard(resolved: Resolved) -> bool:
    """Whether nothing is attacked in training, so that no epoch is the best under attack."""
    return not (resolved.attack.eps and resolved.attack.steps)


def of_run(
    path: Path, checkpoint: str | None = None, root: str | Path | None = None, splits: Splits | None = None
) -> Subject:
    """The weights of a run's checkpoint, "best" or "last"; averaged ones where a plugin provided some.

    None is "best", but "last" of standard training. `root` is where the data lies now, if it was moved; `splits`
    spares reading it.
    """
    folder = RunFolder.open(path)
    resolved = on_this_machine(_without_gpu(resolve_folder(folder)))
    checkpoint = checkpoint or ("last" if standard(resolved) else "best")
    if splits is None:
        splits = data_of(resolved, root)
    tensors, state = folder.load(checkpoint)
    position, classes, present = state["position"], state.get("classes"), list(splits.test.classes)
    if isinstance(classes, list) and classes != present:
        raise DataError(
            f"{splits.test.name} has the classes {_listed(present)}, but {path} was trained on {_listed(classes)}, in "
            "that order; give them their names back."
        )
    model = build_model(resolved, splits.train).to(resolved.run.device)
    rounded = put_weights(model, tensors, str(path), averaged=True).rounded
    best = position["best"] or {}
    record = {
        "checkpoint": checkpoint,
        "weights": "averaged" if any(name.startswith(EVALUATED) for name in tensors) else "raw",
        "epoch": max(0, position["epoch"] - (position["step"] == 0)),
        "selected_on": best.get("split") if checkpoint == "best" else None,
        "sha256_of_weights": digest(model.state_dict()),
        **_notes(splits, rounded),
    }
    own = state.get("data") in (None, splits.train.fingerprint())
    return Subject(str(path), model, splits, resolved, record, parted(resolved, len(splits.train)), own)


def _notes(splits: Splits, rounded: str) -> dict[str, list[str]]:
    notes = [*splits.cautions, *([rounded] if rounded else [])]
    return {"notes": notes} if notes else {}


def _listed(classes: Sequence[object]) -> str:
    return ", ".join(map(str, classes[:10])) + (f" and {len(classes) - 10} more" if len(classes) > 10 else "")


def of_weights(path: Path, resolved: Resolved) -> Subject:
    """A file of weights in the model, on the data, at the eps and norm that `resolved` names."""
    resolved = on_this_machine(resolved)
    splits = data_of(resolved)
    model = build_model(resolved, splits.train).to(resolved.run.device)
    rounded = put_file(model, path, resolved).rounded
    record = {
        "checkpoint": None,
        "weights": "raw",
        "epoch": None,
        "selected_on": None,
        "sha256_of_weights": digest(model.state_dict()),
        **_notes(splits, rounded),
    }
    return Subject(str(path), model, splits, resolved, record)


def refuse_dropped(subject: object, dataset: object, norm: str | None, split: str, **of_runs: object) -> None:
    """OptionError for what nothing would use: arguments of runs beside a module, images and norm beside the others."""
    if isinstance(subject, nn.Module):
        refuse_unused("a module is evaluated as it is", **of_runs, split=None if split == "test" else split)
    elif not isinstance(dataset, str | None) or norm is not None:
        raise OptionError(f"{subject} names its data and norm itself; pass a module to evaluate it on other images.")


def subject_of(
    given: str | Path,
    checkpoint: str | None = None,
    *,
    model: str | None = None,
    dataset: str | None = None,
    data_root: str | Path | None = None,
    settings: Mapping[str, object] | None = None,
    eps: float | None = None,
) -> Subject:
    """The run in a folder, or a file of weights in the model and on the data that are named."""
    path, settings = Path(given), dict(settings or {})
    named = {"model.name": model, "data.name": dataset}
    folder = os.path.isdir(path)  # unlike Path's, false for what no disk could hold
    if folder or not (path.suffix or any(named.values())):
        if any(named.values()) or settings:
            if folder and not os.path.lexists(path / "run.toml"):
                raise CheckpointError(
                    f"{given} is a folder and no run (it has no run.toml); give a file of weights, or the --out of a "
                    "run."
                )
            raise OptionError(f"{given} is a run: its own model and data are used; leave --model, --dataset and --set.")
        return of_run(path, checkpoint, data_root)
    if not all(named.values()):
        raise OptionError(f"{given} is a file of weights; say which net and data: --model NAME --dataset NAME.")
    if checkpoint is not None:
        raise OptionError(f"{given} is a file of weights, which has no checkpoints; leave --checkpoint out.")
    settings |= named | ({"data.root": str(data_root)} if data_root is not None else {})
    if eps is not None:
        settings.setdefault("attack.eps", eps)
    return of_weights(path, resolve((), [Layer("command line", settings)]))


def _without_gpu(resolved: Resolved) -> Resolved:
    """A run that was trained on a GPU is judged on the CPU where there is none."""
    if not resolved.run.device.startswith("cuda") or torch.cuda.is_available():
        return resolved
    run = resolved.run.model_copy(update={"device": "cpu"})
    return replace(resolved, sections={**resolved.sections, "run": run})
