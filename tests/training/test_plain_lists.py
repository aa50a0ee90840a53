"""Parameters in plain lists and dicts of a net, which nothing trains, are told at the first step."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from advkit import Step


class Net(nn.Module):
    """Two layers and, of images (B, 1, 4, 4), those between them that it holds as its own."""

    def __init__(self, hold: Callable[[Net], object]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 4), nn.Linear(4, 3)
        self.held = hold(self)

    def forward(self, x: Tensor) -> Tensor:
        between = self.held if isinstance(self.held, nn.ModuleList) else []
        logits: Tensor = self.last(nn.Sequential(*between)(self.first(x.flatten(1))))
        return logits


def said(net: nn.Module, *more: nn.Parameter) -> list[str]:
    optimizer = torch.optim.SGD([*net.parameters(), *more], lr=0.1)
    step = Step(net, optimizer, [], num_samples=4, eps=0.1, settings={"attack.steps": 1})
    x = torch.linspace(0, 1, 64).view(4, 1, 4, 4)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            step(x, torch.arange(4) % 3, torch.arange(4), epoch=0)
    return [str(one.message) for one in told]


class Holder:
    def __init__(self) -> None:
        self.scale = nn.Parameter(torch.ones(()))


@pytest.mark.parametrize(
    ("hold", "name"),
    [
        (lambda net: [nn.Linear(4, 4), nn.Linear(4, 4)], "self.held.weight of the model and 3 more ask for a gradient"),
        (lambda net: {"scale": nn.Parameter(torch.ones(()))}, "self.held.scale of the model asks for a gradient"),
        (
            lambda net: [nn.Sequential(nn.Linear(4, 4, bias=False))],
            "self.held.0.weight of the model asks for a gradient",
        ),
        (lambda net: Holder(), "self.held.scale of the model asks for a gradient"),
    ],
)
def test_who_is_never_trained_is_told_once(hold: Callable[[Net], object], name: str) -> None:
    (sentence,) = said(Net(hold))
    assert sentence.startswith(name) and "no optimizer finds them, so they never change" in sentence


@pytest.mark.parametrize(
    "hold",
    [
        lambda net: [net.first, net.last.weight],  # a second way to what is registered
        lambda net: nn.ModuleList([nn.Linear(4, 4)]),
        lambda net: [nn.Linear(4, 4).requires_grad_(False)],  # a teacher
        lambda net: [torch.zeros(4)],
        lambda net: [nn.Linear(4, 4, device="meta")],  # the form of an ensemble, for torch.func.functional_call
    ],
)
def test_what_is_registered_or_meant_is_no_news(hold: Callable[[Net], object]) -> None:
    assert said(Net(hold)) == []


def test_what_the_optimizer_has_is_trained() -> None:
    net = Net(lambda net: [nn.Parameter(torch.ones(3))])
    assert said(net, net.held[0]) == []  # type: ignore[index]
