"""Whether the logits of images as they are can be judged at all."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import NonFinite
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
