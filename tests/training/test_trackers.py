"""Trackers see a run and change no bit of it; a resume goes on in the same place; what fails there ends no run."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import advkit
from advkit import AdvkitError, CheckpointError, OptionError, PluginImport, PluginLoad, Step, Stopped
from advkit.cli.main import run
from advkit.config.layer import Layer
from advkit.config.request import Request
from advkit.generators import generators
from advkit.global_state import switches
from advkit.training.progress import Silent, voice
from advkit.training.trackers import MLflow, WandB
from advkit.training.tracking import Tracked, of_epoch, tracked

TINY: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 30,
    "settings": {"data.limit": 60, "model.width": 2, "attack.steps": 1, "validation.steps": 1},
}


class Wandb:
    """In place of the library: remembers what it was told."""

    def __init__(self) -> None:
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.saved: list[str] = []
        self.finished: list[int] = []
        self.id = "r1"

    def init(self, **how: Any) -> Wandb:
        self.begun.append(how)
        return self

    def Settings(self, **how: Any) -> dict[str, Any]:
        return how

    def log(self, figures: dict[str, float], step: int) -> None:
        self.logged.append((step, figures))

    def save(self, path: str, **how: Any) -> None:
        self.saved.append(Path(path).name)

    def finish(self, exit_code: int) -> None:
        self.finished.append(exit_code)

    def of(self, name: str) -> list[tuple[int, float]]:
        return [(step, figures[name]) for step, figures in self.logged if name in figures]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    stub = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", stub)  # type: ignore[misc]
    return stub


class StopsAfter(Silent):
    def __init__(self, steps: int) -> None:
        self._steps: Iterator[int] = iter(range(steps, -9, -1))
        self.heard: list[str] = []

    def warn(self, sentence: str) -> None:
        self.heard.append(sentence)

    def stop_requested(self) -> type[Stopped] | None:
        return Stopped if next(self._steps) == 1 else None


def weights(folder: Path) -> dict[str, Any]:
    return dict(safetensors.torch.load_file(folder / "checkpoints/last/tensors.safetensors"))


HELD: list[Any] = []
"""Inference modes that are entered for good."""


def meddle() -> None:
    """Change all that a process has but one of."""
    os.chdir("/")
    torch.manual_seed(1), np.random.seed(1), random.seed(1)  # noqa: NPY002
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.set_default_dtype(torch.float64), torch.set_default_device("meta")
    torch.set_float32_matmul_precision("medium"), torch.set_deterministic_debug_mode(1)
    torch.backends.cudnn.benchmark = True
    torch.set_flush_denormal(True), torch.autograd.set_detect_anomaly(True), torch.set_autocast_enabled("cpu", True)
    torch.set_autocast_dtype("cpu", torch.float16)
    HELD.append(torch.inference_mode())
    HELD[-1].__enter__()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)  # what nohup ignores is ignored before
    torch.backends.mkldnn.set_flags(False, _fp32_precision=None), np.seterr(all="call")
    HELD.append(torch.autograd.graph.saved_tensors_hooks(lambda value: value, lambda value: value))
    HELD[-1].__enter__()
    sys.stdout = io.StringIO()


def process() -> tuple[object, ...]:
    """What of it the run is."""
    signals = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    return str(generators()), switches(), os.getcwd(), torch.is_inference_mode_enabled(), signals


def test_what_a_tracker_changes_of_the_process_is_put_back_and_told_once(tmp_path: Path) -> None:
    before, listening = process(), StopsAfter(9)
    seen = Tracked(listening, {})
    seen.opened = [SimpleNamespace(name="acme", attach=lambda path: meddle())]  # type: ignore[list-item]
    for _ in range(2):
        seen.attach(tmp_path)
        assert process() == before
    (said,) = listening.heard
    assert said.startswith("The tracker acme changed torch.inference_mode, the grad mode, the default dtype, the def")
    assert all(name in said for name in [*switches(), *generators()])
    assert said.endswith("; that was put back, since a tracker must not change the run.")


def test_a_tracked_run_is_the_run_bit_for_bit_and_goes_on_in_its_place(
    tmp_path: Path, wandb: Wandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Wandb.log
    monkeypatch.setattr(Wandb, "log", lambda self, figures, step: (own(self, dict(figures), step), meddle()))
    monkeypatch.chdir(tmp_path)
    plain = advkit.train(plugins="awp", out=tmp_path / "plain", **TINY)
    with pytest.raises(Stopped):
        advkit.train(plugins="awp,wandb", out="run", progress=StopsAfter(3), **TINY)
    assert wandb.finished == [1] and json.loads((tmp_path / "run" / "tracking.json").read_text()) == {"wandb": "r1"}
    advkit.train(resume_from=tmp_path / "run")
    assert (tmp_path / "run" / "run.toml").read_text() == (tmp_path / "plain" / "run.toml").read_text()
    one, other = weights(tmp_path / "plain"), weights(tmp_path / "run")
    assert one.keys() == other.keys() and all(other[name].equal(value) for name, value in one.items())
    first, again = wandb.begun
    assert (first["id"], first["resume"], again["id"], again["resume"]) == (None, None, "r1", "allow")
    assert first["config"]["plugins"] == "awp" and first["config"]["attack.steps"] == 1
    assert [step for step, _ in wandb.of("step/loss")] == [1, 2, 3, 4]
    assert dict(wandb.of("epoch/loss")) == {2 * (row["epoch"] + 1): row["loss"] for row in plain.history}
    (_, first_loss), (_, second_loss), *_ = wandb.of("step/loss")
    samples = plain.history[0]["samples"]
    assert (30 * first_loss + (samples - 30) * second_loss) / samples == pytest.approx(plain.history[0]["loss"])
    assert wandb.finished == [1, 0] and {"run.toml", "environment.json", "metrics.jsonl"} <= {*wandb.saved}


@pytest.mark.parametrize(
    "failure", [OSError("disk full\nand more"), SystemExit("disk full"), GeneratorExit("disk full")]
)
def test_what_fails_in_a_tracker_ends_no_run(
    failure: BaseException, tmp_path: Path, wandb: Wandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Wandb, figures: dict[str, float], step: int) -> None:
        raise failure

    monkeypatch.setattr(Wandb, "log", full)
    listening = StopsAfter(99)
    advkit.train(plugins="wandb", out=tmp_path / "run", progress=listening, **TINY)
    assert [line for line in listening.heard if "tracker" in line] == [
        f"The tracker wandb failed ({type(failure).__name__}: 'disk full'); the run goes on without it."
    ]


def test_what_can_not_start_is_refused(tmp_path: Path, wandb: Wandb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Wandb, "init", lambda self, **how: 1 / 0)
    with pytest.raises(PluginImport, match=r"wandb can not start \(ZeroDivisionError: 'division by zero'\); leave it"):
        advkit.train(plugins="wandb", out=tmp_path / "run", **TINY)
    with pytest.raises(OptionError, match=r"wandb keeps what it calls a run in the run's folder; name one, out="):
        advkit.train(plugins="wandb", **TINY)
    with pytest.raises(
        PluginLoad, match="wandb is a tracker and no plugin: train, plan, ablate and sweep take it, no other"
    ):
        Step(advkit.train(**TINY | {"epochs": 1}).model, None, ["wandb"], num_samples=4)
    assert len(advkit.train(resume_from=tmp_path / "run").history) == 2  # as the sentence says
    (tmp_path / "run" / "tracking.json").write_text("[1]")
    assert run(["train", "--resume", str(tmp_path / "run")]) == 4


@pytest.mark.parametrize("failure", [ConnectionError("no network"), SystemExit(1)])
def test_what_can_not_start_again_is_told_and_the_run_goes_on(
    failure: BaseException, tmp_path: Path, wandb: Wandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Wandb, **how: Any) -> None:
        raise failure

    with pytest.raises(Stopped):
        advkit.train(plugins="wandb", out=tmp_path / "run", progress=StopsAfter(1), **TINY)
    monkeypatch.setattr(Wandb, "init", fails)
    listening = StopsAfter(99)
    assert len(advkit.train(resume_from=tmp_path / "run", progress=listening).history) == 2
    assert [line for line in listening.heard if "tracker" in line] == [
        f"The tracker wandb can not start ({type(failure).__name__}: '{failure}'); the run goes on without it."
    ]
    assert json.loads((tmp_path / "run" / "tracking.json").read_text()) == {"wandb": "r1"}


@pytest.mark.parametrize("name", ["wandb", ".wandb"])
def test_wandb_writes_through_no_link(name: str, tmp_path: Path, wandb: Wandb) -> None:
    with pytest.raises(Stopped):
        advkit.train(plugins="wandb", out=tmp_path / "run", progress=StopsAfter(1), **TINY)
    (tmp_path / "victim").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "victim")
    listening = StopsAfter(99)
    advkit.train(resume_from=tmp_path / "run", progress=listening)
    assert len(wandb.begun) == 1 and any("/run/" in line and "is a link" in line for line in listening.heard)


@pytest.mark.parametrize("address", ["file://{}/mlruns", "sqlite:///mlruns", "mlruns"])
def test_mlflow_writes_through_no_link_of_a_run(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("run.toml", "lock"):
        (tmp_path / name).touch()
    (tmp_path / "mlruns").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    stub = SimpleNamespace(get_tracking_uri=lambda: address.format(tmp_path))
    monkeypatch.setitem(sys.modules, "mlflow", stub)  # type: ignore[misc]
    monkeypatch.setitem(sys.modules, "mlflow.entities", stub)  # type: ignore[misc]
    with pytest.raises(CheckpointError, match="mlruns is a link"):
        MLflow().begin(tmp_path, {}, None, 0)


@pytest.mark.parametrize("name", [17, None, Path("run")])
def test_a_name_that_is_no_text_is_refused(
    name: object, tmp_path: Path, wandb: Wandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WandB, "begin", lambda *run: name)
    monkeypatch.setattr(WandB, "close", lambda *run: 1 / 0)
    with pytest.raises(
        AdvkitError, match=r"wandb can not start \(its begin gave .*, which is no text\); le"
    ) as refused:
        advkit.train(plugins="wandb", out=tmp_path / "run", **TINY)
    assert refused.value.exit_code == 1 and not (tmp_path / "run" / "tracking.json").exists()


@pytest.mark.parametrize("failure", [TypeError("Descriptors\nand more"), AttributeError("float_"), SystemExit("bye")])
def test_a_tracker_that_can_not_be_made_is_named(
    failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(module: str) -> None:
        raise failure

    monkeypatch.setattr("advkit.training.tracking.import_module", fails)
    sentence = f"The tracker wandb can not start ({type(failure).__name__}: {str(failure).splitlines()[0]!r})"
    with pytest.raises(PluginImport) as refused:
        advkit.train(plugins="wandb", out=tmp_path / "run", **TINY)
    assert str(refused.value) == f"{sentence}; leave it out." and not (tmp_path / "run").exists()
    (tmp_path / "tracking.json").write_text(json.dumps({"wandb": "r1", "acme": "a1"}))
    listening = StopsAfter(9)
    with tracked(listening, (), tmp_path) as seen:
        assert seen.trackers == [] and seen.identities == {"wandb": "r1", "acme": "a1"}
    assert listening.heard[0].startswith(f"The run goes on without wandb. {sentence}")
    assert listening.heard[1].startswith("The run goes on without acme. Unknown tracker acme.")


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("tensorboard", "tensorboard", "tensorboard"),
        ("wandb", "wandb", "wandb"),
        ("mlflow", "mlflow", "mlflow-skinny"),
    ],
)
def test_a_library_that_is_absent_is_named(
    name: str,
    module: str,
    package: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    assert run(["train", "--plugins", f"awp,{name}", "--limit", "60", "--out", "run", "--progress", "none"]) == 4
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"Error: The tracker {name} needs {package} (import of {module} halted; None in sys.modules); install it with "
        f"`pip install 'advkit[track]'`, or leave {name} out."
    )
    assert not (tmp_path / "run").exists()
    (tmp_path / "tracking.json").write_text(json.dumps({name: "r1"}))  # on another machine a run goes on without
    listening = StopsAfter(9)
    with tracked(listening, (), tmp_path) as seen:
        assert seen.trackers == [] and f"The run goes on without {name}. The tracker {name} needs" in listening.heard[0]


def test_the_command_line_attaches_the_report(tmp_path: Path, wandb: Wandb, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--limit", "60", "--epochs", "1", "--set", "model.width=2", "--set", "attack.steps=1"]
    out = str(tmp_path / "run")
    assert run(["train", "--plugins", "wandb", *flags, "--set", "validation.steps=1", "--out", out]) == 0
    assert "report.html" in wandb.saved and "PGD-AT" in (tmp_path / "run" / "report.html").read_text()
    assert "plugins = []" in (tmp_path / "run" / "run.toml").read_text()


def test_trackers_are_told_from_plugins_and_leave_a_recipes_in_force() -> None:
    both = Request.of(Layer("test", plugins=("awp", "tensorboard", "wandb")))
    assert (both.plugins, both.trackers) == (("awp",), ("tensorboard", "wandb"))
    alone = Request.of(Layer("test", plugins=("tensorboard",)), recipe="trades-mini")
    assert (alone.plugins, alone.trackers) == (("trades",), ("tensorboard",))


def test_the_first_of_several_processes_tracks(tmp_path: Path, wandb: Wandb) -> None:
    with tracked(None, ("wandb",), tmp_path) as seen:
        second: Any = voice(SimpleNamespace(rank=1), seen)  # type: ignore[arg-type]
        second.begin(SimpleNamespace())
        assert not seen.opened
    assert wandb.begun == [] and wandb.finished == []


def test_figures_of_an_epoch_are_its_numbers_by_path() -> None:
    row = {"epoch": 0, "best": True, "loss": 1.5, "a": None, "validation": {"pgd": 0.5, "split": "x"}}
    assert of_epoch(row) == {"epoch/epoch": 0.0, "epoch/loss": 1.5, "epoch/validation/pgd": 0.5}


def test_event_files_and_mlflow_get_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[Any, ...]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int | None) -> None:
            said.append(("writer", Path(folder).name, purge_step))

        def add_text(self, *what: Any) -> None:
            said.append(("text", what[0], "    attack.steps = 1" in what[1].splitlines()))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            if name == "step/loss":
                said.append(("board", step, value))

        def close(self) -> None:
            said.append(("closed",))

    class Client:
        def get_experiment_by_name(self, name: str) -> None:
            said.append(("experiment", name))

        def create_experiment(self, name: str) -> str:
            return "7"

        def create_run(self, number: str, run_name: str) -> Any:
            return SimpleNamespace(info=SimpleNamespace(run_id="m1"))

        def update_run(self, number: str, status: str) -> None:
            said.append(("again", number, status))

        def log_batch(self, number: str, metrics: Any = (), params: Any = ()) -> None:
            assert len(params) <= 100
            said.extend(("flow", m[3], m[1]) for m in metrics if m[0] == "step/loss")
            said.extend(("param", *p) for p in params if p[0] == "plugins")

        def log_artifact(self, number: str, path: str) -> None:
            said.append(("file", Path(path).name))

        def set_terminated(self, number: str, status: str) -> None:
            said.append(("end", number, status))

    def record(*values: Any) -> tuple[Any, ...]:
        return values

    monkeypatch.chdir(tmp_path)
    variables = SimpleNamespace(MLFLOW_EXPERIMENT_NAME=SimpleNamespace(get=lambda: None))
    stubs: dict[str, Any] = {
        "tensorboard": SimpleNamespace(),
        "torch.utils.tensorboard": SimpleNamespace(SummaryWriter=Writer),
        "mlflow": SimpleNamespace(
            MlflowClient=Client, environment_variables=variables, get_tracking_uri=lambda: "sqlite:///mlflow.db"
        ),
        "mlflow.entities": SimpleNamespace(Param=record, Metric=record),
    }
    for name, stub in stubs.items():
        monkeypatch.setitem(sys.modules, name, stub)
    with pytest.raises(Stopped):
        advkit.train(plugins="mlflow,tensorboard", out=tmp_path / "run", progress=StopsAfter(1), **TINY)
    advkit.train(resume_from=tmp_path / "run")
    board, flow = ([what[1:] for what in said if what[0] == kept] for kept in ("board", "flow"))
    assert board == flow and [step for step, _ in board] == [1, 2, 3, 4]
    assert [what for what in said if what[0] == "writer"] == [
        ("writer", "tensorboard", None),
        ("writer", "tensorboard", 2),
    ]
    assert ("text", "settings", True) in said and ("param", "plugins", "") in said and ("experiment", "advkit") in said
    assert ("end", "m1", "KILLED") in said and ("again", "m1", "RUNNING") in said and said.count(("closed",)) == 2
    assert said[-2:] == [("end", "m1", "FINISHED"), ("closed",)] and ("file", "metrics.jsonl") in said
