"""Objects are told apart by all that they compute with, and equal ones are equal in every process."""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import functools
import importlib
import operator
import random
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from torch import nn

from advkit.code_digest import FORM, code
from advkit.fingerprint import Undescribed, fingerprint
from advkit.own_file import OwnFile

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


KEPT: dict[int, Box] = {}

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
    "a long chain": lambda k: functools.reduce(lambda inner, _: [inner], range(3000), [k]),
    "objects in a set": lambda k: {Slotted(1), Slotted(2), Slotted(k)},
    "functions of one name in a set": lambda k: {outer(1), outer(2), outer(k)},
    "getter": lambda k: operator.itemgetter(k),
    "method caller": lambda k: operator.methodcaller("go", at=k),
    "date": lambda k: datetime.date(2020, 1, k),
    "decimal": lambda k: decimal.Decimal(k),
    "long pattern": lambda k: re.compile("a" * 300 + str(k)),
    "slice": lambda k: slice(Slotted(k)),
    "bytes that change": lambda k: bytearray([k]),
    "numbers of a type": lambda k: array.array("d", [k]),
    "what a dictionary makes": lambda k: collections.defaultdict(outer(k)),
    "length of a queue": lambda k: collections.deque([1], maxlen=k),
    "array of objects": lambda k: np.array([None, Slotted(k)], dtype=object),
    "function of numpy": lambda k: (np.tanh, np.exp)[k - 5],
    "type of numpy": lambda k: np.dtype(f"S{k}"),
    "bfloat16": lambda k: torch.full((2,), k, dtype=torch.bfloat16),
    "type with notes": lambda k: Annotated[float, Slotted(k)],
    "type with arguments": lambda k: dict[str, Annotated[float, Slotted(k)]],
    "weak reference": lambda k: weakref.ref(KEPT.setdefault(k, Box(k))),
    "class": lambda k: type("Made", (Box,), {"steps": k}),
}


@pytest.mark.parametrize("case", PAIRS)
def test_what_is_held_tells_apart_and_equals_are_equal(case: str) -> None:
    """Objects that are alive all the while have other addresses."""
    boxes = [Box(PAIRS[case](k)) for k in (5, 5, 6)]
    one, again, other = map(fingerprint, boxes)
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


HIDDEN: dict[str, object] = {
    "lock": threading.Lock(),
    "generator of torch": torch.Generator(),
    "iterator": iter([1]),
    "generator of numpy": np.random.default_rng(0),
    "stream": sys.__stderr__,
    "sparse tensor": torch.eye(2).to_sparse(),
    "tensor without values": torch.empty(2, device="meta"),
    "proxy": weakref.proxy(Box),
    "proxy of what is gone": weakref.proxy(Box()),
    "weak set": weakref.WeakSet([Box]),
    "weak keys": weakref.WeakKeyDictionary({Box: 1}),
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_what_hides_its_state_is_not_described(kind: str) -> None:
    box = Box(HIDDEN[kind])
    with pytest.raises(Undescribed):
        fingerprint(box)
    assert fingerprint(box, strict=False) == fingerprint(box, strict=False)


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
NETS, BUILT, KINDS = {}, [], set()

def plain():
    return 3

DEFAULTS = {"plain": plain}

def register(made):
    NETS[made.__name__] = made
    BUILT.append(made)
    KINDS.add(made)
    return made

class Builder:
    def build(self):
        return NETS["plain"](), BUILT, KINDS, DEFAULTS["plain"]
""",
    "nets/more.py": """
from .registry import register

@register
def other():
    return None
""",
}


def test_what_other_modules_register_is_no_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry grows with every import; what its own module has in it counts."""
    module = imported(tmp_path / "first", REGISTRY, monkeypatch, "nets.registry")
    before, walked = code(module.Builder), fingerprint(module.Builder, strict=False)
    imported(tmp_path / "first", {}, monkeypatch, "nets.more")
    assert module.NETS and module.KINDS
    assert code(module.Builder) == before and fingerprint(module.Builder, strict=False) != walked, "the control"
    edited = {file: text.replace("return 3", "return 4") for file, text in REGISTRY.items()}
    assert code(imported(tmp_path / "edited", edited, monkeypatch, "nets.registry").Builder) != before


IMPORTS = """
import enum, functools, operator, typing
from collections.abc import Mapping
import torch
class Of:
    def __init__(self, k):
        self.k = k
"""
VALUES = {
    "a default list": ("def h(x, mean=[0.3]):\n    return x - mean[0]", "h(x)", "0.3"),
    "a default tensor": ("def h(x, k=torch.tensor(0.3)):\n    return x * k", "h(x)", "0.3"),
    "a condition": ("FLAG = 0.3\nif FLAG < 0.4:\n    K = 2\nelse:\n    K = 3", "x * K", "0.3"),
    "a loop that fills a dict": ("K = {}\nfor name, w in [('a', 0.3)]:\n    K[name] = w", "x * K['a']", "0.3"),
    "an attribute set below its class": ("class C:\n    K = 2\nC.K = 0.3", "x * C.K", "0.3"),
    "an attribute of a function": ("def h(x):\n    return x * h.k\nh.k = 0.3", "h(x)", "0.3"),
    "what a decorator is given": (
        "def by(k):\n    def of(f):\n        return lambda x: f(x) * k[0]\n    return of\n"
        "@by([0.3])\ndef h(x):\n    return x",
        "h(x)",
        "0.3",
    ),
    "behind singledispatch": (
        "@functools.singledispatch\ndef h(x):\n    return x\n@h.register\ndef _(x: float):\n    return x * 0.3",
        "h(x)",
        "0.3",
    ),
    "in singledispatch": (
        "@functools.singledispatch\ndef h(x):\n    return x * 0.3\n@h.register\ndef _(x: Mapping):\n    return x",
        "h(x)",
        "0.3",
    ),
    "an enum of functions": (
        "class Mode(enum.Enum):\n    A = functools.partial(operator.mul, 0.3)\n    B = functools.partial(lambda x: x)",
        "Mode.A.value(x)",
        "0.3",
    ),
    "an enum of objects": ("class Mode(enum.Enum):\n    A = Of(0.3)", "x * Mode.A.value.k", "0.3"),
    "a method of an enum of texts": (
        "class Mode(str, enum.Enum):\n    A = 'a'\n    k = lambda s: 0.3",
        "x * Mode.A.k()",
        "0.3",
    ),
    "flags": (
        "class Flag(enum.Flag):\n    A = 1\n    B = 2\n    C = 4",
        "x * (~Flag.A | Flag.B).value * 0.3",
        "0.3",
    ),
    "a property that is cached": (
        "class C:\n    @functools.cached_property\n    def k(self):\n        return 0.3\nOF = C()",
        "x * OF.k",
        "0.3",
    ),
    "a function with a cache": ("@functools.cache\ndef h():\n    return 0.3", "x * h()", "0.3"),
    "a class of a class": (
        "class M(type):\n    def k(cls):\n        return 0.3\nclass C(metaclass=M):\n    pass",
        "x * C.k()",
        "0.3",
    ),
    "a protocol": (
        "class P(typing.Protocol):\n    def k(self):\n        return 0.3\nclass C(P):\n    def __init__(self): ...",
        "x * C().k()",
        "0.3",
    ),
    "a compiled function": (
        "def h(x):\n    return x * 0.3\ndef g(x):\n    g.runs = id(x)\n    return h(x)\n"
        "g._torchdynamo_orig_callable = h",
        "g(x)",
        "0.3",
    ),
    "a list of a module": ("WIDTHS = [0.3]", "x * WIDTHS[0]", "0.3"),
}


STEADY = """
class Mode(enum.Enum):
    A = functools.partial(operator.mul, 2)

@functools.singledispatch
def h(x):
    return x

KINDS = {Of(1), Of(2), "a", 3.0, Mode.A}
NESTED = [({"a": [1, (2,)]}, operator.itemgetter(1), Mapping[str, int])]

class Net(Of):
    \"\"\"A net.\"\"\"

    def forward(self, x, by=(1, 2)):
        import json
        return [h(each) for each in KINDS], NESTED, lambda: self.k
"""


@pytest.mark.parametrize("file", ["net.py", None], ids=["in a file", "in a notebook"])
@pytest.mark.parametrize("where", VALUES)
def test_values_that_code_is_made_with_count(where: str, file: str | None) -> None:
    head, use, was = VALUES[where]

    def made(now: str) -> Any:
        names: dict[str, Any] = {"__name__": "some_net"} | ({"__file__": file} if file else {})
        exec(f"{IMPORTS}{head}\nclass Net:\n    def forward(self, x):\n        return {use}\n".replace(was, now), names)
        return names["Net"]

    one, again, other = made(was), made(was), made("0.9")
    assert code(one) == code(again) != code(other)
    again().forward(torch.ones(1))
    assert code(one) == code(again), "what it keeps of a call"


BESIDE = {
    "net.py": "class Net:\n    def __init__(self):\n        from helper import K\n"
    "    def forward(self, x):\n        import pack\n        return pack.go(x)\n",
    "helper.py": "K = 1\ndef never():\n    from without.init.of import own\n    return own.K\n",
    "without/init/of/own.py": "K = 1\n",
    "pack/__init__.py": "def go(x):\n    from .late import by\n    return by(x)\n",
    "pack/late.py": "def by(x):\n    import further\n    return x * further.K\n",
    "further.py": "K = 1\n",
}


INSIDE = [("helper.py", "1", "2"), ("pack/__init__.py", "by(x)", "-by(x)"), ("pack/late.py", "x *", "x +")]


@pytest.mark.parametrize(
    ("edited", "was", "now"), [*INSIDE, ("further.py", "1", "2"), ("without/init/of/own.py", "1", "2")]
)
def test_what_a_file_imports_inside_counts_wherever_it_is_called_from(
    edited: str, was: str, now: str, tmp_path: Path
) -> None:
    """Its folder is on sys.path while it is imported, and when the digest is taken no more."""

    def digest(folder: Path, sources: dict[str, str]) -> dict[str, str]:
        for file, text in sources.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text)
        net = OwnFile.typed("model.name", f"{folder}/net.py:Net")
        assert net is not None
        return code(net.load())

    before = digest(tmp_path / "first", BESIDE)
    assert digest(tmp_path / "moved", BESIDE) == before
    assert digest(tmp_path / "edited", BESIDE | {edited: BESIDE[edited].replace(was, now)}) != before


def test_digests_of_another_form_have_another_number() -> None:
    """Of equal code there are equal digests. Where this digest is another one, so must be the number before it."""
    names: dict[str, Any] = {"__name__": "some_net"}
    exec(f"{IMPORTS.replace('import torch', '')}{STEADY}", names)
    if sys.version_info[:2] == (3, 11):  # of which the bytecode is
        assert (FORM, code(names["Net"])["code"]) == (2, "78e757fa56ca")


@pytest.mark.parametrize(
    ("text", "counts"), [('"{}"\n    return x', False), ('return x, "{}"', True), ('x = x\n    return "{}"', True)]
)
def test_a_docstring_is_no_code(text: str, counts: bool) -> None:
    names: list[dict[str, Any]] = [{"__name__": "some"}, {"__name__": "some"}]
    for space, word in zip(names, ("one", "two"), strict=True):
        exec(f"def h(x):\n    {text.format(word)}\n", space)
    assert (code(names[0]["h"]) != code(names[1]["h"])) is counts


def test_another_process_finds_the_same_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = SOURCES | {
        "mine/steps.py": SOURCES["mine/steps.py"].replace("* STEPS", "* STEPS if x in {'a', 'b'} else x")
    }
    before = code(imported(tmp_path, sources, monkeypatch, "mine.attack").Mine)
    program = "from mine.attack import Mine; from advkit.code_digest import code; print(code(Mine)['code'])"
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
