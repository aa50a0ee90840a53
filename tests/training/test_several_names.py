"""A net whose modules and tensors have several names trains, is averaged and judged as one whose have one each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from in_processes import Ends
from methods import pictures, tiny_net
from torch import Tensor, nn
from torch.nn import Parameter

import advkit
from advkit import Splits, call_at
from advkit.errors import Stopped
from advkit.training.result import TrainResult


class Wrapped(nn.Module):
    """A net, of which `several` keeps parts by names of their own and all but the last in a row, as many people do."""

    def __init__(self, several: bool) -> None:
        super().__init__()
        self.net = tiny_net(batch_norm=True, dropout=0.2, dtype=torch.float64)
        if several:
            self.norm, self.head, self.body = self.net[1], self.net[5], self.net[:-1]

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x)) if hasattr(self, "head") else self.net(x)


def trained(several: bool, plugins: str, **given: Any) -> TrainResult:
    options = {"ema": {"buffers": "re-estimated"}} if "ema" in plugins else {}
    settings = {"attack.steps": 2, "attack.step_size": 0.05, "run.check_hooks": True}
    data = Splits(pictures(20), pictures(), "none")
    return advkit.train(
        Wrapped(several), data, plugins, options=options, epochs=2, batch_size=9, eps=0.1, settings=settings, **given
    )


@pytest.mark.parametrize("plugins", ["", "cat-eps,lsiw,ema", "cure"])
def test_it_trains_to_the_same_bits(plugins: str, tmp_path: Path) -> None:
    one, several = trained(False, plugins), trained(True, plugins)
    weights, start = several.model.state_dict(), Wrapped(True).state_dict()
    assert set(weights) > set(one.model.state_dict()) and not torch.equal(weights["head.bias"], start["head.bias"])
    assert all(torch.equal(weights[name], value) for name, value in one.model.state_dict().items())
    assert torch.equal(weights["body.1.running_mean"], weights["net.1.running_mean"])
    assert all(torch.equal(several.averaged[name], value) for name, value in one.averaged.items())
    figures = [[{**row, "seconds": 0} for row in result.history] for result in (one, several)]
    assert figures[0] == figures[1]
    with pytest.raises(Stopped):
        trained(True, plugins, out=tmp_path / "run", progress=Ends(2))
    resumed = trained(True, plugins, resume_from=tmp_path / "run")
    assert all(torch.equal(resumed.model.state_dict()[name], value) for name, value in weights.items())
    assert all(torch.equal(resumed.averaged[name], value) for name, value in several.averaged.items())


class Tied(nn.Module):
    """A layer of two names, and one weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.again, self.two.weight = self.one, self.one.weight

    def forward(self, x: Tensor) -> Any:
        return self.two(self.again(x))


@pytest.mark.parametrize("name", ["one.weight", "again.weight", "two.weight"])
def test_a_tensor_is_another_wherever_it_is_and_none_afterwards(name: str) -> None:
    net, x = Tied(), torch.ones(1, 3)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with torch.no_grad():
        logits = call_at(net, {name: 2 * net.one.weight}, x)
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
        net.one.weight *= 2
        assert torch.equal(logits, net(x)) and net.two.weight is net.one.weight
        assert isinstance(net.one.weight, Parameter)
