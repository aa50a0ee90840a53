"""Files of weights that other programs wrote: read without running what they say."""

from __future__ import annotations

import errno
import io
import os
import pickle
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import safetensors.torch
import torch
from torch import Tensor

from ..errors import CheckpointError, cut
from . import files
from .weights import MODEL

WRAPPERS = ("state_dict", "model", "net", "model_state_dict")
"""Keys below which other people's files keep the state dict."""

CAP = 2 << 30
"""Bytes of a file, and of what it unpacks to, where nothing else is said."""

DAMAGED = "it is damaged or cut short"

MAGIC = (b"PK\x03\x04", b"\x80")
"""What torch.save's files begin with: those of today, and those of before torch 1.6."""


def read_weights(path: Path, cap: int = CAP) -> tuple[dict[str, Tensor], str]:
    """A state dict from a .safetensors file, or from what torch.save wrote; nothing in it is executed.

    Beside it what else the file had to choose from, "" where nothing. A file of more than `cap` bytes, packed or
    unpacked, is refused before it is read.
    """
    content = _content(path, cap)
    stored: Any
    try:
        if path.suffix == ".safetensors":
            stored = safetensors.torch.load(content)
        else:
            # weights_only: tensors and plain containers; a file that would run code is refused.
            with warnings.catch_warnings(action="ignore"):  # what is wrong is said below
                stored = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise _unreadable(path, _reason(error, content)) from None
    if isinstance(stored, dict) and any(str(name).startswith(MODEL) for name in stored):
        raise CheckpointError(
            f"{path} is part of a run's checkpoint; give the run's folder, or write its weights with `advkit export`."
        )
    said = ""
    for key in WRAPPERS:
        if isinstance(stored, dict) and isinstance(stored.get(key), dict):
            said = _others(path, stored, key)
            stored = stored[key]
            break
    if not isinstance(stored, dict) or not stored or not all(isinstance(value, Tensor) for value in stored.values()):
        below = _listed(key for key, held in _sets(stored) if key and sum(isinstance(one, Tensor) for one in held) > 1)
        advice = f"there are tensors in {below}: save alone what is meant" if below else "save model.state_dict()"
        raise CheckpointError(f"{path} holds no state dict, a dictionary of tensors by name; {advice}.")
    for name, value in stored.items():
        if form := _form(value):
            raise CheckpointError(f"{path}: {name} is a {form} tensor; save dense ones, of a float model.")
    weights = {str(name): value for name, value in stored.items()}
    counted, others = weights.get("n_averaged", torch.zeros(0)), weights.keys() - {"n_averaged"}
    averaging = all(name.startswith("module.") for name in others)
    if averaging and (counted.dtype, counted.shape) == (torch.int64, ()):
        count = int(weights.pop("n_averaged"))
        averaged = f"{path} is of torch.optim.swa_utils.AveragedModel: the average of {count} models is taken"
        said = "; ".join(filter(None, (averaged, said)))
    return weights, said


def _others(path: Path, stored: Mapping[Any, Any], taken: str) -> str:
    """Whether a file has more weights of such shapes than those that are `taken`: averages beside raw ones."""

    def shapes(tensors: Iterable[object]) -> Counter[torch.Size]:
        dense = (value for value in tensors if isinstance(value, Tensor) and not value.is_nested)
        return Counter(value.shape for value in dense if value.dim())

    own = shapes(stored[taken].values())
    beside = {key: value for key, value in stored.items() if key != taken and "optim" not in str(key)}
    others = _listed(key for key, held in _sets(beside) if 2 * (own & shapes(held)).total() > own.total())
    if not others:
        return ""
    return f"{path} has weights in {others}, too, and those in {taken} are taken; save only those that you mean"


def _sets(stored: object, where: tuple[str, ...] = (), seen: set[int] | None = None) -> Iterator[tuple[str, list[Any]]]:
    """The dictionaries and lists of a file, each once, and what they hold, by the keys that lead to them."""
    seen = set() if seen is None else seen
    if not isinstance(stored, dict | list | tuple) or id(stored) in seen or len(where) > 4:
        return
    seen.add(id(stored))
    parts = dict(stored if isinstance(stored, dict) else enumerate(stored))
    yield ".".join(where), [*parts.values()]
    for key, value in parts.items():
        yield from _sets(value, (*where, cut(str(key))), seen)


def _listed(keys: Iterable[str]) -> str:
    """The first three."""
    first = list(islice(keys, 4))
    return ", ".join(first[:3]) + " and more" * (len(first) > 3)


def refuse_others(path: Path) -> None:
    """CheckpointError for what holds no weights, whatever net they would be of: nothing, a device, a run's own file."""
    if not (files.there(path) and os.path.exists(path)):
        raise CheckpointError(f"{path} does not exist; give a run folder or a file of weights.")
    if run := files.run_above(path):
        raise CheckpointError(f"{path} is a file of the run {run}; give the run's folder, or a file of weights.")
    if not os.path.isfile(path):
        raise _unreadable(path, "it is no regular file")


def refuse_export(folder: Path) -> None:
    """CheckpointError for the folder of an export, where that of a run or a file of weights is asked for."""
    if files.there(file := folder / "model.safetensors") and not files.there(folder / "run.toml"):
        raise CheckpointError(f"{folder} is an export and no run; give its file of weights, {file}.")


def _content(path: Path, cap: int) -> bytes:
    try:
        content = files.read(Path(os.path.realpath(path)), cap, _refuse_other)
    except (CheckpointError, OSError, ValueError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, CheckpointError) else error
        if isinstance(cause, FileNotFoundError | NotADirectoryError):
            raise CheckpointError(f"{path} does not exist; give a run folder or a file of weights.") from None
        limit = ", checkpoint.max_bytes" if getattr(cause, "errno", None) == errno.EFBIG else ""
        raise _unreadable(path, f"{getattr(cause, 'strerror', None) or cause}{limit}") from None
    try:
        if is_zipfile(io.BytesIO(content)):
            with ZipFile(io.BytesIO(content)) as archive:
                if sum(member.file_size for member in archive.infolist()) > cap:
                    raise _unreadable(path, f"it unpacks to more than {cap} bytes, checkpoint.max_bytes")
                _refuse_flipped(archive)
    except CheckpointError:
        raise
    except Exception:  # a damaged zip makes zipfile raise almost anything
        raise _unreadable(path, DAMAGED) from None
    return content


def _refuse_flipped(archive: ZipFile) -> None:
    """BadZipFile where a checksum is not that of its content, which torch does not look at."""
    for member in archive.infolist():
        if member.CRC:  # 0: of torch.serialization.set_crc32_options(False)
            with archive.open(member) as content:
                while content.read(1 << 20):
                    pass


def _refuse_other(path: Path, head: bytes, size: int) -> None:
    """Judge a file by its first bytes: a sparse one of zeros is no reason to take 2 GB of memory."""
    if path.suffix == ".safetensors":
        header = int.from_bytes(head[:8], "little")
        fine = len(head) >= 10 and 2 <= header <= size - 8 and head[8:9] == b"{"
    else:
        fine = head.startswith(MAGIC)
    if not fine:
        raise OSError(errno.EINVAL, "its first bytes are not those of such a file")


def _reason(error: Exception, content: bytes) -> str:
    if isinstance(error, pickle.UnpicklingError):  # torch's own advice is to switch the protection off
        try:
            others = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content))
        except Exception:  # of a damaged pickle, which may say anything
            others = []
        return (
            f"it holds {', '.join(others[:3])} beside tensors"
            if others
            else "it is damaged, or holds more than tensors"
        )
    if content.startswith(MAGIC[0]):
        return _zipped(content)
    if content.startswith(MAGIC[1]) or "incomplete metadata" in str(error):
        return DAMAGED
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return reason.split(". ")[0][:120]


def _zipped(content: bytes) -> str:
    """What a zip is that torch does not read as a state dict: other programs write zips too."""
    try:
        with ZipFile(io.BytesIO(content)) as archive:
            names = [member.filename.rpartition("/")[2] for member in archive.infolist()]
    except Exception:  # a damaged zip makes zipfile raise almost anything
        return DAMAGED
    if "constants.pkl" in names:
        return "it is a TorchScript archive, code beside weights; save the state_dict() of torch.jit.load's module"
    if any(name.endswith(".npy") for name in names):
        return "it is numpy's .npz; save its arrays as a dictionary of tensors"
    if "archive_format" in names:
        return "it is a program of torch.export; save its state_dict"
    return DAMAGED if "data.pkl" in names else "it is a zip of something else"


def _unreadable(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path} can not be read as weights ({reason}); give a .safetensors file or a state dict saved by torch.save."
    )


def _form(value: Tensor) -> str:
    """What is not dense about a tensor, "" for a dense one."""
    if value.is_meta:
        return "meta"
    if value.is_quantized:
        return "quantized"
    if value.is_nested:  # of whatever layout: a strided one passes for dense
        return "nested"
    return "" if value.layout == torch.strided else str(value.layout).removeprefix("torch.")
