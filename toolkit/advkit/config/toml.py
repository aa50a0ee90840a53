"""TOML, without a number that would lose its value, and without keys or brackets that a parser chokes on."""

from __future__ import annotations

import re
import tomllib
from typing import Any

MOST_DOTS = 16
_PART = r"""(?:[A-Za-z0-9_-]++|"(?:\\.|[^"\\\n])*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+"""
_DOTTED = re.compile(rf"(?:^|[\[{{,])[ \t]*+(?:{_PART}){{{MOST_DOTS + 1}}}", re.MULTILINE)
"""A longer key, where one may stand: `tomllib` takes memory and time by the square of its parts."""


def parsed(toml: str) -> dict[str, Any]:
    """A table as `tomllib.loads` reads it, but for a number that float64 takes for 0: its text, which is refused.

    Raises ValueError for what is no TOML, for a key of more than `MOST_DOTS` dots, and for brackets within brackets
    beyond Python's recursion limit.
    """

    def number(written: str) -> float | str:
        return float(written) or (written if re.match(r"[^eE]*[1-9]", written) else 0.0)

    if found := _DOTTED.search(toml):
        line = toml.count("\n", 0, found.end()) + 1
        raise ValueError(f"a key of more than {MOST_DOTS} dots, at line {line}")
    try:
        return tomllib.loads(toml, parse_float=number)
    except RecursionError:
        raise ValueError("brackets within brackets, too many") from None
