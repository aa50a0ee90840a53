"""What is passed as an object is what is trained; a failed step leaves all as it was, whatever the model has."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from methods import pictures, tiny_net
from torch import Tensor, nn

import advkit
from advkit import OptionError, Plugin, Step, hookimpl

SETTINGS = {"attack.steps": 1, "validation.steps": 1}
BATCH = torch.rand(4, 2, 4, 4), torch.arange(4) % 3, torch.arange(4)


def net() -> nn.Sequential:
    return tiny_net(batch_norm=True, dropout=0.0, dtype=torch.float32)


def step_of(model: nn.Module, optimizer: torch.optim.Optimizer, *plugins: Any) -> Step:
    return Step(model, optimizer, plugins, num_samples=8, num_classes=3, eps=0.1, settings={"attack.steps": 1})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("data.limit", 5, "data.limit = 5 is of a data set that is named, and images were passed"),
        ("data.size", 16, "data.size = 16 is of a data set that is named"),
        ("data.root", "/nowhere", "data.root = /nowhere is of a data set that is named"),
        ("model.normalise", "none", "model.normalise is of a net that is named, and one was passed"),
        ("model.nonsense", 3, "model.nonsense is of a net that is named"),
    ],
)
def test_settings_of_names_are_refused_beside_objects(key: str, value: object, said: str) -> None:
    """They would be written down as done."""
    for call in (advkit.train, advkit.plan):
        with pytest.raises(OptionError, match=re.escape(said)):
            call(model=net(), dataset=pictures(24), plugins=(), settings={**SETTINGS, key: value}, epochs=1)
    result = advkit.train(net(), pictures(24), (), settings={**SETTINGS, "data.transform": "none"}, epochs=1)
    assert result.history[0]["samples"] > 0


class Breaks(Plugin):
    name = "breaks"

    @hookimpl
    def after_update(self) -> None:
        raise RuntimeError("of the plugin")


def test_a_failed_step_is_undone_beside_a_buffer_that_lies_on_itself() -> None:
    model = net()
    model.register_buffer("mask", torch.ones(1).expand(10))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="of the plugin"):
        step_of(model, optimizer, Breaks)(*BATCH, epoch=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not optimizer.state
    step = step_of(model, optimizer)
    loss = step.loss(*BATCH, epoch=0)
    assert torch.equal(step.again(), loss)


class Counting(torch.optim.SGD):
    """Keeps something of all parameters together."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        self.state["all"] = torch.ones(()) * float(self.param_groups[0]["lr"])  # type: ignore[index]
        return super().step(closure)


def test_an_optimizer_may_keep_what_is_of_no_parameter() -> None:
    model = net()
    optimizer = Counting(model.parameters(), 0.1)
    step_of(model, optimizer)(*BATCH, epoch=0)
    optimizer.param_groups[0]["lr"] = torch.inf
    with pytest.raises(advkit.NonFinite):
        step_of(model, optimizer)(*BATCH, epoch=0)
    assert optimizer.state["all"] == 0.1  # type: ignore[index]


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", ["sparse", "quantized"])
def test_tensors_of_other_layouts_are_refused(kind: str) -> None:
    model, dense = net(), torch.eye(3)
    other: Tensor = dense.to_sparse() if kind == "sparse" else torch.quantize_per_tensor(dense, 0.1, 0, torch.qint8)
    model.register_buffer("odd", other)
    with pytest.raises(OptionError, match=f"odd of the net is {kind}; keep it as a plain tensor"):
        step_of(model, torch.optim.SGD(model.parameters(), 0.1))


def test_a_loss_without_a_backward_is_refused() -> None:
    model = net()
    step = step_of(model, torch.optim.SGD(model.parameters(), 0.1))
    with torch.no_grad(), pytest.raises(OptionError, match=r"take it outside of torch\.no_grad"):
        step.loss(*BATCH, epoch=0)
    step.loss(*BATCH, epoch=0).backward()
