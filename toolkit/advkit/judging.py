"""What must hold before anything is believed of a net: of its weights, of what it returns, of how it is called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from .bits import same_bits
from .errors import NonFinite, OptionError, says
from .generators import drawn_from, generators, put_back
from .global_state import products, switch_back, switches
from .inventory import statistics_of
from .modules import frozen, kept_values, mode, own_generator, placement
from .own_file import staying
from .precision import EXACT, HalfPrecision, first_forward_watched, named, refuse_half
from .torch_func import refuse_transforms, unbatched

IN_PLACE = (
    "The model changes its input in place, so the images that are attacked would not be those that are judged; let it "
    "compute a new tensor, x = (x - mean) / std instead of x.sub_(mean).div_(std)."
)

IN_PLACE_WEIGHT = (
    "The model changes a weight in place in its forward, of which no gradient can be taken; let it compute a new "
    "tensor, such as weight * 2, or write under torch.no_grad()."
)

BEFORE = " Take weights from before that."
"""What to do where a net is judged that computes no numbers."""

ALONE = 1e-3
"""How far logits may move, as a share of the largest, with the batch they are in: rounding moves them by 1e-5."""


@contextmanager
def judged(model: nn.Module) -> Iterator[Callable[[int], None]]:
    """The model as it is judged: in eval mode, frozen, drawing from a generator of its own, which is yielded to seed.

    Nothing of it is changed afterwards. Neither an autocast around the scope nor TF32 is in force in it. Raises
    OptionError for a net in half precision, whose input gradients round to 0 and let every attack stand still: of one
    that computes so inside, at its first forward. Raises NonFinite where the weights are no numbers.
    """
    refuse_unjudgeable(model)
    device = placement(model)[0]
    with ExitStack() as scope:
        scope.enter_context(mode(model, training=False))
        scope.enter_context(frozen(model))
        scope.enter_context(kept_values(model))
        scope.enter_context(torch.autocast(device.type, enabled=False))
        scope.enter_context(products("highest"))
        scope.enter_context(first_forward_watched(model))
        scope.enter_context(shapes_watched(model))
        yield scope.enter_context(own_generator(device))


class Shapes:
    """Those of a model's buffers, as they are now."""

    def __init__(self, model: nn.Module) -> None:
        self._then = [(name, buffer, buffer.shape) for name, buffer in model.named_buffers()]

    def refuse(self) -> None:
        """OptionError where a forward has changed one in place."""
        if changed := [name for name, buffer, shape in self._then if buffer.shape != shape]:
            raise OptionError(
                f"The model's forward gives its buffer {changed[0]} another shape, as nets do that measure their first "
                "batch; call the model on a batch of images before."
            )


@contextmanager
def shapes_watched(model: nn.Module) -> Iterator[None]:
    """By `Shapes`, as every forward ends; the hook stays for the scope."""
    shapes = Shapes(model)
    hook = nn.Module.register_forward_hook(model, lambda *_: shapes.refuse())
    try:
        yield
    finally:
        hook.remove()


def refuse_unjudgeable(model: nn.Module) -> None:
    """OptionError for weights in half precision, NonFinite for NaN and Inf."""
    refuse_unready(model)
    refuse_half(model)
    if name := broken(model):
        raise NonFinite(f"The net can not be judged: {name} holds NaN or Inf.{BEFORE}")


def broken(model: nn.Module) -> str:
    """The first parameter, or statistic of a norm, that holds NaN or Inf, by name; -Inf is how classes are masked.

    Other buffers may hold both, as a least value that was never met; logits tell.
    """
    norms = {id(buffer) for module in model.modules() for buffer in statistics_of(module)}
    for name, tensor in (*model.named_parameters(), *(one for one in model.named_buffers() if id(one[1]) in norms)):
        if tensor.is_floating_point() and bool((tensor.isnan() | tensor.isposinf()).any()):
            return name
    return ""


def refuse_place() -> None:
    """OptionError under torch.inference_mode, and where new tensors hold no values."""
    if torch.is_inference_mode_enabled():
        raise OptionError("torch.inference_mode is on, and nothing has a gradient there; call this outside of it.")
    if torch.get_default_device().type == "meta":
        raise OptionError(
            "torch's default device is meta, whose tensors hold no values; call torch.set_default_device('cpu') before."
        )


def refuse_unready(model: nn.Module) -> None:
    """OptionError for a net, or a place in the program, that has no gradients."""
    refuse_place()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise OptionError(
                f"{name} of the model has no shape yet (a lazy module); call the model on a batch of images before."
            )
        if tensor.is_meta:
            raise OptionError(f"{name} of the model is a meta tensor, which holds no values; load its weights before.")
        if tensor.is_inference():
            raise OptionError(
                f"{name} of the model was made under torch.inference_mode and can have no gradient; build the model "
                "outside of it."
            )


ENOUGH = 32
"""Values among which logits have one that is negative or beyond 1, or are all near 0, as before training."""


def sum_to_1(rows: Tensor) -> Tensor:
    """(B,) bool: which of (B, K) do, as those of a softmax, up to rounding; -Inf, as of a masked class, is 0."""
    return (rows.masked_fill(rows.isneginf(), 0).sum(1) - 1).abs() < 1e-4


def probabilities(logits: Tensor) -> Tensor:
    """(B,) bool: rows of logits (B, K) that are none, but what a softmax makes of them, or, all of them, a sigmoid."""
    masked = logits.isneginf()
    inside = (masked | ((logits >= 0) & (logits <= 1))).all(1)
    squashed = (logits >= 0.4).any() & ((masked | (logits > 0)).all() | (logits == 1).any())  # it has 0 only beside 1
    of_sigmoid = inside.all() & squashed & ((~masked).sum() >= ENOUGH)
    return inside & sum_to_1(logits) | of_sigmoid


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
    if logits.layout != torch.strided:
        raise OptionError("The model returns sparse logits; let it return dense ones, as of logits.to_dense().")
    if not logits.is_floating_point():
        raise OptionError(f"The model returns logits in {named(logits.dtype)}; let it return real floats.")
    if logits.dtype not in EXACT:
        raise OptionError(
            f"The model returns logits in {named(logits.dtype)}; losses and input gradients of a confident net round "
            "to 0 there, and no attack moves. Take autocast and casts to half precision out of its forward."
        )
    return logits if type(logits) is Tensor else logits.as_subclass(Tensor)


@contextmanager
def untouched(x: Tensor, *, by_value: bool = False) -> Iterator[None]:
    """OptionError where a forward in the scope writes into its images x.

    torch counts writes, but not those through `x.data` or a numpy view: `by_value` sees these too and puts x back, and
    what is global in the program, which no forward may change either. Whether x asks for a gradient stays.
    A working folder that the forward goes to is left again: threads may open files meanwhile, and whoever called it.
    """
    before, kept, asks = writes(x), x.detach().clone() if by_value else None, x.requires_grad
    switched = switches() if by_value else {}
    try:
        with staying():
            yield
    except RuntimeError as error:
        if "in-place" in says(error) and "leaf" in says(error):
            raise OptionError(IN_PLACE if asks else IN_PLACE_WEIGHT) from error
        raise
    if x.requires_grad and not asks:
        x.requires_grad_(False)  # of a net that looks at its own gradient; an attack moves x in place
    if left := [name for name, value in (switches() if by_value else {}).items() if value != switched[name]]:
        switch_back(switched)
        raise OptionError(
            f"The model changes {left[0]} of the whole program in its forward; leave that out, or put it back before "
            "it returns."
        )
    if kept is not None and not same_bits(x.detach(), kept):
        with torch.no_grad():
            x.detach().copy_(kept)
        raise OptionError(IN_PLACE)
    if before != writes(x):
        raise OptionError(IN_PLACE)


def writes(x: Tensor) -> int:
    """How often torch has seen somebody write into it."""
    return 0 if x.is_inference() else x._version


def far_apart(one: Tensor, other: Tensor) -> bool:
    """Whether logits (B, K) of the same images differ by more than rounding; Inf, -Inf and NaN are like themselves."""
    return bool(apart(one, other).any())


def apart(one: Tensor, other: Tensor) -> Tensor:
    """(B,) bool: of which images they do."""
    both = one.isfinite() & other.isfinite()
    scale = one[both].abs().amax() if bool(both.any()) else 0
    alike = (one == other) | (one.isnan() & other.isnan())
    return torch.where(both, (one - other).abs() > ALONE * scale, ~alike).any(1)


@contextmanager
def examined(x: Tensor, *, half: bool = False) -> Iterator[None]:
    """A forward of images x as it is watched at the first step of a stage: `untouched` by value, and HalfPrecision.

    `half`: whether half precision is what the run wants. A net may draw from torch's generator, which is seeded for
    it, and from no other.
    """
    before = generators()
    with untouched(x, by_value=True), HalfPrecision() as watch:
        yield
    if not half:
        watch.refuse()
    if strange := [name for name in drawn_from(before) if "torch" not in name]:
        put_back(before | {"torch's global generator": generators()["torch's global generator"]})
        raise OptionError(
            f"The model draws from {strange[0]}, which nobody seeds for it, so that no run could be repeated; let it "
            "draw with torch."
        )


class GradientWatch:
    """Sees every gradient that reaches the images of a net, whoever attacks it.

    sign(NaN) is 0: without it an attack that follows a broken gradient would be none, and the net robust. What it saw
    stays on the device, to be read once, when the attack is over; None where no gradient was asked for. A copy of a net
    that it watches (copy.deepcopy) is watched by this very one.
    """

    def __init__(self) -> None:
        self.finite: Tensor | None = None
        """() bool: whether all were numbers."""
        self.still: Tensor | None = None
        """() int64: how many images had a gradient of zero."""

    def __deepcopy__(self, _: object) -> Self:
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """The images to give to the net in place of x (B, C, H, W)."""
        refuse_transforms("Vmap")
        if not (x.requires_grad and torch.is_grad_enabled()):
            return x
        x = x.view_as(x)  # every call watches its own gradient, whatever else x is used for
        x.register_hook(self._see)  # type: ignore[no-untyped-call]
        return x

    def _see(self, gradient: Tensor | None) -> None:
        if gradient is None:  # of a net that ends there, as quantized ones do; who asked for it is told by torch
            return
        peak = unbatched(gradient).flatten(1).abs().amax(1)  # keeps NaN
        finite, still = peak.isfinite().all(), (peak == 0).sum()
        self.finite = finite if self.finite is None else self.finite & finite
        self.still = still if self.still is None else self.still + still
