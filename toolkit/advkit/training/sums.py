"""Whether many tensors are finite, told by one number of each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def by_kind(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Places of tensors of one type and device, which torch's functions of many tensors take at once."""
    groups: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for place, tensor in enumerate(tensors):
        groups.setdefault((tensor.dtype, tensor.device), []).append(place)
    return [*groups.values()]


def told(tensors: Sequence[Tensor]) -> dict[torch.device, tuple[list[int], Tensor]]:
    """By device the places of floating tensors that hold anything, and (n,) bool: True is finite, False may be.

    NaN and Inf stay in a sum, which a CPU has far sooner than a largest entry; it can overflow by itself.
    """
    found: dict[torch.device, tuple[list[int], list[Tensor]]] = {}
    held = [place for place, tensor in enumerate(tensors) if tensor.is_floating_point() and tensor.numel()]
    for group in by_kind([tensors[place] for place in held]):
        places = [held[place] for place in group]
        own = [tensors[place] for place in places]
        device = own[0].device
        peaks = [one.sum() for one in own] if device.type == "cpu" else torch._foreach_norm(own, torch.inf)
        known, flags = found.setdefault(device, ([], []))
        known += places
        flags.append(torch.stack(peaks).isfinite())
    return {device: (places, torch.cat(flags)) for device, (places, flags) in found.items()}


def read(flags: Sequence[Tensor]) -> list[list[bool]]:
    """The values of each, (n,) bool. One synchronisation a device."""
    values: dict[int, list[bool]] = {}
    for places in by_kind(flags):
        joined = iter(torch.cat([flags[place] for place in places]).tolist())
        values |= {place: [next(joined) for _ in range(len(flags[place]))] for place in places}
    return [values[place] for place in range(len(flags))]


def finite(tensor: Tensor) -> bool:
    """Whether every entry is. Synchronises."""
    return bool(tensor.to_dense().isfinite().all())
