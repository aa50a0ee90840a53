"""What a plugin declares for an epoch it declares once: the plan, the passes and the forwards of a step rest on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import pytest
import torch
from methods import pictures, tiny_net
from torch import Tensor, nn

import advkit
from advkit import HookContract, Plugin, Splits, hookimpl

SETTINGS = {"attack.steps": 0, "validation.fraction": 0}


def net() -> nn.Module:
    return tiny_net(batch_norm=False, dropout=0.0, dtype=torch.float32)


class Norm(Plugin):
    name = "norm"

    @hookimpl
    def extra_regularizer(self, adv_logits: Tensor, clean_logits: Tensor | None) -> Tensor:
        return (adv_logits if clean_logits is None else adv_logits - clean_logits).square().sum(1)


def says(name: str, answers: Iterator[Any]) -> type[Norm]:
    """It gives the answers one after another, whatever it is asked about."""
    return type("Says", (Norm,), {name: lambda self, hook, epoch: next(answers)})


def train(plugin: type[Plugin], epochs: int = 3) -> advkit.TrainResult:
    data = Splits(pictures(8), pictures(), "none")
    return advkit.train(net(), data, [plugin], epochs=epochs, batch_size=4, eps=0.1, settings=SETTINGS)


@pytest.mark.parametrize(
    ("name", "one", "other", "said"),
    [
        ("active", True, False, "active of extra_regularizer in epoch"),
        ("demands", {"adv_logits"}, {"adv_logits", "clean_logits"}, "demands of extra_regularizer in epoch"),
        ("detached", (), {"adv_logits"}, "detached of extra_regularizer in epoch"),
    ],
)
def test_who_says_now_this_now_that_is_named(name: str, one: Any, other: Any, said: str) -> None:
    for answers in (cycle([one, other]), cycle([one, other, other])):
        with pytest.raises(HookContract, match=f"Plugin norm: {said}.*when the run was planned; let it depend"):
            train(says(name, answers))


def test_who_looks_at_what_it_has_seen_is_named() -> None:
    class Seen(Norm):
        steps = 0

        def active(self, hook: str, epoch: int) -> bool:
            return hook != "extra_regularizer" or self.steps < 3

        @hookimpl
        def after_update(self) -> None:
            self.steps += 1

    with pytest.raises(HookContract, match="in epoch 2 is False, and was True when the run was planned"):
        train(Seen)


@pytest.mark.parametrize("active", [lambda epoch: epoch > 0, lambda epoch: epoch % 2 == 0, lambda epoch: False])
def test_what_depends_on_the_epoch_is_fine(active: Callable[[int], bool]) -> None:
    result = train(type("Fine", (Norm,), {"active": lambda self, hook, epoch: active(epoch)}))
    assert len(result.history) == 3


def test_a_weight_without_its_term_is_fine() -> None:
    class Weighs(Plugin):
        name = "weighs"
        terms = ("norm",)

        @hookimpl
        def instance_weight(self, adv_logits: Tensor) -> Tensor:
            return torch.ones_like(adv_logits[:, 0])

    late = type("Late", (Norm,), {"active": lambda self, hook, epoch: epoch == 1})
    data = Splits(pictures(8), pictures(), "none")
    result = advkit.train(net(), data, [late, Weighs], epochs=2, batch_size=4, eps=0.1, settings=SETTINGS)
    assert len(result.history) == 2
