"""Run files of earlier versions: runs that were trained with 0.1.0 are resumed, evaluated and planned."""

from __future__ import annotations

from pathlib import Path

import pytest

import advkit
from advkit.cli.main import run
from advkit.config import runfile
from advkit.errors import OptionError
from advkit.storage import checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run whose file, and whose checkpoints of it, have its settings as 0.1.0 wrote them."""
    settings = {"data.limit": 40, "data.balance": True, "attack.steps": 1, "model.width": 2, "validation.steps": 1}
    advkit.train(epochs=1, settings=settings, out=tmp_path / "run")
    file = tmp_path / "run" / "run.toml"
    file.write_text(file.read_text().replace('compile = "off"', "compile = false").replace("balance = true\n", ""))
    for step in checkpoint.steps(store := tmp_path / "run" / "checkpoints"):
        tensors, state = checkpoint.load(step)
        checkpoint.save(store, int(step.name[5:]), tensors, state | {"run": file.read_text()})
    return tmp_path / "run"


def test_a_value_that_is_called_otherwise_today_means_the_same(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = (folder / "run.toml").read_text()
    assert "compile = false" in written and "balance" not in written
    assert runfile.difference(written, written) == []
    assert runfile.load(folder / "run.toml").settings["run.compile"] == "off"
    for command in (
        ["plan", "--config", str(folder / "run.toml")],
        ["train", "--resume", str(folder)],
        ["evaluate", str(folder), "--n", "20", "--attacks", "clean"],
        ["runs", "show", str(folder)],
    ):
        assert run(command) == 0, capsys.readouterr().err
        assert "not of the run" not in (printed := capsys.readouterr()).out + printed.err


def test_a_byte_order_mark_is_no_value(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_bytes(b"\xef\xbb\xbfformat = 1\n")
    assert runfile.text(tmp_path / "run.toml") == "format = 1\n"


def test_a_run_file_in_utf_16_is_told_to_be_saved_in_utf_8(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("format = 1\n", encoding="utf-16")
    with pytest.raises(OptionError) as caught:
        runfile.load(file)
    assert str(caught.value) == f"{file} is not in UTF-8, as PowerShell's > writes files; save it in UTF-8."


def test_another_value_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "run.toml"
    file.write_text(file.read_text().replace("compile = false", "compile = true"))
    assert run(["plan", "--config", str(file)]) == 2
    assert "run.compile" in capsys.readouterr().err
