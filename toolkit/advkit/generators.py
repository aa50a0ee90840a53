"""The global generators of a process: read, told by name, put back, and seeded for code of others."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def generators() -> dict[str, Any]:
    """The states of the global generators, by what they are called in a sentence."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return {
        "torch's global generator": [torch.get_rng_state(), *cuda],
        "numpy's global generator": np.random.get_state(legacy=True),  # noqa: NPY002
        "Python's global generator": random.getstate(),
    }


def put_back(states: dict[str, Any]) -> None:
    """The global generators as they were."""
    own, *cuda = states["torch's global generator"]
    torch.set_rng_state(own)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)
    np.random.set_state(states["numpy's global generator"])  # noqa: NPY002
    random.setstate(states["Python's global generator"])


@contextmanager
def repeatable(seed: int) -> Iterator[None]:
    """A scope in which code of others draws the same each time, from whichever global generator it likes."""
    before = generators()
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        put_back(before)


def drawn_from(before: dict[str, Any]) -> list[str]:
    """The global generators that have moved since, by name."""
    return [name for name, state in generators().items() if _words(state) != _words(before[name])]


def _words(state: Any) -> list[Any]:
    return [bytes(np.asarray(part).data) if isinstance(part, Tensor | np.ndarray) else part for part in state]
