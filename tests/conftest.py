"""Small deterministic models and batches. Nothing here reads or moves a global random generator for good."""

from __future__ import annotations

import contextlib
import errno
import gc
import operator
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

# Where a container forbids byte code, each process that a test starts would compile advkit anew: a third of a second.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A shell ignores Ctrl-C for what it starts in the background, and advkit obeys: the tests interrupt it all the same.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The tests write and remove thousands of files, which takes a disk a millisecond each and memory none.
if "PYTEST_DEBUG_TEMPROOT" not in os.environ:
    with contextlib.suppress(OSError):
        if shutil.disk_usage("/dev/shm").free > 2 << 30:
            os.environ["PYTEST_DEBUG_TEMPROOT"] = "/dev/shm"

# What is there before the first test is not garbage: a quarter of the collection would go into looking for some in it,
# and half a second into each later look.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


CHANNELS, SIDE, CLASSES = 2, 4, 3


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """One process of pytest-xdist, one core; those that it starts alike."""
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _the_same_numbers() -> None:
    """A test draws the same, whichever ran before it in its process.

    On a CPU: torch.manual_seed writes a stack for each kind of device that has not been used yet, a millisecond a test.
    """
    if torch.get_num_threads() != 1:  # of a test that sets them; two processes with eleven each only wait
        torch.set_num_threads(1)
    torch.default_generator.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def _disks_are_not_waited_for(request: pytest.FixtureRequest) -> Iterator[None]:
    """Two milliseconds a call, thousands of times, and nobody here cuts the power; tests/storage has what calls it."""
    with pytest.MonkeyPatch.context() as patch:
        if "storage" not in request.path.parts:
            patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def denied(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Take away the right to look at a file, or at a folder and what is in it, from root too; of the last one named."""

    closed: list[Path] = []

    def asked(real: Callable[..., Any]) -> Callable[..., Any]:
        def ask(path: Any = ".", *args: Any, **kwargs: Any) -> Any:
            if not isinstance(path, int) and {*closed} & {Path(path), *Path(path).parents}:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return real(path, *args, **kwargs)

        return ask

    for name in ("lstat", "open", "listdir", "scandir"):
        monkeypatch.setattr(os, name, asked(getattr(os, name)))
    return lambda path: operator.setitem(closed, slice(None), [path])


def _tiny_net(batch_norm: bool = False, *, dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(
            nn.Conv2d(CHANNELS, 4, 3, padding=1),
            nn.BatchNorm2d(4) if batch_norm else nn.Identity(),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(4 * SIDE * SIDE, CLASSES),
        ).to(dtype)
    with torch.no_grad():
        for layer in (net[0], net[5]):
            for number, parameter in enumerate(layer.parameters()):
                waves = torch.arange(1, parameter.numel() + 1, dtype=torch.float64).mul_(1.7 + number).sin_()
                parameter.copy_(waves.view_as(parameter) / (parameter[0].numel() / 3) ** 0.5)
    return net


def _tiny_batch(rows: int = 4, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    # Drawn as float64 and rounded, so that both dtypes get the same images.
    x = torch.rand(rows, CHANNELS, SIDE, SIDE, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.arange(rows) % CLASSES, torch.arange(rows)


@pytest.fixture(scope="session")
def tiny_net() -> Callable[..., nn.Sequential]:
    """`tiny_net(batch_norm=False, *, dropout=0.0, dtype=torch.float32)`: (B, 2, 4, 4) to (B, 3), always the same.

    Conv2d, BatchNorm2d or Identity, ReLU, Dropout, Flatten, Linear.
    """
    return _tiny_net


@pytest.fixture(scope="session")
def tiny_batch() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """`x, y, index = tiny_batch(rows=4, *, seed=0, dtype=torch.float32)`: the same images for a seed always."""
    return _tiny_batch


@pytest.fixture
def quick_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    """An audit in a third of its time, for tests of what becomes of one and not of what it finds."""
    from advkit.evaluation.attacks import libraries
    from advkit.evaluation.audit import figures

    for module, name, few in ((figures, "QUERIES", 50), (figures, "POINTS", 10), (libraries, "TARGETS", 1)):
        monkeypatch.setattr(module, name, few)
