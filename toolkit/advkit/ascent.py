"""Projected gradient ascent on tensors: per-sample radii, one projection a step, no synchronisation.

Nothing here knows plugins. A `Norm` says what a ball is; `pgd` walks in it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

from .arguments import per_image
from .rng import Draws
from .types import AttackResult, Objective

Init = Literal["zero", "uniform", "normal"]


def per_sample(values: Tensor, x: Tensor) -> Tensor:
    """(B,) viewed so that it broadcasts over images x (B, C, H, W)."""
    return values.view(-1, *[1] * (x.dim() - 1))


class Ball(ABC):
    """The points within `radius` (B,), or a number for all, of x (B, C, H, W) that are images in [0, 1]."""

    def __init__(self, x: Tensor, radius: Tensor | float) -> None:
        self.radius, self.x = per_image("radius", radius, x), x.detach()

    @abstractmethod
    def project_(self, point: Tensor) -> Tensor:
        """Move `point` into the ball and the box, in place."""

    @abstractmethod
    def way(self, gradient: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Direction and factor of an ascent step of length `size` (B,): their product is the move."""

    def move_(self, point: Tensor, gradient: Tensor, size: Tensor) -> Tensor:
        """One ascent step of length `size` (B,) and the projection, in place."""
        return self.project_(point.addcmul_(*self.way(gradient, size)))

    @abstractmethod
    def uniform(self, draws: Draws) -> Tensor:
        """A random point of the ball."""


class LinfBall(Ball):
    """Box and ball are one pair of bounds, computed once. Step: size * sign(gradient) (Madry et al. 2018)."""

    def __init__(self, x: Tensor, radius: Tensor | float) -> None:
        super().__init__(x, radius)
        wide = per_sample(self.radius, x)
        self.lower, self.upper = (self.x - wide).clamp_(min=0), (self.x + wide).clamp_(max=1)

    def project_(self, point: Tensor) -> Tensor:
        return torch.clamp(point, self.lower, self.upper, out=point)

    def way(self, gradient: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        # Not in place: the gradient of a net that sums pixels is one number, expanded.
        return gradient.sign(), per_sample(size, gradient)

    def uniform(self, draws: Draws) -> Tensor:
        noise = draws.uniform(*self.x.shape[1:], low=-1, high=1, dtype=self.x.dtype)
        return self.project_(self.x + per_sample(self.radius, self.x) * noise)


class L2Ball(Ball):
    """Ball first, box second (Rice et al. 2020). Step: size * gradient / ||gradient||_2; none where it is 0."""

    def project_(self, point: Tensor) -> Tensor:
        shift = point - self.x
        length = shift.flatten(1).norm(dim=1)
        keep = torch.where(length > self.radius, self.radius / length, torch.ones_like(length))
        return point.copy_(self.x + shift * per_sample(keep, point)).clamp_(0, 1)

    def way(self, gradient: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        # By the largest entry first: the squares of entries below 1e-23 vanish in float32, and a net of large logits
        # would look robust because nothing moves.
        peak = gradient.flatten(1).abs().amax(1)
        way = gradient / per_sample(torch.where(peak > 0, peak, torch.ones_like(peak)), gradient)
        length = way.flatten(1).norm(dim=1)
        pace = torch.where(peak > 0, size / length, torch.zeros_like(length))
        return way, per_sample(pace, gradient)

    def uniform(self, draws: Draws) -> Tensor:
        """Direction and length are uniform, as in the code of Rice et al. 2020: not uniform by volume."""
        way = draws.normal(*self.x.shape[1:], dtype=self.x.dtype)
        length = self.radius * draws.uniform(draw=1, dtype=self.x.dtype) / way.flatten(1).norm(dim=1)
        return self.project_(self.x + way * per_sample(length, self.x))


class BoxFirstL2Ball(L2Ball):
    """Box first, ball second, as the code of TRADES (Zhang et al. 2019): only what the box leaves counts as length."""

    def project_(self, point: Tensor) -> Tensor:
        return super().project_(point.clamp_(0, 1))


NORMS: dict[str, type[Ball]] = {"linf": LinfBall, "l2": L2Ball}


class Observer(Protocol):
    """Asked at every iterate, before its move, which samples go on: (B,) bool."""

    def __call__(self, *, x_adv: Tensor, logits: Tensor, loss: Tensor, gradient: Tensor, step: int) -> Tensor: ...


class Transform(Protocol):
    """Turns an iterate's move (B, C, H, W), in pixels and not yet projected, into the one to make."""

    def __call__(self, *, move: Tensor, x_adv: Tensor, gradient: Tensor, step: int) -> Tensor: ...


def start(ball: Ball, init: Init, draws: Callable[[], Draws]) -> Tensor:
    """Where the attack begins: x itself, a random point of the ball, or x + 0.001 N(0, 1) as TRADES does."""
    if init == "zero":
        return ball.x.clone()
    if init == "uniform":
        return ball.uniform(draws())
    # Not projected, as in TRADES; the first move projects.
    return ball.x + 0.001 * draws().normal(*ball.x.shape[1:], dtype=ball.x.dtype)


def pgd(
    model: Callable[[Tensor], Tensor],
    ball: Ball,
    begin: Tensor,
    objective: Objective,
    *,
    steps: int,
    step_size: Tensor,
    limit: Tensor | None = None,
    observe: Observer | None = None,
    transform: Transform | None = None,
    keep_start: bool = False,
) -> AttackResult:
    """Increase `objective` for `steps` iterations from `begin`, inside `ball`; the last iterate counts.

    `model` maps images to logits (B, K) with frozen parameters. `step_size` (B,) is in the unit of the radius.
    `limit` (B,) int64 stops samples after that many moves, an `observe`r earlier; a `transform` changes moves. All is
    per sample: splitting a batch splits the result, in L2 up to the rounding of the net's gradient, 1e-7 in float32.
    """
    x_adv, rows, peaks = begin.detach().clone(), begin.shape[0], list[Tensor]()  # the moves are in place
    first = x_adv.clone() if keep_start else None
    active = torch.ones(rows, dtype=torch.bool, device=begin.device)
    moves = torch.full((rows,), steps, device=begin.device)
    stopped = torch.zeros_like(moves)
    masked = limit is not None or observe is not None
    for step in range(steps):
        with torch.enable_grad():
            x_adv.requires_grad_()
            logits = model(x_adv)
            loss = objective(logits)
            (gradient,) = torch.autograd.grad(loss.sum(), x_adv)
        x_adv = x_adv.detach()
        peaks.append(gradient.flatten(1).abs().amax(1))  # keeps NaN; vector_norm takes 20 times as long on a CPU
        if limit is not None:
            active = active & (step < limit)
        if observe is not None:
            going = observe(x_adv=x_adv, logits=logits.detach(), loss=loss.detach(), gradient=gradient, step=step)
            active = active & going
        if masked:
            stopped += ~active
        size = step_size * active if masked else step_size
        if transform is None:
            ball.move_(x_adv, gradient, size)
        else:
            way, factor = ball.way(gradient, size)
            move = transform(move=way * factor, x_adv=x_adv, gradient=gradient, step=step)
            ball.project_(x_adv.add_(torch.where(per_sample(active, move), move, 0.0)))
    # sign(NaN) is 0: without this check a broken gradient would silently be no attack at all.
    peak = torch.stack(peaks) if peaks else step_size.new_ones(1, rows)
    finite, zero_gradients = peak.isfinite().all(), (peak == 0).sum(dim=0)
    return AttackResult(x_adv, steps=moves - stopped, finite=finite, zero_gradients=zero_gradients, start=first)
