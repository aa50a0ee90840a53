"""Under torch.set_default_device("meta") results are what they are without it, or one sentence says what to do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import advkit
from advkit import OptionError, Step


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


@pytest.fixture
def data() -> advkit.Dataset:
    return advkit.load_data("digits", limit=20).test


@pytest.fixture
def meta(net: nn.Module, data: advkit.Dataset) -> Iterator[None]:
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def test_nets_are_judged_as_ever(net: nn.Module, data: advkit.Dataset, meta: None) -> None:
    def judged() -> list[list[bool]]:
        result = advkit.evaluate(net, data, "clean,pgd-2,square", eps=0.1, audit=False)
        return list(result.robust.values())

    there = judged()
    torch.set_default_device(None)
    assert judged() == there and any(there[0])


def test_data_and_weights_are_made_with_values(meta: None) -> None:
    assert advkit.load_data("digits", limit=10).train.index.device.type == "cpu"
    trained = advkit.train("small-cnn", "digits", epochs=1, settings={"data.limit": 20, "attack.steps": 0})
    assert all(value.device.type == "cpu" for value in trained.model.state_dict().values())


def test_a_step_is_one_sentence(net: nn.Module, data: advkit.Dataset, meta: None) -> None:
    def step() -> Step:
        return Step(net, torch.optim.SGD(net.parameters(), 0.1), [], num_samples=20, eps=0.1)

    said = r"torch's default device is meta, whose tensors hold no values; call torch"
    with pytest.raises(OptionError, match=said):
        step()
    torch.set_default_device(None)
    made = step()
    torch.set_default_device("meta")
    with pytest.raises(OptionError, match=said):
        made(data.images / 255, data.labels, data.index, epoch=0)


def test_a_net_without_values_is_one_sentence(data: advkit.Dataset) -> None:
    with pytest.raises(
        OptionError, match="weight of the model is a meta tensor, which holds no values; load its weights"
    ):
        advkit.evaluate(nn.Sequential(nn.Flatten(), nn.Linear(64, 10, device="meta")), data, "clean", eps=0.1)
