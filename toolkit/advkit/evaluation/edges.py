"""Whether a net gives its images' pixels at 0 and 1 a gradient: attacks that follow it never move those without."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..hidden import without_trace
from ..losses import cross_entropy
from ..modules import mode, own_generator, placement
from .soundness import CLIPS

IMAGES, FEWEST = 16, 8
"""Whose pixels at 0 and 1 are looked at; so many pixels tell something."""

NEARLY_ALL = 0.9
"""Of the pixels that the net sees, how many have no gradient where it clips."""

SEEN = 1e-3
"""A pixel's gradient as a share of the largest of its image: that of x ** 2 is smaller beside 0, and clips nothing."""


def stuck_at_edges(model: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> str:
    """A sentence where pixels at 0, or those at 1, have no gradient that they have a step beside it, "" elsewhere.

    Two input gradients of the first of x (B, C, H, W) with labels y (B,), through the `forward` of `model` in eval
    mode, at points that differ in half of these pixels alone: at their edge, or by rounding's size inside. The others
    lie deeper inside, where nothing ties and no ReLU is at its kink; a pixel that the net does not see has no gradient
    at either point. Leaves no trace in the model; it synchronises.
    """
    x, y = x[:IMAGES].detach(), y[:IMAGES]
    edge = (x == 0) | (x == 1)
    device, inward = placement(model)[0], 1 - 2 * x
    draws = torch.rand(2, *x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    kept = edge & (draws[0] < 0.5)
    if int(kept.sum()) < FEWEST:
        return ""
    beside = torch.where(edge & ~kept, x + inward * (0.02 + 0.06 * draws[1]), x)

    def sizes(images: Tensor) -> Tensor:
        with own_generator(device) as seed, without_trace(model, hooks=True), mode(model, training=False):
            seed(0)
            with torch.enable_grad():
                loss = cross_entropy(y)(forward(images.requires_grad_())).sum() + 0 * images.sum()  # it may be cut off
                (gradient,) = torch.autograd.grad(loss, images)
        return gradient.abs()

    inside = sizes(torch.where(kept, x + inward * 8 * torch.finfo(x.dtype).eps, beside))
    seen = kept & (inside > SEEN * inside.flatten(1).amax(1).view(-1, 1, 1, 1))
    stuck = seen & (sizes(beside) == 0)
    counts = {end: (int((seen & (x == end)).sum()), int((stuck & (x == end)).sum())) for end in (0, 1)}
    clipped = [end for end, (many, still) in counts.items() if many >= FEWEST and still >= NEARLY_ALL * many]
    if not clipped:
        return ""
    many, still = (sum(counts[end][place] for end in clipped) for place in (0, 1))
    where = " or ".join(map(str, clipped))
    return (
        f"{still / many:.0%} of the pixels at exactly {where} have no input gradient, and have one just inside: the "
        "model clips its images, as x.clamp(0, 1) and x.relu() do, which have no gradient at their ends. Attacks by "
        f"gradients never move such pixels, so they find less. {CLIPS}."
    )
