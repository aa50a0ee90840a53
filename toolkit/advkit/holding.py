"""A file that one process holds at a time. The kernel lets go of it with the process."""

from __future__ import annotations

import errno
import sys
from contextlib import suppress
from typing import IO

from .errors import CheckpointError

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

        CheckpointError where this Python has no way to.
        """
        if "fcntl" not in globals():
            raise CheckpointError(
                f"{file.name} can not be locked, since this Python has no fcntl; leave the folder out, which a run "
                "from Python may, or use a Python that has it."
            )
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
