"""The net that an attack is lent: its parts, hooks and functions come back, and no gradient is followed unseen."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

import advkit
from advkit import Dataset, EvaluationAttack, HookContract, Victim
from advkit.errors import NonFinite


class Net(nn.Module):
    """Keeps a layer where torch does not see it, a counter, a cache and a plain tensor, as people's nets do."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU())
            self.heads = [nn.Linear(8, 3).requires_grad_(False)]
        self.activation: Callable[[Tensor], Tensor] = torch.relu
        self.calls, self.scale, self.cache = 0, 1.0, dict[int, Tensor]()
        self.last: Tensor | None = None
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen = self.seen + 1
        self.cache.setdefault(len(x), torch.ones(len(x), 1))
        self.last = self.activation(self.body(x))
        logits: Tensor = self.heads[0](self.last) * self.scale * self.cache[len(x)]
        return logits


def images(model: nn.Module, n: int = 40) -> Dataset:
    pixels = torch.randint(0, 256, (n, 1, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    model.eval()
    return Dataset("own", pixels, model(pixels / 255).argmax(1), ("a", "b", "c"))


def ascent(f: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, radius: Tensor, steps: int = 3) -> Tensor:
    size = radius.view(-1, 1, 1, 1)
    x_adv = x.clone()
    for _ in range(steps):
        x_adv.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(f(x_adv), y), x_adv)
        moved = x_adv.detach() + size / 2 * gradient.sign()
        x_adv = torch.minimum(torch.maximum(moved, x - size), x + size).clamp(0, 1)
    return x_adv.detach()


class Mine(EvaluationAttack):
    """Does something to the net, then attacks it."""

    name = "mine"

    def __init__(self, act: Callable[[Victim], object] = lambda net: None) -> None:
        self.act = act

    def perturb(self, net: Victim, x: Tensor, y: Tensor, radius: Tensor, index: Tensor) -> Tensor:
        self.act(net)
        return ascent(net, x, y, radius)


def patched(net: Victim) -> None:
    net.model.body[1].forward = lambda x: 0 * x[:, :8]  # type: ignore[union-attr, index, assignment, method-assign]


def other_class(net: Victim) -> None:
    net.model.body[3].__class__ = nn.Identity  # type: ignore[union-attr, index]


def of_all(net: Victim) -> None:
    nn.ReLU.forward = lambda self, x: x  # type: ignore[method-assign]


class Smooth(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = 0 * self.inner(x)
        return logits


def all_correct(net: Victim) -> None:
    type(net).correct = lambda self, x, y: torch.ones_like(y, dtype=torch.bool)  # type: ignore[method-assign]


def other_linear(net: Victim) -> None:
    linear = nn.functional.linear
    nn.functional.linear = lambda *given: 0 * linear(*given)  # type: ignore[assignment]


ACTS: dict[str, tuple[Callable[[Victim], object], str]] = {
    "class of the Victim": (all_correct, "correct of the class Victim"),
    "function of torch": (other_linear, "linear of torch.nn.functional"),
    "part": (lambda net: net.model.body.__setitem__(3, nn.Softplus()), "the net's body.3"),  # type: ignore[operator, union-attr]
    "parameter": (
        lambda net: setattr(net.model.body[1], "bias", nn.Parameter(torch.zeros(8))),  # type: ignore[index]
        "the net's body.1.bias",
    ),
    "hook": (
        lambda net: net.model.body[3].register_forward_hook(lambda module, given, out: 0.1 * out),  # type: ignore[index, operator]
        "the hooks of the net's body.3",
    ),
    "everybody's hook": (
        lambda net: register_module_forward_hook(lambda module, given, out: out),
        "the hooks of torch",
    ),
    "forward": (patched, "forward of the net's body.1"),
    "class": (other_class, "the class of the net's body.3"),
    "forward of a class": (of_all, "forward of the class ReLU"),
    "function": (lambda net: setattr(net.model, "activation", torch.tanh), "activation of the net"),
    "wrapper": (lambda net: setattr(net, "model", Smooth(net.model)), "net.model"),
    "seed": (lambda net: setattr(net, "seed", 5), "net.seed"),
    "judge": (lambda net: setattr(net, "correct", lambda x, y: y == y), "net.correct"),
    "layer in a list": (
        lambda net: net.model.heads[0].weight.mul_(-1),  # type: ignore[index, operator, union-attr]
        "what the net answers",
    ),
}


@pytest.mark.parametrize("case", ACTS)
def test_a_net_that_comes_back_as_another_is_refused_and_made_itself_again(case: str) -> None:
    act, what = ACTS[case]
    model = Net()
    data = images(model)
    with pytest.raises(HookContract) as refused:
        advkit.evaluate(model, data, ["clean", Mine(act), "pgd-3"], eps=0.05, audit=False)
    assert str(refused.value) == (
        f"The attack mine changed {what}; its accuracy would mean nothing. What it is given is lent: work on copies, "
        "and draw from net.draws(...)."
    )
    if case != "layer in a list":
        assert advkit.evaluate(model, data, "clean,pgd-3", eps=0.05, audit=False)["robust"] == truth()


def truth() -> dict[str, list[bool]]:
    return advkit.evaluate(Net(), images(Net()), "clean,pgd-3", eps=0.05, audit=False)["robust"]  # type: ignore[no-any-return]


def softened(net: Victim) -> None:
    net.model.scale = 0.01  # type: ignore[assignment]


@pytest.mark.parametrize("act", [lambda net: None, softened, lambda net: net.model.cache.clear()])
def test_what_a_net_keeps_for_itself_is_no_fault_and_comes_back(act: Callable[[Victim], object]) -> None:
    model = Net()
    result = advkit.evaluate(model, images(model), ["clean", Mine(act), "pgd-3"], eps=0.05, audit=False)
    assert {name: result["robust"][name] for name in ("clean", "pgd-3")} == truth()
    assert model.scale == 1.0


class Root(Net):
    """Logits as before, with a gradient that is NaN."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (0 * x).sqrt().sum()


FOLLOWED: dict[str, Callable[[Victim], Any]] = {
    "Victim": lambda net: net,
    "net": lambda net: net.model,
    "its forward": lambda net: net.model.forward,
    "a copy": lambda net: copy.deepcopy(net.model),
    "a wrapper": lambda net: nn.Sequential(net.model),
}


class Follows(EvaluationAttack):
    """Signed steps up the cross-entropy of what `way` makes of the net."""

    name = "follows"

    def __init__(self, way: Callable[[Victim], Any]) -> None:
        self.way = way

    def perturb(self, net: Victim, x: Tensor, y: Tensor, radius: Tensor, index: Tensor) -> Tensor:
        return ascent(self.way(net), x, y, radius)


@pytest.mark.parametrize("way", FOLLOWED)
def test_a_broken_gradient_is_seen_whatever_was_asked_for_it(way: str) -> None:
    attack, data = Follows(FOLLOWED[way]), images(Net())
    assert advkit.evaluate(Net(), data, ["clean", attack], eps=0.05, audit=False)["n"] == 40  # the control
    with pytest.raises(NonFinite, match="follows met an input gradient that is NaN or Inf"):
        advkit.evaluate(Root(), data, ["clean", attack], eps=0.05, audit=False)


TRANSFORMED: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "grad": lambda f, x, y: torch.func.grad(lambda x: F.cross_entropy(f(x), y))(x),
    "vmap": lambda f, x, y: torch.func.vmap(
        torch.func.grad(lambda one, label: F.cross_entropy(f(one[None]), label[None]))
    )(x, y),
    "jacrev": lambda f, x, y: torch.func.jacrev(lambda x: F.cross_entropy(f(x), y))(x),
}


class Transforms(Follows):
    """Asks for its gradient through torch.func."""

    def __init__(self, way: Callable[[Victim], Any], kind: str) -> None:
        super().__init__(way)
        self.kind = kind

    def perturb(self, net: Victim, x: Tensor, y: Tensor, radius: Tensor, index: Tensor) -> Tensor:
        gradient = TRANSFORMED[self.kind](self.way(net), x, y)
        return (x + radius.view(-1, 1, 1, 1) * gradient.sign()).clamp(0, 1).detach()


@pytest.mark.parametrize("way", ["Victim", "net"])
@pytest.mark.parametrize("kind", TRANSFORMED)
def test_transforms_that_call_the_net_for_several_at_once_are_refused_with_a_name(kind: str, way: str) -> None:
    """One pass would stand for those of all images, so costs and broken gradients would be miscounted."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    attack, data = Transforms(FOLLOWED[way], kind), images(net)
    if kind in ("grad", "jacrev"):
        assert advkit.evaluate(net, data, ["clean", attack], eps=0.05, audit=False)["n"] == 40
        return
    with pytest.raises(RuntimeError, match=r"inside a transform of torch\.func \(vmap\)") as refused:
        advkit.evaluate(net, data, ["clean", attack], eps=0.05, audit=False)
    assert refused.value.__notes__ == ["in the attack follows"]


class Edge(Net):
    """Sound at the images of the tests, with a gradient that is NaN once they have moved."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits if torch.allclose(255 * x, (255 * x).round(), atol=1e-3) else logits + (0 * x).sqrt().sum()


@pytest.mark.parametrize("way", FOLLOWED)
def test_a_gradient_that_breaks_on_the_way_is_seen_though_the_image_comes_back(way: str) -> None:
    class Returns(Follows):
        def perturb(self, net: Victim, x: Tensor, y: Tensor, radius: Tensor, index: Tensor) -> Tensor:
            super().perturb(net, x, y, radius, index)
            return x

    attack, data = Returns(FOLLOWED[way]), images(Net())
    assert advkit.evaluate(Net(), data, ["clean", attack], eps=0.05, audit=False)["n"] == 40  # the control
    with pytest.raises(NonFinite, match="follows met an input gradient that is NaN or Inf"):
        advkit.evaluate(Edge(), data, ["clean", attack], eps=0.05, audit=False)


def test_an_attack_that_says_that_it_follows_no_gradient_is_judged_without_one() -> None:
    class Blind(Follows):
        name, access = "blind", "scores"

        def perturb(self, net: Victim, x: Tensor, y: Tensor, radius: Tensor, index: Tensor) -> Tensor:
            return x

    result = advkit.evaluate(Root(), images(Net()), ["clean", Blind(lambda net: net)], eps=0.05, audit=False)
    assert result["worst_case"]["accuracy"] == 1
