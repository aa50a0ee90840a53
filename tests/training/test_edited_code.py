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
from advkit.errors import Stopped

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
