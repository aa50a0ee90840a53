"""Who may import whom: the rooms stand in one order, imports go down it, and no module is in a circle.

Imports inside functions count too: they may spare the command line a second, never get around the order. Only those
under `TYPE_CHECKING` are left out of the circles, since nothing runs them; they keep the order all the same.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

CORE = Path(__file__).parents[1] / "toolkit" / "advkit"
ROOMS = ("", "data", "models", "compose", "config", "storage", "evaluation", "training", "studies", "testing", "cli")
"""From the shelf ("", the modules beside `__init__`) to the command line: a room imports from itself or from above."""

SPOKEN = {("hooks", "data.base"), ("plugin", "compose.composition"), ("run", "compose.composition")}
"""The specification names the type of a data set, for type checkers alone."""

FRONT = ("__init__", "__main__")
"""The doors: they import from everywhere, and nobody imports them for more than the version."""


def modules() -> dict[str, Path]:
    """{"training.step": path}; a package is its `__init__`."""
    paths = {}
    for path in sorted(CORE.rglob("*.py")):
        parts = path.relative_to(CORE).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return paths


def room(module: str) -> str:
    head, dot, _ = module.partition(".")
    return head if dot or head in ROOMS else ""


def imports(module: str, path: Path, source: str, known: dict[str, Path]) -> Iterator[tuple[str, bool]]:
    """(module, whether it is only for type checkers) of every import from advkit, in functions too."""
    tree = ast.parse(source)
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    package = [] if module in FRONT else package
    checked = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names if alias.name.partition(".")[0] == "advkit"]
            assert not targets, f"{module} imports {targets}: inside, imports are relative"
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - (node.level - 1)]
            home = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{home}.{alias.name}" if home else alias.name
                yield (inner if inner in known else home), id(node) in checked


def upward(module: str, path: Path, source: str) -> list[str]:
    """Imports of a module from a room above its own."""
    known = modules()
    if module in FRONT:
        return []
    own = ROOMS.index(room(module))
    return [
        target
        for target, _ in imports(module, path, source, known)
        if target and target not in FRONT and (module, target) not in SPOKEN and ROOMS.index(room(target)) > own
    ]


def test_every_folder_is_a_room() -> None:
    folders = {path.name for path in CORE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(ROOMS) - {""}


@pytest.mark.parametrize("module", modules())
def test_imports_go_down(module: str) -> None:
    path = modules()[module]
    assert upward(module, path, path.read_text()) == []


def circle(graph: Mapping[str, Collection[str]]) -> list[str]:
    """The modules of one circle of imports, [] where there is none."""
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return [*error.args[1]]
    return []


def test_no_circles() -> None:
    known = modules()
    graph = {
        module: {
            target
            for target, typing in imports(module, path, path.read_text(), known)
            if not typing and target and target != module
        }
        for module, path in known.items()
        if module not in FRONT
    }
    assert circle(graph) == []
    assert "rng" in circle({**graph, "rng": {"training.loop"}}), "one would be seen"


@pytest.mark.parametrize(
    ("module", "source", "target"),
    [
        ("rng", "from .storage.checkpoint import load", "storage.checkpoint"),
        ("evaluation.verdicts", "def f():\n    from ..storage import run_folder", "storage.run_folder"),
        ("training.loop", "from ..studies.subject import Subject", "studies.subject"),
    ],
)
def test_an_import_that_goes_up_would_be_found(module: str, source: str, target: str) -> None:
    expected = [] if ROOMS.index(room(target)) <= ROOMS.index(room(module)) else [target]
    assert upward(module, modules()[module], source) == expected
