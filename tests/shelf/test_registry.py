"""What is installed is found whatever else is installed: a broken distribution ends nothing but itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from advkit import PluginImport, registry
from advkit.cli.main import run


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def install(site: Path, name: str, points: bytes, metadata: bytes | None = None) -> None:
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_bytes(metadata or f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode())
    (info / "entry_points.txt").write_bytes(points)


BROKEN = {
    "no value": (b"[advkit.plugins]\nbroken\n", None),
    "no value, of another tool": (b"[console_scripts]\nbroken\n", None),
    "bytes": (b"[advkit.plugins]\n\xff\xfe = x:y\n", None),
    "metadata of bytes": (b"[advkit.plugins]\nx = y:Z\n", b"\xff\xfe\0"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_distribution_ends_no_command(site: Path, capsys: pytest.CaptureFixture[str], how: str) -> None:
    before = {name for name in registry.names("plugin") if name != "x"}
    install(site, "broken_one", *BROKEN[how])
    assert set(registry.names("plugin")) - {"x"} == before and "cat-eps" in before
    assert run(["plan", "--plugins", "cat-eps"]) == 0 and run(["plugins", "list"]) == 0
    assert run(["recipes", "list"]) == 0
    assert registry.load("plugin", "cat-eps").__module__ == "advkit_plugins.cat_eps"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["metadata of bytes", "no value"])
def test_nor_does_it_in_a_process_of_its_own(tmp_path: Path, how: str) -> None:
    """Where nothing has been imported before; pydantic and torch look at what is installed, too."""
    install(tmp_path, "broken_one", *BROKEN[how])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    line = [sys.executable, "-m", "advkit", "plan", "--plugins", "cat-eps"]
    ran = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize(
    "source",
    [
        "raise BaseException('x')",
        "raise SystemExit(0)",
        "class M(type):\n    @property\n    def name(cls): 1 / 0\nclass P(metaclass=M): ...",
    ],
)
def test_whatever_an_import_raises_is_one_sentence(site: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "odd_one", raising=False)
    (site / "odd_one.py").write_text(source)
    install(site, "odd_one", b"[advkit.plugins]\nodd = odd_one:P\n")
    with pytest.raises(PluginImport, match="odd of distribution odd_one can not be imported"):
        registry.load("plugin", "odd")
    sys.modules.pop("odd_one", None)
