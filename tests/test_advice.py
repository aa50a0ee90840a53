"""Arguments are named as whoever is told of them writes them: options on the command line, names in Python."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from advkit.errors import called, command_line, named

ROOT = Path(__file__).parents[1]
OPTION, COMMAND = re.compile(r"(?<![\w-])(--[a-z]|-o )"), re.compile(r"`advkit [^`]*`")

TYPED = {
    "advkit/data/convert.py": "of `advkit data prepare mapped` and `advkit data label`",
    "advkit/data/npz.py": "of `advkit data prepare mapped`",
    "advkit/data/pickled.py": "of `advkit data prepare mapped`",
    "advkit/data/prepare.py": "of `advkit data prepare`",
    "advkit/data/vision.py": "a second form of the command before it",
    "advkit/studies/evaluation_request.py": "a gate of the command line",
    "advkit/testing/package.py": "of `advkit plugins new`",
}
"""Where sentences name options as such, and why: Python has nothing of the kind. So do all below advkit/cli."""


def options_in(source: str) -> list[str]:
    """Strings that name options, but for docstrings, whole commands in backquotes, and an option by itself.

    That is what `named` takes, and what makes up a command.
    """
    return [
        text
        for text in _strings(ast.parse(source))
        if OPTION.search(COMMAND.sub("", text)) and not re.fullmatch(r"--[a-z-]+(\{\})?", text)
    ]


def _strings(tree: ast.Module) -> Iterator[str]:
    """Of an f-string as a whole, with {} for each value; that is no string by itself in it."""
    parts: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            parts.add(node.value)
        elif isinstance(node, ast.JoinedStr):
            parts |= {part for part in node.values if isinstance(part, ast.Constant)}
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in parts:
            yield node.value


def test_sentences_that_python_sees_name_no_options() -> None:
    found = {
        path.relative_to(folder).as_posix(): texts
        for folder in (ROOT / "toolkit", ROOT / "plugins")
        for path in folder.rglob("*.py")
        if path.parent.name != "cli" and OPTION.search(source := path.read_text()) and (texts := options_in(source))
    }
    assert found.keys() == TYPED.keys(), "name an argument by errors.named; drop the reason of a file without options"


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ('"choose another --out."', 0),  # a docstring
        ('x = "choose another --out."', 1),
        ('x = f"--trials {n} tries nothing"', 1),
        ('x = "set -o lsiw.lam=0"', 1),
        ("x = f\"choose another {named('--out')}.\"", 0),
        ("x = named(f'--eps-{norm}')", 0),
        ("x = f\"{named('--out')} and --eps\"", 1),
        ('x = f"get it with `advkit data prepare {name} --from PATH`."', 0),
    ],
)
def test_an_option_would_be_found(source: str, count: int) -> None:
    assert len(options_in(source)) == count


def told() -> list[str]:
    return [
        named("--out"),
        named("--model", "NAME"),
        named("--data-root", "DIR"),
        called("train", ["--resume", "a b", "--model", "net.py:Net"]),
    ]


def test_an_argument_is_named_as_it_is_written() -> None:
    with command_line():
        assert told() == ["--out", "--model NAME", "--data-root DIR", "advkit train --resume 'a b' --model net.py:Net"]
    calls = 'advkit.train(resume_from="a b", model="net.py:Net")'
    assert told() == ["out", 'model="NAME"', 'data.root="DIR"', calls]
