"""What was written in one place, before anything is checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Layer:
    """Settings ("section.key") and options (by plugin) of one origin, as they were written."""

    origin: str
    settings: Mapping[str, object] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
