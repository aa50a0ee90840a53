"""What is evaluated, audited or exported: a net with its data, from a run folder or from a file of weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import registry
from ..arguments import refuse_unused
from ..config.idle import refuse_of_training
from ..config.layer import Layer, with_files
from ..config.request import merged, registered
from ..config.resolve import Resolved, resolve
from ..data.base import Dataset, Splits
from ..data.chosen import choice, population
from ..data.own import as_splits, as_wide
from ..errors import CheckpointError, DataError, OptionError, named
from ..evaluation.verdicts import Radius
from ..fingerprint import fingerprint
from ..models.base import ModelBuilder, Normalize
from ..own_file import OwnFile, load_all
from ..storage.files import refuse_another, there
from ..storage.foreign import refuse_export, refuse_others
from ..storage.machine import installed
from ..storage.run_folder import RunFolder
from ..storage.weights import EVALUATED, digest, put_weights
from ..training.beginning import listed, put_file
from ..training.code_told import another_net, changes
from ..training.feed import parted
from ..training.notes import CHOSEN_ON_TEST, noted
from ..training.parts import build_model, data_of, on_this_machine, prepared
from ..training.passed_net import told_apart
from ..training.same_run import resolve_folder
from ..training.short import normalisation
from .inputs import of_training

AS_WRITTEN = "the setting {key} = {value}"
SPLITS = ("test", "train", "validation")
PATIENCE = 7 * 86400.0
"""Seconds that one process waits for another's share of an evaluation; one that ends is noticed at once."""


@dataclass(frozen=True)
class Subject:
    """A net, the images it is judged on, and whence both come."""

    name: str
    model: nn.Module
    splits: Splits
    resolved: Resolved
    record: Mapping[str, Any]
    """For the result: checkpoint, weights, epoch, selected_on, sha256_of_weights; another_net and notes if any."""
    at_once: int  # images, in its training
    parts: tuple[Tensor, Tensor] | None = None
    """Positions in the training split of what it was trained on, and of what was held out; None where nobody knows."""
    own_images: bool = True
    """Whether these are the training images it was trained on, as far as anybody knows."""
    place: os.stat_result | None = None
    """Of a run's folder, which may be another one by the time that something is to be kept there."""

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
                f"so {named('--split')} {split} would mix what it was trained on with what was held out; restore them."
            )
        places = self.parts[split == "validation"]
        if not len(places):
            raise OptionError(f"{named('--split')} {split} has no images: validation.fraction held none out.")
        return self.splits.train.take(places).sample(count)

    def described(self, split: str, count: int, place: int | None = None) -> str:
        """How many of how many images of a split they are, and how they were chosen; `place` is that of a named one."""
        data, every = self.resolved.data, self.images(split)
        whole = self.splits.test if split == "test" else self.splits.train
        which = choice(count, len(every)) if place is None else f"1 of {len(every)} images, that at place {place}"
        by_class = every.labels.bincount(minlength=len(every.classes)) if data.balance else None
        return which + population(len(whole), data.limit, by_class)

    def refuse_another(self) -> None:
        """CheckpointError where another folder has the name of the run by now."""
        if self.place is not None:
            refuse_another(Path(self.name), self.place)

    def identity(self) -> dict[str, Any]:
        """What tells this net from others: two architectures may share names and shapes of all their weights."""
        known: dict[str, Any] = {
            "weights": self.record["sha256_of_weights"],
            "model": self.resolved.model_name,
            "options": dict(self.resolved.model_options),
        }
        stored = self.model.state_dict().keys()
        if unstored := {name: value for name, value in self.model.named_buffers() if name not in stored}:
            known["buffers"] = digest(unstored)
        if not registered(self.resolved.model_name):
            return known | {"code": fingerprint(self.model, strict=False)}
        builder = cast(type[ModelBuilder], registry.load("model", self.resolved.model_name))
        if not registry.by_advkit(builder):
            known["code"] = fingerprint(builder, strict=False)
        return known | ({"library": installed(builder.distribution)} if builder.distribution else {})


def of_run(
    path: Path,
    checkpoint: str | None = None,
    root: str | Path | None = None,
    splits: Splits | None = None,
    *,
    model: nn.Module | None = None,
    files: Mapping[str, OwnFile] | None = None,
    together: bool = False,
) -> Subject:
    """The weights of a run's checkpoint, "best" or "last"; averaged ones where a plugin provided some.

    None is "best", but "last" of standard training. `root` is where the data lies now, if it was moved; `splits`
    spares reading it. `model` takes the weights of a run whose net no name brings back; `files` are what gives net
    and data of one that was trained on FILE.py:NAME. The processes of torchrun meet here where they judge `together`.
    """
    folder, place = RunFolder.open(path), os.stat(path)
    resolved = _without_gpu(resolve_folder(folder).with_files(files or {}))
    resolved = on_this_machine(resolved, PATIENCE if together else None)
    checkpoint = checkpoint or ("last" if resolved.standard else "best")
    passed = {"model.name": model, "data.name": splits}
    load_all({key: file for key, file in resolved.files.items() if passed[key] is None})
    if splits is None:
        splits = data_of(resolved, root)
    tensors, state = folder.load(checkpoint)
    position, classes = state["position"], state.get("classes")
    if isinstance(classes, list):
        splits = as_wide(splits, len(classes))
    if isinstance(classes, list) and classes != (present := list(splits.test.classes)):
        raise DataError(
            f"{splits.test.name} has the classes {listed(present)}, but {path} was trained on {listed(classes)}, in "
            "that order; give them their names back."
        )
    net = (build_model(resolved, splits.train) if model is None else model).to(resolved.run.device)
    answer, said = told_apart(net, tensors, state, str(path)), put_weights(net, tensors, str(path), averaged=True).said
    best = position["best"] or {}
    record = {
        "checkpoint": checkpoint,
        "weights": "averaged" if any(name.startswith(EVALUATED) for name in tensors) else "raw",
        "epoch": max(0, position["epoch"] - (position["step"] == 0)),
        "selected_on": best.get("split") if checkpoint == "best" else None,
        "sha256_of_weights": digest(net.state_dict()),
    }
    own = state.get("data") in (None, splits.train.fingerprint())
    other = "" if own else f"The training images of {splits.train.name} are not those that {path} was trained on"
    of_data = model is None and resolved.model_options.get("normalise", "data") == "data"
    if other and of_data and any(isinstance(layer, Normalize) and not layer.state_dict() for layer in net.modules()):
        raise DataError(
            f"{other}, and its net normalises by their mean and deviation, which are not among its weights; give the "
            "run's own training images too."
        )
    note = other and f"{other}; if its test images were among those, accuracies are optimistic"
    if own and splits.test is splits.train:
        note = f"{splits.test.name} is one set for both splits, so accuracies are on images that {path} was trained on"
    doubts = CHOSEN_ON_TEST if record["selected_on"] == "test" else "", *folder.doubts()
    code = changes(folder, resolved, net)
    record |= another_net(folder, answer, code) | _notes(splits, note, *noted(folder), answer, said, *doubts, *code)
    most, parts = of_training(folder, resolved.run), parted(resolved, len(splits.train))
    return Subject(str(path), net, splits, resolved, record, most, parts, own, place)


def _notes(splits: Splits, *others: str) -> dict[str, list[str]]:
    return {"notes": notes} if (notes := [*dict.fromkeys((*splits.cautions, *filter(None, others)))]) else {}


def of_weights(path: Path, resolved: Resolved, *, together: bool = False) -> Subject:
    """A file of weights in the model, on the data, at the eps and norm that `resolved` names."""
    resolved = on_this_machine(resolved, PATIENCE if together else None)
    splits, model = prepared(resolved)
    model = model.to(resolved.run.device)
    placed = put_file(model, path, resolved, classes=splits.train.classes)
    record = {
        "checkpoint": None,
        "weights": "raw",
        "epoch": None,
        "selected_on": None,
        "sha256_of_weights": digest(model.state_dict()),
        **_notes(splits, *placed.notes, placed.said, *normalisation(resolved)),
    }
    return Subject(str(path), model, splits, resolved, record, resolved.run.at_once())


def refuse_dropped(subject: object, dataset: object, norm: str | None, split: str, **of_runs: object) -> None:
    """OptionError for what nothing would use: arguments of runs beside a module, images and norm beside the others."""
    if isinstance(subject, nn.Module):
        refuse_unused("a module is evaluated as it is", **of_runs, split=None if split == "test" else split)
    elif norm is not None:
        raise OptionError(f"{subject} names its data and norm itself; pass a module to evaluate it on other images.")


def subject_of(
    given: str | Path,
    checkpoint: str | None = None,
    *,
    model: str | nn.Module | None = None,
    dataset: Any = None,
    data_root: str | Path | None = None,
    settings: Mapping[str, object] | None = None,
    eps: Radius | Mapping[str, Radius] | None = None,
    batch_size: int | str | None = None,
    together: bool = False,
) -> Subject:
    """The run in a folder, or a file of weights in the model and on the data that are named.

    Of a run net and data are named, or passed as objects, where no name brings them back.
    """
    path, settings = Path(given), dict(settings or {})
    asked = {"model.name": model, "data.name": dataset}
    texts = {key: text for key, text in asked.items() if isinstance(text, str)}
    folder = os.path.isdir(path)  # unlike Path's, false for what no disk could hold
    if folder or not (path.suffix or texts):
        refuse_export(path)
        typed = with_files(Layer("command line", texts))
        if typed.files.keys() != texts.keys() or settings:
            if folder and not there(path / "run.toml"):
                raise CheckpointError(f"{given} is a folder without run.toml; give a run's, or a file of weights.")
            raise OptionError(
                f"{given} is a run: its own model and data are used; leave "
                f"{named('--model')}, {named('--dataset')} and {named('--set')}."
            )
        return _of_run(path, checkpoint, data_root, asked, typed.files, together)
    refuse_others(path)
    if not all(texts.get(key) for key in asked):
        own = any(not isinstance(value, str | None) for value in asked.values())
        which = f"{named('--model', 'NAME')} {named('--dataset', 'NAME')}"
        which += ", or load it into your module and pass that in its place" if own else ""
        raise OptionError(f"{given} is a file of weights; say which net and data: {which}.")
    if checkpoint is not None:
        raise OptionError(f"{given} is a file of weights, which has no checkpoints; leave {named('--checkpoint')} out.")
    if isinstance(eps, Mapping):
        eps = eps.get(str(settings.get("attack.norm", "linf")))
    if batch_size is not None:  # which 0 may be, and no setting
        merged(settings, {"run.batch_size": ("batch_size", batch_size)}, AS_WRITTEN)
    short = {
        "model.name": ("model", model),
        "data.name": ("dataset", dataset),
        "data.root": ("data_root", data_root and str(data_root)),
        "attack.eps": ("eps", eps if isinstance(eps, float) else None),
    }
    both = merged(settings, {k: v for k, v in short.items() if v[1] is not None}, AS_WRITTEN)
    refuse_of_training(both, str(given))
    return of_weights(path, resolve((), [with_files(Layer("command line", both))]), together=together)


def _of_run(
    path: Path,
    checkpoint: str | None,
    root: str | Path | None,
    passed: Mapping[str, Any],
    files: Mapping[str, OwnFile],
    together: bool,
) -> Subject:
    """`of_run` with the objects among what is `passed` by setting, where the run's are not installed ones."""
    objects = {key: value for key, value in passed.items() if value is not None and not isinstance(value, str)}
    known = RunFolder.open(path).file().settings if objects else {}
    for key in objects:
        if registered(str(known.get(key, ""))):
            if key == "data.name":
                raise OptionError(
                    f"{path} names its data and norm itself; pass a module to evaluate it on other images."
                )
            raise OptionError(f"{path} is a run of the model {known.get(key)}, which is built anew; leave model out.")
    data, model = objects.get("data.name"), objects.get("model.name")
    splits = None if data is None else as_splits(data)
    return of_run(path, checkpoint, root, splits, model=model, files=files, together=together)


def _without_gpu(resolved: Resolved) -> Resolved:
    """A run that was trained on a GPU is judged on the CPU where there is none."""
    if not resolved.run.device.startswith("cuda") or torch.cuda.is_available():
        return resolved
    run = resolved.run.model_copy(update={"device": "cpu"})
    return replace(resolved, sections={**resolved.sections, "run": run})
