"""`hat` and `rslad` with a helper and a teacher: as any plugin, in a run that is moved, stopped and resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import advkit
from advkit import PluginOptions
from advkit.cli.main import run
from advkit.testing import CHECKS, Subject
from advkit_plugins.hat import Hat
from advkit_plugins.rslad import Rslad


def beside() -> nn.Module:
    """(B, 2, 4, 4) to (B, 3), none of the nets that are trained."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(32, 3))
    with torch.no_grad():
        net[1].weight.copy_(torch.arange(96.0).mul(1.3).sin().view(3, 32))
        net[1].bias.zero_()
    return net


class Helped(Hat):
    """HAT with a helper."""

    name = "helped"

    def __init__(self, options: PluginOptions) -> None:
        super().__init__(options, beside())


class TaughtByNet(Rslad):
    """RSLAD with a teacher."""

    name = "taught"

    def __init__(self, options: PluginOptions) -> None:
        super().__init__(options, beside())


SUBJECTS = {
    "hat": Subject(Helped, {"gamma": [[0, 1.0], [1, 0.0], [2, 0.5]]}),
    "rslad": Subject(TaughtByNet, {"temperature": 2.0}),
}
QUICK = ("step", "borrowed", "passes", "draws", "permutation", "parts", "resume", "bf16", "channels_last")


@pytest.mark.parametrize("check", [name for name in CHECKS if name in QUICK])
@pytest.mark.parametrize("name", SUBJECTS)
def test_they_conform(name: str, check: str) -> None:
    finding = CHECKS[check].outcome(SUBJECTS[name])
    assert finding.state == "holds", finding


DIGITS = ["--dataset", "digits", "--limit", "24", "--set=data.balance=true", "--set=model.width=2"]
DIGITS += ["--set=validation.steps=1", "--set=run.threads=1", "--batch-size=8"]


def test_a_helper_that_has_moved_and_one_that_is_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def advkit_(*line: str) -> tuple[int, str]:
        code = run(list(line))
        return code, capsys.readouterr().err

    std, hat = tmp_path / "std", tmp_path / "hat"
    standard = ["train", "--progress=none", *DIGITS, "--set=attack.steps=0", "--epochs=1"]
    assert advkit_(*standard, "--out", str(std)) == (0, "")
    assert advkit_(*standard, "--seed=1", "--out", str(tmp_path / "other")) == (0, "")
    line = [*DIGITS, "--set=attack.steps=1", "--plugins", "hat,ema", "--epochs=2", "-o", f"hat.helper={std}"]
    assert run(["plan", *line, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["modules"] == {"hat/helper": str(std)} and planned["passes"]["update"]["auxiliary_forward"] == 1
    assert advkit_("train", "--progress=none", *line, "--out", str(hat)) == (0, "")
    (row, _) = [json.loads(row) for row in (hat / "metrics.jsonl").read_text().splitlines()]
    assert row["passes"]["update"]["auxiliary_forward"] == row["steps"]

    std.rename(tmp_path / "moved")
    assert advkit_("train", "--resume", str(hat), "--progress=none") == (
        0, f"The run in {hat} is finished; nothing is left to do.\n"
    )  # fmt: skip
    shutil.copytree(hat, tmp_path / "anew", ignore=shutil.ignore_patterns("checkpoints"))
    code, said = advkit_("train", "--resume", str(tmp_path / "anew"))
    assert code == 4 and f"{std} does not exist; give a run folder or a file of weights." in said
    code, said = advkit_("train", "--resume", str(hat), "-o", f"hat.helper={tmp_path / 'other'}")
    assert code == 2 and said == (
        f"Error: The weights of hat/helper, {tmp_path / 'other'}, are not those that the run began with; give it the "
        "net that it had.\n"
    )
    code, said = advkit_("train", "--resume", str(hat), "-o", f"hat.helper={tmp_path / 'moved'}")
    assert code == 0 and "is finished; nothing is left to do" in said
    code, said = advkit_("train", "--resume", str(hat), "-o", "hat.gamma=1.0")
    assert code == 2 and "hat.gamma: 0.5 in the run, 1.0 now" in said


def test_what_is_said_without_a_net() -> None:
    for name, sentence in (
        ("hat", "hat.helper names no net, so nothing helps and hat is TRADES; give a run of standard training: "
                "hat.helper=RUN"),
        ("rslad", "rslad.teacher names no net, so the labels teach in its place; give a run of robust training: "
                  "rslad.teacher=RUN"),
    ):  # fmt: skip
        assert sentence in advkit.plan(name)["cautions"]
    start = "attack.init is zero, where the KL of hat has no gradient beyond rounding"
    assert any(said.startswith(start) for said in advkit.plan("hat", settings={"attack.init": "zero"})["cautions"])
