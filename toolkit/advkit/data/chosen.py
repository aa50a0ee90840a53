"""Which images a limit or a number takes of a split, and what tables say of them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..rng import Draws, derive_key

CHOICE = 0
"""The seed that images are chosen by, whatever else is seeded: every net is judged on the same."""


def shuffled(index: Tensor) -> Tensor:
    """The positions of images whose places in their split are `index` (N,), in random order; no run's seed enters."""
    turn = Draws(derive_key(CHOICE, "core", "choice of images"), index).bits(1).squeeze(1)
    return turn.argsort(stable=True)


def choice(n: int, whole: int) -> str:
    """What `n` images of a set of `whole` are, for tables: "200 of 360 images, chosen at random, seed 0"."""
    return f"all {n} images" if n == whole else f"{n} of {whole} images, chosen at random, seed {CHOICE}"


def population(whole: int, limit: int, by_class: Tensor | None) -> str:
    """What images of a split of `whole` are, beside all of them: ", of data.limit=60, balanced over classes".

    `by_class` (K,) is how many there are of each class, where the limit took the classes in turn.
    """
    if not limit or whole < limit:
        return ""
    if by_class is None:
        return f", of data.limit={limit}, chosen at random, seed {CHOICE}"
    few, many = int(by_class.min()), int(by_class.max())
    even = "balanced over classes" if many - few <= 1 else f"class by class, {few} to {many} of each"
    return f", of data.limit={limit}, {even}"


def balanced(labels: Tensor) -> Tensor:
    """Positions of labels (N,), one of each class in turn, within a class in the given order.

    Any prefix of the result is as class-balanced as it can be.
    """
    counts = torch.bincount(labels)
    grouped = labels.argsort(stable=True)
    turn = torch.empty_like(labels)  # how many of its class come before
    turn[grouped] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[grouped]]
    return (turn * len(counts) + labels).argsort()
