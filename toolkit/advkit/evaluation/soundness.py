"""Whether the logits of images as they are can be judged at all."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import NonFinite, OptionError
from ..judging import BEFORE


def sound(logits: Tensor) -> Tensor:
    """(B,) bool: rows of logits (B, K) without NaN and Inf; -Inf is how classes are masked."""
    return logits.amax(1) < torch.inf  # NaN where there is any


def classified_as(logits: Tensor, y: Tensor) -> Tensor:
    """(B,) bool: rows of logits (B, K) that are classified as y (B,); none with NaN, Inf, or -Inf for all classes."""
    return (logits.argmax(1) == y) & logits.amax(1).isfinite()


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
