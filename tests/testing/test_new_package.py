"""`advkit plugins new`: a package that passes its own tests, and names and folders that are refused."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from advkit.cli.main import run
from advkit.errors import OptionError
from advkit.testing.package import new_package


@pytest.fixture(autouse=True)
def _not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests of the pages import the package that they name."""
    monkeypatch.delitem(sys.modules, "acme_margin", raising=False)


def install(folder: Path, site: Path) -> None:
    """What installing the package puts beside its modules; no network, no build."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    ((name, value),) = project["entry-points"]["advkit.plugins"].items()
    (info / "entry_points.txt").write_text(f"[advkit.plugins]\n{name} = {value}\n")


@pytest.mark.slow
def test_it_is_green_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every check but four, and that of a GPU: it keeps no state, has no place in a chain, and changes no attack."""
    assert run(["plugins", "new", "acme-margin", "--in", str(tmp_path)]) == 0
    folder = tmp_path / "acme-margin"
    names = ["README.md", "acme_margin.py", "pyproject.toml", "test_acme_margin.py"]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == names
    assert capsys.readouterr().out.splitlines() == [
        *(f"wrote {folder / name}" for name in names),
        f"Next: pip install -e {folder}, then pytest {folder} and advkit plugins check acme-margin",
    ]
    install(folder, tmp_path / "site")
    paths = [str(tmp_path / "site"), str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        cwd=folder,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    counted = "22 passed, 4 skipped" if torch.cuda.is_available() else "21 passed, 5 skipped"
    assert counted in ran.stdout, ran.stdout


def test_its_source_is_as_this_repository_is_written(tmp_path: Path) -> None:
    new_package("acme-margin", tmp_path)
    for command in (("check",), ("format", "--check")):
        ran = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "--config", "line-length = 120", str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("AcmeMargin", "'AcmeMargin' is no name for a plugin; it takes small letters"),
        ("acme_margin", "'acme_margin' is no name for a plugin; it takes small letters"),
        ("../acme", "'../acme' is no name for a plugin; it takes small letters"),
        ("core", "'core' is no name for a plugin; it takes small letters"),
        ("a" * 61, "60 at most, such as acme-margin."),
        ("", "'' is no name for a plugin; it takes small letters"),
        ("cat-eps", "A plugin cat-eps is installed already; choose another name."),
        ("class", "class would be the module class, which Python has already; choose another name."),
        ("random", "random would be the module random, which Python has already; choose another name."),
        ("advkit-plugins", "advkit-plugins would be the module advkit_plugins, which Python has already;"),
    ],
)
def test_names_that_are_refused(name: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plugins", "new", name, "--in", str(tmp_path)]) == 2
    assert sentence in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "occupy",
    [Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")],
    ids=["a folder", "a file", "a link"],
)
def test_nothing_is_overwritten(occupy: Callable[[Path], object], tmp_path: Path) -> None:
    occupy(tmp_path / "acme-margin")
    with pytest.raises(OptionError) as refused:
        new_package("acme-margin", tmp_path)
    assert str(refused.value) == (
        f"{tmp_path / 'acme-margin'} is there already, and nothing is overwritten; choose another name or --in DIR."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["acme-margin"]


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plugins", "new", "acme-margin", "--in", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == (
        f"Error: {tmp_path / 'none' / 'acme-margin'} can not be written (No such file or directory); "
        "name a folder that is there with --in DIR.\n"
    )
