"""Images of files of arrays, which anybody may have made, in pieces: of an npz or a pickle, and nothing is executed."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import AdvkitError, DataError, OptionError
from ..reading import opened
from .base import PIECE, DataSource
from .chosen import shuffled
from .mapped import ByColumns, array_header
from .own import MOST
from .pickled import read_pickle
from .prepare import guarded

Images = NDArray[np.uint8]
KEYS = (("image", "label"), ("images", "labels"))
"""What the arrays of an npz are called: as DM-Improves-AT publishes them, or as here."""

CHANNELS = (1, 3, 4)
DEFLATED = 1032
"""How many times smaller deflate, which numpy packs with, makes anything at most."""


@dataclass(frozen=True)
class Part:
    """The images of a split, to be gone through once: `read` gives arrays (n, C, H, W) in their order."""

    shape: tuple[int, int, int]
    labels: NDArray[np.int64]
    read: Callable[[], Iterator[Images]]


@dataclass(frozen=True)
class Given:
    """What a folder is made of."""

    parts: Mapping[str, Part]
    classes: Sequence[str]
    counted: bool
    transform: str
    notes: Callable[[], Sequence[str]] = tuple
    """What whoever trains on it should know, once all is read."""
    labelled_by: Mapping[str, object] = field(default_factory=dict)
    """The net whose answers the labels are, if they are."""


def npz_files(path: Path) -> list[Path]:
    """The npz files that a path is: itself, or all that a folder of nothing else has. DataError where it is closed."""
    try:
        inside = sorted(path / name for name in os.listdir(path) if not name.startswith("."))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return [path] if path.suffix == ".npz" else []
    except OSError as error:
        raise DataError(f"{path} can not be read ({error.strerror}); check its permissions.") from None
    return inside if all(one.suffix == ".npz" for one in inside) else []


def of_npz(paths: Sequence[Path], hold_out: float, labelled: bool = True) -> Given:
    """The images of all files, in their order; the labels, at 8 bytes each, are read into memory, or are all 0."""
    shapes, labels = [], []
    for path in paths:
        with _member(path, 0, labelled) as (_, there, shape, dtype):
            shapes.append(_judged(path, shape, dtype))
            _fit(path, "images", there, shape, dtype)
        labels.append(_labels(path, shapes[-1][0]) if labelled else np.zeros(shapes[-1][0], np.int64))
        if shapes[-1][1:] != shapes[0][1:]:
            raise DataError(f"{path} has images {shapes[-1][1:]}, {paths[0]} {shapes[0][1:]}; give one size.")
    return _parted(paths[0], shapes[0][1:], np.concatenate(labels), partial(_rows, paths, labelled), hold_out)


def of_pickle(path: Path, hold_out: float, labelled: bool = True) -> Given:
    """The labelled images of a pickle as RST's; unless they are to be `labelled`, all of them with labels of 0."""
    images, label = read_pickle(path)
    known = int((label >= 0).sum())
    if not labelled:
        label = np.zeros_like(label)
    (there,) = np.nonzero(label >= 0)
    shape = _judged(path, images.shape, images.dtype)

    def rows(kept: NDArray[np.bool_]) -> Iterator[Images]:
        places = there[kept]
        for first in range(0, len(places), count := max(1, PIECE // images[:1].size)):
            piece = images[places[first : first + count]]
            yield piece if images.shape == shape else piece.transpose(0, 3, 1, 2)

    without = len(label) - len(there)
    note = f"{without:,} of {len(label):,} images have no label (-1) and are left out" if without else ""
    if known and not labelled:
        note = f"{known:,} of {len(label):,} images have a label already, which is not looked at"
    whole = _parted(path, shape[1:], label[there], rows, hold_out)
    return replace(whole, notes=lambda: [note] if note else [])


def _labels(path: Path, count: int) -> NDArray[np.int64]:
    with _member(path, 1) as (stream, there, shape, dtype):
        if len(shape) != 1 or dtype.kind not in "iu" or shape[0] != count:
            raise DataError(f"{path}: labels are {dtype} {shape}; give whole numbers ({count},).")
        _fit(path, "labels", there, shape, dtype)
        values = b"".join(guarded(path, iter(partial(stream.read, PIECE), b"")))
        if len(values) != count * dtype.itemsize:
            raise DataError(f"{path}: labels end too soon; replace it by an intact copy.")
        return np.frombuffer(values, dtype).astype(np.int64)


def _parted(
    path: Path,
    shape: tuple[int, int, int],
    label: NDArray[np.int64],
    read: Callable[[NDArray[np.bool_]], Iterator[Images]],
    hold_out: float,
) -> Given:
    """Some to train on and some to test on; `read` gives the images that are true."""
    if not len(label) or label.min() < 0 or label.max() >= MOST:
        raise DataError(f"{path}: there is no image, or labels are no places of classes; number those from 0.")
    held = np.zeros(len(label), bool)
    if hold_out:
        held[shuffled(torch.arange(len(label)))[: round(hold_out * len(label))].numpy()] = True
    parts = {
        split: Part(shape, label[kept], partial(read, kept))
        for split, kept in (("train", ~held), ("test", held))
        if split == "train" or hold_out
    }
    if not all(len(part.labels) for part in parts.values()):
        raise OptionError(f"--hold-out {hold_out} of {len(label)} images leaves none on one side; change it.")
    classes = tuple(str(number) for number in range(max(int(label.max()) + 1, 2)))
    return Given(parts, classes, counted=True, transform="crop-flip")


def _judged(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, int, int, int]:
    """(N, C, H, W) of an array of images, also of (N, H, W, C), or (N, H, W) of gray ones."""
    if dtype == np.uint8 and len(shape) in (3, 4) and min(shape) > 0:
        n, first, second = shape[:3]
        if len(shape) == 3:
            return _small(path, (n, 1, first, second))
        last = shape[3]
        by_first, by_last = first in CHANNELS, last in CHANNELS
        if by_first and by_last:
            raise DataError(
                f"{path}: images are {dtype} {shape}, which may be (N, C, H, W) or (N, H, W, C); give gray ones as "
                "(N, H, W), others in the order that only one of them can be, or as an advkit.Dataset from Python."
            )
        if by_first or by_last:
            return _small(path, (n, first, second, last) if by_first else (n, last, first, second))
    raise DataError(f"{path}: images are {dtype} {shape}; give uint8 (N, H, W, C) with 1, 3 or 4 channels.")


def _small(path: Path, shape: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """The shape, if an image has as few pixels as a picture of a folder has to have."""
    height, width = shape[2:]
    if height * width > DataSource.max_pixels:
        raise DataError(
            f"{path}: images have {width}x{height} pixels, more than data.max_pixels = {DataSource.max_pixels}; "
            "shrink them."
        )
    return shape


def _rows(paths: Sequence[Path], labelled: bool, kept: NDArray[np.bool_]) -> Iterator[Images]:
    """The images that are kept, of all files."""
    before = 0
    for path in paths:
        with _member(path, 0, labelled) as (stream, there, stored, dtype):
            n, channels, height, width = shape = _judged(path, stored, dtype)
            _fit(path, "images", there, stored, dtype)
            row = channels * height * width
            rows = max(1, PIECE // row)
            for first in range(0, n, rows):
                count = min(rows, n - first)
                (values,) = guarded(path, iter([_exactly(stream, count * row)]))
                images = np.frombuffer(values, np.uint8)
                if stored == shape:
                    images = images.reshape(count, channels, height, width)
                else:
                    images = images.reshape(count, height, width, channels).transpose(0, 3, 1, 2)
                yield images[kept[before + first : before + first + count]]
        before += n


def _fit(path: Path, what: str, there: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """DataError if a header claims more or less than is there, or deflate can not have packed so much into the file."""
    claimed, size = math.prod(shape) * dtype.itemsize, path.stat().st_size
    problem = ""
    if claimed != there:
        problem = f"{what} end too soon" if claimed > there else f"there are more values than {what}"
    elif there > DEFLATED * size:
        problem = f"{what} would be {there} bytes, of a file of {size}"
    if problem:
        raise DataError(f"{path}: {problem}; replace it by an intact copy.")


def _exactly(stream: IO[bytes], size: int) -> bytes:
    values = stream.read(size)
    if len(values) < size:
        raise EOFError("images end too soon")
    return values


@contextmanager
def _member(
    path: Path, which: int, labelled: bool = True
) -> Iterator[tuple[IO[bytes], int, tuple[int, ...], np.dtype[Any]]]:
    """The images (0) or labels (1) of an npz: a stream where the values begin, their bytes, shape and dtype.

    The bytes are those of the zip's directory, beyond which no stream reads; its checksum is judged where they end.
    """
    with _opened_npz(path) as archive:
        names = set(archive.namelist())
        needed = [pair if labelled else pair[:1] for pair in KEYS]
        key = next((pair[which] for pair in needed if {f"{one}.npy" for one in pair} <= names), None)
        if key is None:
            listed = ", ".join(sorted(name.removesuffix(".npy") for name in names)[:6]) or "nothing"
            has = "arrays `image` and `label`" if labelled else "array `image`"
            raise DataError(f"{path} has {listed}; an npz of images has the {has}.")
        try:
            stream = archive.open(f"{key}.npy")
            shape, dtype = array_header(stream)
            there = archive.getinfo(f"{key}.npy").file_size - stream.tell()
        except Exception as error:  # archives raise almost anything
            rows = "save numpy.ascontiguousarray of it" if isinstance(error, ByColumns) else ""
            raise DataError(f"{path} can not be read ({error}); {rows or 'replace it by an intact copy'}.") from None
        with stream:
            yield stream, there, shape, dtype


@contextmanager
def _opened_npz(path: Path) -> Iterator[ZipFile]:
    try:
        stream: AbstractContextManager[IO[bytes]] = opened(path)
        with stream as file, ZipFile(file) as archive:
            yield archive
    except AdvkitError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; check --from.") from None
    except Exception as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} is no readable npz ({reason}); replace it by an intact copy.") from None
