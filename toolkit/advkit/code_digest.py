"""Digests of code of third parties, by which a run tells whether it has changed."""

from __future__ import annotations

from collections.abc import Mapping
from types import FunctionType
from typing import Any

from .fingerprint import Walk
from .registry import by_advkit

FORM = 2
"""The way in which they are taken; one more where a change of it gives other digests of equal code."""


def code(given: Any) -> dict[str, str]:
    """{"code": digest} of a class or function of a third party, {} for advkit's own.

    Twelve hex digits, as those of `fingerprint`. What a registry (a dict, list or set of a module) got from other
    modules is not in them, for that depends on what was imported.
    """
    return {} if by_advkit(given) else {"code": _Code.of(given, strict=False)}


class _Code(Walk):
    def value(self, held: Any, names: Mapping[str, Any]) -> Any:
        """Of a container without the functions and classes that its module neither defines nor names."""
        known = {id(value) for value in names.values()}

        def own(part: Any) -> bool:
            home = getattr(part, "__module__", None)
            return not isinstance(part, FunctionType | type) or home == names.get("__name__") or id(part) in known

        if type(held) is dict:
            return {key: part for key, part in held.items() if own(part)}
        return type(held)(part for part in held if own(part)) if type(held) in (list, set) else held
