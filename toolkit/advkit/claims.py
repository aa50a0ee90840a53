"""What a plugin claims to keep: tensors by sample, by class or of any shape, which checkpoints hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isfinite, prod
from typing import Any

import torch
from torch import Tensor

from .arguments import a_dense_tensor, a_name, a_number, a_whole_number
from .errors import OptionError, shown
from .reading import read

COPIES = 3
"""Of per-sample state at once: itself, and two while a step is looked at."""

ROUNDING = 2**-7
"""How far a value that was clamped in half precision may lie beyond its bound, as a share of it."""

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
KEPT = (*FLOATS, torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool)
"""The dtypes that every process can send and every checkpoint holds."""


class Claims:
    """The part of a `Run` that gives a plugin tensors to keep, in `setup`."""

    _plugin: str
    _state: Any

    def sample_state(
        self,
        name: str,
        fill: float = 0.0,
        *,
        shape: Sequence[int] = (),
        dtype: torch.dtype | None = None,
        least: float = -inf,
        most: float = inf,
    ) -> Tensor:
        """An (N, *shape) tensor addressed by `batch.index`; without a dtype the model's, float32 at least.

        Claim it in `setup`; keep it and write in place. It is checkpointed and resumed. A shape of `run.num_classes` or
        `run.image_shape` is known there; a `Step` has to be told. Raises OptionError where it does not fit into memory.
        Its values lie in `least` to `most`, or are NaN, and are finite if all are so after setup: no checkpoint with
        others is written, and none is resumed.
        """
        state, what = self._state, f"Plugin {self._plugin}: {{}} of the state {name}"
        kept = torch.promote_types(state.dtype, torch.float32) if dtype is None else dtype
        if not isinstance(kept, torch.dtype) or kept not in KEPT:
            given = kept if isinstance(kept, torch.dtype) else shown(kept)
            raise OptionError(f"{what.format('dtype')} is {given}; take one of {', '.join(map(str, KEPT))}.")
        if isinstance(shape, str) or not isinstance(shape, Sequence):
            raise OptionError(f"{what.format('shape')} is {shown(shape)}; pass whole numbers, such as (10,).")
        sizes = [a_whole_number(what.format("a size"), size, 0, 2**31 - 1) for size in shape]
        value = a_number(what.format("fill"), fill)
        if not _holds(kept, value):
            raise OptionError(f"{what.format('fill')} is {fill}, which {kept} can not hold; pass another dtype.")
        rows = (state.num_samples, *sizes)
        self._refuse_too_large(name, rows, kept)
        self._bound(f"samples/{self._plugin}/{name}", what, least, most)
        return self._claim(state.samples, name, torch.full(rows, value, dtype=kept, device=state.device))

    def tensor_state(self, name: str, initial: Tensor, *, least: float = -inf, most: float = inf) -> Tensor:
        """A tensor of any shape and dtype, otherwise as `sample_state`: for averages, counts and tables by class."""
        what = f"Plugin {self._plugin}: {{}} of the state {name}"
        dense = a_dense_tensor(what.format("initial"), initial)
        if dense.is_floating_point() and dense.dtype not in FLOATS:  # no arithmetic says whether it is finite
            raise OptionError(f"{what.format('initial')} is {dense.dtype}; take one of {', '.join(map(str, FLOATS))}.")
        self._bound(f"tensors/{self._plugin}/{name}", what, least, most)
        return self._claim(self._state.tensors, name, dense.detach().to(self._state.device, copy=True))

    def _bound(self, stored: str, what: str, least: float, most: float) -> None:
        low, high = a_number(what.format("least"), least), a_number(what.format("most"), most)
        if not low <= high:
            raise OptionError(f"{what.format('least')} is {low:g}, which is not below its most, {high:g}.")
        if (low, high) != (-inf, inf):
            self._state.bounds[stored] = low, high

    def _claim(self, store: dict[str, Tensor], name: str, initial: Tensor) -> Tensor:
        full = f"{self._plugin}/{a_name(self._plugin, 'the name of a state', name)}"
        if self._state.settled:
            raise OptionError(f"Plugin {self._plugin} claims the state {name} after setup, where no resume finds it.")
        if self._state.num_samples and not initial.numel():  # a plan has no samples, and may not know the data
            raise OptionError(
                f"Plugin {self._plugin} claims the state {name} with the shape {tuple(initial.shape)}, which holds "
                "nothing; where it takes classes or images, a Step is told them: "
                "Step(..., num_classes=10, image_shape=(3, 32, 32))."
            )
        claim(store, self._plugin, {full: initial})
        return initial

    def _refuse_too_large(self, name: str, rows: Sequence[int], dtype: torch.dtype) -> None:
        needed, free = prod(rows) * dtype.itemsize, free_memory(self._state.device)
        if free is not None and COPIES * needed > free:
            raise OptionError(
                f"Plugin {self._plugin}: the state {name} takes {in_bytes(needed)} for {rows[0]} samples, and "
                f"{COPIES} times that where a step is looked at; {in_bytes(free)} are free. Train on fewer images "
                "(data.limit), or leave the plugin out."
            )


def claim(store: dict[str, Tensor], plugin: str, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors into a store by their full names. OptionError for a name that the plugin has claimed before."""
    if taken := next((name for name in tensors if name in store), ""):
        name = taken.removeprefix(f"{plugin}/")
        raise OptionError(f"Plugin {plugin} claims the state {name} twice; claim it once, in setup.")
    store.update(tensors)


def finite_of(tensors: Mapping[str, Tensor]) -> set[str]:
    """The names of those without NaN and Inf."""
    return {name for name, values in tensors.items() if bool(values.isfinite().all())}


def beyond(values: Tensor, bounds: tuple[float, float]) -> bool:
    """Whether a value lies outside of bounds, and not by the rounding of half precision alone."""
    low, high = (bound + sign * abs(bound) * ROUNDING for bound, sign in zip(bounds, (-1, 1), strict=True))
    return bool(((values < low) | (values > high)).any())


def _holds(dtype: torch.dtype, value: float) -> bool:
    if dtype.is_floating_point:
        return not isfinite(value) or abs(value) <= torch.finfo(dtype).max
    if not isfinite(value) or value != int(value):
        return False
    if dtype == torch.bool:
        return value in (0, 1)
    return torch.iinfo(dtype).min <= int(value) <= torch.iinfo(dtype).max


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be taken there; None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    try:
        told = dict(line.split(":", 1) for line in read("/proc/meminfo", 1 << 16).decode().splitlines())
        return int(told["MemAvailable"].split()[0]) << 10
    except (OSError, ValueError, LookupError):
        return None


def in_bytes(count: int) -> str:
    """614 MB"""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"
