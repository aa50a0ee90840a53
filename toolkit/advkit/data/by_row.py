"""Images that are no tensor in memory and are used as one: of several tensors, or made when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from ..errors import OptionError

aten = torch.ops.aten

_WRITTEN = "These images are no tensor in memory, so nothing can be written to them; write to a copy, images[:]."


class ByRow(Tensor):
    """(N, C, H, W) uint8 on the CPU. Rows by index or slice are a plain tensor of those; any other use makes all.

    OptionError where it is written to: that would be a copy which nobody sees.
    """

    @classmethod
    def of_shape(cls, *shape: int) -> Self:
        made: Self = Tensor._make_wrapper_subclass(cls, shape, dtype=torch.uint8)
        return made

    def __setitem__(self, place: Any, value: Any) -> None:
        raise OptionError(_WRITTEN)

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self[:]

    def numpy(self, *, force: bool = False) -> Any:
        return self[:].numpy()

    def tolist(self) -> Any:
        return self[:].tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{type(self).__name__}{tuple(self.shape)}"

    def rows(self, places: Tensor) -> Tensor:
        """The images at `places` (n,) int64, none of which is negative or beyond the last."""
        raise NotImplementedError

    def part(self, rows: Tensor | slice) -> Tensor:
        """The images at `rows`, as a data set keeps them."""
        return self[rows]

    def sample(self) -> Tensor:
        """Those that mean and deviation are taken from."""
        return self

    def contents(self) -> Iterator[memoryview] | None:
        """What tells them from others; None where that is their pixels."""
        return None

    def _rows(self, places: Tensor) -> Tensor:
        if len(places) and not bool(((places >= -len(self)) & (places < len(self))).all()):
            raise IndexError(f"places are not all below {len(self)}")
        return self.rows(places.remainder(len(self)))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func is aten.index.Tensor and isinstance(args[0], cls) and len(args[1]) == 1:
            (places,) = args[1]
            if places.dim() == 1 and places.dtype == torch.bool and len(places) == len(args[0]):
                places = torch.nonzero(places).squeeze(1)
            if places.dim() == 1 and places.dtype == torch.int64:
                return args[0]._rows(places)
        if func is aten.slice.Tensor and isinstance(args[0], cls) and args[1:2] in ((), (0,)):
            here = range(len(args[0]))[slice(*args[2:])]
            return args[0].rows(torch.arange(here.start, max(here.start, here.stop), here.step))
        if func is aten.select.int and isinstance(args[0], cls) and args[1] == 0:
            return args[0]._rows(torch.tensor([args[2]]))[0]
        for place, one in enumerate(func._schema.arguments):
            given = args[place] if place < len(args) else (kwargs or {}).get(one.name)
            if one.is_write and any(isinstance(leaf, cls) for leaf in tree_leaves(given)):
                raise OptionError(_WRITTEN)
        whole = tree_map_only(cls, lambda one: one.rows(torch.arange(len(one))), (tuple(args), dict(kwargs or {})))
        return func(*whole[0], **whole[1])


class Chained(ByRow):
    """Images of several tensors, none of them copied: rows are gathered from where they lie."""

    parts: tuple[Tensor, ...]
    starts: tuple[int, ...]

    @staticmethod
    def __new__(cls, *parts: Tensor) -> Chained:
        made = cls.of_shape(sum(map(len, parts)), *parts[0].shape[1:])
        made.parts = parts
        made.starts = tuple(accumulate((len(part) for part in parts[:-1]), initial=0))
        return made

    def __init__(self, *parts: Tensor) -> None: ...

    def rows(self, places: Tensor) -> Tensor:
        gathered = torch.empty(len(places), *self.shape[1:], dtype=torch.uint8)
        for part, start in zip(self.parts, self.starts, strict=True):
            here = torch.nonzero((places >= start) & (places < start + len(part))).squeeze(1)
            gathered[here] = part[places[here] - start]
        return gathered
