"""What attacks found, and what their verdicts say together: accuracies, the worst case, whether two losses disagree."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Self

import torch
from torch import Tensor

from ..errors import shown
from ..reach import misfit
from .figure import above, gap
from .statistics import bits, wilson

BATCH = 100
"""Images attacked together, and what a killed evaluation may have to do again."""

UNSOUND = "without an attack, the logits of {} of {} images are NaN or Inf; these count as misclassified"

SUSPECT_GAP = 0.08
"""PGD and margin accuracies that are surely further apart than this are a sign of masked gradients."""

FILLED = frozenset(
    ("name", "norm", "eps", "eps_of_images", "accuracy", "interval", "passes", "seconds", "column", "code", "seed")
)
"""Keys of a row that are filled for an attack, whatever it says of itself."""


def _whole(value: object) -> bool:
    return value is None or (type(value) is int and 0 <= value <= sys.maxsize)


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


_READ: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    "steps": ("a whole number", _whole),
    "restarts": ("a whole number", _whole),
    "step_size": ("a number or a text", lambda value: _whole(value) or isinstance(value, float | str)),
    "notes": ("a list of texts", _texts),
}
"""What is read of what an attack says of itself: by key, what it has to be."""


def unfit(settings: Mapping[str, Any]) -> str:
    """What of an attack's settings, JSON values, can not be read as a row's is, and what it must be; "" of others."""
    return next(
        (
            f"{key} = {shown(settings[key])}, which must be {kind}"
            for key, (kind, fits) in _READ.items()
            if key in settings and not fits(settings[key])
        ),
        "",
    )


@dataclass
class Verdicts:
    """What one attack found: `robust` (n,) bool on the CPU, and what it cost, passes counted in images."""

    settings: dict[str, Any]
    """Name, norm, eps and whatever else tells this attack from others; JSON values."""
    robust: Tensor
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    access: str = "gradient"
    """What the attack was shown: the gradient, the scores alone, or another net ("transfer")."""
    unsound: int = 0
    """How many images have logits of NaN or Inf as they are; they count as misclassified."""

    def as_dict(self) -> dict[str, Any]:
        """JSON values, for `of_dict`."""
        return {name: value for name, value in vars(self).items() if name != "robust"} | {"robust": bits(self.robust)}

    @classmethod
    def of_dict(cls, record: Mapping[str, Any]) -> Self:
        """From what `as_dict` gave; ValueError where it is something else."""
        settings, robust, notes = (record.get(name) for name in ("settings", "robust", "notes"))
        costs = [record.get(name) for name in ("forwards", "backwards", "seconds")]
        good = (
            isinstance(settings, dict)
            and all(isinstance(settings.get(name), str) for name in ("name", "norm"))
            and not unfit(settings)
            and isinstance(robust, str)
            and set(robust) <= {"0", "1"}
            and all(isinstance(cost, (int, float)) and isfinite(cost) and cost >= 0 for cost in costs)
            and isinstance(notes, list)
            and all(isinstance(note, str) for note in notes)
            and isinstance(record.get("access"), str)
            and isinstance(record.get("unsound", 0), int)
        )
        if not good:
            raise ValueError("these are no verdicts")
        return cls(**{**record, "robust": torch.tensor([bit == "1" for bit in robust or ""], dtype=torch.bool)})

    @property
    def key(self) -> str:
        """Equal for equal attacks."""
        return json.dumps(self.settings, sort_keys=True)

    def append(self, other: Verdicts) -> None:
        """Take the next images in."""
        self.robust = torch.cat([self.robust, other.robust])
        self.forwards += other.forwards
        self.backwards += other.backwards
        self.seconds += other.seconds
        self.unsound += other.unsound
        self.notes += [note for note in other.notes if note not in self.notes]


def _accuracy(robust: Tensor) -> dict[str, Any]:
    correct, n = int(robust.sum()), len(robust)
    return {"accuracy": correct / n, "interval": wilson(correct, n)}


def summary(verdicts: Sequence[Verdicts], norm: str) -> dict[str, Any]:
    """Accuracies with intervals and costs, the worst case per sample, and whether PGD and margin disagree.

    `worst_case` is over the attacks in `norm`, the evaluation's; None where there were none.
    """
    rows: list[dict[str, Any]] = []
    for one in verdicts:
        n = len(one.robust)
        row = {key: value for key, value in one.settings.items() if key != "eps_of_images"} | _accuracy(one.robust)
        row["passes"] = {"forward": one.forwards / n, "input_backward": one.backwards / n}
        broken = [UNSOUND.format(one.unsound, n)] if one.unsound else []
        notes = [*broken, *one.settings.get("notes", ()), *one.notes, *filter(None, [_short(one)])]
        row |= {"seconds": one.seconds} | ({"notes": notes} if notes else {})
        rows.append(row)
    by_norm = {name: _accuracy(kept) for name, kept in worst_cases(verdicts).items()}
    pair = widest_gap(verdicts)
    return {
        "attacks": rows,
        "worst_case": by_norm.get(norm),
        **({"worst_case_by_norm": by_norm} if set(by_norm) - {norm} else {}),
        "suspect": None if pair is None else above(gap(*pair, len(pair[0])), SUSPECT_GAP),
    }


def worst_cases(verdicts: Iterable[Verdicts]) -> dict[str, Tensor]:
    """By norm, (n,) bool: the images that withstand every attack in it, and are classified correctly as they are."""
    verdicts = list(verdicts)
    clean = [one.robust for one in verdicts if one.settings["name"] == "clean"]
    worst: dict[str, Tensor] = {}
    for one in verdicts:
        if one.settings["name"] != "clean":
            own = one.settings["norm"]
            worst[own] = worst[own] & one.robust if own in worst else torch.stack([one.robust, *clean]).all(0)
    return worst


def widest_gap(rows: Iterable[Verdicts]) -> tuple[Tensor, Tensor] | None:
    """Who withstands cross-entropy and who the margin, of the two like attacks that differ most; None without any.

    They are alike where all but the loss is equal, and where their steps reach the edge of the ball.
    """
    pairs: dict[str, dict[str, Tensor]] = {}
    for one in rows:
        settings = one.settings
        if settings.get("loss") in ("cross-entropy", "margin") and "code" not in settings and reach(one) >= 1:
            alike = json.dumps({key: settings[key] for key in settings if key not in ("name", "loss")}, sort_keys=True)
            pairs.setdefault(alike, {})[settings["loss"]] = one.robust
    both = [(pair["cross-entropy"], pair["margin"]) for pair in pairs.values() if len(pair) == 2]
    return max(both, key=lambda pair: abs(int(pair[0].sum()) - int(pair[1].sum())), default=None)


def _short(verdicts: Verdicts) -> str:
    """A note where the attack's steps end before the edge of the ball; "" where they reach it."""
    if not (far := reach(verdicts)):
        return ""
    steps, restarts = verdicts.settings["steps"], verdicts.settings.get("restarts", 1)
    return misfit(steps, far / steps, "step", "the image" if restarts == 1 else "the start")


def reach(verdicts: Verdicts) -> float:
    """How far an attack can walk, in eps: steps times step size; 0 for what takes no steps."""
    steps, size, eps = (verdicts.settings.get(key) for key in ("steps", "step_size", "eps"))
    if not steps or size is None:
        return 0.0
    if isinstance(size, str):  # "0.2 eps", where eps differs by image
        pace = re.fullmatch(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?) eps", size)
        return 0.0 if pace is None else steps * float(pace[1])
    return steps * size / eps if eps else 0.0
