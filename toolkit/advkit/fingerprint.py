"""What tells an object of somebody's class from others: its fields, and all loaded code that it can reach.

Files may have been edited since they were imported, and much of what a method computes lies in none: fields, closures,
constants of modules. So what is loaded is walked, from the object on: its class with bases and attributes, functions by
their bytecode with defaults, closures and the globals they name, values in containers. Modules of the standard library,
of advkit, and of other installed distributions count by name and version. Nothing is called and nothing is pickled.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import logging
import random
import sys
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from .bits import as_bytes
from .contents import HIDING, PLAIN, fields, parts, told
from .packages import is_installed, versions
from .registry import OWN, source

COMPUTING = (FunctionType, classmethod, staticmethod, property, functools.partialmethod)
"""Special attributes of a class that compute something; the others are made by Python and its decorators."""
KEPT = ("_abc_impl", "__annotate_func__", "_value2member_map_")
"""What Python keeps in a class: caches, and nothing that computes."""

READING = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
"""Instructions that read a global by its name."""
LOOKING = frozenset({"globals", "vars", "eval", "exec", "getattr", "__dict__", "__globals__", "modules", "attrgetter"})
"""What code looks names up by that stand in texts, or in what is no text at all."""


class Undescribed(Exception):
    """A value may hold more than can be seen of it."""


def fingerprint(value: object, strict: bool = True) -> str:
    """Twelve hex digits, equal for equal objects and equal code, in every process of one version of Python.

    Raises Undescribed for generators, open files, locks and whatever else hides its state; where it is not `strict`,
    their types stand for them.
    """
    return Walk.of(value, strict)


class Walk:
    """What is met is numbered, and its content told once, after that of what was met before: so no depth ends it."""

    def __init__(self, package: str, strict: bool) -> None:
        self.package, self.strict, self.digest = package, strict, hashlib.sha256()
        self.met: dict[object, int] = {}
        self.alive: list[object] = []
        """What was met, so that no other object takes its id."""
        self.left: deque[Any] = deque()
        """What was met, and has not told its content."""
        self.asked: set[object] = set()

    @classmethod
    def of(cls, value: object, strict: bool) -> str:
        given = value if isinstance(value, type | FunctionType) else type(value)
        return cls(given.__module__.partition(".")[0], strict).through(value)

    def through(self, value: object) -> str:
        """The digest of a value and all that it reaches."""
        self(value)
        while self.left:
            one = self.left.popleft()
            self.say("of", self.met[id(one)])
            self.content(one)
        return self.digest.hexdigest()[:12]

    def say(self, *words: object) -> None:
        self.digest.update(f"{words!r}\n".encode())

    def first(self, value: object, key: object = None) -> bool:
        """Whether a value is met for the first time, which is said."""
        key = key or id(value)
        new = key not in self.met
        self.say(type(value).__name__, self.met.setdefault(key, len(self.met)))
        self.alive.append(value)
        return new

    def __call__(self, value: Any) -> None:
        if (text := told(value)) is not None:
            self.say(type(value).__name__, text)
        elif issubclass(type(value), logging.Logger | random.Random):
            self.say(type(value).__name__, value.name if isinstance(value, logging.Logger) else value.getstate())
        elif self.first(value):
            self.left.append(value)

    def content(self, value: Any) -> None:
        if issubclass(type(value), HIDING):
            self.hidden(value)
        elif "_torchdynamo_orig_callable" in getattr(value, "__dict__", {}):  # compiled, around it is what torch keeps
            self(vars(value)["_torchdynamo_orig_callable"])
        elif isinstance(value, ModuleType):
            self.module(value, ())
        elif isinstance(value, type):
            self.type(value)
        elif isinstance(value, FunctionType):
            self.function(value)
        elif isinstance(value, CodeType):
            self.code(value, {})
        elif hasattr(value, "dtype") and (hasattr(value, "detach") or hasattr(value, "tobytes")):
            self.array(value)
        else:
            self.object(value)

    def hidden(self, value: object) -> None:
        """Its type stands for it."""
        if self.strict:
            raise Undescribed(type(value).__qualname__)

    def object(self, value: Any) -> None:
        """What stands in it, its class and its fields; hooks of a module without the numbers that torch gave them."""
        within, own = parts(value), fields(value)
        for part in self.ordered(within) if isinstance(value, set | frozenset) and within else within or ():
            self(part)
        if within is None and not own and not hasattr(value, "__dict__") and type(value) is not object:
            self.hidden(value)
            return
        self(type(value))
        for name, held in own:
            self.say(name)
            self(list(held.values()) if "_hooks" in name and isinstance(held, Mapping) else held)

    def ordered(self, values: list[Any]) -> list[Any]:
        """Those of a set by their names, and of one name by all that they are: not by addresses."""
        often = Counter(map(_name, values))

        def place(one: object) -> tuple[str, str]:
            if often[_name(one)] == 1:
                return _name(one), ""
            walk = type(self)(self.package, self.strict)
            walk.met, walk.asked = dict(self.met), set(self.asked)  # so that what holds itself has an end
            return _name(one), walk.through(one)

        return sorted(values, key=place)

    def array(self, value: Any) -> None:
        """A tensor of torch, an array or a number of numpy."""
        self.say(str(value.dtype), tuple(value.shape))
        if getattr(value.dtype, "hasobject", False):
            self(value.ravel().tolist())
            return
        try:
            plain = as_bytes(value.cpu()).numpy() if hasattr(value, "detach") else value
            self.digest.update(plain.tobytes())
        except (TypeError, RuntimeError, AttributeError):  # of other layouts, or without values
            self.hidden(value)

    def type(self, value: type) -> None:
        if self.known(value.__module__, value.__qualname__):
            return
        for above in (type(value), *value.__bases__):
            self(above)
        for name, held in sorted(vars(value).items()):
            if (name[:2] != "__" or isinstance(held, COMPUTING)) and name not in KEPT:
                self.say(name)
                self(held)

    def function(self, value: FunctionType) -> None:
        if self.known(value.__module__, value.__qualname__):
            return
        if value.__globals__ is vars(functools) and "registry" in vars(value):  # singledispatch, which keeps a cache
            names = getattr(vars(value).get("__wrapped__"), "__globals__", value.__globals__)
            self(self.value(dict(vars(value)["registry"]), names))
            return
        for held in (value.__defaults__, value.__kwdefaults__, vars(value)):
            self(held)
        for cell in value.__closure__ or ():
            with suppress(ValueError):  # an empty cell
                held = cell.cell_contents
                self(held)
        self.code(value.__code__, value.__globals__)

    def code(self, value: CodeType, names: Mapping[str, Any]) -> None:
        """Bytecode, and what it reaches by the names in it: globals, their attributes, modules imported inside."""
        self.say(value.co_code, value.co_names, value.co_varnames, value.co_freevars)
        steps = [*dis.get_instructions(value)]
        used = {step.arg for step in steps if step.opcode in dis.hasconst}  # a docstring is not
        consts = [held for place, held in enumerate(value.co_consts) if place in used]
        for held in consts:
            if isinstance(held, CodeType):
                self.code(held, names)
            else:
                self(held)
        texts = [held for held in consts if isinstance(held, str)]
        # An attribute may have the name of a global that nobody reads: self.net beside a script's net. So it may have
        # that of a module that something else imports: self.layers beside package.layers.
        asked = _asked(steps)
        looked = {*value.co_names, *texts} if LOOKING & {*value.co_names} else set()
        for name in sorted((asked.keys() | looked) & names.keys()):
            held, known = names[name], asked.get(name, set()) | looked
            inside = (one for one in (*value.co_names, *texts) if one in known or not _is_module(held, one))
            self.named(names, name, tuple(inside))
        lazy = [step.argval for step in steps if step.opname == "IMPORT_NAME"]
        lazy += texts if {"import_module", "__import__"} & set(value.co_names) else []
        for name in dict.fromkeys(lazy):
            self.imported(name, value.co_names, names)

    def named(self, names: Mapping[str, Any], name: str, inside: tuple[str, ...] = ()) -> None:
        """A global, which is code or a value; of a module the attributes `inside`."""
        held = names[name]
        if isinstance(held, ModuleType):
            self.module(held, inside)
        else:
            self.say(name)
            self(self.value(held, names))

    def value(self, held: Any, names: Mapping[str, Any]) -> Any:
        """What counts of a global of the module that has these names."""
        return held

    def module(self, value: ModuleType, names: tuple[str, ...]) -> None:
        """The attributes `names` of a module that is not known by its version, each once."""
        if value in self.asked or self.known(value.__name__):
            self.asked.add(value)
            return
        for name in sorted({*names} & vars(value).keys()):
            if (key := (value, name, names if _is_module(value, name) else ())) not in self.asked:
                self.asked.add(key)
                self.named(vars(value), name, names)

    def imported(self, name: str, attributes: tuple[str, ...], names: Mapping[str, Any]) -> None:
        """A module that code imports when it runs: by its source, for it may not be loaded yet.

        It lies beside the module that has these names, or where Python looks.
        """
        package, file = str(names.get("__package__") or ""), str(names.get("__file__") or "")
        above = ["", *(package.rsplit(".", up)[0] + "." for up in range(package.count(".") + 1) if package)]
        inside = [name, *(f"{name}.{one}".strip(".") for one in attributes)]
        beside = str([*Path(file).absolute().parents][: len(above)][-1]) if file else ""
        for full in (parent + one for parent in above for one in inside if one and one.isascii()):
            path = None if self.known(full) else source(full, beside)
            if path is not None and self.first(path, str(path)):
                home = full if path.name == "__init__.py" else full.rpartition(".")[0]
                with suppress(OSError, SyntaxError, ValueError):
                    read = compile(path.read_bytes(), full, "exec")
                    self.code(read, {"__package__": home, "__file__": str(path)})

    def known(self, module: str | None, *name: str) -> bool:
        """Whether what is of this module counts by name and version, which is said then."""
        top = (module or "").partition(".")[0]
        standard = top in OWN or top in sys.stdlib_module_names or top in ("torch", "numpy")
        if standard or (top != self.package and is_installed(top)):
            self.say(module, name, () if top in OWN else versions(top))
            return True
        return False


def _name(one: object) -> str:
    """Of a class or function its own, of an object that of its class; of what is plain its value."""
    if isinstance(one, PLAIN):
        return repr(one)
    return (one if isinstance(one, type | FunctionType) else type(one)).__qualname__


def _asked(steps: list[dis.Instruction]) -> dict[str, set[str]]:
    """The globals that code reads, and the attributes that it takes of them: b and c in a.b.c."""
    found: dict[str, set[str]] = {}
    of = None
    for step in steps:
        if step.opname in READING:
            of = found.setdefault(step.argval, set())
        elif of is not None and step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            of.add(step.argval)
        else:
            of = None
    return found


def _is_module(held: object, name: str) -> bool:
    return isinstance(held, ModuleType) and isinstance(vars(held).get(name), ModuleType)
