"""The pickle of RST's pseudo-labels: read as arrays, and nothing that it says is done."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from advkit import DataError, mapped_images
from advkit.data.convert import Labeller, convert
from advkit.data.pickled import Stream, Unfit, read_pickle

DATA = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
TARGETS = np.arange(30) % 4 - (np.arange(30) % 10 == 0) * 9


NESTED = b"U\x01k\x85" + 60 * b"2\x86"
"""A tuple whose halves are one, 60 times: 122 bytes to whoever keeps it, 2^60 texts to whoever looks at all of it."""
ENCODED = b"c_codecs\nencode\n" + NESTED + b"U\x06latin1\x86R"


def entries(shape: bytes, kind: bytes = b"U\x02u1", order: bytes = b"U\x01|", values: bytes = b"U\x04aaaa") -> bytes:
    """A pickle of a dictionary with an array of those parts and labels."""
    labels = b"cnumpy.core.multiarray\n_reconstruct\n)R"
    dtype = b"cnumpy\ndtype\n" + kind + b"\x85R(K\x03" + order + b"tb"
    data = labels + b"(K\x01" + shape + dtype + b"\x89" + values + b"tb"
    return b"\x80\x02}(U\x04data" + data + b"U\x14extrapolated_targets" + labels + b"u."


class Runs:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def written(path: Path, content: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["<i8", "<i4"])
def test_its_labelled_images_become_mapped_ones(protocol: int, dtype: str, tmp_path: Path) -> None:
    content = {"data": DATA, "extrapolated_targets": TARGETS.astype(dtype), "prediction_model": "resnet.pt"}
    told: list[str] = []
    convert(str(written(tmp_path / "ti.pickle", content, protocol)), tmp_path / "m", tell=told.append)
    images = mapped_images(tmp_path / "m")
    kept = TARGETS >= 0
    assert torch.equal(images.images, torch.from_numpy(DATA[kept]).permute(0, 3, 1, 2))
    assert images.labels.tolist() == TARGETS[kept].tolist()
    assert told == [f"{(~kept).sum()} of 30 images have no label (-1) and are left out"]


def test_a_net_gives_all_of_them_labels(tmp_path: Path) -> None:
    told: list[str] = []
    net = Labeller(lambda images: images[:, 0, 0, 0] % np.int64(4), (3, 8, 8), tuple("abcd"), True, {})
    given = written(tmp_path / "ti.pickle", {"data": DATA, "extrapolated_targets": TARGETS})
    convert(str(given), tmp_path / "m", tell=told.append, labeller=net)
    images = mapped_images(tmp_path / "m")
    assert torch.equal(images.images, torch.from_numpy(DATA).permute(0, 3, 1, 2))
    assert images.labels.tolist() == (DATA[:, 0, 0, 0] % 4).tolist()
    assert told == ["27 of 30 images have a label already, which is not looked at"]


def test_some_can_be_held_out(tmp_path: Path) -> None:
    path = written(tmp_path / "ti.pkl", {"data": DATA.transpose(0, 3, 1, 2).copy(), "extrapolated_targets": TARGETS})
    manifest = convert(str(path), tmp_path / "m", hold_out=0.25)
    assert {split: stored.shape[0] for split, stored in manifest.splits.items()} == {"train": 20, "test": 7}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"data": DATA, "extrapolated_targets": Runs(Path("mark"))}, "it names posix.mkdir, which no array needs"),
        ({"data": DATA, "extrapolated_targets": TARGETS, "more": Runs(Path("mark"))}, "it names posix.mkdir"),
        ({"data": DATA, "extrapolated_targets": TARGETS, "more": [1]}, "more is no text or number"),
        ({"data": DATA}, "it has no extrapolated_targets"),
        ([DATA, TARGETS], "it is a list"),
        ({"data": DATA.astype(np.float32), "extrapolated_targets": TARGETS}, "data is of type <f4"),
        ({"data": DATA.astype(object), "extrapolated_targets": TARGETS}, "data is of type |O8"),
        ({"data": DATA, "extrapolated_targets": TARGETS.astype(">i8")}, "extrapolated_targets is of type >i8"),
        ({"data": np.asfortranarray(DATA), "extrapolated_targets": TARGETS}, "data has the shape (30, 8, 8, 3)"),
        ({"data": DATA[:7], "extrapolated_targets": TARGETS}, "data is uint8 (7, 8, 8, 3), extrapolated_targets int64"),
        ({"data": DATA, "extrapolated_targets": TARGETS.tolist()}, "extrapolated_targets is no array"),
    ],
)
def test_anything_else_is_refused_and_not_run(
    content: object, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="give a pickle of the numpy arrays `data`, uint8") as caught:
        read_pickle(written(tmp_path / "ti.pickle", content))
    assert sentence in str(caught.value) and not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x00.", "it ends too soon"),  # so many bytes
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x00.", "it is damaged"),  # a bytearray, of no protocol before 5
        (b"\x80\x04}r\xff\xff\xff\xff.", "it has no data"),  # a place in the memo that C would make room for
        (b"cnumpy\ndtype\nq\x00}X\x01\x00\x00\x00xK\x01sb.", "it is a Call"),
        (b"cnumpy\nndarray\n)\x81.", "it is damaged"),  # made without a call
        (b"", "it ends too soon"),
        (b"\x80\x02}" + NESTED + b"K\x01s.", "it has a key that is no text"),  # each of these would take for ever
        (b"\x80\x02}(" + NESTED + b"K\x01u.", "it has a key that is no text"),
        (b"(" + NESTED + b"K\x01d.", "it has a key that is no text"),
        (b"\x80\x04\x8f(" + NESTED + b"\x90.", "it has a set, which no array needs"),
        (b"(" + NESTED + b"\x91.", "it has a set, which no array needs"),
        (entries(NESTED), "data has no shape"),
        (entries(b"(" + NESTED * 4 + b"t"), "data has no shape"),
        (entries(b"(" + b"K\x01" * 65 + b"t"), "data has no shape"),
        (entries(b"(K\x01K\x01K\x02K\x02t", kind=NESTED), "it has a tuple in the place of a text"),
        (entries(b"(K\x01K\x01K\x02K\x02t", order=NESTED), "it has a tuple in the place of a text"),
        (entries(b"(K\x01K\x01K\x02K\x02t", values=ENCODED), "it has a tuple in the place of a text"),
    ],
)  # fmt: skip
def test_what_no_pickle_module_writes(raw: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "ti.pickle").write_bytes(raw)
    with pytest.raises(DataError, match="can not be read as images") as caught:
        read_pickle(tmp_path / "ti.pickle")
    assert sentence in str(caught.value)


def test_every_cut_file_is_refused(tmp_path: Path) -> None:
    whole = pickle.dumps({"data": DATA[:2], "extrapolated_targets": TARGETS[:2]})
    for length in range(0, len(whole), 7):
        (tmp_path / "ti.pickle").write_bytes(whole[:length])
        with pytest.raises(DataError):
            read_pickle(tmp_path / "ti.pickle")


def test_nothing_is_read_beyond_the_end(tmp_path: Path) -> None:
    (tmp_path / "few").write_bytes(b"four")
    with open(tmp_path / "few", "rb") as file, pytest.raises(Unfit):
        Stream(file).read(1 << 60)
