"""What weights of a run or a file hand on to whoever begins with them: what results of theirs have to say."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..config.resolve import Resolved
from ..data.base import Splits
from ..storage.run_folder import RunFolder
from .feed import parted
from .notes import CHOSEN_ON_TEST, noted
from .parts import judged_by


def inherited(path: Path, notes: Sequence[str], resolved: Resolved, splits: Splits) -> list[str]:
    """Sentences for every result of a run that begins with the weights of a run, or with a file of these `notes`.

    They are what the weights' own results say, and which held-out or test images the weights have seen.
    """
    if os.path.isfile(path):
        seen = (
            f"The images that {path} was trained on are not known here; if held-out or test images were among those, "
            "accuracies on them are optimistic"
        )
    else:
        folder = RunFolder.open(path)
        notes, seen = handed_on(folder), _seen(folder, resolved, splits)
    return [*(f"of {path}, whose weights are the start: {note}" for note in notes), *filter(None, [seen])]


def handed_on(folder: RunFolder) -> list[str]:
    """What results of a run's weights, those that are judged where none are named, have to say."""
    name = judged_by(folder)
    best = folder.load(name)[1]["position"]["best"] or {}
    return [*noted(folder), *([CHOSEN_ON_TEST] if name == "best" and best.get("split") == "test" else [])]


def _seen(folder: RunFolder, resolved: Resolved, splits: Splits) -> str:
    """On images of `splits` that the weights were trained on."""
    path, settings, (_, state) = folder.path, folder.file().settings, folder.load("last")
    if state.get("data") != splits.train.fingerprint():
        return (
            f"The images of {splits.train.name} are not those that {path} was trained on; if held-out or test images "
            "were among those, accuracies on them are optimistic"
        )
    if resolved.validation.split == "test":
        return ""
    run = resolved.run.model_copy(update={"seed": settings.get("run.seed", 0)})
    kept = resolved.validation.model_copy(update={"fraction": settings.get("validation.fraction", 0.0)})
    before = replace(resolved, sections={**resolved.sections, "run": run, "validation": kept})
    held_out = parted(resolved, len(splits.train))[1]
    count = int(torch.isin(held_out, parted(before, len(splits.train))[0]).sum())
    if not count:
        return ""
    return (
        f"{path} was trained with run.seed {run.seed} and validation.fraction {kept.fraction} on {count} of the "
        f"{len(held_out)} images that are held out with {resolved.run.seed} and {resolved.validation.fraction}: "
        "validation is optimistic, and so is the choice of `best`; set both as they were"
    )
