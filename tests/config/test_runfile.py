"""Run files of earlier versions: runs that were trained with 0.1.0 are resumed, evaluated and planned."""

from __future__ import annotations

from pathlib import Path

import pytest

import advkit
from advkit.cli.main import run
from advkit.config import runfile


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run whose file has a setting as 0.1.0 wrote it."""
    advkit.train(
        epochs=1,
        settings={"data.limit": 40, "attack.steps": 1, "model.width": 2, "validation.steps": 1},
        out=tmp_path / "run",
    )
    file = tmp_path / "run" / "run.toml"
    file.write_text(file.read_text().replace('compile = "off"', "compile = false"))
    return tmp_path / "run"


def test_a_value_that_is_called_otherwise_today_means_the_same(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "compile = false" in (folder / "run.toml").read_text()
    assert runfile.load(folder / "run.toml").settings["run.compile"] == "off"
    for command in (
        ["plan", "--config", str(folder / "run.toml")],
        ["train", "--resume", str(folder)],
        ["evaluate", str(folder), "--n", "20", "--attacks", "clean"],
    ):
        assert run(command) == 0, capsys.readouterr().err


def test_a_byte_order_mark_is_no_value(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_bytes(b"\xef\xbb\xbfformat = 1\n")
    assert runfile.text(tmp_path / "run.toml") == "format = 1\n"


def test_another_value_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "run.toml"
    file.write_text(file.read_text().replace("compile = false", "compile = true"))
    assert run(["plan", "--config", str(file)]) == 2
    assert "run.compile" in capsys.readouterr().err
