"""Nets of FILE.py:NAME that have weights of their own: what NAME gives twice, two runs of one process would train."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from weakref import ref

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from ..errors import OptionError
from ..inventory import statistics_of

_GIVEN: list[ref[Any]] = []
"""The nets so far, their norms that keep statistics and their weights: those that outlive a run can be given again."""

_MEMORY: list[StorageWeakRef] = []
"""The memory of those weights, over which other tensors may lie."""


def refuse_given_before(net: nn.Module, short: str) -> None:
    """OptionError where a net that `short` has given now has what it gave before and a run may change.

    That is a whole net, or a weight or norm of one. What is frozen may be shared: a weight that asks for no gradient, a
    norm in eval mode.
    """
    parameters, norms = [*net.parameters()], [one for one in net.modules() if statistics_of(one)]
    _GIVEN[:] = [one for one in _GIVEN if one() is not None]
    _MEMORY[:] = [one for one in _MEMORY if not one.expired()]  # type: ignore[no-untyped-call]
    before, memory = {id(one()) for one in _GIVEN}, {one.cdata for one in _MEMORY}
    statistics = [tensor for norm in norms for tensor in statistics_of(norm)]
    again = any(id(one) in before for one in (net, *norms, *parameters))
    if again or memory & {one.cdata for one in _memory([*parameters, *statistics])}:
        raise OptionError(
            f"{short} gives weights that it has given before, as of a net that stands outside of it; build inside all "
            "that is trained, so that every run has its own."
        )
    trained = [one for one in parameters if one.requires_grad]
    moved = [norm for norm in norms if norm.training]
    _GIVEN.extend(ref(one) for one in (net, *moved, *trained))
    _MEMORY.extend(_memory([*trained, *(tensor for norm in moved for tensor in statistics_of(norm))]))


def _memory(tensors: list[Tensor]) -> list[StorageWeakRef]:
    """What tensors lie in, without keeping it; sparse ones and some subclasses do not tell."""
    found = []
    for tensor in tensors:
        with suppress(RuntimeError):
            found.append(StorageWeakRef(tensor.untyped_storage()))  # type: ignore[no-untyped-call]
    return found
