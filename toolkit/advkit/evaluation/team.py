"""Who judges: one process, or several that take a chunk of images each and hear what the others have found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor

T = TypeVar("T")


class Team:
    """One process, which hears itself alone. Several are `training.ranks.Ranks`."""

    rank, size = 0, 1

    def heard(self, value: T) -> list[T]:
        """What every process says, in their order, as JSON."""
        return [value]

    def shown(self, value: T, tensors: Sequence[Tensor]) -> list[tuple[T, Sequence[Tensor]]]:
        """What every process says, in their order, as JSON, with tensors, which may lie on the CPU now."""
        return [(value, tensors)]

    def as_first(self, tensors: Sequence[Tensor]) -> None:
        """Give tensors the values that the first process has, in place."""
