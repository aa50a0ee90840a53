"""The batches of extra-data against a plain reading of RST's sampler, and what its share must not touch."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from heard import Heard, StopAfter
from methods import Method, run
from torch import Tensor

import advkit
from advkit import (
    Batch,
    DataError,
    Dataset,
    OptionError,
    Plugin,
    ResumeMismatch,
    Splits,
    Stopped,
    hookimpl,
    mapped_images,
)
from advkit.config.layer import Layer
from advkit.config.resolve import resolve
from advkit.data import repeats
from advkit.data.convert import convert
from advkit.data.own import as_splits
from advkit.errors import Caution
from advkit.studies.subject import of_run
from advkit.training.feed import parted

EXTRA = "extra-data"

METHODS = {
    EXTRA: Method(
        neutral=[(run(*others, EXTRA), run(*others)) for others in ((), ("cat-eps", "lsiw"), ("trades", "ema"))],
        changes=[],  # it has no images unless a folder is named: see below
    )
}

LABELLED, MANY, SIDE = 50, 300, 8
SETTINGS = {"run.batch_size": 10, "run.epochs": 2, "attack.eps": 0.1, "attack.steps": 1, "validation.fraction": 0.1}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extra")
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (MANY, SIDE, SIDE, 1), dtype=np.uint8)
    np.savez(folder / "g.npz", image=images, label=np.sort(rng.integers(0, 3, MANY)))
    convert(str(folder / "g.npz"), folder / "m")
    return folder / "m"


def labelled(side: int = SIDE, classes: int = 3) -> Splits:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (LABELLED, 1, side, side), dtype=np.uint8))
    return as_splits(Dataset("own", images, torch.arange(LABELLED) % classes, tuple("abc")[:classes]))


class Seen(Plugin):
    """Keeps what the update is about."""

    name = "seen"

    @hookimpl
    def setup(self) -> None:
        self.index: list[Tensor] = []
        self.y: list[Tensor] = []
        self.occurrence: list[Tensor] = []

    @hookimpl
    def observe_update(self, batch: Batch) -> None:
        self.index.append(batch.index)
        self.y.append(batch.y)
        self.occurrence.append(batch.occurrence)


def seen(root: Path, share: float = 0.6, *others: str, **changes: Any) -> Seen:
    watch = Seen(Seen.Options())
    options = {EXTRA: {"root": str(root), "share": share}}
    advkit.train("small-cnn", labelled(), [EXTRA, watch, *others], options=options, settings=SETTINGS | changes)
    return watch


def test_every_batch_has_its_share_and_labelled_images_come_once(root: Path) -> None:
    watch = seen(root)
    trained, steps = 45, ceil(45 / 10)
    assert [len(index) for index in watch.index] == [10] * steps * 2
    for index in watch.index:
        assert int((index >= LABELLED).sum()) == 6 and len(index.unique()) == 10 and int(index.max()) < LABELLED + MANY
    for epoch in (0, 1):
        counts = Counter(torch.cat(watch.index[epoch * steps : (epoch + 1) * steps]).tolist())
        own = [count for place, count in counts.items() if place < LABELLED]
        assert len(own) == 4 * steps <= trained and set(own) == {1}
    orders = [torch.cat(watch.index[:steps]), torch.cat(watch.index[steps:])]
    assert not torch.equal(*orders) and torch.equal(torch.cat(orders), torch.cat(seen(root).index))


def test_an_index_names_the_same_image_whatever_the_seed(root: Path) -> None:
    """Row k of the file is LABELLED + k, with its label."""
    labels = torch.from_numpy(np.load(root / "train-labels.npy"))
    for number in (0, 1):
        watch = seen(root, **{"run.seed": number})
        index, y = torch.cat(watch.index), torch.cat(watch.y)
        assert torch.equal(y[index >= LABELLED], labels[index[index >= LABELLED] - LABELLED])
        assert torch.equal(y[index < LABELLED], index[index < LABELLED] % 3)


def test_all_extra_images_are_equally_likely(root: Path) -> None:
    """Over 480 draws from 300 images: a chi-square of 299 degrees, five deviations around its mean."""
    watch = seen(root, 1.0, **{"run.epochs": 12, "attack.steps": 0})
    index = torch.cat(watch.index)
    assert int(index.min()) >= LABELLED and len(index) == 12 * 5 * 10
    counts = torch.bincount(index - LABELLED, minlength=MANY).double()
    chi = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
    assert abs(chi - (MANY - 1)) < 5 * (2 * (MANY - 1)) ** 0.5


def test_what_comes_again_in_an_epoch_is_counted(root: Path) -> None:
    watch = seen(root, 1.0, **{"run.batch_size": 40, "run.epochs": 1, "validation.fraction": 0.0})
    before: Counter[int] = Counter()
    for index, occurrence in zip(watch.index, watch.occurrence, strict=True):
        assert occurrence.tolist() == [before[place] for place in index.tolist()]
        before.update(index.tolist())
    assert max(before.values()) > 1


def test_it_is_resumed_bit_for_bit_and_on_the_same_images_only(root: Path, tmp_path: Path) -> None:
    options = {EXTRA: {"root": str(tmp_path / "m"), "share": 0.6}}
    np.savez(tmp_path / "g.npz", image=np.load(root / "train-images.npy"), label=np.load(root / "train-labels.npy"))
    convert(str(tmp_path / "g.npz"), tmp_path / "m")

    def go(**more: Any) -> Any:
        plugins = [EXTRA, "cat-eps", "lsiw"]
        return advkit.train("small-cnn", labelled(), plugins, options=options, settings=SETTINGS, **more)

    with pytest.raises(Stopped):
        go(out=tmp_path / "run", progress=StopAfter(7))
    (tmp_path / "m").rename(tmp_path / "right")
    np.savez(tmp_path / "g.npz", image=255 - np.load(root / "train-images.npy"), label=np.zeros(MANY, np.int64))
    convert(str(tmp_path / "g.npz"), tmp_path / "m")
    with pytest.raises(ResumeMismatch, match=r"The extra images in .* are not those that the run began with; put"):
        go(resume_from=tmp_path / "run")
    (tmp_path / "m").rename(tmp_path / "wrong")
    (tmp_path / "right").rename(tmp_path / "m")
    result, whole = go(resume_from=tmp_path / "run"), go().model.state_dict()
    assert all(torch.equal(result.model.state_dict()[name], whole[name]) for name in whole)
    (tmp_path / "m").rename(tmp_path / "right")  # what is finished needs them no more
    with pytest.warns(Caution, match="is finished; nothing is left to do"):
        again = go(resume_from=tmp_path / "run")
    assert all(torch.equal(again.model.state_dict()[name], whole[name]) for name in whole)
    assert replace(again, model=result.model) == result


def test_parts_of_a_batch_are_mixed_as_it_is(root: Path) -> None:
    halves = [int((index[:5] >= LABELLED).sum()) for index in seen(root).index]
    assert len(set(halves)) > 1 and 1 < sum(halves) / len(halves) < 5


@pytest.mark.parametrize(
    ("share", "data", "sentence"),
    [
        (0.05, labelled(), r"extra-data\.share = 0\.05 of 10 images are 0 of 300 extra ones; at least one and at most"),
        (0.5, labelled(side=6), r"The extra images in .* are \(1, 8, 8\), those of own \(1, 6, 6\); give extra images"),
        (0.5, labelled(classes=2), r"The extra images in .* have 3 classes, own 2; give extra images of the same"),
    ],
)
def test_extra_images_that_do_not_fit_are_refused(root: Path, share: float, data: Splits, sentence: str) -> None:
    options = {EXTRA: {"root": str(root), "share": share}}
    with pytest.raises((OptionError, DataError), match=sentence):
        advkit.train("small-cnn", data, EXTRA, options=options, settings=SETTINGS)


def folder_of(at: Path, *parts: Tensor) -> Path:
    """Mapped images, those of `parts` (n, C, H, W) one after the other."""
    images = torch.cat(parts).permute(0, 2, 3, 1).numpy()
    at.mkdir()
    np.savez(at / "g.npz", image=images, label=np.arange(len(images)) % 3)
    convert(str(at / "g.npz"), at / "m")
    return at / "m"


WHERE = "are among those that extra-data adds to the training"


def test_images_that_judge_the_run_are_counted_among_the_extra_ones(root: Path, tmp_path: Path) -> None:
    """At the start, and beside every result of the run; not where one is resumed, nor where others are extra."""
    own = labelled().train
    other = Dataset("own", 255 - own.images[:20], own.labels[:20], own.classes)
    data, at = Splits(own, other, "none"), {"run.epochs": 1, "attack.steps": 0, "model.width": 2}
    strangers = mapped_images(root).images[:]
    trained, held_out = parted(resolve((), [Layer("python", SETTINGS)]), LABELLED)
    tested = (
        f"7 of 20 test images {WHERE}, so the accuracy on them is that of training; leave them out of the extra ones"
    )
    choosing = f"2 of 5 held-out images {WHERE}: validation is optimistic, and so is the choice of `best`; leave"

    def go(parts: list[Tensor], name: str, **changes: Any) -> list[str]:
        options = {EXTRA: {"root": str(folder_of(tmp_path / name, strangers, *parts)), "share": 0.6}}
        heard, out = Heard(), tmp_path / name / "run"
        settings = SETTINGS | at | changes
        advkit.train("small-cnn", data, EXTRA, options=options, settings=settings, out=out, progress=heard)
        found = [sentence for sentence in heard.said if WHERE in sentence]
        assert [note for note in of_run(out, splits=data).record.get("notes", []) if WHERE in note] == found
        return found

    both = [other.images[:7], own.images[held_out[:2]], own.images[trained[:9]]]
    first, second = go(both, "both")
    assert first == tested and second.startswith(choosing)
    assert [said.partition(";")[0] for said in go(both[1:], "on-test", **{"validation.split": "test"})] == [
        f"2 of 5 held-out images {WHERE}: figures on them are optimistic"
    ]
    heard = Heard()
    advkit.train(dataset=data, resume_from=tmp_path / "both" / "run", progress=heard)
    assert not any("environment.json" in sentence for sentence in heard.said)
    begun = tmp_path / "on-test" / "run"
    advkit.train("small-cnn", data, settings=SETTINGS | at | {"run.seed": 7}, init_from=begun, progress=heard)
    unless = "if held-out or test images were among those, accuracies on them are optimistic"
    assert f"{begun} was also trained on 311 images that plugins added; {unless}" in heard.said


def test_of_very_many_extra_images_not_all_are_read_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    images, held_out, none = labelled().train.images, torch.tensor([1]), torch.arange(0)
    monkeypatch.setattr(repeats, "MOST", 6 * SIDE * SIDE)
    assert len(repeats.among_extra(images[:3], images, images[:2], held_out, "here", "test")) == 2
    monkeypatch.setattr(repeats, "MOST", 2 * SIDE * SIDE)
    unread = "3 extra images are too many to look for the {} ones among them; if some are, accuracies on those are "
    for test, kept, judged in ((images[:2], held_out, "test and held-out"), (images[:2], none, "test")):
        said = repeats.among_extra(images[:3], images, test, kept, "here", "test")
        assert said == [unread.format(judged) + "optimistic"]
    assert repeats.among_extra(images[:3], images, images, none, "here", "test") == []


def test_extra_images_of_other_classes_are_named(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "m")
    told = json.loads((root / "manifest.json").read_text()) | {"classes": ["a", "c", "b"], "counted": False}
    (tmp_path / "m" / "manifest.json").write_text(json.dumps(told))
    options = {EXTRA: {"root": str(tmp_path / "m"), "share": 0.5}}
    said = r"other classes than own, or in another order: c \(here b\), b \(here c\); give extra images of the same"
    with pytest.raises(DataError, match=said):
        advkit.train("small-cnn", labelled(), EXTRA, options=options, settings=SETTINGS)


def test_a_share_without_a_folder_is_refused() -> None:
    plan = advkit.plan(dataset=labelled(), plugins=EXTRA, options={EXTRA: {"share": 0.5}}, settings=SETTINGS)
    assert any(caution.startswith("extra-data.root is not set") for caution in plan["cautions"])
    with pytest.raises(OptionError, match=r"extra-data reads a folder of mapped images; make one with `advkit data"):
        advkit.train("small-cnn", labelled(), EXTRA, options={EXTRA: {"share": 0.5}}, settings=SETTINGS)
