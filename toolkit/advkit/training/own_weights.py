"""Nets that have weights of their own: what a builder gives twice, two runs of one process would change."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from weakref import ref

import torch
from torch import Tensor, UntypedStorage, nn
from torch.multiprocessing.reductions import StorageWeakRef

from ..errors import OptionError
from ..storage.weights import digest

_GIVEN: list[ref[Any]] = []
"""Weights of the nets so far, and modules that have buffers: on another device these are still the same objects."""

_MEMORY: dict[StorageWeakRef, str] = {}
"""What their weights and buffers lie in, which may outlive them: "", or of buffers the SHA-256 of what it held."""


def refuse_given_before(net: nn.Module, name: str) -> None:
    """OptionError where `name`, which builds nets, has given now what an earlier one of this process had, alive or not.

    That is a weight, trained or not, for whoever loads a run changes it; or a module that has buffers. A buffer alone,
    such as a constant of the file, may be given again as long as its memory holds what it held.
    """
    _GIVEN[:] = [one for one in _GIVEN if one() is not None]
    for place in [one for one in _MEMORY if one.expired()]:  # type: ignore[no-untyped-call]
        del _MEMORY[place]
    weights, modules = [*net.parameters()], [one for one in net.modules() if [*one.buffers(recurse=False)]]
    memory = {place: _content(storage) for place, storage in _memory(net.buffers()).items()}
    memory |= dict.fromkeys(_memory(weights), "")
    before = {id(one()) for one in _GIVEN}
    if any(id(one) in before for one in (*weights, *modules)) or any(
        place in _MEMORY and not (held and held == _MEMORY[place]) for place, held in memory.items()
    ):
        raise OptionError(
            f"{name} gives weights or buffers that it has given to another net of this process; build all that has "
            "weights inside it, frozen or not, anew at every call and without a cache."
        )
    _GIVEN.extend(map(ref, (*weights, *modules)))
    _MEMORY.update(memory)


def _memory(tensors: Iterable[Tensor]) -> dict[StorageWeakRef, UntypedStorage]:
    """What tensors lie in, by what does not keep it; sparse, lazy and others do not tell, meta ones have none."""
    found = {}
    for tensor in tensors:
        if tensor.is_meta:
            continue
        with suppress(RuntimeError, ValueError):
            storage = tensor.untyped_storage()
            found[StorageWeakRef(storage)] = storage  # type: ignore[no-untyped-call]
    return found


def _content(storage: UntypedStorage) -> str:
    return digest({"": torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)})
