"""Attacks that take gradients by torch.func, many at once or through checkpoints get what the net itself gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import advkit
from advkit import Dataset, EvaluationAttack, OptionError, Victim
from advkit.errors import NonFinite

CLASSES = 3


class Energy(nn.Module):
    """Computes with a gradient of its own, by torch.func."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.inner, self.outer = nn.Linear(16, 16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        slope = torch.func.grad(lambda v: self.inner(v).tanh().square().sum())(x)
        logits: Tensor = self.outer(x + slope)
        return logits


class Plain(Energy):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.outer(self.inner(x.flatten(1)).tanh())
        return logits


class Root(Plain):
    """The same logits, with a gradient that is NaN."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (0 * x).sqrt().sum()


def loss(f: Callable[[Tensor], Tensor], y: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda v: F.cross_entropy(f(v), y, reduction="sum")


def one_hot(logits: Tensor) -> Tensor:
    return torch.eye(CLASSES)[:, None].expand(CLASSES, *logits.shape)


def batched(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    logits = f(x)
    return torch.autograd.grad(logits, x, one_hot(logits), is_grads_batched=True)[0]


def vectorised(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    logits = f(x)
    of = torch.func.vmap(lambda v: torch.autograd.grad(logits, x, v, retain_graph=True)[0])
    return of(one_hot(logits))


def by_checkpoint(f: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(loss(lambda v: checkpoint(f, v, use_reentrant=False), y)(x), x)[0]


def jacobian(f: Callable[[Tensor], Tensor], x: Tensor) -> Any:
    return torch.autograd.functional.jacobian(lambda v: f(v).sum(0), x, vectorize=True)  # type: ignore[no-untyped-call]


WAYS: dict[str, tuple[Callable[[Any, Tensor, Tensor], Any], int]] = {
    "grad": (lambda f, x, y: torch.func.grad(loss(f, y))(x), 1),
    "vjp": (lambda f, x, y: torch.func.vjp(f, x)[1](torch.ones(len(x), CLASSES))[0], 1),
    "jacrev": (lambda f, x, y: torch.func.jacrev(lambda v: f(v).sum(0))(x), CLASSES),
    "is_grads_batched": (lambda f, x, y: batched(f, x), CLASSES),
    "vectorize": (lambda f, x, y: jacobian(f, x), CLASSES),
    "vmap of grad": (lambda f, x, y: vectorised(f, x), CLASSES),
    "checkpoint": (by_checkpoint, 1),
}
"""How a gradient is taken, and how many backwards that is."""


def images() -> tuple[Tensor, Tensor]:
    return torch.rand(7, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(7) % CLASSES


@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_those_of_the_net_and_counted(way: str, batch_size: int | None) -> None:
    (take, times), (x, y) = WAYS[way], images()
    for model in (Plain(), Energy()) if way != "checkpoint" else (Plain(),):  # torch.func knows none
        victim = Victim(model.requires_grad_(False), classes=CLASSES, norm="linf", batch_size=batch_size)
        torch.testing.assert_close(take(victim, x, y), take(model, x, y))
        assert (victim.forwards, victim.backwards) == (len(x), times * len(x))
        victim.refuse_broken_gradients("mine")
        assert not victim.notes


@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("way", WAYS)
def test_broken_gradients_are_seen_however_they_are_taken(way: str, batch_size: int | None) -> None:
    victim = Victim(Root().requires_grad_(False), classes=CLASSES, norm="linf", batch_size=batch_size)
    WAYS[way][0](victim, *images())
    with pytest.raises(NonFinite, match="mine met an input gradient that is NaN"):
        victim.refuse_broken_gradients("mine")


def test_what_torch_can_not_do_is_said() -> None:
    class Mine(EvaluationAttack):
        name = "mine"

        def perturb(self, net: Victim, x: Tensor, y: Tensor, radius: Tensor, index: Tensor) -> Tensor:
            gradient = by_checkpoint(net, x, y)
            return (x + radius.view(-1, 1, 1, 1) * gradient.sign()).clamp(0, 1)

    x = (255 * images()[0]).byte()
    for model in (Plain(), Energy()):
        data = Dataset("own", x, model(x / 255).argmax(1), ("a", "b", "c"))
        if type(model) is Plain:  # the control
            assert advkit.evaluate(model, data, ["clean", Mine()], eps=0.1, audit=False)["n"] == 7
            continue
        with pytest.raises(OptionError, match=r"torch\.func takes no gradient where a forward is computed again"):
            advkit.evaluate(model, data, ["clean", Mine()], eps=0.1, audit=False)
