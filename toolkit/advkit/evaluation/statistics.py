"""Accuracies of paired runs, and their differences, with two kinds of 95 % interval that answer different questions.

Over seeds: would another training say the same of these images? Student's t of the paired differences, from two seeds
on. Over images: would other images say the same, of these very nets? Wilson for an accuracy, Bonett and Price (2012)
for a paired difference; an image that several seeds' nets answered is one. What a run got right is a text of 0 and 1, a
character an image.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from math import fsum, sqrt
from typing import Any

from torch import Tensor

Z = 1.959963984540054


def bits(robust: Tensor) -> str:
    """A text of 0 and 1, a character an image, of (n,) bool."""
    return "".join("01"[int(one)] for one in robust.tolist())


def share(bits: str) -> float:
    """How many of a text of 0 and 1 are 1."""
    return bits.count("1") / len(bits)


def accuracy(bits: Sequence[str], images: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Of one arm under one attack, from a text of 0 and 1 a seed: mean, by seed, and Wilson's interval of the mean.

    `images` has the places of each seed's images in their split.
    """
    shares, n = [share(one) for one in bits], effective(images)
    mean = statistics.fmean(shares)
    return {"mean": mean, "seeds": shares, "interval": wilson(mean * n, n)}


def effective(images: Sequence[Sequence[int]]) -> float:
    """How many images the answers of several seeds are worth (Kish 1965): (sum m)^2 / sum m^2, of m seeds an image.

    That is n where all seeds have the same n images, and as many as there are where no two share one.
    """
    # Answers of several seeds' nets on one image are taken as one: nets of one method mostly fail on the same images.
    # How alike they are is not known beforehand; where they differ, the interval is too wide, never too narrow.
    counts = Counter(chain.from_iterable(images)).values()
    return sum(counts) ** 2 / sum(m * m for m in counts)


def difference(pairs: Sequence[tuple[str, str]], images: Sequence[Sequence[int]]) -> dict[str, Any]:
    """One arm minus another, from pairs of texts, a pair a seed: mean, by seed, and both intervals; `images` as above.

    Both arms have the same images at a seed; other seeds may have others, of which some are the same again.
    """
    seeds = [share(one) - share(other) for one, other in pairs]
    sums: Counter[int] = Counter()
    for (one, other), places in zip(pairs, images, strict=True):
        for here, there, place in zip(one, other, places, strict=True):
            sums[place] += int(here) - int(there)
    counts = Counter(chain.from_iterable(images))
    return {
        "mean": statistics.fmean(seeds),
        "seeds": seeds,
        "seed_interval": seed_interval(seeds),
        "image_interval": image_interval(list(sums.values()), [counts[place] for place in sums]),
    }


def seed_interval(values: Sequence[float]) -> list[float] | None:
    """95 % interval of a mean in [-1, 1] by Student's t; None for one value.

    It holds given the images: seeds that hold out images of one split draw them as they draw their weights, but on
    other splits the mean varies more than that (Nadeau and Bengio 2003).
    """
    if len(values) < 2:
        return None
    half = student(len(values) - 1) * statistics.stdev(values) / sqrt(len(values))
    return [max(-1.0, statistics.fmean(values) - half), min(1.0, statistics.fmean(values) + half)]


def image_interval(sums: Sequence[float], counts: Sequence[int] | None = None) -> list[float]:
    """95 % interval of a mean paired difference in [-1, 1] over images: of `sums`, each of `counts` differences or one.

    Bonett and Price 2012: one image more for each side, so that nets that agree on all images get no empty interval. Of
    several differences an image, images are clusters and the mean is a ratio, sum y / sum m, whose variance is
    sum (y - m mean)^2 / (sum m)^2 (Cochran 1977, 6.3); the two images more have sum m^2 / sum m differences each.
    """
    counts = counts or [1] * len(sums)
    typical = sum(m * m for m in counts) / sum(counts)
    values = [*(y / typical for y in sums), 1.0, -1.0]
    sizes = [*(m / typical for m in counts), 1.0, 1.0]
    mean = fsum(values) / fsum(sizes)
    half = Z * sqrt(fsum((y - m * mean) ** 2 for y, m in zip(values, sizes, strict=True))) / fsum(sizes)
    return [max(-1.0, mean - half), min(1.0, mean + half)]


def student(df: int) -> float:
    """The 97.5 % quantile of Student's t, to three decimals: tables to 10, then Cornish and Fisher's expansion."""
    table = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
    if df <= len(table):
        return table[df - 1]
    return Z + (Z**3 + Z) / (4 * df) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * df**2)


def guessing(right: Tensor, labels: Tensor) -> tuple[float, float] | None:
    """(mean accuracy by class, what guessing gets up to) where answers are no better than guessing by 95 %, else None.

    `right` (n,) bool on images with `labels` (n,). Whoever does not look at the images, and always says the largest
    class, say, has accuracies by class that sum to 1 at most. Images of one class tell nothing.
    """
    right, labels = right.cpu(), labels.cpu()
    counts = labels.bincount().double()
    present = counts > 0
    classes, counts = int(present.sum()), counts[present]
    if classes < 2:
        return None
    accuracies = labels[right].bincount(minlength=len(present))[present] / counts
    answered = accuracies / accuracies.sum().clamp(min=1)
    most = 1 + Z * (answered * (1 - answered) / counts).sum().sqrt()
    return None if accuracies.sum() > most else (float(accuracies.mean()), float(most) / classes)


def worse_than_guessing(right: Tensor, labels: Tensor, outputs: int) -> bool:
    """Whether the mean accuracy by class is below that of any guessing by 95 %: `right` (n,) bool of `labels` (n,).

    Guessing gets 1 / `outputs`, if all of these classes are among the labels.
    """
    labels, right = labels.cpu(), right.cpu()
    counts = labels.bincount(minlength=outputs).double()
    if len(counts) != outputs or bool((counts == 0).any()):
        return False
    accuracies = labels[right].bincount(minlength=outputs) / counts
    # The largest variance of the sum for any shares of the answers.
    return bool(accuracies.sum() < 1 - Z * ((1 - 1 / outputs) / counts.min()).sqrt())


def wilson(correct: float, n: float) -> list[float]:
    """95 % score interval of a share (Wilson 1927)."""
    share, spread = correct / n, Z * Z / n
    centre = (share + spread / 2) / (1 + spread)
    half = Z * sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    # At the ends the difference is 0, and what rounding leaves of it is no share of images.
    return [max(0.0, centre - half) if correct > 0 else 0.0, min(1.0, centre + half) if correct < n else 1.0]
