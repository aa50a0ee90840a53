"""A net that becomes another within a stage is seen: at every tenth epoch's first step, and at each of long epochs.

Where its gradient at other weights is then a wrong one, at every epoch's first step; with run.check_hooks at any.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from methods import pictures, tiny_net
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import advkit
from advkit import OptionError, Splits, Step
from advkit.training import care


class Turns(nn.Module):
    """Another from where `turned` says so."""

    turned = False

    def __init__(self, *, batch_norm: bool) -> None:
        super().__init__()
        self.core = tiny_net(batch_norm=batch_norm, dropout=0.0, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.other(x) if self.turned else self.core(x)
        return logits

    def other(self, x: Tensor) -> Any:
        raise NotImplementedError


class Checkpoints(Turns):
    def other(self, x: Tensor) -> Any:
        return checkpoint(self.core, x, use_reentrant=False)


class Halves(Turns):
    def other(self, x: Tensor) -> Any:
        return self.core((x.half() / 2).float() * 2)


CASES = [
    (Checkpoints(batch_norm=True), (), "the model computes its forward again in the backward"),
    (Halves(batch_norm=False), (), "The model computes in half precision inside its forward"),
]


@pytest.mark.parametrize(("net", "plugins", "said"), CASES)
def test_it_is_seen_within_ten_epochs(net: Turns, plugins: tuple[str, ...], said: str) -> None:
    net.turned = False
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    step = Step(net, optimizer, plugins, num_samples=4, eps=0.1, settings={"attack.steps": 1})
    x, rows = pictures(4).images / 255, torch.arange(4)
    for epoch, turned in ((0, False), (1, True), (9, True)):
        net.turned = turned
        step(x, rows % 3, rows, epoch=epoch)
    with pytest.raises(OptionError, match=said):
        step(x, rows % 3, rows, epoch=10)


@pytest.mark.parametrize("plugins", ["awp", "lsiw"])
def test_wrong_gradients_elsewhere_are_seen_at_once(plugins: Any) -> None:
    """Those of a net that begins to compute again, in the next epoch, or with run.check_hooks in the next step."""
    x, rows = pictures(4).images / 255, torch.arange(4)
    for check, epoch in ((False, 1), (True, 0)):
        net = Checkpoints(batch_norm=False)
        settings = {"attack.steps": 1, "run.check_hooks": check}
        optimizer = torch.optim.SGD(net.parameters(), 0.01)
        step = Step(net, optimizer, plugins, num_samples=4, eps=0.1, settings=settings)
        for _ in range(2):
            step(x, rows % 3, rows, epoch=0)
        net.turned = True
        with pytest.raises(OptionError, match="gradient at perturbed weights is off by"):
            step(x, rows % 3, rows, epoch=epoch)


def test_it_is_seen_in_the_next_of_long_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first step of epoch 0."""

    class Late(Checkpoints):
        forwards = 0

        @property
        def turned(self) -> bool:  # type: ignore[override]
            Late.forwards += self.training
            return Late.forwards > 6

    data, settings = Splits(pictures(8), pictures(), "none"), {"attack.steps": 0, "validation.fraction": 0}
    arguments: dict[str, Any] = {"epochs": 3, "batch_size": 4, "eps": 0.1, "settings": settings}
    advkit.train(Late(batch_norm=True), data, (), **arguments)
    Late.forwards = 0
    monkeypatch.setattr(care, "MANY", 2)
    with pytest.raises(OptionError, match="the model computes its forward again in the backward"):
        advkit.train(Late(batch_norm=True), data, (), **arguments)
