"""The examples are run as a reader would run them: a loop of one's own, and a third party's package."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from advkit.cli.main import run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
OWN_LOOP = ROOT / "examples" / "own_loop.py"
PACKAGE = ROOT / "examples" / "third_party_plugin"
NAME, MODULE = "uniform-labels", "advkit_uniform_labels"


def python(*arguments: str | Path, on_path: Path | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """One Python process of one thread, with `on_path` installed as it were."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    environment.pop("PYTHONPATH", None)
    if on_path:
        environment["PYTHONPATH"] = str(on_path)
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=cwd,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what installing the package puts into site-packages; no network, no build."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    site = tmp_path_factory.mktemp("site")
    (site / f"{MODULE}.py").write_text((PACKAGE / f"{MODULE}.py").read_text())
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [
        line
        for group, points in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return site


# ---------------------------------------------------------------------- a loop of one's own


def test_own_loop_trains_and_says_what_came_out() -> None:
    ran = python(OWN_LOOP, "--epochs", "3")
    assert ran.returncode == 0, ran.stderr
    accuracy = {
        line.split()[0]: float(line.split()[1])
        for line in ran.stdout.splitlines()
        if line.startswith(("clean", "pgd-20", "cw-20"))
    }
    assert list(accuracy) == ["clean", "pgd-20", "cw-20"]
    assert accuracy["clean"] > 0.8, "three epochs learn the digits"
    assert 0.3 < accuracy["pgd-20"] < accuracy["clean"], "the attack is an attack, and training withstands it"
    assert sum(line.startswith("epoch ") for line in ran.stdout.splitlines()) == 3
    assert "caution: av-rank ranks AV_i / radius_i" in ran.stdout


def test_own_loop_names_public_things_only() -> None:
    """Of advkit it imports nothing but the package itself."""
    lines = [line.strip() for line in OWN_LOOP.read_text().splitlines()]
    assert [line for line in lines if line.startswith(("import ", "from ")) and "advkit" in line] == ["import advkit"]


# ---------------------------------------------------------------------- a third party's package


def test_an_installed_third_party_is_listed_beside_the_built_ins(installed: Path) -> None:
    command = ("-m", "advkit", "plugins", "list", "--json")
    listed = {row["name"]: row for row in json.loads(python(*command, on_path=installed).stdout)}
    assert listed[NAME] == {
        "name": NAME,
        "distribution": "advkit-uniform-labels",
        "version": "0.1.0",
        "hooks": ["target_label"],
        "summary": "Label smoothing by the same uniform noise for every sample.",
    }
    assert listed["lsiw"]["distribution"] == "advkit"
    assert NAME not in python(*command).stdout, "it is the folder on the path that makes it known"


def test_a_third_party_trains_with_the_built_ins(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(installed)
    words = f"train --plugins cat-eps,{NAME},lsiw -o {NAME}.alpha=0.2 --limit 40 --epochs 1 --set attack.steps=2"
    assert run([*words.split(), "--progress", "none", "--out", str(tmp_path / "run")]) == 0
    stored = tomllib.loads((tmp_path / "run" / "run.toml").read_text())
    assert stored["plugins"] == ["cat-eps", "lsiw", NAME]
    assert stored["options"][NAME] == {"alpha": 0.2}
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["epoch"] == 0


def test_a_third_party_is_planned_in_its_declared_place(
    installed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(installed)
    assert run(["plan", "--plugins", f"dirichlet-ls,{NAME},cat-eps", "--json"]) == 0
    # By name alone dirichlet-ls would come first.
    assert json.loads(capsys.readouterr().out)["hooks"]["target_label"] == [NAME, "dirichlet-ls"]


def test_without_its_order_it_would_be_refused(
    installed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(installed)
    monkeypatch.setattr(importlib.import_module(MODULE).UniformLabels, "order", {})
    assert run(["plan", "--plugins", f"dirichlet-ls,{NAME},cat-eps", "--json"]) == 2
    assert f"Plugins dirichlet-ls and {NAME} both change target_label" in capsys.readouterr().err


def test_its_own_tests_pass(installed: Path) -> None:
    ran = python(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", PACKAGE / "pyproject.toml", PACKAGE),
        on_path=installed,
        cwd=installed,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " passed" in ran.stdout and "skipped" not in ran.stdout


@pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="hatchling builds it")
def test_what_is_built_is_what_the_other_tests_installed(installed: Path, tmp_path: Path) -> None:
    ran = python(
        *("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"),
        *("--disable-pip-version-check", "--target", tmp_path, PACKAGE),
    )
    assert ran.returncode == 0, ran.stderr
    (points,) = tmp_path.glob("*.dist-info/entry_points.txt")
    (expected,) = installed.glob("*.dist-info/entry_points.txt")
    assert points.read_text().split() == expected.read_text().split()
    assert (tmp_path / f"{MODULE}.py").read_text() == (PACKAGE / f"{MODULE}.py").read_text()
    assert sorted(path.name for path in tmp_path.glob("*.py")) == [f"{MODULE}.py"], "its tests are not installed"


def test_the_plugin_is_short() -> None:
    assert len((PACKAGE / f"{MODULE}.py").read_text().splitlines()) < 80
