"""Whether the gradient of an input gradient is right: a net may be differentiable once only, and nothing fails."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bits import overwrite
from ..errors import OptionError
from ..generators import generators, put_back
from ..losses import soft_cross_entropy
from ..modules import own_generator, placement
from .by_itself import copied
from .compiled import eagerly, without_wrapper

IMAGES, DRAWS, ENOUGH = 2, 4, 2
"""Of a batch, that are looked at; how often at most, and how often decides."""

STEP = 1e-8
"""Of differences, in images or a tenth of the weights' size: so small that hardly a unit has its kink within one."""

SURE, TOLERANCE, LEAST = 3e-5, 2e-3, 1e-6
"""Relative. What agrees less with its difference tells nothing, and a second derivative is then wrong. Below the last
one, in units of the loss, all is rounding."""


def refuse_once_differentiable(model: nn.Module, x: Tensor, plugin: str) -> None:
    """OptionError where the derivative by the weights of the gradient by x (B, C, H, W) is not what it changes by.

    Asked of a copy of the model in float64, in its mode, without the hooks of others, on two images, in directions
    that are drawn. Nothing is said where that tells nothing: no copy can be made or computes in float64, the net draws
    past torch's generator, its gradients are not those of its values (straight through a rounding, or detached on
    purpose), or a unit has its kink there.
    """
    before = generators()
    try:
        model = without_wrapper(model)
        net = copied(model, model)[0].double()
        with own_generator(placement(model)[0]) as seed, eagerly(net), torch.enable_grad():
            off = _off(net, x[:IMAGES].detach().double(), seed)
    except (Exception, SystemExit):  # of somebody's net, which training may never ask this, or tells itself
        return
    finally:
        put_back(before)
    if off > TOLERANCE:
        raise OptionError(
            f"The model is differentiable once only: the gradient of its input gradient is off by {off:.2g} of its "
            "size, as it is of a torch.autograd.Function whose backward computes with detached values, and the plugin "
            f"{plugin} needs it. Let that backward compute with ctx.saved_tensors alone, in functions of torch, or "
            "leave the plugin out."
        )


def _off(net: nn.Module, x: Tensor, seed: Callable[[int], None]) -> float:
    """How far the second derivative is off, relatively, in two directions; 0 where it is right in two, or not known."""
    draws, found = torch.Generator().manual_seed(0), list[float]()
    for _ in range(DRAWS):
        off = _Look(net, x, seed, draws).off()
        found += [] if off is None else [off]
        for right in (True, False):
            if len(same := [value for value in found if (value <= TOLERANCE) == right]) == ENOUGH:
                return max(same)
    return 0.0


class _Look:
    """A net in float64 at images x, along drawn directions: u (B, C, H, W) of the images, d of its weights."""

    def __init__(self, net: nn.Module, x: Tensor, seed: Callable[[int], None], draws: torch.Generator) -> None:
        self.net, self.x, self.seed = net, x, seed
        self.buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
        self.weights = [p for p in net.parameters() if p.requires_grad]
        self.u = torch.randn(x.shape, generator=draws).to(x)
        self.d = [_noise(p.detach(), draws) for p in self.weights]
        with torch.no_grad():
            logits = self._logits(x)
        classes = torch.randint(logits.shape[1], (len(x),), generator=draws).to(x.device)
        self.target, self.scale = F.one_hot(classes, logits.shape[1]).to(x), logits.abs().amax()

    def off(self) -> float | None:
        """Of the second derivative along u and d; None where that is not known."""
        loss, slope = self._loss_and_slope(graph=True)
        first, second = self._along_d(loss), self._along_d(slope)
        once, twice = self._differences(STEP)
        off = _apart(second, twice)
        if off <= TOLERANCE:
            return off
        once_nearer, twice_nearer = self._differences(STEP / 4)
        with torch.no_grad():
            by_x = float(self._loss(self.x + STEP * self.u) - self._loss(self.x - STEP * self.u)) / (2 * STEP)
        known = (by_x, float(slope.detach())), (once, first), (once_nearer, first), (twice_nearer, twice)
        return off if all(_apart(*pair) <= SURE for pair in known) else None

    def _logits(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for buffer, was in self.buffers:
                overwrite(buffer, was)
        self.seed(0)
        logits: Tensor = self.net(x)
        return logits

    def _loss(self, x: Tensor) -> Tensor:
        """() of logits that are scaled so that no softmax saturates."""
        return soft_cross_entropy(self._logits(x) / self.scale, self.target).sum()

    def _loss_and_slope(self, *, graph: bool) -> tuple[Tensor, Tensor]:
        """And its derivative along u."""
        x = self.x.clone().requires_grad_()
        loss = self._loss(x)
        (gradient,) = torch.autograd.grad(loss, x, create_graph=graph)
        return loss, (gradient * self.u).sum()

    def _along_d(self, value: Tensor) -> float:
        """Its derivative along d, by autograd."""
        if not value.requires_grad:
            return 0.0
        gradients = torch.autograd.grad(value, self.weights, retain_graph=True, allow_unused=True)
        return sum(float((g * d).sum()) for g, d in zip(gradients, self.d, strict=True) if g is not None)

    def _differences(self, step: float) -> tuple[float, float]:
        """Those of the loss and of its slope along d."""
        theta, ends = [p.detach().clone() for p in self.weights], list[tuple[Tensor, Tensor]]()
        for way in (step, -step, 0):
            with torch.no_grad():
                for p, at, d in zip(self.weights, theta, self.d, strict=True):
                    p.copy_(at + way * d)
            ends += [self._loss_and_slope(graph=False)] if way else []
        (loss, slope), (loss_back, slope_back) = ends
        return float((loss - loss_back).detach()) / (2 * step), float((slope - slope_back).detach()) / (2 * step)


def _apart(one: float, other: float) -> float:
    return abs(one - other) / max(abs(one), abs(other), LEAST)


def _noise(weight: Tensor, draws: torch.Generator) -> Tensor:
    """Of a tenth of the weight's size, and at least 0.01."""
    size = (weight.square().mean().sqrt() / 10).clamp(min=0.01)
    return size * torch.randn(weight.shape, generator=draws).to(weight)
