"""Whether a model can be evaluated at other weights than its own: some read or recompute them behind the call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import OptionError
from ..losses import soft_cross_entropy
from ..modules import own_generator, placement

TOLERANCE = 1e-2
"""Of the relative difference of two gradients: rounding stays far below, one forgotten weight far above."""


def refuse_other_weights(model: nn.Module, x: Tensor, target: Tensor, shift: Mapping[str, Tensor]) -> None:
    """OptionError where the gradient at theta+v by substitution is not that of a model that holds theta+v.

    Asked once a stage, of a copy of the model in its present mode, on the batch's images x (B, C, H, W) with labels
    `target` (B, K). A tensor that a function has captured is in the copy the original's, and escapes.
    """
    twin = _bare_copy(model)
    names = [name for name, p in twin.named_parameters() if p.requires_grad]

    def gradient(weights: Mapping[str, Tensor]) -> Tensor:
        with own_generator(placement(twin)[0]) as seed, torch.enable_grad():
            seed(0)
            buffers = {name: buffer.clone() for name, buffer in twin.named_buffers()}
            loss = soft_cross_entropy(functional_call(twin, {**weights, **buffers}, (x,)), target).sum()
            held = dict(twin.named_parameters()) | dict(weights)
            parts = torch.autograd.grad(loss, [held[name] for name in names], allow_unused=True)
        pairs = zip(parts, names, strict=True)
        return torch.cat([(held[n].new_zeros(held[n].shape) if g is None else g).flatten() for g, n in pairs])

    own = dict(twin.named_parameters())
    substituted = gradient({name: own[name] + shift[name] if name in shift else own[name] for name in names})
    with torch.no_grad():
        for name, value in shift.items():
            own[name].add_(value)
    held = gradient({})
    distance = float((substituted - held).norm() / held.norm().clamp(min=torch.finfo(held.dtype).tiny))
    if not distance <= TOLERANCE:
        raise OptionError(
            f"The model's gradient at perturbed weights is off by {distance:.2g} of its length: a part of it is "
            "computed again in the backward (torch.utils.checkpoint) or reads a weight through a reference of its own, "
            "past the perturbation. Switch that off, or leave out the plugin that perturbs weights."
        )


@contextmanager
def nothing_moves(model: nn.Module, when: str) -> Iterator[None]:
    """OptionError where the scope moves a buffer, as BatchNorm does when a backward computes its forward again."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    yield
    for name, buffer in model.named_buffers():
        if not torch.equal(buffer, before[name]):
            raise OptionError(
                f"{name} moved in {when}, where nothing may: the model computes its forward again in the backward "
                "(torch.utils.checkpoint), so BatchNorm counts images twice. Switch that off."
            )


def _bare_copy(model: nn.Module) -> nn.Module:
    """The model without its hooks, so that nobody who counts its passes counts these."""
    twin = deepcopy(model)
    for module in twin.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks):
            hooks.clear()
    return twin
