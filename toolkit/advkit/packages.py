"""Installed packages: which are, and of which distributions they are."""

from __future__ import annotations

import functools
import site
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import distributions

from .registry import source


@functools.cache
def is_installed(package: str) -> bool:
    """Whether a package lies where installers put it, and not where somebody writes it."""
    path = str(getattr(sys.modules.get(package), "__file__", None) or source(package) or "")
    places = [*site.getsitepackages(), site.getusersitepackages()]
    return any(path.startswith(place) for place in places)


@functools.cache
def versions(package: str) -> tuple[str, ...]:
    """Of the distributions that a package is of."""
    return tuple(_owners().get(package, ()))


@functools.cache
def _owners() -> Mapping[str, Sequence[str]]:
    """By package. One whose metadata are broken has no version, and the others have theirs."""
    found: dict[str, list[str]] = {}
    for one in distributions():
        with suppress(Exception):
            owner = f"{one.metadata['Name']} {one.version}"
            declared = (one.read_text("top_level.txt") or "").split()
            files = (file.parts[0].removesuffix(".py") for file in one.files or () if file.suffix == ".py")
            for package in declared or dict.fromkeys(files):
                found.setdefault(package, []).append(owner)
    return found
