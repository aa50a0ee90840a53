"""What torchrun has told this process, by its environment; read without torch."""

from __future__ import annotations

import os
from collections.abc import Sequence


def several() -> bool:
    """Whether there are more processes than this one."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1")


def processes() -> int:
    """How many there are."""
    told = os.environ.get("WORLD_SIZE", "1")
    return int(told) if told.isdecimal() else 1


def on_this_machine() -> int:
    """How many of them run on this machine, as far as torchrun has said."""
    told = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(told)) if told.isdecimal() else 1


def rank() -> int:
    """The number of this process: 0 is the first, which speaks and writes for all."""
    told = os.environ.get("RANK", "0")
    return int(told) if several() and told.isdecimal() else 0


def unsaid() -> Sequence[str]:
    """What is missing for the processes to meet."""
    return [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
