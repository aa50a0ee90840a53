"""One writer a folder."""

from __future__ import annotations

import os
import re
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Self
from weakref import WeakSet

from ..errors import OptionError
from ..holding import take
from ..reading import own_opener, regular
from . import files, process

TRIES = 20
"""How often a lock is opened anew whose file was replaced before it was held; beyond, the disk has no lasting names."""


class RunLock:
    """`with RunLock(folder / "lock"):` one writer a folder; a second gets an OptionError naming the first.

    The kernel holds the lock and drops it with the process: none is ever stale, and of simultaneous starters exactly
    one wins. The file only says who it is, and where. It stays behind: unlinking it would let a third process lock a
    new file while a second waits at the old one. What is then written by `files` in the folder is refused once the
    file of that name is another: the folder was moved, and what is there now may be another run's.

    A file of two names, as `cp -al` leaves it, becomes two, so that a copy has a lock of its own.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        files.refuse_links(self.path)
        with files.using(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for left in reversed(range(TRIES)):
                if self._took(again=left > 0):
                    break
        if self._lasting():
            files.locked[self.path.parent] = self._lasting
        _open.add(self._file)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._file.closed:  # as it is in a forked child
            files.locked.pop(self.path.parent, None)
            with suppress(OSError), self._file:
                self._say("")

    def _took(self, again: bool) -> bool:
        """Open the file and hold it. False where it is to be opened `again`, for its name is another's now."""
        with ExitStack() as refused:
            self._file = refused.enter_context(open(self.path, "ab+", buffering=0, opener=own_opener))
            try:
                take(self._file)
                shared, lasting = self._second_name(), self._lasting()
            except BlockingIOError as error:
                shared, lasting = self._second_name() and _said(self._file)[1] not in ("", self._place()), True
                if not (again and shared):
                    raise OptionError(
                        f"{self.path.parent} is in use by {_holder(self._file)}; wait for it or stop it."
                    ) from error
            if again and shared and lasting:
                files.write_atomic(self.path, b"")
            if again and (shared or not lasting):
                return False
            self._say(f"{process.owner()} {self._place()}")
            refused.pop_all()
        return True

    def _lasting(self) -> bool:
        """Whether the file that is held still is the one of that name."""
        try:
            return os.path.samestat(os.stat(self.path, follow_symlinks=False), os.fstat(self._file.fileno()))
        except (OSError, ValueError):  # gone, or closed
            return False

    def _second_name(self) -> bool:
        return regular(self._file.fileno()).st_nlink > 1

    def _place(self) -> str:
        """Its folder, whatever that is called."""
        folder = os.stat(self.path.parent)
        return f"{folder.st_dev:x}-{folder.st_ino:x}"

    def _say(self, name: str) -> None:
        """Write who holds it; nothing into a file that has another name too, and may be anything there."""
        if not self._second_name():
            self._file.truncate(0)
            self._file.write(name.encode())


_open: WeakSet[IO[bytes]] = WeakSet()
"""A forked data-loader worker shares these files, and would keep the locks of a killed parent alive."""


def _close_all() -> None:
    files.locked.clear()
    for file in list(_open):
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_all)


def _said(file: IO[bytes]) -> tuple[re.Match[str] | None, str]:
    """Who holds it, and in which folder, as far as the file says."""
    file.seek(0)
    name, _, place = file.read(1000).decode(errors="replace").partition(" ")
    return re.fullmatch(process.OWNER, name), place


def _holder(file: IO[bytes]) -> str:
    for _ in range(50):  # the winner may be an instant from writing its name over that of a dead one
        name, _ = _said(file)
        if name and not process.dead(name):
            break
        time.sleep(0.02)
    return f"process {name['pid']} on host {name['host']}" if name else "another process"
