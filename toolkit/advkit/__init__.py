"""advkit: adversarial training as composition.

Everything public is importable from here; `__init__.pyi` lists it, once, for type checkers and for this module.
torch is imported only when something that needs it is asked for; until then, how its threads wait can be chosen.
"""

from __future__ import annotations

import ast
import os
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:  # torch reads both once, when it is imported
    # Threads that spin for long while they wait for one that a busy core holds back make a step take ten times as
    # long; those that never spin are slow to wake where cores are idle. A thousand turns are some microseconds.
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

_HOME = {
    alias.asname or alias.name: (f".{node.module}", alias.name)
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}
"""Public name: (module, name there)."""

__all__ = sorted(_HOME)

_FORMER: dict[str, tuple[str, str]] = {}
"""Names that a public name had before: {"Old": ("New", "1.1")}, the API version in which it became the new one."""


def __getattr__(name: str) -> Any:
    if name in _FORMER:
        new, since = _FORMER[name]
        warnings.warn(f"advkit.{name} is advkit.{new} since API {since}.", DeprecationWarning, stacklevel=2)
        return __getattr__(new)
    if name not in _HOME:
        raise AttributeError(f"module 'advkit' has no attribute {name!r}")
    import_module(".registry", __name__).points("")  # before torch, which ends at an installed package that is broken
    module, there = _HOME[name]
    public = globals()[name] = getattr(import_module(module, __name__), there)
    return public


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
