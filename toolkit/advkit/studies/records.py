"""What is written about a run: one class a result, which makes it, writes it as JSON and reads it back.

A field is read as an attribute or, as in the JSON, by key: `result.worst_case.accuracy` is
`result["worst_case"]["accuracy"]`. What was not given is in neither: a record has the keys that its JSON has.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..arguments import checked
from ..by_key import ByKey
from ..errors import OptionError
from ..evaluation.audit.checks import Check, hopeless
from ..evaluation.soundness import of_the_net
from ..storage.files import write_atomic
from .documents import document, members


class Record(ByKey, BaseModel):  # type: ignore[misc]  # which iterates otherwise
    """The base: frozen, finite, lenient to keys of other versions, and a mapping for who prefers that."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return self.model_dump(mode="json", exclude_unset=True)

    @checked()
    def write(self, file: str | Path) -> None:
        """At once or not at all."""
        write_atomic(Path(file), document(self.as_dict()))

    @classmethod
    @checked()
    def read(cls, file: str | Path) -> Self:
        """Raises OptionError, with the key that is wrong."""
        try:
            return cls.model_validate(members(Path(file)))
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise OptionError(f"{file} is damaged ({where}); make it again.") from None

    def keys(self) -> list[str]:
        """Of what was given."""
        return [*(name for name in type(self).model_fields if name in self.model_fields_set), *(self.model_extra or {})]


R = TypeVar("R", bound=Record)


class Accuracy(Record):
    """A share of images with its 95 % interval."""

    accuracy: float = Field(ge=0, le=1)
    interval: tuple[float, float]


class AttackRow(Accuracy):
    """One attack of an evaluation; whatever else the attack says of itself stands beside."""

    model_config = ConfigDict(extra="allow")

    name: str
    norm: str | None = None
    eps: float | None = None
    steps: int | None = None
    step_size: float | str | None = None
    """"0.2 eps" where eps differs by image."""
    restarts: int | None = None
    passes: dict[str, float] | None = None
    """Forward and input backward, an image."""
    seconds: float | None = None
    notes: list[str] = []
    column: str | None = None
    """Its column in verdicts.csv; its name in older ones."""
    code: str | None = None
    """Of an attack that is none of advkit's."""

    @property
    def is_autoattack(self) -> bool:
        """Not only by name."""
        return self.name == "autoattack" and self.code is None


class Judged(Record):
    """Which net, on which images, in which ball: what an evaluation, an audit and an analysis share."""

    run: str | None = None
    """The folder of the run or the file of weights; None for a module."""
    dataset: str | None = None
    model: str | None = None
    checkpoint: str | None = None
    weights: str | None = None
    """"raw" or "averaged"."""
    epoch: int | None = None
    """From 0."""
    selected_on: str | None = None
    """The split that chose the checkpoint."""
    sha256_of_weights: str | None = None
    another_net: list[str] = []
    """In what the net that had these weights is another than the run's: its code, or its answers."""
    notes: list[str] = []
    """What is to be known of its images and weights: files that were left out, numbers that were rounded."""
    split: str | None = None
    sha256_of_split: str | None = None
    """Of all its images and labels, whichever of them are judged; None in files of before."""
    n: int | None = Field(default=None, ge=1)
    images: str | None = None
    """Which they are, in words: all of the split, or chosen at random."""
    norm: str | None = None
    eps: float | None = None
    """None where it differs by image, of which a note gives the range."""
    seed: int | None = None
    versions: dict[str, Any] | None = None

    @property
    def judged_on(self) -> str:
        """For tables and sentences: "test split, 30 of 360 images, chosen at random, seed 0"; of before, "n = 30".

        Averaged weights are named at its end; of raw ones it says nothing.
        """
        which = self.images or (self.n and f"n = {self.n}")
        facts = (self.split and f"{self.split} split", which, self.averaged and "averaged weights")
        return ", ".join(str(each) for each in facts if each)

    @property
    def averaged(self) -> bool:
        """Whether a plugin's average of the weights was judged; False where nothing tells."""
        return self.weights == "averaged"


class Evaluation(Judged):
    """Accuracies under attack: RUN/evaluations/NAME/n-N/evaluation.json, with the verdicts in verdicts.csv beside."""

    n: int = Field(ge=1)
    norm: str
    attacks: list[AttackRow]
    worst_case: Accuracy | None = None
    """Over the attacks in `norm`; None where there were none."""
    worst_case_by_norm: dict[str, Accuracy] = {}
    suspect: bool | None = None
    """Whether PGD on cross-entropy and on the margin are further apart than chance and honest nets are."""
    robustbench: dict[str, Any] | None = None
    audit: list[Check] | None = None
    """In short."""
    folder: str | None = None
    """Where it is kept; of what was asked for now, not in the file."""
    robust: dict[str, list[bool]] = Field(default={}, exclude=True)
    """By attack, which images withstood; in verdicts.csv, not in the JSON."""
    index: list[int] = Field(default=[], exclude=True)
    """The images' places in their split, in the order of `robust`."""

    @property
    def worst(self) -> dict[str, Accuracy]:
        """The worst case over attacks, by norm."""
        return self.worst_case_by_norm or ({self.norm: self.worst_case} if self.worst_case else {})

    def attacked(self, norm: str) -> list[AttackRow]:
        """The rows of attacks in a norm; those of before, which name none, are in the evaluation's."""
        return [row for row in self.attacks if row.name != "clean" and (row.norm or self.norm) == norm]

    def eps_in(self, norm: str) -> float | None:
        """Their eps, which is not that of the evaluation where its own norm is another one."""
        own = [row.eps for row in self.attacked(norm) if row.eps is not None]
        return max(own, default=self.eps if norm == self.norm else None)

    @property
    def of_net(self) -> list[str]:
        """`notes`, and those of attacks that are on the net, each once: what stands beside its accuracies."""
        return [*dict.fromkeys([*self.notes, *of_the_net(note for row in self.attacks for note in row.notes)])]

    @property
    def alarms(self) -> list[str]:
        """Checks of the short audit that raise one; `suspect` is that of loss-gap."""
        raised = [check.name for check in self.audit or () if check.alarm]
        return raised if not self.suspect or "loss-gap" in raised else [*raised, "loss-gap"]

    @property
    def hopeless(self) -> str | None:
        """Why the short audit attacked nothing, such as that the net is at chance."""
        return hopeless(self.audit or ())

    @property
    def labels(self) -> list[str]:
        """A name for each attack, with the step where two are named alike."""
        names = Counter(row.name for row in self.attacks)
        steps = Counter((row.name, row.step_size) for row in self.attacks)
        return [
            row.name
            if names[row.name] == 1
            else f"{row.name}, step {row.step_size:.4g}"
            if isinstance(row.step_size, float) and steps[row.name, row.step_size] == 1
            else row.column or row.name
            for row in self.attacks
        ]


class AuditRecord(Judged):
    """An audit for masked gradients: RUN/audit.json."""

    passes: dict[str, float] | None = None
    """Forward and input backward, an image."""
    checks: list[Check]
    alarms: list[str] = []
    withstood: dict[str, float] = {}
    """The share of all images that withstands each attack of the audit."""
    hopeless: str | None = None
    """Why nothing was attacked, such as that the net is at chance."""
    source: dict[str, Any] | None = None
    """The attack that was given for the check `transfer`, with the net that makes its examples."""

    @property
    def raised(self) -> list[str]:
        """The checks that raise an alarm."""
        return [check.name for check in self.checks if check.alarm]


class AnalysisRecord(Judged):
    """An analysis: RUN/analysis/NAME.json; the settings of its own stand beside."""

    model_config = ConfigDict(extra="allow")

    analysis: str | None = None
    attack: dict[str, Any] | None = None
    figures: dict[str, Any] = {}
    folder: str | None = None
    """Where its files are; not in the file."""
    pictures: dict[str, str] | None = None
    """The SHA-256 of each by its kind, none where matplotlib is absent; None in files of before."""


class ExportRecord(Record):
    """What was exported: export.json."""

    run: str
    checkpoint: str | None
    weights: str
    epoch: int | None
    selected_on: str | None
    sha256_of_weights: str
    another_net: list[str] = []
    architecture: str
    architecture_options: dict[str, Any]
    data: str
    classes: list[str]
    shape: list[int]
    mean: list[float] | None
    std: list[float] | None
    plugins: list[str]
    norm: str
    eps: float
    without_graph: str | None
    """Why there is no model.pt2; None where there is one."""
    notes: list[str] = []
    """As those of an evaluation: that the net's code is another than the run's, say."""


def read_or_told(file: Path, result: type[R]) -> R | str:
    """A record, or a sentence on what is wrong with it."""
    try:
        return result.read(file)
    except OptionError as error:
        return str(error)
