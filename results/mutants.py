"""Do the tests of a method notice when a line of it changes? Ten lines in each of five built-ins, drawn by a seed.

    python results/mutants.py            # writes mutants.md and mutants.json beside itself

Each mutant lies in a copy of the built-ins, and its plugin's conformance checks and parity test run on that copy. What
is finished is kept under runs/results/mutants.json, and a stopped program goes on there.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

import pytest
import torch
from experiments import HERE, revision

import advkit.testing  # noqa: F401
from advkit import registry
from advkit.evaluation.statistics import wilson

ROOT = Path(__file__).resolve().parents[1]
KEPT = Path("runs/results/mutants.json")
SEED, METHODS, LINES = 9, 5, 10
LONGEST = 300
"""Seconds of a processor that one mutant's tests may take; what takes longer is noticed."""

OPERATORS: Mapping[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.MatMult: (ast.Mult,),
    ast.BitOr: (ast.BitAnd,),
    ast.BitAnd: (ast.BitOr,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
"""What becomes of an operator."""
TEXTS = ("help", "symbol", "unit")


@dataclass(frozen=True)
class Mutant:
    """A line of a built-in, and what stands in its place."""

    plugin: str
    line: int
    before: str
    after: str
    source: str
    """Of the whole module."""


# ---------------------------------------------------------------------- changed lines


def expressions(tree: ast.Module) -> Iterator[ast.expr]:
    """All that is computed: no text, import, annotation or decorator."""
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import | ast.ImportFrom | ast.JoinedStr):
            continue
        if isinstance(node, ast.AnnAssign):
            todo += [node.value] if node.value else []
            continue
        if isinstance(node, ast.FunctionDef):
            todo += [*node.args.defaults, *filter(None, node.args.kw_defaults), *node.body]
            continue
        if isinstance(node, ast.expr):
            yield node
        todo += [
            child for child in ast.iter_child_nodes(node) if not (isinstance(child, ast.keyword) and child.arg in TEXTS)
        ]


def changed(node: ast.expr, chance: random.Random) -> ast.expr | None:
    """The same expression with another operator, constant or sign; None where it has none of its own."""
    copy = deepcopy(node)
    if isinstance(copy, ast.BinOp | ast.BoolOp) and type(copy.op) in OPERATORS:
        copy.op = chance.choice(OPERATORS[type(copy.op)])()
    elif isinstance(copy, ast.Compare) and type(copy.ops[0]) in OPERATORS:
        copy.ops[0] = chance.choice(OPERATORS[type(copy.ops[0])])()
    elif isinstance(copy, ast.UnaryOp) and isinstance(copy.op, ast.USub | ast.Not):
        copy = copy.operand
    elif isinstance(copy, ast.Constant) and isinstance(copy.value, bool):
        copy.value = not copy.value
    elif isinstance(copy, ast.Constant) and isinstance(copy.value, int | float):
        copy.value = chance.choice((copy.value + 1, 2 * copy.value or copy.value - 1))
    else:
        return None
    return copy


def mutants(plugin: str, source: str, chance: random.Random) -> list[Mutant]:
    """One for every line that has something to change, in random order."""
    by_line: dict[int, list[tuple[ast.expr, ast.expr]]] = {}
    for node in expressions(ast.parse(source)):
        new = changed(node, chance)
        if new is not None and node.lineno == node.end_lineno:
            by_line.setdefault(node.lineno, []).append((node, new))
    lines, made = source.splitlines(keepends=True), []
    for number in sorted(by_line):
        node, new = chance.choice(by_line[number])
        line = lines[number - 1].encode()
        text = ast.unparse(new)
        inner = f"({text})" if isinstance(new, ast.BinOp | ast.BoolOp | ast.UnaryOp) else text
        after = (line[: node.col_offset] + inner.encode() + line[node.end_col_offset :]).decode()
        made.append(
            Mutant(
                plugin,
                number,
                lines[number - 1].strip(),
                after.strip(),
                "".join([*lines[: number - 1], after, *lines[number:]]),
            )
        )
    chance.shuffle(made)
    return made


def drawn() -> list[Mutant]:
    """The mutants of the page, the same ones each time."""
    chance = random.Random(SEED)
    homes: dict[str, set[str]] = {}
    for point in registry.points(registry.GROUPS["plugin"]):
        homes.setdefault(point.module, set()).add(point.name)
    sources = {
        min(names): (ROOT / "plugins" / Path(*module.split("."))).with_suffix(".py").read_text()
        for module, names in sorted(homes.items())
        if len(names) == 1
    }
    enough = [name for name, source in sources.items() if len(mutants(name, source, random.Random(0))) >= LINES]
    return [
        mutant
        for name in sorted(chance.sample(enough, METHODS))
        for mutant in mutants(name, sources[name], chance)[:LINES]
    ]


# ---------------------------------------------------------------------- their tests


class Failures:
    """A plugin of pytest that keeps the names of the tests that failed."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.names.append("import")

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.names.append(report.nodeid.rpartition("::")[2])


def judge(plugin: str, which: str, folder: Path) -> str:
    """The first conformance check, or the first of the plugin's parity tests, that fails; "" where all hold."""
    path = next(
        path
        for path in sorted((ROOT / "tests" / "parity").glob("test_parity_*.py"))
        if plugin in _declared(ast.parse(path.read_text()))
    )
    if which == "conformance":
        parity, path = path.stem, folder / "test_conformance_of_one.py"
        path.write_text(
            f"from {parity} import METHODS\nfrom advkit.testing import conformance\n"
            f"test = conformance({plugin!r}, options=METHODS[{plugin!r}].moving.get({plugin!r}))\n"
        )
    failures = Failures()
    options = ["-q", "-x", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    code = pytest.main([*options, "--timeout", "0", str(path)], plugins=[failures])
    return next(iter(failures.names), "" if code == 0 else f"pytest ended with {int(code)}")


def _declared(tree: ast.Module) -> set[str]:
    """The plugins of METHODS in a parity test."""
    return {
        key.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
        if ast.unparse(node.targets[0]) == "METHODS"
        for key in node.value.keys
        if isinstance(key, ast.Constant)
    }


def judged(plugin: str, source: str | None) -> dict[str, str]:
    """What the tests say of a plugin whose module has this source, or its own.

    In a process that is forked from this one, which has torch and advkit and none of the plugins.
    """
    assert not {"advkit_plugins", "methods"} & {*sys.modules}
    with tempfile.TemporaryDirectory(prefix="advkit-mutants-") as folder:
        shutil.copytree(ROOT / "plugins", Path(folder, "plugins"))
        module = next(point.module for point in registry.points(registry.GROUPS["plugin"]) if point.name == plugin)
        if source is not None:
            Path(folder, "plugins", *module.split(".")).with_suffix(".py").write_text(source)
        return {which: _forked(plugin, which, Path(folder)) for which in ("conformance", "parity")}


def _forked(plugin: str, which: str, folder: Path) -> str:
    """What `judge` says in a process of its own."""
    answer = folder / f"{which}.txt"
    child = os.fork()
    if not child:
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (LONGEST, LONGEST))
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1), os.dup2(null, 2)
            sys.path[:0] = [f"{folder}/plugins", str(ROOT / "tests"), str(ROOT / "tests" / "parity")]
            answer.write_text(judge(plugin, which, folder))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return answer.read_text() if answer.exists() else "no end"


# ---------------------------------------------------------------------- the page


def page(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was noticed by whom, and what by nobody."""
    both, conformance, parity = (
        sum(bool(test(row)) for row in rows)
        for test in (
            lambda row: row["conformance"] and row["parity"],
            lambda row: row["conformance"],
            lambda row: row["parity"],
        )
    )
    noticed = conformance + parity - both
    low, high = wilson(noticed, len(rows))
    text = f"""Of the built-ins that have a module of their own and {LINES} lines to change, a seed draws {METHODS},
    {LINES} lines of each, and one change of each line: another operator, comparison, sign or constant. Not changed are
    texts (docstrings, help, symbols, units, sentences), imports, annotations, decorators, and statements over
    several lines. Every mutant is given to the plugin's conformance checks, under the options of its parity test,
    and to that parity test; each of the two stops at the first that fails. Without a change all of them hold.
    Other tests, such as those of options, cautions and recipes, are not run."""
    lines = [
        "# Do the tests notice when a line of a method changes?",
        "",
        *wrap(" ".join(text.split()), 118),
        "",
        f"**{noticed} of {len(rows)} are noticed** (Wilson's 95 % interval: {low:.2f} to {high:.2f}): {conformance} by "
        f"conformance, {parity} by parity, {both} by both.",
        "",
        "## Not noticed",
        "",
    ]
    for row in rows:
        if not (row["conformance"] or row["parity"]):
            lines += [f"`{row['plugin']}`, line {row['line']}:", "", "```diff"]
            lines += [f"- {row['before']}", f"+ {row['after']}", "```", ""]
    lines += ["## All", "", "| plugin | line | before | after | conformance | parity |", "|---|---|---|---|---|---|"]
    for row in rows:
        code = (f"`{row[side].partition('  #')[0].strip()}`" for side in ("before", "after"))
        cells = (row["plugin"], str(row["line"]), *code, row["conformance"], row["parity"])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [
        *lines,
        "",
        f"Written by `make results-mutants` (`results/mutants.py`, seed {SEED}) with revision {revision()}.",
    ]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else []
    rows: list[dict[str, Any]] = []
    chosen = drawn()
    unchanged = [Mutant(name, 0, "", "", "") for name in dict.fromkeys(mutant.plugin for mutant in chosen)]
    for mutant in (*unchanged, *chosen):
        facts = {name: getattr(mutant, name) for name in ("plugin", "line", "before", "after")}
        row = next((row for row in kept if facts.items() <= row.items()), None)
        if row is None:
            row = facts | judged(mutant.plugin, mutant.source or None)
            kept.append(row)
            KEPT.write_text(json.dumps(kept))
        print(*row.values(), sep=" | ", flush=True)
        if not mutant.line and (row["conformance"] or row["parity"]):
            sys.exit(f"{mutant.plugin} fails its tests as it is.")
        rows += [row] if mutant.line else []
    (HERE / "mutants.md").write_text("\n".join(page(rows)) + "\n")
    (HERE / "mutants.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
