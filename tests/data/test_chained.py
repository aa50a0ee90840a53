"""Images of several tensors as one: what is computed on them is what is computed on a copy of all."""

from __future__ import annotations

import operator
import pickle
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from advkit import Dataset, OptionError
from advkit.data.by_row import Chained, Rows

PARTS = tuple(torch.randint(0, 256, (n, 2, 3, 3), dtype=torch.uint8, generator=torch.Generator()) for n in (5, 7, 1))
WHOLE, CHAINED = torch.cat(PARTS), Chained(*PARTS)


@pytest.mark.parametrize("rows", [[0, 12, 5, 5, 4, -1, -13], []])
def test_rows_by_index_are_gathered(rows: list[int]) -> None:
    taken = CHAINED[torch.tensor(rows, dtype=torch.int64)]
    assert type(taken) is Tensor and torch.equal(taken, WHOLE[torch.tensor(rows, dtype=torch.int64)])


@pytest.mark.parametrize("rows", [slice(None), slice(3, 8), slice(-3, None), slice(0, 13, 5), slice(20, None)])
def test_rows_by_slice_are_gathered(rows: slice) -> None:
    assert type(CHAINED[rows]) is Rows and torch.equal(CHAINED[rows], WHOLE[rows])


def test_no_part_is_copied_for_some_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "cat", lambda *parts: pytest.fail("all images are copied"))
    assert len(CHAINED[torch.tensor([1, 6])]) == 2 and len(CHAINED[4:6]) == 2 and CHAINED.shape == WHOLE.shape


def test_anything_else_is_done_on_all() -> None:
    assert torch.equal(CHAINED.float(), WHOLE.float()) and torch.equal(CHAINED[3], WHOLE[3])
    bright = WHOLE[:, 0, 0, 0] > 90
    assert torch.equal(CHAINED[:, 0], WHOLE[:, 0]) and torch.equal(CHAINED[bright], WHOLE[bright])
    assert torch.equal(torch.cat([CHAINED, WHOLE]), torch.cat([WHOLE, WHOLE]))


def test_as_an_array_and_as_a_copy_it_is_all() -> None:
    assert CHAINED.tolist() == WHOLE.tolist() == np.asarray(CHAINED).tolist()
    assert type(deepcopy(CHAINED)) is Tensor and torch.equal(deepcopy(CHAINED), WHOLE)


WRITES: list[Callable[[Tensor], object]] = [
    lambda images: images.add_(1),
    lambda images: images.__setitem__(0, 1),
    lambda images: images.__setitem__(slice(None), 1),
    lambda images: torch.add(WHOLE, 1, out=images),
    lambda images: torch._foreach_add_([images], 1),
    lambda images: setattr(images, "data", torch.zeros_like(WHOLE)),
    lambda images: images[0].add_(1),
    lambda images: images[1:3][0].__setitem__(0, 1),
    lambda images: operator.iadd(images[:], 1),
    lambda images: torch.add(WHOLE, 1, out=images[:]),
    lambda images: torch.nn.init.ones_(images[0]),
    lambda images: torch.relu_(input=images[0]).zero_(),
    lambda images: torch.permute(input=images[0], dims=(1, 2, 0)).zero_(),
    lambda images: [image.zero_() for image in images],
    lambda images: images.permute(0, 2, 3, 1)[0, 0].fill_(1),
    lambda images: images.data.mul_(2),
    lambda images: images.split(4)[1].random_(),
]


@pytest.mark.parametrize("write", WRITES)
def test_what_writes_to_it_is_refused(write: Callable[[Tensor], object]) -> None:
    with pytest.raises(OptionError, match=r"nothing can be written to them; write to a copy, images\.clone\(\)\.$"):
        write(CHAINED)
    write(copied := CHAINED.clone())
    assert not torch.equal(copied, WHOLE)
    assert torch.equal(torch.zeros_like(WHOLE).copy_(CHAINED), WHOLE), "it may be read by what writes to another"


MEMORY: list[Callable[[Any], object]] = [
    lambda images: images.share_memory_(),
    lambda images: images._typed_storage(),
    lambda images: images.untyped_storage(),
    lambda images: images.data_ptr(),
    lambda images: torch.from_dlpack(images),
    lambda images: images.apply_(lambda value: 0),
]


@pytest.mark.parametrize("ask", MEMORY)
def test_there_is_no_memory_to_point_to(ask: Callable[[Any], object]) -> None:
    """torch itself ends with a segmentation fault."""
    with pytest.raises(OptionError, match=r"none to share or to point to; take images\.clone\(\)\.$"):
        ask(CHAINED)
    ask(CHAINED.clone())
    assert not CHAINED.is_shared()


def test_rows_are_read_as_any_tensor() -> None:
    """What is computed from them is plain, and may be written to."""
    rows = CHAINED[2:5]
    assert type(rows + 1) is type(rows.float()) is type(torch.stack([rows, rows])) is Tensor
    assert torch.equal(rows.float().div_(2), WHOLE[2:5] / 2) and rows[0].shape == WHOLE.shape[1:]
    plain = torch.zeros_like(WHOLE[2:5])
    plain[:1] = rows[:1]  # it may be read by what writes to another
    assert torch.equal(plain[0], WHOLE[2]) and torch.equal(torch.zeros_like(WHOLE[2:5]).copy_(rows), WHOLE[2:5])
    with pytest.raises(ValueError, match="read-only"):
        rows.numpy()[0] = 1
    for again in (deepcopy(rows), pickle.loads(pickle.dumps(rows)), pickle.loads(pickle.dumps(CHAINED))[2:5]):
        assert torch.equal(again, WHOLE[2:5])


def test_a_place_beyond_the_last_is_refused() -> None:
    with pytest.raises(IndexError, match="places are not all below 13"):
        CHAINED[torch.tensor([13])]


def test_sets_are_joined_without_a_copy() -> None:
    one, other = (Dataset("own", part, torch.arange(len(part)) % 2, ("a", "b")) for part in PARTS[:2])
    both = one.joined(other)
    assert isinstance(both.images, Chained) and len(both) == 12 and both.index.tolist() == list(range(12))
    same = Dataset("own", torch.cat(PARTS[:2]), both.labels, both.classes)
    assert both.fingerprint() == same.fingerprint() and both.statistics() == same.statistics()
    assert torch.equal(both.take(torch.tensor([2, 9])).images, same.images[[2, 9]])
