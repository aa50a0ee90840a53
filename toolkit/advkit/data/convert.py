"""Making a folder of mapped images (`mapped.py`) of an npz (`npz.py`), of class folders, or of a registered data set.

Images go through in pieces and are never in memory together, but for registered sets, whose sources load them. All is
written to a hidden folder beside the new one, which is renamed when everything is on the disk: whatever stops a
conversion, the new folder is whole or absent.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import registry
from ..arguments import a_number
from ..errors import DataError, OptionError, named
from ..holding import sync_folder
from .base import Dataset, DataSource, fingerprint_of, gray_levels, pieces
from .image_folder import ImageFolder, sort_files, split_files
from .mapped import FORMAT, MANIFEST, Manifest, Mapped, Stored, file_name, manifest_of, split_of
from .notes import Notes
from .npz import Given, Images, Part, npz_files, of_npz, of_pickle
from .own import loaded
from .pictures import Files, decode, listed
from .workspace import workspace

PICKLES = (".pickle", ".pkl")

OF_A_PLACE = (Mapped.name, ImageFolder.name)
"""Data sets that are whatever lies at a place: here the place itself is named."""


@dataclass(frozen=True)
class Labeller:
    """A net that gives images labels in the place of their own."""

    ask: Callable[[Images], NDArray[np.int64]]
    """(n,) of images (n, C, H, W)."""
    shape: Sequence[int]
    classes: Sequence[str]
    counted: bool
    record: Mapping[str, object]
    """Which net, for the manifest."""


class Coloured(Exception):
    """A picture with colours among gray ones: all of them are to be read as such."""


def convert(
    given: str,
    folder: Path,
    hold_out: float = 0.0,
    tell: Callable[[str], None] = print,
    labeller: Labeller | None = None,
) -> Manifest:
    """Make the new folder `folder` of a file or folder, or of the registered data set called `given`.

    `hold_out` is the share of an npz that becomes the test images, chosen by a fixed seed. With a `labeller` all images
    are trained on, those of a set its training images. Raises DataError, OptionError.
    """
    if not 0 <= a_number(named("--hold-out"), hold_out) < 1:  # so NaN, too
        raise OptionError(f"{named('--hold-out')} {hold_out} must be a share: a number from 0 to below 1.")
    flag = "--data-root" if labeller is None else "--out"
    exists = f"{folder} exists; name a new folder with {flag}, or remove it."
    if os.path.lexists(folder):
        raise OptionError(exists)
    made = False
    with _given(given, hold_out) if labeller is None else _unlabelled(given, labeller) as source:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with workspace(folder.parent) as work:
                room = sum(len(part.labels) * (int(np.prod(part.shape)) + 8) for part in source.parts.values())
                if room > (free := shutil.disk_usage(work).free):
                    raise DataError(f"{folder} would take {room:,} bytes, and {free:,} are free; choose another disk.")
                whole = work / "whole"
                manifest = _written(source, whole, given)
                os.rename(whole, folder)
                made = True
                sync_folder(folder.parent)
        except OSError as error:
            if made:
                raise DataError(
                    f"{folder} is written, but its disk fails ({error.strerror}); look at it with "
                    f"`advkit data check {shlex.quote(str(folder))}`."
                ) from None
            if os.path.lexists(folder):  # another process was faster
                raise OptionError(exists) from None
            typed = labeller is not None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
            kind = OptionError if typed else DataError
            raise kind(f"{folder} can not be written ({error.strerror}); choose another {flag}.") from None
        for note in source.notes():
            tell(note)
    return manifest


@contextmanager
def _given(given: str, hold_out: float) -> Iterator[Given]:
    path = Path(os.path.expanduser(given)).absolute()
    arrays = npz_files(path)
    if os.path.lexists(path / MANIFEST) and os.path.lexists(path / file_name("train", "images")):
        raise OptionError(
            f"{given} is a folder of mapped images already; give it as it is, as --data-root of --dataset mapped or as "
            "extra-data.root, or name with --from what it was made of."
        )
    if path.suffix in PICKLES and os.path.isfile(path):
        yield of_pickle(path, hold_out)
        return
    if hold_out and not arrays:
        raise OptionError(f"{given} is no npz, so its test images are known or chosen by their names; drop --hold-out.")
    if arrays:
        yield of_npz(arrays, hold_out)
    elif os.path.lexists(path):
        with listed(path) as files:
            yield _of_pictures(files)
    elif given in (sets := [name for name in registry.names("data set") if name not in OF_A_PLACE]):
        yield _of_registered(given)
    elif given in OF_A_PLACE:
        raise OptionError(f"{given} reads what a place holds; name the folder or zip itself, not {given}.")
    else:
        raise DataError(
            f"{given} is neither an npz, nor a folder or zip of class folders, nor the name of a data set "
            f"({', '.join(sets)}); check --from."
        )


@contextmanager
def _unlabelled(given: str, labeller: Labeller) -> Iterator[Given]:
    """Images whose labels come about as they are read."""
    path = Path(os.path.expanduser(given)).absolute()
    if arrays := npz_files(path):
        source = of_npz(arrays, 0.0, labelled=False)
    elif path.suffix in PICKLES and os.path.isfile(path):
        source = of_pickle(path, 0.0, labelled=False)
    elif os.path.lexists(path / MANIFEST):
        manifest = manifest_of(path)
        source = _of_loaded({"train": split_of(path, manifest, "train")}, manifest.transform)
    elif os.path.isdir(path) or path.suffix == ".zip":
        raise OptionError(
            f"{given} holds no arrays; make some of its pictures: advkit data prepare mapped --from "
            f"{shlex.quote(given)} --data-root NEW, and give NEW."
        )
    else:
        with _given(given, 0.0) as source:
            pass
    part = source.parts["train"]
    if part.shape != tuple(labeller.shape):
        raise DataError(
            f"The images of {given} are {part.shape}, those of the run {tuple(labeller.shape)}; resize them."
        )
    labels = np.zeros(len(part.labels), np.int64)

    def read() -> Iterator[Images]:
        done = 0
        for piece in part.read():
            labels[done : done + len(piece)] = labeller.ask(np.ascontiguousarray(piece))
            done += len(piece)
            yield piece

    asked = {"train": Part(part.shape, labels, read)}
    yield Given(asked, labeller.classes, labeller.counted, source.transform, source.notes, labeller.record)


# ---------------------------------------------------------------------- writing


def _written(source: Given, folder: Path, given: str) -> Manifest:
    """Everything, on the disk."""
    try:
        os.mkdir(folder)
        stored = {split: _stored(part, source.classes, folder, split) for split, part in source.parts.items()}
    except Coloured:
        shutil.rmtree(folder)
        coloured = {split: replace(part, shape=(3, *part.shape[1:])) for split, part in source.parts.items()}
        return _written(replace(source, parts=coloured), folder, given)
    head = tuple(source.classes), source.counted, source.transform, Path(given).name
    manifest = Manifest(*head, stored, dict(source.labelled_by))
    with open(folder / MANIFEST, "xb") as out:
        out.write(json.dumps({"format": FORMAT, **asdict(manifest)}).encode())
        _flushed(out)
    sync_folder(folder)
    return manifest


def _stored(part: Part, classes: Sequence[str], folder: Path, split: str) -> Stored:
    """Write the two arrays of a split while looking at them."""
    shape = len(part.labels), *part.shape
    digest, levels = fingerprint_of(shape, classes), torch.zeros(shape[1], 256, dtype=torch.int64)
    rows = 0
    with open(folder / file_name(split, "images"), "xb") as out:
        _begin(out, shape, np.dtype(np.uint8))
        for piece in part.read():
            if piece.shape[1] == 1 < shape[1]:
                piece = piece.repeat(shape[1], axis=1)
            if piece.shape[1:] != part.shape:
                raise Coloured
            piece = np.require(piece, requirements=["C", "W"])
            out.write(piece.data)
            digest.update(piece.data)
            levels += gray_levels(torch.from_numpy(piece))
            rows += len(piece)
        _flushed(out)
    if rows != len(part.labels):
        raise DataError(f"There are {rows} images and {len(part.labels)} labels; give one label an image.")
    labels = part.labels.astype("<i8")
    digest.update(labels.data)
    with open(folder / file_name(split, "labels"), "xb") as out:
        _begin(out, labels.shape, labels.dtype)
        out.write(labels.data)
        _flushed(out)
    return Stored(shape, digest.hexdigest(), levels.tolist())


def _begin(out: IO[bytes], shape: Sequence[int], dtype: np.dtype[Any]) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(out, {"descr": descr, "fortran_order": False, "shape": tuple(shape)})


def _flushed(out: IO[bytes]) -> None:
    out.flush()
    os.fsync(out.fileno())


# ---------------------------------------------------------------------- pictures, and registered sets


def _of_pictures(files: Files) -> Given:
    notes = Notes(files.root)
    files = replace(files, names=sort_files(files, notes))
    halves = dict(zip(("train", "test"), split_files(files, notes), strict=True))
    names = {split: [name for inside in classes.values() for name in inside] for split, classes in halves.items()}
    height, width = decode(files, names["train"][0], DataSource.max_pixels).shape[:2]

    def read(split: str) -> Iterator[Images]:
        if split == "train":
            notes.odd.clear()  # all is read anew where a coloured picture comes after gray ones
        for name in names[split]:
            image = decode(files, name, DataSource.max_pixels, notes.odd)
            if image.shape[:2] != (height, width):
                raise DataError(
                    f"{files.root}: {name} is {image.shape[1]}x{image.shape[0]} pixels, but {names['train'][0]} is "
                    f"{width}x{height}; resize all images to one size."
                )
            yield image[None, None] if image.ndim == 2 else image.transpose(2, 0, 1)[None]

    parts = {}
    for split, classes in halves.items():
        label = np.array([k for k, inside in enumerate(classes.values()) for _ in inside], np.int64)
        parts[split] = Part((1, height, width), label, partial(read, split))
    return Given(parts, tuple(halves["train"]), False, "crop-flip", notes.sentences)


def _of_registered(name: str) -> Given:
    source: Any = registry.load("data set", name)
    splits = loaded(source)
    return replace(
        _of_loaded({"train": splits.train, "test": splits.test}, splits.transform), notes=lambda: splits.notes
    )


def _of_loaded(datasets: Mapping[str, Dataset], transform: str) -> Given:
    def part(dataset: Dataset) -> Part:
        return Part(dataset.shape, dataset.labels.numpy(), lambda: (piece.numpy() for piece in pieces(dataset.images)))

    parts = {split: part(dataset) for split, dataset in datasets.items()}
    return Given(parts, datasets["train"].classes, datasets["train"].counted, transform)
