"""The code of a class as it is written: nothing that a program does while it runs makes it another.

A class and the functions that it reaches are walked as they are loaded (`fingerprint`). Values that stand in modules
and classes count by the statements that make them, and what those name: a registry that grows with every import, a
counter, a cache, a device and a path are state, and no code. What stands in closures and defaults counts if it can not
change.
"""

from __future__ import annotations

import ast
import dis
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.util import resolve_name
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from .fingerprint import CACHED, Walk, parts
from .reading import read
from .registry import by_advkit

CODE = (
    *(FunctionType, type, CodeType, MethodType, BuiltinFunctionType, CACHED, functools.partial),
    *(property, classmethod, staticmethod, functools.partialmethod),
)
MADE = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
"""Statements whose values, if they are code, are walked as they are loaded."""

CAP = 1 << 24
"""Bytes of a file of code."""

Statements = Mapping[str, Sequence[ast.stmt]]


def code(given: Any) -> dict[str, str]:
    """{"code": digest} of a class or function of a third party, {} for advkit's own.

    Twelve hex digits, as those of `fingerprint`.
    """
    return {} if by_advkit(given) else {"code": _Written.of(given, strict=False)}


class _Written(Walk):
    def named(self, names: Mapping[str, Any], name: str, inside: tuple[str, ...] = ()) -> None:
        """A global: loaded code, or the statements that make it. One that only functions assign is state."""
        held, found = names[name], _statements(names.get("__file__"))
        made, package = (found or {}).get(name, ()), names.get("__name__")
        if found is None:  # no file, as in a notebook
            super().named(names, name, inside)
        elif isinstance(held, ModuleType) and (made or held.__name__ == f"{package}.{name}"):
            self.module(held, inside)
        elif isinstance(held, CODE) and any(isinstance(node, MADE) for node in made):
            self.say(name)
            self(held)
        else:
            self.statements(name, made or found.get("*", ()), names)

    def statements(self, name: str, made: Sequence[ast.stmt], names: Mapping[str, Any]) -> None:
        """What makes a value: as it is written, with the globals that it names, or where it is imported from."""
        if not made or not self.first(made, (id(names), name)):
            return
        self.say(name)
        for node in made:
            if isinstance(node, ast.ImportFrom):
                self.origin(name, node, names)
                continue
            self.say(ast.dump(node))
            inside = tuple(part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute))
            for other in sorted({part.id for part in ast.walk(node) if isinstance(part, ast.Name)} - {name}):
                if other in names:
                    self.named(names, other, inside)

    def origin(self, name: str, node: ast.ImportFrom, names: Mapping[str, Any]) -> None:
        package = names.get("__package__") or str(names.get("__name__")).rpartition(".")[0]
        there = None
        with suppress(ImportError):  # of a file that was edited meanwhile
            there = sys.modules.get(resolve_name("." * node.level + (node.module or ""), package or None))
        own = next((one.name for one in node.names if name == (one.asname or one.name)), name)
        if there and own in vars(there) and not self.known(there.__name__):
            self.named(vars(there), own)

    def attribute(self, owner: type, name: str, held: Any) -> None:
        """One of a class, as `named`. Of a class that no file has, by its value."""
        names = vars(sys.modules[owner.__module__]) if owner.__module__ in sys.modules else {}
        found = _statements(names.get("__file__")) or {}
        made = found.get(f"{owner.__qualname__}.{name}", ())
        loaded = isinstance(held, CODE) and (not made or any(isinstance(node, MADE) for node in made))
        if loaded or owner.__qualname__ not in found:
            super().attribute(owner, name, held)
        else:
            self.statements(f"{owner.__qualname__}.{name}", made, names)

    def beside(self, value: FunctionType) -> Iterator[Any]:
        """Of attributes the code, such as what is wrapped, and no variable that the function itself sets."""
        yield from (value.__defaults__ or (), *(value.__kwdefaults__ or {}).values())
        yield from (held for held in vars(value).values() if isinstance(held, CODE))
        own = {step.argval for step in dis.get_instructions(value.__code__) if step.opname == "STORE_DEREF"}
        for name, held in self.cells(value):
            if name not in own:
                yield held

    def object(self, value: Any) -> None:
        """What wraps code, and what can not change; else the class alone."""
        if isinstance(value, functools.partial | functools.partialmethod):
            value = (value.func, *value.args, *value.keywords.items())
        if isinstance(value, (*CODE, tuple)):
            for part in parts(value) or ():
                self(part)
        else:
            self(type(value))

    def array(self, value: Any) -> None:
        self(type(value))


def _statements(file: Any) -> Statements | None:
    """The statements of a file by the names that they bind or fill outside of functions, Class.name within a class."""
    try:
        path = Path(file)
        stamp = path.stat()
        return _parsed(path, stamp.st_mtime_ns, stamp.st_size)
    except (TypeError, ValueError, OSError, SyntaxError, RecursionError, MemoryError):
        return None


@functools.lru_cache(maxsize=64)
def _parsed(path: Path, *stamp: int) -> Statements:
    found: dict[str, list[ast.stmt]] = {}
    for name, node in _bound(ast.parse(read(path, CAP)).body):
        found.setdefault(name, []).append(node)
    return found


def _bound(body: Sequence[Any], prefix: str = "") -> Iterator[tuple[str, ast.stmt]]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from _bound(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((prefix + (one.asname or one.name.partition(".")[0]), node) for one in node.names)
        elif inner := [
            part for field in ("body", "handlers", "orelse", "finalbody") for part in getattr(node, field, ())
        ]:
            yield from _bound(inner, prefix)
        else:  # NAME = 1, NAME[k] = 1, NAME.k = 1, NAME.append(1)
            call = getattr(node, "value", None) if isinstance(node, ast.Expr) else None
            called = [call.func] if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) else []
            stored = (part for part in ast.walk(node) if isinstance(getattr(part, "ctx", None), ast.Store | ast.Del))
            yield from ((prefix + name, node) for name in dict.fromkeys(map(_root, [*called, *stored])) if name)


def _root(node: ast.AST) -> str:
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""
