"""Files that survive kills and full disks, and folders that may be somebody else's.

Nothing is written through a link: new content replaces a link by name, what is appended to or cut is opened without
following one and is copied first where it has a second name, and linked folders on the way from a run folder are
refused. Nothing is written to a folder that was locked and is not the one of that name any more. Whatever the disk says
is one sentence, a CheckpointError.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path

from .. import reading
from ..errors import AdvkitError, CheckpointError, OptionError, named
from ..holding import sync_folder
from ..reading import Judge, opened, own_opener, regular
from . import process

HIDDEN = re.compile(rf"\.(?P<kind>tmp|old|trash)-(?P<name>.+)@{process.OWNER}@[0-9]+")
OF_A_RUN = ("environment.json", "lock", "metrics.jsonl", "checkpoints", "evaluations", "analysis", "audit.json")
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""What a disk says that is full, or fails, whatever place was typed."""
_serial = itertools.count()
locked: dict[Path, Callable[[], bool]] = {}
"""By folder that this process has locked, whether its lock still is the file of that name: see `RunLock`."""


def hidden(kind: str, name: str) -> str:
    """A fresh name for what is being written (tmp), replaced (old) or deleted (trash)."""
    return f".{kind}-{name}@{process.owner()}@{next(_serial)}"


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what dead processes of this host left half-written or half-deleted, of all or of `name`; never raises.

    Leftovers of live processes and of other hosts stay. What a replacement had moved aside is put back.
    """
    with suppress(OSError, CheckpointError):
        judge_place(folder / "file")
        for entry in list(os.scandir(folder)):
            left = HIDDEN.fullmatch(entry.name)
            if left is None or name not in (None, left["name"]) or not process.dead(left):
                continue
            if left["kind"] == "old" and not os.path.lexists(folder / left["name"]):
                os.rename(entry, folder / left["name"])
            delete(Path(entry))


def refuse_links(path: Path) -> None:
    """Raise CheckpointError where a folder between `path` and the run folder that holds it is a link.

    The run folder itself may be reached by links: it was named by who runs this, and what is in it perhaps not.
    """
    for place in Path(os.path.abspath(path)).parents:
        if os.path.islink(place) and any(map(_is_run, place.parents)):
            raise CheckpointError(f"{place} is a link, and nothing is written through one; put a copy in its place.")


def judge_place(path: Path) -> None:
    """Raise CheckpointError where nothing may be written: behind a link, or where a locked folder was moved away."""
    refuse_links(path)
    for place in path.parents:
        if place in locked and not locked[place]():
            raise _moved(place)


def refuse_another(folder: Path, was: os.stat_result) -> None:
    """Raise CheckpointError where `folder` is not the one any more that it `was`."""
    try:
        same = os.path.samestat(os.stat(folder), was)
    except OSError:
        same = False
    if not same:
        raise _moved(folder)


def _moved(folder: Path) -> CheckpointError:
    return CheckpointError(
        f"{folder} was moved, removed or replaced while it was in use, and nothing more is written there; put it back "
        "and go on from what it holds."
    )


def _is_run(folder: Path) -> bool:
    """By its settings and anything else of a run: what somebody else made may lack the rest, or have links for it."""
    return os.path.lexists(folder / "run.toml") and any(os.path.lexists(folder / name) for name in OF_A_RUN)


def run_above(path: Path) -> Path | None:
    """The run whose folder has `path` for a file of its own; None where it is no run's."""
    inner = ""
    for place in (path, *path.parents):
        if inner in ("run.toml", *OF_A_RUN) and _is_run(place):
            return place
        inner = place.name
    return None


def make_folder(path: Path) -> Path:
    """A folder to write to, made if it is not there."""
    judge_place(path / "file")
    with using(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def write_atomic(path: Path, data: bytes) -> None:
    """Write or replace a small file: after a kill or on a full disk it holds the old content or the new.

    What a killed process had begun of it goes.
    """
    judge_place(path)
    sweep(path.parent, path.name)
    work = path.parent / hidden("tmp", path.name)
    with using(path, work):
        write_new(work, data)
        os.replace(work, path)
        sync_folder(path.parent)


def write_new(path: Path, data: bytes) -> None:
    """A new file, on disk when this returns. Its mode follows the umask (safetensors' own writer: 0600)."""
    with open(path, "xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def append(path: Path, data: bytes) -> int:
    """Add to a file, or begin it; its size. Once this returns, the data survive a crash."""
    judge_place(path)
    with using(path):
        _break_off(path)
        with open(path, "ab", opener=own_opener) as stream:
            regular(stream.fileno())
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
            return stream.tell()


def truncate(path: Path, size: int) -> None:
    """Cut a file that is longer than `size`."""
    judge_place(path)
    with using(path):
        _break_off(path)
        with open(path, "r+b", opener=own_opener) as stream:
            if regular(stream.fileno()).st_size > size:
                stream.truncate(size)


def _break_off(path: Path) -> None:
    """Put a copy in the place of a file that has other names too, which shall keep what they have (cp -al)."""
    with suppress(FileNotFoundError):
        if stat.S_ISREG((now := os.lstat(path)).st_mode) and now.st_nlink > 1:
            work = path.parent / hidden("tmp", path.name)
            try:
                with opened(path, links=False) as old, open(work, "xb") as new:
                    shutil.copyfileobj(old, new)
                    new.flush()
                    os.fsync(new.fileno())
                os.replace(work, path)
            finally:
                delete(work)


def read(path: Path, most: int, judge: Judge | None = None) -> bytes:
    """A file of at most `most` bytes. Links, devices and what is larger raise CheckpointError before they are read.

    So does what `judge` says of path, first bytes and size, by an OSError.
    """
    with using(path):
        try:
            return reading.read(path, most, judge, links=False)
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            raise CheckpointError(
                f"{path} is damaged: {error.strerror}, and no run writes so many; restore it, or remove it."
            ) from error


def link(place: Path, to: str, copied: Set[str]) -> None:
    """Let `place` be a link to `to`, if the file system has links; never raises.

    A folder there that holds the files `copied` and no others gives way: a copy of the run has made it of a link, and
    it would stay what that was.
    """
    work, old = place.parent / hidden("tmp", place.name), place.parent / hidden("trash", place.name)
    with suppress(OSError):
        try:
            if place.is_dir() and not place.is_symlink() and {*os.listdir(place)} == copied:
                os.replace(place, old)
            os.symlink(to, work)
            os.replace(work, place)
            sync_folder(place.parent)
        finally:
            delete(work)
            delete(old)


def delete(path: Path) -> None:
    """Remove a file, link or folder, if it is there and can be removed."""
    with suppress(OSError):
        path.unlink() if path.is_symlink() or not path.is_dir() else shutil.rmtree(path)


def there(path: Path) -> bool:
    """Whether there is anything of that name, be it a broken link. Raises CheckpointError where nobody may look."""
    try:
        with using(path), suppress(FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no name of a disk
            os.lstat(path)
            return True
    except CheckpointError as error:  # nothing is behind a link to itself, or has a name that no disk takes
        if getattr(error.__cause__, "errno", None) not in (errno.ELOOP, errno.ENAMETOOLONG):
            raise
    return False


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, in order; nothing where there is none. Raises CheckpointError where nobody may look."""
    with using(folder), suppress(FileNotFoundError, NotADirectoryError):
        return sorted(folder / name for name in os.listdir(folder))
    return []


@contextmanager
def past_damage(tell: Callable[[CheckpointError], object] = bool) -> Iterator[None]:
    """Go on behind what is damaged, of which `tell` hears; not behind what lacks rights, for that may be intact."""
    try:
        yield
    except CheckpointError as error:
        if getattr(error.__cause__, "errno", None) in (errno.EACCES, errno.EPERM):
            raise
        tell(error)


def unwritable(
    what: object, error: OSError | CheckpointError, advice: str, done: str = "written", typed: bool = True
) -> AdvkitError:
    """What to raise where a place can not be `done`: an OptionError if it was `typed`, a CheckpointError of the disk's.

    So is one of a place that nobody typed.
    """
    cause = error if isinstance(error, OSError) else error.__cause__
    if not isinstance(cause, OSError):  # a link on the way
        return CheckpointError(str(error))
    if cause.errno in FULL:
        return CheckpointError(f"{what} can not be {done} ({cause.strerror}); free some space.")
    reason = "it is no folder" if isinstance(cause, FileExistsError) else cause.strerror
    kind = OptionError if typed and cause.errno != errno.EROFS else CheckpointError
    return kind(f"{what} can not be {done} ({reason}); {advice}.")


def make_named(folder: Path) -> None:
    """The folder that was named to write to, made if it is not there; OptionError where it can not be one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error, f"choose another {named('--out')}", "used") from None


@contextmanager
def using(path: Path, work: Path | None = None) -> Iterator[None]:
    """One sentence for whatever the disk says about `path`; the temporary `work` is gone afterwards."""
    try:
        yield
    except (OSError, MemoryError) as error:
        why = error.strerror if isinstance(error, OSError) else "out of memory"
        if isinstance(error, OSError) and error.errno == errno.ELOOP:
            why = "it is a link, and nothing is read or written through one"
        raise CheckpointError(
            f"{path} can not be used ({why}); check path, permissions and free space; it is as it was."
        ) from error
    finally:
        if work is not None:
            delete(work)
