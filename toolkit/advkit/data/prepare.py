"""Getting the files of a torchvision data set: from local files and archives, or by torchvision's download.

Archives are never unpacked as they ask. Members are looked up by name, copied to a hidden folder while their MD5
is taken, and renamed into place only if that fits: whatever stops this, every file in place is an intact one.
"""

from __future__ import annotations

import hashlib
import os
import socket
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from gzip import GzipFile
from pathlib import Path
from typing import IO, TypeVar, cast
from zipfile import ZipFile

from ..errors import DataError
from ..reading import opened
from .vision import MAX_BYTES, TorchvisionSource, md5_of, no_vision, torchvision_datasets
from .workspace import workspace

CHUNK = 1 << 20
TIMEOUT = 60.0  # seconds without an answer of the network

T = TypeVar("T")


def prepare(source: TorchvisionSource, root: Path, given: Path | None = None) -> list[str]:
    """Put the files of `source` below `root`, from the file, folder or archive `given`, or from the network.

    Returns what was put there; files that are there and intact stay as they are. Raises DataError if one is still
    not there at the end; those that were found are kept.
    """
    wanted = {file: md5 for file, md5 in source.files.items() if md5_of(root / file) != md5}
    if not wanted:
        return []
    if given is not None:
        _refuse_closed(given)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with workspace(root) as work:
            if given is None:
                given = work / "download"
                given.mkdir()
                _download(source, given)
            _take(source, wanted, given, root, work / "part")
    except OSError as error:
        raise DataError(f"{root} can not be written ({error.strerror}); choose another --data-root.") from None
    return list(wanted)


def _refuse_closed(given: Path) -> None:
    """DataError for what is no file or folder, and for what holds something that may not be read."""

    def closed(error: OSError) -> None:
        raise DataError(f"{error.filename} can not be read ({error.strerror}); check its permissions.") from None

    try:
        os.stat(given)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        closed(error)
    if not (os.path.isfile(given) or os.path.isdir(given)):
        raise DataError(f"{given} is neither a file nor a folder; check --from.")
    for _ in os.walk(given, onerror=closed) if os.path.isdir(given) else ():
        pass


def _download(source: TorchvisionSource, folder: Path) -> None:
    datasets = torchvision_datasets()
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        source.download(datasets, folder)
    except ImportError as error:
        raise no_vision(error) from None
    except Exception as error:  # of the network, of a file that came damaged, of the reader
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{source.name} can not be downloaded ({reason}); try again, or get it from {source.origin} "
            "elsewhere and name it with --from FILE."
        ) from None
    finally:
        socket.setdefaulttimeout(before)


def _take(source: TorchvisionSource, wanted: Mapping[str, str], given: Path, root: Path, part: Path) -> None:
    """Copy the wanted files that are found in `given` to `part` and rename them into place."""
    missing = {Path(file).name: file for file in wanted}
    damaged = set()
    sought = {*missing, *(f"{name}.gz" for name in missing), source.archive}
    for name, stream in guarded(given, _open_all(given, sought.__contains__)):
        if name not in missing:
            continue
        if _copied(given, stream, part) == wanted[missing[name]]:
            (root / missing[name]).parent.mkdir(parents=True, exist_ok=True)
            os.replace(part, root / missing.pop(name))
        else:
            damaged.add(name)
    for name in missing:
        problem = (
            f"{name} in {given} is damaged: its MD5 is not that of the published file"
            if name in damaged
            else f"{given} has no {name}"
        )
        raise DataError(f"{problem}; get it from {source.origin} and name it with --from.")


def _copied(given: Path, stream: IO[bytes], part: Path) -> str:
    """Write a stream to `part`; its MD5, in hex."""
    md5 = hashlib.md5(usedforsecurity=False)
    with part.open("wb") as out:
        for chunk in guarded(given, iter(partial(stream.read, CHUNK), b"")):
            md5.update(chunk)
            if out.write(chunk) and out.tell() > MAX_BYTES:
                return ""
    return md5.hexdigest()


def _open_all(path: Path, sought: Callable[[str], bool]) -> Iterator[tuple[str, IO[bytes]]]:
    """The name without folders and the content of each sought file: of a folder, an archive or a file itself.

    A content has to be read before the next is asked for.
    """
    found = [path]
    if path.is_dir():
        found = []
        for folder, below, names in os.walk(path):
            below[:] = sorted(name for name in below if not name.startswith("."))
            found += [Path(folder, name) for name in sorted(names) if sought(name)]
    for each in found:
        if each.is_file():
            with opened(each) as stream:
                yield from _unpacked(each.name, stream, sought)


def _unpacked(name: str, stream: IO[bytes], sought: Callable[[str], bool]) -> Iterator[tuple[str, IO[bytes]]]:
    if name.lower().endswith(".zip"):
        with ZipFile(stream) as archive:
            for member in archive.namelist():
                if sought(base := Path(member).name):
                    with archive.open(member) as content:
                        yield from _unpacked(base, content, sought)
    elif name.lower().endswith((".tar", ".tar.gz", ".tgz")):
        with tarfile.open(fileobj=stream, mode="r|*") as tar:
            for info in tar:
                if info.isreg() and sought(base := Path(info.name).name):
                    yield from _unpacked(base, cast(IO[bytes], tar.extractfile(info)), sought)
    elif name.lower().endswith(".gz"):
        yield name[:-3], cast(IO[bytes], GzipFile(fileobj=stream))
    else:
        yield name, stream


def guarded(given: Path, items: Iterable[T]) -> Iterator[T]:
    """The items. Whatever goes wrong in making one, and archives raise almost anything, is one sentence."""
    try:
        yield from items
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{given} can not be read ({reason}); replace it by an intact copy.") from None
