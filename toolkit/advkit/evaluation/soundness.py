"""Whether the logits of images as they are can be judged at all, and whether they are of their image alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..bits import same_bits
from ..errors import NonFinite, OptionError
from ..explained import calling, explained
from ..judging import BEFORE, checked_logits, far_apart, judged
from ..own_file import staying
from ..rng import derive_seed

BY_BATCH = "the logits of an image depend on the other images of its batch, and so do these verdicts"
"""Said of a net that normalises by the batch, or attends over it."""

BY_CALL = "the net's answers to the same images change from call to call, and so would these verdicts"
"""Said of a net that draws from a generator which nobody seeds, or keeps something of what it has seen."""

BY_DRAW = (
    "the net draws random numbers in eval mode, as dropout does that is left on, and these verdicts are of one draw"
)
"""Said of a net whose answers change with the seed of torch's generator."""


def sound(logits: Tensor) -> Tensor:
    """(B,) bool: rows of logits (B, K) without NaN and Inf; -Inf is how classes are masked, if not all of them."""
    return logits.amax(1).isfinite()  # NaN where there is any


def classified_as(logits: Tensor, y: Tensor) -> Tensor:
    """(B,) bool: rows of logits (B, K) that are classified as y (B,); none with NaN, Inf, or -Inf for all classes."""
    return (logits.argmax(1) == y) & sound(logits)


def refuse_unsound(broken: int, images: int) -> None:
    """NonFinite where no image has logits that are `sound`, as of finite weights with a variance below 0."""
    if images and broken == images:
        where = f"its logits are NaN or Inf on all {images} images as they are"
        raise NonFinite(f"The net can not be judged: {where}.{BEFORE}")


def one_by_one(net: Callable[[Tensor], Tensor], x: Tensor, rows: Tensor) -> Tensor:
    """Logits (R, K), without a graph, of the images `rows` (R,) of x (B, C, H, W), each by itself.

    Of a net that refuses a lone image, each beside two that do not stand next to it in x.
    """
    with torch.no_grad():
        try:
            return torch.cat([net(x[row : row + 1]) for row in rows.tolist()])
        except OptionError:
            places = torch.tensor([0, len(x) // 2, len(x) // 3])
            return torch.cat([net(x[(row + places) % len(x)])[:1] for row in rows.tolist()])


def unsteady(
    model: nn.Module,
    net: Callable[[Tensor], Tensor],
    lone: Callable[[Tensor], Tensor],
    x: Tensor,
    seed: Callable[[str], None],
) -> str:
    """Whether logits depend on more than their image, of a net that draws nothing: a sentence, "" elsewhere.

    The first, the middle and the last, each by itself, are held against them among all, and all against all. `net` and
    `lone` are the forward of `model`; `seed` seeds what it draws from, by a purpose.
    """
    rows = torch.tensor([0, len(x) // 2, len(x) - 1])

    def logits(images: Tensor, purpose: str = "clean") -> Tensor:
        seed(purpose)
        with torch.no_grad(), calling(images.shape):
            return net(images)

    def alone(purpose: str) -> Tensor:
        seed(purpose)
        return one_by_one(lone, x, rows)

    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    together, again = logits(x), logits(x)
    moved = [name for name, buffer in model.named_buffers() if not same_bits(buffer, before.get(name, buffer))]
    if far_apart(together, again) or (moved and not torch.equal(together, again)):
        return BY_CALL + (f" (it moves {moved[0]} in eval mode)" if moved else "")
    if not far_apart(together[rows], once := alone("clean")):
        return ""
    if far_apart(together, logits(x)) or far_apart(together, logits(x)):
        return BY_CALL
    draws = far_apart(once, alone("once more")) or far_apart(together, logits(x, "once more"))
    return "" if draws else BY_BATCH


def doubt(model: nn.Module, x: Tensor, what: str) -> str:
    """The sentence of `unsteady` on `what` is computed of images x (B, C, H, W), shown at once, or BY_DRAW; "" else."""

    def net(images: Tensor) -> Tensor:
        with explained(), staying(), calling(images.shape):
            return checked_logits(model(images.clone()), len(images))

    with judged(model) as reseed:

        def seed(purpose: str) -> None:
            reseed(derive_seed(0, "core", f"doubt {purpose}"))

        def drawn(purpose: str) -> Tensor:
            seed(purpose)
            with torch.no_grad():
                return net(x)

        sentence = unsteady(model, net, net, x, seed)
        if not sentence and far_apart(drawn("clean"), drawn("once more")):
            sentence = BY_DRAW
    return sentence.replace("verdicts", what)
