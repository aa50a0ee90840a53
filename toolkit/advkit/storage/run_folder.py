"""A run's folder: run.toml (first), environment.json, metrics.jsonl, checkpoints/."""

from __future__ import annotations

import itertools
import json
import os
import platform
import re
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import __version__, registry
from ..config import runfile
from ..config.resolve import Resolved
from ..errors import CheckpointError, OptionError
from . import checkpoint


class RunFolder:
    """Paths and files of one run. `create` a new one, `open` an existing one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.lock = checkpoint.RunLock(path / "lock")

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """A new folder, or an empty one; take its lock, then `describe` the run."""
        folder = cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            checkpoint.sweep(path)  # of a start that was killed
            folder._refuse_content()
        except OSError as error:
            reason = "it is no folder" if isinstance(error, FileExistsError) else error.strerror
            raise OptionError(f"{path} can not be used ({reason}); choose another --out.") from None
        return folder

    def describe(self, resolved: Resolved) -> None:
        """Write run.toml, then environment.json. The caller holds the lock: of two starters one gets here first."""
        self._refuse_content()
        checkpoint.write_atomic(self.path / "run.toml", runfile.dump(resolved).encode())
        text = json.dumps(environment(resolved), indent=2) + "\n"
        checkpoint.write_atomic(self.path / "environment.json", text.encode())

    def _refuse_content(self) -> None:
        content = {entry.name for entry in self.path.iterdir()} - {self.lock.path.name}
        if content:
            hint = f"continue it with `advkit train --resume {self.path}`, or " if "run.toml" in content else ""
            raise OptionError(f"{self.path} holds files already; {hint}choose another --out.")

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run; CheckpointError where there is none."""
        if not (path / "run.toml").is_file():
            why = "it has no run.toml" if path.is_dir() else "it is a file" if path.exists() else "it does not exist"
            raise CheckpointError(f"{path} is not a run folder: {why}. Give the --out of a run.")
        return cls(path)

    def file(self) -> runfile.RunFile:
        """The run's own settings."""
        try:
            return runfile.load(self.path / "run.toml")
        except OptionError as error:
            raise CheckpointError(f"{error} It belongs to a run: restore it, or start a new run.") from None

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and state of the checkpoint that the link `name` ("best", "last") names."""
        if not os.path.lexists(self.checkpoints / name):
            when = "an epoch that is validated" if name == "best" else "its first checkpoint"
            raise CheckpointError(f"{self.path} has no checkpoint {name!r} yet; let it train until {when}.")
        return checkpoint.load(checkpoint.resolve(self.checkpoints, name))

    def truncate_metrics(self, size: int) -> None:
        """Drop lines that were written after the checkpoint that is resumed."""
        if self.metrics.exists():
            os.truncate(self.metrics, min(size, self.metrics.stat().st_size))

    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        try:
            return [json.loads(line) for line in self.metrics.read_text().splitlines()]
        except FileNotFoundError:
            return []
        except (OSError, ValueError):
            raise CheckpointError(f"{self.metrics} is damaged; restore it, or remove it to go on without.") from None

    def append_metrics(self, row: Mapping[str, object]) -> int:
        """Write one line; returns the file's size. Once it returns, the line survives a crash."""
        with open(self.metrics, "ab") as stream:
            stream.write(json.dumps(row, allow_nan=False).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
            return stream.tell()

    def drift(self, resolved: Resolved) -> list[str]:
        """How this machine and these versions differ from those the run was started with."""
        try:
            then = json.loads((self.path / "environment.json").read_text())
        except (OSError, ValueError):
            return ["environment.json is absent or damaged: what the run was started with is unknown"]
        now = environment(resolved)
        return [
            f"{key}: {then.get(key)} then, {now.get(key)} now"
            for key in sorted({*then, *now} - {"command"})
            if then.get(key) != now.get(key)
        ]


def environment(resolved: Resolved) -> dict[str, Any]:
    """What bits depend on beside run.toml."""
    used = {plugin.name for plugin in resolved.composition.plugins}
    owners = {each.name: f"{each.distribution} {each.version}" for each in registry.describe("plugin")}
    return {
        "advkit": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "safetensors": _version("safetensors"),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if resolved.run.device.startswith("cuda") else None,
        "plugins": {name: owners.get(name, "passed from Python") for name in sorted(used)},
        "command": sys.argv[1:],
    }


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
            raise OptionError(f"{path} can not be created ({error.strerror}); choose another --out.") from None
        return path
    raise AssertionError


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"


def _processor() -> str:
    try:
        names = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return names[0] if names else platform.processor()
