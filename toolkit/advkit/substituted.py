"""A net at other weights than its own: its answer, whose modules may have several names, or itself for a scope."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


def call_at(model: nn.Module, tensors: Mapping[str, Tensor], x: Tensor) -> Any:
    """The model's answer on images x (B, C, H, W) with `tensors`, by name, in place of its parameters and buffers.

    Under one of its names a tensor is another wherever the model has it. `torch.func.functional_call` with tied weights
    does the same, but leaves other weights behind in a module that has two names.
    """
    return functional_call(model, _in_each_place(model, tensors), (x,), tie_weights=False)


def _in_each_place(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by one name for each module that has what is named, and not for each name of that module."""
    owners = {name for name, _ in model.named_modules()}
    named = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    places: defaultdict[int, list[str]] = defaultdict(list)
    for name, own in named.items():
        if name.rpartition(".")[0] in owners:
            places[id(own)].append(name)
    return {
        place: value
        for name, value in tensors.items()
        for place in (places[id(named[name])] if name in named else [name])
    }


@contextmanager
def replaced(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Some parameters and buffers of a module, by name, have other values for the scope."""
    own = model.state_dict() if values else {}
    before = {name: own[name].clone() for name in values}
    _write(own, values)
    try:
        yield
    finally:
        _write(own, before)


def _write(own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Values by name into tensors; a load_state_dict of somebody's own may do anything else."""
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)
