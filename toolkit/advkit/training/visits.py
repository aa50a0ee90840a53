"""Which samples come in an epoch, and how often."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.base import Dataset
from ..data.by_row import ByRow

FEW = 256
"""Images that are looked at where they are no tensor in memory."""


class Visits:
    """Counts, by index, how often each sample came in this epoch; none where nobody keeps anything of `samples`.

    `epochs` is how many epochs the run has, as far as anybody has said.
    """

    def __init__(self, samples: int, device: torch.device, epochs: int | None = None) -> None:
        self.epoch, self.count = -1, torch.zeros(samples, dtype=torch.int32, device=device)
        self._epochs = epochs
        self.repeated = torch.zeros((), dtype=torch.bool, device=device)
        """Whether some index of this epoch came twice with one occurrence."""

    def begin(self, epoch: int) -> list[str]:
        """Cautions on the epoch that has ended, and, once, on one beyond the last."""
        cautions = [f"In epoch {self.epoch}, {AGAIN}"] if len(self.count) and bool(self.repeated) else []
        if self._epochs is not None and epoch >= self._epochs:
            cautions.append(
                f"epoch = {epoch}, but run.epochs is {self._epochs} and epochs count from 0, so the last is "
                f"{self._epochs - 1}. Schedules that are shares of the run are one or more epochs off, or past their "
                "end: count from 0, or give run.epochs the length of your loop."
            )
            self._epochs = None
        self.epoch = epoch
        self.count.zero_()
        self.repeated.zero_()
        return cautions

    def fit(self, index: Tensor, occurrence: Tensor) -> bool:
        """Whether these can be counted; where they can not, the step says why."""
        whole = index.dtype == torch.int64 and index.shape == occurrence.shape
        return whole and bool(((index >= 0) & (index < len(self.count))).all())

    def repeats(self, index: Tensor, occurrence: Tensor) -> Tensor:
        """() bool: whether one of these came before with that occurrence. No synchronisation."""
        return (occurrence < self.count[index]).any()

    def add(self, index: Tensor, occurrence: Tensor) -> None:
        before = self.count[index]
        self.repeated |= (occurrence < before).any()
        self.count[index] = torch.maximum(before, occurrence.to(torch.int32) + 1)


AGAIN = (
    "the index names samples that came before in this epoch; pass each sample's place in the training set, not in the "
    "batch, and number the visits of one that really comes again with `occurrence`."
)


def occurrences(batches: Sequence[Tensor]) -> list[Tensor]:
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


def all_differ(index: Tensor) -> bool:
    """Whether no sample is twice in a batch."""
    return len(torch.unique(index)) == len(index)


def is_batch(batch: object, allowed: Tensor) -> bool:
    """Whether these are indices, all of them of samples that are `allowed` (N,)."""
    if not isinstance(batch, Tensor) or batch.dtype != torch.int64 or batch.dim() != 1 or not len(batch):
        return False
    return bool(((batch >= 0) & (batch < len(allowed))).all()) and bool(allowed[batch].all())


def begins_with(grown: Dataset, dataset: Dataset) -> bool:
    """Whether the first samples of `grown` are those of a data set, with their classes: images, labels and order.

    Of images that are read or decoded when they are asked for, a few are compared.
    """
    count = len(dataset)
    if len(grown) < count or grown.shape != dataset.shape or grown.classes != dataset.classes:
        return False
    whole = not isinstance(dataset.images, ByRow)
    places = torch.arange(count) if whole else torch.arange(0, count, -(-count // FEW))
    return torch.equal(grown.labels[:count], dataset.labels) and all(
        torch.equal(grown.images[part], dataset.images[part]) for part in torch.split(places, FEW)
    )
