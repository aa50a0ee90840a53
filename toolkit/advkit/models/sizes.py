"""How large a net is, judged before it takes memory.

The first layers of an absurd one may fit, and are filled for minutes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from ..claims import free_memory, in_bytes
from ..errors import OptionError
from ..registry import answer
from .base import DataSpec, ModelBuilder, Normalised

NO_MEMORY = ("allocate memory", "out of memory", "verflow")
"""What torch says of tensors that are larger than memory, or than 64 bits can count."""


def built(builder: ModelBuilder, spec: DataSpec) -> nn.Module:
    """The net on the CPU. Raises MemoryError where its weights alone are more than what is free."""
    if too_large(builder, spec):
        raise MemoryError
    return answer("model", type(builder), (nn.Module,), builder.build, spec)


def weightless(builder: ModelBuilder, spec: DataSpec) -> nn.Module:
    """The net on the meta device, whose weights have shapes and no values: nothing is drawn."""
    with torch.device("meta"):
        return answer("model", type(builder), (nn.Module,), builder.build, spec)


def too_large(builder: ModelBuilder, spec: DataSpec) -> str:
    """Why the weights of one of advkit's own nets do not fit; "" where they do, or nobody knows. Nothing is drawn."""
    free = free_memory(torch.device("cpu"))
    if free is None or not isinstance(builder.options, Normalised):
        return ""
    net = weightless(builder, spec)
    needed = sum(tensor.nbytes for tensor in (*net.parameters(), *net.buffers()))
    return f"its weights take {in_bytes(needed)}, and {in_bytes(free)} are free here" if needed > free else ""


@contextmanager
def fitting(name: str, options: Mapping[str, object]) -> Iterator[None]:
    """OptionError where the scope, which builds the net of that name, asks for more memory than there can be."""
    try:
        yield
    except (RuntimeError, MemoryError, OverflowError, TypeError) as error:
        if isinstance(error, RuntimeError | TypeError) and not any(words in str(error) for words in NO_MEMORY):
            raise
        told = ", ".join(f"{key}={value}" for key, value in options.items())
        raise OptionError(f"{name} does not fit into memory with {told}; make it smaller.") from None
