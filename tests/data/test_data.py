from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import tracemalloc
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch import Tensor

import advkit
from advkit.cli.main import run as command
from advkit.data import pictures
from advkit.data.base import Dataset, DataSource, Splits
from advkit.data.chosen import balanced, population
from advkit.data.digits import Digits
from advkit.data.image_folder import ImageFolder
from advkit.data.transforms import TRANSFORMS, to_float
from advkit.errors import DataError, OptionError
from advkit.evaluation.statistics import wilson
from advkit.rng import Draws, derive_key

KEY = derive_key(0, "data", "transform", "train", epoch=1)


def message(error: pytest.ExceptionInfo[Exception]) -> str:
    return str(error.value)


def dataset(images: Tensor | None = None, labels: Tensor | None = None, **changed: object) -> Dataset:
    parts: dict[str, object] = {
        "name": "toy",
        "images": torch.arange(24, dtype=torch.uint8).view(3, 2, 2, 2) if images is None else images,
        "labels": torch.tensor([0, 1, 0]) if labels is None else labels,
        "classes": ("cat", "dog"),
    }
    return Dataset(**{**parts, **changed})  # type: ignore[arg-type]


# --- Dataset and Splits


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (
            {"images": torch.zeros(3, 2, 2, 2)},
            "images are float32 (3, 2, 2, 2) on cpu; give a uint8 tensor (N, C, H, W) on the CPU.",
        ),
        (
            {"images": torch.zeros(3, 2, 2, dtype=torch.uint8)},
            "images are uint8 (3, 2, 2) on cpu; give a uint8 tensor (N, C, H, W) on the CPU.",
        ),
        (
            {"labels": torch.tensor([0, 1])},
            "labels are int64 (2,) on cpu; give an int64 tensor (3,) on the CPU.",
        ),
        (
            {"labels": torch.tensor([0, 1, 0], dtype=torch.int32)},
            "labels are int32 (3,) on cpu; give an int64 tensor (3,) on the CPU.",
        ),
        (
            {
                "images": torch.zeros(0, 1, 8, 8, dtype=torch.uint8),
                "labels": torch.zeros(0, dtype=torch.int64),
            },
            "images are empty, (0, 1, 8, 8); give at least one image.",
        ),
        ({"labels": torch.tensor([0, 1, 2])}, "labels run from 0 to 2; they must be 0 to 1 for 2 classes."),
        ({"labels": torch.tensor([0, -1, 1])}, "labels run from -1 to 1; they must be 0 to 1 for 2 classes."),
        ({"classes": ("cat", "cat")}, "classes are ('cat', 'cat'); give two or more different names."),
        ({"classes": ("cat",)}, "classes are ('cat',); give two or more different names."),
    ],
)
def test_dataset_refuses_parts_that_do_not_fit(changed: dict[str, object], text: str) -> None:
    with pytest.raises(DataError) as error:
        dataset(**changed)  # type: ignore[arg-type]
    assert message(error) == f"Data set toy: {text}"
    assert error.value.exit_code == 4


def test_dataset_tells_its_length_and_shape() -> None:
    assert len(dataset()) == 3
    assert dataset().shape == (2, 2, 2)


def test_fingerprint_changes_with_every_part_but_the_name() -> None:
    pixel = dataset().images.clone()
    pixel[2, 1, 1, 1] += 1
    same = [dataset(), dataset(name="other"), dataset(dataset().images.to(memory_format=torch.channels_last))]
    different = [
        dataset(pixel),
        dataset(labels=torch.tensor([0, 1, 1])),
        dataset(classes=("cat", "cow")),
        dataset(dataset().images.reshape(3, 2, 1, 4)),
    ]
    assert len({one.fingerprint() for one in same}) == 1
    assert len({one.fingerprint() for one in [*same, *different]}) == 5
    assert len(dataset().fingerprint()) == 64


@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=25)
def test_statistics_are_those_of_numpy(count: int, channels: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 256, (count, channels, 3, 2), dtype=np.uint8)
    mean, std = dataset(torch.from_numpy(values), torch.zeros(count, dtype=torch.int64)).statistics()
    scaled = values.astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 2, 3)), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(std, np.maximum(scaled.std((0, 2, 3)), 1 / 255), rtol=1e-9)


def test_the_deviation_of_a_constant_channel_is_not_zero() -> None:
    images = torch.full((3, 1, 2, 2), 51, dtype=torch.uint8)
    assert dataset(images).statistics() == ((0.2,), (1 / 255,))


def test_splits_must_agree() -> None:
    with pytest.raises(DataError) as error:
        Splits(dataset(), dataset(classes=("cat", "dog", "cow")), "none")
    assert message(error) == (
        "Data set toy: training and test images differ in shape or classes, (2, 2, 2) with 2 classes and "
        "(2, 2, 2) with 3; make them equal."
    )
    with pytest.raises(DataError, match="differ in order or names of classes; make them equal"):
        Splits(dataset(classes=("dog", "cat")), dataset(classes=("cat", "dog")), "none")
    with pytest.raises(DataError) as error:
        Splits(dataset(), dataset(), "crop-flop")
    assert message(error) == (
        "Data set toy: unknown transform 'crop-flop'. Did you mean crop-flip? Known: none, crop-flip, "
        "resized-crop-flip."
    )


def test_a_source_without_load_can_not_be_made() -> None:
    with pytest.raises(TypeError, match="load"):
        type("Half", (DataSource,), {"name": "half"})()


# --- balanced


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40))
@settings(deadline=None, max_examples=60)
def test_every_prefix_is_as_balanced_as_it_can_be(labels: list[int]) -> None:
    order = balanced(torch.tensor(labels)).tolist()
    assert sorted(order) == list(range(len(labels)))
    available, seen = Counter(labels), Counter[int]()
    for position in order:
        seen[labels[position]] += 1
        behind = min((seen[k] for k in available if seen[k] < available[k]), default=max(seen.values()))
        assert max(seen.values()) <= behind + 1
    for k in available:  # within a class, the order of the file
        positions = [position for position in order if labels[position] == k]
        assert positions == sorted(positions)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 35), st.booleans())
@settings(deadline=None, max_examples=60)
def test_a_limit_keeps_the_order_and_at_least_one_per_class(labels: list[int], limit: int, balance: bool) -> None:
    source, classes = Digits(), len(set(labels))
    source.balance = balance
    if limit >= classes:
        kept = source.places(torch.tensor(labels), limit).tolist()
        assert kept == sorted(set(kept)) and len(kept) == min(limit, len(labels))
        assert set(kept) <= set(source.places(torch.tensor(labels), limit + 1).tolist())
        if balance:
            assert set(kept) == set(balanced(torch.tensor(labels))[:limit].tolist())
        return
    with pytest.raises(OptionError) as error:
        source.places(torch.tensor(labels), limit)
    assert message(error) == (f"A limit of {limit} images is below the number of classes; take at least {classes}.")


def test_a_limit_is_of_the_same_population_unless_balance_is_asked_for() -> None:
    """90 % of one class: half the images of a limit would be of the other, and every accuracy of another set."""
    source, labels = Digits(), (torch.arange(1000) % 10 == 9).long()
    for limit in (50, 200):
        low, high = wilson(int(labels[source.places(labels, limit)].sum()), limit)
        assert low <= 0.1 <= high
    source.balance = True
    assert labels[source.places(labels, 200)].sum() == 100
    assert source.places(labels, None).tolist() == list(range(1000))


def test_what_a_limited_split_is() -> None:
    assert population(539, 0, None) == population(539, 1000, torch.tensor([500, 39])) == ""
    assert population(60, 60, None) == ", of data.limit=60, chosen at random, seed 0"
    assert population(60, 60, torch.tensor([20, 20, 19])) == ", of data.limit=60, balanced over classes"
    uneven = population(90, 90, torch.tensor([50, 30, 10]))
    assert uneven == ", of data.limit=90, class by class, 10 to 50 of each"


# --- digits


def test_digits_is_what_it_was() -> None:
    splits = Digits().load(None, None)
    assert (len(splits.train), len(splits.test), splits.transform) == (1258, 539, "none")
    assert splits.train.shape == (1, 8, 8)
    assert splits.train.classes == tuple("0123456789")
    assert splits.train.images.max() == 255
    assert splits.train.images.unique().tolist() == [round(level * 255 / 16) for level in range(17)]
    assert splits.train.fingerprint() == "f348d3492bbad745cadf9436271cd339486456b57bde291674f2f2283eb26cab"
    assert splits.test.fingerprint() == "3efecfbe14cfe0ece7b25605ffcda24b4da81e20dfd61426a51656d2ddd32e93"
    assert Digits.defaults == {"attack.eps": 0.15}


def test_digits_is_the_source_split_by_the_documented_rule() -> None:
    source = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed").load_digits()
    splits = Digits().load(None, None)

    def key(number: int) -> bytes:
        return hashlib.blake2b(f"digits:{number}".encode(), digest_size=8).digest()

    by_class = [sorted(np.flatnonzero(source.target == k).tolist(), key=key) for k in range(10)]
    cuts = [round(0.7 * len(members)) for members in by_class]
    for split, parts in (
        (splits.train, [members[:cut] for members, cut in zip(by_class, cuts, strict=True)]),
        (splits.test, [members[cut:] for members, cut in zip(by_class, cuts, strict=True)]),
    ):
        turns = range(max(map(len, parts)))
        order = [part[turn] for turn in turns for part in parts if turn < len(part)]
        assert split.labels.tolist() == source.target[order].tolist()
        pixels = np.rint(source.images[order] * 255 / 16).astype(np.uint8)
        assert np.array_equal(split.images.squeeze(1).numpy(), pixels)


def test_no_test_digit_is_a_training_digit() -> None:
    splits = Digits().load(None, None)
    train, test = ({image.numpy().tobytes() for image in split.images} for split in (splits.train, splits.test))
    assert len(train) == 1258
    assert not train & test


def test_limited_digits_know_their_places() -> None:
    whole, part = Digits().load(None, None), Digits().load(None, 40)
    assert (len(part.train), len(part.test)) == (40, 40)
    assert torch.equal(part.test.images, whole.test.take(part.test.index).images)
    assert part.test.index.tolist() == whole.test.sample(40).index.sort().values.tolist()


def test_balanced_digits_are_a_prefix() -> None:
    whole, part = Digits().load(None, None), advkit.load_data("digits", limit=40, balance=True)
    assert torch.equal(part.test.images, whole.test.images[:40]) and part.test.index.tolist() == list(range(40))
    assert part.train.labels.bincount().tolist() == [4] * 10
    assert len(Digits().load(None, 1000).test) == 539
    with pytest.raises(OptionError) as error:
        Digits().load(None, 9)
    assert message(error) == "A limit of 9 images is below the number of classes; take at least 10."


def test_digits_take_no_root() -> None:
    with pytest.raises(OptionError) as error:
        advkit.load_data("digits", "folder")
    assert message(error) == 'digits is part of advkit and reads no files; leave data.root="folder" out.'


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        ("advkit.data, advkit.models", {"torch", "numpy", "PIL"}),
        (
            "advkit.data.digits, advkit.models.small_cnn, advkit.models.preact_resnet",
            {"torchvision", "PIL", "sklearn"},
        ),
    ],
)
def test_imports_stay_light(modules: str, forbidden: set[str]) -> None:
    code = f"import sys, {modules}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "advkit.models" in loaded
    assert not forbidden & set(loaded)


# --- transforms


def naive_crop_flip(image: Tensor, sample: int, key: tuple[int, int] = KEY) -> Tensor:
    draws = Draws(key, torch.tensor([sample]))
    down, right = (draws.integers(9, 2, draw=0)[0] - 4).tolist()
    mirrored = draws.integers(2, draw=1).item() == 1
    _, height, width = image.shape
    out = torch.zeros_like(image)
    for i in range(height):
        for j in range(width):
            row, column = i + down, (width - 1 - j if mirrored else j) + right
            if 0 <= row < height and 0 <= column < width:
                out[:, i, j] = image[:, row, column]
    return out


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=6), st.integers(1, 3), st.integers(1, 9))
@settings(deadline=None, max_examples=25)
def test_crop_flip_equals_the_naive_one(samples: list[int], channels: int, size: int) -> None:
    index = torch.tensor(samples)
    x = torch.rand(len(samples), channels, size, size + 1, generator=torch.Generator().manual_seed(size))
    y = TRANSFORMS["crop-flip"](x, Draws(KEY, index))
    expected = [naive_crop_flip(image, sample) for image, sample in zip(x, samples, strict=True)]
    assert torch.equal(y, torch.stack(expected))


def test_crop_flip_depends_on_the_sample_alone_and_on_all_of_its_address() -> None:
    x = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    index = torch.arange(64)
    crop_flip = TRANSFORMS["crop-flip"]
    y = crop_flip(x, Draws(KEY, index))
    order = index.flip(0)[5:40]
    assert torch.equal(crop_flip(x[order], Draws(KEY, order)), y[order])
    for other in (Draws(KEY, index + 64), Draws(derive_key(0, "data", "transform", "train", epoch=2), index)):
        assert (crop_flip(x, other) != y).flatten(1).any(1).float().mean() > 0.9


def test_crop_flip_draws_all_offsets_and_mirrors_alike() -> None:
    count, size = 8100, 16
    numbers = torch.arange(size * size, dtype=torch.float32).view(1, 1, size, size)
    y = TRANSFORMS["crop-flip"](numbers.expand(count, -1, -1, -1), Draws(KEY, torch.arange(count)))
    centre, neighbour = y[:, 0, 8, 8].long(), y[:, 0, 8, 9].long()  # never from the padding
    mirrored = neighbour < centre
    down, right = centre // size - 8 + 4, centre % size - torch.where(mirrored, 7, 8) + 4
    assert down.min() >= 0
    assert right.max() <= 8
    cells = ((down * 9 + right) * 2 + mirrored).bincount(minlength=162).double()
    chi_squared = ((cells - count / 162).square() / (count / 162)).sum()
    assert 90 < chi_squared < 250  # 161 degrees of freedom: 161 +- 18


def test_no_transform_is_the_identity() -> None:
    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert TRANSFORMS["none"](x, Draws(KEY, torch.arange(2))) is x


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layout_and_dtype_are_kept(layout: torch.memory_format) -> None:
    images = torch.randint(0, 256, (4, 3, 6, 5), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images = images.contiguous(memory_format=layout)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = to_float(images, dtype)
        for name in TRANSFORMS:
            y = TRANSFORMS[name](x, Draws(KEY, torch.arange(4)))
            assert y.dtype == dtype
            assert y.is_contiguous(memory_format=layout)
            assert torch.equal(y, TRANSFORMS[name](x.contiguous(), Draws(KEY, torch.arange(4))))


def test_to_float_is_the_nearest_fraction() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert to_float(levels, torch.float64).tolist() == [level / 255 for level in range(256)]
    assert to_float(levels).numpy().tolist() == (np.arange(256) / 255).astype(np.float32).tolist()


# --- image folders


def picture(number: int, size: int = 6, mode: str = "RGB") -> Image.Image:
    shape = (size, size) if mode == "L" else (size, size, 3)
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8), mode)


def write(root: Path, *names: str, mode: str = "RGB") -> None:
    """PNG images at `names`, each different, of 6x6 pixels."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]), mode=mode).save(root / name)


def zipped(folder: Path, prefix: str = "") -> Path:
    archive = folder.with_name(f"{folder.name}-{len(prefix)}.zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*"), reverse=True):  # no help from the order
            file.write(path, prefix + path.relative_to(folder).as_posix())
    return archive


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Three training and two test images of cats and dogs."""
    root = tmp_path / "pets"
    write(root, *(f"train/{kind}/{n}.png" for kind in ("dog", "cat") for n in range(3)))
    write(root, *(f"test/{kind}/{n}.png" for kind in ("dog", "cat") for n in range(2)))
    return root


def refusal(root: Path, limit: int | None = None) -> str:
    with pytest.raises(DataError) as error:
        ImageFolder().load(root, limit)
    text = message(error)
    assert text.startswith(str(root))
    assert text.endswith(".")
    assert "\n" not in text
    return text.removeprefix(str(root)).removeprefix(": ").strip()


def test_folder_is_read_in_sorted_order_class_by_class(pets: Path) -> None:
    splits = ImageFolder().load(pets, None)
    assert (splits.train.classes, splits.train.shape, splits.transform) == (
        ("cat", "dog"),
        (3, 6, 6),
        "crop-flip",
    )
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert splits.test.labels.tolist() == [0, 0, 1, 1]
    for position, name in enumerate(("cat/0", "cat/1", "cat/2", "dog/0", "dog/1", "dog/2")):
        pixels = np.asarray(Image.open(pets / f"train/{name}.png"))
        assert np.array_equal(splits.train.images[position].permute(1, 2, 0).numpy(), pixels)


@pytest.mark.parametrize("layout", ["{}", "top/{}"])
def test_a_zip_is_read_as_its_folder(pets: Path, layout: str) -> None:
    here, there = ImageFolder().load(pets, None), ImageFolder().load(zipped(pets, layout.format("")), None)
    assert here.train.fingerprint() == there.train.fingerprint()
    assert here.test.fingerprint() == there.test.fingerprint()


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_validation_stands_in_for_a_missing_test(pets: Path, name: str) -> None:
    expected = ImageFolder().load(pets, None).test.fingerprint()
    (pets / "test").rename(pets / name)
    assert ImageFolder().load(pets, None).test.fingerprint() == expected
    write(pets, "test/cat/new.png", "test/dog/new.png")
    assert len(ImageFolder().load(pets, None).test) == 2


def test_without_splits_a_fifth_of_each_class_is_held_out_by_name(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    write(root, *(f"cat/{n}.png" for n in range(20)), *(f"dog/{n}.png" for n in range(2)))
    splits = ImageFolder().load(root, None)
    assert splits.train.labels.bincount().tolist() == [16, 1]
    assert splits.test.labels.bincount().tolist() == [4, 1]
    held_out = splits.test.images[splits.test.labels == 0]
    ranked = sorted(range(20), key=lambda n: hashlib.blake2b(f"cat/{n}.png".encode()).digest())
    pixels = [np.asarray(Image.open(root / f"cat/{n}.png")) for n in sorted(ranked[:4], key=str)]
    assert np.array_equal(held_out.permute(0, 2, 3, 1).numpy(), np.stack(pixels))
    in_zip = ImageFolder().load(zipped(root, "top/"), None)
    assert in_zip.test.fingerprint() == splits.test.fingerprint()


def test_gray_stays_gray_unless_one_image_has_colour(tmp_path: Path) -> None:
    root = tmp_path / "gray"
    write(root, "train/a/0.png", "train/b/0.png", "test/a/0.png", "test/b/0.png", mode="L")
    gray = ImageFolder().load(root, None)
    assert gray.train.shape == (1, 6, 6)
    write(root, "test/b/0.png")
    mixed = ImageFolder().load(root, None)
    assert mixed.train.shape == mixed.test.shape == (3, 6, 6)
    assert torch.equal(mixed.train.images, gray.train.images.expand(-1, 3, -1, -1))


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "bmp", "webp"])
def test_every_format_is_read(pets: Path, suffix: str) -> None:
    picture(1).save(pets / f"train/cat/zz.{suffix}")
    assert len(ImageFolder().load(pets, None).train) == 7


def test_hidden_and_other_files_are_ignored(pets: Path) -> None:
    expected = ImageFolder().load(pets, None).train.fingerprint()
    for name in (
        "train/cat/._0.png",
        "train/.cache/0.png",
        "__MACOSX/train/cat/0.png",
        "train/cat/Thumbs.db",
    ):
        (pets / name).parent.mkdir(parents=True, exist_ok=True)
        (pets / name).write_bytes(b"not an image")
    (pets / "train/README.txt").write_text("hello")
    assert ImageFolder().load(pets, None).train.fingerprint() == expected
    archive = zipped(pets, "top/")
    with zipfile.ZipFile(archive, "a") as file:  # as macOS packs a folder
        file.writestr("__MACOSX/top/train/cat/0.png", b"not an image")
    assert ImageFolder().load(archive, None).train.fingerprint() == expected


def test_classes_are_sorted_by_their_names_alone(tmp_path: Path) -> None:
    write(tmp_path, *(f"{kind}/{n}.png" for kind in ("dog", "cat-2", "cat") for n in range(2)))  # "cat-2/" < "cat/"
    assert ImageFolder().load(tmp_path, None).train.classes == ("cat", "cat-2", "dog")


@pytest.mark.parametrize("pack", [lambda folder: folder, zipped], ids=["folder", "zip"])
def test_only_what_the_limit_selects_is_decoded(pets: Path, pack) -> None:  # type: ignore[no-untyped-def]
    expected = ImageFolder().load(pets, 4).train
    assert torch.equal(expected.images, ImageFolder().load(pets, None).train.take(expected.index).images)
    assert expected.index.tolist() == [0, 1, 3, 5]
    (pets / "train/cat/2.png").write_bytes(b"damaged")
    root = pack(pets)
    assert torch.equal(ImageFolder().load(root, 4).train.images, expected.images)
    assert refusal(root).startswith("image train/cat/2.png can not be read (UnidentifiedImageError: ")
    with pytest.raises(OptionError) as error:
        ImageFolder().load(root, 1)
    assert message(error) == "A limit of 1 images is below the number of classes; take at least 2."


def test_a_root_is_needed_and_must_exist(tmp_path: Path) -> None:
    with pytest.raises(OptionError) as error:
        ImageFolder().load(None, None)
    assert message(error) == 'image-folder reads your files; name the folder or zip with data.root="DIR".'
    assert refusal(tmp_path / "nowhere") == "does not exist; check the path."
    (tmp_path / "text.zip").write_text("not a zip")
    assert refusal(tmp_path / "text.zip") == (
        "is neither a folder nor a readable zip (File is not a zip file); check the path."
    )


def test_a_truncated_image_is_refused(pets: Path) -> None:
    whole = (pets / "test/cat/0.png").read_bytes()
    (pets / "test/cat/0.png").write_bytes(whole[: len(whole) // 2])
    text = refusal(pets)
    assert text.startswith("image test/cat/0.png can not be read (")
    assert text.endswith("); replace or remove it.")


def test_a_damaged_zip_member_is_refused(pets: Path) -> None:
    archive = zipped(pets)
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as file:
        info = file.getinfo("train/cat/1.png")
    content[info.header_offset + 30 + len(info.filename) + info.compress_size // 2] ^= 0xFF
    archive.write_bytes(content)
    assert refusal(archive).startswith("image train/cat/1.png can not be read (")


def test_a_bomb_is_refused_before_it_is_unpacked(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (pets / "train/cat/1.png").write_bytes(bytes(40 << 20))
    archive = zipped(pets)
    assert archive.stat().st_size < 1 << 16
    monkeypatch.setattr(pictures, "MAX_BYTES", 2 << 20)
    tracemalloc.start()
    try:
        assert refusal(archive) == "image train/cat/1.png is larger than 2 MiB; shrink or remove it."
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    assert refusal(pets) == "image train/cat/1.png is larger than 2 MiB; shrink or remove it."


@pytest.mark.parametrize("limit", [10, 20])
def test_the_limit_of_pixels_is_ours_in_every_thread(pets: Path, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's own refuses 6x6 pixels at 10, and warns at 20."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(Image.DecompressionBombError) if limit == 10 else pytest.warns(Image.DecompressionBombWarning):
        Image.open(pets / "train/cat/0.png").close()
    with monkeypatch.context() as without:
        without.setattr(Image, "MAX_IMAGE_PIXELS", None)
        theirs = advkit.load_data("image-folder", pets, size=4).train.images[:]
    with warnings.catch_warnings(action="error"):
        loaded = advkit.load_data("image-folder", pets, size=4).train.images[:]  # in threads
        assert torch.equal(loaded, theirs)
        with pytest.raises(DataError, match=r"has 6x6 pixels, more than data\.max_pixels = 35; shrink it\.$"):
            _ = advkit.load_data("image-folder", pets, size=4, max_pixels=35).train.images[:]
        assert len(ImageFolder().load(pets, None).train) == 6
    assert limit == Image.MAX_IMAGE_PIXELS


def test_sizes_must_be_equal(pets: Path) -> None:
    picture(1, size=7).save(pets / "test/dog/1.png")
    picture(1, size=8).save(pets / "train/dog/1.png")
    assert refusal(pets) == (
        "train/dog/1.png is 8x8 pixels, but train/cat/0.png is 6x6; resize all images to one size, or let data.size=N "
        "do it."
    )


def test_sixteen_bits_are_not_clipped_in_silence(pets: Path) -> None:
    Image.fromarray(np.full((6, 6), 40000, dtype=np.uint16)).save(pets / "train/cat/1.png")
    assert refusal(pets) == "image train/cat/1.png has pixels of mode I;16, not of 8 bits; convert it."


def test_a_format_outside_the_list_is_refused_whatever_its_name(pets: Path) -> None:
    picture(1).save(pets / "train/cat/1.png", format="PCX")
    assert refusal(pets) == (
        "image train/cat/1.png can not be read (UnidentifiedImageError: it is none of JPEG, PNG, BMP, WEBP, GIF, TIFF, "
        "PPM); replace or remove it."
    )


@pytest.mark.parametrize(
    "name", ["3.PNG", "3.JPG", "3.Jpeg", "3.tif", "3.TIFF", "3.gif", "3.ppm", "3.jfif", "3", "3.dat"]
)
def test_no_picture_is_dropped_for_its_name(pets: Path, name: str) -> None:
    suffix = Path(name).suffix.lower()
    formats = {".tif": "TIFF", ".tiff": "TIFF", ".gif": "GIF", ".ppm": "PPM", ".png": "PNG", ".jfif": "JPEG"}
    picture(9).save(pets / "train/cat" / name, format=formats.get(suffix, "JPEG"))
    for root in (pets, zipped(pets)):
        splits = ImageFolder().load(root, None)
        assert len(splits.train) == 7 and splits.notes == ()


def test_what_is_left_out_is_said(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("Thumbs.db", "labels.txt", "more.TXT", ".hidden"):
        (pets / "train/cat" / name).write_text("no picture")
    for root in (pets, zipped(pets)):
        assert ImageFolder().load(root, None).notes == (
            f"{root}: 3 files are no pictures and are left out (2 .txt, 1 .db)",
        )
    line = ["train", "--dataset", "image-folder", "--data-root", str(pets), "--epochs", "1", "--set=model.width=1"]
    line += ["--set=attack.steps=1", "--set=validation.fraction=0", "--progress=none"]
    assert command([*line, "--out", str(pets.parent / "run")]) == 0
    assert "3 files are no pictures and are left out (2 .txt, 1 .db)" in capsys.readouterr().err


def test_pictures_of_other_kinds_are_refused(pets: Path) -> None:
    (pets / "train/cat/4.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    assert refusal(pets).startswith(
        "train/cat/4.heic is a picture of a kind that is not read; remove it, or convert it"
    )


def test_pixels_are_counted_before_they_are_decoded(pets: Path) -> None:
    Image.new("L", (6000, 6000)).save(pets / "train/cat/1.png")
    assert refusal(pets) == (
        "image train/cat/1.png has 6000x6000 pixels, more than data.max_pixels = 16777216; shrink it."
    )
    source = ImageFolder()
    source.max_pixels = 35
    with pytest.raises(DataError, match=r"has 6x6 pixels, more than data\.max_pixels = 35"):
        source.load(pets, None)


@pytest.mark.parametrize("cut", [5, 20])
def test_a_png_without_its_end_is_damaged(pets: Path, cut: int) -> None:
    path = pets / "train/cat/1.png"
    path.write_bytes(path.read_bytes()[:-cut])
    assert refusal(pets).startswith("image train/cat/1.png can not be read")


def test_moving_pictures_are_refused(pets: Path) -> None:
    picture(1).save(pets / "train/cat/1.gif", save_all=True, append_images=[picture(2)])
    assert refusal(pets) == "image train/cat/1.gif has 2 frames; keep one."


@pytest.mark.parametrize("root", ["pipe", "/dev/zero", "/dev/null", "x" * 5000, "a\0b"])
def test_a_root_that_is_no_file(tmp_path: Path, root: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError) as refused:
        ImageFolder().load(tmp_path / root, None)
    assert "check the path" in str(refused.value) and refused.value.exit_code == 4


@pytest.mark.parametrize(
    ("patch", "sentence"),
    [
        ((6, b"\x63\x00"), "is neither a folder nor a readable zip (zip file version 9.9)"),
        ((10, b"\x63\x00"), "image train/cat/0.png can not be read (NotImplementedError: That compression method"),
        ((8, b"\x01\x00"), "image train/cat/0.png can not be read (RuntimeError: File 'train/cat/0.png' is encrypted"),
        ((42, b"\xff\xff\xff\x7f"), "image train/cat/0.png can not be read (BadZipFile: Truncated file header)"),
    ],
)
def test_zips_of_other_versions_and_methods(pets: Path, patch: tuple[int, bytes], sentence: str) -> None:
    archive = zipped(pets)
    raw = bytearray(archive.read_bytes())
    start = raw.index(b"PK\x01\x02")
    while start >= 0:
        raw[start + patch[0] : start + patch[0] + len(patch[1])] = patch[1]
        start = raw.find(b"PK\x01\x02", start + 46)
    archive.write_bytes(raw)
    assert refusal(archive).startswith(sentence)


def test_a_zip_whose_names_are_no_text(pets: Path) -> None:
    archive = zipped(pets)
    raw = bytearray(archive.read_bytes())
    start = raw.index(b"PK\x01\x02")
    raw[start + 8 : start + 10], raw[start + 46 : start + 47] = b"\x00\x08", b"\xff"
    archive.write_bytes(raw)
    assert refusal(archive).startswith("is neither a folder nor a readable zip")


def test_an_empty_class_is_refused(pets: Path) -> None:
    (pets / "train/bird").mkdir()
    text = f"class folder train/bird has no images ({', '.join(pictures.SUFFIXES)}); add some or remove it."
    assert refusal(pets) == text
    assert refusal(zipped(pets)) == text


def test_classes_of_both_splits_must_be_equal(pets: Path) -> None:
    write(pets, "test/bird/0.png")
    assert refusal(pets) == "class bird is in test but not in train; give both the same class folders."


def test_a_lone_split_is_refused(pets: Path) -> None:
    (pets / "test").rename(pets / "rest")
    assert refusal(pets) == "has a folder train but no test; add it, or leave both out."
    (pets / "train").rename(pets / "test")
    assert refusal(pets) == "has a folder test but no train; add it, or leave both out."
    (pets / "test").rename(pets / "Test")
    (pets / "rest").rename(pets / "Training")
    halves = "has the folders Test, Training, which are no classes; the two halves of a data set are read from"
    assert halves in refusal(pets)


def test_one_class_or_one_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert refusal(tmp_path / "a") == "has 0 class folders; give two or more, one for each class."
    write(tmp_path / "a", "cat/0.png", "cat/1.png")
    assert refusal(tmp_path / "a") == "has 1 class folders; give two or more, one for each class."
    write(tmp_path / "a", "dog/0.png")
    assert refusal(tmp_path / "a") == "class folder dog has one image; add some, for two splits."


@pytest.mark.parametrize("name", ["train/loose.png", "train/cat/more/0.png"])
def test_no_image_is_left_out_in_silence(pets: Path, name: str) -> None:
    write(pets, name)
    culprit = "train/cat/more/" if "more" in name else name
    text = f"{culprit} is not directly in a class folder; move it into one, or remove it."
    assert refusal(pets) == text
    assert refusal(zipped(pets)) == text


def test_links_stay_inside(pets: Path) -> None:
    inside = ImageFolder().load(pets, None)
    (pets / "train/cat/3.png").symlink_to(pets / "train/dog/0.png")
    assert len(ImageFolder().load(pets, None).train) == len(inside.train) + 1
    (pets / "train/cat/3.png").unlink()
    write(pets.parent, "secret/0.png")
    for link, target in (("train/cat/4.png", "secret/0.png"), ("train/bird", "secret")):
        (pets / link).symlink_to(pets.parent / target)
        assert refusal(pets) == f"{link} is a link that leads outside; put a copy in its place."
        (pets / link).unlink()
    (pets / "train/cat/5.png").symlink_to(pets / "train/cat/nothing.png")
    assert refusal(pets) == "train/cat/5.png is not a file, or a link to nothing; replace or remove it."
    (pets / "train/cat/5.png").unlink()
    (pets / "train/cat/loop").symlink_to(pets)
    assert refusal(pets).startswith("train/cat/loop/ is not directly in a class folder")


@pytest.mark.data
def test_the_real_archive() -> None:
    folder = os.environ.get("ADVKIT_TEST_DATA")
    if not folder:
        pytest.skip("ADVKIT_TEST_DATA does not name a folder with cifar10-jpeg.zip")
    start = time.perf_counter()
    splits = ImageFolder().load(Path(folder) / "cifar10-jpeg.zip", 10_000)
    assert time.perf_counter() - start < 60
    assert splits.train.shape == (3, 32, 32)
    assert splits.train.labels.bincount().tolist() == [1000] * 10
    assert splits.test.labels[:100].bincount().tolist() == [10] * 10
    assert splits.train.classes[:2] == ("airplane", "automobile")
    mean, std = splits.train.statistics()
    assert mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.01)  # the published ones of CIFAR-10
    assert std == pytest.approx((0.2470, 0.2435, 0.2616), abs=0.01)
