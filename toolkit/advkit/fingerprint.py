"""What tells an object of somebody's class from others: its fields, and all loaded code that it can reach.

Files may have been edited since they were imported, and much of what a method computes lies in none: fields, closures,
constants of modules. So what is loaded is walked, from the object on: its class with bases and attributes, functions by
their bytecode with defaults, closures and the globals they name, values in containers. Modules of the standard library,
of advkit, and of other installed distributions count by name and version. Nothing is called and nothing is pickled.
"""

from __future__ import annotations

import dis
import enum
import functools
import hashlib
import logging
import random
import re
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import PurePath
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    CodeType,
    EllipsisType,
    FunctionType,
    GenericAlias,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    NoneType,
    NotImplementedType,
    UnionType,
    WrapperDescriptorType,
)
from typing import Any

from .packages import is_installed, versions
from .registry import OWN, source

PLAIN = (str, bytes, bool, int, float, complex)
SHOWN = (
    *("torch.dtype", "torch.device", "torch.Size", "torch.memory_format", "torch.layout"),
    *("typing.", "collections.abc."),
)
"""Kinds of values, by how the names of their types begin, that their `repr` tells apart; those of Python below."""
COMPUTING = (FunctionType, classmethod, staticmethod, property, functools.partialmethod)
"""Special attributes of a class that compute something; the others are made by Python and its decorators."""

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
    def __init__(self, package: str, strict: bool) -> None:
        self.package, self.strict, self.digest = package, strict, hashlib.sha256()
        self.met: dict[object, int] = {}
        self.alive: list[object] = []
        """What was met, so that no other object takes its id."""
        self.asked: set[object] = set()

    @classmethod
    def of(cls, value: object, strict: bool) -> str:
        given = value if isinstance(value, type | FunctionType) else type(value)
        walk = cls(given.__module__.partition(".")[0], strict)
        try:
            walk(value)
        except RecursionError:
            raise Undescribed("what holds itself") from None
        return walk.digest.hexdigest()[:12]

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
        kind = type(value)
        plain = next((base for base in PLAIN if isinstance(value, base)), None)
        if plain is not None or isinstance(value, _SHOWN) or f"{kind.__module__}.{kind.__qualname__}".startswith(SHOWN):
            self.say(kind.__name__, plain.__repr__(value) if plain else repr(value))
        elif isinstance(value, logging.Logger | random.Random):
            self.say(kind.__name__, value.name if isinstance(value, logging.Logger) else value.getstate())
        elif self.first(value):
            if isinstance(value, ModuleType):
                self.module(value, ())
            elif isinstance(value, type):
                self.type(value)
            elif isinstance(value, FunctionType):
                self.function(value)
            elif isinstance(value, CodeType):
                self.code(value, {})
            elif hasattr(value, "detach") or kind.__module__ == "numpy":
                self.array(value)
            else:
                self.object(value)

    def object(self, value: Any) -> None:
        """What stands in it, its class and its fields; hooks of a module without the numbers that torch gave them."""
        within = _parts(value)
        for part in within or ():
            self(part)
        fields = [*getattr(value, "__dict__", {}).items(), *_slots(value)]
        if within is None and not fields and not hasattr(value, "__dict__") and type(value) is not object:
            if self.strict:
                raise Undescribed(type(value).__qualname__)
            return
        self(type(value))
        for name, held in fields:
            self.say(name)
            self(list(held.values()) if "_hooks" in name and isinstance(held, Mapping) else held)

    def array(self, value: Any) -> None:
        """A tensor of torch, an array or a number of numpy."""
        try:
            plain = value.detach().cpu().resolve_conj().contiguous() if hasattr(value, "detach") else value
            plain = plain.numpy() if hasattr(plain, "detach") else plain
            if plain.dtype.hasobject:
                raise TypeError
            self.say(str(value.dtype), tuple(plain.shape))
            self.digest.update(plain.tobytes())
        except (TypeError, RuntimeError, AttributeError):
            raise Undescribed(type(value).__name__) from None

    def type(self, value: type) -> None:
        if self.known(value.__module__, value.__qualname__):
            return
        for base in value.__bases__:
            self(base)
        for name, held in sorted(vars(value).items()):
            if (name[:2] != "__" or isinstance(held, COMPUTING)) and name not in ("_abc_impl", "__annotate_func__"):
                self.say(name)
                self(held)

    def function(self, value: FunctionType) -> None:
        if self.known(value.__module__, value.__qualname__):
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
                self(sorted(held, key=repr) if isinstance(held, frozenset) else held)
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
            self.imported(name, value.co_names, str(names.get("__package__") or ""))

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

    def imported(self, name: str, attributes: tuple[str, ...], package: str) -> None:
        """A module that code imports when it runs: by its source, for it may not be loaded yet."""
        parents = ["", *(package.rsplit(".", up)[0] + "." for up in range(package.count(".") + 1) if package)]
        inside = [name, *(f"{name}.{one}".strip(".") for one in attributes)]
        for full in (parent + one for parent in parents for one in inside if one and one.isascii()):
            path = None if self.known(full) else source(full)
            if path is not None and self.first(path, str(path)):
                home = full if path.name == "__init__.py" else full.rpartition(".")[0]
                with suppress(OSError, SyntaxError, ValueError):
                    self.code(compile(path.read_bytes(), full, "exec"), {"__package__": home})

    def known(self, module: str | None, *name: str) -> bool:
        """Whether what is of this module counts by name and version, which is said then."""
        top = (module or "").partition(".")[0]
        standard = top in OWN or top in sys.stdlib_module_names or top in ("torch", "numpy")
        if standard or (top != self.package and is_installed(top)):
            self.say(module, name, () if top in OWN else versions(top))
            return True
        return False


_SHOWN = (
    NoneType, EllipsisType, NotImplementedType, range, slice, PurePath, re.Pattern, enum.Enum, GenericAlias, UnionType,
    MemberDescriptorType, GetSetDescriptorType, WrapperDescriptorType, MethodDescriptorType, ClassMethodDescriptorType,
)  # fmt: skip


def _parts(value: Any) -> list[Any] | None:
    """What stands in a container or behind a wrapper; None where it is none."""
    if isinstance(value, Mapping):
        return [part for pair in value.items() for part in pair]
    if isinstance(value, list | tuple | deque):
        return list(value)
    if isinstance(value, set | frozenset):
        return sorted(value, key=lambda one: getattr(one, "__qualname__", None) or repr(one))  # no addresses
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, BuiltinFunctionType):
        return [value.__name__, value.__self__]
    if isinstance(value, functools.partial | functools.partialmethod):
        return [value.func, value.args, value.keywords]
    if isinstance(value, property):
        return [value.fget, value.fset, value.fdel]
    if isinstance(value, classmethod | staticmethod):
        return [value.__func__]
    return [value.__wrapped__] if isinstance(value, _CACHED) else None


_CACHED = type(functools.cache(len))


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


def _slots(value: object) -> list[tuple[str, Any]]:
    """The filled `__slots__` of an object."""
    names = [
        f"_{base.__name__.lstrip('_')}{name}" if name[:2] == "__" != name[-2:] else name  # as Python does
        for base in type(value).__mro__
        for given in [vars(base).get("__slots__", ())]
        for name in ((given,) if isinstance(given, str) else given)
    ]
    return [(n, getattr(value, n)) for n in names if n not in ("__dict__", "__weakref__") and hasattr(value, n)]
