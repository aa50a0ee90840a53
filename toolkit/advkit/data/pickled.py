"""Images in the pickle of Carmon et al. (NeurIPS 2019), `ti_500K_pseudo_labeled.pickle`; nothing in it is run.

It is a dictionary of numpy arrays: `data` (N, H, W, C) uint8, and `extrapolated_targets` (N,), -1 for an image without
a label. What the pickle names stays a name and what it would call is written down, then judged: arrays are made of the
bytes that are left. It is read whole, so it takes as much memory as it has bytes.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..reading import opened

IMAGES, LABELS = "data", "extrapolated_targets"
PLAIN = (str, bytes, int, float, type(None))
"""What other entries may be, such as the file name of the net that gave the labels; they are passed over."""
NAMES = {
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *(("numpy", name) for name in ("ndarray", "dtype")),
    ("_codecs", "encode"),
}
"""What numpy's arrays name, the last where Python 3 wrote for Python 2."""


class Unfit(Exception):
    """What is wrong with a pickle, in words."""


class Call:
    """A name of a pickle, and once it is called what it was called with; `state` is what was put into it then."""

    def __init__(self, name: str, given: Sequence[Any] | None = None) -> None:
        self.name, self.given, self.state = name, given, ()

    def __call__(self, *given: Any) -> Call:
        return Call(self.name, given)

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _of_texts(code: bytes, keys: slice) -> Callable[[Any], None]:
    """What puts items into a dictionary, whose keys are `keys` of the stack, once these are known to be texts.

    Hashing a tuple of a few bytes whose two halves are one takes for ever; numbers can be chosen to collide.
    """

    def load(reader: Any) -> None:
        if not all(type(key) in (str, bytes) for key in reader.stack[keys]):
            raise Unfit("it has a key that is no text")
        pickle._Unpickler.dispatch[code[0]](reader)

    return load


def _no_set(reader: Any) -> None:
    raise Unfit("it has a set, which no array needs")


class Reader(pickle._Unpickler):
    """In Python, not in C, which takes memory for whatever numbers a pickle has."""

    dispatch = {code: load for code, load in pickle._Unpickler.dispatch.items() if code != pickle.BYTEARRAY8[0]} | {
        pickle.SETITEM[0]: _of_texts(pickle.SETITEM, slice(-2, -1)),
        pickle.SETITEMS[0]: _of_texts(pickle.SETITEMS, slice(0, None, 2)),
        pickle.DICT[0]: _of_texts(pickle.DICT, slice(0, None, 2)),
        **{code[0]: _no_set for code in (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET)},
    }

    def find_class(self, module: str, name: str) -> Call:
        if (module, name) not in NAMES:
            raise Unfit(f"it names {module}.{name}, which no array needs")
        return Call(name)


class Stream:
    """A file of which nothing is read beyond its end."""

    def __init__(self, stream: BufferedReader) -> None:
        self.stream, self.left = stream, os.fstat(stream.fileno()).st_size

    def read(self, count: int) -> bytes:
        self.left -= count
        if self.left < 0:
            raise Unfit("it ends too soon")
        return self.stream.read(count)

    def readline(self) -> bytes:
        line = self.stream.readline(1 << 10)
        self.left -= len(line)
        return line


def read_pickle(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, H, W, C) and labels (N,). Raises DataError for whatever else a pickle holds."""
    try:
        with opened(path) as stream:
            stored = Reader(Stream(stream), encoding="bytes").load()
        if not isinstance(stored, Mapping):
            raise Unfit(f"it is a {type(stored).__name__}")
        entries = {_text(key): value for key, value in stored.items()}
        if absent := {IMAGES, LABELS} - entries.keys():
            raise Unfit(f"it has no {min(absent)}")
        strange = [name for name, value in entries.items() if name not in (IMAGES, LABELS) and type(value) not in PLAIN]
        if strange:
            raise Unfit(f"{strange[0]} is no text or number")
        images, labels = _array(IMAGES, entries[IMAGES], 4), _array(LABELS, entries[LABELS], 1)
        if images.dtype != np.uint8 or len(images) != len(labels):
            raise Unfit(f"{IMAGES} is {images.dtype} {images.shape}, {LABELS} {labels.dtype} {labels.shape}")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; check --from.") from None
    except Exception as error:  # a pickle that anybody has made raises almost anything
        reason = getattr(error, "strerror", None) or (str(error) if isinstance(error, Unfit) else "it is damaged")
        raise DataError(
            f"{path} can not be read as images ({' '.join(reason.split())[:200]}); give a pickle of the numpy arrays "
            f"`{IMAGES}`, uint8 (N, H, W, C), and `{LABELS}`, whole numbers (N,), or an npz."
        ) from None
    return images, labels.astype(np.int64)


def _array(key: str, made: Any, dimensions: int) -> NDArray[Any]:
    """The array of whole numbers that the calls of a pickle describe."""
    if not isinstance(made, Call) or made.name != "_reconstruct" or len(made.state) != 5:
        raise Unfit(f"{key} is no array")
    _, shape, dtype, by_columns, values = made.state
    if not isinstance(dtype, Call) or dtype.name != "dtype" or not dtype.given or len(dtype.state) < 2:
        raise Unfit(f"{key} has no type")
    code, order = _text(dtype.given[0]), _text(dtype.state[1])
    if code not in ("u1", "i1", "i2", "i4", "i8") or order not in "|<":
        raise Unfit(f"{key} is of type {order}{code}")
    # Before anything is written out: tuples of tuples may be endless.
    if type(shape) is not tuple or len(shape) > 64 or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
        raise Unfit(f"{key} has no shape")
    if len(shape) != dimensions or by_columns:
        raise Unfit(f"{key} has the shape {shape}")
    if isinstance(values, Call) and values.given and values.given[1:] in (("latin1",), (b"latin1",)):
        values = _text(values.given[0]).encode("latin1")
    if not isinstance(values, bytes):
        raise Unfit(f"{key} holds no bytes")
    return np.frombuffer(values, order.replace("|", "<") + code).reshape(shape)


def _text(value: Any) -> str:
    if type(value) not in (str, bytes):
        raise Unfit(f"it has a {type(value).__name__} in the place of a text")
    return value.decode() if isinstance(value, bytes) else str(value)
