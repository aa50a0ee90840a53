"""Checkpoints that survive kills, full disks and bit rot: a flat dict of tensors and a JSON state.

    folder/step-00000400/{tensors.safetensors, state.json, manifest.json}
    folder/names.json             {"best": "step-00000360", "last": "step-00000400"}
    folder/last -> step-00000400  the same as links, where the file system has them

A step is written under a hidden name, fsynced, then renamed: at every instant a `step-*` folder is complete.
Neither safetensors nor JSON notices a flipped bit: manifest.json has sizes and SHA-256, and `load` parses
only the very bytes it has hashed. No pickle. To resume: take the `RunLock`, `sweep`, then load `newest`.
Failures raise CheckpointError.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ..errors import CheckpointError
from ..holding import sync_folder
from . import files

FORMAT = 1
TENSORS, STATE, MANIFEST, NAMES = "tensors.safetensors", "state.json", "manifest.json", "names.json"
STATE_CAP, MANIFEST_CAP = 64 << 20, 64 << 10  # bytes, checked before a file is read
_STEP = re.compile(r"step-[0-9]{8,19}")


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Write folder/step-NNNNNNNN and return its path; if that fails, what was saved before is untouched.

    Tensors may be on any device, strided or shared; they load contiguous, on the CPU, bit for bit. `state`
    has to survive JSON unchanged: string keys, lists (no tuples), finite floats. If the step exists with the
    same content it is kept; damaged or different, it is replaced.
    """
    final = folder / f"step-{step:08d}"
    work = folder / files.hidden("tmp", final.name)
    files.judge_place(final)
    blobs = _blobs(final, tensors, state)
    blobs[MANIFEST] = _encode(_manifest(step, blobs))
    with files.using(final, work):
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(folder.parent)
        if verified(final) and _read(final / MANIFEST, MANIFEST_CAP) == blobs[MANIFEST]:
            return final
        work.mkdir()
        for name, blob in blobs.items():  # the manifest last
            files.write_new(work / name, blob)
        sync_folder(work)
        files.judge_place(final)  # all that took its time
        _publish(work, final)
    return final


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (CPU, writable), in the order of their names, and state of a checkpoint folder; verified first.

    Raises CheckpointError.
    """
    blobs = _verified(path, (TENSORS, STATE))
    state = _parse(path / STATE, blobs[STATE])
    try:
        with torch.device("cpu"):  # else a default device of the caller's gets the empty tensors
            return dict(sorted(safetensors.torch.load(blobs[TENSORS]).items())), state
    except Exception as error:  # its hash fits, so somebody made it so: no type of exception is excluded
        raise _damaged(path / TENSORS, "is not a readable safetensors file") from error


def load_state(path: Path) -> dict[str, Any]:
    """As `load`, of the state alone: the tensors, which may be gigabytes, are neither read nor verified."""
    return _parse(path / STATE, _verified(path, (STATE,))[STATE])


def _verified(path: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """The content of the files of a step that are named, as its manifest has them."""
    raw = _read(path / MANIFEST, MANIFEST_CAP)
    stated = _parse(path / MANIFEST, raw)
    if stated.get("format") != FORMAT:
        raise _damaged(path / MANIFEST, f"is not of format {FORMAT} (a newer advkit may read it)")
    try:
        known = {name: stated["files"][name] for name in (TENSORS, STATE)}
        sizes = {name: int(known[name]["size"]) for name in known}
        step = int(path.name[5:] if _STEP.fullmatch(path.name) else stated["step"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path / MANIFEST, "is damaged") from error
    sizes[STATE] = min(sizes[STATE], STATE_CAP)
    blobs = {name: _read(path / name, sizes[name]) for name in names}
    actual = _manifest(step, blobs)
    for name in names:
        if known[name] != actual["files"][name]:
            raise _damaged(path / name, f"is damaged (its size or SHA-256 is not that of {MANIFEST})")
    if raw != _encode(actual | {"files": known | actual["files"]}):
        raise _damaged(path / MANIFEST, "is damaged or belongs to another step")
    return blobs


def verified(path: Path) -> bool:
    """Whether `load(path)` would succeed. Raises CheckpointError where it may not be read."""
    with files.past_damage():
        load(path)
        return True
    return False


def steps(folder: Path) -> list[Path]:
    """Step folders, newest first; none if there is no `folder`."""
    with files.using(folder), suppress(FileNotFoundError):
        names = [entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
        return [
            folder / name for name in sorted(filter(_STEP.fullmatch, names), key=lambda n: int(n[5:]), reverse=True)
        ]
    return []


def newest(folder: Path, warn: Callable[[str], None] | None = None) -> Path | None:
    """The newest step that verifies, or None; each damaged one passed over is reported through `warn`.

    Raises CheckpointError where one may not be read.
    """
    for path in steps(folder):
        with files.past_damage(lambda error: warn and warn(f"Skipped a checkpoint: {error}")):
            load(path)
            return path
    return None


def point(folder: Path, name: str, target: Path) -> None:
    """Let `name` ("last", "best") be the step `target` of `folder`; readers see the old one or the new one.

    The record is names.json. The link of that name, relative, is for people: some file systems have none.
    """
    known = steps(folder)
    if target not in known:
        raise CheckpointError(f"{target} is not a step of {folder}: save it before {name!r} names it.")
    files.judge_place(target)
    named = {link: Path(step).name for link, step in _linked(folder).items() if folder / step in known}
    with files.past_damage():
        named |= _recorded(folder)
    ordered = dict(sorted({**named, name: target.name}.items()))  # links are listed in any order
    files.write_atomic(folder / NAMES, _encode(ordered))
    files.link(folder / name, target.name, {TENSORS, STATE, MANIFEST})


def resolve(folder: Path, name: str) -> Path:
    """The step called `name` ("last", "best"): by the record, or where there is none by the link.

    Raises CheckpointError where neither names a step of `folder`, and where the link leads out of it.
    """
    link, linked, known, step = folder / name, _linked(folder), steps(folder), None
    try:
        step = _recorded(folder).get(name)
    except CheckpointError:
        if name not in linked:
            raise
    leads, stray = Path(linked.get(name, "")), False
    if name in linked:  # one of a step that is gone is older than the record; any other is nobody's of a run
        stray = folder / leads not in known if step is None else not _STEP.fullmatch(str(leads))
    if Path(name).name != name or _STEP.fullmatch(name) or stray:
        raise CheckpointError(f"{link} does not name a step of {folder}; remove that link.")
    step = step or linked.get(name)
    if step is None and link.is_dir():  # a copy of before there was a record, with links made folders
        step = f"step-{_parse(link / MANIFEST, _read(link / MANIFEST, MANIFEST_CAP)).get('step'):08}"
    if step is None:
        raise CheckpointError(f"{folder} has no checkpoint {name!r}.")
    if folder / step not in known:
        raise CheckpointError(f"{folder}: {name!r} is {step}, which is lost; restore it, or read another checkpoint.")
    return folder / step


def named(folder: Path, name: str) -> bool:
    """Whether anything says which step is called `name`, be it lost or damaged."""
    try:
        return name in _recorded(folder) or files.there(folder / name)
    except CheckpointError:
        return True


def _recorded(folder: Path) -> dict[str, str]:
    """{name: step} of names.json; {} where there is none. Raises CheckpointError where it is damaged."""
    if not files.there(folder / NAMES):
        return {}
    named = _parse(folder / NAMES, _read(folder / NAMES, MANIFEST_CAP))
    if not all(isinstance(step, str) and _STEP.fullmatch(step) for step in named.values()):
        raise _damaged(folder / NAMES, "is damaged")
    return named


def _linked(folder: Path) -> dict[str, str]:
    """{name: step} of the links."""
    with suppress(OSError):
        return {
            entry.name: os.readlink(entry)
            for entry in os.scandir(folder)
            if entry.is_symlink() and not entry.name.startswith((".", "step-"))
        }
    return {}


def prune(folder: Path, keep: int) -> None:
    """Remove what is older than the newest `keep` (>= 1) steps that verify, except what has a name.

    Damaged steps do not count, so the last good one stays, and so does one whose folder is only read, for nothing in it
    could be removed. A delete that fails is left to a later `sweep`.
    """
    good = 0
    with suppress(OSError, CheckpointError):
        files.judge_place(folder / NAMES)
        named = {*_recorded(folder).values(), *(Path(step).name for step in _linked(folder).values())}
        for path in steps(folder):
            if good < max(keep, 1):
                good += verified(path)
            elif path.name not in named and os.access(path, os.W_OK):
                trash = folder / files.hidden("trash", path.name)  # half a step must not look like a damaged one
                with suppress(OSError):
                    os.rename(path, trash)
                files.delete(trash)


def _encode(value: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(value), allow_nan=False).encode() + b"\n"


def _parse(file: Path, blob: bytes) -> dict[str, Any]:
    """The object that `_encode` made `blob` from; other spellings (duplicate keys, NaN, 1e999) are damage."""
    with suppress(ValueError, RecursionError):
        value = json.loads(blob)
        if isinstance(value, dict) and _encode(value) == blob:
            return value
    if blob.endswith(b"\r\n"):
        raise CheckpointError(
            f"{file} has the line ends of Windows, as git with core.autocrlf writes files; restore the run's own: "
            "`git config core.autocrlf false`, then check its files out anew."
        )
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


def _read(file: Path, most: int) -> bytes:
    try:
        return files.read(file, most)
    except CheckpointError as error:
        if getattr(error.__cause__, "errno", None) in (errno.EFBIG, errno.EINVAL):
            raise _damaged(file, f"is damaged (not a file of at most {most} bytes)") from error
        raise


def _publish(work: Path, final: Path) -> None:
    """Rename `work` to `final`. What was there steps aside; after a kill in between, `sweep` puts it back."""
    old = final.parent / files.hidden("old", final.name)
    if os.path.lexists(final):
        os.rename(final, old)
    try:
        os.rename(work, final)
    except BaseException:
        with suppress(FileNotFoundError):
            os.rename(old, final)
        raise
    try:
        sync_folder(final.parent)
    finally:
        files.delete(old)


def _damaged(file: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{file} {why}; remove {file.parent.name} to resume from an earlier one, or read another "
        "checkpoint, best or last."
    )
