"""Installed distributions whose entry points can not be read: they have none, and a caution names each.

Otherwise one of them would end every command, in advkit, torch, triton or pydantic, which ask all that is installed.
"""

from __future__ import annotations

import sys
import warnings
from contextlib import suppress
from importlib.metadata import Distribution, EntryPoints
from pathlib import Path

from .errors import TYPED, Caution, cut

_POINTS, _TOLD = Distribution.entry_points, set[str]()


def tolerate() -> None:
    """So it is from now on for whoever asks in this process. Called where one is there that can not be read."""
    Distribution.entry_points = property(_points_of)  # type: ignore[assignment]


def _points_of(installed: Distribution) -> EntryPoints:
    try:
        found: EntryPoints = _POINTS.__get__(installed)
        return found
    except Exception as error:
        place = str(installed.locate_file(getattr(installed, "_path", "")))
        name = Path(place).name
        with suppress(Exception):  # what it calls itself may be as broken
            name = installed.metadata["Name"] or name
        if place not in _TOLD:
            _TOLD.add(place)
            _say(
                f"The entry points of the installed distribution {cut(name)} can not be read "
                f"({type(error).__name__}), so it counts as having none; reinstall it, or remove {cut(place)}."
            )
        return EntryPoints(())


def _say(sentence: str) -> None:
    if TYPED.get():
        print(f"Caution: {sentence}", file=sys.stderr)
    else:
        warnings.warn(sentence, Caution, stacklevel=2)
