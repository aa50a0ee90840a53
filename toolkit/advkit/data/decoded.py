"""Pictures of any size as images of one size, decoded in threads when they are asked for: none stays in memory.

Evaluation sees of each the middle, as torchvision's `Resize(side * 8 / 7)` and `CenterCrop(side)`; training a part
drawn at random, as its `RandomResizedCrop(side)` and `RandomHorizontalFlip`, with numbers that are addressed. Both are
bilinear and smoothed where they shrink, on the CPU: bit for bit what torchvision makes of the same parts.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import DataError
from ..rng import Draws, derive_key, permutation
from ..torchrun import on_this_machine
from .by_row import ByRow
from .pictures import Files, Pixels, decode

AREA, RATIO = (0.08, 1.0), 4 / 3
"""Of a part drawn at random: its share of the picture, and the most of its width to its height, and the reverse."""

MOST = 1000
"""Pixels of a picture that is resized to have its middle taken, by those of the middle: what narrow ones may take."""

TRIES = 10
SAMPLE = 4096
"""Pictures that stand for all where all would have to be read: in the fingerprint, and for mean and deviation."""


class Decoded(ByRow):
    """(N, 3, side, side) uint8 of the pictures called `names`; `max_pixels` each, which is judged before."""

    files: Files
    names: tuple[str, ...]
    max_pixels: int

    @staticmethod
    def __new__(cls, files: Files, names: tuple[str, ...], side: int, max_pixels: int) -> Decoded:
        made = cls.of_shape(len(names), 3, side, side)
        made.files, made.names, made.max_pixels = files, names, max_pixels
        return made

    def __init__(self, files: Files, names: tuple[str, ...], side: int, max_pixels: int) -> None: ...

    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(self), (self.files, self.names, self.side, self.max_pixels)

    @property
    def side(self) -> int:
        return self.shape[-1]

    def rows(self, places: Tensor) -> Tensor:
        return self._made(places, [partial(middle, side=self.side)] * len(places))

    def drawn(self, places: Tensor, draws: Draws) -> Tensor:
        """Parts of the images at `places` (n,) int64 that `draws` choose, in training."""
        unit = draws.uniform(TRIES, 2, draw=0, dtype=torch.float64).tolist()
        corner = draws.uniform(2, draw=1, dtype=torch.float64).tolist()
        mirrored = draws.integers(2, 1, draw=2).squeeze(1).bool().tolist()
        rows = zip(unit, corner, mirrored, strict=True)
        return self._made(places, [partial(part, self.side, *row) for row in rows])

    def part(self, rows: Tensor | slice) -> Decoded:
        """The pictures at `rows`, none of which is decoded."""
        kept = torch.arange(len(self))[rows].tolist()
        return Decoded(self.files, tuple(self.names[place] for place in kept), self.side, self.max_pixels)

    def sample(self) -> Decoded:
        """At most `SAMPLE` of them, chosen by a fixed seed."""
        return self.part(permutation(derive_key(0, "core", "choice of pictures"), len(self))[:SAMPLE].sort().values)

    def contents(self) -> Iterator[memoryview]:
        """What tells these pictures from others: how many bytes each file has, and those of a sample."""
        files = self.files
        try:
            yield np.array([files.size(name) for name in self.names], "<i8").data
            for name in self.sample().names:
                with files.open(name) as file:
                    yield memoryview(file.read())
        except OSError as error:
            raise DataError(f"{files.root}: a picture can not be read ({error}); replace or remove it.") from None

    def _made(self, places: Tensor, takes: Sequence[Callable[[Image.Image], Pixels]]) -> Tensor:
        images = torch.empty(len(places), 3, self.side, self.side, dtype=torch.uint8)

        def one(row: int, place: int, take: Callable[[Image.Image], Pixels]) -> None:
            pixels = decode(self.files, self.names[place], self.max_pixels, take=take)
            images[row] = torch.from_numpy(pixels).permute(2, 0, 1)

        list(_threads().map(one, range(len(places)), places.tolist(), takes))
        return images


@cache
def _threads() -> ThreadPoolExecutor:
    """As many as the process has cores; Pillow decodes and resizes outside Python's lock."""
    return ThreadPoolExecutor(cores(), "advkit-decode")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)  # a fork, such as a DataLoader's worker, has none of them


def cores() -> int:
    """Cores for this process, those of its machine shared with the others that torchrun has started there."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, there // on_this_machine())


def middle(image: Image.Image, side: int) -> Pixels:
    """The middle of a picture, (side, side, 3)."""
    width, height = image.size
    short = round(side * 8 / 7)
    size = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    if size[0] * size[1] > MOST * side * side:
        raise ValueError(
            f"{width}x{height} is too narrow: with its middle {side} wide it has {size[0]}x{size[1]} pixels"
        )
    left, top = (round((length - side) / 2) for length in size)
    whole = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    return np.array(_cut(whole, (left, top, left + side, top + side)))


def part(
    side: int, unit: Sequence[Sequence[float]], corner: Sequence[float], mirrored: bool, image: Image.Image
) -> Pixels:
    """A part of a picture by numbers from (0, 1), `unit` (TRIES, 2) and `corner` (2,), as (side, side, 3)."""
    box = box_of(*image.size, unit, corner)
    pixels = np.asarray(_cut(image.convert("RGB"), box).resize((side, side), Image.Resampling.BILINEAR))
    return pixels[:, ::-1].copy() if mirrored else pixels.copy()


def _cut(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """A part that lies within a picture; by numpy where Pillow's limit, which crops have too, would speak."""
    left, top, right, bottom = box
    if (right - left) * (bottom - top) <= (Image.MAX_IMAGE_PIXELS or math.inf):
        return image.crop(box)
    return Image.fromarray(np.asarray(image)[top:bottom, left:right])


def box_of(
    width: int, height: int, unit: Sequence[Sequence[float]], corner: Sequence[float]
) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the first part that fits; where none does, of the middle in the nearest shape."""
    low, high = AREA
    for area, shape in unit:
        pixels, ratio = width * height * (low + (high - low) * area), RATIO ** (2 * shape - 1)
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(corner[0] * (width - w + 1)), int(corner[1] * (height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * RATIO)), min(height, round(width * RATIO))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
