"""Whether the first step of a stage is what it should be: gradients at other weights, and an attack that moves.

Some models read or recompute weights behind the call, and some give their images no gradient that moves anything.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase as _Norm

from ..bits import same_bits
from ..errors import OptionError
from ..gradients import set_aside
from ..hidden import without_trace
from ..judging import probabilities, sum_to_1
from ..losses import soft_cross_entropy
from ..modes import own_mode
from ..modules import own_generator, placement
from ..substituted import call_at
from ..types import AttackResult, Batch
from .by_itself import by_itself
from .compiled import eagerly
from .sums import finite

TOLERANCE = 1e-2
"""Of the relative difference of two gradients: rounding stays far below, one forgotten weight far above."""

NEGLIGIBLE = 1e-4
"""A gradient of so small a share of the whole may be rounding on an accelerator."""

SURE, MANY, NEARLY_ALL = 0.999, 0.5, 0.9
"""Above which probability of its label an image may have no gradient; which share of images may not stand still."""


def refuse_other_weights(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    shift: Mapping[str, Tensor],
    computing: Container[object],
    who: str = "the plugin that perturbs weights",
) -> None:
    """OptionError where the gradient at other weights by substitution is not that of the model when it holds them.

    Asked of the model in its present mode, on the batch's images x (B, C, H, W) with labels `target` (B, K): first with
    v and noise substituted, then with them added in place; the noise because v may be 0 today and layers of zeros hide
    what is behind them, and either after a forward at theta, since a model may keep what it computed from weights.
    Everything is put back bit for bit. A tensor that a function has captured is seen, since it is the model's own. Of
    the model's hooks those run that are in `computing`; none of a parameter's, which a step calls once at theta, with
    either gradient. `who` takes the other weights. One who does in eval mode, where a `train` of the net's own has put
    a weight aside, would see nothing of it, and is refused too.
    """
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    theta = {name: p.detach().clone().requires_grad_() for name, p in own.items()}

    def gradient(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with own_generator(placement(model)[0]) as seed, without_trace(model, hooks=True):
            for at in (theta, weights):
                seed(0)
                buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
                logits = call_at(model, {**at, **buffers}, x)
            loss = soft_cross_entropy(logits, target).sum()
            inputs = {**own, **weights}
            found = torch.autograd.grad(loss, [*inputs.values()], allow_unused=True) if loss.requires_grad else ()
            gradients = {name: value for name, value in zip(inputs, found, strict=False) if value is not None}
            if not model.training and own_mode(model.modules()) and (unseen := sorted(shift.keys() - gradients)):
                raise OptionError(
                    f"In eval mode the model computes without {unseen[0]}, which it trains, as where its own train() "
                    "merges weights into others or keeps what it made of them, so that other weights change nothing "
                    f"there; set attack.mode=train, or leave out {who}."
                )
            return {n: gradients[n].to_dense() if n in gradients else torch.zeros_like(p) for n, p in inputs.items()}

    def apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
        """The largest relative difference of a parameter's gradient, where it matters to the whole."""
        lengths = {name: float(value.norm()) for name, value in other.items()}
        least = max(NEGLIGIBLE * math.hypot(*lengths.values()), 1e-30)
        return max(float((one[name] - other[name]).norm()) / max(lengths[name], least) for name in own)

    with by_itself(model, computing), eagerly(model), _unhooked(own), torch.enable_grad():
        for moved in (_with_noise(shift, own), shift):
            substituted = gradient({name: own[name] + value for name, value in moved.items()})
            with _holding(own, moved):
                held = gradient({})
            if all(bool(value.isfinite().all()) for value in held.values()):
                break
        distance = apart(substituted, held)
        again = substituted if distance <= TOLERANCE else gradient({n: own[n] + v for n, v in moved.items()})
    if not all(finite(value) for value in (*held.values(), *substituted.values())):
        return  # NaN or Inf at perturbed weights, which the step tells as such
    if not apart(again, substituted) <= TOLERANCE:
        raise OptionError(
            "The model answers differently from one call to the next, with its random numbers seeded alike, so whether "
            "its gradient at perturbed weights is right can not be known. Let it draw from torch's generator, which is "
            f"seeded for it, or leave out {who}."
        )
    if not distance <= TOLERANCE:
        raise OptionError(
            f"The model's gradient at perturbed weights is off by {distance:.2g} of its length: a part of it is "
            "computed again in the backward (torch.utils.checkpoint) or reads a weight through a reference of its own, "
            f"past the perturbation. Switch that off, or leave out {who}."
        )


def _with_noise(shift: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """v and normal noise, of a tenth of each parameter's size and at least 0.01."""
    generator = torch.Generator().manual_seed(0)
    noise = {name: torch.randn(value.shape, generator=generator).to(value) for name, value in shift.items()}
    sizes = {name: (own[name].detach().square().mean().sqrt() / 10).clamp(min=0.01) for name in shift}
    return {name: value + sizes[name] * noise[name] for name, value in shift.items()}


@contextmanager
def _unhooked(own: Mapping[str, Tensor]) -> Iterator[None]:
    """The parameters without their gradient hooks for the scope."""
    before = {name: parameter._backward_hooks for name, parameter in own.items() if parameter._backward_hooks}
    for name in before:
        own[name]._backward_hooks = None
    try:
        yield
    finally:
        for name, hooks in before.items():
            own[name]._backward_hooks = hooks


@contextmanager
def _holding(own: Mapping[str, Tensor], shift: Mapping[str, Tensor]) -> Iterator[None]:
    """The parameters at theta + v in place for the scope, and afterwards bit for bit at theta."""
    before = {name: own[name].detach().clone() for name in shift}
    with torch.no_grad():
        for name, value in shift.items():
            own[name].add_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in before.items():
                own[name].copy_(value)


def standing_still(
    attack: AttackResult, batch: Batch, radius: Tensor, logits: Tensor | None, steps: int, flat: str
) -> str:
    """A sentence where a gradient attack left half of the images in place that it might have moved, "" elsewhere.

    Nearly all, where the objective, of the plugin `flat`, may be that at x, as a divergence from the logits there, and
    rounding moves some; and where a plugin attacks, which may leave images as they are on purpose.

    Half of the batch at least must be such: their `radius` (B,) is more than rounding, no plugin stopped them at once,
    and the model is not sure of them by its `logits` (B, K) at x_adv; where it is, a gradient is rightly 0. It
    synchronises.
    """
    if attack.finite is None or not bool(attack.finite):  # it follows no gradient, or one that is refused as NaN
        return ""
    at_x, might = (attack.x_adv == batch.x).flatten(1).all(1), radius > torch.finfo(batch.x.dtype).eps
    still = at_x if attack.zero_gradients is None else at_x | (attack.zero_gradients >= steps)
    if attack.steps is not None:
        might = might & (attack.steps > 0)
    if logits is not None:
        might = might & (logits.softmax(1).gather(1, batch.y[:, None]).squeeze(1) < SURE)
    movable, stuck = int(might.sum()), int((still & might).sum())
    own = attack.zero_gradients is None  # a plugin's: the core counts them
    share = NEARLY_ALL if own or (flat and bool((at_x & might).any())) else MANY
    if 2 * movable < len(might) or stuck < share * movable:
        return ""
    other = f"an attack that begins at x (attack.init), where the objective of {flat} has none, or for " if flat else ""
    zeros = "" if attack.zero_gradients is None else f" ({float(attack.zero_gradients.double().mean()) / steps:.0%})"
    return (
        f"The attack moved {movable - stuck} of {movable} images of a batch, though their radius is above 0 and the "
        f"model is not sure of them: its input gradients are 0{zeros}, or its steps too small to change a pixel. The "
        f"others are trained on as they are; look for {other}rounding, argmax or detach in the model, or a last layer "
        "of zeros."
    )


def doubts(logits: Mapping[str, Tensor], judged: Tensor) -> str:
    """A sentence where the model returns no logits, "" elsewhere: in the update, `logits` (B, K) by view, or in eval
    mode, `judged` (b, K)."""
    taken = "Losses take"
    found = next((rows for rows in logits.values() if bool(probabilities(rows).all())), None)
    if found is None and bool(probabilities(judged).all()):
        found, taken = judged, "Attack and validation take"
    if found is None:
        return ""
    where = " in eval mode" if found is judged else ""
    if bool(sum_to_1(found).all()):
        return (
            f"The model returns probabilities{where}: every row is at least 0 and sums to 1. {taken} them as logits, "
            "so the softmax is taken twice and gradients are small; remove the one at the end of the model."
        )
    return (
        f"The model returns probabilities{where}: every value is between 0 and 1, as of a sigmoid. {taken} them as "
        "logits, so gradients are small; remove the sigmoid at the end of the model."
    )


def _holder(model: nn.Module, buffer: str) -> nn.Module:
    return model.get_submodule(buffer.rpartition(".")[0])


@contextmanager
def nothing_moves(model: nn.Module, when: str, watched: bool) -> Iterator[None]:
    """OptionError where the scope moves a buffer, as BatchNorm does when a backward computes its forward again."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()} if watched else {}
    yield
    if not watched:
        return
    for name, buffer in model.named_buffers():
        if not same_bits(buffer, before[name]):
            if buffer.dtype != before[name].dtype:
                cause = "the model changes its own type in its forward. Convert the model once, before it is trained."
            elif when == "the attack" and isinstance(norm := _holder(model, name), _Norm) and norm.training:
                cause = (
                    "it is in train mode where the model is to be in eval mode, by its forward or by a train() of its "
                    "own. Leave modes to whoever calls the model."
                )
            elif isinstance(_holder(model, name), _Norm):
                cause = (
                    "the model computes its forward again in the backward (torch.utils.checkpoint), so BatchNorm "
                    "counts images twice. Switch that off."
                )
            else:
                cause = (
                    "the model writes to it in its forward, or computes its forward again in the backward "
                    "(torch.utils.checkpoint). Call the model on a batch of images before, if it writes but once; else "
                    "write to it in train mode only (if self.training: ...), and once."
                )
            raise OptionError(f"{name} moved in {when}, where nothing may: {cause}")


@contextmanager
def by_autograd_alone(params: Mapping[str, nn.Parameter], plugin: str) -> Iterator[None]:
    """OptionError where a gradient that `plugin` asks for in the scope reaches `.grad` of `params`, and not who asks.

    What a backward inside of a backward computes is at theta, whatever weights were put in its place.
    """
    with set_aside(params.values()):
        yield
        if past := [name for name, parameter in params.items() if parameter.grad is not None]:
            raise OptionError(
                f"The model calls backward() in a backward, as some reversible nets do, which adds to the gradient of "
                f"{past[0]} and tells the plugin {plugin} nothing of it; take the net's form without that (plain "
                "autograd), which computes the same, or leave the plugin out."
            )
