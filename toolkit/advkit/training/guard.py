"""What an answer borrows it gives back as it was, and it leaves no trace in global state."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import HookContract
from ..judging import same_bits


@contextmanager
def unchanged(who: str, hook: str, borrowed: Mapping[str, object], *, draws: bool) -> Iterator[None]:
    """HookContract where the scope changes a tensor in `borrowed`, a global generator, grad mode or default dtype.

    `draws`: whether the scope may call the net, which is seeded anew for every call.

    Everything is put back as it was, so that nobody else meets the damage.
    """
    before = [(name, tensor, tensor.detach().clone()) for name, tensor in _tensors(borrowed)]
    globals_before = _globals(draws)
    try:
        yield
    except BaseException:
        _restore(globals_before)
        raise
    for name, tensor, copy in before:
        if not same_bits(tensor.detach(), copy):
            with torch.no_grad():
                tensor.detach().copy_(copy)
            raise HookContract.broken(who, hook, f"it changed {name}, which it only borrows; work on a copy")
    for name, now in _globals(draws).items():
        if now != globals_before[name]:
            _restore(globals_before)
            raise HookContract.broken(who, hook, f"it changed {name}; {_REMEDY.get(name, 'leave it as it was')}")


_REMEDY = {
    "torch's global generator": "draw from run.draws(...)",
    "numpy's global generator": "draw from run.draws(...)",
    "Python's global generator": "draw from run.draws(...)",
}


def _tensors(value: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, nn.Module):
        yield from (*value.named_parameters(), *value.named_buffers())
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name), f"{name}.{field.name}")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(inner, f"{name}[{key}]" if name else str(key))


def _globals(draws: bool) -> dict[str, object]:
    state: dict[str, object] = {
        "the grad mode": torch.is_grad_enabled(),
        "the default dtype": torch.get_default_dtype(),
    }
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    state["numpy's global generator"] = (name, bytes(np.asarray(keys).data), *rest)
    state["Python's global generator"] = random.getstate()
    if not draws:
        state["torch's global generator"] = bytes(torch.get_rng_state().numpy().data)
    return state


def _restore(state: Mapping[str, object]) -> None:
    torch.set_grad_enabled(bool(state["the grad mode"]))
    dtype = state["the default dtype"]
    assert isinstance(dtype, torch.dtype)
    torch.set_default_dtype(dtype)
