"""What is said of data beside its images: files that were left out, images that come twice."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import advkit
from advkit import Dataset, Splits
from advkit.cli.main import run as command
from advkit.data import repeats
from advkit.data.convert import convert
from advkit.data.image_folder import ImageFolder
from advkit.data.own import as_splits

NAMES = [f"{label}/{number}.png" for label in ("cat", "dog") for number in range(5)]


def write(root: Path, *names: str, seed: int = 0) -> Path:
    """Pictures of 6x6 pixels, each different."""
    for number, name in enumerate(names, seed):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (6, 6), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name, format="PNG")
    return root


def packed(root: Path, archive: Path, *names: str) -> Path:
    """A zip of the files below `root`, and each of the names again for the first of them."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    with zipfile.ZipFile(archive, "w") as out:
        for path in files:
            out.write(path, path.relative_to(root).as_posix())
        for name in names:
            out.writestr(name, files[0].read_bytes())
    return archive


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_that_a_zip_names_by_ways_are_counted(tmp_path: Path) -> None:
    root = write(tmp_path / "pets", *NAMES)
    plain = ImageFolder().load(root, None)
    names = ["./cat/7.png", "/cat/8.png", "/dog/8.png", "../dog/9.png", "cat/../dog/10.png", "./", "/", "./.DS_Store"]
    archive = packed(root, tmp_path / "a.zip", *names, "cat/1.png", "cat/1.png")
    splits = ImageFolder().load(archive, None)
    assert splits.notes == (
        f"{archive}: 5 files have names that are absolute or lead through . or .. and are left out (2 /, 2 ../, 1 ./)",
        f"{archive}: 2 files come again under the same name in the zip, and the last of each is taken (2 cat)",
    )
    assert (len(splits.train), len(splits.test)) == (len(plain.train), len(plain.test)) == (8, 2)
    said: list[str] = []
    convert(str(archive), tmp_path / "mapped", tell=said.append)
    assert tuple(said) == splits.notes


def test_pictures_beside_the_folders_that_are_read_are_counted(tmp_path: Path) -> None:
    """A third split, a cover, a folder of unlabelled ones."""
    splits = [f"{split}/{name}" for split in ("train", "test", "val") for name in NAMES]
    root = write(tmp_path / "pets", *splits, "more/1.png", "cover.png")
    (note,) = ImageFolder().load(root, None).notes
    what = "12 pictures lie beside the class folders that are read and are left out"
    assert note == f"{root}: {what} (10 in val, 1 in pets, 1 in more)"


def test_hidden_files_and_plain_folders_are_no_news(tmp_path: Path) -> None:
    root = write(tmp_path / "pets", *NAMES, ".thumbs/cat.png", "cat/.1.png", "__MACOSX/cat/._1.png")
    for place in (root, packed(root, tmp_path / "a.zip")):
        assert ImageFolder().load(place, None).cautions == ()


def images(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 6, 6).contiguous()


BOTH = (images(1, 2, 3, 3), torch.tensor([0, 1, 0, 0])), (images(1, 9, 3), torch.tensor([1, 0, 0]))


def test_test_images_that_are_training_images_are_counted() -> None:
    said = "own: 2 of 3 test images are duplicates of training images, so the accuracy on them is that of training"
    assert as_splits(BOTH).cautions == (said,)
    assert as_splits(BOTH[0]).cautions == (), "one set that stands for both is what was meant"
    train, test = (Dataset("own", x, y, ("a", "b")) for x, y in BOTH)
    apart = Dataset("own", images(7, 8), torch.tensor([0, 1]), ("a", "b"))
    assert Splits(train, apart, "none").cautions == ()
    assert Splits(train, test, "none", ("First.",)).cautions == ("First.", said)


def test_images_of_two_labels_are_counted() -> None:
    x, y = images(1, 2, 1, 1, 5, 5), torch.tensor([0, 1, 1, 0, 0, 0])
    said = "3 {} images are duplicates of others with another label"
    assert repeats.repeats(x, y, images(7), y[:1]) == said.format("training")
    assert repeats.repeats(images(7), y[:1], x, y) == said.format("test")
    assert repeats.repeats(x, y, x, y) == f"{said.format('training')}; {said.format('test')}"


def test_of_very_many_not_all_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "MOST", 7 * 36)
    assert "2 of 3" in repeats.repeats(*BOTH[0], *BOTH[1])
    monkeypatch.setattr(repeats, "MOST", 7 * 36 - 1)
    assert repeats.repeats(*BOTH[0], *BOTH[1]) == ""


def test_digits_repeat_nothing() -> None:
    assert advkit.load_data("digits").cautions == ()


def test_every_source_is_looked_at_the_same_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write(tmp_path / "pets", *(f"{split}/{name}" for split in ("train", "test") for name in NAMES))
    write(root, *(f"test/{name}" for name in NAMES[:3]))  # as the first of train
    convert(str(root), tmp_path / "mapped")
    np.savez(tmp_path / "g.npz", image=np.full((20, 6, 6, 1), 7, np.uint8), label=np.arange(20) % 2)
    convert(str(tmp_path / "g.npz"), tmp_path / "npz", hold_out=0.25)
    line = ["--epochs=1", "--set=model.width=1", "--set=attack.steps=0", "--set=validation.fraction=0"]
    for name, place, said in (
        ("image-folder", "pets", "3 of 10 test images are duplicates of training images"),
        ("mapped", "mapped", "3 of 10 test images are duplicates of training images"),
        ("mapped", "npz", "15 training images are duplicates of others with another label"),
    ):
        given = [
            "train",
            "--dataset",
            name,
            "--data-root",
            str(tmp_path / place),
            "--out",
            str(tmp_path / f"of-{place}"),
        ]
        assert command([*map(str, given), *line, "--progress=none"]) == 0
        assert f"{name}: {said}" in capsys.readouterr().err.replace("\n", " ")
    assert command(["evaluate", str(tmp_path / "of-pets"), "--attacks", "clean", "--n", "2"]) == 0
    assert "3 of 10 test images are duplicates of training images" in capsys.readouterr().out.replace("\n", " ")
