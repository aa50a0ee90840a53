"""Images that plugins add to the training ones, and which of them a run is judged on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..data.repeats import among_extra

if TYPE_CHECKING:
    from .loop import Trainer


def seen_in_training(trainer: Trainer) -> list[str]:
    """Sentences on images to test on, and on held-out ones that choose, that plugins have added to the training."""
    train, test, grown = trainer.splits.train.images, trainer.splits.test.images, trainer.feed.train_set.images
    if len(grown) == len(train):
        return []
    held_out = trainer.feed.validation[: None if trainer.selecting_split() == "validation" else 0]
    whose = " and ".join(trainer.resolved.composition.owners("train_dataset"))
    return among_extra(grown, train, test, held_out, f"among those that {whose} adds to the training", first=len(train))
