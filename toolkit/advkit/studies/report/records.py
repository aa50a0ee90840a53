"""The records that a run's folder holds, as far as the page shows them; what can not be read raises OptionError."""

from __future__ import annotations

import csv
import json
from collections import Counter
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...errors import OptionError

CAP = 16 << 20  # bytes of one file that goes into a page


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Accuracy(_Part):
    """A share of images with its 95 % interval."""

    accuracy: float = Field(ge=0, le=1)
    interval: tuple[float, float]


class AttackRow(Accuracy):
    """One attack of an evaluation."""

    name: str
    norm: str | None = None
    eps: float | None = None
    steps: int | None = None
    step_size: float | None = None
    restarts: int | None = None
    passes: dict[str, float] | None = None
    seconds: float | None = None
    notes: list[str] = []
    column: str | None = None
    """Its column in verdicts.csv; its name in older ones."""


class Check(_Part):
    """One check of an audit."""

    name: str
    figure: Any = None
    threshold: Any = None
    alarm: bool | None = None
    sentence: str = ""


class Evaluation(_Part):
    """RUN/evaluations/NAME/n-N/evaluation.json."""

    dataset: str | None = None
    checkpoint: str | None = None
    weights: str | None = None
    epoch: int | None = None
    selected_on: str | None = None
    split: str
    n: int = Field(ge=1)
    norm: str
    eps: float
    seed: int | None = None
    versions: dict[str, Any] | None = None
    attacks: list[AttackRow]
    worst_case: Accuracy | None = None
    worst_case_by_norm: dict[str, Accuracy] = {}
    suspect: bool | None = None
    audit: list[Check] | None = None

    @property
    def worst(self) -> dict[str, Accuracy]:
        """The worst case over attacks, by norm."""
        return self.worst_case_by_norm or ({self.norm: self.worst_case} if self.worst_case else {})

    @property
    def alarms(self) -> list[str]:
        """Checks of the short audit that raise one; `suspect` is that of loss-gap."""
        raised = [check.name for check in self.audit or () if check.alarm]
        return raised if not self.suspect or "loss-gap" in raised else [*raised, "loss-gap"]

    @property
    def labels(self) -> list[str]:
        """A name for each attack, with the step where two are named alike."""
        names = Counter(row.name for row in self.attacks)
        steps = Counter((row.name, row.step_size) for row in self.attacks)
        return [
            row.name
            if names[row.name] == 1
            else f"{row.name}, step {row.step_size:.4g}"
            if row.step_size is not None and steps[row.name, row.step_size] == 1
            else row.column or row.name
            for row in self.attacks
        ]


class Audit(_Part):
    """RUN/audit.json."""

    checkpoint: str | None = None
    epoch: int | None = None
    split: str | None = None
    n: int | None = None
    norm: str | None = None
    eps: float | None = None
    checks: list[Check]

    @property
    def raised(self) -> list[str]:
        """The checks that raise an alarm."""
        return [check.name for check in self.checks if check.alarm]


P = TypeVar("P", bound=_Part)


def number(value: object) -> float | None:
    """A finite number, or None."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
    return float(value) if good else None  # type: ignore[arg-type]


def content(file: Path) -> bytes:
    """A file of at most `CAP` bytes."""
    try:
        if file.stat().st_size > CAP:
            raise OptionError(f"{file} is larger than {CAP >> 20} MiB and was left out.")
        return file.read_bytes()
    except OSError as error:
        raise OptionError(f"{file} can not be read ({error.strerror}).") from None


def members(file: Path) -> dict[str, Any]:
    """A JSON object."""
    try:
        found = json.loads(content(file))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise OptionError(f"{file} is damaged; make it again.")
    return found


def read(file: Path, kind: type[P]) -> P | str:
    """A record, or a sentence on what is wrong with it."""
    try:
        return kind.model_validate(members(file))
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        return f"{file} is damaged ({where}); make it again."
    except OptionError as error:
        return str(error)


def withstood(file: Path, found: Evaluation) -> dict[str, list[bool]]:
    """verdicts.csv beside an evaluation: by column, which images withstood."""
    try:
        head, *rows = csv.reader(content(file).decode().splitlines())
        columns = dict(zip(head, zip(*rows, strict=True), strict=True))
        robust = {
            name: [{"0": False, "1": True}[cell] for cell in cells]
            for name, cells in columns.items()
            if name not in ("index", "label")
        }
        fits = all(
            len(each) == found.n and abs(sum(each) / found.n - row.accuracy) < 1e-9
            for row in found.attacks
            for each in [robust[row.column or row.name]]
        )
    except (ValueError, KeyError, csv.Error):
        fits = False
    if not fits:
        raise OptionError(f"{file} does not fit its evaluation.json; make both again with --fresh.")
    return robust
