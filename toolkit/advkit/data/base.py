"""What a data set is: images and labels, in memory or mapped into it, and a source that loads them."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import sqrt
from pathlib import Path
from typing import ClassVar, NoReturn

import torch
from torch import Tensor

from ..arguments import checked, fits
from ..errors import DataError, OptionError, did_you_mean, shown
from .arrays import channels_last, is_dense
from .by_row import ByRow, Chained
from .chosen import balanced, shuffled
from .repeats import repeats
from .transforms import TRANSFORMS

PIECE = 1 << 24
"""Bytes of images that are looked at together where all are: those of a file need not be in memory at once."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images (N, C, H, W) uint8 and labels (N,) int64, both on the CPU; `labels` are positions in `classes`.

    `index` (N,) int64 are the images' places in the split they were taken from; 0 to N - 1 for a whole one. In
    training the position of an image in the data set that is trained on is its stable index: per-sample state and
    random draws are addressed by it. Raises DataError where the parts do not fit together.
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    index: Tensor = field(default=None)  # type: ignore[assignment]  # until __post_init__ counts
    counted: bool = False
    """Whether `classes` are as many as the labels name, because nobody said how many there are."""
    notes: tuple[str, ...] = ()
    """What whoever uses these images should know, such as that they were rounded."""

    def __post_init__(self) -> None:
        images, labels, classes = self.images, self.labels, self.classes
        if not isinstance(self.name, str):
            raise DataError(f"The name of a data set is {shown(self.name)}; give a text.")
        if not isinstance(self.counted, bool):
            self._refuse(f"counted is {shown(self.counted)}; give True or False")
        if not fits(classes, Sequence[str]):
            self._refuse(f"classes are {shown(classes)}; give their names, two or more texts such as ('cat', 'dog')")
        if not fits(self.notes, Sequence[str]):
            self._refuse(f"notes are {shown(self.notes)}; give sentences, a tuple of texts")
        count = len(classes)
        if not _is(images, torch.uint8) or images.ndim != 4:
            self._refuse(f"images are {_described(images)}; give a uint8 tensor (N, C, H, W) on the CPU")
        if channels_last(images.shape):
            self._refuse(f"images are {_described(images)}, channels last; give images.permute(0, 3, 1, 2)")
        if self.index is None:
            object.__setattr__(self, "index", torch.arange(len(images), device="cpu"))
        for name, values in (("labels", labels), ("index", self.index)):
            if not _is(values, torch.int64) or values.shape != images.shape[:1]:
                self._refuse(f"{name} are {_described(values)}; give an int64 tensor ({len(images)},) on the CPU")
        if images.numel() == 0:
            self._refuse(f"images are empty, {tuple(images.shape)}; give at least one image")
        if count < 2 or len(set(classes)) != count:
            self._refuse(f"classes are {classes}; give two or more different names")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= count:
            self._refuse(f"labels run from {low} to {high}; they must be 0 to {count - 1} for {count} classes")

    def _refuse(self, reason: str) -> NoReturn:
        raise DataError(f"Data set {self.name}: {reason}.")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @checked()
    def take(self, rows: Tensor | slice) -> Dataset:
        """The images at `rows`, positions (n,) int64 or a slice; their `index` still tells their places."""
        try:
            images = self.images.part(rows) if isinstance(self.images, ByRow) else self.images[rows]
        except (IndexError, RuntimeError):
            self._refuse(
                f"rows are {_described(rows)}; give positions (n,) int64 from 0 to {len(self) - 1}, or a slice"
            )
        return replace(self, images=images, labels=self.labels[rows], index=self.index[rows])

    @checked()
    def joined(self, extra: Dataset) -> Dataset:
        """This set with the images of another at its end, as many classes as this one has; no image is copied."""
        if extra.shape != self.shape:
            self._refuse(f"images are {self.shape}, and those of {extra.name} {extra.shape}; make them equal")
        images, labels = Chained(self.images, extra.images), torch.cat([self.labels, extra.labels])
        return Dataset(self.name, images, labels, self.classes)

    @checked()
    def sample(self, count: int) -> Dataset:
        """`count` images chosen at random without replacement, in random order; all of them as they are for 0.

        Every image is as likely as another, so shares and intervals speak of the whole set. A smaller choice is the
        beginning of a larger one.
        """
        return self.take(shuffled(self.index)[:count]) if 0 < count < len(self) else self

    def fingerprint(self) -> str:
        """SHA-256 of shape, classes, images (`decoded.py`: files) and labels, in hex; not of name and `index`."""
        return self._sha256

    @cached_property
    def _sha256(self) -> str:
        digest = fingerprint_of(self.images.shape, self.classes)
        own = self.images.contents() if isinstance(self.images, ByRow) else None
        for content in own or (piece.contiguous().numpy().data for piece in pieces(self.images)):
            digest.update(content)
        digest.update(self.labels.contiguous().numpy().astype("<i8").data)
        return digest.hexdigest()

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, in [0, 1]; the latter is at least 1/255.

        Sums are exact integers, so the result does not depend on threads or on the machine. Of pictures that are
        decoded on demand it is that of 4,096 at most.
        """
        means, deviations = [], []
        for counts in self._levels:
            n = sum(counts)
            total = sum(value * count for value, count in enumerate(counts))
            squares = sum(value * value * count for value, count in enumerate(counts))
            means.append(total / (255 * n))
            deviations.append(max(sqrt(n * squares - total * total) / n, 1.0) / 255)
        return tuple(means), tuple(deviations)

    @cached_property
    def _levels(self) -> list[list[int]]:
        images = self.images.sample() if isinstance(self.images, ByRow) else self.images
        counts: list[list[int]] = sum(gray_levels(piece) for piece in pieces(images)).tolist()  # type: ignore[union-attr]
        return counts

    def known(self, fingerprint: str, levels: list[list[int]]) -> Dataset:
        """This very set, of which both were taken down when it was stored: nobody has to read all images for them."""
        vars(self).update(_sha256=fingerprint, _levels=levels)
        return self


def pieces(images: Tensor) -> Iterator[Tensor]:
    """Images (N, C, H, W) in their order, some at a time."""
    size = max(1, PIECE // max(1, images[0].numel()))
    for start in range(0, len(images), size):
        yield images[start : start + size]


def fingerprint_of(shape: Sequence[int], classes: Sequence[str]) -> hashlib._Hash:
    """Digest for the bytes of all images (N, C, H, W), and then those of the labels as little-endian int64."""
    return hashlib.sha256(json.dumps([list(shape), list(classes)]).encode())


def gray_levels(images: Tensor) -> Tensor:
    """(C, 256) int64: how often each channel of images (N, C, H, W) has each value."""
    return torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)])


def _is(values: object, dtype: torch.dtype) -> bool:
    return isinstance(values, Tensor) and values.dtype == dtype and values.device.type == "cpu" and is_dense(values)


def _described(values: object) -> str:
    """ "int32 (8,) on cpu", or the type of what is no tensor."""
    if not isinstance(values, Tensor) or not is_dense(values):
        return f"of type {type(values).__name__}{', not dense' if isinstance(values, Tensor) else ''}"
    return f"{str(values.dtype).removeprefix('torch.')} {tuple(values.shape)} on {values.device.type}"


@dataclass(frozen=True, eq=False)
class Splits:
    """A training and a test set of the same classes and image shape; `transform` names the default one."""

    train: Dataset
    test: Dataset
    transform: str
    notes: tuple[str, ...] = ()
    """What whoever trains on it should know, such as files that were left out."""

    def __post_init__(self) -> None:
        train, test = self.train, self.test
        for split in (train, test):
            if not isinstance(split, Dataset):
                raise DataError(f"Splits are two of advkit.Dataset, to train and to test on; {shown(split)} is none.")
        if train.shape != test.shape or train.classes != test.classes:
            one, other = (f"{split.shape} with {len(split.classes)}" for split in (train, test))
            what = f"shape or classes, {one} classes and {other}" if one != other else "order or names of classes"
            raise DataError(f"Data set {train.name}: training and test images differ in {what}; make them equal.")
        if not isinstance(self.transform, str) or self.transform not in TRANSFORMS:
            given = shown(self.transform)
            raise DataError(
                f"Data set {train.name}: unknown transform {given}.{did_you_mean(given, TRANSFORMS)} "
                f"Known: {', '.join(TRANSFORMS)}."
            )
        if not fits(self.notes, Sequence[str]):
            raise DataError(f"Data set {train.name}: notes are {shown(self.notes)}; give sentences, a tuple of texts.")

    @cached_property
    def cautions(self) -> tuple[str, ...]:
        """The notes, and what looking at all images says of them; computed where it is asked for."""
        train, test = self.train, self.test
        said = repeats(train.images, train.labels, test.images, test.labels)
        own = dict.fromkeys(f"{split.name}: {note}" for split in (train, test) for note in split.notes)
        return (*self.notes, *own, *([f"{train.name}: {said}"] if said else []))


class DataSource(ABC):
    """Loads a data set. The first line of a subclass's docstring is its summary; subclasses are final.

    `name` is what `--data` takes. `defaults` are settings this data suggests, such as `{"attack.eps": 0.15}`.
    """

    name: ClassVar[str]
    defaults: ClassVar[Mapping[str, object]] = {}
    reads: ClassVar[bool] = True  # files, so that data.root is of use
    decodes: ClassVar[bool] = True  # and those of pictures, so that data.max_pixels is

    max_pixels: int = 1 << 24
    """Most pixels of one image, judged before it is decoded; the setting data.max_pixels."""

    size: int | None = None
    """Side of images that are decoded on demand, the setting data.size; 0: all are as they are; None: always."""

    balance: bool = False
    """Whether a limit takes as many of each class, in place of images at random; the setting data.balance."""

    @abstractmethod
    def load(self, root: Path | None, limit: int | None) -> Splits:
        """Both splits, from the folder or file `root` where the source needs one.

        Images are in the order of the files. Of each split those at `places` are kept, and `Dataset.index` tells which.
        Raises DataError for absent or damaged files, OptionError for an impossible `root` or `limit`.
        """

    def places(self, labels: Tensor, limit: int | None) -> Tensor:
        """Which of a split's labels (N,) to keep, at most `limit`: rising positions; no run's seed enters.

        A smaller limit keeps some of what a larger one does. Raises OptionError for one below the number of classes.
        """
        if limit is None:
            return torch.arange(len(labels))
        turn = balanced(labels) if self.balance else shuffled(torch.arange(len(labels)))
        refuse_few(limit, len(torch.unique(labels)))
        return turn[:limit].sort().values


def refuse_few(limit: int, classes: int) -> None:
    """OptionError for a limit of images that is below the number of classes."""
    if limit < classes:
        raise OptionError(f"A limit of {limit} images is below the number of classes; take at least {classes}.")
