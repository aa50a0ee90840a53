"""Data as people pass them: taken as they are meant, or refused with one sentence."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import advkit
from advkit import DataError, Dataset, OptionError, Splits
from advkit.data.own import as_dataset, as_splits

N = 12
GRAY = torch.randint(0, 256, (N, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
Y = torch.arange(N) % 3
FLOATS = GRAY / 255
PAIRS = TensorDataset(FLOATS, Y)


class Samples(torch.utils.data.Dataset[Any]):
    """As torchvision's sets are: a sample a call, names of classes."""

    classes = ("cat", "dog", "emu")

    def __len__(self) -> int:
        return N

    def __getitem__(self, place: int) -> tuple[Any, Any]:
        return FLOATS[place].numpy(), np.int64(Y[place])


class Augmented(Samples):
    """Mirrored every other time, as torchvision's transforms do."""

    def __getitem__(self, place: int) -> tuple[Any, Any]:
        mirrored = bool(torch.rand(()) < 0.5)
        return FLOATS[place].flip(-1) if mirrored else FLOATS[place], int(Y[place])


class Relabelled(Samples):
    def __getitem__(self, place: int) -> tuple[Any, Any]:
        return FLOATS[place], int(np.random.randint(3))  # noqa: NPY002


class Derived(TensorDataset):
    """Does more than its tensors say."""

    def __getitem__(self, place: int) -> Any:
        x, y = super().__getitem__(place)
        return 1 - x, y


def inverted(samples: list[Any]) -> Any:
    images, labels = zip(*samples, strict=True)
    return 1 - torch.stack(images), torch.stack(labels)


def stacked(samples: list[Any]) -> Any:
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels)


def loaded(**how: Any) -> DataLoader[Any]:
    return DataLoader(PAIRS, **({"batch_size": 5} | how))


FEW = torch.zeros(N).index_fill(0, torch.arange(3), 1)
IN_PAIRS = [[k, k + 1] for k in range(0, N, 2)]

TAKEN: dict[str, Any] = {
    "tensors": (GRAY, Y),
    "floats": (FLOATS, Y),
    "arrays": (GRAY.numpy(), Y.numpy().astype(np.int32)),
    "arrays of another machine": (FLOATS.numpy().astype(">f8"), Y.numpy().astype(">i2")),
    "half precision": (GRAY.double() / 255, Y.to(torch.uint8)),
    "a list of labels": [GRAY, Y.tolist()],
    "a TensorDataset": PAIRS,
    "a DataLoader": DataLoader(PAIRS, batch_size=5, shuffle=True),
    "a loader of pairs": loaded(batch_size=1, batch_sampler=IN_PAIRS),
    "a loader in an order": loaded(sampler=list(reversed(range(N)))),
    "a loader without its end": loaded(drop_last=True, shuffle=True),
    "a collation that stacks": loaded(collate_fn=stacked),
    "a set of samples": Samples(),
    "a subset": Subset(PAIRS, range(N)),
    "a list of samples": [(FLOATS[k], int(Y[k])) for k in range(N)],
    "advkit's own": Dataset("own", GRAY, Y, ("0", "1", "2")),
}


@pytest.mark.parametrize("what", TAKEN)
def test_what_is_taken(what: str) -> None:
    data = as_dataset(TAKEN[what])
    assert torch.equal(data.images, GRAY) and torch.equal(data.labels, Y)
    assert data.classes == (Samples.classes if what == "a set of samples" else ("0", "1", "2"))
    assert data.index.tolist() == list(range(N))


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(())


class Leaves(Samples):
    """Ends the program, after some samples."""

    def __init__(self, after: int = 0) -> None:
        super().__init__()
        self.left = after

    def __getitem__(self, place: int) -> Any:
        self.left -= 1
        return super().__getitem__(place) if self.left >= 0 else sys.exit(3)


class Leaving(RandomSampler):
    def __iter__(self) -> Any:
        sys.exit(4)


def nested(*parts: Tensor, layout: Any = torch.strided) -> Tensor:
    with warnings.catch_warnings(action="ignore"):  # that it is a prototype
        return torch.nested.nested_tensor([*parts], layout=layout)


PICTURE = Image.fromarray(GRAY[0, 0].numpy())

REFUSED: dict[str, tuple[Any, str]] = {
    "nothing": (None, "Data of type NoneType are none that advkit takes; give an advkit.Dataset, a pair"),
    "images alone": (FLOATS, "Data of type Tensor are none that advkit takes"),
    "an iterable set": (Endless(), "Data of type Endless are none that advkit takes"),
    "splits": (Splits(TAKEN["advkit's own"], TAKEN["advkit's own"], "none"), "give one of them, such as splits.test"),
    "channels last": ((GRAY.permute(0, 2, 3, 1), Y), "channels last; give images.permute(0, 3, 1, 2)"),
    "a list of images": (([*GRAY], Y), "The images are a list of 12 arrays; give one of all, such as np.stack(images)"),
    "two of two sizes": (([GRAY[0], GRAY[1, :, :4]], [0, 1]), "The images differ in shape; resize all"),
    "a masked array": ((np.ma.masked_array(GRAY.numpy(), GRAY.numpy() > 9), Y), "The images are a masked array"),
    "rounded past 1": ((FLOATS * 0 + 1.0000002, Y), "The images run from 1.00000024 to 1.00000024; give uint8"),
    "no channels": ((GRAY[:, 0], Y), "The images are uint8 (12, 8, 8); give a tensor (N, C, H, W)"),
    "gray levels as floats": ((GRAY.float(), Y), "give uint8, or floats in [0, 1], and normalise in the model"),
    "normalised": ((FLOATS - 0.5, Y), "give uint8, or floats in [0, 1], and normalise in the model"),
    "NaN": ((FLOATS / 0, Y), "The images run from"),
    "images of integers": ((GRAY.long(), Y), "The images are int64 (12, 1, 8, 8); give uint8, or floats in [0, 1]"),
    "one-hot": ((GRAY, nn.functional.one_hot(Y, 3)), "The labels are int64 (12, 3); give whole numbers"),
    "labels of floats": ((GRAY, Y.float()), "The labels are float32 (12,); give whole numbers"),
    "names of classes": ((GRAY, ["cat"] * N), "The labels are texts, such as 'cat'; give whole numbers (N,), the posi"),
    "floats that are black": (
        (FLOATS / 300, Y),
        "of which the 256 gray levels of advkit's images keep next",
    ),
    "a faint pattern": ((0.5 + FLOATS / 300, Y), "keep next to nothing; scale them to fill [0, 1]"),
    "pictures of PIL": (
        [(PICTURE, 0), (PICTURE, 1)],
        "The images are pictures of PIL; give tensors, as with",
    ),
    "a list of pictures": (([PICTURE] * N, Y.tolist()), "The images are pictures of PIL; give tensors"),
    "labels of text": ((GRAY, np.array(["a"] * N)), "The labels are an array of <U1; give tensors or numpy arrays"),
    "a pair of data sets": (
        (TensorDataset(FLOATS, Y),) * 2,
        "Here one data set is taken, and these are 2 of type Tens",
    ),
    "labels in the millions": ((GRAY, Y + 10**12), "The labels run to 1000000000002, so there would be as many"),
    "images without values": ((GRAY.to("meta"), Y), "The images are a meta tensor; give a dense one"),
    "nested images with labels": ((nested(*FLOATS), Y), "The images are a nested tensor; give a dense one"),
    "jagged labels": (
        (GRAY, nested(Y[:5], Y[5:], layout=torch.jagged)),
        "The labels are a nested tensor; give a dense one",
    ),
    "a set that leaves": (Leaves(), "The samples of Leaves can not be read (SystemExit: 3); mend the data set."),
    "a loader of such": (
        DataLoader(Leaves(), 4, collate_fn=inverted),
        "The samples of Leaves can not be read (System",
    ),
    "a set that leaves at the second time": (Leaves(N), "The samples of Leaves can not be read (SystemExit: 3)"),
    "a sampler that leaves": (loaded(sampler=Leaving(PAIRS)), "The samples of Leaving can not be read (SystemExit: 4)"),
    "sparse images": (((GRAY / 255).to_sparse(), Y), "The images are a sparse tensor; give a dense one"),
    "labels below 0": ((GRAY, Y - 1), "labels run from -1 to 1"),
    "a label too few": ((GRAY, Y[1:]), "There are 12 images and 11 labels"),
    "no image": ((GRAY[:0], Y[:0]), "There are no images; give one at least"),
    "images of two sizes": ([(FLOATS[0], 0), (FLOATS[1, :, 1:], 1), (FLOATS[2], 1)], "The images differ in shape"),
    "random augmentation": (Augmented(), "The samples of Augmented are others when they are drawn again, as by random"),
    "a loader of it": (DataLoader(Augmented(), 4), "The samples of Augmented are others when they are drawn again"),
    "a subset of it": (Subset(Augmented(), range(N)), "The samples of Subset are others when they are drawn again"),
    "random labels": (Relabelled(), "The samples of Relabelled are others when they are drawn again"),
    "a weighted loader": (
        loaded(sampler=WeightedRandomSampler(FEW, N)),
        "does not draw each sample of its data set once (WeightedRandomSampler)",
    ),
    "a loader of some": (loaded(sampler=SubsetRandomSampler(range(5))), "once (SubsetRandomSampler), and advkit takes"),
    "a loader with replacement": (loaded(sampler=RandomSampler(PAIRS, True)), "once (RandomSampler), and advkit takes"),
    "batches of some": (loaded(batch_size=1, batch_sampler=IN_PAIRS[1:]), "data set once (list), and advkit takes"),
    "a collation": (loaded(collate_fn=inverted), "makes something else of its samples (collate_fn), and advkit takes"),
    "an endless loader": (DataLoader(Endless()), "Data of type Endless are none that advkit takes"),
    "black images": ((GRAY.clamp(max=1), Y), "none has a value above 1 of 255, so all would be black; give floats in"),
    "samples of three": (TensorDataset(FLOATS, Y, Y), "The samples of TensorDataset are no pairs (image, label)"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what: str) -> None:
    data, sentence = REFUSED[what]
    with pytest.raises(DataError) as refused:
        as_dataset(data)
    assert sentence in str(refused.value) and "\n" not in str(refused.value)


def test_floats_between_the_gray_levels_are_rounded_with_a_note() -> None:
    between = FLOATS * 0.9 + 0.01
    data = as_dataset((between, Y))
    assert torch.equal(data.images, (between * 255).round().to(torch.uint8))
    (note,) = data.notes
    assert note.startswith("the images are floats between the 256 gray levels, and are rounded to them (by up to 0.")
    assert as_splits((between, Y)).cautions[0] == f"own: {note}" and data.sample(3).notes == (note,)
    assert not as_dataset((FLOATS.half(), Y)).notes and not as_dataset((torch.full_like(FLOATS, 0.2), Y)).notes
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    judged = advkit.evaluate(model, (between, Y), "clean", eps=0.1, audit=False)
    assert judged.notes == [note]


def test_one_set_or_two() -> None:
    one = as_splits(PAIRS)
    assert one.train is one.test and one.transform == "none"
    two = as_splits((PAIRS, (GRAY[:2], Y[:2])))
    assert len(two.train) == N and len(two.test) == 2 and two.test.classes == two.train.classes
    assert as_splits(two) is two
    with pytest.raises(DataError, match="differ in shape or classes"):
        as_splits(((GRAY[:2], Y[:2]), PAIRS))


def test_training_and_evaluation_take_them() -> None:
    settings = {"attack.steps": 1, "validation.steps": 1, "run.threads": 1, "validation.fraction": 0.25}
    plain = {"epochs": 1, "batch_size": 4, "eps": 0.1, "settings": settings}

    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

    same = [advkit.train(net(), data, **plain) for data in (Splits(*[TAKEN["advkit's own"]] * 2, "none"), PAIRS)]
    assert same[0].history[0]["loss"] == same[1].history[0]["loss"]
    judged = [advkit.evaluate(same[0].model, TAKEN[what], ("clean",), eps=0.1)["robust"] for what in TAKEN]
    assert judged == judged[:1] * len(TAKEN)
    with pytest.raises(OptionError, match=r"one set was passed; give advkit\.Splits"):
        advkit.train(net(), PAIRS, epochs=1, settings=settings | {"validation.split": "test"})


def wide(classes: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))


def test_labels_need_not_name_the_last_classes() -> None:
    """Labels 0 to 2 of a net of five classes: nobody said that there are three."""
    settings = {"run.epochs": 1, "attack.steps": 1, "validation.steps": 1}
    assert advkit.evaluate(wide(5), (GRAY, Y), "clean,pgd-1", eps=0.1, audit=False).n == N
    assert advkit.audit(wide(5), (GRAY, Y), eps=0.1).n == N
    assert len(advkit.train(wide(5), (GRAY, Y), settings=settings).history) == 1
    assert len(advkit.train(wide(5), ((GRAY, Y), (GRAY, Y % 2)), settings=settings).history) == 1
    with pytest.raises(OptionError, match="returns 2 logits for each image, but the data has 3 classes"):
        advkit.evaluate(wide(2), (GRAY, Y), "clean", eps=0.1)


@pytest.mark.parametrize("data", [Samples(), Dataset("own", GRAY, Y, ("a", "b", "c"))])
def test_classes_that_are_named_are_all_there_are(data: Any) -> None:
    with pytest.raises(OptionError, match="returns 5 logits for each image, but the data has 3 classes"):
        advkit.evaluate(wide(5), data, "clean", eps=0.1)


def test_a_net_that_can_not_be_asked_says_so_where_it_is_used() -> None:
    with pytest.raises(OptionError, match=r"^The model can not be called on images \(12, 1, 8, 8\): .*mat1 and mat2"):
        advkit.evaluate(nn.Sequential(nn.Flatten(), nn.Linear(3, 5)), (GRAY, Y), "clean", eps=0.1)


def test_what_is_drawn_to_compare_leaves_the_global_generators() -> None:
    torch.manual_seed(0)
    as_dataset(loaded(shuffle=True))
    assert torch.initial_seed() == 0 and torch.equal(torch.get_rng_state(), torch.manual_seed(0).get_state())


def test_a_tensor_set_that_does_more_is_asked_for_its_samples() -> None:
    assert torch.equal(as_dataset(Derived(FLOATS, Y)).images, 255 - GRAY)
