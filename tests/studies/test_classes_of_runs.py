"""Names of classes are compared wherever a run meets its data again; odd pictures are told."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import advkit
from advkit import DataError, ResumeMismatch


def folder(root: Path, classes: str = "abc") -> Path:
    """Six gray pictures a class and split, the later the class the brighter."""
    draws = np.random.default_rng(0)
    for split in ("train", "test"):
        for level, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for number in range(6):
                pixels = (draws.integers(0, 60, (8, 8)) + 90 * level).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def test_renamed_classes_are_refused_by_all_who_judge_a_run(tmp_path: Path) -> None:
    root = folder(tmp_path / "pictures")
    settings = {"data.root": str(root), "model.width": 2, "attack.steps": 1, "validation.steps": 1}
    run = tmp_path / "run"
    advkit.train("small-cnn", "image-folder", epochs=1, batch_size=6, eps=0.05, settings=settings, out=run)
    assert advkit.evaluate(run, attacks="clean", audit=False)["n"] == 18
    for split in ("train", "test"):
        shutil.move(root / split / "a", root / split / "z")
    trained = rf"^image-folder has the classes b, c, z, but {tmp_path}/\w+ was trained on a, b, c, in that order; give"
    for judge in (advkit.evaluate, advkit.audit, lambda which: advkit.export(which, tmp_path / "export")):
        with pytest.raises(DataError, match=trained):
            judge(run)  # type: ignore[operator]
    shutil.copytree(run, tmp_path / "copy", symlinks=True)
    with pytest.raises(DataError, match=trained):
        advkit.compare([run, tmp_path / "copy"], "clean")


def test_an_ablation_does_not_mix_runs_on_other_images(tmp_path: Path) -> None:
    root = folder(tmp_path / "pictures")
    small = {"data.root": str(root), "model.width": 2, "attack.steps": 1, "validation.steps": 1}

    def ablate() -> object:
        return advkit.ablate(
            "awp",
            out=tmp_path / "out",
            seeds=[0],
            attacks="clean",
            model="small-cnn",
            dataset="image-folder",
            settings=small,
            eps=0.05,
            epochs=1,
            batch_size=6,
        )

    ablate()
    table = (tmp_path / "out" / "table.json").read_bytes()
    shutil.copy(root / "train" / "c" / "0.png", root / "train" / "a" / "0.png")
    shutil.rmtree(tmp_path / "out" / "runs" / "none-seed-0")
    with pytest.raises(ResumeMismatch, match=r"^The training images differ from those the run was started with"):
        ablate()
    assert (tmp_path / "out" / "table.json").read_bytes() == table


def png(pixels: np.ndarray, mode: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels, mode).save(stream, "PNG")
    return stream.getvalue()


def test_pictures_that_a_viewer_shows_otherwise_are_told(tmp_path: Path) -> None:
    root = folder(tmp_path / "pictures", "ab")
    assert advkit.load_data("image-folder", root=root).notes == ()
    clear = np.full((8, 8, 4), 255, np.uint8)
    (root / "train" / "a" / "0.png").write_bytes(png(clear, "RGBA"))
    assert advkit.load_data("image-folder", root=root).notes == ()
    clear[0, 0, 3] = 0
    for name in "01":
        (root / "train" / "a" / f"{name}.png").write_bytes(png(clear, "RGBA"))
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (8, 8)).save(root / "test" / "b" / "0.png", exif=turned)
    assert advkit.load_data("image-folder", root=root).notes == (
        f"{root}: 2 pictures with transparent pixels, taken in the colours that are stored there",
        f"{root}: 1 picture with an EXIF orientation, taken as stored and not turned",
    )
