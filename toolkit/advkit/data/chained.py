"""Images of several tensors as one tensor, none of them copied: rows are gathered from where they lie."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten


class Chained(Tensor):
    """(N, C, H, W) uint8 on the CPU. Rows by index or slice are a plain tensor of those; any other use copies all."""

    parts: tuple[Tensor, ...]
    starts: tuple[int, ...]

    @staticmethod
    def __new__(cls, *parts: Tensor) -> Chained:
        shape = sum(map(len, parts)), *parts[0].shape[1:]
        made: Chained = Tensor._make_wrapper_subclass(cls, shape, dtype=torch.uint8)
        made.parts = parts
        made.starts = tuple(accumulate((len(part) for part in parts[:-1]), initial=0))
        return made

    def __init__(self, *parts: Tensor) -> None: ...

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Chained{tuple(self.shape)}"

    def rows(self, places: Tensor) -> Tensor:
        """The images at `places` (n,) int64."""
        if len(places) and not bool(((places >= -len(self)) & (places < len(self))).all()):
            raise IndexError(f"places are not all below {len(self)}")
        places = places.remainder(len(self))
        gathered = torch.empty(len(places), *self.shape[1:], dtype=torch.uint8)
        for part, start in zip(self.parts, self.starts, strict=True):
            here = torch.nonzero((places >= start) & (places < start + len(part))).squeeze(1)
            gathered[here] = part[places[here] - start]
        return gathered

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func is aten.index.Tensor and isinstance(args[0], cls) and len(args[1]) == 1:
            (places,) = args[1]
            if places.dtype == torch.int64 and places.dim() == 1:
                return args[0].rows(places)
        if func is aten.slice.Tensor and isinstance(args[0], cls) and args[1:2] in ((), (0,)):
            here = range(len(args[0]))[slice(*args[2:])]
            return args[0].rows(torch.arange(here.start, max(here.start, here.stop), here.step))
        whole = tree_map_only(cls, lambda chained: torch.cat(chained.parts), (tuple(args), dict(kwargs or {})))
        return func(*whole[0], **whole[1])
