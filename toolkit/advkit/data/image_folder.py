"""Images in class folders, in a folder or a zip, decoded into memory.

Two layouts: `{train,test}/CLASS/IMAGE` (`val`, `valid` or `validation` stand in for a missing `test`), or
`CLASS/IMAGE` without splits; then a fixed fifth of each class, chosen by a hash of the name, is for testing.
Either may lie below one common top folder. Hidden files and other kinds of files are ignored.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, final
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..errors import DataError, OptionError
from .base import Dataset, DataSource, Splits, balanced

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
TRAIN, TESTS = "train", ("test", "val", "valid", "validation")
MAX_BYTES = 64 << 20  # of one encoded image: a zip member may unpack to anything

Classes = dict[str, list[str]]
"""The names of the images of each class, all sorted."""


@final
class ImageFolder(DataSource):
    """Images in a folder or zip: ROOT/{train,test}/CLASS/IMAGE, or ROOT/CLASS/IMAGE, split 80/20."""

    name = "image-folder"

    def load(self, root: Path | None, limit: int | None) -> Splits:
        if root is None:
            raise OptionError("image-folder reads your files; name the folder or zip with --data-root DIR.")
        if not root.exists():
            raise DataError(f"{root} does not exist; check --data-root.")
        if root.is_dir():
            return _read(Files(root, tuple(_walk(root)), lambda name: (root / name).open("rb")), limit)
        try:
            archive = ZipFile(root)
        except (BadZipFile, OSError) as error:
            raise DataError(f"{root} is neither a folder nor a readable zip ({error}); check --data-root.") from None
        with archive:
            return _read(Files(root, tuple(archive.namelist()), archive.open), limit)


@dataclass(frozen=True)
class Files:
    """What lies below `root`: relative names, those of folders with a final slash, and how to open one."""

    root: Path
    names: tuple[str, ...]
    open: Callable[[str], IO[bytes]]


def _read(files: Files, limit: int | None) -> Splits:
    halves = _splits(files)
    labels, names = [], []
    for classes in halves:
        label = torch.tensor([k for k, images in enumerate(classes.values()) for _ in images])
        kept = balanced(label, limit)
        all_names = [name for images in classes.values() for name in images]
        labels.append(label[kept])
        names += [all_names[i] for i in kept.tolist()]
    images, cut = _decode_all(files, names), len(labels[0])
    train, test = (
        Dataset(ImageFolder.name, part, label, tuple(halves[0]))
        for part, label in zip((images[:cut], images[cut:]), labels, strict=True)
    )
    return Splits(train, test, transform="crop-flip")


def _splits(files: Files) -> tuple[Classes, Classes]:
    """Training and test images: the same classes, two or more, none of them empty."""
    root = files.root
    names = sorted(name for name in set(files.names) if not _hidden(name) and (name[-1] == "/" or _is_image(name)))
    prefix, tops = "", _tops(names, "")
    if len(tops) == 1 and not tops & {TRAIN, *TESTS} and _tops(names, f"{min(tops)}/"):
        prefix = f"{min(tops)}/"
        tops = _tops(names, prefix)
    held_out = next((name for name in TESTS if name in tops), None)
    if (TRAIN in tops) != (held_out is not None):
        there, absent = (TRAIN, "test") if held_out is None else (held_out, TRAIN)
        raise DataError(f"{root} has a folder {prefix}{there} but no {prefix}{absent}; add it, or leave both out.")
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
    found: Classes = {}
    for name in names:
        label, slash, image = name.removeprefix(prefix).partition("/")
        if not name.startswith(prefix) or not label:
            continue
        if not slash or "/" in image:
            raise DataError(f"{root}: {name} is not directly in a class folder; move it into one, or remove it.")
        found.setdefault(label, []).extend([name] if image else [])
    for label, images in found.items():
        if not images:
            kinds = ", ".join(SUFFIXES)
            raise DataError(f"{root}: class folder {prefix}{label} has no images ({kinds}); add some or remove it.")
    return dict(sorted(found.items()))


def _tops(names: Iterable[str], prefix: str) -> set[str]:
    """The folders directly below `prefix`."""
    below = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
    return {name.partition("/")[0] for name in below if "/" in name}


def _walk(root: Path, folder: str = "", depth: int = 4) -> Iterator[str]:
    """Names of folders and images; four levels reach TOP/train/CLASS/IMAGE, and links that loop end there."""
    inside = os.path.realpath(root)
    try:
        with os.scandir(root / folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = folder + entry.name
                if _hidden(name) or not (entry.is_dir() or _is_image(name)):
                    continue
                target = Path(os.path.realpath(entry.path) if entry.is_symlink() else inside)
                if not target.is_relative_to(inside):
                    raise DataError(f"{root}: {name} is a link that leads outside; put a copy in its place.")
                if entry.is_dir():
                    yield name + "/"
                    if depth > 1:
                        yield from _walk(root, name + "/", depth - 1)
                elif entry.is_file():
                    yield name
                else:
                    raise DataError(f"{root}: {name} is not a file, or a link to nothing; replace or remove it.")
    except OSError as error:
        raise DataError(
            f"{root / folder} can not be listed ({error.strerror}); check its links and permissions."
        ) from None


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _decode_all(files: Files, names: list[str]) -> Tensor:
    """(N, C, H, W) uint8; C is 1 if every image is gray, else 3."""
    pixels: list[NDArray[np.uint8]] = []
    for name in names:
        pixels.append(_decode(files, name))
        (height, width), (h, w) = pixels[0].shape[:2], pixels[-1].shape[:2]
        if (h, w) != (height, width):
            raise DataError(
                f"{files.root}: {name} is {w}x{h} pixels, but {names[0]} is {width}x{height}; "
                "resize all images to one size."
            )
    if all(image.ndim == 2 for image in pixels):
        return torch.from_numpy(np.stack(pixels)).unsqueeze(1)
    colour = [image if image.ndim == 3 else np.stack([image] * 3, axis=-1) for image in pixels]
    return torch.from_numpy(np.stack(colour)).permute(0, 3, 1, 2).contiguous()


def _decode(files: Files, name: str) -> NDArray[np.uint8]:
    """(H, W) of a gray image, (H, W, 3) of any other."""
    try:
        with files.open(name) as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) <= MAX_BYTES:
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                if image.mode[0] not in "IF":  # 16 bits and more, which conversion would clip
                    return np.asarray(image if image.mode == "L" else image.convert("RGB"))
                problem = f"has pixels of mode {image.mode}, not of 8 bits; convert it"
        else:
            problem = f"is larger than {MAX_BYTES >> 20} MiB; shrink or remove it"
    except Exception as error:  # a damaged file makes Pillow and zipfile raise almost anything
        problem = f"can not be read ({type(error).__name__}: {error}); replace or remove it"
    raise DataError(f"{files.root}: image {name} {problem}.")
