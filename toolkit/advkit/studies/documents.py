"""JSON files of a run's folder, and what can be taken from them."""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, OptionError
from ..escapes import escaped
from ..storage.files import read

CAP = 16 << 20  # bytes of one file that is read


def document(value: object) -> bytes:
    """JSON for a file."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def prose(text: str) -> bytes:
    """Text for a file, in UTF-8; what of a path is none is spelled out, and what a terminal would obey."""
    return escaped(text).encode(errors="backslashreplace")


def content(file: Path) -> bytes:
    """A file of at most `CAP` bytes."""
    try:
        if file.is_symlink():
            raise OptionError(f"{file} is a link, and nothing of a run is read through one; put a copy in its place.")
        if file.stat().st_size > CAP:
            raise OptionError(f"{file} is larger than {CAP >> 20} MiB and was left out.")
        return read(file, CAP)
    except (OSError, CheckpointError) as error:
        reason = error if isinstance(error, OSError) else error.__cause__
        raise OptionError(f"{file} can not be read ({getattr(reason, 'strerror', None) or reason}).") from None


def members(file: Path) -> dict[str, Any]:
    """A JSON object."""
    try:
        parsed = json.loads(content(file))
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise OptionError(f"{file} is damaged; make it again.")
    return parsed


def number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if isfinite(value) else None
    except OverflowError:  # an integer beyond all floats
        return None
