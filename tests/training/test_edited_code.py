"""Code that is edited between a stop and a resume is told of."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from heard import Heard

import advkit
from advkit.code_digest import FORM
from advkit.errors import Stopped
from advkit.studies.report.samples import draw
from advkit.studies.report.sources import Source
from advkit.studies.subject import of_run

PENALTY = """
from advkit import Plugin, hookimpl
from torch import Tensor, nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.core = nn.Sequential(nn.Flatten(), nn.Linear(32, 3))

    def forward(self, x):
        return self.core({scale} * x)


class Pen(Plugin):
    name = "pen"

    @hookimpl
    def extra_regularizer(self, adv_logits: Tensor) -> Tensor:
        return {weight} * adv_logits.square().sum(dim=1)
"""


class After(Heard):
    def stop_requested(self) -> type[Stopped]:
        return Stopped


def imported(folder: Path, name: str, **constants: float) -> ModuleType:
    """The module as a new process would import it."""
    (folder / f"{name}.py").write_text(PENALTY.format(**{"scale": 1.0, "weight": 0.01} | constants))
    for cached in folder.glob("__pycache__/*"):
        cached.unlink()
    sys.modules.pop(name, None)
    importlib.invalidate_caches()
    return importlib.import_module(name)


def trained(written: ModuleType, **arguments: Any) -> advkit.TrainResult:
    drawn = torch.randint(0, 256, (12, 2, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    toy = advkit.Dataset("toy", drawn, torch.arange(12) % 3, ("a", "b", "c"))
    settings = {"attack.steps": 1, "validation.fraction": 0.0}
    both = advkit.Splits(toy, toy, "none")
    return advkit.train(
        written.Net(), both, [written.Pen], settings=settings, epochs=1, batch_size=4, eps=0.1, **arguments
    )


@pytest.mark.parametrize(
    ("edit", "said"),
    [({}, []), ({"weight": 5.0}, ["plugin pen"]), ({"scale": 2.0}, ["model"])],
)
def test_edited_code_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: Any, said: list[str]) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    name = "written_" + "_".join(edit or ["alike"])
    with pytest.raises(Stopped):
        trained(imported(tmp_path, name), out=tmp_path / "run", progress=After())
    recorded = json.loads((tmp_path / "run" / "environment.json").read_text())["code"]
    assert recorded.keys() == {"plugin pen", "model"}
    heard = Heard()
    trained(imported(tmp_path, name, **edit), resume_from=tmp_path / "run", progress=heard)
    differing = [sentence for sentence in heard.said if sentence.startswith("environment.json differs: code")]
    assert len(differing) == bool(said) and all(part in sentence for sentence in differing for part in said)


def test_runs_of_before_are_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Stopped):
        trained(imported(tmp_path, "written_before"), out=tmp_path / "run", progress=After())
    file = tmp_path / "run" / "environment.json"
    old = json.loads(file.read_text())
    del old["code"]
    file.write_text(json.dumps(old))
    heard = Heard()
    trained(imported(tmp_path, "written_before"), resume_from=tmp_path / "run", progress=heard)
    assert heard.said == []


# ---------------------------------------------------------------------- a registered net and its data

PACKAGE = """
from typing import final

import torch
from advkit import Dataset, DataSource, ModelBuilder, Splits
from torch import nn


@final
class Data(DataSource):
    name = "drifting-data"
    defaults = {{"attack.eps": 0.1}}
    reads = False

    def load(self, root, limit):
        images = torch.arange(12 * 16).view(12, 1, 4, 4).to(torch.uint8)
        both = Dataset("drifting-data", images, torch.arange(12) % 3, ("a", "b", "c"))
        return Splits(both, both, "none")


@final
class Net(ModelBuilder):
    name = "drifting-net"

    def build(self, spec):
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.{between}(), nn.Linear(4, spec.classes))
"""
SAID = "The code of the net, drifting-net, is another than that the run was started with"
NAMED = {"model": "drifting-net", "dataset": "drifting-data", "epochs": 1, "batch_size": 4}
ONE_STEP = {"attack.steps": 1, "validation.fraction": 0.0}


def install(site: Path, patch: pytest.MonkeyPatch, between: str = "ReLU", version: str = "1.0") -> None:
    """A distribution `drifting` at `site`, before others of its name, as a new process would find it."""
    info = site / "drifting.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: drifting\nVersion: {version}\n")
    points = "[advkit.models]\ndrifting-net = drifting:Net\n[advkit.datasets]\ndrifting-data = drifting:Data\n"
    (info / "entry_points.txt").write_text(points)
    (site / "drifting.py").write_text(PACKAGE.format(between=between))
    patch.syspath_prepend(site)
    patch.delitem(sys.modules, "drifting", raising=False)


def resumed(run: Path) -> list[str]:
    """What of environment.json is said to differ, by its keys."""
    heard = Heard()
    advkit.train(resume_from=run, progress=heard)
    return [sentence.split(": ")[1] for sentence in heard.said if sentence.startswith("environment.json differs")]


def edit(run: Path, **changed: Any) -> None:
    file = run / "environment.json"
    known = json.loads(file.read_text()) | changed
    file.write_text(json.dumps({key: value for key, value in known.items() if value is not None}))


def test_a_registered_net_of_other_code_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, heard, owner = tmp_path / "run", Heard(), "drifting 1.0"

    def notes() -> list[str]:
        return [note for note in of_run(run).record["notes"] if "drifting-net" in note]

    install(tmp_path / "first", monkeypatch)
    advkit.train(**NAMED, plugins=(), settings=ONE_STEP, out=run)
    recorded = json.loads((run / "environment.json").read_text())
    assert recorded["packages"] == {"model drifting-net": owner, "data set drifting-data": owner}
    assert recorded["code"].keys() == {"model drifting-net"}

    install(tmp_path / "elsewhere", monkeypatch)
    assert (resumed(run), notes()) == ([], [])
    install(tmp_path / "newer", monkeypatch, version="2.0")
    assert (resumed(run), notes()) == (["packages"], [])
    install(tmp_path / "edited", monkeypatch, "Tanh")
    assert (resumed(run), notes()) == (["code"], [SAID])
    taught = {"options": {"rslad": {"teacher": str(run)}}, "settings": ONE_STEP}
    advkit.train(**NAMED, plugins=["rslad"], **taught, progress=heard)
    assert f"rslad/teacher, {run}: {SAID}" in heard.said
    assert draw(Source(1, str(run)), of_run(run).splits, 1).notes == (SAID,)

    for digests in (None, 1):
        edit(run, digests=digests)
        assert (resumed(run), notes()) == ([], []), "digests of another form tell nothing"
    edit(run, digests=FORM, torch="1.0")
    assert (resumed(run), notes()) == (["torch"], []), "nor do those of another torch"
    install(tmp_path / "both", monkeypatch, "Tanh", "2.0")
    assert notes() == ["The net, drifting-net, is of drifting 2.0 now, and of drifting 1.0 when the run was started"]
    edit(run, torch=torch.__version__, packages=None, code={})
    assert (resumed(run), notes()) == ([], []), "a run of before"
