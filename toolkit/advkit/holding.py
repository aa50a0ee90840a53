"""A file that one process holds at a time. The kernel lets go of it with the process."""

from __future__ import annotations

import errno
import sys
from typing import IO

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
    import fcntl

    def take(file: IO[bytes]) -> None:
        """Hold the open file until it is closed; BlockingIOError where another process does."""
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
