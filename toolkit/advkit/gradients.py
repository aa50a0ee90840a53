"""Gradients that lie in `.grad`, out of the way of what is asked of a net meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def set_aside(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """A scope that begins without `.grad`, and afterwards `.grad` is as it was before.

    torch.autograd.grad adds to none, but a net may: reversible ones call backward() inside of their backward.
    """
    before = [(parameter, parameter.grad) for parameter in parameters]
    for parameter, _ in before:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient
