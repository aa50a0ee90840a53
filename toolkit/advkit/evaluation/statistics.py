"""Accuracies of paired runs, and their differences, with two kinds of 95 % interval that answer different questions.

Over seeds: would another training say the same? Student's t of the paired differences, from two seeds on. Over images:
would other test images say the same, of these very nets? Wilson for an accuracy, Bonett and Price (2012) for a paired
difference. What a run got right is a text of 0 and 1, a character an image.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from math import sqrt
from typing import Any

from torch import Tensor

Z = 1.959963984540054


def bits(robust: Tensor) -> str:
    """A text of 0 and 1, a character an image, of (n,) bool."""
    return "".join("01"[int(one)] for one in robust.tolist())


def share(bits: str) -> float:
    """How many of a text of 0 and 1 are 1."""
    return bits.count("1") / len(bits)


def accuracy(bits: Sequence[str]) -> dict[str, Any]:
    """Of one arm under one attack, from a text of 0 and 1 a seed: mean, by seed, and Wilson's interval of the mean.

    The seeds share their images, so n is the number of images, not of answers.
    """
    shares, n = [share(one) for one in bits], len(bits[0])
    mean = statistics.fmean(shares)
    return {"mean": mean, "seeds": shares, "interval": wilson(mean * n, n)}


def difference(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """One arm minus another, from pairs of texts, a pair a seed: mean, by seed, and both intervals."""
    seeds = [share(one) - share(other) for one, other in pairs]
    n = len(pairs[0][0])
    by_image = [sum(int(one[i]) - int(other[i]) for one, other in pairs) / len(pairs) for i in range(n)]
    return {
        "mean": statistics.fmean(seeds),
        "seeds": seeds,
        "seed_interval": seed_interval(seeds),
        "image_interval": image_interval(by_image),
    }


def seed_interval(values: Sequence[float]) -> list[float] | None:
    """95 % interval of a mean in [-1, 1] by Student's t; None for one value."""
    if len(values) < 2:
        return None
    half = student(len(values) - 1) * statistics.stdev(values) / sqrt(len(values))
    return [max(-1.0, statistics.fmean(values) - half), min(1.0, statistics.fmean(values) + half)]


def image_interval(differences: Sequence[float]) -> list[float]:
    """95 % interval of a mean paired difference in [-1, 1] over images.

    Bonett and Price 2012: one image more for each side, so that nets that agree on all images get no empty interval.
    """
    values = [*differences, 1.0, -1.0]
    mean = statistics.fmean(values)
    half = Z * sqrt(statistics.pvariance(values) / len(values))
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


def wilson(correct: float, n: int) -> list[float]:
    """95 % score interval of a share (Wilson 1927)."""
    share, spread = correct / n, Z * Z / n
    centre = (share + spread / 2) / (1 + spread)
    half = Z * sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    # At the ends the difference is 0, and what rounding leaves of it is no share of images.
    return [max(0.0, centre - half) if correct > 0 else 0.0, min(1.0, centre + half) if correct < n else 1.0]
