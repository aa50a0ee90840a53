"""What an analysis leaves on disk: NAME.json with figures and settings, NAME.npz with arrays, NAME.png and NAME.svg."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ...errors import CheckpointError, named
from ...storage.files import make_folder, unwritable, write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NO_PICTURE = "No picture: pip install 'advkit[plot]' draws the pictures; figures and arrays are written."


def tensors(found: Any) -> dict[str, Tensor]:
    """The tensors of an analysis' dataclass, by field."""
    return {field.name: value for field in fields(found) if isinstance(value := getattr(found, field.name), Tensor)}


@contextmanager
def _whatever_backend() -> Iterator[None]:
    """A scope to import matplotlib in, which fails where MPLBACKEND names what is not there, as a notebook's does here.

    That is for windows, and pictures are files. What draws windows later finds it as ever.
    """
    chosen = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    try:
        yield
    finally:
        if chosen is not None:
            os.environ["MPLBACKEND"] = chosen
    if chosen:
        import matplotlib

        with suppress(ValueError):
            matplotlib.rcParams["backend"] = chosen


def _drawn(draw: Callable[[], Figure]) -> dict[str, bytes]:
    """The pictures by kind; {} where matplotlib is absent."""
    try:
        with _whatever_backend():
            from .plotting import rendered

        return rendered(draw)
    except ImportError as absent:
        if (absent.name or "").partition(".")[0] not in ("matplotlib", "mpl_toolkits"):
            raise
        return {}


def write(
    folder: Path,
    name: str,
    record: Mapping[str, Any],
    arrays: Mapping[str, Tensor],
    draw: Callable[[], Figure],
    typed: bool = True,
) -> dict[str, str]:
    """Write the files of one analysis, each at once or not at all; the SHA-256 of its pictures, as its JSON has them.

    `draw` makes the figure. What an earlier analysis left is replaced once everything is made, and its pictures are
    removed where there are none, as they would show other figures. Raises OptionError where the folder was `typed` and
    can not be written, CheckpointError else and of a full disk.
    """
    stored = io.BytesIO()
    np.savez(stored, **{key: value.numpy() for key, value in arrays.items()})  # type: ignore[arg-type]
    files = {"npz": stored.getvalue(), **(pictures := _drawn(draw))}
    known = {kind: sha256(data).hexdigest() for kind, data in pictures.items()}
    files["json"] = json.dumps({**record, "pictures": known}, indent=2, allow_nan=False).encode() + b"\n"
    place = folder
    try:
        make_folder(folder)
        for suffix, data in files.items():
            write_atomic(place := folder / f"{name}.{suffix}", data)
        for suffix in {"png", "svg"} - pictures.keys():
            (place := folder / f"{name}.{suffix}").unlink(missing_ok=True)
    except (OSError, CheckpointError) as error:
        advice = f"choose {'another' if typed else 'a place that can with'} {named('--out')}"
        raise unwritable(place, error, advice, typed=typed) from None
    return known
