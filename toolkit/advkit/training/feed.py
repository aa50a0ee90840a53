"""What the loop feeds the step: which images, in which order, augmented how."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..claims import free_memory
from ..config.resolve import Resolved
from ..data.base import Dataset, Splits
from ..data.transforms import TRANSFORMS, to_float
from ..errors import HookContract, OptionError
from ..plugin import CORE
from ..rng import Draws, derive_key, permutation
from .panel import Panel

ROOM = 4
"""A GPU keeps the training images where they take no more than this part of its free memory."""


class Feed:
    """Batches of one run. `training` and `validation` are indices into `train_set`, each (n,) int64 and rising."""

    def __init__(self, resolved: Resolved, splits: Splits, panel: Panel) -> None:
        self.run, self.panel = resolved.run, panel
        named = resolved.data.transform
        self.transform = TRANSFORMS[splits.transform if named == "auto" else named]
        self.train_set = self._grown(splits.train)
        self._images, self._labels = near(self.train_set, panel.state.device)
        original = len(splits.train)
        training, self.validation = parted(resolved, original)
        # Added samples are never held out.
        self.training = torch.cat([training, torch.arange(original, len(self.train_set))])
        refuse_no_rest(len(self.training))
        self.rows = -(-min(self.run.batch_size, len(self.training)) // self.run.accumulate)  # of most forwards

    def _grown(self, dataset: Dataset) -> Dataset:
        """The training set after the chain of `train_dataset`."""
        for answer in self.panel.composition.answers["train_dataset"]:
            grown = self.panel.ask(answer, {"dataset": dataset})
            fits = isinstance(grown, Dataset) and len(grown) >= len(dataset) and grown.shape == dataset.shape
            if not fits or not torch.equal(grown.labels[: len(dataset)], dataset.labels):
                raise HookContract.broken(
                    answer.plugin.name,
                    answer.hook,
                    "an advkit.Dataset of the same image shape is expected, with added samples at its end",
                )
            dataset = grown
        state = self.panel.state
        state.num_samples, state.num_classes, state.image_shape = len(dataset), len(dataset.classes), dataset.shape
        return dataset

    def batches(self, epoch: int) -> list[Tensor]:
        """The index tensors of an epoch, each (b,) int64: a function of the seed and the epoch."""
        size = self.run.batch_size
        if sampler := self.panel.composition.at(epoch).owner("train_sampler"):
            known = {"indices": self.training, "batch_size": size, "epoch": epoch}
            answer = self.panel.ask(sampler, known)
            batches = list(answer) if isinstance(answer, Iterable) else []
            allowed = torch.zeros(len(self.train_set), dtype=torch.bool)
            allowed[self.training] = True
            if not batches or not all(_is_batch(batch, allowed) for batch in batches):
                raise HookContract.broken(
                    sampler.plugin.name, sampler.hook, "every batch must be an int64 tensor (b,) of `indices`"
                )
            return batches
        order = permutation(derive_key(self.run.seed, CORE, "order", "train", epoch), len(self.training))
        *batches, last = torch.split(self.training[order], size)
        if len(last) > 1 or not batches or self.run.lone_image == "keep":
            return [*batches, last]
        return [*batches[:-1], torch.cat([batches[-1], last])] if self.run.lone_image == "merge" else batches

    def images(self, index: Tensor, occurrence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x, y, index of a batch on the device, augmented."""
        state, rows = self.panel.state, index.to(self._images.device)
        x = to_float(self._images[rows].to(state.device), state.dtype)
        labels, index = self._labels[rows].to(state.device), index.to(state.device)
        key = derive_key(self.run.seed, CORE, "transform", "train", state.epoch)
        draws = Draws(key, index, occurrence.to(state.device))
        owner = self.panel.stage.owner("train_transform")
        if owner is None:
            return self.transform(x, draws), labels, index
        with self.panel.watching(self.run.check_hooks or state.step == 0):
            augmented = self.panel.ask(owner, {"x": x, "draws": draws})
        if not isinstance(augmented, Tensor) or (augmented.shape, augmented.dtype) != (x.shape, x.dtype):
            what = f"images {tuple(x.shape)} {x.dtype} are expected, as they came"
            raise HookContract.broken(owner.plugin.name, owner.hook, what)
        careful = state.step == 0 or self.run.check_hooks or x.is_cpu  # elsewhere a check waits for the device
        if careful and not bool(((augmented >= 0) & (augmented <= 1)).all()):
            raise HookContract.broken(owner.plugin.name, owner.hook, "images leave [0, 1]")
        return augmented, labels, index


def near(dataset: Dataset, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) uint8 and labels (N,), on the device where it has room for them, else where they are."""
    images, labels = dataset.images, dataset.labels
    free = 0 if device.type == "cpu" else free_memory(device) or 0
    return (images.to(device), labels.to(device)) if ROOM * images.numel() <= free else (images, labels)


def _is_batch(batch: object, allowed: Tensor) -> bool:
    """Whether these are indices, all of them of samples that are `allowed` (N,)."""
    if not isinstance(batch, Tensor) or batch.dtype != torch.int64 or batch.dim() != 1 or not len(batch):
        return False
    return bool(((batch >= 0) & (batch < len(allowed))).all()) and bool(allowed[batch].all())


def refuse_no_rest(training: int) -> None:
    """OptionError where so many images to train on are none."""
    if training <= 0:
        raise OptionError("validation.fraction leaves nothing to train on; lower it.")


def parted(resolved: Resolved, samples: int) -> tuple[Tensor, Tensor]:
    """Indices of the training split to train on, and those held out for validation, by the run's seed; rising."""
    held_out = round(resolved.validation.fraction * samples)
    order = permutation(derive_key(resolved.run.seed, CORE, "validation"), samples)
    return order[held_out:].sort().values, order[:held_out].sort().values
