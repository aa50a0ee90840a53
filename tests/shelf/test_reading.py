"""One way to read files that anybody may have made: it neither hangs nor takes memory before it has judged."""

from __future__ import annotations

import ast
import errno
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from advkit import reading

CORE = Path(reading.__file__).parent
OWN = {
    "reading.py": "the way itself",
    "holding.py": "folders, whose names it puts on the disk",
    "storage/files.py": "writes",
    "storage/lock.py": "the lock, opened as reading opens",
    "storage/process.py": "/proc",
    "storage/machine.py": "/proc",
    "registry.py": "sources of what is installed",
    "packages.py": "metadata of what is installed",
    "fingerprint.py": "sources of what an attack imports",
    "__init__.py": "its own names",
    "studies/report/page.py": "its own style sheet",
    "testing/package.py": "its own templates",
    "data/digits.py": "its own images",
    "data/convert.py": "writes a folder of its own",
    "data/prepare.py": "writes a file of its own",
    "data/workspace.py": "marks a folder of its own",
    "cli/streams.py": "/dev/null",
}
"""Who opens files past `advkit.reading`, and which."""

READS = re.compile(r"(^|\.)(open|fdopen|read_text|read_bytes|fromfile|memmap)$|^np\.load$|^tomllib\.load$|^json\.load$")
NO_FILES = (
    *("RunFolder.open", "Image.open", "archive.open", "tarfile.open", "files.open", "self.open"),
    "self.here().open",
)
"""Calls of that name on what is no file on disk, or was judged before."""


def opens(source: str) -> list[str]:
    calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [call for call in calls if READS.search(call) and call not in NO_FILES]


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: str(path.relative_to(CORE)))
def test_files_are_opened_in_one_place(path: Path) -> None:
    name = path.relative_to(CORE).as_posix()
    assert bool(opens(path.read_text())) == (name in OWN), opens(path.read_text())


@pytest.mark.parametrize("source", ["open(p)", "p.read_text()", "os.open(p, 0)", "(a / b).open('rb')", "np.load(p)"])
def test_a_second_way_would_be_seen(source: str) -> None:
    assert opens(source)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


NO_REGULAR_FILE: dict[str, Callable[[Path], object]] = {
    "pipe": pipe,
    "socket": listening,
    "folder": Path.mkdir,
    "zeros": lambda path: path.symlink_to("/dev/zero"),
    "link to a pipe": lambda path: (pipe(path.with_suffix(".pipe")), path.symlink_to(path.with_suffix(".pipe"))),
    "loop": lambda path: path.symlink_to(path),
    "nothing": lambda path: path.symlink_to(path.with_suffix(".gone")),
}


@pytest.mark.parametrize("what", NO_REGULAR_FILE)
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's name is short
    NO_REGULAR_FILE[what](Path("a"))
    with pytest.raises(OSError, match=r"regular file|directory|No such|symbolic links|No such device"):
        reading.read("a", 100)


def test_links_are_followed_where_they_may_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text")
    (tmp_path / "link").symlink_to("file")
    assert reading.read(tmp_path / "link", 4) == b"text"
    with pytest.raises(OSError, match="symbolic links"):
        reading.read(tmp_path / "link", 4, links=False)


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000, "absent", "\udc80"])
def test_names_that_are_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError):
        reading.read(tmp_path / name, 100)


def test_size_is_judged_first_and_while_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as stream:
        stream.truncate(1 << 40)
    for path in (tmp_path / "sparse", "/proc/self/maps"):  # which says that it has no bytes
        with pytest.raises(OSError, match="it has more than 100 bytes") as refused:
            reading.read(path, 100)
        assert refused.value.errno == errno.EFBIG
