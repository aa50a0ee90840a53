"""A net as torch.compile makes it, beside the module that it is made of, whose names it never shows."""

from __future__ import annotations

import inspect
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..hidden import without_trace
from ..modules import frozen, mode, own_generator, placement
from ..substituted import call_at

MODES = {"default": "default", "max-autotune": "max-autotune-no-cudagraphs"}
"""CUDA graphs write every output to one place, and an attack holds several logits at once."""

RECOMPILE_LIMIT = 64
OWN_LIMITS = {"recompile_limit": RECOMPILE_LIMIT, "isolate_recompiles": True}
"""Eval, train and frozen modes, with weights replaced or not, are graphs of their own: more than torch's 8 in all."""


def own_limits() -> dict[str, Any]:
    """Those of them that this torch takes for one net; before 2.14 there is one number for all."""
    known = inspect.signature(torch.compile).parameters
    return {name: value for name, value in OWN_LIMITS.items() if name in known}


class Compiled:
    """Calls a compiled net, with parameters and buffers replaced by the names of its module.

    `rows` are the images of the one batch size that is compiled for, None: all. A batch of another size is eager, so
    that the last of an epoch compiles nothing, and a resumed run computes as one that was not stopped.
    """

    def __init__(self, net: nn.Module, rows: int | None = None) -> None:
        self.net, self.rows, self.seconds = net, rows, 0.0
        self._prefix = "_orig_mod." if optimized(net) else ""

    def takes(self, x: Tensor) -> bool:
        """Whether images x (B, C, H, W) go through what is compiled."""
        return self.rows is None or len(x) == self.rows

    def __call__(self, replaced: Mapping[str, Tensor], x: Tensor) -> object:
        # The net is compiled and call_at is not: a graph of the latter would keep the weights of its making.
        if not replaced:
            return self.net(x)
        with warnings.catch_warnings():  # dynamo looks at the .grad of theta+v, which is no leaf and has none
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
            own = {f"{self._prefix}{name}": value for name, value in replaced.items()}
            return call_at(self.net, own, x)

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """A scope in which it may compile, what it has to: forwards and backwards, whose time is added to `seconds`."""
        import torch._dynamo.config
        from torch._dynamo.callback import callback_handler

        began = 0.0

        def start(_: object) -> None:
            nonlocal began
            began = time.perf_counter()

        def end(_: object) -> None:
            self.seconds += time.perf_counter() - began

        callback_handler.register_start_callback(start)
        callback_handler.register_end_callback(end)
        for_all = nullcontext() if own_limits() else torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT)
        try:
            with for_all:
                yield
        finally:
            callback_handler.remove_start_callback(start)
            callback_handler.remove_end_callback(end)


def optimized(model: object) -> bool:
    """Whether it is what torch.compile returned. Where nothing is compiled, that is not imported: it takes seconds,
    a folder for temporary files, and a working folder that is still there."""
    frame = sys.modules.get("torch._dynamo.eval_frame")
    return frame is not None and isinstance(model, frame.OptimizedModule)


def without_wrapper(model: nn.Module) -> nn.Module:
    """The module that torch.compile was given, where `model` is what it returned; else `model`."""
    return cast(nn.Module, model._orig_mod) if optimized(model) else model


def of_the_users(model: nn.Module) -> Compiled | None:
    """What the owner of a model has compiled, as it was returned or in place; None for nothing."""
    if not isinstance(model, nn.Module):  # which is refused with a sentence
        return None
    inside = any(module._compiled_call_impl is not None for module in model.modules())
    return Compiled(model) if optimized(model) or inside else None


@contextmanager
def eagerly(model: nn.Module) -> Iterator[None]:
    """Modules that are compiled in place are eager for the scope."""
    inside = [(m, m._compiled_call_impl) for m in model.modules() if m._compiled_call_impl is not None]
    for module, _ in inside:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in inside:
            module._compiled_call_impl = call


def compiled(
    model: nn.Module,
    how: str,
    x: Tensor,
    backend: str = "inductor",
    trains: bool = True,
    eager: Collection[bool] = (),
) -> Compiled:
    """The model compiled for batches like x (B, C, H, W), known to work: forward and backward, in both modes.

    One that never `trains` is known to work by its forward in eval mode. Modes, training or not, that are to stay
    `eager` are not tried. The model and generators are as they were.
    Raises whatever torch raises where it can not.
    """
    limits = own_limits()
    if backend == "inductor":  # with torch's own draws dropout is that of eager mode
        from torch._inductor import list_mode_options

        limits["options"] = list_mode_options(MODES[how]) | {"fallback_random": True}
    net: Any = torch.compile(model, backend=backend, dynamic=False, **limits)
    made = Compiled(net, len(x))
    with made.compiling(), own_generator(placement(model)[0]) as seed, without_trace(model), torch.enable_grad():
        if not trains:
            seed(0)
            with mode(model, training=False), torch.no_grad():
                made({}, x)
            return made
        for training in {False, True} - {*eager}:
            if what := _another(model, made, x, training, seed):
                raise OptionError(f"compiled, its {what}, as where a forward moves a buffer that it computes with")
    return made


def another_gradient(model: nn.Module, made: Compiled, x: Tensor) -> str:
    """What differs where that which its owner `made` of a model has another gradient, at noise like x; else "".

    A compiled net may draw from a generator of its own: a mode in which it draws is not compared.
    """
    with own_generator(placement(model)[0]) as seed, without_trace(model), torch.enable_grad():
        for training in (False, True):
            try:
                what = _another(model, made, x, training, seed, draws=True)
            except Exception:  # which the step's own forward tells
                return ""
            if what:
                return what
    return ""


def _another(
    model: nn.Module, made: Compiled, x: Tensor, training: bool, seed: Callable[[int], None], draws: bool = False
) -> str:
    """What differs in one mode, training or not; one that `draws` is not compared where its draws matter."""
    parameters = [p for p in model.parameters() if p.requires_grad] if training else None

    def eager(held: dict[str, Tensor], images: Tensor) -> object:
        with eagerly(model):
            return call_at(model, held, images)

    with mode(model, training), nullcontext() if training else frozen(model):
        ours = _gradient(model, eager, x, parameters, lambda: seed(0))
        if draws and not torch.equal(ours, _gradient(model, eager, x, parameters, lambda: seed(1))):
            return ""
        theirs = _gradient(model, made, x, parameters, lambda: seed(0))
    near = float((theirs - ours).norm()) <= _rounding(x) * float(ours.norm())
    return "" if near else f"gradient in {'train' if training else 'eval'} mode is not that of eager mode"


def _gradient(
    model: nn.Module,
    call: Callable[[dict[str, Tensor], Tensor], object],
    x: Tensor,
    parameters: Sequence[nn.Parameter] | None,
    seed: Callable[[], None],
) -> Tensor:
    """The gradient, in a row, of a forward on noise of x's shape: to parameters, with own buffers, or to the images."""
    noise = torch.Generator(x.device).manual_seed(0)
    images = torch.empty_like(x).uniform_(generator=noise).requires_grad_(parameters is None)
    seed()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()} if parameters is not None else {}
    logits = call(buffers, images)
    if not isinstance(logits, Tensor):
        raise OptionError(f"it returns a {type(logits).__name__}")
    found = torch.autograd.grad(logits.float().sum(), images if parameters is None else parameters, allow_unused=True)
    return torch.cat([one.flatten() for one in found if one is not None] or [x.new_zeros(1)])


def _rounding(x: Tensor) -> float:
    """How far two gradients may be apart, as a share of their length."""
    exact = torch.get_float32_matmul_precision() == "highest" and not torch.is_autocast_enabled(x.device.type)
    return 1e-3 if exact else 5e-2
