"""What a run returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class TrainResult:
    """What `advkit.train` returns: the module with its last weights, and a line for each epoch.

    `averaged` are weights by name that a plugin has judged in their place, {} where none did.
    """

    model: nn.Module = field(repr=False)
    history: list[dict[str, Any]] = field(repr=False)
    best: Mapping[str, Any] | None
    folder: Path | None
    stopped: str = ""
    """Why a plugin ended the run before its last epoch, "" where none did."""
    averaged: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
