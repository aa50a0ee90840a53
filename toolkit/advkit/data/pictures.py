"""Picture files in a folder or a zip, decoded one by one: judged before a pixel is, and damaged ones told by name."""

from __future__ import annotations

import os
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..errors import DataError
from ..reading import opened
from .notes import hidden, odd

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jfif", ".jpe")
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
MAGIC = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n|BM|RIFF....WEBP|GIF8[79]a|II\*\0|MM\0\*|P[1-6]\s", re.DOTALL)
"""What files of those formats begin with."""
OTHERS = re.compile(rb"....ftyp(heic|heix|mif1|avif)|\0\0\0\x0cjP  |\xff\x0a|8BPS", re.DOTALL)
"""Pictures that are not read: HEIC, AVIF, JPEG 2000, JPEG XL, Photoshop."""
MAX_BYTES = 64 << 20  # of one encoded image: a zip member may unpack to anything

Pixels = NDArray[np.uint8]
"""(H, W) or (H, W, C)"""


@dataclass(frozen=True)
class Files:
    """What lies below `root`: relative names, those of folders with a final slash, how to open one, and its bytes."""

    root: Path
    names: tuple[str, ...]
    open: Callable[[str], AbstractContextManager[IO[bytes]]]
    size: Callable[[str], int]


@contextmanager
def listed(root: Path) -> Iterator[Files]:
    """What lies in a folder or a zip, which stays open meanwhile."""
    if os.path.isdir(root):
        names, place = tuple(_walk(root)), root.absolute()  # pictures are opened later, wherever the process is then
        yield Files(root, names, partial(_opened, place), partial(_size, place))
        return
    try:
        archive = _Archive(root)
    except FileNotFoundError:
        raise DataError(f"{root} does not exist; check the path.") from None
    except Exception as error:  # a damaged zip makes zipfile raise almost anything
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{root} is neither a folder nor a readable zip ({reason}); check the path.") from None
    with closing(archive):
        yield Files(root, tuple(archive.here().namelist()), archive.open, archive.size)


class _Archive:
    """A zip that is open, in every process anew: two that share one would share its place in the file."""

    def __init__(self, root: Path) -> None:
        self.root, self._held = root, dict[int, tuple[ZipFile, ExitStack]]()
        self.here()

    def here(self) -> ZipFile:
        if (process := os.getpid()) not in self._held:
            with ExitStack() as stack:
                archive = stack.enter_context(ZipFile(stack.enter_context(opened(self.root))))
                # Of several threads that decode in a new process one is the first; what the others opened is closed.
                if self._held.setdefault(process, held := (archive, ExitStack())) is held:
                    held[1].push(stack.pop_all())
        return self._held[process][0]

    def open(self, name: str) -> IO[bytes]:
        return self.here().open(name)

    def size(self, name: str) -> int:
        return self.here().getinfo(name).file_size

    def close(self) -> None:
        for _, held in self._held.values():
            held.close()

    def __reduce__(self) -> tuple[type[_Archive], tuple[Path]]:
        return type(self), (self.root,)


def _opened(root: Path, name: str) -> AbstractContextManager[IO[bytes]]:
    return opened(root / name)


def _size(root: Path, name: str) -> int:
    return os.path.getsize(root / name)


def _walk(root: Path, folder: str = "", depth: int = 4) -> Iterator[str]:
    """Names of folders and images; four levels reach TOP/train/CLASS/IMAGE, and links that loop end there."""
    inside = os.path.realpath(root)
    try:
        with os.scandir(root / folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = folder + entry.name
                if hidden(name):
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


def as_stored(image: Image.Image) -> Pixels:
    """(H, W) of a gray image, (H, W, 3) of any other."""
    return np.asarray(image if image.mode == "L" else image.convert("RGB"))


def decode(
    files: Files,
    name: str,
    max_pixels: int,
    seen: Counter[str] | None = None,
    take: Callable[[Image.Image], Pixels] = as_stored,
) -> Pixels:
    """What is to be taken of an image; `seen` counts what `odd` tells."""
    try:
        with files.open(name) as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) <= MAX_BYTES:
            with _open(data) as image:
                if image.width * image.height > max_pixels:  # before a pixel is decoded
                    problem = (
                        f"has {image.width}x{image.height} pixels, more than data.max_pixels = {max_pixels}; shrink it"
                    )
                elif getattr(image, "n_frames", 1) > 1:
                    problem = f"has {image.n_frames} frames; keep one"  # type: ignore[attr-defined]
                elif image.mode[0] not in "IF":  # 16 bits and more, which conversion would clip
                    if image.format == "PNG":  # its checksums, which decoding does not look at
                        _open(data).verify()
                    if seen is not None:
                        seen.update(odd(image))
                    return take(image)
                else:
                    problem = f"has pixels of mode {image.mode}, not of 8 bits; convert it"
        else:
            problem = f"is larger than {MAX_BYTES >> 20} MiB; shrink or remove it"
    except UnidentifiedImageError:  # it names the stream in memory
        problem = f"can not be read (UnidentifiedImageError: it is none of {', '.join(FORMATS)}); replace or remove it"
    except Exception as error:  # a damaged file makes Pillow and zipfile raise almost anything
        problem = f"can not be read ({type(error).__name__}: {error}); replace or remove it"
    raise DataError(f"{files.root}: image {name} {problem}.")


def _open(data: bytes) -> Image.Image:
    """What `Image.open` does with FORMATS, without its own limit of pixels, which is one for all of the process."""
    Image.preinit()
    for name in FORMATS:
        if name not in Image.OPEN:
            Image.init()
        if name in Image.OPEN:
            make, accepts = Image.OPEN[name]
            if accepts is None or accepts(data[:16]) is True:
                with suppress(SyntaxError, IndexError, TypeError, struct.error):  # another format's
                    return make(BytesIO(data), "")
    raise UnidentifiedImageError
