"""How one batch lies in the processes of a run: each has a share, in the batch's order, and some may have none."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor


class Whole:
    """A batch that lies in one process. `index` (B,) are its samples."""

    def __init__(self, index: Tensor) -> None:
        self.index = index

    most: int | None = None
    """Samples of the largest share; None in one process."""
    processes = 1

    @property
    def count(self) -> int:
        """B, of all processes."""
        return len(self.index)

    def whole(self, value: Any) -> Any:
        """A value of the batch, from the own share of it: a tensor (b, ...), or what holds tensors."""
        return value

    def own(self, value: Any) -> Any:
        """The own share of a value of the batch."""
        return value

    def known(self, known: Mapping[str, Any], names: Collection[str]) -> Mapping[str, Any]:
        """What is known of the batch, as far as `names` go; the rest stays that of the share."""
        return known

    def agree(self, samples: Mapping[str, Tensor]) -> None:
        """Put the rows (N,) of per-sample state that any process has written into that of all."""


class Shares(Whole):
    """A batch of which process `rank` has rows[rank] samples. `gathered` brings tensors of one shape together."""

    def __init__(self, rank: int, rows: Sequence[int], gathered: Callable[[Tensor], list[Tensor]]) -> None:
        self._rows, self._gathered, self.processes = rows, gathered, len(rows)
        self.most, before = max(rows), sum(rows[:rank])
        self._own = slice(before, before + rows[rank])

    def whole(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: self.whole(inner) for name, inner in value.items()}
        if is_dataclass(value) and not isinstance(value, type):
            return replace(value, **{field.name: self.whole(getattr(value, field.name)) for field in fields(value)})
        if not isinstance(value, Tensor):
            return value
        if not value.dim():  # whether all was finite
            return torch.stack(self._gathered(value)).all()
        padded = value.new_zeros(max(self._rows), *value.shape[1:])
        padded[: len(value)] = value
        return torch.cat([rows[:count] for rows, count in zip(self._gathered(padded), self._rows, strict=True)])

    def own(self, value: Any) -> Any:
        fits = isinstance(value, Tensor) and value.shape[:1] == (self.count,)
        return value[self._own] if fits else value

    def known(self, known: Mapping[str, Any], names: Collection[str]) -> Mapping[str, Any]:
        return {name: self.whole(value) if name in names else value for name, value in known.items()}

    def agree(self, samples: Mapping[str, Tensor]) -> None:
        own = self.index[self._own]
        for values in samples.values():
            values[self.index] = self.whole(values[own])
