"""Images that plugins add to the training ones, and which of them a run is judged on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..data.repeats import among_extra
from ..storage.run_folder import RunFolder

if TYPE_CHECKING:
    from .loop import Trainer


def added(trainer: Trainer) -> int:
    """How many images plugins have added to the training."""
    return len(trainer.feed.train_set) - len(trainer.splits.train)


def added_in(folder: RunFolder) -> int:
    """The same of a run on disk."""
    count = (folder.environment() or {}).get("added")
    return count if isinstance(count, int) else 0


def seen_in_training(trainer: Trainer) -> list[str]:
    """Sentences on images to test on, and on held-out ones, that plugins have added to the training."""
    if not added(trainer):
        return []
    train, test, grown = trainer.splits.train.images, trainer.splits.test.images, trainer.feed.train_set.images
    where = (
        f"among those that {' and '.join(trainer.resolved.composition.owners('train_dataset'))} adds to the training"
    )
    split = trainer.resolved.validation.split
    return among_extra(grown, train, test, trainer.feed.validation, where, split, first=len(train))
