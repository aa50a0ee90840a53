"""Evaluations on disk: every verdict is kept as soon as it is known, so a killed evaluation loses at most a chunk.

RUN/evaluations/best-test-linf-0.1-3f9a0c12/
    identity.json           of what: net, weights, data, eps, seed; another identity gets another folder
    progress.jsonl          a line a chunk of images and attack, each with a checksum of it and of the identity
    n-1000/evaluation.json  accuracies, of the attacks asked for last and of all others known for these images
    n-1000/verdicts.csv     a row an image, a column an attack; 1: withstood
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import torch

from .. import __version__
from ..data.base import Dataset
from ..data.chosen import CHOICE
from ..errors import CheckpointError, OptionError, ProcessLost, Stopped, named
from ..evaluation.results import BATCH, Verdicts
from ..storage import files
from ..storage.lock import RunLock
from .documents import document
from .kept import shares
from .records import Evaluation
from .subject import Subject

CAP = 1 << 30
"""Bytes of a progress.jsonl, judged before it is read."""

LIBRARIES = ("torch", "numpy", "pyautoattack", "foolbox")


def versions() -> dict[str, str]:
    """Of everything that verdicts may depend on."""
    found = {"advkit": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def identity(subject: Subject, split: str, eps: float, seed: int, count: int = 0) -> dict[str, Any]:
    """What verdicts belong to. The attacks do not enter, nor does how many images were chosen: theirs are kept apart.

    `eps` is that of the subject's norm; attacks in another norm have theirs among their own settings.
    """
    whole = subject.images(split)
    return {
        **subject.identity(),
        "data": whole.fingerprint(),
        "images": f"chosen at random, seed {CHOICE}" if 0 < count < len(whole) else "all",
        "split": split,
        "norm": subject.norm,
        "eps": eps,
        "seed": seed,
        "chunk": BATCH,
        "device": subject.resolved.run.device,
        "advkit": __version__,
        "torch": torch.__version__,
    }


def folder_of(base: Path, subject: Subject, known: Mapping[str, Any]) -> Path:
    """Where the evaluations of an identity lie, below `base`."""
    short = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:8]
    which = subject.record["checkpoint"] or "weights"
    return base / f"{which}-{known['split']}-{subject.norm}-{known['eps']:.4g}-{short}"


class Store:
    """`with Store(folder, identity) as kept:` verdicts of one identity; one process at a time `writes`, others read."""

    def __init__(
        self, folder: Path, known: Mapping[str, Any], fresh: bool = False, *, writes: bool = True, typed: bool = False
    ) -> None:
        self.folder, self.known, self.fresh, self.writes, self.typed = folder, known, fresh, writes, typed
        self.progress = folder / "progress.jsonl"
        self._found: dict[tuple[str, int, int], Verdicts] = {}
        self._stale: set[tuple[str, int, int]] = set()
        """Known, but to be asked again."""
        self._made = [one for one in (folder, *folder.parents) if not os.path.lexists(one)] if writes else []
        self._denied: str | None = None
        """Why nothing can be written, of one that should."""
        if writes and typed and not files.there(folder):  # what is known is shown wherever it lies
            files.make_named(folder.parent)

    def __enter__(self) -> Self:
        with ExitStack() as held:
            if self.writes:
                with self._unless_denied():
                    held.enter_context(RunLock(self.folder / "lock"))
                    files.sweep(self.folder)
                    files.write_atomic(self.folder / "identity.json", document(self.known))
            self._read()
            if self.fresh:
                self._stale = set(self._found)
            self._held = held.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, Exception) and not issubclass(kind, Stopped | ProcessLost):
            self._leave_nothing()
        self._held.close()

    def _leave_nothing(self) -> None:
        """Folders that were made for an evaluation which then has no verdict, as it was refused, go again."""
        with suppress(OSError):
            if self._made and {*os.listdir(self.folder)} <= {"lock", "identity.json"}:
                for name in os.listdir(self.folder):
                    os.unlink(self.folder / name)
                for folder in self._made:
                    folder.rmdir()

    @contextmanager
    def _unless_denied(self) -> Iterator[None]:
        """The folder of a run may be somebody else's, or on a disk that is only read: what is known is shown."""
        try:
            yield
        except CheckpointError as error:
            cause = error.__cause__
            if not isinstance(cause, OSError) or cause.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            self._denied = cause.strerror

    def _refuse_denied(self) -> None:
        if self._denied:
            typed = self.typed and self._denied != os.strerror(errno.EROFS)
            raise (OptionError if typed else CheckpointError)(
                f"{self.folder} can not be written ({self._denied}), and not all verdicts asked for are in it; choose "
                f"a place that can with {named('--out')} of evaluate, or give a copy of the run."
            )

    def get(self, key: str, first: int, count: int) -> Verdicts | None:
        """Those that are known. Raises CheckpointError where they are not, and could not be kept."""
        found = None if (key, first, count) in self._stale else self._found.get((key, first, count))
        if found is None:
            self._refuse_denied()
        return found

    def put(self, first: int, found: Verdicts) -> None:
        """Once it returns, these verdicts survive a kill."""
        self._refuse_denied()
        if self.writes:
            self._append(json.dumps({"first": first, **found.as_dict()}).encode())
        place = (found.key, first, len(found.robust))
        self._found.pop(place, None)  # to the end: the order is that of asking
        self._found[place] = found
        self._stale.discard(place)

    def _append(self, text: bytes) -> None:
        try:
            files.append(self.progress, b"%s %s\n" % (self._mark(text), text))
        except CheckpointError as error:
            raise files.unwritable(self.progress, error, "check its permissions", typed=False) from None

    def complete(self, n: int) -> list[Verdicts]:
        """The attacks whose verdicts on the first `n` images are all known, joined."""
        found = []
        for key in dict.fromkeys(key for key, _, _ in self._found):
            parts = [self._found.get((key, first, min(BATCH, n - first))) for first in range(0, n, BATCH)]
            joined = Verdicts({}, torch.zeros(0, dtype=torch.bool))
            for part in parts:
                if part is None:
                    break
                joined.settings, joined.access = part.settings, part.access
                joined.append(part)
            else:
                found.append(joined)
        return found

    def results(self, n: int) -> Path:
        """Where what is said of the first `n` images lies."""
        return self.folder / f"n-{n}"

    def finish(self, result: Evaluation, dataset: Dataset, found: Sequence[Verdicts]) -> None:
        """Write evaluation.json and verdicts.csv, a column for each of the result's attacks."""
        if not self.writes or self._denied:
            return
        home = self.results(len(dataset))
        files.make_folder(home)
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["index", "label", *(row.column for row in result.attacks)])
        columns = [each.robust.int().tolist() for each in found]
        rows = zip(dataset.index.tolist(), dataset.labels.tolist(), *columns, strict=True)
        writer.writerows(sorted(rows))
        files.write_atomic(home / "verdicts.csv", table.getvalue().encode())
        result.write(home / "evaluation.json")

    def _mark(self, line: bytes) -> bytes:
        """The checksum of a line of this identity: of verdicts of another net or other images it is another."""
        whose = hashlib.sha256(document(self.known)).digest()
        return hashlib.blake2b(line, key=whose, digest_size=8).hexdigest().encode()

    def _parsed(self, line: bytes) -> tuple[int, Verdicts]:
        """The place of the first image and the verdicts of a line; an exception where it has none."""
        checksum, _, text = line.partition(b" ")
        if checksum != self._mark(text):
            raise ValueError("its checksum is not its own")
        record = json.loads(text)
        first = record.pop("first")
        if type(first) is not int or first < 0:
            raise ValueError("its place is none")
        return first, Verdicts.of_dict(record)

    def _read(self) -> None:
        """Every line whose checksum holds; an end that a kill cut short is dropped, and what is missing asked again."""
        if not files.there(self.progress):
            return
        raw = files.read(self.progress, CAP)
        good = raw.rfind(b"\n") + 1
        for line in raw[:good].split(b"\n"):
            try:
                first, found = self._parsed(line)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                continue  # of another net or advkit, or damaged: it is asked again
            self._found.pop(place := (found.key, first, len(found.robust)), None)
            self._found[place] = found
        if good < len(raw) and self.writes and not self._denied:
            files.truncate(self.progress, good)


def merged(asked: Iterable[Verdicts], others: Iterable[Verdicts]) -> list[Verdicts]:
    """The attacks asked for, then all others known, but one eps a norm and one state of an attack's code: the newest.

    Two attacks may have one name, such as pgd-20 with two steps.
    """
    found, old = list(asked), []
    eps: dict[str, object] = {}
    taken = set()
    for place, each in enumerate((*found, *reversed(list(others)))):
        settings = each.settings
        kind = json.dumps({key: settings[key] for key in settings if key != "code"}, sort_keys=True)
        alike = settings["name"] == "clean" or eps.setdefault(settings["norm"], settings["eps"]) == settings["eps"]
        if place >= len(found) and alike and kind not in taken:
            old.append(each)
        taken.add(kind)
    return found + old[::-1]


def columns(found: Sequence[Verdicts]) -> list[str]:
    """A name for each attack that no other has: where names are equal, with the settings that differ."""
    names = []
    for each in found:
        name = str(each.settings["name"])
        same = [other.settings for other in found if other.settings["name"] == name]
        apart = [key for key in each.settings if any(other.get(key) != each.settings[key] for other in same)]
        names.append(" ".join([name, *(f"{key}={each.settings[key]}" for key in apart)]))
    return names


def robustbench(subject: Subject, result: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result under the field names of RobustBench's model_info; None for what only its authors know.

    None altogether where the images are not of the test split, for that is what RobustBench lists.
    """
    if result["split"] != "test":
        return None
    gray = 255 * result["eps"]
    whole = gray > 0.5 and abs(gray - round(gray)) < 1e-6
    return {
        "link": None,
        "name": Path(subject.name).name,
        "authors": None,
        "additional_data": None,
        "number_forward_passes": 1,
        "dataset": result["dataset"],
        "venue": None,
        "architecture": result["model"],
        "eps": f"{round(gray)}/255" if whole else f"{result['eps']:g}",
        "n": result["n"],
        **shares(result),
    }
