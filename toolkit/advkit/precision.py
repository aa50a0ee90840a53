"""Floating types that attacks can follow, and nets that compute in others inside."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .errors import OptionError
from .modules import hook_before

EXACT = (torch.float32, torch.float64)
"""The types in which the gradients of a confident net are more than 0."""


def named(dtype: torch.dtype) -> str:
    """As it is written in a sentence: float16."""
    return str(dtype).removeprefix("torch.")


def _is_half(tensor: Tensor) -> bool:
    """Or of numbers that are pairs of halves, as of a Fourier transform."""
    return (tensor.is_floating_point() and tensor.dtype not in EXACT) or tensor.dtype == torch.complex32


def refuse_half(model: nn.Module) -> None:
    """OptionError for parameters and buffers in half precision, and for what is sparse or quantized."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.layout != torch.strided or tensor.is_quantized:
            kind = "quantized" if tensor.is_quantized else "sparse"
            raise OptionError(f"{name} of the net is {kind}; keep it as a plain tensor.")
        if _is_half(tensor):
            raise OptionError(
                f"The net computes in {named(tensor.dtype)} ({name}); attacks need float32 or float64, because small "
                "input gradients round to 0 in half precision. Pass model.float()."
            )


class HalfPrecision(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes whether a net computes in half precision, though its weights and logits are float32.

    Small input gradients round to 0 there, so an attack stands still and the net looks robust.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        seen: Any = HalfPrecision.__torch_dispatch__
        if "torch._dynamo" in sys.modules and not hasattr(seen, "_torchdynamo_disable"):
            # It would compile this for every operation of a net that is compiled inside.
            HalfPrecision.__torch_dispatch__ = torch.compiler.disable(seen)  # type: ignore

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Else torch imports its compiler to keep it out of this, which takes seconds and a folder to write to."""
        return False

    seen = ""
    """The first type and operation, "float16 in aten.mm"; "" for none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and _is_half(tensor):
                self.seen = self.seen or f"{named(tensor.dtype)} in {func.overloadpacket}"
        return result

    def refuse(self, zeros: str = "") -> None:
        """OptionError where it was seen; `zeros` says how many entries of an input gradient are 0."""
        if self.seen:
            raise OptionError(
                f"The model computes in half precision inside its forward ({self.seen}); small input gradients round "
                f"to 0 there{zeros}, and no attack moves. Take autocast and casts to half precision out of its forward."
            )


@contextmanager
def first_forward_watched(model: nn.Module) -> Iterator[None]:
    """By HalfPrecision. The hooks stay for the scope, so that an attack gives back what it was lent."""
    watch, watching, ahead = HalfPrecision(), ExitStack(), [model]

    def begin(*_: object) -> None:
        if ahead:
            ahead.clear()
            watching.enter_context(watch)

    def end(*_: object) -> None:
        watching.close()
        watch.refuse()

    hooks = hook_before(model, begin), nn.Module.register_forward_hook(model, end, always_call=True)
    try:
        yield
    finally:
        watching.close()  # torch calls no hook where a forward ends the program, or Ctrl-C ends it
        for hook in hooks:
            hook.remove()
