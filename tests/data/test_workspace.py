"""What a killed process left half-made goes; what a living one makes, and what is anybody else's, stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from advkit.data.workspace import PREFIX, workspace

HOLDS = """
import sys
from pathlib import Path
from advkit.data.workspace import workspace
with workspace(Path(sys.argv[1])) as work:
    (work / "part").write_bytes(bytes(1000))
    print(work, flush=True)
    sys.stdin.read()
"""


def test_leftovers_of_the_dead_are_swept(tmp_path: Path) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", HOLDS, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    made = [Path(child.stdout.readline().strip()) for child in children if child.stdout]
    children[0].kill()
    children[0].communicate()
    theirs = tmp_path / f"{PREFIX}mine"
    theirs.mkdir()
    assert (made[0] / "part").exists() and (made[1] / "part").exists()
    with workspace(tmp_path) as work:
        assert not made[0].exists() and (made[1] / "part").exists() and theirs.exists()
        assert work.parent == tmp_path
    children[1].communicate("")
    assert os.listdir(tmp_path) == [theirs.name]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    root.mkdir()
    (outside / "held").touch()
    (root / f"{PREFIX}link").symlink_to(outside)
    with workspace(root):
        assert (outside / "held").exists()


def fails(root: Path) -> None:
    with workspace(root) as work:
        (work / "part").touch()
        raise ZeroDivisionError


def test_what_is_made_goes_with_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        fails(tmp_path)
    assert not list(tmp_path.iterdir())
