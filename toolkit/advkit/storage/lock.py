"""One writer a folder."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Self
from weakref import WeakSet

from ..errors import OptionError
from ..holding import take
from ..reading import own_opener, regular
from . import files, process


class RunLock:
    """`with RunLock(folder / "lock"):` one writer a folder; a second gets an OptionError naming the first.

    The kernel holds the lock and drops it with the process: none is ever stale, and of simultaneous starters exactly
    one wins. The file only says who it is. It stays behind: unlinking it would let a third process lock a new file
    while a second waits at the old one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        files.refuse_links(self.path)
        with files.using(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab+", buffering=0, opener=own_opener)
            try:
                take(self._file)
                self._say(process.owner())
            except OSError as error:
                with self._file:
                    if not isinstance(error, BlockingIOError):
                        raise
                    raise OptionError(
                        f"{self.path.parent} is in use by {_holder(self._file)}; wait for it or stop it."
                    ) from error
        _open.add(self._file)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._file.closed:  # as it is in a forked child
            with suppress(OSError), self._file:
                self._say("")

    def _say(self, name: str) -> None:
        """Write who holds it; nothing into a file that has another name too, and may be anything there (cp -al)."""
        if regular(self._file.fileno()).st_nlink == 1:
            self._file.truncate(0)
            self._file.write(name.encode())


_open: WeakSet[IO[bytes]] = WeakSet()
"""A forked data-loader worker shares these files, and would keep the locks of a killed parent alive."""


def _close_all() -> None:
    for file in list(_open):
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_all)


def _holder(file: IO[bytes]) -> str:
    for _ in range(50):  # the winner may be an instant from writing its name over that of a dead one
        file.seek(0)
        name = re.fullmatch(process.OWNER, file.read(1000).decode(errors="replace"))
        if name and not process.dead(name):
            break
        time.sleep(0.02)
    return f"process {name['pid']} on host {name['host']}" if name else "another process"
