"""A data set in memory: its parts fit together, and what is taken of it remembers where it came from."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from advkit import DataError, Dataset
from advkit.data.chosen import balanced, choice
from advkit.evaluation.statistics import wilson

CLASSES = ("a", "b", "c")


def whole(n: int = 10) -> Dataset:
    images = torch.arange(n * 4, dtype=torch.uint8).reshape(n, 1, 2, 2)
    return Dataset("own", images, torch.arange(n) % 3, CLASSES)


def test_what_is_taken_remembers_its_places() -> None:
    full = whole()
    assert full.index.tolist() == list(range(10))
    some = full.take(torch.tensor([7, 2, 2, 9]))
    assert some.index.tolist() == [7, 2, 2, 9]
    assert torch.equal(some.images, full.images[[7, 2, 2, 9]]) and some.labels.tolist() == [1, 2, 2, 0]
    again = some.take(slice(1, 3)).take(torch.tensor([1]))
    assert again.index.tolist() == [2] and again.name == "own" and again.classes == CLASSES
    # What verdicts are kept by: the images themselves, wherever they came from.
    assert some.fingerprint() == Dataset("other", some.images, some.labels, CLASSES).fingerprint()


def test_nothing_taken_is_refused() -> None:
    with pytest.raises(DataError, match=r"images are empty, .*; give at least one image"):
        whole().take(slice(0, 0))


@pytest.mark.parametrize("shape", [(40, 32, 32, 3), (40, 28, 28, 1), (4, 8, 6, 4)])
def test_images_with_channels_last_are_refused(shape: tuple[int, ...]) -> None:
    labels = torch.arange(shape[0]) % 3
    with pytest.raises(DataError, match=r"channels last; give images\.permute\(0, 3, 1, 2\)"):
        Dataset("own", torch.zeros(shape, dtype=torch.uint8), labels, CLASSES)
    turned = Dataset("own", torch.zeros(shape, dtype=torch.uint8).permute(0, 3, 1, 2), labels, CLASSES)
    assert turned.shape == (shape[3], shape[1], shape[2])


@pytest.mark.parametrize("shape", [(4, 1, 8, 3), (4, 3, 5, 4), (4, 12, 4, 4), (4, 1, 1, 1)])
def test_narrow_images_are_images(shape: tuple[int, ...]) -> None:
    assert Dataset("own", torch.zeros(shape, dtype=torch.uint8), torch.arange(4) % 3, CLASSES).shape == shape[1:]


@pytest.mark.parametrize(
    ("part", "value", "sentence"),
    [
        ("images", [[1]], "images are of type list; give a uint8 tensor (N, C, H, W) on the CPU"),
        ("labels", [0] * 10, "labels are of type list; give an int64 tensor (10,) on the CPU"),
        ("index", torch.arange(9), "index are int64 (9,) on cpu; give an int64 tensor (10,) on the CPU"),
    ],
)
def test_parts_of_another_type(part: str, value: Any, sentence: str) -> None:
    parts: dict[str, Any] = {"images": whole().images, "labels": whole().labels, "index": None, part: value}
    with pytest.raises(DataError) as refused:
        Dataset("own", classes=CLASSES, **parts)
    assert sentence in str(refused.value)


def uneven() -> Dataset:
    """180 of one class and 20 of another, in turn while the smaller lasts: the order of `balanced`."""
    labels = balanced(torch.arange(200) // 180)
    images = torch.arange(200, dtype=torch.uint8).view(200, 1, 1, 1)
    return Dataset("uneven", images, (labels >= 180).long(), ("many", "few"))


def test_a_choice_stands_for_the_whole_and_keeps_indices() -> None:
    data = uneven()
    assert data.labels[:40].float().mean() == 0.5
    for count in (20, 40, 100):
        part = data.sample(count)
        low, high = wilson(int((part.labels == 0).sum()), count)
        assert low <= 0.9 <= high
        assert torch.equal(part.images.flatten().long(), part.index) and len(part.index.unique()) == count


def test_a_smaller_choice_begins_a_larger_and_enough_is_all_as_it_is() -> None:
    data = uneven()
    assert torch.equal(data.sample(30).index, data.sample(100).index[:30])
    assert torch.equal(data.sample(100).sample(30).index, data.sample(30).index)
    assert data.sample(0) is data and data.sample(200) is data and data.sample(10**9) is data
    assert choice(200, 200) == "all 200 images" and choice(3, 200) == "3 of 200 images, chosen at random, seed 0"
