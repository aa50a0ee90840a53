"""Arrays as people have them, made into images and labels: their types and what rounding leaves of them are judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..plain import plain

MOST_ROUNDED = 0.1
"""How much of the images' spread the rounding to gray levels may be."""

BETWEEN = 0.1
"""How far off a gray level, in levels, images are between them: half precision moves them by 0.06."""

PART = 1024
"""Images that are rounded at once."""


def channels_last(shape: Sequence[int]) -> bool:
    """Whether (N, a, b, c) can only be (N, H, W, C): a last axis of 1, 3 or 4 beside two longer ones is no width."""
    _, height, width, channels = shape
    return channels in (1, 3, 4) and min(height, width) > 4


def is_picture(value: object) -> bool:
    """Whether it is one of PIL, which is not imported for that."""
    return any(kind.__module__ == "PIL.Image" and kind.__name__ == "Image" for kind in type(value).__mro__)


def is_dense(values: Tensor) -> bool:
    """Whether its values lie in one strided piece of memory."""
    return values.layout == torch.strided and not values.is_nested


def dense(values: Any, what: str) -> Tensor:
    """A tensor on the CPU; DataError naming `what` it was to be."""
    if isinstance(values, Tensor):
        if values.is_meta or not is_dense(values):
            kind = "nested" if values.is_nested else "meta" if values.is_meta else "sparse"
            raise DataError(f"The {what} are a {kind} tensor; give a dense one.")
        return values.detach().cpu()
    if np.ma.isMaskedArray(values):
        raise DataError(f"The {what} are a masked array, whose mask nothing would heed; give array.filled(value).")
    if is_picture(values):
        raise DataError("The images are pictures of PIL; give tensors, as with transform=ToTensor() of torchvision.")
    try:
        array = np.array(values)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    except (TypeError, ValueError):
        of = f"an array of {values.dtype}" if isinstance(values, np.ndarray) else f"of type {type(values).__name__}"
        raise DataError(f"The {what} are {of}; give tensors or numpy arrays of numbers.") from None


def as_images(values: Any) -> tuple[Tensor, tuple[str, ...]]:
    """uint8 (N, C, H, W), and what is to be said of them."""
    images = dense(values, "images")
    form = f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
    if images.ndim != 4:
        raise DataError(f"The images are {form}; give a tensor (N, C, H, W).")
    if channels_last(images.shape):
        raise DataError(f"The images are {form}, channels last; give images.permute(0, 3, 1, 2).")
    if images.dtype == torch.uint8:
        if images.numel() and int(images.max()) == 1:
            raise DataError(
                "The images are uint8 and none has a value above 1 of 255, so all would be black; give floats in "
                "[0, 1], or images * 255."
            )
        return images.contiguous(), ()
    if not images.is_floating_point():
        raise DataError(f"The images are {form}; give uint8, or floats in [0, 1].")
    if images.numel() and not bool(((images >= 0) & (images <= 1)).all()):
        low, high = float(images.min()), float(images.max())
        digits = 3 if low <= -0.001 or high >= 1.001 else 9  # what rounding left of 0 and 1 is to be seen
        raise DataError(
            f"The images run from {low:.{digits}g} to {high:.{digits}g}; give uint8, or floats in [0, 1], and "
            "normalise in the model."
        )
    return _in_gray_levels(images)


def _in_gray_levels(images: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    """uint8 of floats in [0, 1], and a note where that moves them; DataError where next to nothing of them is left."""
    rounded, sums, off = torch.empty(images.shape, dtype=torch.uint8), torch.zeros(4, dtype=torch.float64), 0.0
    for some, into in zip(torch.split(images, PART), torch.split(rounded, PART), strict=True):
        levels = some.double() * 255
        moved = into.copy_(levels.round()) - levels
        sums += torch.stack([part.sum() for value in (moved, levels) for part in (value, value.square())])
        off = max(off, float(moved.abs().max())) if some.numel() else off
    error, square_error, mean, square = (sums / max(1, images.numel())).tolist()
    if off > BETWEEN and square_error - error**2 > MOST_ROUNDED**2 * (square - mean**2):
        raise DataError(
            f"The images run from {float(images.min()):.3g} to {float(images.max()):.3g}, of which the 256 gray levels "
            "of advkit's images keep next to nothing; scale them to fill [0, 1]."
        )
    note = f"the images are floats between the 256 gray levels, and are rounded to them (by up to {off:.2f} of one)"
    return rounded, (note,) if off > BETWEEN else ()


def as_labels(values: Any) -> Tensor:
    """int64 (N,)."""
    if isinstance(values, Sequence):
        values = [plain(value) for value in values]
    labels = dense(values, "labels")
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.ndim != 1 or not whole:
        raise DataError(
            f"The labels are {str(labels.dtype).removeprefix('torch.')} {tuple(labels.shape)}; give whole numbers "
            "(N,), the positions of the classes."
        )
    return labels.to(torch.int64)
