"""The examples are run as a reader would run them: loops, a third party's package, a notebook."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import advkit
from advkit.cli.main import run
from advkit.testing import CHECKS, Subject

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
OWN_LOOP = ROOT / "examples" / "own_loop.py"
PACKAGE = ROOT / "examples" / "third_party_plugin"
METHOD = ROOT / "examples" / "zero_grad"
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


def install(package: Path, site: Path) -> Path:
    """Put into `site` what installing a package puts into site-packages; no network, no build."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    module = project["name"].replace("-", "_")
    (site / f"{module}.py").write_text((package / f"{module}.py").read_text())
    info = site / f"{module}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [
        line
        for group, points in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return site


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the first package is installed."""
    return install(PACKAGE, tmp_path_factory.mktemp("site"))


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


# ---------------------------------------------------------------------- loops of other libraries, and the notebook


@pytest.mark.parametrize(
    ("script", "libraries"), [("lightning_loop", ["lightning"]), ("hf_trainer", ["transformers", "accelerate"])]
)
def test_a_loop_of_another_library_trains(script: str, libraries: list[str]) -> None:
    for library in libraries:
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    ran = python(ROOT / "examples" / f"{script}.py", "--epochs", "2", "--limit", "200")
    assert ran.returncode == 0 and re.search(r"^clean 0\.\d+  pgd-10 0\.\d+$", ran.stdout, re.M), (
        ran.stdout + ran.stderr
    )


class Module(nn.Module):
    """As much of lightning.LightningModule as the example uses."""

    current_epoch = 0

    def log(self, name: str, value: torch.Tensor, **how: bool) -> None:
        assert name == "loss" and value.dim() == 0

    def optimizer_step(self, optimizer: torch.optim.Optimizer, closure: Callable[[], object]) -> None:
        optimizer.step(closure)


def imported(script: str, monkeypatch: pytest.MonkeyPatch, **stubs: SimpleNamespace) -> ModuleType:
    """An example as a module, with stand-ins for its libraries."""
    for name, stub in stubs.items():
        monkeypatch.setitem(sys.modules, name, stub)
    spec = importlib.util.spec_from_file_location(script, ROOT / "examples" / f"{script}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


OF_CLASSES = ("ikl", "te")
"""Plugins that keep state of the size of the classes, whose number the loop has to tell them."""


def a_net(tiny_net: Callable[..., nn.Module]) -> tuple[nn.Module, torch.optim.Optimizer]:
    net = tiny_net(batch_norm=True)
    return net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


def plainly(
    tiny_net: Callable[..., nn.Module], batches: list[torch.Tensor], x: torch.Tensor, y: torch.Tensor
) -> nn.Module:
    """The same two epochs by `step(...)` in a loop."""
    net, optimizer = a_net(tiny_net)
    step = advkit.Step(net, optimizer, "awp,cat-eps", num_samples=len(x), eps=0.15, settings={"run.epochs": 2}, seed=0)
    for epoch in range(2):
        for index in batches:
            step(x[index], y[index], index, epoch=epoch)
    return net


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    return all(value.equal(other.state_dict()[name]) for name, value in one.state_dict().items())


def test_lightnings_loop_takes_the_steps_of_a_plain_one(
    tiny_net: Callable[..., nn.Module], tiny_batch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = imported("lightning_loop", monkeypatch, lightning=SimpleNamespace(LightningModule=Module))
    x, y, index = tiny_batch(6)
    net, optimizer = a_net(tiny_net)
    data = SimpleNamespace(labels=y, classes=("a", "b", "c"), shape=x.shape[1:])
    loop = module.Adversarial(net, "awp,cat-eps", data, 2)
    batches = list(index.split(3))
    for loop.current_epoch in range(2):
        for number, part in enumerate(batches):

            def closure(part: torch.Tensor = part, number: int = number) -> None:
                loss = loop.training_step([x[part], y[part], part], number)
                optimizer.zero_grad()
                loss.backward()

            loop.optimizer_step(optimizer, closure)
    assert same_weights(net, plainly(tiny_net, batches, x, y))
    checkpoint: dict[str, Any] = {}
    loop.on_save_checkpoint(checkpoint)
    again = module.Adversarial(a_net(tiny_net)[0], "awp,cat-eps", data, 2)
    again.on_load_checkpoint(checkpoint)
    assert again.attacked.state_dict().keys() == checkpoint["advkit"].keys() != set()
    for plugin in OF_CLASSES:
        assert module.Adversarial(a_net(tiny_net)[0], plugin, data, 4).attacked.state.image_shape == (2, 4, 4)


def test_hugging_faces_trainer_takes_the_steps_of_a_plain_one(
    tiny_net: Callable[..., nn.Module], tiny_batch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trainer:
        def __init__(self, model: nn.Module, args: Any, train_dataset: Any) -> None:
            self.state = SimpleNamespace(epoch=None)

        def add_callback(self, callback: Any) -> None:
            self.callback = callback

    stub = SimpleNamespace(Trainer=Trainer, TrainerCallback=object, TrainingArguments=object)
    module = imported("hf_trainer", monkeypatch, transformers=stub)
    x, y, index = tiny_batch(6)
    net, optimizer = a_net(tiny_net)
    arguments = SimpleNamespace(num_train_epochs=2.0, seed=0)
    data = SimpleNamespace(classes=("a", "b", "c"), shape=x.shape[1:])
    trainer = module.Adversarial(net, "awp,cat-eps", data, arguments, range(6))
    for plugin in OF_CLASSES:
        long = SimpleNamespace(num_train_epochs=4.0, seed=0)
        assert module.Adversarial(a_net(tiny_net)[0], plugin, data, long, range(6)).attacked.state.image_shape == (
            2,
            4,
            4,
        )
    batches = list(index.split(3))
    for epoch in range(2):
        for number, part in enumerate(batches):
            inputs = {"pixel_values": x[part], "labels": y[part], "index": part}
            trainer.compute_loss(net, inputs, return_outputs=False, num_items_in_batch=3).backward()
            optimizer.step()
            trainer.callback.on_optimizer_step(arguments, trainer.state, None)
            optimizer.zero_grad()
            trainer.state.epoch = epoch + (number + 1) / len(batches)  # as the library counts them
    assert same_weights(net, plainly(tiny_net, batches, x, y))


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((ROOT / "examples" / "notebook.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) == 4 and not any(cell.get("outputs") for cell in notebook["cells"]), "stored without its output"
    known: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells:
        exec(compile(cell, "notebook.ipynb", "exec", dont_inherit=True), known)
    out = capsys.readouterr().out
    assert (
        "alarms:" in out and "run-1-evaluations" in out and (tmp_path / "notebook-report.html").stat().st_size > 10_000
    )


# ---------------------------------------------------------------------- a method that is none of the built-ins


@pytest.fixture(scope="module")
def zero_grad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a package with a method of one's own is installed."""
    return install(METHOD, tmp_path_factory.mktemp("method"))


@pytest.fixture(scope="module")
def examined(zero_grad: Path) -> Subject:
    """One for all checks: what it was found to do is kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(zero_grad)
        return Subject.of("zero-grad", {"q": 0.35}, {"q": 0.0})


@pytest.mark.parametrize("check", [name for name in CHECKS if name != "compile"])  # that its own tests run
def test_a_method_of_a_package_conforms(
    check: str, examined: Subject, zero_grad: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(zero_grad)
    finding = CHECKS[check].outcome(examined)
    idle = {"optimum", "nan", "places", "state", "gradient", *(() if torch.cuda.is_available() else ("cuda",))}
    assert finding.state == ("not run" if check in idle else "holds"), finding


def test_a_method_of_a_package_trains_beside_two_built_ins(
    zero_grad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(zero_grad)
    words = "--limit 40 --epochs 1 --set attack.steps=1 --set attack.init=uniform --set model.width=2 --progress none"
    losses = []
    for plugins in ("trades,ema", "trades,ema,zero-grad"):
        folder = tmp_path / plugins
        assert run(["train", "--plugins", plugins, *words.split(), "--out", str(folder)]) == 0
        losses.append(json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["loss"])
    assert losses[0] != losses[1]
    planned = json.loads(python("-m", "advkit", "plan", "--plugins", plugins, "--json", on_path=zero_grad).stdout)
    assert planned["hooks"]["attack_move"] == ["zero-grad"]


def test_a_method_of_a_package_is_short_and_names_public_things_only() -> None:
    source = (METHOD / "advkit_zero_grad.py").read_text()
    assert len(source.splitlines()) < 60
    imported = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    names = {alias.name for node in imported if node.module == "advkit" for alias in node.names}
    assert names <= {*advkit.__all__} and {node.module for node in imported} <= {"advkit", "torch", "__future__"}
