"""Whether the first step of a stage is what it should be: gradients at other weights, and an attack that moves.

Some models read or recompute weights behind the call, and some give their images no gradient that moves anything.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import OptionError
from ..judging import probabilities
from ..losses import soft_cross_entropy
from ..modules import own_generator, placement
from ..types import AttackResult, Batch
from .compiled import eagerly

TOLERANCE = 1e-2
"""Of the relative difference of two gradients: rounding stays far below, one forgotten weight far above."""

SURE, NEARLY_ALL = 0.999, 0.9
"""Above which probability of its label an image may have no gradient; which share of images may not stand still."""


def refuse_other_weights(model: nn.Module, x: Tensor, target: Tensor, shift: Mapping[str, Tensor]) -> None:
    """OptionError where the gradient at theta+v by substitution is not that of the model when it holds theta+v.

    Asked once a stage, of the model in its present mode, on the batch's images x (B, C, H, W) with labels `target`
    (B, K): first with v substituted, then with v added in place. Weights and all else are put back bit for bit. A
    tensor that a function has captured is seen, since it is the model's own.
    """
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def gradient(weights: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
        with own_generator(placement(model)[0]) as seed:
            seed(0)
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            loss = soft_cross_entropy(functional_call(model, {**weights, **buffers}, (x,)), target).sum()
            held = own | dict(weights)
            return dict(zip(own, torch.autograd.grad(loss, list(held.values()), allow_unused=True), strict=True))

    def flat(gradients: Mapping[str, Tensor | None]) -> Tensor:
        pairs = ((own[name], value) for name, value in gradients.items())
        return torch.cat([(torch.zeros_like(p) if value is None else value).flatten() for p, value in pairs])

    with _by_itself(model), eagerly(model), torch.enable_grad():
        substituted = gradient({name: p + shift[name] if name in shift else p for name, p in own.items()})
        with _holding(own, shift):
            held = gradient({})
    distance = float((flat(substituted) - flat(held)).norm() / flat(held).norm().clamp(min=1e-30))
    past = [name for name in shift if substituted[name] is None and (g := held[name]) is not None and bool(g.any())]
    if past or not distance <= TOLERANCE:
        raise OptionError(
            f"The model's gradient at perturbed weights is off by {distance:.2g} of its length: a part of it is "
            "computed again in the backward (torch.utils.checkpoint) or reads a weight through a reference of its own, "
            "past the perturbation. Switch that off, or leave out the plugin that perturbs weights."
        )


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


def standing_still(attack: AttackResult, batch: Batch, radius: Tensor, logits: Tensor | None, steps: int) -> str:
    """A sentence where a gradient attack left nearly all images in place that it might have moved, "" elsewhere.

    Half of the batch at least must be such: their `radius` (B,) is more than rounding, no plugin stopped them at once,
    and the model is not sure of them by its `logits` (B, K) at x_adv; where it is, a gradient is rightly 0. It
    synchronises.
    """
    if attack.finite is None:  # no attack, or one that follows no gradient
        return ""
    still, might = (attack.x_adv == batch.x).flatten(1).all(1), radius > torch.finfo(batch.x.dtype).eps
    if attack.zero_gradients is not None:
        still = still | (attack.zero_gradients >= steps)
    if attack.steps is not None:
        might = might & (attack.steps > 0)
    if logits is not None:
        might = might & (logits.softmax(1).gather(1, batch.y[:, None]).squeeze(1) < SURE)
    movable, stuck = int(might.sum()), int((still & might).sum())
    if 2 * movable < len(might) or stuck < NEARLY_ALL * movable:
        return ""
    share = "" if attack.zero_gradients is None else f" ({float(attack.zero_gradients.double().mean()) / steps:.0%})"
    return (
        f"The attack moved {movable - stuck} of {movable} images of a batch, though their radius is above 0 and the "
        f"model is not sure of them: its input gradients are 0{share} or its steps below rounding. The step trains on "
        "images as they are; look for rounding or argmax in the model, or a last layer of zeros."
    )


def doubts(logits: Mapping[str, Tensor]) -> str:
    """A sentence where what the model returned in the update, (B, K) by view, are no logits, "" elsewhere."""
    if not any(bool(probabilities(rows).all()) for rows in logits.values()):
        return ""
    return (
        "The model returns probabilities: every row is at least 0 and sums to 1. Losses take them as logits, so the "
        "softmax is taken twice and gradients are small; leave the one at the end of the model out."
    )


@contextmanager
def nothing_moves(model: nn.Module, when: str, watched: bool) -> Iterator[None]:
    """OptionError where the scope moves a buffer, as BatchNorm does when a backward computes its forward again."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()} if watched else {}
    yield
    if not watched:
        return
    for name, buffer in model.named_buffers():
        if not torch.equal(buffer, before[name]):
            raise OptionError(
                f"{name} moved in {when}, where nothing may: the model computes its forward again in the backward "
                "(torch.utils.checkpoint), so BatchNorm counts images twice. Switch that off."
            )


@contextmanager
def _by_itself(model: nn.Module) -> Iterator[None]:
    """Without the hooks of those who count its passes, and afterwards without a trace in its modules' attributes.

    Hooks of torch.nn.utils stay: they compute weights.
    """
    before = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    for module, attributes, _ in before:
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            own = [(key, hook) for key, hook in attributes[name].items() if _computes_weights(hook)]
            vars(module)[name] = OrderedDict(own)
    try:
        yield
    finally:
        for module, attributes, buffers in before:
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)


def _computes_weights(hook: object) -> bool:
    return type(hook).__module__.startswith("torch.nn.utils")
