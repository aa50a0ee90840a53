"""Objects are told apart by all that they compute with, and equal ones are equal in every process."""

from __future__ import annotations

import functools
import importlib
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from advkit.fingerprint import Undescribed, code, fingerprint

LIMIT = 3


def outer(k: int) -> Callable[[int], int]:
    return lambda x: x + k


@dataclass
class Box:
    held: object = 1
    by: Callable[[int], int] | None = None
    more: dict[str, object] = field(default_factory=dict)

    def limit(self) -> int:
        return LIMIT


class Slotted:
    __slots__ = ("held",)

    def __init__(self, held: object) -> None:
        self.held = held


class Named(str):
    __slots__ = ()


def linear(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 2))


class Table(dict[str, int]):
    def __init__(self, extra: int) -> None:
        super().__init__(a=1)
        self.extra = extra


def looped(value: int) -> list[object]:
    rows: list[object] = [value]
    rows.append(rows)
    return rows


PAIRS: dict[str, Callable[[int], object]] = {
    "number": lambda k: k,
    "number of numpy": lambda k: np.float32(k),
    "subclass of text": lambda k: Named(k),
    "list": lambda k: [1, [k]],
    "set": lambda k: {1, k, "a"},
    "dictionary": lambda k: {"a": {"b": k}},
    "subclass of dictionary": lambda k: Table(k),
    "array": lambda k: np.arange(4) + k,
    "tensor": lambda k: torch.arange(4) + k,
    "net": linear,
    "closure": outer,
    "default": lambda k: lambda x=k: x,  # type: ignore[misc]
    "partial": lambda k: functools.partial(outer, k),
    "method": lambda k: Slotted(k).__init__,  # type: ignore[misc]
    "slots": lambda k: Slotted(k),
    "path": lambda k: Path(f"weights-{k}"),
    "generator": lambda k: random.Random(k),
    "itself": looped,
    "class": lambda k: type("Made", (Box,), {"steps": k}),
}


@pytest.mark.parametrize("case", PAIRS)
def test_what_is_held_tells_apart_and_equals_are_equal(case: str) -> None:
    one, again, other = (fingerprint(Box(PAIRS[case](k))) for k in (5, 5, 6))
    assert one == again != other


def test_classes_their_attributes_and_globals_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(Box())
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[__name__], "LIMIT", 4)
        assert fingerprint(Box()) != before
    with monkeypatch.context() as patch:
        patch.setattr(Box, "limit", lambda self: 3)
        assert fingerprint(Box()) != before
    assert fingerprint(Box()) == before


net: object = None


class Owner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.net(x)
        return y


class Looks(Owner):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = globals()["net"](x)
        return y


@pytest.mark.parametrize("kind", [Owner, Looks])
def test_an_attribute_is_no_global_of_its_name(kind: type[Owner], monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that calls its net `net` has not edited the class that keeps one of that name."""
    before = code(kind)
    monkeypatch.setattr(sys.modules[__name__], "net", 3)
    assert (code(kind) == before) is (kind is Owner)


@pytest.mark.parametrize("hidden", [threading.Lock(), torch.Generator(), iter([1]), np.random.default_rng(0)])
def test_what_hides_its_state_is_not_described(hidden: object) -> None:
    with pytest.raises(Undescribed):
        fingerprint(Box(hidden))
    assert fingerprint(Box(hidden), strict=False) == fingerprint(Box(hidden), strict=False)


def test_hooks_of_a_net_count_and_their_numbers_do_not() -> None:
    net, before = linear(0), fingerprint(Box(linear(0)))
    hook = net.register_forward_hook(print)
    hooked = fingerprint(Box(net))
    hook.remove()
    net.register_forward_hook(print)
    assert fingerprint(Box(net)) == hooked != before


SOURCES = {
    "mine/__init__.py": "",
    "mine/attack.py": "from .steps import go\nimport beside\nclass Mine:\n    def run(self, x):\n"
    "        from .late import last\n        return last(go(x)) + beside.EXTRA\n",
    "mine/steps.py": "STEPS = 1\ndef go(x):\n    return x * STEPS\n",
    "mine/late.py": "from . import later\ndef last(x):\n    return later.end(x)\n",
    "mine/later.py": "def end(x):\n    return x\n",
    "beside.py": "EXTRA = 1\n",
}

EDITS = {
    "mine/attack.py": ("go(x))", "go(x) - 1)"),
    "mine/steps.py": ("STEPS = 1", "STEPS = 2"),
    "mine/late.py": ("(x)\n", "(x + 1)\n"),
    "mine/later.py": ("return x", "return -x"),
    "beside.py": ("1", "2"),
}


@pytest.mark.parametrize("edited", EDITS)
def test_code_of_any_file_that_is_reached_counts(edited: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "from mine.attack import Mine; from advkit.fingerprint import code; print(code(Mine)['code'])"

    def ask() -> str:
        line = [sys.executable, "-B", "-c", program]
        ran = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, check=True)
        return ran.stdout.strip()

    monkeypatch.setenv("PYTHONPATH", ":".join([str(tmp_path), *(place for place in sys.path if place)]))
    for name, text in SOURCES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    before = ask()
    assert ask() == before and len(before) == 12
    (tmp_path / edited).write_text(SOURCES[edited].replace(*EDITS[edited]))
    assert ask() != before


def test_what_runs_is_what_was_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "kept_here.py").write_text("def go(x):\n    return x\nclass Mine:\n    run = go\n")
    mine: Any = importlib.import_module("kept_here").Mine
    before = code(mine)
    (tmp_path / "kept_here.py").write_text("def go(x):\n    return -x\nclass Mine:\n    run = go\n")
    assert code(mine) == before
    monkeypatch.delitem(sys.modules, "kept_here")


def test_advkits_own_count_by_its_version() -> None:
    from advkit.evaluation.attacks.gradient import Pgd

    assert code(Pgd) == {}


SPECIAL = ("__getitem__", "__next__", "__float__", "__get__", "__enter__", "__matmul__", "__missing__")


@pytest.mark.parametrize("name", SPECIAL)
def test_special_methods_count(name: str) -> None:
    def of(value: float) -> type:
        return type("Schedule", (), {name: lambda self, *given: value, "__module__": __name__})

    assert fingerprint(of(1.0)) == fingerprint(of(1.0)) != fingerprint(of(2.0))


class Private:
    __slots__ = ("__steps",)

    def __init__(self, steps: int) -> None:
        self.__steps = steps


def test_private_slots_count() -> None:
    assert fingerprint(Private(1)) == fingerprint(Private(1)) != fingerprint(Private(2))
