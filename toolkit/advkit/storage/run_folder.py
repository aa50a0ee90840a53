"""A run's folder: environment.json (first), run.toml, metrics.jsonl, checkpoints/."""

from __future__ import annotations

import itertools
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..code_digest import FORM
from ..config import runfile
from ..config.layer import Layer
from ..config.resolve import Resolved
from ..errors import CheckpointError, HookConflict, OptionError, PluginImport, PluginLoad, called, named
from . import checkpoint, files, machine, naming, schema
from .lock import RunLock

TABLE_CAP = 1 << 20
"""Bytes of environment.json, judged before it is read."""


class Mark(NamedTuple):
    """How far metrics.jsonl had got: its bytes and their CRC-32."""

    size: int = 0
    crc: int = 0


class RunFolder:
    """Paths and files of one run. `create` a new one, `open` an existing one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / naming.METRICS
        self.lock = RunLock(path / "lock")

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """A new folder, or an empty one; take its lock, then `describe` the run."""
        folder = cls(path)
        files.make_named(path)
        try:
            files.sweep(path)  # of a start that was killed
            folder._refuse_content()
        except OSError as error:
            raise files.unwritable(path, error, f"choose another {named('--out')}", "used") from None
        return folder

    def describe(self, resolved: Resolved, code: Mapping[str, str], begun: Mapping[str, object]) -> None:
        """Write environment.json, then run.toml. The caller holds the lock: of two starters one gets here first.

        With run.toml it is a run, whose first checkpoint may not be there yet: what else it has `begun` with has to be.
        """
        self._refuse_content()
        known = machine.environment(resolved, code) | {key: value for key, value in begun.items() if value is not None}
        text = json.dumps(known, indent=2) + "\n"
        files.write_atomic(self.path / "environment.json", text.encode())
        files.write_atomic(self.path / "run.toml", runfile.dump(resolved).encode())

    def _refuse_content(self) -> None:
        content = {entry.name for entry in self.path.iterdir()} - {self.lock.path.name}
        killed = content == {"environment.json"} and "advkit" in (self.environment() or {})  # before it was a run
        trained = content & {"metrics.jsonl", "checkpoints"} and not files.there(self.path / "run.toml")
        if trained and "advkit" in (self.environment() or {}):
            other = f"choose another {named('--out')} for a new run"
            raise CheckpointError(f"{self.path} is a run whose run.toml is gone; restore that, or {other}.")
        if content and not killed:
            resumed = f"continue it with `{called('train', ['--resume', str(self.path)])}`, or "
            hint = resumed if "run.toml" in content else ""
            raise OptionError(f"{self.path} holds files already; {hint}choose another {named('--out')}.")

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run; CheckpointError where there is none."""
        try:
            os.stat(path / "run.toml")
        except (OSError, ValueError) as error:  # ValueError: what no file system takes for a name
            if isinstance(error, FileNotFoundError | NotADirectoryError):
                why = "it has no run.toml" if os.path.isdir(path) else "it is a file"
                why = why if os.path.lexists(path) else "it does not exist"
                if run := files.run_above(path):
                    raise CheckpointError(f"{path} is a part of the run {run}; give the run's folder.") from None
            else:
                why = getattr(error, "strerror", None) or str(error)
            if isinstance(error, PermissionError):
                raise CheckpointError(f"{path} can not be read ({why}); check path and permissions.") from None
            raise CheckpointError(f"{path} is not a run folder: {why}. Give the folder of a run.") from None
        return cls(path)

    def sweep(self) -> None:
        """Remove what dead processes left. CheckpointError, before that, where the checkpoints are behind a link."""
        files.judge_place(self.checkpoints / "step")
        files.sweep(self.path)
        files.sweep(self.checkpoints)

    def file(self) -> Layer:
        """The run's own settings."""
        with of_a_run():
            layer = runfile.load(self.path / "run.toml")
        if layer.plugins is None or "model.name" not in layer.settings:  # `dump` writes both, whatever they are
            lost = "plugins" if layer.plugins is None else "model"
            raise CheckpointError(
                f"{self.path}/run.toml is cut short: it has no {lost}. Restore it, or start a new run."
            )
        if layer.settings.get("data.limit") and "data.balance" not in layer.settings:  # of 0.1.0, which always did
            return replace(layer, settings={**layer.settings, "data.balance": True})
        return layer

    def text(self) -> str:
        """run.toml as it is written."""
        with of_a_run():
            return runfile.text(self.path / "run.toml")

    @naming.settled
    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and state of the checkpoint called `name` ("best", "last")."""
        path = naming.found(self.checkpoints, name)
        if path is None:
            when = "an epoch that is validated" if name == "best" else "its first checkpoint"
            raise CheckpointError(f"{self.path} has no checkpoint {name!r} yet; let it train until {when}.")
        tensors, state = checkpoint.load(path)
        known = schema.state_of(state)
        schema.check_averages(known, tensors)
        if changes := runfile.other_run(known.run, self.text()):
            raise CheckpointError(
                f"{path} is not of the run that {self.path}/run.toml says: {'; '.join(changes[:3])}. Restore whichever "
                "is of another."
            )
        return tensors, state

    def known(self) -> schema.State | None:
        """What the newest checkpoint says of the run; None where none is intact. No weights are read.

        Raises CheckpointError where it may not be read.
        """
        with files.past_damage():
            if last := naming.found(self.checkpoints, "last"):
                return schema.state_of(checkpoint.load_state(last))
        return None

    def doubts(self) -> list[str]:
        """Sentences on what is otherwise than the newest checkpoint says of it: run.toml, names, metrics.jsonl."""
        said = [naming.doubt(self.checkpoints)]
        if known := self.known():
            if changes := runfile.other_run(known.run, self.text()):
                said.append(f"{self.path}/run.toml is not of the run that was trained here: {'; '.join(changes[:3])}")
            try:
                content, at = self._content(), known.position
                rows = self.history_and_rest(content)[0]
                behind = [row["epoch"] for row in rows if row["epoch"] >= at.epoch]  # the run goes on, or was killed
                if rows and not (naming.fits(at, content) and behind == [*range(at.epoch, at.epoch + len(behind))]):
                    said.append(
                        f"{self.metrics} is not what the newest checkpoint was made with: it is edited or cut short, "
                        "or one of them is another run's; restore that one, or remove metrics.jsonl to go on without"
                    )
            except CheckpointError as error:  # weights can be judged all the same
                said.append(str(error).removesuffix("."))
        return [*filter(None, said)]

    def history(self) -> list[dict[str, Any]]:
        """The whole lines of metrics.jsonl; none where there is no such file."""
        return self.history_and_rest()[0]

    def history_and_rest(self, read: bytes | None = None) -> tuple[list[dict[str, Any]], bool]:
        """As `history`, and whether a line follows that was begun: the run was killed there, or is writing it now."""
        content = self._content() if read is None else read
        try:
            return self._rows(content), False
        except CheckpointError:
            if content.endswith(b"\n"):
                raise
        return self._rows(content[: content.rfind(b"\n") + 1]), True

    def history_to(self, mark: Mark) -> list[dict[str, Any]]:
        """The lines that a checkpoint knows of. What was written after it goes with the next `append_metrics`.

        Raises CheckpointError where the file is not the one the checkpoint was made with.
        """
        rows = self._rows(self._content()[: mark.size])
        if mark != self.mark(mark.size):
            raise CheckpointError(
                f"{self.metrics} is not what the checkpoint was made with ({mark.size} bytes of it); restore it, or "
                "remove it to go on without."
            )
        return rows

    def mark(self, size: int) -> Mark:
        """Of the first `size` bytes of metrics.jsonl, or of those that are there."""
        return Mark(len(content := self._content()[:size]), zlib.crc32(content))

    def _content(self) -> bytes:
        return files.read(self.metrics, naming.METRICS_CAP) if files.there(self.metrics) else b""

    def _rows(self, content: bytes) -> list[dict[str, Any]]:
        try:
            rows = [json.loads(line) for line in content.decode().splitlines()]
        except (ValueError, RecursionError):
            rows = [None]
        if not all(isinstance(row, dict) and type(row.get("epoch")) is int for row in rows):
            raise CheckpointError(f"{self.metrics} is damaged; restore it, or remove it to go on without.")
        return rows

    def refuse_unwritable_metrics(self) -> None:
        """CheckpointError, before an epoch is trained, where no line can be added. No byte of it is changed."""
        if files.there(self.metrics):
            files.append(self.metrics, b"")

    def append_metrics(self, row: Mapping[str, object], mark: Mark) -> Mark:
        """Write one line after `mark`, in place of what is there; the new mark. Then the line survives a crash."""
        if files.there(self.metrics):
            files.truncate(self.metrics, mark.size)
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        return Mark(files.append(self.metrics, line), zlib.crc32(line, mark.crc))

    def code(self) -> dict[str, str]:
        """Digests of the code that the run was started with; {} where they can not be compared with those of now."""
        then = self.environment() or {}
        known = then.get("code")
        return known if isinstance(known, dict) and _comparable(then) else {}

    def packages(self) -> dict[str, str]:
        """Distribution and version of a net and of data that are not advkit's, as they were then."""
        known = (self.environment() or {}).get("packages")
        return known if isinstance(known, dict) else {}

    def init_from(self) -> str | None:
        """Whose weights the run was started with, as it was told then."""
        then = (self.environment() or {}).get("init_from")
        return then if isinstance(then, str) else None

    def environment(self) -> dict[str, Any] | None:
        """environment.json; None where it is absent or damaged."""
        with files.past_damage(), suppress(ValueError, RecursionError):
            then = json.loads(files.read(self.path / "environment.json", TABLE_CAP))
            return then if isinstance(then, dict) else None
        return None

    def drift(self, resolved: Resolved, code: Mapping[str, str]) -> list[str]:
        """How this machine and these versions differ from those the run was started with."""
        then = self.environment()
        if then is None:
            return ["environment.json is absent, damaged or a link: what the run was started with is unknown"]
        now = machine.environment(resolved, code)
        if "packages" not in then:  # of before they were recorded, and with them the code of what builds the net
            now["code"].pop(f"model {resolved.model_name}", None)
        if not _comparable(then):
            then.pop("code", None)
        then = {"code": now["code"], "packages": now["packages"], "processes": 1} | then | {"digests": now["digests"]}
        return [
            f"{key}: {then.get(key)} then, {now.get(key)} now"
            for key in sorted({*then, *now} - {"added", "ancestors", "command", "init_from", "notes"})
            if then.get(key) != now.get(key)
        ]


def _comparable(then: Mapping[str, Any]) -> bool:
    """Whether digests of code were taken in the way of now: another Python, torch or FORM has others of equal code."""
    now = machine.versions() | {"digests": FORM}
    return all(then.get(key) == now[key] for key in ("python", "torch", "digests"))


@contextmanager
def of_a_run(path: Path | None = None) -> Iterator[None]:
    """What is wrong with a run file is here wrong with a run: `path`, where the sentence does not name it itself."""
    where = f"{path}: " if path else ""
    try:
        yield
    except (OptionError, HookConflict) as error:
        raise CheckpointError(f"{where}{error} It belongs to a run: restore it, or start a new run.") from None
    except PluginImport:
        raise
    except PluginLoad as error:
        ways = "install it here first, or judge the net alone, with the weights that advkit.load_weights gives it"
        raise CheckpointError(f"{where}{error} The run was made with it: {ways}.") from None


def fresh(root: Path, plugins: tuple[str, ...]) -> Path:
    """A new empty folder below `root`, named after the plugins; made here, so that no other start gets it."""
    name = re.sub(r"[^A-Za-z0-9._+-]", "_", "+".join(plugins) or "pgd-at")[:60]
    for number in itertools.count(1):
        path = root / f"{name}-{number}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            advice = f"choose a place that can with {named('--out')}"
            raise files.unwritable(path, error, advice, "created", typed=False) from None
        return path
    raise AssertionError
