"""What systems do in their own ways: hold a file until the process ends, and put the names in a folder on the disk."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

from .errors import CheckpointError

NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}

if sys.platform == "win32":
    import msvcrt

    def take(file: IO[bytes]) -> None:
        """Hold the open file until it is closed; BlockingIOError where another process does."""
        file.seek(1 << 30)  # a locked byte can not be read by others: one far behind the owner's name
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(errno.EAGAIN, "held") from error
else:
    with suppress(ImportError):  # of a Python that was cut down
        import fcntl

    def take(file: IO[bytes]) -> None:
        """Hold the open file until it is closed; BlockingIOError where another process does.

        CheckpointError where this Python, or the file's disk, has no way to.
        """
        if "fcntl" not in globals():
            raise CheckpointError(
                f"{file.name} can not be locked, since this Python has no fcntl; leave the folder out, which a run "
                "from Python may, or use a Python that has it."
            )
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            raise CheckpointError(
                f"{file.name} can not be locked, since its disk has no locks ({error.strerror}); take a folder on "
                "another disk, or leave it out, which a run from Python may."
            ) from error


def sync_folder(folder: Path) -> None:
    """Names in it are on disk when this returns, if it may be opened. Windows has no such call."""
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # of a folder that may be written and not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems have no such call
            raise
    finally:
        os.close(descriptor)
