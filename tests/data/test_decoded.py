"""Pictures of any size, decoded on demand: what torchvision makes of them, the same bits whoever decodes them."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as v2
from heard import StopAfter
from PIL import Image
from test_data import zipped
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from advkit import DataError, Dataset, OptionError, Splits, Stopped, TrainResult, evaluate, load_data, train
from advkit.cli.main import run
from advkit.data import decoded, pictures
from advkit.data.by_row import Chained
from advkit.data.decoded import TRIES, Decoded, box_of
from advkit.rng import Draws
from advkit.training import ahead

SIDE = 14  # so that the shorter side is a whole number, 16
SETTINGS = {"attack.steps": 1, "validation.fraction": 0.2, "run.lone_image": "keep"}
DRAWS = Draws((1, 2), torch.arange(20), torch.arange(20) % 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """20 pictures to train on and 6 for testing, of 10 to 41 pixels a side, coloured and gray, JPEG and PNG."""
    rng = np.random.default_rng(0)
    for number in range(26):
        split, name = ("train", number) if number < 20 else ("test", number - 20)
        path = (
            tmp_path / "pictures" / split / ("cat", "dog")[number % 2] / f"{name:02}.{('jpg', 'png')[number % 3 > 1]}"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = rng.integers(10, 42, 2)
        pixels = rng.integers(0, 256, (*shape, *([] if number == 5 else [3])), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return tmp_path / "pictures"


def images(folder: Path) -> Decoded:
    found = load_data("image-folder", folder, size=SIDE).train.images
    assert isinstance(found, Decoded)
    return found


def opened(folder: Path, name: str) -> Image.Image:
    with Image.open(folder / name) as image:
        return image.convert("RGB")


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 2))


def trained(folder: Path, transform: str = "auto", **arguments: Any) -> TrainResult:
    settings = SETTINGS | {"data.root": str(folder), "data.size": SIDE, "data.transform": transform}
    plan = {"settings": settings, "epochs": 2, "batch_size": 3, "eps": 0.1}
    return train(linear(), "image-folder", ["cat-eps"], **plan, **arguments)


def told(result: TrainResult) -> tuple[list[Tensor], list[dict[str, Any]]]:
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in result.history]
    return [*result.model.state_dict().values()], rows


def same(one: TrainResult, other: TrainResult) -> bool:
    (weights, rows), (others, other_rows) = told(one), told(other)
    return all(map(torch.equal, weights, others)) and rows == other_rows


# ---------------------------------------------------------------------- what is made of a picture


def test_evaluation_sees_the_middle_as_torchvision_does(folder: Path) -> None:
    found, middle = images(folder), v2.Compose([v2.Resize(16), v2.CenterCrop(SIDE)])
    for row, name in zip(found[:], found.names, strict=True):
        assert torch.equal(row, functional.pil_to_tensor(middle(opened(folder, name)))), name


def test_training_sees_parts_as_torchvision_makes_them(folder: Path) -> None:
    found = images(folder)
    unit = DRAWS.uniform(TRIES, 2, draw=0, dtype=torch.float64).tolist()
    corner = DRAWS.uniform(2, draw=1, dtype=torch.float64).tolist()
    mirrored = DRAWS.integers(2, 1, draw=2).squeeze(1).tolist()
    assert set(mirrored) == {0, 1}
    for place, row in enumerate(found.drawn(torch.arange(20), DRAWS)):
        picture = opened(folder, found.names[place])
        left, top, right, bottom = box_of(*picture.size, unit[place], corner[place])
        part = functional.resized_crop(picture, top, left, bottom - top, right - left, [SIDE, SIDE])
        part = functional.horizontal_flip(part) if mirrored[place] else part
        assert torch.equal(row, functional.pil_to_tensor(part))


@pytest.mark.parametrize("size", [(3, 90), (90, 3), (1, 1)])
def test_where_no_part_fits_it_is_the_middle_as_torchvision_has_it(size: tuple[int, int]) -> None:
    params = v2.RandomResizedCrop(SIDE).make_params([torch.zeros(3, size[1], size[0])])
    left, top, right, bottom = box_of(*size, [(0.99, 0.5)] * TRIES, (0.5, 0.5))
    assert (top, left, bottom - top, right - left) == tuple(params[key] for key in ("top", "left", "height", "width"))


def test_parts_are_spread_as_torchvision_spreads_them() -> None:
    """Share of the picture, shape and place, by their means over many."""
    many = Draws((3, 4), torch.arange(1000))
    unit = many.uniform(TRIES, 2, draw=0, dtype=torch.float64).tolist()
    corner = many.uniform(2, draw=1, dtype=torch.float64).tolist()
    own = torch.tensor([box_of(50, 40, *row) for row in zip(unit, corner, strict=True)]).double()
    theirs = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(1000):
            p = v2.RandomResizedCrop(SIDE).make_params([torch.zeros(3, 40, 50)])
            theirs.append((p["left"], p["top"], p["left"] + p["width"], p["top"] + p["height"]))
    for one, other in zip(own.T, torch.tensor(theirs).double().T, strict=True):
        assert abs(one.mean() - other.mean()) < 4 * one.std() * (2 / 1000) ** 0.5
        assert abs(one.std() / other.std() - 1) < 0.1


def test_a_part_hangs_on_its_address_alone(folder: Path) -> None:
    found, places = images(folder), torch.tensor([7, 3, 7])
    whole = found.drawn(torch.arange(20), DRAWS)
    some = found.drawn(places, Draws((1, 2), places, torch.tensor([1, 0, 2])))
    assert torch.equal(some[:2], whole[[7, 3]]) and not torch.equal(some[2], whole[7])  # another visit
    assert not torch.equal(found.drawn(places[:1], Draws((1, 3), places[:1])), whole[7:8])  # another epoch


# ---------------------------------------------------------------------- as a data set


def test_a_part_of_the_set_is_not_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_data("image-folder", folder, size=SIDE).train
    rows = torch.tensor([4, 0, -1])
    wanted = whole.images[rows]
    with monkeypatch.context() as patch:
        patch.setattr(decoded, "decode", lambda *_, **__: pytest.fail("a picture is decoded"))
        some = whole.take(rows)
        assert some.index.tolist() == [4, 0, 19] and some.shape == (3, SIDE, SIDE)
        limited = load_data("image-folder", folder, limit=7, size=SIDE).train
    assert torch.equal(some.images[:], wanted) and torch.equal(some.images.float(), wanted.float())
    assert torch.equal(limited.images[:], whole.images[limited.index])
    assert torch.equal(whole.images[whole.index == 4][0], wanted[0]) and torch.equal(whole.images[-1], wanted[2])


def test_what_tells_one_set_from_another(folder: Path) -> None:
    """Any byte of a file and the side; not where it lies, nor how it is packed."""
    first = load_data("image-folder", folder, size=SIDE).train
    assert load_data("image-folder", zipped(folder), size=SIDE).train.fingerprint() == first.fingerprint()
    assert load_data("image-folder", folder, size=SIDE + 1).train.fingerprint() != first.fingerprint()
    path = folder / first.images.names[3]  # type: ignore[attr-defined]
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)
    assert load_data("image-folder", folder, size=SIDE).train.fingerprint() != first.fingerprint()


def test_a_sample_stands_for_many(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded, "SAMPLE", 4)
    whole = load_data("image-folder", folder, size=SIDE).train
    four = whole.images.sample().names  # type: ignore[attr-defined]
    kept = torch.tensor([name in four for name in whole.images.names])  # type: ignore[attr-defined]
    assert kept.sum() == 4
    plain = Dataset("four", whole.images[kept], whole.labels[kept], whole.classes)
    assert whole.statistics() == plain.statistics()


# ---------------------------------------------------------------------- runs


class OneByOne:
    """No thread at all."""

    def map(self, *arguments: Any) -> Iterator[Any]:
        return map(*arguments)


def test_bits_are_the_same_for_any_number_of_threads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for threads in (OneByOne(), ThreadPoolExecutor(1), ThreadPoolExecutor(3)):
        monkeypatch.setattr(decoded, "_threads", lambda threads=threads: threads)
        results.append(trained(folder))
        monkeypatch.setattr(ahead, "Ahead", lambda gather, pinned: ahead.Now(gather))  # with nothing begun early
    assert same(results[0], results[1]) and same(results[0], results[2])
    assert not same(results[0], trained(folder, "none"))  # the control


@pytest.mark.parametrize("transform", ["none", "crop-flip"])
def test_other_transforms_see_the_middle_as_if_it_lay_in_memory(folder: Path, transform: str) -> None:
    splits = load_data("image-folder", folder, size=SIDE)
    copies = [Dataset("copy", s.images[:], s.labels, s.classes) for s in (splits.train, splits.test)]
    plan = {"settings": SETTINGS, "epochs": 2, "batch_size": 3, "eps": 0.1}
    assert same(trained(folder, transform), train(linear(), Splits(*copies, transform), ["cat-eps"], **plan))


def test_a_run_goes_on_in_the_middle_of_an_epoch(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        trained(folder, out=tmp_path / "run", progress=StopAfter(8))  # of 6 steps an epoch
    assert same(train(linear(), plugins=["cat-eps"], resume_from=tmp_path / "run"), trained(folder))


def test_the_next_batch_is_begun_and_another_is_gathered(folder: Path) -> None:
    asked = []

    def gather(index: Tensor, occurrence: Tensor, epoch: int) -> Tensor:
        asked.append(index.tolist())
        return index * 10 + epoch

    one, other, never = torch.tensor([1, 2]), torch.tensor([3, 4]), torch.zeros(2, dtype=torch.int64)
    images = ahead.Ahead(gather, pinned=False)
    images.begin(one, never, 0)
    assert images.images(one, never, 0).tolist() == [10, 20] and asked == [[1, 2]]
    for index, seen, epoch in ((other, never, 0), (one, never + 1, 0), (one, never, 1)):
        images.begin(one, never, 0)
        assert torch.equal(images.images(index, seen, epoch), index * 10 + epoch)


def test_a_net_is_judged_on_the_middle(folder: Path) -> None:
    test = load_data("image-folder", folder, size=SIDE).test
    plain = Dataset("own", test.images[:], test.labels, test.classes)
    one, other = (evaluate(linear(), data, "clean,pgd-2", eps=0.02) for data in (test, plain))
    assert [row.accuracy for row in one.attacks] == [row.accuracy for row in other.attacks]


# ---------------------------------------------------------------------- what is refused


def test_a_damaged_picture_is_told_by_its_name(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of an epoch, where nobody looks at all before; what was saved stays."""
    monkeypatch.setattr("advkit.data.repeats.MOST", 0)
    monkeypatch.setattr(decoded, "SAMPLE", 2)
    whole = images(folder)
    name = next(name for name in whole.names if name not in whole.sample().names and name.endswith("jpg"))
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    line = ["--dataset", "image-folder", "--data-root", str(folder), "--epochs", "1", "--batch-size", "4"]
    sets = ["--set", f"data.size={SIDE}", "--set", "attack.steps=0", "--set", "model.width=4"]
    assert run(["train", *line, *sets, "--set", "validation.fraction=0", "--out", str(tmp_path / "run")]) == 4
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"image {name} can not be read (OSError: " in said and "Traceback" not in said
    assert (tmp_path / "run" / "run.toml").exists()


def test_pixels_are_counted_before_they_are_decoded(folder: Path) -> None:
    with pytest.raises(DataError, match=r"has \d+x\d+ pixels, more than data.max_pixels = 90; shrink it"):
        _ = load_data("image-folder", folder, max_pixels=90, size=SIDE).train.images[:]


def test_a_picture_that_is_gone(folder: Path) -> None:
    whole = load_data("image-folder", folder, size=SIDE).train
    (folder / "train/cat/00.jpg").unlink()
    with pytest.raises(DataError, match=r"image train/cat/00.jpg can not be read .* replace or remove it"):
        _ = whole.images[:]
    with pytest.raises(DataError, match=r"a picture can not be read .* replace or remove it"):
        whole.fingerprint()


def test_a_size_is_of_pictures_alone(folder: Path) -> None:
    with pytest.raises(OptionError, match=r"data.size is of pictures that image-folder decodes"):
        load_data("digits", size=8)
    with pytest.raises(OptionError, match=r"resized-crop-flip is done when pictures are decoded"):
        train(dataset="digits", settings={"data.transform": "resized-crop-flip"})
    splits = load_data("image-folder", folder, size=SIDE)
    joined = splits.train.joined(splits.test)
    assert isinstance(joined.images, Chained)
    assert torch.equal(joined.images[:], torch.cat([splits.train.images, splits.test.images]))
    with pytest.raises(OptionError, match="not all of these are; take crop-flip, or none"):
        train(dataset=Splits(joined, splits.test, splits.transform), settings={"model.width": 4})


def test_another_process_reads_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a pickle, as a DataLoader's worker gets it where processes are spawned; a zip is opened there anew."""
    whole = images(folder)
    packed = images(zipped(folder))
    first = packed.files.open.__self__  # type: ignore[attr-defined]
    for there in (pickle.loads(pickle.dumps(one)) for one in (whole, packed)):
        assert torch.equal(there[:], whole[:]) and there.files.size(there.names[0]) > 0
    before = first.here()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert torch.equal(packed[:], whole[:]) and first.here() is not before


def test_threads_of_a_new_process_open_a_zip_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = images(zipped(folder)).files.open.__self__  # type: ignore[attr-defined]
    opened = pictures.opened

    def slowly(path: Path) -> Any:
        time.sleep(0.05)  # the others ask meanwhile
        return opened(path)

    monkeypatch.setattr(pictures, "opened", slowly)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with ThreadPoolExecutor(4) as threads:
        assert len({*threads.map(lambda _: archive.here(), range(4))}) == 1
    assert archive.here().testzip() is None
    archive.close()


def test_as_many_threads_as_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded, "os", SimpleNamespace(sched_getaffinity=lambda _: set(range(12)), cpu_count=int))
    assert decoded.cores() == 12
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "5")
    assert decoded.cores() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "100")
    assert decoded.cores() == 1


def test_a_picture_too_narrow_for_its_middle_is_refused_before_it_is_resized(folder: Path) -> None:
    """A line of one pixel, resized to have 8/7 of the side in its width, takes gigabytes."""
    whole = images(folder)
    name = whole.names[0]
    for length, fine in ((400, True), (20_000, False)):
        Image.fromarray(np.zeros((length, 1), np.uint8)).save(folder / name, "PNG")
        if fine:
            assert whole.rows(torch.tensor([0])).shape[1:] == whole.shape[1:]
        else:
            with pytest.raises(DataError, match=r"1x20000 is too narrow: with its middle .* wide it has .* pixels"):
                whole.rows(torch.tensor([0]))
