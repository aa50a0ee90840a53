"""What is installed is found whatever else is installed: a broken distribution ends nothing but itself."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import field_validator

import advkit
from advkit import DataError, HookContract, OptionError, PluginImport, option, registry
from advkit.cli.main import run
from advkit.config.layer import Layer
from advkit.config.request import Request
from advkit.config.resolve import Resolved, resolve
from advkit.evaluation.attacks import parse_attack
from advkit.models.base import DataSpec
from advkit.options import OptionModel, validate
from advkit.training.parts import build_model


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
    assert run(["plan", "--plugins", "cat-eps"]) == 0 and run(["plugins", "list"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(" can not")[0] for line in said] == [
        "Caution: The entry points of the installed distribution broken_one"
    ] * (how != "metadata of bytes")
    assert set(registry.names("plugin")) - {"x"} == before and "cat-eps" in before
    assert [*importlib.metadata.entry_points(group="pytest11")], "so ask others, such as torch"
    assert run(["recipes", "list"]) == 0
    assert registry.load("plugin", "cat-eps").__module__ == "advkit_plugins.cat_eps"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["metadata of bytes", "no value"])
def test_nor_does_it_in_a_process_of_its_own(tmp_path: Path, how: str) -> None:
    """Where nothing has been imported before; pydantic and torch look at what is installed, too."""
    install(tmp_path, "broken_one", *BROKEN[how])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    line = [sys.executable, "-m", "advkit", "env"]
    ran = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr.count("Caution: "), len(ran.stderr.splitlines())) == (
        0,
        *[how == "no value"] * 2,
    )


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


OF_OTHERS = """
from torch import nn
from advkit import EvaluationAttack, load_data
from advkit.data.base import DataSource
from advkit.models.base import ModelBuilder


class Data(DataSource):
    name = "acme"

    def load(self, root, limit):
        return does(lambda: load_data("digits", limit=limit))


class Net(ModelBuilder):
    name = "acme"

    def build(self, spec):
        return does(lambda: nn.Linear(1, 1))


class Attack(EvaluationAttack):
    name = "acme"

    @classmethod
    def spelled(cls, typed):
        return does(cls)

    def perturb(self, net, x, y, radius, index):
        return x


def does(work):
    return """
CALLS: dict[str, Callable[..., object]] = {
    "load of the data set": lambda: advkit.load_data("acme", limit=10),
    "build of the model": lambda: build_model(
        Resolved.of(Request((Layer("a test", {"model.name": "acme"}),))), DataSpec(2, 1, 1, 1, (0.0,), (1.0,))
    ),
    "spelled of the attack": lambda: parse_attack("acme"),
}


@pytest.fixture
def acme(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of a package with a data set, a net and an attack."""
    groups = {"datasets": "Data", "models": "Net", "attacks": "Attack"}
    points = "".join(f"[advkit.{group}]\nacme = acme:{name}\n" for group, name in groups.items())
    install(site, "acme", points.encode())
    (site / "acme.py").write_text(f"{OF_OTHERS}work()")
    monkeypatch.delitem(sys.modules, "acme", raising=False)
    yield importlib.import_module("acme")
    sys.modules.pop("acme")


@pytest.mark.parametrize("what", CALLS)
def test_a_failure_in_a_registered_class_names_it(acme: Any, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    CALLS[what]()
    monkeypatch.setattr(acme, "does", lambda work: {}["w"])
    with pytest.raises(KeyError) as failed:
        CALLS[what]()
    assert failed.value.__notes__ == [f"in {what} acme of acme 1.0"]
    monkeypatch.setattr(acme, "does", lambda work: "nothing")
    with pytest.raises(HookContract, match=rf"^{what} acme of acme 1\.0 returns 'nothing'; return "):
        CALLS[what]()


@pytest.mark.parametrize(
    ("what", "kind", "code"),
    [
        ("load of the data set", DataError, 4),
        ("build of the model", PluginImport, 4),
        ("spelled of the attack", OSError, None),
    ],
)
def test_a_file_that_a_registered_class_lacks_is_said_to_be_absent(
    acme: Any, what: str, kind: type[Exception], code: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: object) -> None:
        raise FileNotFoundError(2, "No such file", "a.bin")

    monkeypatch.setattr(acme, "does", fails)
    with pytest.raises(kind) as failed:
        CALLS[what]()
    assert getattr(failed.value, "exit_code", None) == code
    if code:
        assert str(failed.value) == (
            f"{what} acme of acme 1.0 can not use a file (FileNotFoundError: [Errno 2] No such file: 'a.bin'); "
            "restore it."
        )


class Mine(OSError):
    """A class of a script's own."""


def test_an_exception_of_ones_own_is_no_such_file(acme: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object) -> None:
        raise Mine

    monkeypatch.setattr(acme, "does", fails)
    with pytest.raises(Mine):
        CALLS["load of the data set"]()


@pytest.mark.parametrize(
    ("defaults", "sentence"),
    [
        (
            {"nope.x": 1},
            "Unknown setting nope.x. `advkit plan` lists them all. {} suggests it, in defaults; mend that.",
        ),
        (
            {"attack.eps": "x"},
            "attack.eps = 'x' is not a number, a fraction such as 8/255, or a multiple of eps such as 'eps/4'. {} "
            "suggests it, in defaults; set attack.eps, or mend that.",
        ),
        (
            {"model.wide": 3},
            "Unknown option model.wide. Did you mean width? Known: normalise, width, norm. {} suggests it, in "
            "defaults; mend that.",
        ),
        (
            {"attack.eps": 2.0},
            "attack.eps is above 1, but images lie in [0, 1]; a budget of 8 gray levels is 8/255. {} suggests it, in "
            "defaults; set attack.eps, or mend that.",
        ),
        (
            {"model.name": "net.py:net", "model.depth": {1: 2}},
            "model.depth = {{1: 2}} must be a number, a text, true or false, or a list. {} suggests it, in defaults; "
            "set model.depth, or mend that.",
        ),
        ([1], "{}: defaults must be settings and values, such as {{'attack.eps': 0.1}}, not [1]."),
    ],
)
def test_what_a_data_set_suggests_must_be_settings(acme: Any, defaults: object, sentence: str) -> None:
    acme.Data.defaults = defaults
    with pytest.raises(OptionError) as refused:
        resolve((), [Layer("a test", {"data.name": "acme"})])
    assert str(refused.value) == sentence.format("Data set acme of acme 1.0")


def test_so_does_one_in_a_validator_of_options() -> None:
    class Options(OptionModel):
        width: int = option(1, help="width")

        @field_validator("width")
        @classmethod
        def known(cls, width: int) -> int:
            return {1: 1}[width]

    assert validate(Options, {"width": 1}, where="acme").width == 1
    with pytest.raises(KeyError) as failed:
        validate(Options, {"width": 2}, where="acme")
    assert failed.value.__notes__ == [f"in the validators of {__name__}.{Options.__qualname__}"]
