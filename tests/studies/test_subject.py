"""What is judged: a run's folder or a file of weights, told apart by what they are, and what is said of weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import advkit
from advkit import OptionError
from advkit.cli.main import run as command
from advkit.models.base import DataSpec
from advkit.models.small_cnn import SmallCnn
from advkit.studies.analysis import Study
from advkit.studies.subject import of_run

NET = ["--model", "small-cnn", "--dataset", "digits"]


def test_weights_that_are_rounded_are_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    built = SmallCnn(SmallCnn.Options(width=2)).build(DataSpec(1, 8, 8, 10, (0.5,), (0.5,)))
    weights = {name: value.double() for name, value in built.state_dict().items()}
    torch.save(weights | {"0.mean": weights["0.mean"] / 3}, "net.pt")
    line = ["evaluate", "net.pt", *NET, "--eps=0.15", "--set=model.width=2", "--n=4", "--attacks=clean"]
    assert command([*line, "--json"]) == 0
    said = "net.pt: 0.mean is rounded from float64 to float32, the model's"
    assert json.loads(capsys.readouterr().out)["notes"] == [said]
    assert command(line) == 0 and said in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("folder.pt", [], "folder.pt is not a run folder: it has no run.toml. Give the folder of a run."),
        (
            "folder.pt",
            NET,
            "folder.pt is a folder without run.toml; give a run's, or a file of weights.",
        ),
        ("file", NET, "file can not be read as weights (its first bytes are not those of such a file)"),
        ("file", NET[:2], "file is a file of weights; say which net and data: --model NAME --dataset NAME."),
        ("no", NET, "no does not exist; give a run folder or a file of weights."),
        ("no.pt", [], "no.pt does not exist; give a run folder or a file of weights."),
        ("/dev/zero", NET[:2], "/dev/zero can not be read as weights (it is no regular file); give"),
        ("run/run.toml", [], "run/run.toml is a file of the run run; give the run's folder, or a file of weights."),
        ("run/lock", NET, "run/lock is a file of the run run; give the run's folder, or a file of weights."),
        ("run/checkpoints", [], "run/checkpoints is a part of the run run; give the run's folder."),
        ("run/own.pt", [], "run/own.pt is a file of weights; say which net and data: --model NAME --dataset NAME."),
    ],
)
def test_folders_and_files_are_told_by_what_they_are(
    tmp_path: Path,
    name: str,
    options: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever the name ends in."""
    monkeypatch.chdir(tmp_path)
    Path("folder.pt").mkdir()
    Path("run/checkpoints").mkdir(parents=True)
    for file in ("run.toml", "lock", "own.pt"):
        Path("run", file).touch()
    Path("file").write_text("text")
    for judge in ("evaluate", "audit"):
        assert command([judge, name, *options]) == (2 if "say which" in sentence else 4)
        assert capsys.readouterr().err.startswith(f"Error: {sentence}")


def test_checkpoints_of_another_run_are_refused(tmp_path: Path) -> None:
    """As a copy into the wrong folder leaves them; where data and processor are elsewhere now, it is the same run."""
    settings = {"attack.steps": 1, "validation.steps": 1, "data.limit": 40, "model.width": 2}
    run, file = tmp_path / "run", tmp_path / "run" / "run.toml"
    advkit.train(plugins=(), epochs=1, eps=0.1, settings=settings, out=run, seed=1)
    text = file.read_text()
    assert "seed = 1\n" in text and "threads = 1\n" in text
    file.write_text(text.replace("threads = 1\n", "threads = 2\n"))
    assert of_run(run).is_run
    file.write_text(text.replace("seed = 1\n", "seed = 2\n"))
    judges = (advkit.evaluate, advkit.audit, lambda path: advkit.export(path, tmp_path / "export"))
    for judge in (*judges, lambda path: advkit.load_weights(torch.nn.Identity(), path)):
        with pytest.raises(advkit.CheckpointError, match=r"run\.toml says: run\.seed: [12] in the run, [12] now"):
            judge(run)


def test_nothing_is_kept_in_a_folder_that_is_another_runs_by_now(tmp_path: Path) -> None:
    settings = {"model.width": 2, "data.limit": 40, "attack.steps": 1, "validation.steps": 1}
    advkit.train(dataset="digits", epochs=1, eps=0.1, settings=settings, out=tmp_path / "run")
    said: list[str] = []

    def moved(*_: object) -> None:
        if not (tmp_path / "old").exists():
            (tmp_path / "run").rename(tmp_path / "old")
            shutil.copytree(tmp_path / "old", tmp_path / "run", symlinks=True)

    advkit.audit(tmp_path / "run", n=4, watch=moved, tell=said.append)
    assert len(said) == 1 and said[0].startswith(f"The audit is not kept: {tmp_path / 'run'} was moved, removed or")
    assert not [*tmp_path.rglob("audit.json")]
    shutil.rmtree(tmp_path / "old")
    with pytest.raises(advkit.CheckpointError, match="nothing more is written there"):
        Study(run=str(tmp_path / "run"), n=4, watch=moved).vulnerability()
    assert not [*tmp_path.rglob("analysis")]


@pytest.mark.parametrize("judge", [advkit.evaluate, advkit.audit])
def test_what_a_file_of_weights_is_told_twice_is_refused(tmp_path: Path, judge: Any) -> None:
    (tmp_path / "w.pt").touch()
    known: dict[str, Any] = {"model": "small-cnn", "dataset": "digits", "eps": 0.1, "n": 20, "batch_size": 16}
    twice = {"attack.eps": 0.2, "data.name": "toy", "model.name": "toy", "run.batch_size": 8}
    for key, value in twice.items():
        with pytest.raises(
            OptionError, match=f"and the setting {key} = {value} differ; they are the same setting, give"
        ):
            judge(tmp_path / "w.pt", settings={"model.width": 2, key: value}, **known)


def test_an_eps_by_norm_is_the_setting_of_that_norm(tmp_path: Path) -> None:
    (tmp_path / "w.pt").touch()
    known: dict[str, Any] = {"model": "small-cnn", "dataset": "digits", "eps": {"linf": 0.2, "l2": 0.5}}
    for norm, value in (("linf", 0.5), ("l2", 0.2)):
        with pytest.raises(OptionError, match=rf"^eps 0\.\d and the setting attack\.eps = {value} differ; "):
            advkit.evaluate(tmp_path / "w.pt", settings={"attack.norm": norm, "attack.eps": value}, **known)


@pytest.mark.parametrize("judge", [advkit.evaluate, advkit.audit])
def test_what_is_of_training_is_refused_beside_a_file_of_weights(tmp_path: Path, judge: Any) -> None:
    """And what is of judging comes as far as the file, which is empty."""
    (tmp_path / "w.pt").touch()
    known: dict[str, Any] = {"model": "small-cnn", "dataset": "digits", "n": 20}
    of_training = {"attack.steps": 20, "optimizer.lr": 0.1, "run.precision": "bf16", "data.transform": "none"}
    for key, value in (of_training | {"run.seed": 1, "validation.split": "test", "update.clean": "start"}).items():
        with pytest.raises(
            OptionError, match=rf"{key} is of training, and .*w\.pt is a file of weights, which is only"
        ):
            judge(tmp_path / "w.pt", settings={"model.width": 2, key: value}, **known)
    of_judging = {"attack.norm": "l2", "attack.eps": 0.5, "data.limit": 20, "data.balance": True, "run.threads": 1}
    with pytest.raises(advkit.CheckpointError, match=r"w\.pt"):
        judge(tmp_path / "w.pt", settings=of_judging | {"checkpoint.max_bytes": 99, "model.width": 2}, **known)
    with pytest.raises(OptionError, match=r"leave it out, or give seed\."):
        judge(tmp_path / "w.pt", settings={"run.seed": 1}, **known)
