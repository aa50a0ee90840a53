"""Images that are no tensor in memory and are used as one: of several tensors, or made when they are asked for."""

from __future__ import annotations

from collections.abc import Container, Iterator
from itertools import accumulate
from typing import Any, NoReturn, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from ..errors import OptionError

aten = torch.ops.aten

_WRITTEN = "These images are no tensor in memory, so nothing can be written to them; write to a copy, images.clone()."
_NO_MEMORY = "These images are no tensor in memory, so there is none to share or to point to; take images.clone()."


class Rows(Tensor):
    """Images that were made when they were asked for, as a tensor that is only read.

    OptionError where it, or a view of it, is written to: of a tensor in memory these rows would be a view, and here
    nobody sees what is written. What is computed from it is a plain tensor.
    """

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = getattr(func, "__name__", ""), kwargs or {}
        first = next(iter((*args, *given.values())), None)
        if isinstance(first, cls) and (name in _WRITES or (name.endswith("_") and not name.startswith("_"))):
            raise OptionError(_WRITTEN)
        if any(isinstance(one, cls) for one in tree_leaves(given.get("out"))):
            raise OptionError(_WRITTEN)
        with torch._C.DisableTorchFunctionSubclass():
            made = func(*args, **given)
            own = {one.untyped_storage().data_ptr() for one in tree_leaves((args, given)) if isinstance(one, cls)}
            return tree_map_only(Tensor, lambda one: _as(cls, one, own), made)

    def numpy(self, *, force: bool = False) -> Any:
        return _only_read(self.as_subclass(Tensor))

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.clone().__reduce_ex__(protocol)  # type: ignore[no-untyped-call]


_WRITES = {"__setitem__", "__set__", *(f"__i{name}__" for name in (
    *("add", "sub", "mul", "truediv", "div", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift"),
))}  # fmt: skip


def _as(cls: type[Tensor], one: Tensor, memory: Container[int]) -> Tensor:
    """A tensor as `cls` where it lies in that memory, else plain."""
    plain, dense = one.as_subclass(Tensor), one.layout == torch.strided
    return plain.as_subclass(cls) if dense and one.untyped_storage().data_ptr() in memory else plain


def _only_read(images: Tensor) -> Any:
    array = images.numpy()
    array.flags.writeable = False
    return array


def _no_memory(images: Tensor, *_: Any, **named: Any) -> NoReturn:
    raise OptionError(_NO_MEMORY)


class ByRow(Tensor):
    """(N, C, H, W) uint8 on the CPU. Rows by index or slice are a tensor of those; any other use makes all.

    OptionError where it is written to: that would be a copy which nobody sees.
    """

    @classmethod
    def of_shape(cls, *shape: int) -> Self:
        made: Self = Tensor._make_wrapper_subclass(cls, shape, dtype=torch.uint8)
        return made

    def __setitem__(self, place: Any, value: Any) -> None:
        raise OptionError(_WRITTEN)

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.clone()

    def numpy(self, *, force: bool = False) -> Any:
        return self[:].numpy()

    share_memory_ = untyped_storage = storage = _typed_storage = data_ptr = __dlpack__ = apply_ = map_ = _no_memory

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> NoReturn:
        raise OptionError(_WRITTEN)

    def is_shared(self) -> bool:
        return False

    def tolist(self) -> Any:
        return self[:].tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{type(self).__name__}{tuple(self.shape)}"

    def rows(self, places: Tensor) -> Tensor:
        """The images at `places` (n,) int64, none of which is negative or beyond the last."""
        raise NotImplementedError

    def part(self, rows: Tensor | slice) -> Tensor:
        """The images at `rows`, as a data set keeps them."""
        return self[rows].as_subclass(Tensor)

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
            return args[0].rows(torch.arange(here.start, max(here.start, here.stop), here.step)).as_subclass(Rows)
        if func is aten.select.int and isinstance(args[0], cls) and args[1] == 0:
            return args[0]._rows(torch.tensor([args[2]]))[0].as_subclass(Rows)
        for place, one in enumerate(func._schema.arguments):
            given = args[place] if place < len(args) else (kwargs or {}).get(one.name)
            if one.is_write and any(isinstance(leaf, cls) for leaf in tree_leaves(given)):
                raise OptionError(_WRITTEN)
        whole = tree_map_only(cls, lambda one: one.rows(torch.arange(len(one))), (tuple(args), dict(kwargs or {})))
        made, view = func(*whole[0], **whole[1]), func._schema.returns[:1] and func._schema.returns[0].alias_info
        return tree_map_only(Tensor, lambda one: one.as_subclass(Rows), made) if view else made


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

    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(self), self.parts

    def rows(self, places: Tensor) -> Tensor:
        gathered = torch.empty(len(places), *self.shape[1:], dtype=torch.uint8)
        for part, start in zip(self.parts, self.starts, strict=True):
            here = torch.nonzero((places >= start) & (places < start + len(part))).squeeze(1)
            gathered[here] = part[places[here] - start]
        return gathered
