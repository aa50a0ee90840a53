"""What weights of a run or a file hand on to whoever begins with them: what results of theirs have to say."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import ConfigDict, Field, ValidationError
from torch import Tensor

from ..config.resolve import Resolved
from ..data.base import Splits
from ..data.repeats import optimistic
from ..options import OptionModel
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
        notes, seen = handed_on(folder), [_seen(path, resolved, splits)]
        if _before(folder) is None:
            seen.append(f"The images that weights before those of {path} were trained on are not known here; {AMONG}")
        if count := added_in(folder):  # of runs before it, its own notes say so
            seen.append(f"{path} was also trained on {count:,} images that plugins added; {AMONG}")
    return [*(f"of {path}, whose weights are the start: {note}" for note in notes), *filter(None, seen)]


def handed_on(folder: RunFolder) -> list[str]:
    """What results of a run's weights, those that are judged where none are named, have to say."""
    name = judged_by(folder)
    best = folder.load(name)[1]["position"]["best"] or {}
    chosen = [CHOSEN_ON_TEST] if name == "best" and best.get("split") == "test" else []
    return [*noted(folder), *chosen, *folder.doubts()]


class Ancestor(OptionModel):
    """What tells the images of a data set that a run was trained on."""

    model_config = ConfigDict(extra="ignore")

    data: str
    """Fingerprint of the training split."""
    seed: int = Field(ge=0, lt=2**63)
    fraction: float = Field(ge=0, lt=1)

    def trained_on(self, resolved: Resolved, samples: int) -> Tensor:
        """Positions of them in the training split."""
        run = resolved.run.model_copy(update={"seed": self.seed})
        validation = resolved.validation.model_copy(update={"fraction": self.fraction})
        then = replace(resolved, sections={**resolved.sections, "run": run, "validation": validation})
        return parted(then, samples)[0]


def ancestors(path: Path) -> list[Ancestor]:
    """Of a run, itself and those that it began with, the nearest first, as far as they are known; none of a file."""
    if os.path.isfile(path):
        return []
    folder = RunFolder.open(path)
    settings, known = folder.file().settings, folder.known()
    own = {"seed": settings.get("run.seed", 0), "fraction": settings.get("validation.fraction", 0.0)}
    with suppress(ValidationError):
        return [Ancestor.model_validate({"data": known and known.data, **own}), *(_before(folder) or ())]
    return []


def _before(folder: RunFolder) -> list[Ancestor] | None:
    """The runs that a run began with; None where nobody knows.

    environment.json of each run has all of them, for those before it may be moved, or gone.
    """
    then = folder.environment()
    told = [] if then is not None and not folder.init_from() else (then or {}).get("ancestors")
    with suppress(ValidationError):
        return [Ancestor.model_validate(run) for run in told] if isinstance(told, list) else None
    return None


def _seen(path: Path, resolved: Resolved, splits: Splits) -> str:
    """On images of `splits` that the weights were trained on, by this run or by those whose weights it began with."""
    runs, others = ancestors(path), splits.train.fingerprint()
    if not runs or runs[0].data != others:
        return f"The images of {splits.train.name} are not those that {path} was trained on; {AMONG}"
    held_out, known, counts = parted(resolved, len(splits.train))[1], torch.zeros(len(splits.train)), list[int]()
    for run in runs:
        if run.data == others:
            known[run.trained_on(resolved, len(known))] = 1
        counts.append(int(known[held_out].sum()))
    if not (count := counts[-1]):
        return ""
    then = f" with run.seed {runs[0].seed} and validation.fraction {runs[0].fraction}"
    who = f"{path} was trained{then}" if count == counts[0] else f"{path} and the runs that it began with were trained"
    so = optimistic(resolved.validation.split)
    if resolved.validation.split == "validation":
        so += "; set both as they were"
    return (
        f"{who} on {count} of the {len(held_out)} images that are held out with {resolved.run.seed} and "
        f"{resolved.validation.fraction}: {so}"
    )
