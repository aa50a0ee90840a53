"""What is public, who may import what, and how much there is to read."""

from __future__ import annotations

import ast
import importlib
import io
import os
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import advkit

ROOT = Path(__file__).parents[1]
CORE, BUILT_INS = ROOT / "toolkit" / "advkit", ROOT / "plugins" / "advkit_plugins"

READING_SET = (
    *("hooks", "hookspec", "types", "plugin", "run", "ascent", "modules", "losses"),
    *("compose/registration", "compose/composition", "compose/consumption", "compose/stage"),
    *("training/step", "training/panel", "training/objective", "training/network", "training/step_report"),
    *("training/loop", "training/feed"),
)
"""What one reads to know how a run works."""

READING_LINES, READING_STATEMENTS = 2625, 1940
"""Limits of the reading set: lines of its files, and those of them that are neither blank, comment nor docstring."""

LONG: dict[str, str] = {}
"""The files that may be longer than 300 lines, and why."""


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize("name", advkit.__all__)
def test_every_public_name_resolves_to_its_home(name: str) -> None:
    module, there = advkit._HOME[name]
    assert getattr(advkit, name) is getattr(importlib.import_module(module, "advkit"), there)


def test_dir_is_what_is_public() -> None:
    assert set(dir(advkit)) == {*advkit.__all__, "__version__"} and len(advkit.__all__) > 40


def test_an_unknown_name_is_an_ordinary_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'advkit' has no attribute 'Stpe'"):
        _ = advkit.Stpe


def test_no_public_name_is_a_submodules_name() -> None:
    """Importing the submodule would put it in the name's place."""
    assert not set(advkit.__all__) & {path.stem for path in CORE.iterdir()}


JUDGED = (
    "import advkit, torch; net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)); "
    "advkit.evaluate(net, (torch.rand(4, 1, 2, 2), torch.arange(4) % 2), ('clean', 'pgd-1'), eps=0.1)"
)


@pytest.mark.parametrize(
    ("program", "heavy"),
    [
        ("import advkit", False),
        ("import advkit; advkit.hookimpl, advkit.OptionError, dir(advkit), advkit.__version__", False),
        (JUDGED, True),  # the control: the probe does see torch
    ],
)
def test_importing_advkit_does_not_import_torch(program: str, heavy: bool) -> None:
    """Nor does judging a net import torch's compiler, which takes seconds and a folder for temporary files.

    Threads of torch that is imported afterwards sleep soon while they wait, unless it was said how they wait.
    """
    heavies = ("torch", "numpy", "pydantic", "torch._dynamo")
    own = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    said = {"OMP_DISPLAY_ENV": "true"} if heavy else {"OMP_WAIT_POLICY": "active"}
    environment = {name: value for name, value in os.environ.items() if name not in own} | said
    probe = f"import os, sys; {program}; print(*(os.environ.get(name) for name in {own})); "
    probe += f"print([name for name in {heavies} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, env=environment)
    wait, loaded = ran.stdout.splitlines()
    assert loaded == ("['torch', 'numpy', 'pydantic']" if heavy else "[]")
    assert wait == ("passive 1000" if heavy else "active None")
    assert bool(re.search("OMP_WAIT_POLICY ?= ?'PASSIVE'", ran.stderr)) == heavy, ran.stderr


# ---------------------------------------------------------------------- built-ins are like anybody's plugins


def strangers(source: str) -> list[str]:
    """Imports that a built-in may not have: all but `from advkit import PUBLIC`, torch and the standard library."""
    imported = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [f"{'.' * node.level}{node.module or ''}"]
            if modules == ["advkit"]:
                imported += [f"advkit.{alias.name}" for alias in node.names if alias.name not in advkit.__all__]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("__import__", "import_module")):
            imported.append(ast.unparse(node))
            continue
        else:
            continue
        imported += [module for module in modules if not _allowed(module)]
    return imported


def _allowed(module: str) -> bool:
    return module == "advkit" or module.partition(".")[0] in {"torch", *sys.stdlib_module_names}


@pytest.mark.parametrize("path", sorted(BUILT_INS.rglob("*.py")), ids=lambda path: path.stem)
def test_a_built_in_imports_what_a_third_party_can(path: Path) -> None:
    assert strangers(path.read_text()) == []


def test_there_are_built_ins_to_check() -> None:
    assert {"awp.py", "av_rank.py", "cat_eps.py", "dirichlet_ls.py", "lsiw.py"} <= {p.name for p in BUILT_INS.iterdir()}


@pytest.mark.parametrize(
    ("source", "stranger"),
    [
        ("from advkit.training.step import Step", "advkit.training.step"),
        ("import advkit.compose", "advkit.compose"),
        ("from advkit import training", "advkit.training"),
        ("from advkit import _HOME", "advkit._HOME"),
        ("from advkit_plugins.awp import layerwise", "advkit_plugins.awp"),
        ("from .awp import layerwise", ".awp"),
        ("from . import awp", "."),
        ("import numpy as np", "numpy"),
        ("def f():\n    import pydantic", "pydantic"),
        ("import importlib\nimportlib.import_module('advkit.training')", "importlib.import_module('advkit.training')"),
    ],
)
def test_a_stranger_would_be_found(source: str, stranger: str) -> None:
    assert strangers(source) == [stranger]


def test_what_is_allowed_is_allowed() -> None:
    assert strangers("import math, torch\nimport torch.nn.functional as F\nfrom advkit import Plugin, hookimpl") == []


# ---------------------------------------------------------------------- size


def statements(source: str) -> int:
    """Lines that hold code: no blank ones, no comments, no docstrings."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            lines |= set(range(token.start[0], token.end[0] + 1)) if token.string.strip() else set()
    return len(lines - {line for first, last in _docstrings(source) for line in range(first, last + 1)})


def _docstrings(source: str) -> Iterator[tuple[int, int]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.end_lineno or node.lineno


def test_statements_are_counted() -> None:
    assert statements('"""Doc.\n\nMore.\n"""\n\n# why\nx = (\n    1,  # one\n)\n"""About x."""\n') == 3


def test_the_reading_set_is_one_sitting() -> None:
    sources = [(CORE / f"{name}.py").read_text() for name in READING_SET]
    lines, code = sum(len(source.splitlines()) for source in sources), sum(map(statements, sources))
    assert lines <= READING_LINES, f"{lines} lines in {', '.join(READING_SET)}"
    assert code <= READING_STATEMENTS, f"{code} lines of code in {', '.join(READING_SET)}"


def test_a_file_past_300_lines_has_a_reason() -> None:
    lengths = {
        path.relative_to(folder).as_posix(): len(path.read_text().splitlines())
        for folder in (CORE, BUILT_INS)
        for path in folder.rglob("*.py")
    }
    assert {name for name, length in lengths.items() if length > 300} == LONG.keys(), (
        "split the file or give it a reason; drop the reason of one that has become short"
    )
