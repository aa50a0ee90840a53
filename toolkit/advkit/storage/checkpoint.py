"""Checkpoints that survive kills, full disks and bit rot: a flat dict of tensors and a JSON state.

    folder/step-00000400/{tensors.safetensors, state.json, manifest.json}
    folder/last -> step-00000400

A step is written under a hidden name, fsynced, then renamed: at every instant a `step-*` folder is complete.
Neither safetensors nor JSON notices a flipped bit: manifest.json has sizes and SHA-256, and `load` parses
only the very bytes it has hashed. No pickle. To resume: take the `RunLock`, `sweep`, then load `newest`.
Failures raise CheckpointError; a second writer gets an OptionError. POSIX only.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Self

import safetensors.torch
import torch
from torch import Tensor

from ..errors import CheckpointError, OptionError

FORMAT = 1
TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
STATE_CAP, MANIFEST_CAP = 64 << 20, 64 << 10  # bytes, checked before a file is read
_STEP = re.compile(r"step-[0-9]{8,}")


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Write folder/step-NNNNNNNN and return its path; if that fails, what was saved before is untouched.

    Tensors may be on any device, strided or shared; they load contiguous, on the CPU, bit for bit. `state`
    has to survive JSON unchanged: string keys, lists (no tuples), finite floats. If the step exists with the
    same content it is kept; damaged or different, it is replaced.
    """
    final = folder / f"step-{step:08d}"
    work = folder / _hidden("tmp", final.name)
    blobs = _blobs(final, tensors, state)
    blobs[MANIFEST] = _encode(_manifest(step, blobs))
    with _using(final, work):
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            _sync_folder(folder.parent)
        if verified(final) and (final / MANIFEST).read_bytes() == blobs[MANIFEST]:
            return final
        work.mkdir()
        for name, blob in blobs.items():  # the manifest last
            _write(work / name, blob)
        _sync_folder(work)
        _publish(work, final)
    return final


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (CPU, writable) and state of a checkpoint folder, verified first. Raises CheckpointError."""
    raw = _read(path / MANIFEST, MANIFEST_CAP)
    stated = _parse(path / MANIFEST, raw)
    if stated.get("format") != FORMAT:
        raise _damaged(path / MANIFEST, f"is not of format {FORMAT} (a newer advkit may read it)")
    try:
        sizes = {name: int(stated["files"][name]["size"]) for name in (TENSORS, STATE)}
        step = int(path.name[5:] if _STEP.fullmatch(path.name) else stated["step"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path / MANIFEST, "is damaged") from error
    sizes[STATE] = min(sizes[STATE], STATE_CAP)
    blobs = {name: _read(path / name, size) for name, size in sizes.items()}
    actual = _manifest(step, blobs)
    for name in blobs:
        if stated["files"][name] != actual["files"][name]:
            raise _damaged(path / name, f"is damaged (its size or SHA-256 is not that of {MANIFEST})")
    if raw != _encode(actual):
        raise _damaged(path / MANIFEST, "is damaged or belongs to another step")
    state = _parse(path / STATE, blobs[STATE])
    try:
        with torch.device("cpu"):  # else a default device of the caller's gets the empty tensors
            return safetensors.torch.load(blobs[TENSORS]), state
    except Exception as error:  # its hash fits, so somebody made it so: no type of exception is excluded
        raise _damaged(path / TENSORS, "is not a readable safetensors file") from error


def verified(path: Path) -> bool:
    """Whether `load(path)` would succeed."""
    try:
        load(path)
    except CheckpointError:
        return False
    return True


def steps(folder: Path) -> list[Path]:
    """Step folders, newest first; none if there is no `folder`."""
    with _using(folder), suppress(FileNotFoundError):
        names = [e.name for e in os.scandir(folder) if e.is_dir(follow_symlinks=False)]
        found = sorted((n for n in names if _STEP.fullmatch(n)), key=lambda n: int(n[5:]), reverse=True)
        return [folder / name for name in found]
    return []


def newest(folder: Path, warn: Callable[[str], None] | None = None) -> Path | None:
    """The newest step that verifies, or None; each damaged one passed over is reported through `warn`."""
    for path in steps(folder):
        try:
            load(path)
            return path
        except CheckpointError as error:
            if warn is not None:
                warn(f"Skipped a checkpoint: {error}")
    return None


def point(folder: Path, name: str, target: Path) -> None:
    """Make folder/name a relative link to the step `target` of `folder`; readers see the old or new one."""
    if target not in steps(folder):
        raise CheckpointError(f"{target} is not a step of {folder}: save it before {name!r} names it.")
    work = folder / _hidden("tmp", name)
    with _using(folder / name, work):
        os.symlink(target.name, work)
        os.replace(work, folder / name)
        _sync_folder(folder)


def resolve(folder: Path, name: str) -> Path:
    """The step that the link `name` ("last", "best") names; a link out of `folder` is refused."""
    with _using(folder / name):
        target = folder / os.readlink(folder / name)
    if Path(name).name != name or target not in steps(folder):
        raise CheckpointError(f"{folder / name} does not name a step of {folder}; remove that link.")
    return target


def prune(folder: Path, keep: int) -> None:
    """Remove what is older than the newest `keep` (>= 1) steps that verify, except what a link there names.

    Damaged steps do not count, so the last good one stays. A delete that fails is left to a later `sweep`.
    """
    good = 0
    with suppress(OSError, CheckpointError):
        linked = {os.readlink(entry) for entry in os.scandir(folder) if entry.is_symlink()}
        for path in steps(folder):
            if good < max(keep, 1):
                good += verified(path)
            elif path.name not in linked:
                trash = folder / _hidden("trash", path.name)  # half a step must not look like a damaged one
                with suppress(OSError):
                    os.rename(path, trash)
                _delete(trash)


def sweep(folder: Path) -> None:
    """Remove what dead processes of this host left half-written or half-deleted; never raises.

    Leftovers of live processes and of other hosts stay. A step whose replacement was cut short is put back.
    """
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if not (found := _HIDDEN.fullmatch(entry.name)) or not _dead(found):
                continue
            step = folder / found["name"]
            if found["kind"] == "old" and not os.path.lexists(step):
                os.rename(entry, step)
            _delete(Path(entry))


def write_atomic(path: Path, data: bytes) -> None:
    """Write or replace a small file: after a kill or on a full disk it holds the old content or the new."""
    work = path.parent / _hidden("tmp", path.name)
    with _using(path, work):
        _write(work, data)
        os.replace(work, path)
        _sync_folder(path.parent)


class RunLock:
    """`with RunLock(folder / "lock"):` one writer a folder; a second gets an OptionError naming the first.

    The kernel holds the lock (flock) and drops it with the process: none is ever stale, and of simultaneous
    starters exactly one wins. The file only says who it is. It stays behind: unlinking it would let a third
    process lock a new file while a second waits at the old one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        with _using(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab+", buffering=0, opener=_open)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._file.truncate(0)
                self._file.write(_owner().encode())
            except OSError as error:
                with self._file:
                    if not isinstance(error, BlockingIOError):
                        raise
                    raise OptionError(
                        f"{self.path.parent} is in use by {_holder(self._file)}; wait for it or stop it."
                    ) from error
        # A forked data-loader worker shares the open file, and would keep the lock of a killed parent alive.
        os.register_at_fork(after_in_child=self._file.close)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._file.closed:  # as it is in a forked child
            with suppress(OSError), self._file:
                self._file.truncate(0)


def _holder(file: IO[bytes]) -> str:
    for _ in range(50):  # the winner may be an instant from writing its name over that of a dead one
        found = re.fullmatch(_OWNER, os.pread(file.fileno(), 1000, 0).decode(errors="replace"))
        if found and not _dead(found):
            break
        time.sleep(0.02)
    return f"process {found['pid']} on host {found['host']}" if found else "another process"


# Temporary files and the lock name their process by host, pid and birth, since pids recur.
_HOST = re.sub(r"[^A-Za-z0-9._-]", "_", socket.gethostname())
_OWNER = r"(?P<host>[A-Za-z0-9._-]*)@(?P<pid>[0-9]{1,9})@(?P<birth>[0-9a-f.-]*)"
_HIDDEN = re.compile(rf"\.(?P<kind>tmp|old|trash)-(?P<name>.+)@{_OWNER}@[0-9]+")
_serial = itertools.count()


def _owner() -> str:
    return f"{_HOST}@{os.getpid()}@{_birth(os.getpid())}"


def _hidden(kind: str, name: str) -> str:
    """A fresh name for what is being written (tmp), replaced (old) or deleted (trash)."""
    return f".{kind}-{name}@{_owner()}@{next(_serial)}"


def _dead(owner: re.Match[str]) -> bool:
    """Whether that was a process of this host and has ended; False if it can not be known."""
    if owner["host"] != _HOST:
        return False
    try:
        os.kill(int(owner["pid"]), 0)
    except OSError as error:
        return error.errno == errno.ESRCH
    return _birth(int(owner["pid"])) != owner["birth"]


def _birth(pid: int) -> str:
    """Boot id and clock ticks from boot to the start of a process; "" for a zombie, or without /proc."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return "" if fields[0] in (b"Z", b"X") else f"{boot}.{fields[19].decode()}"
    return ""


def _encode(value: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(value), allow_nan=False).encode() + b"\n"


def _parse(file: Path, blob: bytes) -> dict[str, Any]:
    """The object that `_encode` made `blob` from; other spellings (duplicate keys, NaN, 1e999) are damage."""
    with suppress(ValueError, RecursionError):
        value = json.loads(blob)
        if isinstance(value, dict) and _encode(value) == blob:
            return value
    raise _damaged(file, "is not the JSON object that advkit writes")


def _manifest(step: int, blobs: Mapping[str, bytes]) -> dict[str, Any]:
    files = {n: {"size": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in blobs.items()}
    return {"format": FORMAT, "step": step, "files": files}


def _blobs(final: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> dict[str, bytes]:
    """Both data files. safetensors stores only tensors that are contiguous and unshared, hence the copies."""
    try:
        if "__metadata__" in tensors:
            raise ValueError("the tensor name __metadata__ is reserved")
        with torch.device("cpu"):
            copies = {n: torch.empty(t.shape, dtype=t.dtype).copy_(t.detach()) for n, t in tensors.items()}
        blob = _encode(state)
        if json.loads(blob) != state or len(blob) > STATE_CAP:
            raise ValueError(f"the state has tuples, keys that are no strings, or over {STATE_CAP} bytes")
        return {TENSORS: safetensors.torch.save(copies), STATE: blob}
    except Exception as error:  # of torch, safetensors, json: whichever, there is nothing to write
        raise CheckpointError(
            f"{final} can not be written ({error!r}); store dense tensors of common dtypes and strict JSON."
        ) from error


def _open(path: str, flags: int) -> int:
    """Opener that neither hangs on a FIFO nor follows a link out of the folder."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW, 0o666)


def _read(file: Path, most: int) -> bytes:
    with _using(file), open(file, "rb", opener=_open) as stream:
        status = os.fstat(stream.fileno())
        if stat.S_ISREG(status.st_mode) and status.st_size <= most:
            return stream.read()
    raise _damaged(file, f"is damaged (not a file of at most {most} bytes)")


def _write(file: Path, data: bytes) -> None:
    """A new file, on disk when this returns. Its mode follows the umask (safetensors' own writer: 0600)."""
    with open(file, "xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems have no such call
            raise
    finally:
        os.close(fd)


def _publish(work: Path, final: Path) -> None:
    """Rename `work` to `final`. What was there steps aside; after a kill in between, `sweep` puts it back."""
    old = final.parent / _hidden("old", final.name)
    if os.path.lexists(final):
        os.rename(final, old)
    try:
        os.rename(work, final)
    except BaseException:
        with suppress(FileNotFoundError):
            os.rename(old, final)
        raise
    try:
        _sync_folder(final.parent)
    finally:
        _delete(old)


def _delete(path: Path) -> None:
    """Remove a file, link or folder, if it is there and can be removed."""
    with suppress(OSError):
        path.unlink() if path.is_symlink() or not path.is_dir() else shutil.rmtree(path)


@contextmanager
def _using(path: Path, work: Path | None = None) -> Iterator[None]:
    """One sentence for whatever the disk says about `path`; the temporary `work` is gone afterwards."""
    try:
        yield
    except (OSError, MemoryError) as error:
        why = error.strerror if isinstance(error, OSError) else "out of memory"
        raise CheckpointError(
            f"{path} can not be used ({why}); check path, permissions and free space; nothing else changed."
        ) from error
    finally:
        if work is not None:
            _delete(work)


def _damaged(file: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{file} {why}; remove {file.parent.name} to resume from an earlier one, or read another: "
        "--checkpoint best or last."
    )
