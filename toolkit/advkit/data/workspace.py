"""Where a data set is made before it is renamed into place."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import CheckpointError
from ..holding import take
from ..reading import own_opener

PREFIX = ".advkit-unfinished-"


@contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    """A hidden folder in `parent` for the scope. Those that killed processes left there are removed."""
    _sweep(parent)
    with (
        TemporaryDirectory(dir=parent, prefix=PREFIX, ignore_cleanup_errors=True) as work,
        open(Path(work, "held"), "xb", opener=own_opener) as held,
    ):
        with suppress(CheckpointError):  # where nothing can be locked, nothing is swept either
            take(held)
        yield Path(work)


def _sweep(parent: Path) -> None:
    for left in parent.glob(f"{PREFIX}*"):
        if left.is_symlink():
            continue
        with suppress(OSError, CheckpointError), open(left / "held", "rb+", opener=own_opener) as held:
            take(held)  # not of a living process
            shutil.rmtree(left)
