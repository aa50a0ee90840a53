"""What weights of a run or a file hand on to whoever begins with them: what results of theirs have to say."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from ..config.resolve import Resolved
from ..data.base import Splits
from ..data.repeats import optimistic
from ..errors import AdvkitError
from ..storage.run_folder import RunFolder
from .added import added_in
from .feed import parted
from .notes import CHOSEN_ON_TEST, noted
from .parts import judged_by

AMONG = "if held-out or test images were among those, accuracies on them are optimistic"


def inherited(path: Path, notes: Sequence[str], resolved: Resolved, splits: Splits) -> list[str]:
    """Sentences for every result of a run that begins with the weights of a run, or with a file of these `notes`.

    They are what the weights' own results say, and which held-out or test images the weights have seen.
    """
    if os.path.isfile(path):
        seen = [f"The images that {path} was trained on are not known here; {AMONG}"]
    else:
        folder = RunFolder.open(path)
        notes, seen = handed_on(folder), [_seen(folder, resolved, splits)]
        if count := added_in(folder):  # of runs before it, its own notes say so
            seen.append(f"{path} was also trained on {count:,} images that plugins added; {AMONG}")
    return [*(f"of {path}, whose weights are the start: {note}" for note in notes), *filter(None, seen)]


def handed_on(folder: RunFolder) -> list[str]:
    """What results of a run's weights, those that are judged where none are named, have to say."""
    name = judged_by(folder)
    best = folder.load(name)[1]["position"]["best"] or {}
    chosen = [CHOSEN_ON_TEST] if name == "best" and best.get("split") == "test" else []
    return [*noted(folder), *chosen, *folder.doubts()]


def _seen(folder: RunFolder, resolved: Resolved, splits: Splits) -> str:
    """On images of `splits` that the weights were trained on, by this run or by those whose weights it began with."""
    path, others = folder.path, splits.train.fingerprint()
    if folder.load("last")[1].get("data") != others:
        return f"The images of {splits.train.name} are not those that {path} was trained on; {AMONG}"
    held_out, known, by_itself = parted(resolved, len(splits.train))[1], torch.zeros(len(splits.train)), 0
    before: Resolved | None = None
    for run in _lineage(folder):
        settings, (_, state) = run.file().settings, run.load("last")
        if state.get("data") != others:
            continue
        seed = resolved.run.model_copy(update={"seed": settings.get("run.seed", 0)})
        kept = resolved.validation.model_copy(update={"fraction": settings.get("validation.fraction", 0.0)})
        there = replace(resolved, sections={**resolved.sections, "run": seed, "validation": kept})
        known[parted(there, len(splits.train))[0]] = 1
        if before is None:
            before, by_itself = there, int(known[held_out].sum())
    count = int(known[held_out].sum())
    if not count or before is None:
        return ""
    then = f" with run.seed {before.run.seed} and validation.fraction {before.validation.fraction}"
    who = f"{path} was trained{then}" if count == by_itself else f"{path} and the runs that it began with were trained"
    so = optimistic(resolved.validation.split)
    if resolved.validation.split == "validation":
        so += "; set both as they were"
    return (
        f"{who} on {count} of the {len(held_out)} images that are held out with {resolved.run.seed} and "
        f"{resolved.validation.fraction}: {so}"
    )


def _lineage(folder: RunFolder) -> Iterator[RunFolder]:
    """The run, and those whose weights it began with, as far as they are there."""
    seen: set[str] = set()
    run: RunFolder | None = folder
    while run is not None and (place := os.path.realpath(run.path)) not in seen:
        yield run
        seen.add(place)
        start, run = run.init_from(), None
        if start and os.path.isdir(start):
            with suppress(AdvkitError):
                run = RunFolder.open(Path(start))
                run.file(), run.load("last")
