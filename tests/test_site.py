"""The pages as a site: without a warning, and without anything from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOADED = re.compile(
    r"""<(?:script|img|iframe)[^>]*\ssrc="(?:https?:)?//|<link[^>]*\shref="(?:https?:)?//|url\(["']?(?:https?:)?//"""
)


@pytest.mark.soak
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    for name in ("sphinx", "furo", "myst_parser", "sphinx_click"):
        pytest.importorskip(name, reason="make docs-site installs what builds the site")
    command = (
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-c",
        "docs/site",
        "-d",
        tmp_path / "trees",
        ".",
        tmp_path / "site",
    )
    built = subprocess.run(
        [sys.executable, "-m", *map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (built.returncode, built.stderr) == (0, ""), built.stderr
    files = [file for file in (tmp_path / "site").rglob("*") if file.suffix in (".html", ".css")]
    assert len(files) > 80
    for file in files:
        assert not LOADED.search(file.read_text(encoding="utf-8")), file
