"""What stops a run: signals, and time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import pytest

import advkit
from advkit.cli.main import Group, run
from advkit.cli.signals import duration
from advkit.errors import Interrupted, Stopped
from advkit.stopping import Signals
from advkit.training.progress import Silent

TINY = ["--limit", "60", "--set", "model.width=2", "--set", "attack.steps=1", "--set", "validation.steps=1"]
CODES = {"SIGINT": 130, "SIGTERM": 75, "SIGUSR1": 75, "SIGHUP": 75}


@pytest.mark.parametrize(
    "name",
    [
        *("SIGINT", "SIGTERM"),
        *(pytest.param(name, marks=pytest.mark.soak) for name in ("SIGUSR1", "SIGHUP") if hasattr(signal, name)),
    ],
)
def test_a_signal_saves_and_the_run_can_go_on(name: str, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "advkit", "train", *TINY, "--epochs", "9999", "--progress", "none", "--out", "run"]
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)  # inherited; the tests may run under nohup
    process = subprocess.Popen(line, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    signal.signal(number, before)
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == CODES[name]
    assert "everything is saved. Continue with: advkit train --resume run" in said and said.count("\n") == 1
    assert (tmp_path / "run" / "checkpoints" / "last").exists()


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("command", [*Group.commands_in, "a thread"])
def test_every_command_ends_with_a_sentence(
    name: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before its own work begins, through code that catches all failures; what a signal did before it does again."""
    loose: list[object] = []

    def killed(*_: object, **__: object) -> None:
        try:
            os.kill(os.getpid(), getattr(signal, name))
        except Exception as error:
            loose.append(error)

    monkeypatch.setattr(Group, "get_command", lambda *_: click.Command(command, callback=killed))
    number = getattr(signal, name)
    before = signal.signal(number, lambda number, frame: loose.append(number))
    try:
        if command == "a thread":  # where nobody may choose what a signal does: the control
            with ThreadPoolExecutor(1) as threads:
                assert threads.submit(run, ["env"]).result() == 0
        else:
            assert run([command]) == CODES[name]
        assert capsys.readouterr().err == "Stopped; give the same command again to go on.\n" * (command != "a thread")
        assert loose == [number] * (command == "a thread")
        os.kill(os.getpid(), number)
        assert loose[-1:] == [number]
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize(("place", "code"), [("exec('kill()')", 75), ("atexit.register(kill)", 0)])
def test_the_exit_code_is_that_of_the_work(place: str, code: int, tmp_path: Path) -> None:
    """`python -m` would end by SIGINT after a KeyboardInterrupt in code from a text, as dataclasses have."""
    program = (
        "import atexit, click, os, signal; from advkit.cli.main import Group, main; "
        f"kill = lambda: os.kill(os.getpid(), signal.SIGTERM); callback = lambda: {place}; "
        "Group.get_command = lambda *_: click.Command('env', callback=callback); main(['env'])"
    )
    (tmp_path / "it.py").write_text(program)
    ran = subprocess.run([sys.executable, "-m", "it"], cwd=tmp_path, stderr=subprocess.DEVNULL, check=False)
    assert ran.returncode == code


def test_two_hang_ups_are_one_request_and_two_interrupts_are_not() -> None:
    with Signals() as signals:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert signals.requested is Stopped
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.requested is Interrupted
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("name", CODES)
def test_signals_that_were_ignored_at_the_start_are_ignored(name: str) -> None:
    """Hang-ups by nohup, Ctrl-C by a shell that starts something in the background."""
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), number)
            assert signals.requested is None
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


class Kills(Silent):
    """A signal after the first epoch."""

    def __init__(self, number: int) -> None:
        self.number = number

    def finished_epoch(self, row: Mapping[str, Any]) -> None:
        if row["epoch"] == 0:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("name", CODES)
def test_from_python_too_where_nobody_else_has_taken_the_signal(name: str, tmp_path: Path) -> None:
    """And the run is kept in a folder: else nothing could be saved, and the signal does what it does."""
    number, settings = getattr(signal, name), {"model.width": 2, "attack.steps": 1, "validation.steps": 1}
    how: dict[str, Any] = {"epochs": 3, "eps": 0.1, "settings": settings | {"data.limit": 60}}
    default, heard = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL, list[int]()
    before = signal.signal(number, default)
    try:
        with pytest.raises(
            Stopped, match=r"everything is saved\. Continue with: advkit\.train\(resume_from="
        ) as stopped:
            advkit.train(**how, out=tmp_path / "run", progress=Kills(number))
        assert stopped.value.exit_code == CODES[name] and signal.getsignal(number) == default
        assert len(advkit.train(resume_from=tmp_path / "run", progress=Kills(number)).history) == 3
        signal.signal(number, lambda number, frame: heard.append(number))
        for out in (tmp_path / "own", None):
            assert len(advkit.train(**how, out=out, progress=Kills(number)).history) == 3
        assert heard == [number, number]
    finally:
        signal.signal(number, before)


def test_an_ablation_from_python_too(tmp_path: Path) -> None:
    settings = {"model.width": 2, "attack.steps": 1, "validation.steps": 1, "data.limit": 60}
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(Stopped, match=r"^Stopped; everything is saved\. Give the same call again to go on\.$"):
            advkit.ablate("trades", out=tmp_path, epochs=2, settings=settings, progress=lambda: Kills(signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_processes_stop_where_torchrun_has_died(processes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a run without torchrun goes on where its shell has."""
    monkeypatch.setenv("WORLD_SIZE", processes)
    signals = Signals()
    assert signals.requested is None
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert signals.requested is (Stopped if processes == "2" else None)


@pytest.mark.parametrize(
    ("typed", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1h 30m 5s", 5405)]
)
def test_times(typed: str, seconds: int) -> None:
    assert duration("--max-time", typed) == seconds


@pytest.mark.parametrize("typed", ["", "0", "-1", "h", "30 parsecs", "1.5h", "m30", "nan"])
def test_no_times(typed: str) -> None:
    with pytest.raises(advkit.OptionError, match="must be a time above 0 in whole seconds, minutes or hours"):
        duration("--max-time", typed)


def test_a_run_stops_when_its_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["train", *TINY, "--progress", "none"]
    assert run([*line, "--epochs", "9999", "--max-time", "1s", "--out", "run"]) == 75
    assert "everything is saved. Continue with: advkit train --resume run" in capsys.readouterr().err
    page = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()
    assert "grep -q 'everything is saved'" in " ".join(page.split())  # by which scripts tell a stop from a failure
    assert run(["train", "--resume", "run", "--progress", "none", "--max-time", "1s"]) == 75
    assert run([*line, "--epochs", "1", "--max-time", "10m", "--out", "other"]) == 0
