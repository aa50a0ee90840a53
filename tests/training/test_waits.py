"""A step waits once for the device it runs on: for whether what it computed, and what it left, is finite."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from advkit import Batch, NonFinite, Plugin, Step, hookimpl
from advkit.testing.small import batches, step_of, tiny_net

READS: set[Callable[..., Any]] = {getattr(Tensor, name) for name in ("tolist", "item", "numpy", "cpu", "nonzero")}
READS |= {Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__, Tensor.__contains__}
READS |= {torch.nonzero, torch.equal, Tensor.equal, torch.allclose, Tensor.allclose, torch.unique, Tensor.unique}
METHODS = ["", "trades", "mart", "awp", "cat-eps,dirichlet-ls,lsiw", "lsr", "las-at", "gairat", "mlcat", "gradalign"]


def net_of() -> nn.Module:
    return tiny_net(batch_norm=True, dropout=0.3, dtype=torch.float32)


class Reads(TorchFunctionMode):
    """Where values of tensors are read, which waits for a device, by name of the file."""

    def __init__(self) -> None:
        super().__init__()
        self.files = list[str]()

    def __torch_function__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if call in READS:
            frames = [frame for frame in traceback.extract_stack()[:-1] if "/torch/" not in frame.filename]
            self.files.append(Path(frames[-1].filename).name)
        return call(*args, **(kwargs or {}))


def reads(step: Step) -> list[str]:
    """Of a step that is not the first of its stage, which is looked at closer."""
    x, y, index = batches()[0]
    for epoch in (0, 1):
        step(x, y, index, epoch=epoch)
    with Reads() as seen:
        step(x, y, index, epoch=1)
    return seen.files


@pytest.mark.parametrize("plugins", METHODS)
def test_a_step_waits_once(plugins: str) -> None:
    assert reads(step_of(net_of(), plugins.split(",") if plugins else [])) == ["sums.py"]


class Logs(Plugin):
    name = "logs"

    @hookimpl
    def after_update(self, model: nn.Module) -> None:
        float(next(model.parameters()).detach().sum())


def test_a_plugin_that_waits_is_seen() -> None:
    assert reads(step_of(net_of(), [Logs])) == [Path(__file__).name, "sums.py"]


class Breaks(Plugin):
    """A loss of NaN when it is told to, and an `after_update` that fails at weights that are not finite."""

    name = "breaks"
    terms = ("base_loss",)
    factor = 1.0

    @hookimpl
    def base_loss(self, batch: Batch, adv_logits: Tensor) -> Tensor:
        return self.factor * nn.functional.cross_entropy(adv_logits, batch.y, reduction="none")

    @hookimpl
    def after_update(self, model: nn.Module) -> None:
        if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
            raise ValueError("the average has no value")


def test_what_fails_after_nan_fails_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    net = net_of()
    step = step_of(net, [Breaks])
    x, y, index = batches()[0]
    step(x, y, index, epoch=0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    monkeypatch.setattr(Breaks, "factor", torch.nan)
    with pytest.raises(NonFinite, match=r"NaN or Inf in the loss \(term base_loss\)"):
        step(x, y, index, epoch=0)
    assert step.state.step == 1
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_gradient_is_told_by_its_name_after_clipping_spread_it() -> None:
    net = net_of()
    step = step_of(net, [])
    x, y, index = batches()[0]
    step(x, y, index, epoch=0)
    named = dict(net.named_parameters())
    last = [*named][-1]
    named[last].register_hook(lambda gradient: gradient * torch.nan if step.state.step else gradient)
    step.optimizer.register_step_pre_hook(lambda *_: nn.utils.clip_grad_norm_(net.parameters(), 1.0) and None)
    with pytest.raises(NonFinite, match=rf"a parameter gradient \({last}\)"):
        step(x, y, index, epoch=0)
