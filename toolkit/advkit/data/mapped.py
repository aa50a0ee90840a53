"""Images that stay in their file: a folder of plain `.npy` arrays, mapped into memory and read by index.

`convert.py` makes such a folder of other files. It holds `manifest.json`, and for `train` and perhaps `test` an array
SPLIT-images.npy (N, C, H, W) uint8 and SPLIT-labels.npy (N,) int64, which `numpy.load` opens as well. What takes a
look at every image, their fingerprint and how often each gray level comes, is written down in the manifest.

Nothing in a folder is trusted but what costs a look at all images: names, sizes and headers are judged before a file
is mapped. Links are followed, since caches and versions of data keep files elsewhere: what they lead to is judged, too.
A file must stay as it is while it is mapped.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from io import BytesIO
from pathlib import Path
from typing import IO, Any, final

import numpy as np
import torch
from torch import Tensor

from ..arguments import checked, fits
from ..errors import DataError, OptionError, named
from ..reading import opened, read
from .base import Dataset, DataSource, Splits
from .transforms import TRANSFORMS

MANIFEST, FORMAT = "manifest.json", 1
MAX_BYTES = 64 << 20  # of a manifest: names of a million classes
MAX_HEADER = 10_000  # bytes of a .npy header; numpy's own limit, which it applies to what it has read
NO_RESERVE = 0x4000 if sys.platform == "linux" else 0
"""mmap.MAP_NORESERVE, which Python names from 3.13 on: else Linux refuses a private map larger than its memory."""
DTYPES: Mapping[str, tuple[np.dtype[Any], torch.dtype]] = {
    "images": (np.dtype(np.uint8), torch.uint8),
    "labels": (np.dtype("<i8"), torch.int64),
}


@dataclass(frozen=True)
class Stored:
    """What the manifest says of one split."""

    shape: Sequence[int]
    """(N, C, H, W)"""
    fingerprint: str
    levels: Sequence[Sequence[int]]
    """How often each channel has each value, (C, 256)."""

    def fit(self) -> bool:
        """Whether it says anything that can be."""
        sizes = fits(self.shape, Sequence[int]) and len(self.shape) == 4 and all(0 < n < 1 << 48 for n in self.shape)
        if not sizes or not isinstance(self.fingerprint, str) or not fits(self.levels, Sequence[Sequence[int]]):
            return False
        count, channels, height, width = self.shape
        rows = [sum(row) == count * height * width and len(row) == 256 for row in self.levels]
        return len(rows) == channels and all(rows) and min(map(min, self.levels)) >= 0


@dataclass(frozen=True)
class Manifest:
    """What a folder holds."""

    classes: Sequence[str]
    counted: bool
    transform: str
    source: str
    """What it was made of, for people."""
    splits: dict[str, Stored]
    labelled_by: Mapping[str, object] = field(default_factory=dict)
    """Where labels are a net's answers: its run, checkpoint and the SHA-256 of its weights."""


@final
class Mapped(DataSource):
    """A folder made by `advkit data prepare mapped --from PATH`: images stay in their file, read by index."""

    name = "mapped"
    decodes = False

    def load(self, root: Path | None, limit: int | None) -> Splits:
        """See `DataSource.load`. The images of a `limit` are copied into memory."""
        if root is None:
            where = named("--data-root", "DIR")
            raise OptionError(f"mapped reads a folder that `advkit data prepare` made; name it with {where}.")
        manifest = manifest_of(root)
        if "test" not in manifest.splits:
            raise DataError(
                f"{root} has no test images; make it again with `advkit data prepare mapped --from PATH --data-root "
                "NEW --hold-out 0.1`, or name it as extra data of a set that has some (plugin extra-data)."
            )
        train, test = (self._kept(split_of(root, manifest, split), limit) for split in ("train", "test"))
        return Splits(train, test, manifest.transform)

    def _kept(self, whole: Dataset, limit: int | None) -> Dataset:
        return whole if limit is None or limit >= len(whole) else whole.take(self.places(whole.labels, limit))


@checked()
def mapped_images(folder: str | Path) -> Dataset:
    """The training images of a folder that `advkit data prepare mapped` made, read by index where they lie.

    It needs no test images. Raises DataError.
    """
    root = Path(os.path.expanduser(folder))
    return split_of(root, manifest_of(root), "train")


def manifest_of(root: Path) -> Manifest:
    """The manifest of a folder, judged. Raises DataError."""
    path = root / MANIFEST
    try:
        told = json.loads(read(path, MAX_BYTES))
    except FileNotFoundError as error:
        if path.is_symlink():
            raise _unread(path, error) from None
        raise DataError(
            f"{root} is no folder of mapped images: {MANIFEST} is absent; name where it lies, or make "
            "one with `advkit data prepare mapped --from PATH --data-root DIR`."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise _unread(path, error) from None
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise _damaged(path, f"its format is not {FORMAT}")
    try:
        splits = {name: Stored(**stored) for name, stored in told.pop("splits").items()}
        manifest = Manifest(splits=splits, **{one.name: told[one.name] for one in fields(Manifest) if one.name in told})
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"it lacks something, {error}") from None
    named = fits(manifest.classes, Sequence[str]) and isinstance(manifest.counted, bool)
    texts = isinstance(manifest.transform, str) and isinstance(manifest.source, str)
    texts = texts and fits(manifest.labelled_by, Mapping[str, object])
    if not named or not texts or manifest.transform not in TRANSFORMS:
        raise _damaged(path, "classes, counted, transform or source are none")
    if "train" not in splits or splits.keys() - {"train", "test"} or not all(one.fit() for one in splits.values()):
        raise _damaged(path, "what it says of the images can not be")
    return manifest


def split_of(root: Path, manifest: Manifest, split: str) -> Dataset:
    """One split, mapped. Raises DataError where a file is not as the manifest says."""
    stored = manifest.splits[split]
    images = _map(root / file_name(split, "images"), "images", stored.shape)
    labels = _map(root / file_name(split, "labels"), "labels", stored.shape[:1])
    whole = Dataset(Mapped.name, images, labels, tuple(manifest.classes), counted=manifest.counted)
    return whole.known(stored.fingerprint, [list(row) for row in stored.levels])


def check(root: Path) -> Manifest:
    """The manifest of a folder all of whose values were read and found to be those that were stored; else DataError."""
    manifest = manifest_of(root)
    for split, stored in manifest.splits.items():
        whole = split_of(root, manifest, split)
        there = replace(whole)  # a copy that nothing is known of
        if there.fingerprint() != stored.fingerprint:
            raise _damaged(root / file_name(split, "images"), "its values or its labels are not those that were stored")
        if there.statistics() != whole.statistics():
            raise _damaged(root / MANIFEST, f"its counts of gray levels are not those of the {split} images")
    return manifest


def file_name(split: str, values: str) -> str:
    """Of `values` "images" or "labels"."""
    return f"{split}-{values}.npy"


def _map(path: Path, values: str, shape: Sequence[int]) -> Tensor:
    """An array of exactly this shape, mapped privately: what is written to it stays in this process."""
    dtype, as_torch = DTYPES[values]
    count = int(np.prod(shape, dtype=object))
    try:
        with opened(path) as stream:
            if array_header(stream) != (tuple(shape), dtype):
                raise _damaged(path, f"it is no {dtype} array {tuple(shape)}")
            offset, size = stream.tell(), os.fstat(stream.fileno()).st_size
            if size != offset + count * dtype.itemsize:
                raise _damaged(path, f"it has {size} bytes, not {offset + count * dtype.itemsize}")
            memory = mmap.mmap(stream.fileno(), size, **_private())
    except (OSError, ValueError) as error:
        raise _unread(path, error) from None
    if values == "images" and hasattr(mmap, "MADV_RANDOM"):
        memory.madvise(mmap.MADV_RANDOM)  # else a disk reads the neighbours of each image with it
    return torch.frombuffer(memory, dtype=as_torch, count=count, offset=offset).view(*shape)


def _private() -> dict[str, int]:
    """How to map what is written into without changing the file, as the system calls it."""
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return {"access": mmap.ACCESS_COPY}
    return {"flags": mmap.MAP_PRIVATE | NO_RESERVE, "prot": mmap.PROT_READ | mmap.PROT_WRITE}


class ByColumns(ValueError):
    """An array whose first index changes fastest."""


def array_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of a `.npy` array that is written row by row; `stream` stands where its values begin.

    Raises ValueError for anything else. Nothing is unpickled: values are never read here.
    """
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its .npy version is {version}")
    first, header = (
        (2, np.lib.format.read_array_header_1_0) if version == (1, 0) else (4, np.lib.format.read_array_header_2_0)
    )
    size = int.from_bytes(length := stream.read(first), "little")
    if size > MAX_HEADER:
        raise ValueError(f"its header claims {size} bytes, more than {MAX_HEADER}")
    try:
        shape, by_columns, dtype = header(BytesIO(length + stream.read(size)))
    except Exception as error:  # of the parser, which may spell the header out
        raise ValueError(f"its header is damaged: {str(error)[:200] or type(error).__name__}") from None
    if len(shape) > 64:
        raise ValueError(f"it has {len(shape)} dimensions, more than any array")
    if by_columns and len(shape) > 1:
        raise ByColumns("it is stored by columns (Fortran order)")
    return shape, dtype


def _unread(path: Path, error: Exception) -> DataError:
    if isinstance(error, PermissionError):
        return DataError(f"{path} can not be read ({error.strerror}); check its permissions.")
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return DataError(f"{path} is a link to nothing; fetch what it leads to, or put a copy in its place.")
    return _damaged(path, getattr(error, "strerror", None) or str(error))


def _damaged(path: Path, reason: str) -> DataError:
    reason = " ".join(reason.split())
    return DataError(f"{path} is damaged ({reason}); prepare the folder anew.")
