"""Files that anybody may have made: opened so that nothing hangs, and judged before they take memory."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

Judge = Callable[[Path, bytes, int], None]


@contextmanager
def opened(path: str | Path, *, links: bool = True) -> Iterator[BufferedReader]:
    """A regular file, open to be read. Raises OSError for anything else, and for a link where not `links`."""
    try:
        stream = open(path, "rb", opener=opener if links else own_opener)  # noqa: SIM115 (it is closed below)
    except ValueError as error:  # what no file system takes for a name
        raise OSError(errno.EINVAL, str(error)) from None
    with stream:
        regular(stream.fileno())
        yield stream


def read(path: str | Path, most: int, judge: Judge | None = None, *, links: bool = True) -> bytes:
    """A file of at most `most` bytes; OSError, with EFBIG for a larger one, before it is read.

    `judge` raises an OSError for path, first bytes and size that are wrong.
    """
    with opened(path, links=links) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"it has more than {most} bytes")
        if judge is not None:
            judge(Path(path), stream.peek(64), size)
        content = stream.read(most + 1)
        if len(content) > most:  # it grew, or is one of /proc, which say that they have no bytes
            raise OSError(errno.EFBIG, f"it has more than {most} bytes")
        return content


def opener(path: str, flags: int) -> int:
    """Opener that does not hang on a FIFO."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)


def own_opener(path: str, flags: int) -> int:
    """As `opener`, and follows no link."""
    return opener(path, flags | getattr(os, "O_NOFOLLOW", 0))


def regular(descriptor: int) -> os.stat_result:
    """What the system says of an open file; OSError where it is a device, a pipe, a socket or a folder."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    return found
