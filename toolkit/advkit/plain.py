"""What numpy, torch and programs give, as files hold it: numbers of Python and lists."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal
from numbers import Integral, Rational
from typing import Any


def plain(value: Any) -> Any:
    """A number of numpy or torch, such as np.int64(3) or torch.tensor(0.1), as Python's; in lists and tuples too.

    A Fraction or a Decimal is a float, unless it is too large for one, or too close to 0.
    """
    if type(value) in (list, tuple):
        return type(value)(plain(part) for part in value)
    is_number = getattr(value, "ndim", None) == 0 and hasattr(value, "item") and not getattr(value, "is_meta", False)
    if is_number:
        return value.item()
    if isinstance(value, Rational | Decimal) and not isinstance(value, Integral):
        with suppress(OverflowError, ValueError):  # too large, or a NaN that asks for an exception
            number = float(value)
            return number if number or not value else value
    return value


def listed(value: Any) -> Any:
    """A tuple or an array as a list, and so what is in it; all else as `plain` has it."""
    if isinstance(value, list | tuple):
        return [listed(part) for part in value]
    if getattr(value, "ndim", 0) and hasattr(value, "tolist"):
        with suppress(RuntimeError, TypeError):  # of a meta or a sparse tensor there is none
            return plain(value.tolist())
    return plain(value)


def holds_none(value: Any) -> bool:
    """Whether it is None or has one in it, for which TOML has no word."""
    if isinstance(value, Mapping):
        return any(map(holds_none, value.values()))
    return any(map(holds_none, value)) if isinstance(value, list | tuple) else value is None
