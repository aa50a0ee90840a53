"""The training loop: data, steps, validation, metrics, checkpoints. Resuming continues it bit for bit.

All of a run's state is in its checkpoint: model, optimizer, plugins' tensors, the epoch's sums so far. Order,
augmentation, attacks and labels are functions of the seed and an address, so there is no generator to save.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from ..config import runfile
from ..config.resolve import Resolved
from ..data.base import Dataset, Splits
from ..data.transforms import TRANSFORMS, to_float
from ..errors import DataError, HookContract, OptionError, ResumeMismatch, Stopped, did_you_mean
from ..evaluation.attacks.names import parse_attacks
from ..evaluation.verdicts import BATCH, verdicts
from ..plugin import CORE
from ..rng import Draws, derive_key, permutation
from ..storage import checkpoint, schema
from ..storage.run_folder import Mark, RunFolder
from ..storage.weights import put_weights
from .meter import Meter, quantiles
from .step import Step
from .step_report import Report


class Progress(Protocol):
    """Who wants to see a run. Every method may do nothing."""

    def begin(self, trainer: Trainer) -> None: ...
    def stepped(self, trainer: Trainer, report: Report) -> None: ...
    def finished_epoch(self, row: Mapping[str, Any]) -> None: ...
    def warn(self, sentence: str) -> None: ...

    def stop_requested(self) -> type[Stopped] | None:
        """Asked after every step; an answer stops the run after a checkpoint."""


class Silent:
    """Shows nothing and never stops."""

    def begin(self, trainer: Trainer) -> None: ...
    def stepped(self, trainer: Trainer, report: Report) -> None: ...
    def finished_epoch(self, row: Mapping[str, Any]) -> None: ...
    def warn(self, sentence: str) -> None: ...
    def stop_requested(self) -> type[Stopped] | None:
        return None


@dataclass
class Position:
    """Where a run is. `epoch` and `step` name the next step to do; `best` is what has been chosen so far."""

    epoch: int = 0
    step: int = 0
    global_step: int = 0
    best: dict[str, Any] | None = None
    metrics_size: int = 0
    metrics_crc: int = 0


@dataclass(frozen=True)
class TrainResult:
    """What `advkit.train` returns: the module with its last weights, and a line for each epoch."""

    model: nn.Module = field(repr=False)
    history: list[dict[str, Any]] = field(repr=False)
    best: Mapping[str, Any] | None
    folder: Path | None


class Trainer:
    """One run, ready to go. `run()` trains from the current position to the end."""

    def __init__(
        self,
        resolved: Resolved,
        splits: Splits,
        model: nn.Module,
        folder: RunFolder | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.resolved, self.splits, self.folder = resolved, splits, folder
        self.progress: Progress = progress or Silent()
        self.device = torch.device(resolved.run.device)
        self.model = model.to(self.device)
        rates = resolved.optimizer
        self.optimizer = torch.optim.SGD(
            [p for p in self.model.parameters() if p.requires_grad],
            lr=rates.lr,
            momentum=rates.momentum,
            weight_decay=rates.weight_decay,
            nesterov=rates.nesterov,
        )
        self.step = Step.of(self.model, self.optimizer, resolved, len(splits.train))
        self.transform = self._transform()
        self.train_set = self._train_set()
        self.training, self.validation = self._split()
        self.position, self.meter = Position(), Meter()
        self.history: list[dict[str, Any]] = []
        self.step.notify("setup", model=self.model)

    # ------------------------------------------------------------------ the run

    @property
    def finished(self) -> bool:
        """Whether every epoch is done."""
        return self.position.epoch >= self.resolved.run.epochs

    def run(self) -> TrainResult:
        """Train to the end; on any failure the last checkpoint stays as it was."""
        self.progress.begin(self)
        try:
            while not self.finished:
                self._epoch()
        finally:
            self.step.notify("teardown")
        path = self.folder.path if self.folder else None
        return TrainResult(self.model, self.history, self.position.best, path)

    def _epoch(self) -> None:
        at, run = self.position, self.resolved.run
        for group in self.optimizer.param_groups:
            group["lr"] = self.resolved.optimizer.lr_at(at.epoch, run.epochs)
        self.step.state.epoch, self.step.state.step = at.epoch, at.step
        batches = self.batches(at.epoch)
        if at.step == 0:
            self.step.notify("epoch_start", at.epoch, epoch=at.epoch)
        seen = _occurrences(batches)
        while at.step < len(batches):
            report = self.one_step(batches[at.step], seen[at.step])
            self.meter.add(report)
            at.step, at.global_step = at.step + 1, at.global_step + 1
            self.progress.stepped(self, report)
            stop = self.progress.stop_requested()
            if stop or at.global_step % self.resolved.checkpoint.every_steps == 0:
                self.save()
            if stop:
                raise stop(self._farewell())
        self._end_epoch()

    def one_step(self, index: Tensor, occurrence: Tensor | None = None) -> Report:
        """Attack and update on the images of `index` (b,); counts nothing and saves nothing."""
        seen = torch.zeros_like(index) if occurrence is None else occurrence
        x, y, index = self._images(index, seen)
        return self.step(x, y, index, epoch=self.position.epoch, occurrence=seen.to(self.device))

    def _end_epoch(self) -> None:
        at, run = self.position, self.resolved.run
        self.meter.lap()
        evaluated = self._evaluated()
        row: dict[str, Any] = {
            "epoch": at.epoch,
            "lr": self.resolved.optimizer.lr_at(at.epoch, run.epochs),
            **self.meter.row(self.resolved.attack.steps),
            "state": {name: quantiles(values[self.training]) for name, values in self.step.state.samples.items()},
            "validation": self._validate(at.epoch, evaluated),
        }
        chosen = row["validation"]["selected"] if row["validation"] else None
        if self._selecting_split() is None:
            row["best"] = True  # nothing chooses: the last epoch is the one to take
        else:
            row["best"] = chosen is not None and (at.best is None or chosen > at.best["selected"])
        if row["best"]:
            at.best = {"epoch": at.epoch, "selected": chosen, "split": self._selecting_split()}
        self.step.notify("epoch_end", at.epoch, epoch=at.epoch, metrics=row)
        row["figures"], self.step.state.figures = self.step.state.figures, {}
        self.meter.lap()
        row["seconds"] = {name: round(value, 3) for name, value in self.meter.seconds.items()}
        self.history.append(row)
        if self.folder:
            at.metrics_size, at.metrics_crc = self.folder.append_metrics(row, Mark(at.metrics_size, at.metrics_crc))
        at.epoch, at.step, self.meter = at.epoch + 1, 0, Meter()
        self.save(evaluated)
        self.progress.finished_epoch(row)

    # ------------------------------------------------------------------ data

    def batches(self, epoch: int) -> list[Tensor]:
        """The index tensors of an epoch, each (b,) int64: a function of the seed and the epoch."""
        run = self.resolved.run
        sampler = self.step.composition.at(epoch).owner("train_sampler")
        if sampler:
            known = {"indices": self.training, "batch_size": run.batch_size, "epoch": epoch}
            batches = list(self.step._ask(sampler, **known))
            for batch in batches:
                fine = isinstance(batch, Tensor) and batch.dtype == torch.int64 and batch.dim() == 1 and len(batch)
                if not fine or not bool(torch.isin(batch, self.training).all()):
                    raise HookContract(
                        f"Plugin {sampler.plugin.name} broke the contract of train_sampler: every batch must be an "
                        "int64 tensor (b,) of `indices`. See advkit/hooks.py."
                    )
            if not batches:
                raise HookContract(f"Plugin {sampler.plugin.name} broke the contract of train_sampler: no batch.")
            return batches
        order = permutation(derive_key(run.seed, CORE, "order", "train", epoch), len(self.training))
        return list(torch.split(self.training[order], run.batch_size))

    def _images(self, index: Tensor, occurrence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x, y, index of a batch on the device, augmented."""
        images = self.train_set.images[index].to(self.device)
        index, occurrence = index.to(self.device), occurrence.to(self.device)
        x = to_float(images, self.step.state.dtype)
        epoch = self.position.epoch
        key = derive_key(self.resolved.run.seed, CORE, "transform", "train", epoch)
        draws = Draws(key, index, occurrence)
        owner = self.step.composition.at(epoch).owner("train_transform")
        x = self.step._ask(owner, x=x, draws=draws) if owner else self.transform(x, draws)
        return x, self.train_set.labels[index.cpu()].to(self.device), index

    def _transform(self) -> Any:
        name = self.resolved.data.transform
        name = self.splits.transform if name == "auto" else name
        if name not in TRANSFORMS:
            raise OptionError(
                f"data.transform = {name!r} is unknown.{did_you_mean(name, TRANSFORMS)} "
                f"Known: auto, {', '.join(TRANSFORMS)}."
            )
        return TRANSFORMS[name]

    def _train_set(self) -> Dataset:
        """The training set after the chain of `train_dataset`."""
        dataset = self.splits.train
        for answer in self.step.composition.answers["train_dataset"]:
            grown = self.step._ask(answer, dataset=dataset)
            if not isinstance(grown, Dataset) or len(grown) < len(dataset) or grown.shape != dataset.shape:
                raise DataError(
                    f"Plugin {answer.plugin.name} must return an advkit.Dataset of the same image shape, "
                    "with added samples at its end."
                )
            dataset = grown
        self.step.state.num_samples = len(dataset)
        self.step.state.num_classes = len(dataset.classes)
        return dataset

    def _split(self) -> tuple[Tensor, Tensor]:
        """Indices to train on and to validate on, from the seed. Added samples are never held out."""
        original = len(self.splits.train)
        training, held_out = parted(self.resolved, original)
        training = torch.cat([training, torch.arange(original, len(self.train_set))])
        if not len(training):
            raise OptionError("validation.fraction leaves nothing to train on; lower it.")
        return training, held_out

    # ------------------------------------------------------------------ validation

    def _selecting_split(self) -> str | None:
        if self.resolved.validation.split == "test":
            return "test"
        return "validation" if len(self.validation) else None

    def _validate(self, epoch: int, evaluated: Mapping[str, Tensor]) -> dict[str, Any] | None:
        chosen, split = self.resolved.validation, self._selecting_split()
        last = epoch == self.resolved.run.epochs - 1
        if split is None or ((epoch + 1) % chosen.every_epochs and not last):
            return None
        dataset = self.splits.test if split == "test" else self.splits.train.take(self.validation)
        names = ("clean", f"pgd-{chosen.steps}", f"cw-{chosen.steps}")
        attacks = parse_attacks(names, pace=0.25)
        attack = self.resolved.attack
        with _replaced(self.model, evaluated):
            size = min(BATCH, self.resolved.run.batch_size)
            kept = verdicts(self.model, dataset, attacks, eps=attack.eps, norm=attack.norm, chunk=size)
        found: dict[str, Any] = {name: float(each.robust.double().mean()) for name, each in kept.items()}
        # Cross-entropy PGD alone would pick epochs whose gradients are masked.
        return {"split": split, "n": len(dataset), **found, "selected": min(found[names[1]], found[names[2]])}

    def _evaluated(self) -> Mapping[str, Tensor]:
        """The weights that would be evaluated, where they are not the model's own."""
        owner = self.step.composition.at(self.position.epoch).owner("evaluation_weights")
        return cast(Mapping[str, Tensor], self.step._ask(owner, model=self.model)) if owner else {}

    # ------------------------------------------------------------------ checkpoints

    def save(self, evaluated: Mapping[str, Tensor] | None = None) -> None:
        """A checkpoint of this position, if the run has a folder; `evaluated` are the weights that were validated."""
        if self.folder is None:
            return
        self.meter.lap()
        at, store = self.position, self.folder.checkpoints
        state = {
            "position": vars(at),
            "meter": self.meter.state(),
            "optimizer": self._optimizer_numbers(),
            "data": self.splits.train.fingerprint(),
            "run": runfile.dump(self.resolved),
        }
        self.publish(checkpoint.save(store, at.global_step, self._tensors(evaluated), state))

    def publish(self, path: Path) -> None:
        """Point `last`, and `best` where it is that, to the checkpoint of this position; drop old ones.

        A resume does it again: the run may have been killed between a checkpoint and its links.
        """
        at, store = self.position, path.parent
        checkpoint.point(store, "last", path)
        if at.step == 0 and at.best is not None and at.best["epoch"] == at.epoch - 1:
            checkpoint.point(store, "best", path)
        checkpoint.prune(store, self.resolved.checkpoint.keep)

    def _tensors(self, evaluated: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        names = {id(p): name for name, p in self.model.named_parameters()}
        stored = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        for parameter, values in self.optimizer.state.items():
            for key, value in values.items():
                if isinstance(value, Tensor):
                    stored[f"optimizer/{names[id(parameter)]}/{key}"] = value
        stored |= self.step.state_dict()
        stored |= {f"meter/{name}": value for name, value in self.meter.tensors.items()}
        chosen = self._evaluated() if evaluated is None else evaluated
        stored |= {f"evaluated/{name}": value for name, value in chosen.items()}
        return stored

    def _optimizer_numbers(self) -> dict[str, dict[str, Any]]:
        names = {id(p): name for name, p in self.model.named_parameters()}
        return {
            names[id(parameter)]: {k: v for k, v in values.items() if not isinstance(v, Tensor) and v is not None}
            for parameter, values in self.optimizer.state.items()
        }

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint of this very run."""
        known = schema.state_of(state)
        if state["data"] != self.splits.train.fingerprint():
            raise ResumeMismatch("The training images differ from those the run was started with; restore them.")
        if changes := runfile.difference(state["run"], runfile.dump(self.resolved)):
            raise ResumeMismatch(f"run.toml is not that of the checkpoint: {'; '.join(changes)}. Restore it.")
        schema.check(
            known,
            tensors,
            self._tensors(None),
            {name: p for name, p in self.model.named_parameters() if p.requires_grad},
            epochs=self.resolved.run.epochs,
            momentum=self.resolved.optimizer.momentum > 0,
            split=self._selecting_split(),
        )
        put_weights(self.model, tensors, "the run's checkpoint")
        parameters = dict(self.model.named_parameters())
        for name, numbers in state["optimizer"].items():
            self.optimizer.state[parameters[name]].update(numbers)
        for full, value in tensors.items():
            kind, _, name = full.partition("/")
            if kind == "optimizer":
                owner, _, key = name.rpartition("/")
                parameter = parameters[owner]
                self.optimizer.state[parameter][key] = torch.empty_like(parameter).copy_(value)
        self.step.load_state_dict(
            {n: v for n, v in tensors.items() if n.startswith(("samples/", "tensors/", "position"))}
        )
        self.position = Position(**state["position"])
        sums = {name.removeprefix("meter/"): v for name, v in tensors.items() if name.startswith("meter/")}
        self.meter.restore(state["meter"], sums, self.device)

    def _farewell(self) -> str:
        at = self.position
        kept = f" Continue with: advkit train --resume {self.folder.path}" if self.folder else ""
        return f"Stopped in epoch {at.epoch + 1} after step {at.step}; everything is saved.{kept}"


def parted(resolved: Resolved, samples: int) -> tuple[Tensor, Tensor]:
    """Indices of the training split to train on, and those held out for validation, by the run's seed; rising."""
    held_out = round(resolved.validation.fraction * samples)
    order = permutation(derive_key(resolved.run.seed, CORE, "validation"), samples)
    return order[held_out:].sort().values, order[:held_out].sort().values


class _replaced:
    """Some parameters and buffers of a module replaced, for the scope."""

    def __init__(self, model: nn.Module, values: Mapping[str, Tensor]) -> None:
        self.model, self.values = model, values

    def __enter__(self) -> None:
        own = self.model.state_dict() if self.values else {}
        self.before = {name: own[name].clone() for name in self.values}
        self.model.load_state_dict(dict(self.values), strict=False)

    def __exit__(self, *_: object) -> None:
        self.model.load_state_dict(self.before, strict=False)


def _occurrences(batches: Sequence[Tensor]) -> list[Tensor]:
    """How often each index came before in the epoch, in the shape of `batches`."""
    flat = torch.cat(list(batches))
    order = flat.argsort(stable=True)
    ranked = flat[order]
    first = torch.ones_like(ranked, dtype=torch.bool)
    first[1:] = ranked[1:] != ranked[:-1]
    place = torch.arange(len(flat))
    starts = torch.where(first, place, torch.zeros_like(place)).cummax(0).values
    seen = torch.empty_like(flat)
    seen[order] = place - starts
    return list(torch.split(seen, [len(batch) for batch in batches]))
