"""Numbers as papers write them: `8/255`, `0.159375 eps`, `eps/4`, `80/255/eps`."""

from __future__ import annotations

import re
from fractions import Fraction

# Exponents have at most three digits: 1e999999999 is an integer that no memory holds.
_TOKEN = re.compile(r"\s*(?:((?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?)(?![\d.]|[eE][-+\d])|(eps)|([*/]))", re.ASCII)
VANISHES = "is not 0, but closer to it than any number of float64; give 0, or 5e-324 and more"


def parse_number(text: str, eps: float | None = None) -> float:
    """The value of a product or quotient of numbers and `eps`, such as `8/255` or `0.25 eps`.

    Evaluated exactly and rounded once. Raises ValueError for anything else.
    """
    value, operator, position = Fraction(1), "*", 0
    sign = -1 if text.strip().startswith("-") else 1
    body = text.strip().removeprefix("-").lstrip()
    expect_operand, denominators = True, 0
    while position < len(body):
        match = _TOKEN.match(body, position)
        if match is None or len(body) > 64 or (match[1] and not expect_operand):
            raise ValueError("is not a number, a fraction such as 8/255, or a multiple of eps such as 'eps/4'")
        position = match.end()
        number, name, symbol = match.groups()
        if symbol:
            if expect_operand:
                raise ValueError("has an operator without an operand")
            operator, expect_operand = symbol, True
            continue
        if name and eps is None:
            raise ValueError("is relative to eps, which is not known here")
        operand = Fraction(eps if name else number)  # type: ignore[arg-type]
        if operator == "/" and operand == 0:
            raise ValueError("divides by zero")
        denominators += operator == "/" and not name
        if denominators > 1:  # nobody who types 8/256/3 means what it says
            raise ValueError("is not a number, a fraction such as 8/255, or a multiple of eps such as 'eps/4'")
        value = value / operand if operator == "/" else value * operand
        operator, expect_operand = "*", False
    if expect_operand:
        raise ValueError("is not a number")
    try:
        if value and not float(value):
            raise ValueError(VANISHES)
        return sign * float(value)
    except OverflowError:
        raise ValueError("is too large") from None
