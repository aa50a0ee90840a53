"""What is written about several runs side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..evaluation.audit.checks import Check, hopeless
from .records import Accuracy, Record


class Difference(Record):
    """A mean difference, paired by image, with its 95 % interval over images."""

    difference: float
    interval: tuple[float, float]


class ComparedAccuracy(Accuracy):
    """With the difference to the same checkpoint of the first run."""

    to_first: Difference | None = None


class ComparedAttack(ComparedAccuracy):
    """One attack on one checkpoint of one run."""

    name: str
    norm: str | None = None
    eps: float | None = None


class ComparedRun(Record):
    """One checkpoint of one run."""

    run: str
    checkpoint: str
    weights: str | None = None
    """"raw" or "averaged"."""
    epoch: int | None
    selected_on: str | None = None
    """The split that chose the checkpoint."""
    suspect: bool | None
    audit: list[Check]
    alarms: list[str]
    notes: list[str] = []
    attacks: list[ComparedAttack]
    worst_case: ComparedAccuracy | None

    @property
    def hopeless(self) -> str | None:
        """Why the short audit attacked nothing."""
        return hopeless(self.audit)


class AttackDifference(Difference):
    """Best minus last under one attack."""

    name: str


class Overfitting(Record):
    """Best minus last of one run."""

    run: str
    attacks: list[AttackDifference]
    worst_case: Difference | None


class Comparison(Record):
    """Runs on the same images, best and last."""

    split: str
    n: int
    images: str
    norm: str
    eps: float
    seed: int
    versions: dict[str, Any]
    runs: list[ComparedRun]
    best_minus_last: list[Overfitting]

    def rows(self) -> Iterator[ComparedRun]:
        """What there is to show: a run whose `best` is its `last`, figure for figure, once, as "best = last"."""
        for best, last in zip(self.runs[::2], self.runs[1::2], strict=True):
            own = {key: best[key] for key in ("checkpoint", "selected_on", "notes") if key in best}
            if last.model_copy(update=own) == best and best.epoch is not None:
                yield best.model_copy(update={"checkpoint": f"{best.checkpoint} = {last.checkpoint}"})
            else:
                yield from (best, last)


class SeedAccuracy(Record):
    """Accuracy of an arm, over seeds."""

    mean: float
    seeds: list[float]
    interval: tuple[float, float]


class SeedDifference(Record):
    """An arm minus the first one, paired by seed and by image."""

    mean: float
    seeds: list[float]
    seed_interval: tuple[float, float] | None
    image_interval: tuple[float, float]


class AblationRow(Record):
    """One arm of an ablation or a sweep: a set of plugins, or of values; table.json is a list of them."""

    arm: str
    plugins: list[str]
    refused: str | None
    declined: list[str] = []
    seeds: list[int] = []
    suspect: list[int] = []
    """Seeds at which the short audit raised an alarm."""
    averaged: list[int] = []
    """Seeds at which averaged weights were judged; raw ones at the others."""
    notes: list[str] = []
    """What the evaluations say of their runs, such as that the test split chose the checkpoint."""
    failed: dict[str, str] = {}
    """By seed, where its run ended in NaN or Inf, and what to do; the row has no figures then."""
    changed: dict[str, tuple[Any, Any]] = {}
    accuracy: dict[str, SeedAccuracy] = {}
    difference: dict[str, SeedDifference] = {}
    worst_case: SeedAccuracy | None = None
    """Which images withstand every attack."""
