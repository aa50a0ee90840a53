"""`advkit data list` reads what is installed, and imports none of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from advkit.cli.main import run as command

SOURCE = '''
from advkit import DataSource

raise SystemExit("imported")


class Theirs(DataSource):
    """Somebody's pictures."""

    name = "theirs"
    classes, shape = 7, (3, 16, 16)
    images = (100, b"20")
    files = {"a.bin": "0"}

    def load(self, root, limit):
        raise AssertionError
'''


def test_a_data_set_is_listed_without_being_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "their_listed_data.py").write_text(SOURCE)
    info = tmp_path / "theirs-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: theirs\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[advkit.datasets]\ntheirs = their_listed_data:Theirs\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert command(["data", "list", "--data-root", str(tmp_path), "--json"]) == 0
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert listed["theirs"] == {
        "name": "theirs",
        "distribution": "theirs",
        "version": "1",
        "summary": "Somebody's pictures.",
        "classes": 7,
        "shape": [3, 16, 16],
        "images": None,
        "root": str(tmp_path),
        "present": False,
    }
    assert "their_listed_data" not in sys.modules
    assert (listed["digits"]["classes"], listed["digits"]["shape"], listed["digits"]["images"]) == (
        10,
        [1, 8, 8],
        [1258, 539],
    )
