"""TOML, without a number that would lose its value."""

from __future__ import annotations

import re
import tomllib
from typing import Any


def parsed(toml: str) -> dict[str, Any]:
    """A table as `tomllib.loads` reads it, but for a number that float64 takes for 0: its text, which is refused."""

    def number(written: str) -> float | str:
        return float(written) or (written if re.match(r"[^eE]*[1-9]", written) else 0.0)

    return tomllib.loads(toml, parse_float=number)
