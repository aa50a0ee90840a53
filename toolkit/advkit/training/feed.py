"""What the loop feeds the step: which images, in which order, augmented how."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..config.resolve import Resolved
from ..data.base import Dataset, Splits
from ..data.decoded import Decoded
from ..data.transforms import WHEN_DECODED, to_float
from ..errors import HookContract, OptionError, blamed
from ..own_file import staying
from ..plugin import CORE
from ..rng import Draws, derive_key, permutation
from .ahead import ahead, near, transform_of
from .lone import batched
from .panel import Panel
from .ranks import here
from .visits import begins_with, is_batch


class Feed:
    """Batches of one run. `training` and `validation` are indices into `train_set`, each (n,) int64 and rising."""

    def __init__(self, resolved: Resolved, splits: Splits, panel: Panel) -> None:
        self.run, self.panel = resolved.run, panel
        self.train_set = self._grown(splits.train)
        name = splits.transform if resolved.data.transform == "auto" else resolved.data.transform
        self.transform, self._drawn = transform_of(name, self.train_set), name == WHEN_DECODED
        self._images, self._labels = near(self.train_set, panel.state.device)
        self._ahead = ahead(self._pixels, self._images, panel.state.device)
        training, self.validation = parted(resolved, len(splits.train))  # of added ones none is held out
        self.training = torch.cat([training, torch.arange(len(splits.train), len(self.train_set))])
        refuse_no_rest(len(self.training))
        self.rows = -(-len(here().share(self.training[: self.run.batch_size])) // self.run.accumulate)  # usually

    def _grown(self, dataset: Dataset) -> Dataset:
        """The training set after the chain of `train_dataset`."""
        for answer in self.panel.composition.answers["train_dataset"]:
            grown = self.panel.ask(answer, {"dataset": dataset})
            if not isinstance(grown, Dataset) or not begins_with(grown, dataset):
                raise HookContract.broken(
                    answer.plugin.name,
                    answer.hook,
                    "an advkit.Dataset that begins with the samples of the given one is expected",
                )
            dataset = grown
        state = self.panel.state
        state.num_samples, state.num_classes, state.image_shape = len(dataset), len(dataset.classes), dataset.shape
        return dataset

    def batches(self, epoch: int) -> list[Tensor]:
        """The index tensors of an epoch, each (b,) int64: a function of the seed and the epoch."""
        if sampler := self.panel.composition.at(epoch).owner("train_sampler"):
            known = {"indices": self.training, "batch_size": self.run.batch_size, "epoch": epoch}
            answer = self.panel.ask(sampler, known)
            with blamed(f"in plugin {sampler.plugin.name}, hook {sampler.hook}, epoch {epoch + 1}, step 1"):
                batches = list(answer) if isinstance(answer, Sequence) else []  # an iterator may never end
            allowed = torch.zeros(len(self.train_set), dtype=torch.bool).index_fill_(0, self.training, True)
            if not batches or not all(is_batch(batch, allowed) for batch in batches):
                what = "every batch must be an int64 tensor (b,) of `indices`, and all of them in a list"
                raise HookContract.broken(sampler.plugin.name, sampler.hook, what)
            return batches
        order = permutation(derive_key(self.run.seed, CORE, "order", "train", epoch), len(self.training))
        return batched(self.training[order], self.run)

    @property
    def sizes(self) -> list[int] | None:
        """How many images the batches of an epoch have; None where a plugin makes them, of whatever number."""
        sampled = self.panel.composition.answers["train_sampler"]
        return None if sampled else [len(batch) for batch in batched(self.training, self.run)]

    def begin(self, index: Tensor, occurrence: Tensor) -> None:
        """Say which batch is the next of this epoch: its images are gathered meanwhile where that takes time."""
        self._ahead.begin(index, occurrence, self.panel.state.epoch)

    def _pixels(self, index: Tensor, occurrence: Tensor, epoch: int) -> Tensor:
        images = self._images
        if self._drawn and isinstance(images, Decoded) and self.panel.stage.owner("train_transform") is None:
            return images.drawn(index, self._draws(index, occurrence, epoch))
        return images[index.to(images.device)]

    def _draws(self, index: Tensor, occurrence: Tensor, epoch: int) -> Draws:
        return Draws(derive_key(self.run.seed, CORE, "transform", "train", epoch), index, occurrence)

    def images(self, index: Tensor, occurrence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x, y, index of a batch on the device, augmented."""
        state = self.panel.state
        pixels = self._ahead.images(index, occurrence, state.epoch)
        x = to_float(pixels.to(state.device, non_blocking=True), state.dtype)
        labels, here = self._labels[index.to(self._labels.device)].to(state.device), index.to(state.device)
        owner = self.panel.stage.owner("train_transform")
        if owner is None:  # a few numbers an image: a GPU takes longer to be told how than a CPU to do it
            return self.transform(x, self._draws(index.cpu(), occurrence.cpu(), state.epoch)), labels, here
        with self.panel.watching(self.run.check_hooks or state.step == 0), staying():
            augmented = self.panel.ask(owner, {"x": x, "draws": self._draws(here, occurrence.to(here), state.epoch)})
        if not isinstance(augmented, Tensor) or (augmented.shape, augmented.dtype) != (x.shape, x.dtype):
            what = f"images {tuple(x.shape)} {x.dtype} are expected, as they came"
            raise HookContract.broken(owner.plugin.name, owner.hook, what)
        careful = state.step == 0 or self.run.check_hooks or x.is_cpu  # elsewhere a check waits for the device
        if careful and not bool(((augmented >= 0) & (augmented <= 1)).all()):
            raise HookContract.broken(owner.plugin.name, owner.hook, "images leave [0, 1]")
        return augmented, labels, here


def refuse_no_rest(training: int) -> None:
    """OptionError where so many images to train on are none."""
    if training <= 0:
        raise OptionError("validation.fraction leaves nothing to train on; lower it.")


def parted(resolved: Resolved, samples: int) -> tuple[Tensor, Tensor]:
    """Indices of the training split to train on, and those held out for validation, by the run's seed; rising."""
    held_out = round(resolved.validation.fraction * samples)
    order = permutation(derive_key(resolved.run.seed, CORE, "validation"), samples)
    return order[held_out:].sort().values, order[:held_out].sort().values
