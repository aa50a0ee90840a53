"""Data as people have them, converted to advkit's: pairs of arrays, torch data sets, one set in place of two."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, TensorDataset, default_collate, default_convert

from ..errors import DataError, OptionError, named, says, shown
from ..explained import raise_own
from ..generators import generators, put_back, repeatable
from ..hidden import without_trace
from ..judging import untouched
from ..modules import mode, own_generator, placement
from ..own_file import OwnFile
from ..registry import answer
from .arrays import as_images, as_labels, dense, is_picture
from .base import Dataset, DataSource, Splits
from .transforms import to_float

KNOWN = (
    "an advkit.Dataset, a pair (images, labels) of tensors or arrays, a torch data set of such pairs, or a DataLoader "
    "over one"
)

AGAIN = 32
"""Samples that are drawn a second time."""

MOST = 1_000_000
"""Classes; labels beyond it are something else, and their names would fill the memory."""


def as_dataset(data: Any, name: str = "own") -> Dataset:
    """One set of images.

    Images are uint8, or floats in [0, 1], which are rounded to the 256 gray levels, with a note where that moves them;
    channels come first. Labels are whole numbers from 0. Of a DataLoader the data set is taken, in its order; one that
    leaves samples out, repeats some or makes something else of them is refused, and so are samples that are others when
    they are drawn again. Raises DataError, one sentence, for anything else.
    """
    if isinstance(data, Dataset):
        return data
    if isinstance(data, Splits):
        raise DataError("These are advkit.Splits, two data sets; give one of them, such as splits.test.")
    if isinstance(data, DataLoader):
        return as_dataset(_whole(data), name)
    _refuse_apart(data)
    images, labels = _pair(data)
    (images, note), labels = as_images(images), as_labels(labels)
    if not len(images) and not len(labels):
        raise DataError("There are no images; give one at least.")
    if len(images) != len(labels):
        raise DataError(f"There are {len(images)} images and {len(labels)} labels; give one label an image.")
    if (highest := int(labels.max())) >= MOST:
        raise DataError(f"The labels run to {highest}, so there would be as many classes; number the classes from 0.")
    classes = _classes(data, highest + 1)
    return Dataset(name, images, labels, classes, counted=not _named(data, len(classes)), notes=note)


def as_wide_as(data: Splits, model: nn.Module) -> Splits:
    """Sets whose classes were counted, with as many as the model has logits: the last ones may have no image here."""
    if not (data.train.counted and data.test.counted):
        return data
    width = _width(model, data.train)
    return data if width is None else as_wide(data, width)


def as_wide(data: Splits, width: int) -> Splits:
    """Sets whose classes were counted, of `width` classes at least."""
    if not (data.train.counted and data.test.counted) or width <= len(data.train.classes):
        return data
    names = tuple(str(label) for label in range(width))
    train = replace(data.train, classes=names)
    return replace(data, train=train, test=train if data.test is data.train else replace(data.test, classes=names))


def _width(model: nn.Module, dataset: Dataset) -> int | None:
    """How many logits the model has; None where that is to be found out, and said, by those who need them."""
    if any(is_lazy(value) for value in model.parameters()):
        return None
    device, dtype = placement(model)
    x = to_float(dataset.images[:1].to(device), dtype)
    try:
        with (
            own_generator(device),
            without_trace(model),
            mode(model, training=False),
            torch.no_grad(),
            untouched(x, by_value=True),
        ):
            logits = model(x)
    except (Exception, SystemExit):
        return None
    return logits.shape[1] if isinstance(logits, Tensor) and logits.dim() == 2 else None


class OwnData(DataSource):
    """The images that FILE.py:NAME gives."""

    name = "own"

    def __init__(self, file: OwnFile) -> None:
        self.file = file

    def load(self, root: Path | None, limit: int | None) -> Splits:
        if root is not None and not self.file.takes("root"):
            raise OptionError(
                f"{self.file.short} takes no argument root, so {named('--data-root')} would change nothing; leave it "
                "out, or let it take one."
            )
        with repeatable(0):
            given = self.file.made({"root": root}, {})
        with self.file.running():  # samples are read here
            splits = as_splits(given, self.file.short)
        if limit is None:
            return splits
        train = splits.train.take(self.places(splits.train.labels, limit))
        test = train if splits.test is splits.train else splits.test.take(self.places(splits.test.labels, limit))
        return replace(splits, train=train, test=test)


def as_splits(data: Any, name: str = "own") -> Splits:
    """Training and test images: `Splits`, a pair of sets, or one set, which then stands for both."""
    if isinstance(data, Splits):
        return data
    _refuse_apart(data)
    if isinstance(data, tuple | list) and len(data) == 2 and not all(_is_array(part) for part in data):
        train, test = (as_dataset(part, name) for part in data)
        if train.classes != test.classes and train.classes[: len(test.classes)] == test.classes:
            test = replace(test, classes=train.classes)  # the last classes have no test image
        return Splits(train, test, transform="none")
    both = as_dataset(data, name)
    return Splits(both, both, transform="none")


def _refuse_apart(data: Any) -> None:
    """DataError for (images, labels) whose images are a list of arrays, one each, or whose labels are no numbers."""
    if isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[0], Tensor | np.ndarray):
        labels = data[1]
        if isinstance(labels, Sequence) and len(labels) == len(data[0]) and isinstance(labels[0], str):
            raise DataError(
                f"The labels are texts, such as {shown(labels[0])}; give whole numbers (N,), the positions of the "
                "classes."
            )
    if isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[0], tuple | list) and _is_array(data[1]):
        if data[0] and is_picture(data[0][0]):
            dense(data[0][0], "images")
        images = [image for image in data[0] if isinstance(image, Tensor | np.ndarray)]
        if images and len(images) == len(data[0]):
            if len({tuple(image.shape) for image in images}) > 1:
                raise DataError("The images differ in shape; resize all images to one size.")
            raise DataError(
                f"The images are a list of {len(images)} arrays; give one of all, such as np.stack(images)."
            )


@contextmanager
def _reading(data: Any) -> Iterator[None]:
    """DataError for what a stranger's class raises in the scope, or SystemExit, which ends no program here.

    An exception of a class of somebody's own stays what it is.
    """
    try:
        yield
    except DataError:
        raise
    except (Exception, SystemExit) as error:
        raise_own(error, f"the data set {type(data).__name__} raised it")
        reason = f"{type(error).__name__}: {' '.join(says(error).split())}"
        raise DataError(
            f"The samples of {type(data).__name__} can not be read ({reason}); mend the data set."
        ) from error


def _whole(loader: DataLoader[Any]) -> Any:
    """The data set of a loader that draws each of its samples once, as it is; DataError for another loader."""
    data = loader.dataset
    if isinstance(data, IterableDataset):
        return data
    batches = loader.batch_sampler
    plain = batches is None or type(batches) is BatchSampler
    sampler: Any = getattr(batches, "sampler", loader.sampler) if plain else batches
    before = generators()
    with _reading(data):
        count = len(data)  # type: ignore[arg-type]
    with _reading(sampler):
        order = list(islice(sampler if plain else chain.from_iterable(sampler), count + 1))
    put_back(before)
    if sorted(order) != list(range(count)):
        raise DataError(
            f"The DataLoader does not draw each sample of its data set once ({type(sampler).__name__}), and advkit "
            "takes the data set as it is; pass the samples that are meant, such as torch.utils.data.Subset(data, "
            "indices)."
        )
    if loader.collate_fn not in (default_collate, default_convert) and not _only_stacks(loader.collate_fn, data):
        raise DataError(
            "The DataLoader makes something else of its samples (collate_fn), and advkit takes them as they are; pass "
            "a data set whose samples are what that makes of them."
        )
    return data


def _only_stacks(collate: Callable[[list[Any]], Any], data: Any) -> bool:
    """Whether it makes of two samples what torch's own makes of them."""
    with _reading(data):
        samples = [data[place] for place in range(min(2, len(data)))]
    before = generators()
    try:
        pairs = zip(default_collate(samples), collate(samples), strict=True)
        return all(torch.equal(own, torch.as_tensor(made)) for own, made in pairs)
    except (Exception, SystemExit):  # whatever a stranger's function raises or returns
        return False
    finally:
        put_back(before)


def _refuse_random(data: Any, samples: list[Any]) -> None:
    """DataError where some of them are others when they are drawn again: what is drawn once would stay so."""
    before = generators()
    for place in range(0, len(samples), max(1, len(samples) // AGAIN)):
        with _reading(data):
            (image, label), (was, of) = data[place], samples[place]
            same = torch.equal(dense(image, "images"), dense(was, "images")) and np.array_equal(label, of)
        if not same:
            raise DataError(
                f"The samples of {type(data).__name__} are others when they are drawn again, as by random "
                "augmentation, and advkit draws each once; pass the data set without it, in training with a transform "
                "of advkit's: Splits(train, test, 'crop-flip')."
            )
    put_back(before)


def _pair(data: Any) -> tuple[Any, Any]:
    """All images and all labels."""
    if type(data) is TensorDataset and len(data.tensors) == 2:
        return data.tensors[0], data.tensors[1]
    if isinstance(data, tuple | list) and len(data) == 2 and all(_is_array(part) for part in data):
        return data[0], data[1]
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")) or isinstance(data, str | bytes | dict | Tensor):
        raise DataError(f"Data of type {type(data).__name__} are none that advkit takes; give {KNOWN}.")
    with _reading(data):
        samples = [data[place] for place in range(len(data))]
    if not all(isinstance(sample, tuple | list) and len(sample) == 2 for sample in samples):
        if isinstance(data, tuple | list):
            what = f"{len(data)} of type {type(data[0]).__name__}"
            raise DataError(f"Here one data set is taken, and these are {what}; give one of them, or {KNOWN}.")
        raise DataError(f"The samples of {type(data).__name__} are no pairs (image, label); give {KNOWN}.")
    _refuse_random(data, samples)
    images = [dense(image, "images") for image, _ in samples]
    if len({image.shape for image in images}) > 1:
        raise DataError("The images differ in shape; resize all images to one size.")
    return torch.stack(images) if images else torch.zeros(0), [label for _, label in samples]


def _is_array(part: object) -> bool:
    return isinstance(part, Tensor | np.ndarray) or (
        isinstance(part, Sequence) and bool(part) and all(isinstance(value, int | np.integer) for value in part)
    )


def _classes(data: Any, count: int) -> tuple[str, ...]:
    """The names a torchvision set gives its classes, else numbers; two at least."""
    return tuple(data.classes) if _named(data, count) else tuple(str(label) for label in range(max(count, 2)))


def _named(data: Any, count: int) -> bool:
    names = getattr(data, "classes", None)
    return isinstance(names, list | tuple) and len(names) >= count and all(isinstance(name, str) for name in names)


def loaded(
    kind: type[DataSource],
    root: str | Path | None = None,
    limit: int | None = None,
    max_pixels: int | None = None,
    balance: bool = False,
    size: int = 0,
) -> Splits:
    """What a registered source loads that is told the settings of the section `data`."""
    source = answer("data set", kind, (kind,), kind)
    source.max_pixels, source.balance, source.size = max_pixels or kind.max_pixels, balance, size
    where = Path(os.path.expanduser(root)) if root else None
    return answer("data set", kind, (Splits,), source.load, where, limit or None)
