"""What a run's folder holds, read with care: a run that is damaged is refused, a part that is gets a sentence."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..config import RunFile
from ..errors import AdvkitError, CheckpointError, OptionError
from ..folder import RunFolder
from ..resolve import MODEL, Layer, Resolved, resolve
from ..runs import resolve_folder

CAP = 16 << 20  # bytes of one file that goes into a page
LARGE = 256 << 10  # bytes; of a vector picture beyond it the pixels are taken
PICTURES = {"svg": "image/svg+xml", "png": "image/png"}


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
    n: int
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


class Audit(_Part):
    """RUN/audit.json."""

    checkpoint: str | None = None
    split: str | None = None
    n: int | None = None
    norm: str | None = None
    eps: float | None = None
    checks: list[Check]
    alarms: list[str] = []


P = TypeVar("P", bound=_Part)


@dataclass(frozen=True)
class Analysis:
    """RUN/analysis/NAME.json with its picture, a data URI; whatever could not be read is a sentence in `problems`."""

    name: str
    figures: dict[str, Any]
    picture: tuple[str, bytes] | None
    """Media type and content."""
    problems: tuple[str, ...]


class Source:
    """One run. Raises CheckpointError where run.toml or metrics.jsonl is absent or damaged."""

    def __init__(self, number: int, path: str) -> None:
        self.number, self.path = number, path
        self.folder = RunFolder.open(Path(path))
        self.file: RunFile = self.folder.file()
        self.history = self.folder.history()
        if not all(isinstance(row, dict) and isinstance(row.get("epoch"), int) for row in self.history):
            raise CheckpointError(f"{self.folder.metrics} is damaged; restore it, or remove it to go on without.")
        self.fingerprint: str | None = None
        """Of its training images; known once its checkpoint has been read."""
        self.unresolved = ""
        try:
            self.resolved: Resolved | None = resolve_folder(self.folder)
        except AdvkitError as error:  # a plugin that is not installed here, say: the figures can be shown all the same
            self.resolved, self.unresolved = None, str(error)

    @property
    def key(self) -> str:
        """Starts the ids of its sections."""
        return f"run-{self.number}"

    @property
    def name(self) -> str:
        return self.folder.path.absolute().name or self.path

    @property
    def title(self) -> str:
        return f"{self.number} {self.name}"

    def command(self, *words: str, after: Sequence[str] = ()) -> str:
        """A command line on this run, to be copied into a shell."""
        return shlex.join(["advkit", *words, self.path, *after])

    @cached_property
    def values(self) -> dict[str, object]:
        """Every setting and option, {"attack.eps": 0.15, "cat-eps.eta": 0.0239}."""
        if self.resolved is not None:
            return self.resolved.values()
        layer = self.file.layer
        options = {f"{name}.{key}": value for name, each in layer.options.items() for key, value in each.items()}
        return {**layer.settings, **options}

    @cached_property
    def origins(self) -> dict[str, str]:
        """Where each value came from, as far as the folder tells: run.toml is complete, so this is worked out.

        A value that the plugins, the data set or the defaults give anyway is theirs; any other was given.
        """
        if self.resolved is None:
            return {}
        values, chosen, declined = self.values, self.resolved.chosen, self.resolved.no_companion
        named = {key: values[key] for key in ("data.name", "data.root", "model.name")}
        # What other defaults are fractions of.
        scales = ("attack.eps", "run.epochs", "optimizer.schedule", "optimizer.milestones")
        try:
            bare = resolve(chosen, [Layer("given", named)], no_companion=declined)
            scaled = {**named, **{key: values[key] for key in scales}}
            guesses = [bare, resolve(chosen, [Layer("given", scaled)], no_companion=declined)]
        except AdvkitError:
            return {}
        found: dict[str, str] = {}
        for key, value in values.items():
            same = (guess for guess in guesses if key in guess.values() and guess.values()[key] == value)
            origin = next((guess.origins.get(key, "default") for guess in same), "given")
            defaults = {"data.name": "digits", "data.root": "", "model.name": MODEL}
            found[key] = "default" if origin == "given" and defaults.get(key) == value else origin
        if found["run.threads"] == "given":
            found["run.threads"] = "given, or this machine's"
        return found

    @cached_property
    def environment(self) -> dict[str, Any] | str:
        """environment.json, or a sentence."""
        try:
            return _object(self.folder.path / "environment.json")
        except OptionError as error:
            return str(error)

    @cached_property
    def evaluations(self) -> dict[str, Evaluation | str]:
        """By name; a damaged one is a sentence."""
        files = sorted(self.folder.path.glob("evaluations/*/*/evaluation.json"))
        return {f"{file.parent.parent.name}, {file.parent.name}": _read(file, Evaluation) for file in files}

    @cached_property
    def audit(self) -> Audit | str | None:
        """None where there is none; a sentence where it is damaged."""
        file = self.folder.path / "audit.json"
        return _read(file, Audit) if file.exists() else None

    @cached_property
    def analyses(self) -> list[Analysis]:
        """By name, the vector picture where there are two."""
        found = {file.stem for kind in ("json", "svg", "png") for file in self.folder.path.glob(f"analysis/*.{kind}")}
        return [_analysis(self.folder.path / "analysis", name) for name in sorted(found)]

    def curve(self, kind: str) -> list[tuple[float, float]]:
        """(epoch from 1, value) of `loss`, `train_adversarial_accuracy`, ... or `validation KIND`, where known."""
        points = ((row["epoch"] + 1, number(_cell(row, kind))) for row in self.history)
        return [(float(epoch), value) for epoch, value in points if value is not None]

    def validated(self, kind: str) -> str | None:
        """The name of validation's attack of a kind: "pgd" is "pgd-10"."""
        names = (name for row in self.history for name in _named(row.get("validation"), kind))
        return next(names, None)

    @property
    def best(self) -> dict[str, Any] | None:
        """The line of the best epoch: the last that was best so far."""
        return next((row for row in reversed(self.history) if row.get("best")), None)


def _cell(row: dict[str, Any], kind: str) -> object:
    first, _, rest = kind.partition(" ")
    named = _named(row.get(first), rest)
    return row.get(kind) if not rest else row[first][named[0]] if named else None


def _named(validation: object, kind: str) -> list[str]:
    keys = validation if isinstance(validation, dict) else {}
    return [key for key in keys if key == kind or key.startswith(f"{kind}-")]


def number(value: object) -> float | None:
    """A finite number, or None."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
    return float(value) if good else None  # type: ignore[arg-type]


def _bytes(file: Path) -> bytes:
    try:
        if file.stat().st_size > CAP:
            raise OptionError(f"{file} is larger than {CAP >> 20} MiB and was left out.")
        return file.read_bytes()
    except OSError as error:
        raise OptionError(f"{file} can not be read ({error.strerror}).") from None


def _object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(_bytes(file))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise OptionError(f"{file} is damaged; make it again.")
    return found


def _read(file: Path, kind: type[P]) -> P | str:
    try:
        return kind.model_validate(_object(file))
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        return f"{file} is damaged ({where}); make it again."
    except OptionError as error:
        return str(error)


def _analysis(folder: Path, name: str) -> Analysis:
    figures: dict[str, Any] = {}
    problems = []
    try:
        figures = _object(folder / f"{name}.json")
    except OptionError as error:
        problems.append(str(error))
    pictures = [(kind, folder / f"{name}.{suffix}") for suffix, kind in PICTURES.items()]
    found = sorted(
        (file.stat().st_size > LARGE, place, kind, file)
        for place, (kind, file) in enumerate(pictures)
        if file.is_file()
    )
    picture = None
    if found:
        *_, kind, file = found[0]
        try:
            picture = (kind, _bytes(file))
        except OptionError as error:
            problems.append(str(error))
    return Analysis(name, figures, picture, tuple(problems))
