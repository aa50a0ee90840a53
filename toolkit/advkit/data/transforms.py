"""Transforms of training images: vectorised, on the images' device, random by sample id and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..rng import Draws

PADDING = 4


def to_float(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 images as `dtype` in [0, 1]; the memory format is kept."""
    # Not by a Python number: CUDA would multiply with its rounded reciprocal, and differ from the CPU.
    return images.to(dtype) / torch.full((), 255, dtype=dtype, device=images.device)


def identity(x: Tensor, draws: Draws) -> Tensor:
    """The images as they are."""
    return x


def crop_flip(x: Tensor, draws: Draws) -> Tensor:
    """Pad x (B, C, H, W) by 4 zeros a side, crop it back at random, mirror it with probability 1/2."""
    batch, channels, height, width = x.shape
    corner = draws.integers(2 * PADDING + 1, 2, draw=0).to(x.device)
    mirrored = draws.integers(2, 1, draw=1).to(x.device).bool()

    def along(size: int) -> Tensor:
        return torch.arange(size, device=x.device)

    rows = corner[:, :1] + along(height)
    columns = corner[:, 1:] + torch.where(mirrored, along(width).flip(0), along(width))
    padded = torch.nn.functional.pad(x, (PADDING,) * 4)
    cropped = padded[
        along(batch)[:, None, None, None],
        along(channels)[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
    return torch.empty_like(x).copy_(cropped)  # channels_last stays so


WHEN_DECODED = "resized-crop-flip"
"""Done on whole pictures, when they are decoded (`decoded.py`)."""

TRANSFORMS: dict[str, Callable[[Tensor, Draws], Tensor]] = {
    "none": identity,
    "crop-flip": crop_flip,
    WHEN_DECODED: identity,
}
"""By name: from images (B, C, H, W) in [0, 1] and the samples' draws to images of the same shape."""
