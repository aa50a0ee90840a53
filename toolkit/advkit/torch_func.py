"""Transforms of torch.func around a net, and backwards of many gradients at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def refuse_transforms(*kinds: str) -> None:
    """RuntimeError for whoever calls a net inside a transform of torch.func: of these kinds, such as Vmap; or any."""
    # torch has no public name for what runs now. Where this one is gone, its own errors are what is seen.
    stack: Sequence[Any] = getattr(torch._C._functorch, "get_interpreter_stack", list)() or ()
    running = [one.key().name for one in stack]
    if found := [name for name in running if name in kinds or not kinds]:
        raise RuntimeError(
            f"the net is called inside a transform of torch.func ({found[0].lower()}), where its passes are not "
            "watched and counted image by image; take torch.autograd.grad of its logits"
        )


def unbatched(gradient: Tensor) -> Tensor:
    """A gradient (B, ...) that a hook sees, as a plain tensor without graph; (K * B, ...) where K are taken at once.

    So are they by torch.func.jacrev, and by torch.autograd.grad with is_grads_batched, which is vectorised otherwise.
    """
    # torch has no public name for either. Where these are gone, its own errors are what is seen.
    functorch = torch._C._functorch
    while getattr(functorch, "is_functorch_wrapped_tensor", _no)(gradient):
        place, gradient = functorch.maybe_get_bdim(gradient), functorch.get_unwrapped(gradient)
        gradient = gradient if place < 0 else gradient.movedim(place, 0).flatten(0, 1)
    if getattr(functorch, "is_legacy_batchedtensor", _no)(gradient):
        gradient = torch._remove_batch_dim(gradient, 1, 1, 0).flatten(0, 1)  # the size stands for one that has none
    return gradient.detach()


def at_once(gradient: Tensor | None) -> int:
    """K of a gradient that a hook sees; 1 of none, as of functions that end there."""
    return 1 if gradient is None or not len(gradient) else len(unbatched(gradient)) // len(gradient)


def _no(_: Tensor) -> bool:
    return False
