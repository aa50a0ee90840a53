"""What must hold before anything is believed of a net: of its weights, of what it returns, of how it is called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .errors import NonFinite, OptionError
from .modules import frozen, mode, own_generator, placement

IN_PLACE = (
    "The model changes its input in place, so the images that are attacked would not be those that are judged; let it "
    "compute a new tensor, x = (x - mean) / std instead of x.sub_(mean).div_(std)."
)

EXACT = (torch.float32, torch.float64)
"""The types in which the gradients of a confident net are more than 0."""


@contextmanager
def judged(model: nn.Module) -> Iterator[Callable[[int], None]]:
    """The model as it is judged: in eval mode, frozen, drawing from a generator of its own, which is yielded to seed.

    Nothing of it is changed afterwards. Raises OptionError for a net in half precision, whose input gradients round
    to 0 and let every attack stand still, and NonFinite where the weights are no numbers.
    """
    refuse_unjudgeable(model)
    with mode(model, training=False), frozen(model), own_generator(placement(model)[0]) as seed:
        yield seed


def refuse_unjudgeable(model: nn.Module) -> None:
    """OptionError for weights in half precision, NonFinite for NaN and Inf; -Inf is how classes are masked."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not tensor.is_floating_point():
            continue
        if tensor.dtype not in EXACT:
            raise OptionError(
                f"The net computes in {_name(tensor.dtype)} ({name}); attacks need float32 or float64, because small "
                "input gradients round to 0 in half precision. Judge model.float()."
            )
        if bool((tensor.isnan() | tensor.isposinf()).any()):
            raise NonFinite(f"The net can not be judged: {name} holds NaN or Inf. Take weights from before that.")


def checked_logits(logits: object, rows: int, classes: int | None = None) -> Tensor:
    """Refuse a model whose output is not logits (B, K) in float32 or float64; K is `classes`, where they are known."""
    if not (isinstance(logits, Tensor) and logits.dim() == 2 and logits.shape[0] == rows):
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise OptionError(
            f"The model must return logits of shape (batch, classes), but it returned {given}; "
            "wrap it in a module that does."
        )
    width = logits.shape[1]
    if width == 1:
        raise OptionError(
            "The model returns one logit for each image, and the softmax of one logit is always 1: there is nothing to "
            "learn and nothing to attack. Give it two outputs, one a class."
        )
    if classes is not None and width != classes:
        raise OptionError(
            f"The model returns {width} logits for each image, but the data has {classes} classes; "
            "give it one output a class."
        )
    if logits.dtype not in EXACT:
        raise OptionError(
            f"The model returns logits in {_name(logits.dtype)}; losses and input gradients of a confident net round "
            "to 0 there, and no attack moves. Take autocast and casts to half precision out of its forward."
        )
    return logits


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def untouched(x: Tensor) -> Iterator[None]:
    """OptionError where a forward in the scope writes into its images x."""
    before = 0 if x.is_inference() else x._version
    try:
        yield
    except RuntimeError as error:
        if "in-place" in str(error) and "leaf" in str(error):
            raise OptionError(IN_PLACE) from error
        raise
    if before != (0 if x.is_inference() else x._version):
        raise OptionError(IN_PLACE)


class GradientWatch:
    """Sees every gradient that reaches the images of a net, whoever attacks it.

    sign(NaN) is 0: without it an attack that follows a broken gradient would be none, and the net robust. What it saw
    stays on the device, to be read once, when the attack is over; None where no gradient was asked for.
    """

    def __init__(self) -> None:
        self.finite: Tensor | None = None
        """() bool: whether all were numbers."""
        self.still: Tensor | None = None
        """() int64: how many images had a gradient of zero."""

    def __call__(self, x: Tensor) -> Tensor:
        """The images to give to the net in place of x (B, C, H, W)."""
        if not (x.requires_grad and torch.is_grad_enabled()):
            return x
        x = x.view_as(x)  # every call watches its own gradient, whatever else x is used for
        x.register_hook(self._see)  # type: ignore[no-untyped-call]
        return x

    def _see(self, gradient: Tensor) -> None:
        peak = gradient.detach().flatten(1).abs().amax(1)  # keeps NaN
        finite, still = peak.isfinite().all(), (peak == 0).sum()
        self.finite = finite if self.finite is None else self.finite & finite
        self.still = still if self.still is None else self.still + still
