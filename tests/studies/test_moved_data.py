"""A run whose data lie elsewhere now: every command takes --data-root, and the images decide whether it is theirs."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import advkit
from advkit.cli.main import run


def pictures(folder: Path, seed: int) -> Path:
    """Two classes of eight images of 8 x 8, in a training and a test folder."""
    draws = np.random.default_rng(seed)
    for split in ("train", "test"):
        for name in ("left", "right"):
            (folder / split / name).mkdir(parents=True)
            for number in range(8):
                image = draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(image).save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A run that was stopped after an epoch, its data where they are now, and other data."""
    home = tmp_path_factory.mktemp("moved")
    root, out = pictures(home / "then", 0), home / "run"
    quick = {"attack.steps": 1, "validation.steps": 1, "model.width": 2, "validation.fraction": 0.25}
    settings = {"data.root": str(root), **quick}

    class Stops(advkit.Progress):
        def finished_epoch(self, row: object) -> None:
            self.over = True

        def stop_requested(self) -> type[advkit.Stopped] | None:
            return advkit.Stopped if getattr(self, "over", False) else None

    with pytest.raises(advkit.Stopped):
        advkit.train(
            *("small-cnn", "image-folder", ()), eps=0.1, epochs=2, settings=settings, out=out, progress=Stops()
        )
    root.rename(home / "now")
    return out, home / "now", pictures(home / "others", 1)


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "RUN", "--attacks", "clean"],
        ["compare", "RUN", "COPY", "--attacks", "clean"],
        ["export", "RUN", "--out", "OUT"],
        ["analyze", "vulnerability", "RUN", "--attack", "pgd-1"],
        ["report", "RUN", "--out", "OUT.html"],
        ["train", "--resume", "COPY", "--progress", "none"],
    ],
    ids=" ".join,
)
def test_every_command_takes_the_new_place(
    words: list[str], moved: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, now, _ = moved
    shutil.copytree(out, tmp_path / "copy", symlinks=True)
    places = {"RUN": str(out), "COPY": str(tmp_path / "copy"), "OUT": str(tmp_path / "new")}
    line = [
        next((word.replace(key, path) for key, path in places.items() if word.startswith(key)), word) for word in words
    ]
    if words[0] != "report":  # which says what it can not show
        assert run(line) == 4 and "then" in capsys.readouterr().err
    assert run([*line, "--data-root", str(now)]) == 0
    if words[0] == "report":
        assert "data:image/png" in (tmp_path / "new.html").read_text()
    if words[0] == "train":
        again = advkit.train(resume_from=tmp_path / "copy", settings={"data.root": str(now)})
        assert len(again.history) == 2
        capsys.readouterr()
        sentence = f"The run in {tmp_path}/copy is finished; nothing is left to do.\n"
        assert run(line) == 0 and capsys.readouterr().err == sentence  # which needs no data any more


def test_other_images_are_told(moved: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    out, _, others = moved
    assert run(["train", "--resume", str(out), "--data-root", str(others)]) == 2
    assert "The training images differ from those the run was started with" in capsys.readouterr().err
    record = advkit.evaluate(out, attacks="clean", data_root=others, audit=False)
    assert any("are not those that" in note for note in record.notes or ())
    assert not advkit.evaluate(out, attacks="clean", data_root=moved[1], audit=False).notes


def test_bits_are_those_of_a_run_whose_data_stayed(moved: tuple[Path, Path, Path], tmp_path: Path) -> None:
    out, now, _ = moved
    shutil.copytree(out, tmp_path / "run", symlinks=True)
    resumed = advkit.train(resume_from=tmp_path / "run", settings={"data.root": str(now)})
    settings = {"data.root": str(now), "attack.steps": 1, "validation.steps": 1, "model.width": 2}
    whole = advkit.train(
        *("small-cnn", "image-folder", ()), eps=0.1, epochs=2, settings=settings | {"validation.fraction": 0.25}
    )
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])
