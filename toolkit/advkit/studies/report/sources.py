"""What a run's folder holds, read with care: a run that is damaged is refused, a part that is gets a sentence."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from ... import own_file
from ...compose.replaced import standard
from ...config.layer import Layer
from ...config.outgrown import NAMES, SCALES
from ...config.request import MODEL, PASSED
from ...config.resolve import Resolved, resolve
from ...errors import AdvkitError, CheckpointError, OptionError, PluginLoad
from ...plugin import CORE
from ...storage import naming
from ...storage.checkpoint import load_state
from ...storage.files import past_damage, there
from ...storage.run_folder import RunFolder
from ...storage.schema import Position, state_of
from ...storage.weights import digest, evaluated
from ...training.same_run import of_several
from ..documents import members, number
from ..kept import kept, split_of, withstood
from ..records import AuditRecord, Evaluation, Judged, read_or_told
from .recorded import Analysis, recorded


class Source:
    """One run. Raises CheckpointError where run.toml or metrics.jsonl is absent or damaged."""

    def __init__(self, number: int, path: str, files: Mapping[str, own_file.OwnFile] | None = None) -> None:
        self.number, self.path = number, path
        self.folder = RunFolder.open(Path(path))
        self.file: Layer = self.folder.file()
        self.known, self.doubts = self.folder.known(), self.folder.doubts()
        with past_damage(lambda error: self.doubts.append(str(error).removesuffix("."))):
            naming.found(self.folder.checkpoints, "best")
        self.history, self.cut_short = self.folder.history_and_rest()
        epochs = [row.get("epoch") if isinstance(row, dict) else None for row in self.history]
        if not all(isinstance(epoch, int) and 0 <= epoch < 1 << 53 for epoch in epochs):
            raise CheckpointError(f"{self.folder.metrics} is damaged; restore it, or remove it to go on without.")
        self.unresolved, self.absent = "", False
        """Why it can not be resolved here, and whether that is a plugin, model or data set that is not to be had."""
        self.without_pictures: list[str] = []
        """Why the page has no picture of something, in sentences, as far as it is made."""
        self._digests: dict[str, str | None] = {}
        try:
            self.resolved: Resolved | None = of_several(self.folder, files or {})
        except AdvkitError as error:  # a plugin that is not installed here, say: the figures can be shown all the same
            self.resolved, self.unresolved = None, str(error)
            self.absent = any(isinstance(one, PluginLoad) for one in (error, error.__context__))

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
        code = own_file.words(self.resolved.files) if self.resolved else []
        return shlex.join(["advkit", *words, self.path, *code, *after])

    @cached_property
    def closed(self) -> str:
        """Why no command can judge this run here; "" where one can."""
        if self.resolved is None:
            return self.unresolved
        if PASSED in {name[: len(PASSED)] for name in (self.resolved.data.name, self.resolved.model_name)}:
            return "Its model or its images were passed from Python; so pass them to advkit.evaluate."
        return "" if self.best else "It has no best checkpoint yet."

    @cached_property
    def fingerprint(self) -> str | None:
        """Of its training images, as its checkpoints have it; None where none can be read."""
        for name in ("best", "last"):
            with suppress(AdvkitError):
                return self.folder.load(name)[1].get("data")
        return None

    @cached_property
    def has_budgets(self) -> bool:
        """Whether a plugin sets a budget for each sample."""
        return self.resolved is not None and self.resolved.composition.company.owner("perturbation_budget") != CORE

    @cached_property
    def values(self) -> dict[str, object]:
        """Every setting and option, {"attack.eps": 0.15, "cat-eps.eta": 0.0239}."""
        return self.resolved.values() if self.resolved else self.file.values

    @property
    def standard(self) -> bool:
        """Whether nothing was attacked in training: `last` is judged then where no checkpoint is named, else `best`."""
        return self.resolved.standard if self.resolved else standard(self.values)

    @cached_property
    def origins(self) -> dict[str, str]:
        """Where each value came from, as far as the folder tells: run.toml is complete, so this is worked out.

        A value that the plugins, the data set or the defaults give anyway is theirs; any other was given.
        """
        if self.resolved is None:
            return {}
        values, chosen, declined = self.values, self.resolved.chosen, self.resolved.no_companion
        named = {key: values[key] for key in NAMES}
        try:
            given = [Layer("given", each) for each in (named, {**named, **{key: values[key] for key in SCALES}})]
            guesses = [resolve(chosen, [each], no_companion=declined) for each in given]
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
            return members(self.folder.path / "environment.json")
        except OptionError as error:
            return str(error)

    @cached_property
    def evaluations(self) -> dict[str, Evaluation | str]:
        """By their folder in `evaluations`; one that is damaged, or not that of its verdicts, is a sentence."""
        return kept(self.folder.path)

    def split_of(self, name: str, judged: Evaluation) -> str:
        """SHA-256 of the split that an evaluation of that name is of; "" where nothing tells."""
        return split_of(self.folder.path, name, judged)

    def withstood(self, name: str) -> dict[str, list[bool]]:
        """Which images withstood in the evaluation of that name, by column."""
        found = self.evaluations[name]
        assert isinstance(found, Evaluation)
        return withstood(self.folder.path / "evaluations" / name / "verdicts.csv", found)

    @cached_property
    def audit(self) -> AuditRecord | str | None:
        """None where there is none; a sentence where it is damaged."""
        return read_or_told(file, AuditRecord) if there(file := self.folder.path / "audit.json") else None

    @cached_property
    def analyses(self) -> list[Analysis]:
        return recorded(self.folder.path / "analysis")

    def curve(self, kind: str) -> list[tuple[float, float]]:
        """(epoch from 1, value) of `loss`, `train_adversarial_accuracy`, ... or `validation KIND`, where known."""
        points = ((row["epoch"] + 1, number(_cell(row, kind))) for row in self.history)
        return [(float(epoch), value) for epoch, value in points if value is not None]

    def validated(self, kind: str) -> str | None:
        """The name of validation's attack of a kind: "pgd" is "pgd-10"."""
        names = (name for row in self.history for name in _named(row.get("validation"), kind))
        return next(names, None)

    def outdated(self, found: Judged) -> str:
        """Why a figure is not of what is the best or the last checkpoint now; "" where it is.

        The run has gone on since, the file is of another run, or the weights were judged in another net.
        """
        best = self.best
        last = max([self.done - 1, *(row["epoch"] for row in self.history[-1:])])
        if found.checkpoint == "last" and found.epoch is not None and found.epoch < last:
            return f"of the last checkpoint of then, epoch {found.epoch + 1}; the run has gone on to epoch {last + 1}"
        if found.checkpoint == "best" and found.epoch is not None and best and found.epoch != best["epoch"]:
            return f"of the best checkpoint of then, epoch {found.epoch + 1}; the best is now epoch {best['epoch'] + 1}"
        named = [found.checkpoint] if found.checkpoint else ["best", "last"]
        digests = {self._sha256(name) for name in named}
        if found.sha256_of_weights and not {None, found.sha256_of_weights} & digests:
            return f"of other weights than the {named[0]} checkpoint has: of another run, or of an older checkpoint"
        return f"of another net than the run's: {'; '.join(found.another_net)}" if found.another_net else ""

    def _sha256(self, checkpoint: str | None) -> str | None:
        """Of the weights that a checkpoint is judged by; None where it can not be read."""
        if checkpoint in ("best", "last") and checkpoint not in self._digests:
            self._digests[checkpoint] = None
            with suppress(AdvkitError):
                self._digests[checkpoint] = digest(evaluated(self.folder.load(checkpoint)[0]))
        return self._digests.get(checkpoint or "")

    @property
    def position(self) -> Position | None:
        """Where the newest checkpoint says the run is, which metrics.jsonl may have lost."""
        return self.known.position if self.known else None

    @property
    def lost(self) -> str:
        """What metrics.jsonl lacks of the epochs that have ended."""
        if self.done == len(self.history):
            return ""
        return f"metrics.jsonl has {len(self.history)} of the {self.done} epochs that have ended; the others are lost"

    @property
    def optimistic(self) -> str:
        """That `best` was chosen on the test split."""
        chosen = self.position and self.position.best and self.position.best.split == "test"
        return "its best epoch was chosen on the test split: figures on it are optimistic" if chosen else ""

    @cached_property
    def weights(self) -> str | None:
        """ "raw" or "averaged": which `best` is judged by; None where nothing tells."""
        with past_damage():
            best = naming.found(self.folder.checkpoints, "best")
            known = state_of(load_state(best)).evaluated if best else None
            return None if known is None else "averaged" if known else "raw"
        return None

    @property
    def done(self) -> int:
        """How many epochs have ended, with a line in metrics.jsonl or without."""
        return max(len(self.history), self.position.epoch if self.position else 0)

    @property
    def finished(self) -> bool:
        """Whether every epoch is done, or a plugin has ended the run."""
        stopped = (self.history and self.history[-1].get("stopped")) or (self.position and self.position.stopped)
        return bool(stopped) or self.done >= (number(self.values.get("run.epochs")) or 0)

    @property
    def best(self) -> dict[str, Any] | None:
        """The line of the best epoch, as the newest checkpoint has it; its number alone where the line is lost."""
        if self.position and self.position.best:
            epoch = self.position.best.epoch
            return next((row for row in self.history if row["epoch"] == epoch), {"epoch": epoch})
        return next((row for row in reversed(self.history) if row.get("best")), None)


def _cell(row: dict[str, Any], kind: str) -> object:
    first, _, rest = kind.partition(" ")
    named = _named(row.get(first), rest)
    return row.get(kind) if not rest else row[first][named[0]] if named else None


def _named(validation: object, kind: str) -> list[str]:
    keys = validation if isinstance(validation, dict) else {}
    return [key for key in keys if key == kind or key.startswith(f"{kind}-")]
