"""Which tests hold each built-in to what it says, read from the tests: a method a line, a proof a column.

What is tested of all methods alike is read from the parametrisation of the tests, so a method that drops out of a list
shows. What only its own parity test can show is read from that test's source. `generate.py` writes the table.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from advkit import registry

TESTS = Path(__file__).resolve().parents[1] / "tests"

OF_ALL = {
    "no bit moves when off": ("test_methods", "test_switched_off_it_moves_no_bit", ""),
    "bits move when on": ("test_methods", "test_switched_on_it_does", ""),
    "any order": ("test_methods", "test_a_crowd_is_one_run_in_any_order", ""),
    "resume": ("test_resume", "test_each_method_resumes_within_an_epoch", ""),
    "plan = ledger = count": ("test_passes", "test_every_installed_plugin_every_two_and_all_that_fit", ""),
    "bf16": ("test_conformance", "test_built_ins_conform", ""),
    "channels_last": ("test_conformance", "test_built_ins_conform", ""),
    "compile": ("test_compiled", "test_compiled_is_eager_to_rounding_for_every_method", ""),
    "parts": ("test_accumulate", "test_in_parts_it_is_the_whole_batch", "test_who_needs_the_whole_batch_is_refused"),
    "ranks": ("test_processes", "test_several_are_as_one", "test_who_needs_the_whole_batch_is_refused"),
}
"""By column: module of tests/training or tests/testing, the test, and the one that expects a refusal."""
ENGINES = ("bf16", "channels_last", "compile", "parts", "ranks")
"""The columns of docs/scaling.md."""
ALSO = {"compile": "test_compiled_is_eager_to_rounding"}
"""A second test with the methods that the first leaves to it."""
OF_ONE = ("tests", "equations", "visits", "wrong constants", "pure functions", "options")


@cache
def _imported(name: str) -> ModuleType:
    """A module of the tests, found as pytest finds it."""
    for path in (TESTS, *(TESTS / folder for folder in ("parity", "training", "testing"))):
        if str(path) not in sys.path:
            sys.path.append(str(path))
    return importlib.import_module(name)


@cache
def parametrised(module: str, test: str) -> frozenset[str]:
    """The built-ins that a test is run with, alone or in a set."""
    marks = getattr(getattr(_imported(module), test), "pytestmark", ())
    values = [mark.args[1] for mark in marks if mark.name == "parametrize"]
    return frozenset(_words(values)) & frozenset(registry.names("plugin"))


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from value.split(",")
    elif isinstance(value, Iterable):
        for inner in value:
            yield from _words(inner)


def of_all(name: str) -> list[str]:
    """The cells of `OF_ALL`."""
    cells = []
    for column, (module, test, refusal) in OF_ALL.items():
        tests = (test, *([ALSO[column]] if column in ALSO else []))
        said = ["yes"] if any(name in parametrised(module, one) for one in tests) else []
        said += ["refused"] if refusal and name in parametrised(module, refusal) else []
        cells.append(" or ".join(said))
    return cells


# ---------------------------------------------------------------------- parity tests, by their source


def of_one(name: str) -> list[str]:
    """The cells of `OF_ONE`: how many tests, the most visits of one, and how many options are set in some."""
    own, plugin = _imported("methods").methods()[name][1], registry.load("plugin", name)
    home, options = plugin.__module__, plugin.Options.model_fields
    tests: list[list[ast.AST]] = []
    pure: set[str] = set()
    visits = 0
    for path in sorted(own.parent.glob("test_parity_*.py")):
        science = {alias for alias, module in _imports(path).items() if module == home}
        there = vars(_imported(path.stem))
        alone = path == own and len(there["METHODS"]) == 1
        here = [reach for reach in _tests(path) if alone or _speaks_of(reach, name, science)]
        visits = max([visits, *(_visits(test, there) for test in here if "assert_parity" in _names(test))])
        tests, pure = tests + here, pure | science
    compared = [test for test in tests if "assert_parity" in _names(test)]
    known = {word for test in [*tests, _declared(own, name)] for word in _said(test)}
    counts = [
        len(tests),
        len(compared),
        visits,
        sum("APART" in _names(test) for test in tests),
        sum(bool(pure & _names(test)) for test in tests),
    ]
    return [*(str(count or "") for count in counts), f"{len(known & options.keys())} of {len(options)}"]


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _imports(path: Path) -> dict[str, str]:
    return {
        alias.asname or alias.name: node.module or ""
        for node in ast.walk(_parsed(path))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


@cache
def _tests(path: Path) -> list[list[ast.AST]]:
    """Of every test of a module the source, and that of the functions, classes and constants there which it reaches."""
    there: dict[str, ast.AST] = {}
    for node in _parsed(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            there[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            there[node.targets[0].id] = node
    there.pop("METHODS", None)
    tests = []
    for test in (name for name in there if name.startswith("test_")):
        reach, todo = {test: there[test]}, [test]
        while todo:
            for name in _names([there[todo.pop()]]) & there.keys() - reach.keys():
                reach[name] = there[name]
                todo.append(name)
        tests.append(list(reach.values()))
    return tests


def _names(nodes: list[ast.AST]) -> set[str]:
    return {name for node in nodes for name in _read(node)[0]}


def _said(nodes: list[ast.AST]) -> Iterator[str]:
    """Texts and names of arguments."""
    for node in nodes:
        yield from _read(node)[1]


@cache
def _read(node: ast.AST) -> tuple[frozenset[str], tuple[str, ...]]:
    """The names in a piece of source, and its texts and names of arguments."""
    names, said = set(), dict[str, None]()
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            names.add(part.id)
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            said |= dict.fromkeys((part.value, part.value.rpartition(".")[2]))
        elif isinstance(part, ast.keyword) and part.arg:
            said[part.arg] = None
    return frozenset(names), tuple(said)


def _speaks_of(nodes: list[ast.AST], name: str, science: set[str]) -> bool:
    return name in {word for text in _said(nodes) for word in text.split(",")} or bool(science & _names(nodes))


def _visits(test: list[ast.AST], there: Mapping[str, Any]) -> int:
    """The most steps that a loop of a test compares; 1 without a loop. `there`: what its module holds."""
    loops = [part for node in test for part in ast.walk(node) if isinstance(part, ast.For)]
    compared = [loop.iter for loop in loops if {"visit", "assert_parity"} & {*_called(loop)}]
    return max((_length(over, there) for over in compared), default=1)


def _called(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Call):
            yield part.func.attr if isinstance(part.func, ast.Attribute) else ast.unparse(part.func)


def _length(over: ast.expr, there: Mapping[str, Any]) -> int:
    """Of a range up to a number or a constant, or of a display."""
    if isinstance(over, ast.Tuple | ast.List):
        return len(over.elts)
    if isinstance(over, ast.Call) and ast.unparse(over.func) == "range":
        end = over.args[-1]
        return int(end.value if isinstance(end, ast.Constant) else there.get(ast.unparse(end), 1))  # type: ignore[arg-type]
    return 1


def _declared(path: Path, name: str) -> list[ast.AST]:
    """What METHODS says of it."""
    return [
        value
        for node in _parsed(path).body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Dict)
        and _names([node.targets[0]]) == {"METHODS"}
        for key, value in zip(node.value.keys, node.value.values, strict=True)
        if isinstance(key, ast.Constant) and key.value == name
    ]


def rows() -> Iterator[list[str]]:
    """A line of the table for every built-in."""
    for name in registry.names("plugin"):
        path = _imported("methods").methods()[name][1]
        yield [f"[`{name}`](../tests/parity/{path.name})", *of_one(name), *of_all(name)]
