"""Images that stay in their file: made of other files in pieces, mapped, and then as good as images in memory."""

from __future__ import annotations

import errno
import io
import json
import mmap
import os
import signal
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from heard import StopAfter
from PIL import Image

from advkit import DataError, Dataset, Splits, Stopped, holding, load_data, mapped_images, train
from advkit.cli.main import run
from advkit.data import convert as converting
from advkit.data.convert import convert
from advkit.data.image_folder import ImageFolder
from advkit.data.mapped import MAX_HEADER, array_header, check, file_name, manifest_of
from advkit.data.npz import of_npz
from advkit.errors import OptionError

N, SIDE, K = 120, 8, 4
SETTINGS = {"model.name": "small-cnn", "run.epochs": 2, "run.batch_size": 16, "attack.eps": 0.1, "attack.steps": 2}


def generated(path: Path, n: int = N, channels: int = 3, *, write: Callable[..., None] = np.savez) -> Path:
    """An npz as DM-Improves-AT publishes them: (N, H, W, C) uint8, sorted by class."""
    rng = np.random.default_rng(n)
    label = np.sort(np.concatenate([np.arange(K), rng.integers(0, K, n - K)]))
    images = rng.integers(0, 256, (n, SIDE, SIDE, channels), dtype=np.uint8)
    write(path, image=images, label=label)
    return path


def stored(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Its images (N, C, H, W) and labels."""
    with np.load(path) as arrays:
        return torch.from_numpy(arrays["image"]).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(arrays["label"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    convert(str(generated(tmp_path / "g.npz")), tmp_path / "mapped", hold_out=0.25)
    return tmp_path / "mapped"


def in_memory(mapped: Dataset) -> Dataset:
    """The same images, read."""
    return Dataset(mapped.name, mapped.images.clone(), mapped.labels.clone(), mapped.classes)


# ---------------------------------------------------------------------- what is made of what


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_an_npz_goes_through_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int, write: Callable[..., None]
) -> None:
    monkeypatch.setattr("advkit.data.npz.PIECE", 1000)  # a few images
    path = generated(tmp_path / "g.npz", channels=channels, write=write)
    convert(str(path), tmp_path / "mapped")
    there, (images, labels) = mapped_images(tmp_path / "mapped"), stored(path)
    assert torch.equal(there.images, images) and torch.equal(there.labels, labels)
    assert np.array_equal(np.load(tmp_path / "mapped" / "train-images.npy"), images.numpy())  # and for anybody else
    same = Dataset("other", images, labels, there.classes)
    assert (there.fingerprint(), there.statistics()) == (same.fingerprint(), same.statistics())
    assert there.classes == ("0", "1", "2", "3") and there.counted


def test_a_folder_of_several_npz_is_one_set(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    parts = [stored(generated(tmp_path / "parts" / f"part{number}.npz", 50 + number)) for number in range(3)]
    convert(str(tmp_path / "parts"), tmp_path / "mapped")
    there = mapped_images(tmp_path / "mapped")
    assert torch.equal(there.images, torch.cat([images for images, _ in parts]))
    assert torch.equal(there.labels, torch.cat([labels for _, labels in parts]))


def test_images_held_out_are_of_every_class_of_a_sorted_file(folder: Path) -> None:
    splits = load_data("mapped", folder)
    assert (len(splits.train), len(splits.test)) == (90, 30)
    assert splits.test.labels.unique().tolist() == list(range(K))
    images, _ = stored(folder.parent / "g.npz")
    both = torch.cat([splits.train.images, splits.test.images])
    assert sorted(both.flatten(1).tolist()) == sorted(images.flatten(1).tolist())


@pytest.mark.parametrize("modes", ["LLL", "RGB", "LRL"])
def test_pictures_are_those_of_image_folder(tmp_path: Path, modes: str) -> None:
    """Of gray pictures, of coloured ones, and of a coloured one after gray ones."""
    for number, mode in enumerate("LLLRGB" if modes == "RGB" else modes * 2):
        place = tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        size = (6, 5) if mode == "L" else (6, 5, 3)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, size[::1], dtype=np.uint8)).save(place)
    read = ImageFolder().load(tmp_path / "pictures", None)
    convert(str(tmp_path / "pictures"), tmp_path / "mapped")
    mapped = load_data("mapped", tmp_path / "mapped")
    for one, other in ((read.train, mapped.train), (read.test, mapped.test)):
        assert one.fingerprint() == other.fingerprint() and torch.equal(one.images, other.images)
    assert mapped.transform == read.transform and not mapped.train.counted


def test_a_registered_set_goes_into_a_folder(tmp_path: Path) -> None:
    convert("digits", tmp_path / "mapped")
    digits, mapped = load_data("digits"), load_data("mapped", tmp_path / "mapped")
    assert mapped.train.fingerprint() == digits.train.fingerprint() and mapped.transform == digits.transform
    limited = load_data("mapped", tmp_path / "mapped", limit=50, balance=True).train
    assert limited.index.tolist() == load_data("digits", limit=50, balance=True).train.index.tolist()
    assert limited.statistics() == load_data("digits", limit=50, balance=True).train.statistics()
    assert limited.statistics() != mapped.train.statistics()


# ---------------------------------------------------------------------- the same run


@pytest.mark.parametrize("limit", [0, 40])
def test_a_run_is_that_on_the_same_images_in_memory(folder: Path, tmp_path: Path, limit: int) -> None:
    """Weights, per-sample state, validation on the held-out tenth; stopped in between and gone on from there."""
    settings = SETTINGS | {"data.root": str(folder), "data.limit": limit}
    plugins = ["cat-eps", "dirichlet-ls"]
    with pytest.raises(Stopped):
        train(dataset="mapped", plugins=plugins, settings=settings, out=tmp_path / "run", progress=StopAfter(4))
    done = train(dataset="mapped", plugins=plugins, settings=settings, resume_from=tmp_path / "run")
    mapped = load_data("mapped", folder, limit or None)
    copies = Splits(in_memory(mapped.train), in_memory(mapped.test), mapped.transform)
    memory = train("small-cnn", copies, plugins, settings=SETTINGS)
    for name, weight in memory.model.state_dict().items():
        assert torch.equal(weight, done.model.state_dict()[name]), name
    told = [{key: row[key] for key in row if key != "seconds"} for row in done.history]
    assert told == [{key: row[key] for key in row if key != "seconds"} for row in memory.history]


def test_nothing_but_the_rows_that_are_taken_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their fingerprint and their statistics are written down."""
    monkeypatch.setattr("advkit.data.base.pieces", lambda images: pytest.fail("all images are read"))
    there = mapped_images(folder)
    assert len(there.fingerprint()) == 64 and len(there.statistics()[0]) == 3
    with pytest.raises(pytest.fail.Exception):
        there.take(slice(5)).fingerprint()  # another set, of which nothing is known


def test_what_is_written_to_mapped_images_stays_in_the_process(folder: Path) -> None:
    before = (folder / "train-images.npy").read_bytes()
    mapped_images(folder).images[0] = 7
    assert (folder / "train-images.npy").read_bytes() == before


def test_fifty_million_images_are_mapped_at_once(tmp_path: Path) -> None:
    """A file of holes, 154 GB long: more than the memory of most machines, and refused without MAP_NORESERVE."""
    n = 50_000_000 if sys.platform == "linux" else 1000
    (tmp_path / "m").mkdir()
    for values, dtype, shape in (("images", np.uint8, (n, 3, 32, 32)), ("labels", np.int64, (n,))):
        with open(tmp_path / "m" / file_name("train", values), "wb") as out:
            converting._begin(out, shape, np.dtype(dtype))
            if values == "images":
                try:
                    os.truncate(out.fileno(), out.tell() + int(np.prod(shape)) * np.dtype(dtype).itemsize)
                except OSError:
                    pytest.skip("the file system has no files of that size")
            else:
                os.truncate(out.fileno(), out.tell() + n * 8)
    levels = [[n * 1024] + [0] * 255] * 3
    told = {"shape": [n, 3, 32, 32], "fingerprint": "0" * 64, "levels": levels}
    whole = {"format": 1, "classes": ["a", "b"], "counted": False, "transform": "none", "source": "holes"}
    (tmp_path / "m" / "manifest.json").write_text(json.dumps(whole | {"splits": {"train": told}}))
    there = mapped_images(tmp_path / "m")
    assert len(there) == n and there.images[torch.tensor([0, n - 1])].sum() == 0


# ---------------------------------------------------------------------- whole or absent


def test_a_killed_conversion_leaves_no_folder(tmp_path: Path) -> None:
    generated(tmp_path / "g.npz", 500)
    program = (
        "import os, signal\nfrom advkit.data import convert as c, npz\nfrom pathlib import Path\nnpz.PIECE = 1000\n"
        "whole = c.gray_levels\nleft = [40]\n"
        "def killed(images):\n    left[0] -= 1\n    left[0] or os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return whole(images)\n"
        f"c.gray_levels = killed\nc.convert({str(tmp_path / 'g.npz')!r}, Path({str(tmp_path / 'mapped')!r}))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program])
    assert ended.returncode == -signal.SIGKILL and not (tmp_path / "mapped").exists()
    convert(str(tmp_path / "g.npz"), tmp_path / "mapped")  # what was left is in nobody's way
    assert check(tmp_path / "mapped").splits["train"].shape == [500, 3, SIDE, SIDE]


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path) -> None:
    path = generated(tmp_path / "g.npz")
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"g\.npz is no readable npz \(Bad CRC-32 for file 'image\.npy'\); replace"):
        convert(str(path), tmp_path / "mapped")
    assert [one.name for one in tmp_path.iterdir()] == ["g.npz"]


def test_of_two_that_make_one_folder_the_slower_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def faster(source: Any, folder: Path, given: str) -> Any:
        (tmp_path / "mapped" / "theirs").mkdir(parents=True)
        return written(source, folder, given)

    written = converting._written
    monkeypatch.setattr(converting, "_written", faster)
    with pytest.raises(OptionError, match=r"mapped exists; name a new folder with --data-root, or remove it\."):
        convert("digits", tmp_path / "mapped")
    assert [path.name for path in tmp_path.rglob("*")] == ["mapped", "theirs"]


def test_what_is_there_is_not_written_over(folder: Path) -> None:
    with pytest.raises(OptionError, match=r"mapped exists; name a new folder with --data-root, or remove it\."):
        convert(str(folder.parent / "g.npz"), folder)


def npz(**arrays: Any) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **arrays)


GOOD = np.zeros((4, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (npz(x=GOOD), r"has x; an npz of images has the arrays `image` and `label`\."),
        (npz(image=GOOD / 255, label=np.arange(4)), r"images are float64 \(4, 8, 8, 3\); give uint8 \(N, H, W, C\) "),
        (
            npz(image=GOOD[:, :3, :3], label=np.arange(4)),
            r"uint8 \(4, 3, 3, 3\), which may be \(N, C, H, W\) or \(N, H, ",
        ),
        (
            npz(image=GOOD[:, :1, :, :1], label=np.arange(4)),
            r"which may be .*; give gray ones as \(N, H, W\), others in",
        ),
        (
            npz(image=GOOD[:, :2, :, :2], label=np.arange(4)),
            r"images are uint8 \(4, 2, 8, 2\); give uint8 \(N, H, W, C",
        ),
        (npz(image=GOOD, label=np.arange(3)), r"labels are int64 \(3,\); give whole numbers \(4,\)\."),
        (npz(image=GOOD, label=np.arange(4) - 1), r"there is no image, or labels are no places of classes; number "),
        (npz(image=GOOD, label=np.array([{}] * 4)), r"labels are object \(4,\); give whole numbers \(4,\)\."),
        (npz(image=np.asfortranarray(GOOD), label=np.arange(4)), r"stored by columns \(Fortran order\)\); save numpy"),
        (lambda path: path.write_bytes(b"nothing"), r"is no readable npz \(File is not a zip file\); replace it by"),
        (lambda path: None, r"g\.npz does not exist; check --from\."),
        (lambda path: os.mkfifo(path), r"is no readable npz \(it is no regular file\); replace it by an intact copy\."),
    ],
)
def test_what_can_not_be_taken_is_refused(tmp_path: Path, write: Callable[[Path], None], sentence: str) -> None:
    write(tmp_path / "g.npz")
    with pytest.raises(DataError, match=sentence):
        convert(str(tmp_path / "g.npz"), tmp_path / "mapped")
    assert not (tmp_path / "mapped").exists()


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 1, 2)])
@pytest.mark.parametrize("shape", [(4, 2, 5, 1), (4, 2, 5, 3), (4, 9, 2, 4)])
def test_images_of_either_order_are_the_same(tmp_path: Path, shape: tuple[int, ...], order: tuple[int, ...]) -> None:
    """However small, where one order alone fits."""
    images = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    np.savez(tmp_path / "g.npz", image=images.transpose(order), label=np.arange(4))
    convert(str(tmp_path / "g.npz"), tmp_path / "mapped")
    assert np.array_equal(np.load(tmp_path / "mapped/train-images.npy"), images.transpose(0, 3, 1, 2))


def claimed(path: Path, image: tuple[int, ...], label: tuple[int, ...], pixels: int = 0, labels: int = 0) -> None:
    """An npz whose headers claim shapes, before so many bytes of zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, dtype, shape, size in (("image", np.uint8, image, pixels), ("label", np.int64, label, labels)):
            with archive.open(f"{name}.npy", "w") as out:
                converting._begin(out, shape, np.dtype(dtype))
                out.write(bytes(size))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (((1 << 40, 8, 8), (1 << 40,)), r"images end too soon; replace it by an intact copy\.$"),
        (((10, 8, 8), (10,), 640, 1 << 24), r"there are more values than labels; replace it by an intact copy\.$"),
        (((10, 8, 8), (10,), 641, 80), r"there are more values than images; replace it"),
        (((9, 1, 1), (9,), 9, 71), r"labels end too soon; replace it"),
        (((2, 50000, 50000), (2,), 0, 16), r"images have 50000x50000 pixels, more than data.max_pixels = 16777216; "),
        (((2, 3, 4097, 4096), (2,), 0, 16), r"images have 4096x4097 pixels, more than data.max_pixels = 16777216; "),
    ],
)
def test_what_is_claimed_is_judged_before_it_is_read(tmp_path: Path, arguments: Any, sentence: str) -> None:
    claimed(tmp_path / "g.npz", *arguments)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=sentence):
            convert(str(tmp_path / "g.npz"), tmp_path / "mapped")
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_size_of_the_directory_beyond_what_deflate_packs_is_refused(tmp_path: Path) -> None:
    claimed(tmp_path / "g.npz", (1 << 24, 8, 8), (1 << 24,))
    raw = (tmp_path / "g.npz").read_bytes()
    place = raw.index(b"PK\x01\x02") + 24  # the size of the first member, unpacked
    (tmp_path / "g.npz").write_bytes(raw[:place] + (128 + (1 << 30)).to_bytes(4, "little") + raw[place + 4 :])
    with pytest.raises(DataError, match=r"images would be 1073741824 bytes, of a file of \d{3}; replace"):
        of_npz([tmp_path / "g.npz"], 0.0, labelled=False)


class Counts(io.BytesIO):
    """A stream that says at once what is asked of it."""

    def read(self, size: int | None = -1) -> bytes:
        assert size is not None and 0 <= size <= MAX_HEADER
        return super().read(size)


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        (b"\2\0\xf0\xff\xff\xff", "its header claims 4294967280 bytes, more than 10000"),
        (b"\1\0\xff\xff", "its header claims 65535 bytes, more than 10000"),
        (b"\1\0\x10\x27" + b"-" * 10_000, "its header is damaged: "),
        (
            b"\1\0\x10\x27" + b"{'descr':'u1','fortran_order':False,'shape':(%s)}" % (b"1," * 99) + b" " * 9755,
            "it has 99 dimensions, more than any array",
        ),
    ],
)
def test_a_header_has_to_be_short(header: bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        array_header(Counts(b"\x93NUMPY" + header))


# ---------------------------------------------------------------------- nothing is trusted


def told(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            lambda f: (f / "manifest.json").unlink(),
            r"is no folder of mapped images: manifest\.json is absent; name where it lies, or make one",
        ),
        (lambda f: (f / "manifest.json").write_text("[]"), r"manifest\.json is damaged \(its format is not 1\)"),
        (lambda f: (f / "manifest.json").write_text("{"), r"manifest\.json is damaged \(Expecting"),
        (lambda f: told(f, classes=3), r"classes, counted, transform or source are none\); prepare the folder anew\."),
        *(
            (lambda f, value=value: told(f, transform=value), r"classes, counted, transform or source are none\)")
            for value in (["crop-flip"], {"crop-flip": 1}, 3, None, "crop")
        ),
        (lambda f: told(f, splits={}), r"what it says of the images can not be\)"),
        (lambda f: told(f, splits={"train": {"shape": 1}}), r"it lacks something"),
        (lambda f: os.truncate(f / "train-images.npy", 500), r"train-images\.npy is damaged \(it has 500 bytes, not "),
        (lambda f: (f / "train-labels.npy").unlink(), r"train-labels\.npy is damaged \(No such file or directory\)"),
        (lambda f: np.save(f / "train-labels.npy", np.zeros(3)), r"\(it is no int64 array \(90,\)\); prepare the "),
    ],
)
def test_a_folder_that_is_not_as_it_says_is_refused(
    folder: Path, damage: Callable[[Path], None], sentence: str
) -> None:
    damage(folder)
    with pytest.raises(DataError, match=sentence):
        load_data("mapped", folder)


def test_files_may_be_links(folder: Path, tmp_path: Path) -> None:
    """As the Hub's cache, DVC and git-annex make them."""
    before, kept = load_data("mapped", folder).train.fingerprint(), folder.rename(tmp_path / "kept")
    folder.mkdir()
    for file in kept.iterdir():
        (folder / file.name).symlink_to(file)
    assert load_data("mapped", folder).train.fingerprint() == before
    assert check(folder).splits["train"].fingerprint == before


@pytest.mark.parametrize("file", ["manifest.json", "train-images.npy", "test-labels.npy"])
def test_links_to_what_is_no_file_are_refused(folder: Path, file: str) -> None:
    os.mkfifo(folder / "pipe")
    for target, said in (
        ("absent", "is a link to nothing; fetch what it leads to, or put a copy in its place."),
        ("pipe", "is damaged (it is no regular file); prepare the folder anew."),
        ("/dev/zero", "is damaged (it is no regular file); prepare the folder anew."),
    ):
        (folder / file).unlink()
        (folder / file).symlink_to(target)
        with pytest.raises(DataError) as caught:
            load_data("mapped", folder)
        assert str(caught.value) == f"{folder / file} {said}"


def test_a_value_that_changed_is_seen_by_check(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "check", str(folder)]) == 0
    assert "is intact: 90 + 30 images are those that were stored." in capsys.readouterr().out
    with open(folder / "test-images.npy", "r+b") as file:
        file.seek(300)
        byte = file.read(1)
        file.seek(300)
        file.write(bytes([byte[0] ^ 1]))
    assert run(["data", "check", str(folder)]) == 4
    assert "test-images.npy is damaged (its values or its labels are not those" in capsys.readouterr().err


def test_counts_of_gray_levels_that_changed_are_seen_by_check(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads((folder / "manifest.json").read_text())
    for row in told["splits"]["train"]["levels"]:
        row.reverse()
    (folder / "manifest.json").write_text(json.dumps(told))
    assert run(["data", "check", str(folder)]) == 4
    assert "manifest.json is damaged (its counts of gray levels are not those of the train images)" in (
        capsys.readouterr().err
    )


# ---------------------------------------------------------------------- the command


def test_the_command_says_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["data", "prepare", "mapped", "--from", str(generated(tmp_path / "g.npz"))]
    assert run([*line, "--data-root", str(tmp_path / "m")]) == 0
    assert f"{tmp_path}/m holds 120 images to train on, of 4 classes." in capsys.readouterr().out
    assert manifest_of(tmp_path / "m").source == "g.npz"
    assert run(["train", "--dataset", "mapped", "--data-root", str(tmp_path / "m")]) == 4
    again = "`advkit data prepare mapped --from PATH --data-root NEW --hold-out 0.1`"
    assert f"m has no test images; make it again with {again}, or name it as" in capsys.readouterr().err
    more = ["--from", str(tmp_path / "m"), "--data-root", str(tmp_path / "n"), "--hold-out", "0.1"]
    assert run(["data", "prepare", "mapped", *more]) == 2 and not (tmp_path / "n").exists()
    assert f"Error: {tmp_path}/m is a folder of mapped images already; give it as" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "code", "sentence"),
    [
        (("mapped",), 2, "mapped makes a new folder of images: say of what with --from PATH, and name it with"),
        (("mapped", "--from", "cifra10", "--data-root", "m"), 4, "cifra10 is neither an npz, nor a folder or zip of"),
        (("mapped", "--from", "digits", "--data-root", "m", "--hold-out", "0.1"), 2, "digits is no npz, so its test"),
        *(
            (
                ("mapped", "--from", "a.npz", "--data-root", "m", "--hold-out", share),
                2,
                f"Error: --hold-out {float(share)} must be a share: a number from 0 to below 1.",
            )
            for share in ("nan", "1", "-0.1", "inf")
        ),
        (("cifar10", "--hold-out", "0.1"), 2, "--hold-out is for `advkit data prepare mapped`; cifar10 has test"),
    ],
)
def test_what_is_typed_wrong_is_said(
    line: tuple[str, ...], code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["data", "prepare", *line]) == code
    assert sentence in capsys.readouterr().err


# ---------------------------------------------------------------------- other systems, other disks


def test_a_system_that_maps_and_locks_in_another_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows names neither MAP_PRIVATE nor MADV_RANDOM; some disks have no locks."""
    for name in ("MAP_PRIVATE", "PROT_READ", "PROT_WRITE", "MADV_RANDOM"):
        monkeypatch.delattr(mmap, name)

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(holding.fcntl, "flock", no_locks)
    (tmp_path / ".advkit-unfinished-old").mkdir()
    (tmp_path / ".advkit-unfinished-old" / "held").write_text("")
    convert(str(generated(tmp_path / "g.npz")), tmp_path / "mapped")
    there, (images, _) = mapped_images(tmp_path / "mapped"), stored(tmp_path / "g.npz")
    assert torch.equal(there.images, images)
    there.images.zero_()
    assert torch.equal(mapped_images(tmp_path / "mapped").images, images)


@pytest.mark.parametrize("fails", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_disk_that_does_not_put_names_where_they_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fails: int
) -> None:
    generated(tmp_path / "g.npz")
    synced = os.fsync

    def of_the_parent(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), os.stat(tmp_path)):
            raise OSError(fails, os.strerror(fails))
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", of_the_parent)
    folder = tmp_path / "mapped"
    code = run(["data", "prepare", "mapped", "--from", str(tmp_path / "g.npz"), "--data-root", str(folder)])
    said = f"{folder} is written, but its disk fails (Input/output error); look at it with `advkit data check {folder}`"
    assert (code, said in capsys.readouterr().err) == ((4, True) if fails == errno.EIO else (0, False))
    assert run(["data", "check", str(folder)]) == 0


def test_a_parent_that_may_be_written_but_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def of_nobody(path: str, flags: int, *mode: int) -> int:
        if os.path.isdir(path) and Path(path) == tmp_path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, flags, *mode)

    generated(tmp_path / "g.npz")
    monkeypatch.setattr(os, "open", of_nobody)
    convert(str(tmp_path / "g.npz"), tmp_path / "mapped")
    check(tmp_path / "mapped")
