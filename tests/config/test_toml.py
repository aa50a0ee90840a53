"""TOML that is refused before a parser chokes on it, and TOML that only looks so."""

from __future__ import annotations

from pathlib import Path

import pytest

from advkit.config import runfile
from advkit.config.toml import parsed
from advkit.errors import OptionError

LONG = ".".join("a" * 2_000)
QUOTED = ".".join(['"a.\\" b"', "'c d'"] * 9)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"{LONG} = 1", 1),
        (f"[run]\nseed = 1\n[{LONG}]", 3),
        (f"\n[[ {LONG} ]]", 2),
        (f"model = {{ name = 'x', {LONG} = 1 }}", 1),
        (f"model = [{{{LONG} = 1}}]", 1),
        (f"\t{LONG.replace('.', ' . ')} = 1", 1),
        (f"{QUOTED} = 1", 1),
    ],
)
def test_a_key_of_many_dots_is_refused_unread(tmp_path: Path, text: str, line: int) -> None:
    """`tomllib` takes memory by the square of its parts: 4 GB for 62 KB."""
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(OptionError) as caught:
        runfile.load(file)
    assert str(caught.value) == f"{file} is not valid TOML (a key of more than 16 dots, at line {line}); correct it."


def test_dots_elsewhere_are_read() -> None:
    floats, dots = [0.5] * 5_000, ".".join("1" * 5_000)
    strings = f"a = \"{dots}\" # {dots}\nb = ['{dots}', '''{dots}''']"
    table = parsed(f"{strings}\nc = {floats}\n{'d.' * 16}e = 1")
    assert (table["a"], table["b"], table["c"]) == (dots, [dots, dots], floats) and "d" in table


@pytest.mark.parametrize("deep", ["[" * 20_000, "{a=" * 20_000])
def test_brackets_within_brackets_are_refused(deep: str) -> None:
    with pytest.raises(ValueError, match="brackets within brackets, too many"):
        parsed(f"a = {deep}")
    assert runfile.difference(f"a = {deep}", "") == ["what is stored is no run file"]
