"""Runs that are compared: each arm of a study trained at each seed, judged, and put into one table of its folder."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..arguments import fits
from ..config import runfile
from ..config.layer import flat
from ..config.resolve import Resolved
from ..data.base import Splits
from ..errors import TYPED, CheckpointError, NonFinite, OptionError, Stopped, named, shown
from ..evaluation.statistics import accuracy, bits, difference, share
from ..global_state import one_at_a_time
from ..reading import opened
from ..storage.files import make_named, run_above, there, unwritable, write_atomic
from ..storage.lock import RunLock
from ..storage.run_folder import RunFolder
from ..training.launch import resume, start
from ..training.parts import build_model, data_of, on_this_machine, refused_here
from ..training.progress import Aloud, Progress, asked_to_stop
from ..training.same_run import refuse_difference, resolve_folder
from ..training.short import cautions
from ..training.tracking import tracked
from .documents import document, prose
from .evaluate import evaluate_subject
from .evaluation_request import EvaluationRequest
from .paired_records import AblationRow, SeedAccuracy, SeedDifference
from .paired_tables import Layout, markdown
from .subject import of_run


@dataclass(frozen=True)
class Arm:
    """One line of the table: what is trained, resolved by seed, or the sentence that refuses it."""

    name: str
    plugins: tuple[str, ...]
    resolved: Mapping[int, Resolved] = field(default_factory=dict)
    declined: tuple[str, ...] = ()
    refused: str | None = None

    def folder(self, seed: int) -> str:
        """Of its run at a seed, below the study's: its name as a file system takes it."""
        name = re.sub(r"[^A-Za-z0-9._+=-]", "_", self.name.replace(" ", "-"))
        if len(name) > 100:
            name = f"{name[:80]}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"
        return f"{name}-seed-{seed}"


class Outcome(NamedTuple):
    """What one run withstands: by attack a text of 0 and 1, a character an image; their places; alarms, notes."""

    verdicts: dict[str, str]
    images: tuple[int, ...]
    suspect: bool
    notes: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    """Notes on this run alone, which its row gives with the seed."""
    averaged: bool = False

    @property
    def worst_case(self) -> str:
        """As under one attack: which images withstand all."""
        return "".join("01"[{*column} == {"1"}] for column in zip(*self.verdicts.values(), strict=True))


def distinct(arms: Iterable[Arm]) -> list[Arm]:
    """The arms; OptionError where two are the same run."""
    known: dict[str, Arm] = {}
    for arm in arms:
        first = known.setdefault(runfile.dump(next(iter(arm.resolved.values()))), arm)
        if first is not arm:
            raise OptionError(f"{first.name} and {arm.name} are the same run; give each value once.")
    return list(known.values())


def data_for(arms: Iterable[Arm]) -> Splits:
    """The images of all arms. OptionError where this machine has not the device of one, or can not build its net."""
    every = [one for arm in arms for one in arm.resolved.values()]
    for one in {one.run.device: one for one in every}.values():
        if unusable := refused_here(one):
            raise OptionError(f"{unusable}.")
    splits = data_of(every[0])
    nets = {repr((one.model_name, one.model_options, one.files.get("model.name"))): one for one in every}
    for one in nets.values() if len(nets) > 1 else ():  # that of the first run is built next
        build_model(one, splits.train, looked_at=True)
    return splits


@dataclass(frozen=True)
class Study:
    """Where runs and table are kept, how runs are judged, and who hears of them."""

    out: Path
    judging: EvaluationRequest
    layout: Layout
    trackers: Sequence[str] = ()
    progress: Callable[[], Progress] = Aloud
    tell: Callable[[str], None] | None = None
    said: set[str] = field(default_factory=set, init=False)
    """Cautions on settings, each once."""

    def __post_init__(self) -> None:
        if run := run_above(self.out / "run.toml"):
            raise OptionError(f"{run} is a run, no folder of {self.layout.what}; name another {named('--out')}.")

    def table(self, arms: Sequence[Arm], task: int | None = None) -> list[AblationRow]:
        """The rows, which are written to table.json and table.md; runs that are finished are not run again.

        A run that ends in NaN or Inf leaves the others alone: its row says so, and has no figures.
        `task`: only the run of that number, from 1, and no table, so that a cluster runs them side by side.
        """
        # Seed by seed: an early look at the table is a complete one.
        seeds = sorted({seed for arm in arms for seed in arm.resolved})
        tasks = [(arm, seed) for seed in seeds for arm in arms if arm.refused is None]
        if task is not None:
            if not 1 <= task <= len(tasks):
                raise OptionError(f"There is no task {task}: {self.layout.what} has the runs 1 to {len(tasks)}.")
            arm, seed = tasks[task - 1]
            try:
                with _stopping():
                    self._measured(arm, seed, data_of(arm.resolved[seed]))
            except NonFinite as error:
                raise NonFinite(f"{arm.name}, seed {seed}: {error}") from None
            return []
        found: dict[str, dict[int, Outcome | str]] = {arm.name: {} for arm in arms}
        splits = data_for(arms)
        with self.kept():
            for arm, seed in tasks:
                found[arm.name][seed] = self.outcome(arm, seed, splits)
            return self.written(arms, found)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """The scope in which its folder is this study's alone; one that is stopped goes on when it is asked again."""
        with _stopping():
            self._refuse_other()
            make_named(self.out)
            with RunLock(self.out / "lock"):
                yield

    def outcome(self, arm: Arm, seed: int, splits: Splits) -> Outcome | str:
        """What a run withstands, or the sentence with which NaN or Inf has ended it."""
        try:
            return self._measured(arm, seed, splits)
        except NonFinite as error:
            if self.tell is not None:
                self.tell(f"{arm.name}, seed {seed}: {error}")
            return str(error)

    def written(self, arms: Sequence[Arm], found: Mapping[str, Mapping[int, Outcome | str]]) -> list[AblationRow]:
        """The rows of arms of which everything is found, in table.json and table.md."""
        rows = [_row(arm, found[arm.name], arms[0], found[arms[0].name]) for arm in arms]
        write_atomic(self.out / "table.json", document([row.as_dict() for row in rows]))
        write_atomic(self.out / "table.md", prose(markdown(rows, self.layout)))
        return rows

    def _measured(self, arm: Arm, seed: int, splits: Splits) -> Outcome:
        if not fits(watching := self.progress(), Progress):
            raise OptionError(f"progress made {shown(watching)}; let it make an advkit.Progress for each run.")
        self.judging.refuse_unjudged(arm.resolved[seed], splits)
        path = self.out / "runs" / arm.folder(seed)
        for at in (path.parent, path):
            if os.path.islink(at):
                raise CheckpointError(f"{at} is a link, and nothing is written through one; put a copy in its place.")
        for caution in (told for told in cautions(arm.resolved[seed]) if told not in self.said):
            watching.warn(caution)
            self.said.add(caution)
        outcome = measure(arm.resolved[seed], splits, path, self.judging, watching, self.trackers)
        shares = " ".join(f"{name} {share(withstood):.3f}" for name, withstood in outcome.verdicts.items())
        if self.tell is not None:
            self.tell(f"{arm.name}, seed {seed}: {'; '.join([shares, *outcome.own, *outcome.notes[-1:]])}")
        return outcome

    def _refuse_other(self) -> None:
        """Only an older table of the same sort is replaced."""
        header = f"| {' | '.join(self.layout.header)} |".encode()
        for name, mine in (("table.json", b'[\n {\n  "arm": "'), ("table.md", header)):
            try:
                with opened(self.out / name) as file:
                    head = file.read(len(mine))
            except FileNotFoundError:
                continue
            except OSError as error:
                raise unwritable(self.out / name, error, f"name another {named('--out')}") from None
            if head and head != mine:
                raise OptionError(
                    f"{self.out / name} is there and is no table of {self.layout.what}; name another {named('--out')}."
                )


@contextmanager
def _stopping() -> Iterator[None]:
    try:
        yield
    except Stopped as stopped:
        again = "command" if TYPED.get() else "call"
        raise type(stopped)(f"Stopped; everything is saved. Give the same {again} again to go on.") from None


@one_at_a_time
def measure(
    resolved: Resolved,
    splits: Splits,
    path: Path,
    request: EvaluationRequest,
    progress: Progress,
    trackers: Sequence[str] = (),
) -> Outcome:
    """Train the run in `path`, or go on with it, and evaluate its best checkpoint as `advkit evaluate` does.

    The verdicts are kept with the run, where `report` and `compare` find them; what is known is not asked again.
    """

    def go_on(*_: object) -> None:
        if stop := asked_to_stop(progress):
            raise stop("Stopped between two steps.")

    go_on()
    resolved = on_this_machine(resolved)
    with tracked(progress, trackers, path) as seen:
        if there(path / "run.toml"):
            folder = RunFolder.open(path)
            refuse_difference(resolve_folder(folder), resolved)
            resume(folder, resolved, splits, build_model(resolved, splits.train), seen)
        else:
            build_model(resolved, splits.train)  # weights that it gives again are refused now, not after the epochs
            start(resolved, splits, build_model(resolved, splits.train), out=path, progress=seen)
    result, verdicts = evaluate_subject(of_run(path, splits=splits, files=resolved.files), request, watch=go_on)
    notes = (*result.of_net, f"accuracies are on {result.images}")
    own = (f"there is nothing to be robust: {result.hopeless}",) if result.hopeless else ()
    withstood = {name: bits(one.robust) for name, one in verdicts.items()}
    return Outcome(withstood, tuple(result.index), bool(result.alarms), notes, own, result.averaged)


def refuse_failed(rows: Sequence[AblationRow]) -> None:
    """NonFinite, naming arms and seeds, where runs of a table ended so."""
    if failed := [f"{row.arm}, seed {seed}" for row in rows for seed in row.failed]:
        raise NonFinite(
            f"NaN or Inf ended {len(failed)} of the runs: {'; '.join(failed)}. The table has no figures of "
            "them, and says where it was and what to change."
        )


def _row(
    arm: Arm, found: Mapping[int, Outcome | str], first: Arm, reference: Mapping[int, Outcome | str]
) -> AblationRow:
    """The line of an arm, and its differences from the first one; those are paired, so it must have every seed."""
    head: dict[str, Any] = {"arm": arm.name, "plugins": list(arm.plugins), "refused": arm.refused}
    if arm.refused is not None:
        return AblationRow(**head)
    runs = {seed: outcome for seed, outcome in found.items() if isinstance(outcome, Outcome)}
    beside = {seed: outcome for seed, outcome in reference.items() if isinstance(outcome, Outcome)}
    if failed := {str(seed): sentence for seed, sentence in found.items() if isinstance(sentence, str)}:
        return AblationRow(**head, declined=list(arm.declined), seeds=list(runs), failed=failed)
    by_attack = {
        attack: {seed: outcome.verdicts[attack] for seed, outcome in runs.items()}
        for attack in next(iter(runs.values())).verdicts
    }
    images = [outcome.images for outcome in runs.values()]
    paired = beside.keys() == runs.keys() and arm is not first
    return AblationRow(
        **head,
        declined=list(arm.declined),
        seeds=list(runs),
        notes=[
            *dict.fromkeys(note for outcome in runs.values() for note in outcome.notes),
            *(f"seed {seed}: {said}" for seed, outcome in runs.items() for said in outcome.own),
        ],
        suspect=[seed for seed, outcome in runs.items() if outcome.suspect],
        averaged=[seed for seed, outcome in runs.items() if outcome.averaged],
        changed=changed(*(next(iter(one.resolved.values())) for one in (arm, first))) if first.resolved else {},
        accuracy={name: SeedAccuracy(**accuracy(list(texts.values()), images)) for name, texts in by_attack.items()},
        difference={
            name: SeedDifference(**difference([(texts[seed], beside[seed].verdicts[name]) for seed in texts], images))
            for name, texts in (by_attack.items() if paired else ())
        },
        worst_case=SeedAccuracy(**accuracy([outcome.worst_case for outcome in runs.values()], images)),
    )


def changed(here: Resolved, first: Resolved) -> dict[str, tuple[object, object]]:
    """Settings in which an arm differs from the first, as by plugins' preferences: {"attack.init": (first, here)}."""
    before, after = (
        flat({section: settings.model_dump() for section, settings in one.sections.items()}) for one in (first, here)
    )
    every = (before | after).keys()  # sections may differ: those of two optimizers do
    return {key: (before.get(key), after.get(key)) for key in every if before.get(key) != after.get(key)}
