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

from advkit.fingerprint import Undescribed, fingerprint
from advkit.written import code

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
    before = fingerprint(kind)
    monkeypatch.setattr(sys.modules[__name__], "net", 3)
    assert (fingerprint(kind) == before) is (kind is Owner)


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


def imported(folder: Path, sources: dict[str, str], patch: pytest.MonkeyPatch, name: str) -> Any:
    """A module of files in `folder`, as a new process would import it."""
    for file, text in sources.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    patch.syspath_prepend(str(folder))
    patch.setattr(sys, "dont_write_bytecode", True)
    for file in sources:
        module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        patch.setitem(sys.modules, module, None)  # so that afterwards it is what it was
        del sys.modules[module]
    importlib.invalidate_caches()
    return importlib.import_module(name)


@pytest.mark.parametrize("edited", EDITS)
def test_code_of_any_file_that_is_reached_counts(edited: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(folder: str, sources: dict[str, str]) -> str:
        return code(imported(tmp_path / folder, sources, monkeypatch, "mine.attack").Mine)["code"]

    before = ask("first", SOURCES)
    assert ask("moved", SOURCES) == before and len(before) == 12
    assert ask("edited", SOURCES | {edited: SOURCES[edited].replace(*EDITS[edited])}) != before


REGISTRY = {
    "nets/__init__.py": "",
    "nets/registry.py": """
NETS, BUILT, COUNT, KINDS, LAZY = {}, [], 0, set(), None
CFG = {"scale": 1.0}

def register(made):
    global COUNT
    NETS[made.__name__] = made
    BUILT.append(made.__name__)
    KINDS.add(type(made))
    COUNT += 1
    return made

class Registry:
    def __init__(self):
        self.held, self.count = {}, 0

    def register(self, made):
        self.held[made.__name__] = made
        self.count += 1
        return made

MORE = Registry()

def lazy():
    global LAZY, NEVER
    LAZY = NEVER = print
    return LAZY
""",
    "nets/body.py": """
import functools, logging, random, time
from pathlib import Path
import torch
from torch import nn
import nets
from . import registry
from .registry import *
from .registry import MORE as more_nets

def twice(x):
    return 2 * x

WIDTHS = [4, 3]
ACTS = {"twice": twice}
HERE, SINCE, LOG, RNG = Path(__file__).parent, time.time(), logging.getLogger("nets"), random.Random(0)
CACHE, CALLS = {}, 0

def counted(function):
    count = 0

    @functools.wraps(function)
    def inner(*given):
        nonlocal count
        count += 1
        inner.count = count
        return function(*given)

    return inner

@functools.lru_cache
def grid(width):
    return torch.arange(width)

@counted
def helper(x, cache={}):
    cache[x.shape] = x
    return x

@more_nets.register
class Body(nn.Module):
    calls = 0
    shapes = {}

    def __init__(self):
        super().__init__()
        Body.calls += 1
        self.fc = nn.Linear(*WIDTHS)

    def forward(self, x):
        global CALLS
        CALLS += 1
        CACHE[x.shape] = self.shapes[x.shape] = x
        LOG.setLevel(10)
        registry.lazy()
        _ = HERE, SINCE, RNG.random(), LAZY, self.more, nets.registry, len(more_nets.held), registry.NEVER, __file__
        return ACTS["twice"](helper(self.fc(x))) * grid(WIDTHS[1]) * CFG["scale"]

    more = property(lambda self: None)

@register
def plain():
    return Body()

class Builder:
    def build(self):
        return registry.NETS["plain"]()
""",
    "nets/more.py": """
from . import registry
from .registry import NETS, register, MORE

@MORE.register
@register
def other():
    return None

NETS["again"] = other
registry.COUNT += 1
""",
}
NET_EDITS = {"WIDTHS = [4, 3]": "WIDTHS = [4, 5]", "2 * x": "3 * x", "calls = 0\n    shapes": "calls = 1\n    shapes"}


def test_what_a_program_does_is_no_edit_of_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registries that grow with imports, counters, caches, paths and clocks."""

    def ask(module: Any) -> list[dict[str, str]]:
        return [code(module.Body), code(module.Builder)]

    body = imported(tmp_path / "first", REGISTRY, monkeypatch, "nets.body")
    before, walked = ask(body), fingerprint(body.Builder, strict=False)
    for _ in range(2):
        body.registry.NETS["plain"]()(torch.ones(2, 4))
    assert ask(body) == before
    imported(tmp_path / "first", {}, monkeypatch, "nets.more")
    assert ask(body) == before and fingerprint(body.Builder, strict=False) != walked, "the control"
    imported(tmp_path / "moved", REGISTRY, monkeypatch, "nets.more")
    assert ask(importlib.import_module("nets.body")) == before
    for number, (was, now) in enumerate({**NET_EDITS, "1.0": "2.0"}.items()):
        edited = {file: text.replace(was, now) for file, text in REGISTRY.items()}
        assert edited != REGISTRY
        module = imported(tmp_path / str(number), edited, monkeypatch, "nets.body")
        assert ask(module)[0] != before[0], now


def test_another_process_finds_the_same_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = SOURCES | {
        "mine/steps.py": SOURCES["mine/steps.py"].replace("* STEPS", "* STEPS if x in {'a', 'b'} else x")
    }
    before = code(imported(tmp_path, sources, monkeypatch, "mine.attack").Mine)
    program = "from mine.attack import Mine; from advkit.written import code; print(code(Mine)['code'])"
    monkeypatch.setenv("PYTHONPATH", ":".join([str(tmp_path), *(place for place in sys.path if place)]))
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert {"code": ran.stdout.strip()} == before


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
