"""A figure of a check: a share of images, or what is computed of them together, with its interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

from torch import Tensor

from .statistics import Z, image_interval, wilson


@dataclass(frozen=True)
class Figure:
    """The higher the worse; `low` to `high` is its 95 % interval over images."""

    value: float
    low: float
    high: float
    of: int
    """Images looked at."""
    count: int | None = None
    """How many of them, where the figure is a share."""
    paired: bool = False
    """Whether it is a difference of two counts, whose interval needs more than their difference."""


def share(count: int, of: int) -> Figure:
    """`count` of `of` images, with Wilson's interval."""
    low, high = wilson(count, of)
    return Figure(count / of, low, high, of, count)


def gap(one: Tensor, other: Tensor, of: int) -> Figure:
    """How far two attacks' accuracies are apart, over `of` images: two (m,) bool, paired; the rest were wrong."""
    values = (one.double() - other.double()).tolist()
    low, high = image_interval([*values, *[0.0] * (of - len(values))])
    count = abs(int(one.sum()) - int(other.sum()))
    ends = (low, high) if sum(values) >= 0 else (-high, -low)
    return Figure(count / of, max(0.0, ends[0]), ends[1], of, count, paired=True)


MINIMUM = 3
"""Images that an alarm needs, whatever share of the attacked ones they are."""


def least(threshold: float, of: int) -> int | None:
    """The fewest images of `of`, MINIMUM or more, whose share lies above `threshold` with its whole interval."""
    return next((count for count in range(MINIMUM, of + 1) if wilson(count, of)[0] > threshold), None)


def above(figure: Figure, threshold: float) -> bool:
    """Whether all of its interval is, and where images are counted, enough of them: for a share a whole number."""
    if figure.count is None or figure.paired:
        return figure.low > threshold and (figure.count is None or figure.count >= MINIMUM)
    fewest = least(threshold, figure.of)
    return fewest is not None and figure.count >= fewest


def jackknife(statistic: Callable[[Tensor], Tensor], rows: Tensor) -> Figure:
    """What `statistic` makes of rows (..., m), an image a column; the interval by leaving out each image in turn."""
    m = rows.shape[-1]
    value = float(statistic(rows))
    if m < 2:
        return Figure(value, value, value, m)
    left = rows.new_tensor([float(statistic(_without(rows, place))) for place in range(m)])
    half = Z * sqrt(float(left.var(unbiased=False)) * (m - 1))
    return Figure(value, value - half, value + half, m)


def _without(rows: Tensor, place: int) -> Tensor:
    """All columns but one."""
    kept = [column for column in range(rows.shape[-1]) if column != place]
    return rows[..., kept]
