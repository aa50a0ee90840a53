"""What a run's checkpoint is judged as is the net that the run itself has judged, whatever the net keeps where."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from methods import pictures
from torch import Tensor, nn

import advkit
from advkit import Splits

TOY = Splits(pictures(40), pictures(60).take(slice(40, 60)), "none")
SETTINGS = {"attack.steps": 1, "validation.steps": 1, "validation.split": "test", "optimizer.lr": 0.1}


class Tied(nn.Module):
    """Two layers of one weight, as in many a language model, and a buffer of two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.head = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 3)
        self.other.weight = self.one.weight
        self.norm = nn.BatchNorm1d(32)
        self.register_buffer("again", self.norm.running_mean)
        self.most = 0

    def forward(self, x: Tensor) -> Tensor:
        self.most = max(self.most, len(x))
        logits: Tensor = self.head(self.norm(self.other(self.one(x.flatten(1)).relu())).relu())
        return logits


@pytest.mark.parametrize("plugin", ["ema", "swa"])
@pytest.mark.parametrize("buffers", ["averaged", "re-estimated"])
def test_averages_of_tied_weights_are_read_as_they_were_judged(plugin: str, buffers: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"ema": {"decay": 0.9, "ramp": False}, "swa": {"start": 0.0}}[plugin] | {"buffers": buffers}
    given = {"options": {plugin: options}, "epochs": 2, "batch_size": 8, "eps": 0.05, "settings": SETTINGS}
    result = advkit.train(Tied(), TOY, [plugin], out=tmp_path / "run", **given)  # type: ignore[arg-type]
    net, averaged = Tied(), result.averaged
    advkit.load_weights(net, tmp_path / "run", "last")
    assert torch.equal(net.one.weight, averaged["one.weight"])
    assert torch.equal(averaged["other.weight"], averaged["one.weight"])
    assert not torch.equal(net.one.weight, result.model.one.weight)  # type: ignore[union-attr, arg-type]
    assert torch.equal(averaged["again"], averaged["norm.running_mean"])
    judged = advkit.evaluate(tmp_path / "run", TOY, "clean", checkpoint="last", model=Tied(), audit=False)
    assert judged.attacks[0].accuracy == result.history[-1]["validation"]["clean"]
    assert result.model.most == 8, "images at once, where statistics are measured again and after the last step too"


def test_a_net_that_renames_its_weights_has_no_average_by_name() -> None:
    net = Tied()
    net._register_state_dict_hook(lambda module, state, *_: state.update({"new": state.pop("head.bias")}))
    net.register_load_state_dict_pre_hook(lambda module, state, *_: state.update({"head.bias": state.pop("new")}))
    with pytest.raises(advkit.OptionError, match=r"the model's state_dict\(\) has none called head.bias; leave out"):
        advkit.train(net, TOY, ["ema"], epochs=1, batch_size=8, eps=0.05, settings=SETTINGS)


NET = """
from advkit.models.base import Normalize
from torch import nn

class Net(nn.Sequential):
    def __init__(self, spec):
        super().__init__(Normalize(spec.mean, spec.std, stored=False), nn.Flatten(), nn.Linear(32, 3))
"""


def test_statistics_that_no_checkpoint_holds_are_of_the_runs_own_images(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    model, given = f"{tmp_path}/net.py:Net", {"attacks": "clean", "checkpoint": "last", "audit": False}
    advkit.train(model, TOY, [], epochs=1, batch_size=8, eps=0.05, settings=SETTINGS, out=tmp_path / "run")
    assert advkit.evaluate(tmp_path / "run", TOY, model=model, **given).notes == []  # type: ignore[arg-type]
    with pytest.raises(advkit.DataError, match="its net normalises by their mean and deviation, which are not among"):
        advkit.evaluate(tmp_path / "run", TOY.test, model=model, **given)  # type: ignore[arg-type]
