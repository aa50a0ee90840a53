"""The wheel has every file, and works with that of a new package where the sources of neither are."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = (ROOT / "toolkit" / "advkit", ROOT / "plugins" / "advkit_plugins")
hatchling = pytest.importorskip("hatchling.builders.wheel", reason="hatchling builds the wheels")


def built(package: Path, into: Path) -> Path:
    """The wheel of a folder with a pyproject.toml."""
    (wheel,) = hatchling.WheelBuilder(str(package)).build(directory=str(into), versions=["standard"])
    return Path(wheel)


def test_the_wheel_has_every_file_of_the_packages_and_nothing_else(tmp_path: Path) -> None:
    """Templates, recipes, stubs, the digits, the report's style sheet; no tests."""
    files = [file for home in SOURCES for file in home.rglob("*") if file.is_file() and file.suffix != ".pyc"]
    expected = {
        f"{home.name}/{file.relative_to(home).as_posix()}" for home in SOURCES for file in files if home in file.parents
    }
    wheel = zipfile.ZipFile(built(ROOT, tmp_path))
    about = "advkit-0.1.0.dist-info"
    described = {f"{about}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    assert set(wheel.namelist()) == expected | described
    points = ConfigParser(delimiters=("=",))
    points.optionxform = str  # type: ignore[assignment, method-assign]
    points.read_string(wheel.read(f"{about}/entry_points.txt").decode())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    registered = {"console_scripts": project["scripts"], **project["entry-points"]}
    assert {group: dict(points[group]) for group in points.sections()} == registered


def ran(*command: str | Path, cwd: Path) -> str:
    """What a command prints that knows nothing of this checkout; it must end well."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environment, cwd=cwd, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.soak
def test_wheels_work_in_an_environment_of_their_own(tmp_path: Path) -> None:
    """Half a minute: the checks of a plugin, a training with it, and what reads files of the wheel."""
    environment = tmp_path / "env"
    ran(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    python, advkit = (environment / "bin" / name for name in ("python", "advkit"))
    site = Path(ran(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    # torch and the like are those of this environment. A .pth file there, of sources, is not read again.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def install(package: Path) -> None:
        pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps")
        ran(*pip, "--force-reinstall", "--ignore-installed", built(package, tmp_path), cwd=tmp_path)

    install(ROOT)
    where = "import advkit, advkit_plugins; print(advkit.__file__, advkit_plugins.__file__)"
    assert all(Path(file).is_relative_to(site) for file in ran(python, "-c", where, cwd=tmp_path).split())
    ran(advkit, "doctor", cwd=tmp_path)
    ran(advkit, "plugins", "new", "acme-margin", cwd=tmp_path)
    install(tmp_path / "acme-margin")
    assert "acme-margin" in ran(advkit, "plugins", "list", cwd=tmp_path)
    assert " 0 fail," in ran(advkit, "plugins", "check", "acme-margin", cwd=tmp_path)
    small = ("--limit", "60", "--epochs", "1", "--set", "model.width=2", "--set", "attack.steps=1")
    ran(advkit, "train", "--plugins", "acme-margin,cat-eps,ema", *small, "--out", "run", cwd=tmp_path)
    ran(advkit, "evaluate", "run", "--attacks", "clean,pgd-2", "--n", "20", cwd=tmp_path)
    ran(advkit, "report", "run", "--out", "report.html", cwd=tmp_path)
    ran(advkit, "train", "--recipe", "trades-mini", "--print-config", cwd=tmp_path)
