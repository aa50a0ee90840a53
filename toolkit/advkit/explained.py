"""What torch raises of a net that it can not differentiate or call, as sentences."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import OptionError

NO_GRADIENT = "The net has no gradient at its input, so attacks that follow it mean nothing; "
"""Where the images ask for a gradient and the logits have none: detach, no_grad or numpy in the forward."""


TRAIN_ANOTHER = NO_GRADIENT + "train one that is differentiable, or set attack.steps=0."
"""The same of a net that is trained."""

LONE = "BatchNorm of the model has one value a channel in a batch of one image, and takes no statistics of it; "
"""Of one image by itself, and then what to do."""

_SEVERAL = "Expected more than 1 value per channel"

_UNUSED = "appears to not have been used in the graph"


def wants_several(error: BaseException) -> bool:
    """Whether a net has raised `error` because it was shown one image alone."""
    return _SEVERAL in str(error)


@contextmanager
def explained(*, training: bool = False) -> Iterator[None]:
    """What torch raises of a net that it can not differentiate or call, as a sentence with the next step."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        sentence = next((sentence for words, sentence in _EXPLAINED.items() if words in str(error)), None)
        if sentence is None:
            raise
        if training and _UNUSED in str(error):
            sentence = TRAIN_ANOTHER
        raise OptionError(sentence) from error


_EXPLAINED = {
    _UNUSED: (
        NO_GRADIENT
        + "attack a copy that is differentiable, as a net is before it is quantized; or use attacks without "
        "gradient: --attacks clean,square."
    ),
    "One of the differentiated Tensors does not require grad": (
        "The model differentiates its own weights in a backward, as reversible nets do, and they ask for no gradient "
        "in an attack; take its form without that (plain autograd), which computes the same."
    ),
    "use_reentrant=True": (
        "The model uses torch.utils.checkpoint in its reentrant form, which gives no gradient at the images; call it "
        "with use_reentrant=False."
    ),
    _SEVERAL: LONE + "give two images at least.",
    "donated buffers": (
        "The model is compiled by torch.compile, and one forward can not be differentiated twice then, as a plugin "
        "does here; set run.compile=off, or pass the module itself."
    ),
    "Jitted modules": (
        "The model is compiled by torch.jit, and torch can not put other weights or buffers in its place, which this "
        "run needs; pass the module that was scripted or traced."
    ),
}
