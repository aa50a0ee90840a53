"""Killed, stopped or damaged, a run goes on to the very bits that it would have reached undisturbed.

Processes to be killed are forked from a server that has imported torch, so that each starts at once.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import pty
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import methods
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

import advkit
from advkit import Dataset, Plugin, Run, Splits, hookimpl, registry
from advkit.cli.display import Quiet, Signals
from advkit.cli.main import run
from advkit.compose.registration import hooks_of
from advkit.config import runfile
from advkit.config.resolve import Resolved
from advkit.data.digits import Digits
from advkit.errors import CheckpointError, Interrupted, NonFinite, ResumeMismatch, Stopped
from advkit.storage import checkpoint, files
from advkit.training import saving
from advkit.training.loop import Trainer
from advkit.training.progress import Silent
from advkit.training.step_report import Report

pytestmark = pytest.mark.slow

LINE = ["train", "--plugins", "cat-eps,dirichlet-ls,lsiw", "--limit", "300", "--batch-size", "32", "--epochs", "3"]
LINE += ["--set=model.width=4", "--set=checkpoint.every_steps=3", "--set=run.threads=1", "--progress=none"]
STEPS = 3 * 9
"""270 images to train on, in batches of 32, three times."""


class Ended(NamedTuple):
    """All that a run leaves but its seconds."""

    last: dict[str, Any]
    best: dict[str, Any]
    links: dict[str, str]
    metrics: list[dict[str, Any]]


def ended(folder: Path) -> Ended:
    """What is in a folder; of the metrics not the seconds."""
    links = {name: os.readlink(folder / "checkpoints" / name) for name in ("last", "best")}
    last, best = (
        {
            n: (v.dtype, v.shape, v.numpy().tobytes())
            for n, v in checkpoint.load(folder / "checkpoints" / step)[0].items()
        }
        for step in links.values()
    )
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["seconds"]
    return Ended(last, best, links, rows)


class Ran(NamedTuple):
    code: int
    out: str
    err: str


def command(*arguments: object) -> Ran:
    """One command line, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(each) for each in arguments])
    assert "Traceback" not in err.getvalue()
    return Ran(code, out.getvalue(), err.getvalue())


def resume(folder: Path) -> Ran:
    return command("train", "--resume", folder, "--progress", "none")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert command(*LINE, "--out", folder) == (0, "", "")
    assert checkpoint.load(folder / "checkpoints" / "last")[1]["position"]["global_step"] == STEPS
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to damage."""
    return Path(shutil.copytree(whole, tmp_path / "copy", symlinks=True))


# ---------------------------------------------------------------------- processes


def _command(
    arguments: list[str], log: str, terminal: str | None, die_at: tuple[int, bool] | None, beside: bool
) -> None:
    """The child: one command line, its output in a file or on a terminal of its own; it may kill itself.

    `beside`: it writes checkpoints while it trains, as those of large nets are.
    """
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    if terminal is not None:
        os.setsid()
        file = os.open(terminal, os.O_RDWR)  # the first terminal of a session is its controlling one: Ctrl-C works
    for standard in (1, 2):
        os.dup2(file, standard)
    if die_at is not None:
        _die(*die_at)
    if beside:
        saving.BESIDE = 0
    sys.exit(run(arguments))


EVENTS = ("rename", "replace", "fsync", "symlink", "mkdir", "unlink", "rmdir", "truncate")
"""Calls that change what a crash leaves behind."""


def _die(number: int, after: bool) -> None:
    """SIGKILL before or after the `number`-th such call of this process; below 0 only count them, into a file."""
    count = 0

    def counted(name: str) -> None:
        original = getattr(os, name)

        def call(*args: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == number and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return original(*args, **named)
            finally:
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                if number < 0:
                    os.write(1, b".")

        setattr(os, name, call)

    for name in EVENTS:
        counted(name)


PRELOADED = [
    __name__,
    "advkit.cli.train",
    "advkit.cli.display",
    "advkit.cli.plan",
    "advkit.training.launch",
    "advkit.training.loop",
]
PRELOADED += ["torch._dynamo", "advkit_plugins.cat_eps", "advkit_plugins.lsiw", "advkit.data.digits"]
"""What takes a process of its own a second or more to import; torch's optimizers import torch._dynamo."""


def spawn(
    *arguments: object,
    log: Path,
    terminal: str | None = None,
    die_at: tuple[int, bool] | None = None,
    beside: bool = False,
) -> ForkServerProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    given = [str(a) for a in arguments], str(log), terminal, die_at, beside
    process = context.Process(target=_command, args=given)
    process.start()
    return process


def ending(process: ForkServerProcess) -> int:
    process.join(120)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def busy(process: ForkServerProcess) -> float:
    """CPU seconds of a process so far; the moments of kills are in these, as machines may be loaded."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return float("inf")
    return float("inf") if fields[0] == b"Z" else (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def killed_at(process: ForkServerProcess, seconds: float) -> bool:
    """SIGKILL after CPU seconds; whether that came before its end."""
    while busy(process) < seconds:
        time.sleep(0.001)
    time.sleep(seconds % 0.01)  # clock ticks are coarse
    process.kill()
    return ending(process) == -signal.SIGKILL


def wait_for(what: Callable[[], object]) -> None:
    limit = time.monotonic() + 60
    while not what():
        assert time.monotonic() < limit, "it does not come"
        time.sleep(0.002)


def survive(
    kills: int,
    chance: random.Random,
    whole: Path,
    tmp_path: Path,
    begin: Sequence[str] = LINE,
    beside: bool = False,
) -> None:
    """Runs killed at random moments, `kills` times in all; whenever one is done, it is the undisturbed run."""
    cost = 0.0
    done = survived = serial = 0
    while done < kills or not survived:
        folder, log = tmp_path / f"run-{serial}", tmp_path / f"log-{serial}"
        serial += 1
        line: list[object] = [*begin, "--out", folder]
        for _ in range(1000):
            process = spawn(*line, log=log, beside=beside)
            if not cost:  # the first is only timed
                while process.is_alive():
                    cost = max(cost, busy(process) if busy(process) < 1e9 else 0.0)
                    time.sleep(0.005)
            elif done < kills and killed_at(process, chance.uniform(0, 0.5 * cost)):
                done += 1
                line = ["train", "--resume", folder, "--progress", "none"] if (folder / "run.toml").exists() else line
                continue
            assert ending(process) == 0, log.read_text()
            break
        assert ended(folder) == ended(whole)
        assert "Skipped" not in (log.read_text() if log.exists() else "")
        assert not [p for p in (folder / "checkpoints").iterdir() if p.name.startswith(".")], "litter"
        survived += 1
    assert done == kills


def test_three_kills_at_random_moments(whole: Path, tmp_path: Path) -> None:
    survive(3, random.Random(0), whole, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("seed", [1, 2])
def test_twenty_kills_at_random_moments(seed: int, beside: bool, whole: Path, tmp_path: Path) -> None:
    survive(20, random.Random(seed), whole, tmp_path, beside=beside)


def test_control_another_seed_is_another_run(whole: Path, tmp_path: Path) -> None:
    assert command(*LINE, "--seed", 1, "--out", tmp_path / "run").code == 0
    mine, theirs = ended(tmp_path / "run"), ended(whole)
    assert mine.last.keys() == theirs.last.keys() and mine.metrics != theirs.metrics
    assert {name.partition("/")[0] for name in mine.last if mine.last[name] != theirs.last[name]} >= {
        "model",
        "optimizer",
        "samples",
    }


SHORT = ["train", "--plugins", "cat-eps,dirichlet-ls", "--limit", "60", "--batch-size", "27", "--epochs", "2"]
SHORT += ["--set=model.width=2", "--set=attack.steps=1", "--set=validation.steps=1", "--set=checkpoint.keep=1"]
SHORT += ["--set=checkpoint.every_steps=1", "--set=run.threads=1", "--progress=none"]


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps that saves at each and keeps one checkpoint."""
    folder = tmp_path_factory.mktemp("short") / "run"
    assert command(*SHORT, "--out", folder) == (0, "", "")
    return folder


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many calls that a kill may hit there are in a short run."""
    folder = tmp_path_factory.mktemp("points")
    process = spawn(*SHORT, "--out", folder / "run", log=folder / "log", die_at=(-1, False))
    assert ending(process) == 0
    return (folder / "log").read_text().count(".")


def die_and_resume(number: int, after: bool, short: Path, root: Path, beside: bool = False) -> None:
    folder, log = root / f"{number}-{after}", root / "log"
    assert ending(spawn(*SHORT, "--out", folder, log=log, die_at=(number, after), beside=beside)) == -signal.SIGKILL
    # Killed so early that there is no run yet, the same line starts it.
    started = (folder / "run.toml").exists()
    ran = resume(folder) if started else command(*SHORT, "--out", folder)
    assert ran.code == 0, ran.err
    assert ended(folder) == ended(short), (number, after)


def test_kills_inside_a_start_a_checkpoint_and_a_row_of_metrics(short: Path, points: int, tmp_path: Path) -> None:
    """Points spread over the run; `make soak` has all of them."""
    assert points > 80
    for number in (2, 3, 7, *range(20, points + 1, points // 3)):
        die_and_resume(number, bool(number % 2), short, tmp_path, beside=bool(number % 3))


@pytest.mark.soak
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_every_point(after: bool, beside: bool, short: Path, points: int, tmp_path: Path) -> None:
    for number in range(1, points + 1):
        die_and_resume(number, after, short, tmp_path, beside)


def test_sigterm_a_second_process_and_the_signals_of_a_stopped_run(whole: Path, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    process = spawn(*LINE, "--out", folder, log=log)
    wait_for(lambda: checkpoint.steps(folder / "checkpoints") and process.is_alive())
    sentence = f"Error: {folder} is in use by process {process.pid} on host "
    ran = resume(folder)
    assert ran.code == 2 and ran.out == "" and ran.err.startswith(sentence)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    assert ending(process) == 75
    assert f"everything is saved. Continue with: advkit train --resume {folder}" in log.read_text()
    assert log.read_text().startswith("Stopped in epoch "), "it is no error"
    assert resume(folder).code == 0
    assert ended(folder) == ended(whole)


def test_ctrl_c_on_a_terminal(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    master, slave = pty.openpty()
    line = [argument for argument in LINE if argument != "--progress=none"]
    process = spawn(*line, "--out", folder, "--progress", "rich", log=tmp_path / "log", terminal=os.ttyname(slave))
    os.set_blocking(master, False)
    seen = b""

    def read() -> bytes:
        nonlocal seen
        with contextlib.suppress(BlockingIOError):
            seen += os.read(master, 1 << 16)
        return seen

    wait_for(lambda: b"epoch 1/3" in read() or not process.is_alive())
    assert process.is_alive(), read().decode()
    os.write(master, b"\x03")
    wait_for(lambda: read() and not process.is_alive())
    assert ending(process) == 130
    text = read().decode()
    os.close(master)
    os.close(slave)
    assert "Stopped in epoch " in text and "Error" not in text and "Traceback" not in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is back"
    assert resume(folder).code == 0
    assert ended(folder) == ended(whole)


def test_of_starts_at_once_one_gets_the_folder_and_each_a_folder(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = [spawn(*SHORT, "--out", tmp_path / "same", log=tmp_path / f"log-{n}") for n in range(3)]
    codes = [ending(process) for process in same]
    assert sorted(codes) == [0, 2, 2]
    for number in (n for n, code in enumerate(codes) if code):
        assert (tmp_path / f"log-{number}").read_text().startswith(f"Error: {tmp_path / 'same'} ")
    assert ended(tmp_path / "same") == ended(short)
    monkeypatch.chdir(tmp_path)
    each = [spawn(*SHORT, log=tmp_path / "log") for _ in range(3)]
    assert [ending(process) for process in each] == [0, 0, 0]
    folders = sorted((tmp_path / "runs").iterdir())
    assert [folder.name for folder in folders] == [f"cat-eps+dirichlet-ls-{n}" for n in (1, 2, 3)]
    assert all(ended(folder) == ended(short) for folder in folders)


# ---------------------------------------------------------------------- signals, in this process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_signal_stops_after_its_step(
    number: signal.Signals, code: int, step: int, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 2 is the last of an epoch, and 4 of the run."""
    steps = 0

    def stepped(self: Quiet, trainer: Trainer, report: Report) -> None:
        nonlocal steps
        steps += 1
        if steps == step:
            signal.raise_signal(number)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Quiet, "stepped", stepped)
        ran = command(*SHORT, "--out", folder)
    epoch, within = (0, step) if step <= 2 else (1, step - 2)
    sentence = f"Stopped in epoch {epoch + 1} after step {within}; everything is saved."
    assert ran == (code, "", f"{sentence} Continue with: advkit train --resume {folder}\n")
    assert steps == step
    assert resume(folder).code == 0
    assert ended(folder) == ended(short)


def test_a_second_signal_stops_at_once_and_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Signals() as signals:
        assert signals.requested is None
        signal.raise_signal(signal.SIGTERM)
        assert signals.requested is Stopped
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with Signals() as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.requested is Interrupted
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


# ---------------------------------------------------------------------- crashes and stops, in this process


class Crash(Exception):
    """As good as a kill for what is on disk: nothing is saved on its way out."""


class Nemesis(Silent):
    """Stops or crashes a run after some steps."""

    def __init__(self, kind: str, after: int) -> None:
        self.kind, self.left = kind, after
        self.said: list[str] = []

    def stepped(self, trainer: Trainer, report: Report) -> None:
        self.left -= 1
        if self.kind == "crash" and self.left == 0:
            raise Crash

    def stop_requested(self) -> type[Stopped] | None:
        return Stopped if self.kind == "stop" and self.left == 0 else None

    def warn(self, sentence: str) -> None:
        self.said.append(sentence)


class Average(Plugin):
    """A running average of the weights, which is what gets evaluated."""

    name = "average"

    @hookimpl
    def setup(self, run: Run) -> None:
        self.count = run.tensor_state("count", torch.zeros((), dtype=torch.int64))
        self.mean = run.tensor_state("mean", torch.zeros(10))

    @hookimpl
    def after_update(self, model: nn.Module) -> None:
        bias = model.get_parameter("4.bias").detach()
        self.count += 1
        self.mean += (bias - self.mean) / self.count

    @hookimpl
    def evaluation_weights(self, model: nn.Module) -> Mapping[str, Tensor]:
        return {"4.bias": self.mean} if self.count else {}


class WithReplacement(Plugin):
    """Batches in which an image may come twice."""

    name = "with-replacement"

    @hookimpl
    def train_sampler(self, indices: Tensor, batch_size: int, epoch: int) -> Sequence[Tensor]:
        generator = torch.Generator().manual_seed(epoch)
        return [indices[torch.randint(len(indices), (batch_size,), generator=generator)] for _ in range(4)]


def net() -> nn.Module:
    """Batch statistics, dropout, and no seed: its weights are the caller's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Dropout(0.3), nn.Linear(12, 10))


OWN: dict[str, Any] = {
    "plugins": ["cat-eps", "dirichlet-ls", "lsiw", Average, WithReplacement],
    "settings": {"attack.steps": 2, "validation.steps": 2, "checkpoint.every_steps": 3, "attack.init": "uniform"},
    "options": {"lsiw": {"lam": [[0, 0.0], [1, 0.1]]}},
    "epochs": 3,
    "batch_size": 30,
    "eps": 0.15,
}
OWN_STEPS = 3 * 4


@pytest.fixture(scope="module")
def splits() -> Splits:
    return Digits().load(None, 130)


def own_run(folder: Path, splits: Splits, events: list[tuple[str, int]], **changed: Any) -> None:
    """A run from Python with everything that has state; each event is what happens, and after how many steps."""
    how: dict[str, Any] = {"out": folder}
    for kind, after in events:
        with contextlib.suppress(Crash, Stopped):
            advkit.train(net(), splits, **(OWN | changed), **how, progress=Nemesis(kind, after))
        how = {"resume_from": folder}
    result = advkit.train(net(), splits, **(OWN | changed), **how)
    assert len(result.history) == 3


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, splits: Splits) -> Path:
    folder = tmp_path_factory.mktemp("own") / "run"
    own_run(folder, splits, [])
    held = ended(folder).last
    assert {"tensors/average/count", "tensors/average/mean", "samples/cat-eps/eps", "evaluated/4.bias"} <= held.keys()
    return folder


CRASHES = {
    "before the first checkpoint of a step": [("crash", 1)],
    "twice before it": [("crash", 1), ("crash", 2)],
    "at a checkpoint": [("crash", 3)],
    "twice within an epoch": [("crash", 2), ("stop", 1), ("crash", 2)],
    "at the last step of an epoch": [("crash", 4)],
    "stopped at the last step of an epoch": [("stop", 4)],
    "at the first step of an epoch": [("stop", 5)],
    "where a schedule begins": [("stop", 4), ("stop", 1), ("crash", 1)],
    "at the last step of all": [("stop", OWN_STEPS), ("stop", 1)],
    "after every step": [("stop", 1)] * OWN_STEPS,
}


@pytest.mark.parametrize("events", CRASHES.values(), ids=CRASHES)
def test_resume_after_a_crash_or_a_stop(
    events: list[tuple[str, int]], own: Path, splits: Splits, tmp_path: Path
) -> None:
    own_run(tmp_path / "run", splits, events)
    assert ended(tmp_path / "run") == ended(own)


@pytest.mark.parametrize("name", ["twice within an epoch", "at the last step of all", "after every step"])
def test_resume_of_what_was_written_beside_the_training(
    name: str, own: Path, splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As checkpoints of large nets are."""
    monkeypatch.setattr(saving, "BESIDE", 0)
    own_run(tmp_path / "run", splits, CRASHES[name])
    assert ended(tmp_path / "run") == ended(own)


def test_a_checkpoint_has_what_was_there_when_it_was_due(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However late it is written; one that can not be written ends the run at the next, and a run that fails waits."""
    real, written = checkpoint.save, []

    def late(*arguments: Any) -> Path:
        time.sleep(0.02)
        written.append(arguments[1])
        if arguments[1] == fails:
            raise CheckpointError("The disk is full.")
        return real(*arguments)

    many, fails = {"settings": OWN["settings"] | {"checkpoint.keep": 99, "checkpoint.every_steps": 1}}, -1
    advkit.train(net(), splits, **(OWN | many), out=tmp_path / "now")
    monkeypatch.setattr(saving, "BESIDE", 0)
    monkeypatch.setattr(saving.checkpoint, "save", late)
    advkit.train(net(), splits, **(OWN | many), out=tmp_path / "beside")
    assert written == sorted(written) and len(written) >= OWN_STEPS
    one, other = (
        {p.parent.name: p.read_bytes() for p in (tmp_path / name).glob("checkpoints/step-*/tensors.safetensors")}
        for name in ("now", "beside")
    )
    assert one == other and len(one) > OWN_STEPS // 2
    fails = 3
    with pytest.raises(CheckpointError, match="The disk is full"):
        advkit.train(net(), splits, **(OWN | many), out=tmp_path / "full")
    assert checkpoint.newest(tmp_path / "full" / "checkpoints").name == "step-00000002"
    with pytest.raises(Crash):
        advkit.train(net(), splits, **(OWN | many), out=tmp_path / "crash", progress=Nemesis("crash", 2))
    assert checkpoint.newest(tmp_path / "crash" / "checkpoints").name == f"step-{written[-1]:08d}"


def test_what_ctrl_c_breaks_into_is_waited_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the lock of the folder is given back while it is still written to."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(saving, "BESIDE", 0)
    writer, go, done = saving.Writer(), threading.Event(), list[int]()
    writer.write(lambda kept: done.extend([len(kept)] if go.wait(10) else []), {"one": torch.ones(1)})
    with monkeypatch.context() as patched:
        patched.setattr(saving, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            writer.wait()
    go.set()
    writer.wait()
    assert done == [1]


SENTENCES: dict[str, dict[str, Any]] = {
    **{
        ",".join(party): {n: options for each in party for n, options in methods.declared(each).moving.items()}
        for party in methods.parties()
    },
    "trades,awp": {"awp": {"gamma": [[0, 0.0], [1, 0.01]]}},
    "mart,awp": {"awp": {"step_at": "theta+v"}},
    "cat-eps,dirichlet-ls,cat-margin,lsiw": {"cat-margin": {"weight": "eps"}},
}
"""Every installed plugin, and some together, with options that change or add up from step to step."""


@pytest.mark.parametrize("sentence", SENTENCES)
def test_each_method_resumes_within_an_epoch(sentence: str, splits: Splits, tmp_path: Path) -> None:
    """Before the first checkpoint, at the first step of the second epoch, and a step behind a checkpoint within it."""
    names = sentence.split(",")
    sampled = any("train_sampler" in hooks_of(registry.load("plugin", name)) for name in names)
    changed = {"plugins": names if sampled else [*names, WithReplacement], "options": SENTENCES[sentence]}
    for name, events in (("whole", []), ("resumed", [("crash", 2), ("stop", 5), ("crash", 2)])):
        own_run(tmp_path / name, splits, events, **changed)
    assert ended(tmp_path / "resumed") == ended(tmp_path / "whole")


@settings(deadline=None, max_examples=5)
@given(st.lists(st.tuples(st.sampled_from(["crash", "stop"]), st.integers(1, 7)), min_size=1, max_size=5))
def test_resume_after_anything(own: Path, splits: Splits, events: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as root:
        own_run(Path(root) / "run", splits, events)
        assert ended(Path(root) / "run") == ended(own)


def test_control_a_state_that_is_not_restored_shows(own: Path, splits: Splits, tmp_path: Path) -> None:
    """Each part of a checkpoint matters: with any of them zeroed, the resumed run ends elsewhere."""
    folder = tmp_path / "stopped"
    with pytest.raises(Stopped):
        advkit.train(net(), splits, **OWN, out=folder, progress=Nemesis("stop", 6))
    for part in (
        "model/1.weight",
        "model/2.running_mean",
        "optimizer/4.bias",
        "samples/cat-eps/eps",
        "tensors/average",
    ):
        broken = Path(shutil.copytree(folder, tmp_path / part.replace("/", "-"), symlinks=True))
        newest = checkpoint.newest(broken / "checkpoints")
        assert newest is not None
        tensors, state = checkpoint.load(newest)
        chosen = [name for name in tensors if name.startswith(part)]
        assert chosen
        zeroed = tensors | {name: torch.zeros_like(tensors[name]) for name in chosen}
        checkpoint.save(newest.parent, 6, zeroed, state | {"net": None})  # whose answer is another at zero
        advkit.train(net(), splits, **OWN, resume_from=broken)
        assert ended(broken) != ended(own), part


def test_init_from_survives_a_kill_before_the_first_steps_checkpoint(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or before there is a run, where the same command begins again."""

    def interrupted(resolved: Resolved) -> str:
        raise KeyboardInterrupt

    line = [*SHORT, "--set=checkpoint.every_steps=99", "--seed=3", "--init-from", short]
    line = [each for each in line if each != "--set=checkpoint.every_steps=1"]
    with monkeypatch.context() as patch:
        patch.setattr(runfile, "dump", interrupted)
        assert command(*line, "--out", tmp_path / "whole").code == 130
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {"environment.json", "lock"}
    shutil.copytree(tmp_path / "whole", tmp_path / "own")
    (tmp_path / "own" / "environment.json").write_text("{}")
    assert "holds files already" in command(*line, "--out", tmp_path / "own").err
    assert command(*line, "--out", tmp_path / "whole").code == 0
    process = spawn(*line, "--out", tmp_path / "killed", log=tmp_path / "log")
    wait_for(lambda: checkpoint.steps(tmp_path / "killed" / "checkpoints"))
    process.kill()
    ending(process)
    assert resume(tmp_path / "killed").code == 0
    assert ended(tmp_path / "killed") == ended(tmp_path / "whole")
    assert json.loads((tmp_path / "killed" / "environment.json").read_text())["init_from"] == str(short)


# ---------------------------------------------------------------------- what may be resumed


def everything_in(folder: Path) -> dict[str, object]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*")) if p.name != "lock"}


def test_a_finished_run_says_so(copy: Path) -> None:
    before = everything_in(copy)
    ran = resume(copy)
    assert ran == (0, "", f"The run in {copy} is finished; nothing is left to do.\n")
    assert everything_in(copy) == before


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run stopped in its first epoch."""
    folder = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(Quiet, "stop_requested", lambda self: Stopped)
        assert command(*SHORT, "--out", folder).code == 75
    return folder


def test_a_changed_setting_is_refused_with_the_difference(stopped: Path, short: Path) -> None:
    before = everything_in(stopped)
    for typed, sentence in (
        (
            ["--epochs", 9, "--eps", "8/255"],
            "A run can not change its settings: attack.eps: 0.15 in the run, 0.03137254901960784 now; run.epochs: 2 in "
            "the run, 9 now. Leave them out, or start a new run with another --out.",
        ),
        (
            ["-o", "cat-eps.eta=0.01"],
            "A run can not change its settings: cat-eps.eta: 0.02390625 in the run, 0.01 now. Leave them out, or start "
            "a new run with another --out.",
        ),
        (
            ["--plugins", "cat-eps"],
            "The run was started with the plugins cat-eps, dirichlet-ls, not cat-eps; start a new run with another "
            "--out.",
        ),
    ):
        ran = command("train", "--resume", stopped, *typed)
        assert ran == (2, "", f"Error: {sentence}\n")
    assert everything_in(stopped) == before
    same = ["--plugins", "dirichlet-ls,cat-eps", "--epochs", 2, "--eps", "15/100", "-o", "cat-eps.eps_max=0.15"]
    assert command("train", "--resume", stopped, *same, "--progress", "none").code == 0
    assert ended(stopped) == ended(short)


def test_an_edited_run_file_is_refused_with_the_difference(stopped: Path) -> None:
    file = stopped / "run.toml"
    file.write_text(file.read_text().replace("epochs = 2", "epochs = 4"))
    ran = resume(stopped)
    sentence = "run.toml is not that of the checkpoint: run.epochs: 2 in the run, 4 now. Restore it; if "
    sentence += "nobody has edited it, resume with the advkit that wrote it."
    assert ran == (2, "", f"Error: {sentence}\n")


def test_another_data_set_is_no_finished_run(copy: Path, tmp_path: Path) -> None:
    """Though a finished run needs no data, and so none has to be there."""
    file = copy / "run.toml"
    digits, elsewhere = file.read_text(), f'root = "{tmp_path}/none"'
    file.write_text(digits.replace('name = "digits"', 'name = "fashion-mnist"').replace('root = ""', elsewhere, 1))
    said = "run.toml is not that of the checkpoint: data.name: 'digits' in the run, 'fashion-mnist' now. Restore it; "
    said += "if nobody has edited it, resume with the advkit that wrote it."
    assert resume(copy) == (2, "", f"Error: {said}\n")
    file.write_text(digits)
    assert resume(copy).code == 0


def test_other_images_are_refused(own: Path, splits: Splits, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(own, tmp_path / "run", symlinks=True))
    old = splits.train
    other = Splits(Dataset(old.name, 255 - old.images, old.labels, old.classes), splits.test, splits.transform)
    with pytest.raises(ResumeMismatch, match="images differ from those the run was started with"):
        advkit.train(net(), other, **OWN, resume_from=folder)


def test_python_refuses_other_arguments(own: Path, splits: Splits, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(own, tmp_path / "run", symlinks=True))
    with pytest.raises(ResumeMismatch, match=r"run\.epochs: 3 in the run, 4 now"):
        advkit.train(net(), splits, **(OWN | {"epochs": 4}), resume_from=folder)
    with pytest.raises(ResumeMismatch, match="was started with the plugins"):
        advkit.train(net(), splits, **(OWN | {"plugins": ["cat-eps"], "options": {}}), resume_from=folder)


def test_plugin_objects_resume(splits: Splits, tmp_path: Path) -> None:
    from advkit_plugins.awp import Awp

    def objects() -> dict[str, Any]:
        awp = Awp(Awp.Options.model_validate({"gamma": 0.02}))
        return OWN | {"plugins": ["cat-eps", awp, Average(Average.Options())], "options": {}}

    advkit.train(net(), splits, **objects(), out=tmp_path / "one")
    with pytest.raises(Stopped):
        advkit.train(net(), splits, **objects(), out=tmp_path / "two", progress=Nemesis("stop", 5))
    advkit.train(net(), splits, **objects(), resume_from=tmp_path / "two")
    assert ended(tmp_path / "two") == ended(tmp_path / "one")


def test_another_machine_is_a_line_not_a_refusal(stopped: Path, short: Path) -> None:
    file = stopped / "environment.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"torch": "1.0"}))
    ran = resume(stopped)
    assert ran == (
        0,
        "",
        f"environment.json differs: torch: 1.0 then, {torch.__version__} now; bits may differ too\n",
    )
    assert ended(stopped) == ended(short)


# ---------------------------------------------------------------------- damage


def flip(file: Path) -> None:
    blob = bytearray(file.read_bytes())
    blob[len(blob) // 2] ^= 1
    file.write_bytes(blob)


def test_a_damaged_newest_checkpoint_is_passed_over_with_one_line(copy: Path, whole: Path) -> None:
    newest, older = checkpoint.steps(copy / "checkpoints")[:2]
    flip(newest / "tensors.safetensors")
    ran = resume(copy)
    assert ran == (
        0,
        "",
        f"Skipped a checkpoint: {newest}/tensors.safetensors is damaged (its size or SHA-256 is not that of "
        f"manifest.json); remove {newest.name} to resume from an earlier one, or read another "
        "checkpoint, best or last.\n",
    )
    assert ended(copy) == ended(whole)
    assert older.exists()


def test_only_damaged_checkpoints_are_refused_and_left_alone(copy: Path) -> None:
    for step in checkpoint.steps(copy / "checkpoints"):
        flip(step / "state.json")
    before = everything_in(copy)
    ran = resume(copy)
    assert ran.code == 4 and ran.out == ""
    *skipped, last = ran.err.splitlines()
    assert len(skipped) == len(checkpoint.steps(copy / "checkpoints")) >= 2
    assert all(line.startswith("Skipped a checkpoint: ") for line in skipped)
    assert last == (
        f"Error: No checkpoint of {copy} is intact; restore one, or start again with "
        f"`advkit train --config {copy}/run.toml`."
    )
    assert everything_in(copy) == before, "the metrics are all that is left of the run"


def test_without_any_checkpoint_a_run_begins_anew(stopped: Path, short: Path) -> None:
    """But not one that began with other weights: its seed does not bring them back."""
    shutil.rmtree(stopped / "checkpoints")
    known = json.loads((stopped / "environment.json").read_text()) | {"init_from": "weights.pt"}
    (stopped / "environment.json").write_text(json.dumps(known))
    ran = resume(stopped)
    assert (ran.code, ran.out) == (
        4,
        "",
    ) and "has no checkpoint, and its first one had the weights of weights.pt" in ran.err
    del known["init_from"]
    (stopped / "environment.json").write_text(json.dumps(known))
    lines = len((stopped / "metrics.jsonl").read_text().splitlines()) if (stopped / "metrics.jsonl").exists() else 0
    ran = resume(stopped)
    assert (ran.code, "are gone, after" in ran.err) == (0, lines > 0)
    assert ended(stopped) == ended(short)
    shutil.rmtree(stopped / "checkpoints")
    assert "are gone, after 2 epochs: the run begins anew" in resume(stopped).err


def test_lines_after_the_checkpoint_are_dropped_and_damaged_ones_refused(stopped: Path, short: Path) -> None:
    with open(stopped / "metrics.jsonl", "ab") as stream:
        stream.write(b'{"epoch": 0}\n{"epo')
    assert resume(stopped).code == 0
    assert ended(stopped) == ended(short)
    flipped = (stopped / "metrics.jsonl").read_text().replace("{", "<", 1)
    (stopped / "metrics.jsonl").write_text(flipped)
    ran = resume(stopped)
    sentence = f"{stopped}/metrics.jsonl is damaged; restore it, or remove it to go on without."
    assert ran == (4, "", f"Error: {sentence}\n")


def test_names_lost_between_a_checkpoint_and_its_pointing_come_back(copy: Path, whole: Path) -> None:
    for name in ("last", "best", "names.json"):
        (copy / "checkpoints" / name).unlink()
    resume(copy)
    assert ended(copy) == ended(whole)
    assert json.loads((copy / "checkpoints" / "names.json").read_text()) == ended(whole).links


def test_a_full_disk_ends_the_run_and_harms_nothing(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    folder, original, left = tmp_path / "run", files.write_new, 9

    def write(file: Path, data: bytes) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_new", write)
        ran = command(*SHORT, "--out", folder)
    assert ran.code == 4 and ran.err.endswith(
        "can not be used (No space left on device); check path, permissions and free space; it is as it was.\n"
    )
    assert resume(folder).code == 0
    assert ended(folder) == ended(short)


# ---------------------------------------------------------------------- NaN


class NanAt(Plugin):
    """NaN in the loss at one step of the run, if that is wanted."""

    name = "nan-at"
    wanted: ClassVar[tuple[int, int] | None] = None

    @hookimpl
    def base_loss(self, batch: advkit.Batch, adv_logits: Tensor, run: Run) -> Tensor:
        loss = nn.functional.cross_entropy(adv_logits, batch.y, reduction="none")
        return loss * torch.nan if (run.epoch, run.step) == self.wanted else loss


@pytest.mark.parametrize(("epoch", "step"), [(0, 0), (0, 2), (1, 0), (1, 3)])
def test_nan_leaves_the_last_good_checkpoint(
    epoch: int, step: int, splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = OWN | {"plugins": ["cat-eps", NanAt], "options": {}}
    advkit.train(net(), splits, **given, out=tmp_path / "fine")
    monkeypatch.setattr(NanAt, "wanted", (epoch, step))
    sentence = (
        rf"NaN or Inf in the loss \(term base_loss\) at epoch {epoch + 1}, step {step + 1}\. The step was not applied"
    )
    with pytest.raises(NonFinite, match=sentence):
        advkit.train(net(), splits, **given, out=tmp_path / "run")
    good = checkpoint.newest(tmp_path / "run" / "checkpoints", pytest.fail)
    assert good is not None
    done = 4 * epoch + step
    saved = max(done // 3 * 3, 4 * epoch)
    assert good.name == f"step-{saved:08d}"
    assert all(value.isfinite().all() for value in checkpoint.load(good)[0].values() if value.is_floating_point())
    with pytest.raises(NonFinite, match=sentence):
        advkit.train(net(), splits, **given, resume_from=tmp_path / "run")
    monkeypatch.setattr(NanAt, "wanted", None)
    advkit.train(net(), splits, **given, resume_from=tmp_path / "run")
    assert ended(tmp_path / "run") == ended(tmp_path / "fine")
