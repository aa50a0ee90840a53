"""What a bug report needs, whether an installation works, and shell completion."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from advkit import registry
from advkit.cli.main import run
from advkit.config import recipes

SCRIPT = Path(sys.executable).with_name("advkit")


def advkit(capsys: pytest.CaptureFixture[str], *line: str) -> tuple[int, str, str]:
    code = run(list(line))
    out, err = capsys.readouterr()
    return code, out, err


def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str) -> None:
    """A distribution acme with the plugin `odd`."""
    (tmp_path / "odd_module.py").write_text(source)
    info = tmp_path / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[advkit.plugins]\nodd = odd_module:Odd\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "odd_module", raising=False)


# ---------------------------------------------------------------------- env and doctor


def test_env(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("ADVKIT_TRACEBACK", "1")
    found = json.loads(advkit(capsys, "env", "--json")[1])
    assert found["torch"] == torch.__version__ and found["threads"] == torch.get_num_threads()
    assert found["plugins"].keys() >= {"awp", "lsiw", "eps-ramp"} and "digits" in found["data sets"]
    assert found["variables"]["ADVKIT_TRACEBACK"] == "1" and "command" not in found
    code, out, err = advkit(capsys, "env")
    assert (code, err) == (0, "") and torch.__version__ in out and "awp" in out


@pytest.mark.filterwarnings("error::advkit.errors.Caution")
def test_doctor_finds_nothing_wrong_here(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = advkit(capsys, "doctor")
    lines = out.splitlines()
    assert (code, err) == (0, "") and all(line.startswith("ok    ") for line in lines)
    checked = [line.removeprefix("ok    ").split(":")[0] for line in lines]
    assert checked[:3] == ["requirements", "torch", "training"]
    for kind in registry.GROUPS:
        assert [f"{kind} {name}" for name in registry.names(kind)] == [c for c in checked if c.startswith(f"{kind} ")]


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (
            "import nothing_of_that_name\n",
            "FAIL  plugin odd: The plugin odd of distribution acme can not be imported "
            "(ModuleNotFoundError: No module named 'nothing_of_that_name'); reinstall or repair it.",
        ),
        (
            "from advkit import Plugin, hookimpl\n"
            "class Odd(Plugin):\n"
            "    name = 'odd'\n"
            "    @hookimpl\n"
            "    def base_los(self, batch):\n"
            "        return batch.y\n",
            "FAIL  plugin odd: Plugin odd marks base_los as a hook, but there is no such hook. "
            "Did you mean base_loss? docs/hooks.md lists them.",
        ),
    ],
)
def test_doctor_finds_a_broken_plugin_and_goes_on(
    source: str, sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from advkit.cli import doctor

    monkeypatch.setattr(doctor, "trained_twice", lambda: "left out here")
    install(monkeypatch, tmp_path, source)
    code, out, err = advkit(capsys, "doctor")
    assert code == 1 and err == "1 checks failed. `advkit env` shows what a bug report needs.\n"
    assert [line for line in out.splitlines() if line.startswith("FAIL")] == [sentence]
    assert out.splitlines()[-1].startswith("ok    terminal")


def test_doctor_finds_runs_that_differ(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from advkit.cli import doctor
    from advkit.storage import checkpoint

    load, seen = checkpoint.load, []

    def drifting(path: Path):  # type: ignore[no-untyped-def]
        tensors, state = load(path)
        seen.append(path)
        return {n: v + len(seen) if n == "model/1.weight" else v for n, v in tensors.items()}, state

    monkeypatch.setattr(checkpoint, "load", drifting)
    with pytest.raises(RuntimeError, match=r"two runs of one seed differ in model/1\.weight; set run\.threads=1"):
        doctor.trained_twice()


def test_doctor_finds_an_old_requirement(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    from advkit.cli import doctor

    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.26.0" if name == "numpy" else "99.0")
    assert "numpy 1.26.0" in doctor.requirements()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.9.5" if name == "numpy" else "99.0")
    with pytest.raises(RuntimeError, match=r"numpy 1\.9\.5 is older than 1\.26; upgrade it"):
        doctor.requirements()


# ---------------------------------------------------------------------- completion


def completed(*words: str) -> list[str]:
    """What bash would offer for the last word."""
    asked = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1), "_ADVKIT_COMPLETE": "bash_complete"}
    ran = subprocess.run([SCRIPT], env=os.environ | asked, capture_output=True, text=True, check=True)
    assert ran.stderr == ""
    return [line.partition(",")[2] for line in ran.stdout.splitlines()]


def test_names_are_completed() -> None:
    assert completed("advkit", "do") == ["doctor"]
    assert completed("advkit", "train", "--recipe", "iseat-s") == [
        "iseat-svhn",
        "iseat-svhn-mini",
        "iseat-swa",
        "iseat-swa-mini",
    ]
    assert completed("advkit", "train", "--plugins", "lsiw,cat-e") == ["lsiw,cat-eps"]
    assert "lsiw,awp" in completed("advkit", "plan", "--plugins", "lsiw,a")
    assert "awp,lsiw,awp" not in completed("advkit", "plan", "--plugins", "awp,lsiw,a"), "each once"
    assert completed("advkit", "train", "--dataset", "dig") == ["digits"]
    assert completed("advkit", "train", "--model", "small") == ["small-cnn"]
    assert completed("advkit", "recipes", "show", "trades-a") == ["trades-awp", "trades-awp-mini"]
    assert completed("advkit", "plugins", "show", "eps") == ["eps-ramp"]


def test_completion_imports_neither_torch_nor_plugins() -> None:
    program = """
import os, sys
os.environ.update(_ADVKIT_COMPLETE="bash_complete", COMP_WORDS="advkit train {flag} ", COMP_CWORD="3")
from advkit.cli.main import run
run([])
print("HEAVY", sorted({{"torch", "numpy", "pydantic", "advkit_plugins"}} & sys.modules.keys()))
"""
    for flag in ("--plugins", "--recipe", "--model", "--dataset"):
        source = program.format(flag=flag)
        ran = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
        assert ran.stdout.splitlines()[-1] == "HEAVY []" and len(ran.stdout.splitlines()) > 3, flag


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_every_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = advkit(capsys, "completion", shell)
    assert (code, err) == (0, "") and "_ADVKIT_COMPLETE" in out and f"{shell}_complete" in out
    if binary := shutil.which(shell):
        subprocess.run([binary, "-n"], input=out, text=True, check=True, capture_output=True)


def test_all_recipes_are_offered() -> None:
    assert completed("advkit", "plan", "--recipe", "") == recipes.names()
