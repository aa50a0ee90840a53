"""Images in class folders, in a folder or a zip, decoded into memory, or with `data.size` when they are asked for.

Two layouts: `{train,test}/CLASS/IMAGE` (`val`, `valid` or `validation` stand in for a missing `test`), or
`CLASS/IMAGE` without splits; then a fixed fifth of each class, chosen by a hash of the name, is for testing.
Either may lie below one common top folder. Hidden files are ignored. Other files are told by their first bytes: a
picture is one whatever its name, one of a kind that is not read is refused, the rest is left out, and counted.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, OptionError, named
from .base import Dataset, DataSource, Splits
from .decoded import Decoded
from .notes import Notes, hidden, way
from .pictures import FORMATS, MAGIC, OTHERS, SUFFIXES, Files, decode, listed
from .transforms import WHEN_DECODED

TRAIN, TESTS = "train", ("test", "val", "valid", "validation")
HALVES = {TRAIN, *TESTS, "training", "testing"}
"""Names of folders, in any case, of which two are no classes."""

Classes = dict[str, list[str]]
"""The names of the images of each class, all sorted."""


@final
class ImageFolder(DataSource):
    """Images in a folder or zip: ROOT/{train,test}/CLASS/IMAGE, or ROOT/CLASS/IMAGE, split 80/20."""

    name = "image-folder"
    size = 0

    def load(self, root: Path | None, limit: int | None) -> Splits:
        if root is None:
            raise OptionError(
                f"image-folder reads your files; name the folder or zip with {named('--data-root', 'DIR')}."
            )
        with ExitStack() as stack:
            files = stack.enter_context(listed(root))
            splits = self._read(files, limit)
            if isinstance(splits.train.images, Decoded):  # they go on reading
                weakref.finalize(splits.train.images.files, stack.pop_all().close)
            return splits

    def _read(self, files: Files, limit: int | None) -> Splits:
        notes = Notes(files.root)
        files = replace(files, names=sort_files(files, notes))
        halves = split_files(files, notes)
        labels, names, places = [], [], []
        for classes in halves:
            label = torch.tensor([k for k, images in enumerate(classes.values()) for _ in images])
            kept = self.places(label, limit)
            all_names = [name for images in classes.values() for name in images]
            labels.append(label[kept])
            places.append(kept)
            names += [all_names[i] for i in kept.tolist()]
        cut, parts = len(labels[0]), list[Tensor]()
        if self.size:
            parts += [Decoded(files, tuple(half), self.size, self.max_pixels) for half in (names[:cut], names[cut:])]
        else:
            images = _decode_all(files, names, self.max_pixels, notes.odd)
            parts += [images[:cut], images[cut:]]
        train, test = (
            Dataset(ImageFolder.name, part, label, tuple(halves[0]), kept)
            for part, label, kept in zip(parts, labels, places, strict=True)
        )
        return Splits(train, test, WHEN_DECODED if self.size else "crop-flip", notes.sentences())


def sort_files(files: Files, notes: Notes) -> tuple[str, ...]:
    """Folders and pictures; the rest goes to `notes`. Raises DataError for pictures of a kind that is not read."""
    pictures: list[str] = []
    for name, times in Counter(files.names).items():
        folder = name[-1:] == "/"
        if hidden(name) or not name:
            continue
        if how := way(name):
            notes.ways[how] += 0 if folder else times
            continue
        if times > 1 and not folder:
            notes.twice[name.rpartition("/")[0]] += times - 1
        if folder or name.lower().endswith(SUFFIXES):
            pictures.append(name)
            continue
        try:
            with files.open(name) as file:
                head = file.read(16)
        except Exception:  # as `decode` says; that it is no picture can not be known
            head = b""
        if OTHERS.match(head):
            raise DataError(
                f"{files.root}: {name} is a picture of a kind that is not read; remove it, or convert it to one of "
                f"{', '.join(FORMATS)}."
            )
        if MAGIC.match(head):
            pictures.append(name)
        else:
            notes.others[Path(name).suffix.lower() or "no suffix"] += 1
    return tuple(pictures)


def split_files(files: Files, notes: Notes) -> tuple[Classes, Classes]:
    """Training and test images: the same classes, two or more, none of them empty; `notes` counts the others."""
    root = files.root
    names = sorted(files.names)
    prefix, tops = "", _tops(names, "")
    if len(tops) == 1 and not tops & {TRAIN, *TESTS} and _tops(names, f"{min(tops)}/"):
        prefix = f"{min(tops)}/"
        tops = _tops(names, prefix)
    held_out = next((name for name in TESTS if name in tops), None)
    if (TRAIN in tops) != (held_out is not None):
        there, absent = (TRAIN, "test") if held_out is None else (held_out, TRAIN)
        raise DataError(f"{root} has a folder {prefix}{there} but no {prefix}{absent}; add it, or leave both out.")
    if held_out is None and len(halves := sorted(name for name in tops if name.lower() in HALVES)) > 1:
        raise DataError(
            f"{root} has the folders {', '.join(halves)}, which are no classes; the two halves of a data set are read "
            f"from {TRAIN} and {' or '.join(TESTS)}: rename them."
        )
    if held_out is None:
        train, test = _hold_out(root, _classes(root, names, prefix), prefix)
    else:
        train, test = (_classes(root, names, f"{prefix}{split}/") for split in (TRAIN, held_out))
        if odd := sorted(train.keys() ^ test.keys()):
            there, absent = (TRAIN, held_out) if odd[0] in train else (held_out, TRAIN)
            raise DataError(
                f"{root}: class {odd[0]} is in {there} but not in {absent}; give both the same class folders."
            )
    if len(train) < 2:
        raise DataError(f"{root} has {len(train)} class folders; give two or more, one for each class.")
    taken = {name for classes in (train, test) for images in classes.values() for name in images}
    outside = (name for name in names if name[-1] != "/" and name not in taken)
    notes.outside.update(f"in {name.rpartition('/')[0].partition('/')[0] or root.name}" for name in outside)
    return train, test


def _hold_out(root: Path, classes: Classes, prefix: str) -> tuple[Classes, Classes]:
    """A fifth of each class, at least one image, for testing: those whose names have the smallest hashes."""
    train, test = {}, {}
    for label, images in classes.items():
        if len(images) == 1:
            raise DataError(f"{root}: class folder {prefix}{label} has one image; add some, for two splits.")
        keys = {name: hashlib.blake2b(os.fsencode(name.removeprefix(prefix))).digest() for name in images}
        ranked = sorted(images, key=keys.__getitem__)
        count = max(1, round(len(images) / 5))
        test[label], train[label] = sorted(ranked[:count]), sorted(ranked[count:])
    return train, test


def _classes(root: Path, names: Iterable[str], prefix: str) -> Classes:
    """The class folders directly below `prefix`."""
    classes: Classes = {}
    for name in names:
        label, slash, image = name.removeprefix(prefix).partition("/")
        if not name.startswith(prefix) or not label:
            continue
        if not slash or "/" in image:
            raise DataError(f"{root}: {name} is not directly in a class folder; move it into one, or remove it.")
        classes.setdefault(label, []).extend([name] if image else [])
    for label, images in classes.items():
        if not images:
            suffixes = ", ".join(SUFFIXES)
            raise DataError(f"{root}: class folder {prefix}{label} has no images ({suffixes}); add some or remove it.")
    return dict(sorted(classes.items()))


def _tops(names: Iterable[str], prefix: str) -> set[str]:
    """The folders directly below `prefix`."""
    below = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
    return {name.partition("/")[0] for name in below if "/" in name}


def _decode_all(files: Files, names: list[str], max_pixels: int, seen: Counter[str]) -> Tensor:
    """(N, C, H, W) uint8; C is 1 if every image is gray, else 3."""
    first = decode(files, names[0], max_pixels, seen)
    height, width = first.shape[:2]
    try:
        images = np.empty((len(names), *first.shape), np.uint8)
        for place, name in enumerate(names):
            image = decode(files, name, max_pixels, seen) if place else first
            (h, w), colour = image.shape[:2], image.ndim == 3
            if (h, w) != (height, width):
                raise DataError(
                    f"{files.root}: {name} is {w}x{h} pixels, but {names[0]} is {width}x{height}; "
                    "resize all images to one size, or let data.size=N do it."
                )
            if colour and images.ndim == 3:  # the first one that is not gray
                images = np.repeat(images[..., None], 3, axis=-1)
            images[place] = image if colour or images.ndim == 3 else image[..., None]
    except MemoryError:
        raise DataError(
            f"{files.root}: {len(names)} images of {width}x{height} pixels do not fit into memory; take fewer with "
            f"{named('--limit')}, or smaller ones."
        ) from None
    pixels = torch.from_numpy(images)
    return pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
