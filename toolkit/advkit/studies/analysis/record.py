"""What an analysis leaves on disk: NAME.json with figures and settings, NAME.npz with arrays, NAME.png and NAME.svg."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
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


def write(
    folder: Path,
    name: str,
    record: Mapping[str, Any],
    arrays: Mapping[str, Tensor],
    draw: Callable[[], Figure],
    typed: bool = True,
) -> bool:
    """Write the files of one analysis, each at once or not at all; False where matplotlib is absent.

    `draw` makes the figure; pictures of an earlier analysis are removed first, as they would show other figures.
    Raises OptionError where the folder was `typed` and can not be written, CheckpointError else and of a full disk.
    """
    stored = io.BytesIO()
    np.savez(stored, **{key: value.numpy() for key, value in arrays.items()})  # type: ignore[arg-type]
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    place = folder
    try:
        make_folder(folder)
        for suffix in ("png", "svg"):
            (place := folder / f"{name}.{suffix}").unlink(missing_ok=True)
        write_atomic(place := folder / f"{name}.npz", stored.getvalue())
        write_atomic(place := folder / f"{name}.json", text.encode())
        try:
            with _whatever_backend():
                from .plotting import rendered

            pictures = rendered(draw)
        except ImportError as absent:
            if (absent.name or "").partition(".")[0] not in ("matplotlib", "mpl_toolkits"):
                raise
            return False
        for suffix, data in pictures.items():
            write_atomic(place := folder / f"{name}.{suffix}", data)
    except (OSError, CheckpointError) as error:
        advice = f"choose {'another' if typed else 'a place that can with'} {named('--out')}"
        raise unwritable(place, error, advice, typed=typed) from None
    return True
