"""Tensors bit by bit, however they lie in memory: compared, and put back in place."""

from __future__ import annotations

import torch
from torch import Tensor


def as_bytes(tensor: Tensor) -> Tensor:
    """(n,) uint8, those of its values in order; the values of a view that conjugates or negates, not of its base."""
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return plain.as_strided((plain.numel(),), (1,)).view(torch.uint8)  # of one that was expanded to one row, too


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are one, NaN being equal to itself. Of the device meta, which have no bits, by their shapes.

    Nets keep those: as the form of an ensemble, whose weights are elsewhere.
    """
    if (one.shape, one.dtype, one.is_meta) != (other.shape, other.dtype, other.is_meta):
        return False
    return one.is_meta or torch.equal(as_bytes(one), as_bytes(other))


def lies_on_itself(tensor: Tensor) -> bool:
    """Whether several of its values are one number in memory, as after `expand`: torch writes into none as a whole."""
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def overwrite(tensor: Tensor, was: Tensor) -> None:
    """Copy `was`, its values at another time, into it, once into a number that is several of them.

    It has the shape of then again: some nets give a buffer another in a forward.
    """
    if tensor.shape != was.shape:
        tensor.resize_(was.shape)
    if lies_on_itself(tensor):
        for dim, stride in enumerate(tensor.stride()):
            tensor, was = (one.narrow(dim, 0, 1) if stride == 0 else one for one in (tensor, was))
    tensor.copy_(was)


def write_back(tensor: Tensor, was: Tensor) -> None:
    """`overwrite` where it has changed: graphs that are alive count every write."""
    if not same_bits(tensor, was):
        overwrite(tensor, was)
