"""What a plugin or a loop of one's own passes to the core, and what it must be: one sentence where it is not."""

from __future__ import annotations

import operator

import torch
from torch import Tensor

from .errors import OptionError


def a_number(what: str, value: object) -> float:
    """`value` as a float: a number, or a tensor or array of one."""
    try:
        return float(value) if not isinstance(value, str | bytes) else float("no")  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise OptionError(f"{what} is {value!r:.80}; pass a number.") from None


def a_whole_number(what: str, value: object, least: int, most: int) -> int:
    """`value` as an int from `least` to `most`; numpy's integers count, truth values do not."""
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except (TypeError, RuntimeError):
        number = least - 1
    if not least <= number <= most:
        raise OptionError(f"{what} = {value!r:.80} must be an integer from {least} to {most}.")
    return number


def a_dense_tensor(what: str, value: object) -> Tensor:
    """`value` if a checkpoint can hold it: a dense tensor of real numbers, integers or truth values."""
    if not isinstance(value, Tensor):
        raise OptionError(f"{what} is a {type(value).__name__}; pass a tensor, such as torch.zeros(3).")
    if value.layout != torch.strided or value.is_complex() or value.is_quantized or value.is_meta:
        raise OptionError(f"{what} is {value.dtype}, {value.layout}; pass a dense tensor of real numbers.")
    return value
