"""How images come to the step: where they lie, their transform, and those of the next batch, gathered ahead."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NoReturn

import torch
from torch import Tensor

from ..claims import free_memory
from ..data.base import Dataset
from ..data.decoded import Decoded
from ..data.transforms import TRANSFORMS, WHEN_DECODED
from ..errors import OptionError
from ..rng import Draws

ROOM = 4
"""A GPU keeps the training images where they take no more than this part of its free memory."""

Gather = Callable[[Tensor, Tensor, int], Tensor]
"""Images (b, C, H, W) of samples (b,), by how often each came before (b,), and the epoch."""


def near(dataset: Dataset, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) uint8 and labels (N,), on the device where it has room for them, else where they are."""
    images, labels = dataset.images, dataset.labels
    free = 0 if device.type == "cpu" or isinstance(images, Decoded) else free_memory(device) or 0
    return (images.to(device), labels.to(device)) if ROOM * images.numel() <= free else (images, labels)


def transform_of(name: str, dataset: Dataset) -> Callable[[Tensor, Draws], Tensor]:
    """The transform called so, for images of this set. Raises OptionError."""
    if name == WHEN_DECODED and not isinstance(dataset.images, Decoded):
        refuse_undecoded()
    return TRANSFORMS[name]


def refuse_undecoded() -> NoReturn:
    """OptionError for a transform that is done where pictures are decoded, of images that are there already."""
    raise OptionError(
        f"data.transform = {WHEN_DECODED} is done when pictures are decoded (image-folder with data.size), and not all "
        "of these are; take crop-flip, or none."
    )


class Now:
    """Gathers images when they are asked for."""

    def __init__(self, gather: Gather) -> None:
        self._gather = gather

    def begin(self, index: Tensor, occurrence: Tensor, epoch: int) -> None:
        """The batch that comes next."""

    def images(self, index: Tensor, occurrence: Tensor, epoch: int) -> Tensor:
        """Those of this batch, begun or not."""
        return self._gather(index, occurrence, epoch)


class Ahead(Now):
    """Gathers those of the next batch in a thread; `pinned`: into memory that a GPU fetches from by itself."""

    def __init__(self, gather: Gather, pinned: bool) -> None:
        super().__init__(gather)
        self._pinned, self._thread = pinned, ThreadPoolExecutor(1, "advkit-ahead")
        self._next: tuple[Tensor, Tensor, int, Future[Tensor]] | None = None

    def begin(self, index: Tensor, occurrence: Tensor, epoch: int) -> None:
        self._next = index, occurrence, epoch, self._thread.submit(self._made, index, occurrence, epoch)

    def images(self, index: Tensor, occurrence: Tensor, epoch: int) -> Tensor:
        begun, self._next = self._next, None
        if begun and begun[2] == epoch and torch.equal(begun[0], index) and torch.equal(begun[1], occurrence):
            return begun[3].result()
        return self._made(index, occurrence, epoch)

    def _made(self, index: Tensor, occurrence: Tensor, epoch: int) -> Tensor:
        images = self._gather(index, occurrence, epoch)
        return images.pin_memory() if self._pinned else images


def ahead(gather: Gather, images: Tensor, device: torch.device) -> Now:
    """In a thread where that takes time: of what is decoded, and of what is fetched from `images` by a GPU."""
    fetched = device.type == "cuda" and images.device.type == "cpu"
    return Ahead(gather, fetched) if fetched or isinstance(images, Decoded) else Now(gather)
