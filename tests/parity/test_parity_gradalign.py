"""GradAlign and CURE: gradients of gradients, against one graph of a copy of the model; closed forms."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import naive
import pytest
import torch
from conftest import CLASSES
from methods import Method, run
from naive import Attack, Learner, Record, cross_entropy, mean, one_hot
from subject import APART, assert_parity, differences, pair
from torch import Tensor, nn

from advkit.config.layer import Layer
from advkit.config.resolve import resolve
from advkit.rng import Draws, derive_key
from advkit_plugins.cure import of_unit_length
from advkit_plugins.gradalign import GradAlign, misalignment

ATTACK, STILL = Attack(eps=12 / 255, alpha=12 / 255, m=1), Attack(eps=0.1, alpha=0.03, m=0)
SEED, VISITS = 5, 3


def given(name: str, *others: str, **values: object):
    return run(name, *others, options={name: values})


METHODS = {
    "gradalign": Method(
        neutral=[(given("gradalign", *others, lam=0), run(*others)) for others in ((), ("awp",), ("trades",))],
        changes=[
            (given("gradalign", lam=1e-3), run()),
            (given("gradalign", lam=0.1), given("gradalign", lam=0.1, growth=1)),
        ],
        moving={"gradalign": {"lam": [[0, 0.1], [1, 0.5]], "growth": 1.0}},
    ),
    "cure": Method(
        neutral=[(given("cure", *others, lam=0), run(*others)) for others in ((), ("awp",), ("trades",))],
        changes=[
            (given("cure", lam=1e-3), run()),
            (given("cure"), given("cure", power="squared")),
            (given("cure"), given("cure", h=1.0)),
        ],
        moving={"cure": {"lam": [[0, 0.1], [1, 0.5]], "h": [[0, 0.5], [1, 1.0]]}},
    ),
}


class Graph:
    """A copy of the model whose whole loss is one graph: what a loss that has gradients in it is differentiated by."""

    def __init__(self, me: Learner) -> None:
        self.model = me.copy()

    def input_gradient(self, x: Tensor, target: list[Tensor]) -> Tensor:
        """The gradient of the losses' sum by x, with its graph, of the model's statistics on these images."""
        forgotten = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        leaf = x.clone().requires_grad_()
        z = torch.func.functional_call(self.model, forgotten, (leaf,))
        (gradient,) = torch.autograd.grad(
            sum(cross_entropy(z[i], aimed) for i, aimed in enumerate(target)), leaf, create_graph=True
        )
        return gradient


def descended(me: Learner, graph: Graph, loss: Tensor) -> Record:
    """SGD along the gradient of `loss`, whose graph reaches the parameters of `graph.model`."""
    named = dict(graph.model.named_parameters())
    gradient = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    with torch.no_grad():
        for name, p in me.theta.named_parameters():
            force = gradient[name] + me.decay * p
            me.velocity[name] = me.momentum * me.velocity[name] + force if name in me.velocity else force
            p.sub_(me.lr * me.velocity[name])
        for kept, moved in zip(me.theta.buffers(), graph.model.buffers(), strict=True):
            kept.copy_(moved)
    return {
        "loss": loss.detach(),
        **{f"gradient {name}": value for name, value in gradient.items()},
        **{f"parameter {name}": p.detach().clone() for name, p in me.theta.named_parameters()},
        **{f"statistic {name}": b.double() for name, b in me.theta.named_buffers()},
    }


def visited(
    me: Learner, data, attack: Attack, name: str, regularizer: Callable[[Graph, list[Tensor]], Tensor]
) -> Record:
    """CE(f(x'), y) plus the mean that `regularizer` gives."""
    target = one_hot(data.y, CLASSES)
    x_adv = naive.attacked(me, data.x, target, attack)
    graph = Graph(me)
    z = graph.model(x_adv)
    term = regularizer(graph, target)
    base = mean([cross_entropy(z[i], aimed) for i, aimed in enumerate(target)])
    return {"x_adv": x_adv, name: len(data.x) * term.detach()} | descended(me, graph, base + term)


def cosine(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum() / ((one**2).sum().sqrt() * (other**2).sum().sqrt())


def gradalign(me: Learner, data, epoch: int, lam: float = 0.2, growth: float = 10.0) -> Record:
    key = derive_key(SEED, "gradalign", "beside", "", epoch)
    eta = ATTACK.eps * Draws(key, data.index).uniform(*data.x[0].shape, low=-1, high=1, dtype=torch.float64)
    by_eps = lam / growth * growth ** (255 * ATTACK.eps / 8)

    def regularizer(graph: Graph, target: list[Tensor]) -> Tensor:
        here, there = graph.input_gradient(data.x, target).detach(), graph.input_gradient(data.x + eta, target)
        return by_eps * mean([1 - cosine(here[i], there[i]) for i in range(len(data.x))])

    return visited(me, data, ATTACK, "gradalign", regularizer)


def cure(me: Learner, data, lam: float = 0.03, h: float = 3.0, power: str = "norm") -> Record:
    def regularizer(graph: Graph, target: list[Tensor]) -> Tensor:
        here = graph.input_gradient(data.x, target)
        signs = here.detach().sign()
        step = torch.stack([h * sign / sqrt(float((sign**2).sum())) for sign in signs])
        there = graph.input_gradient(data.x + step, target)
        squares = [((there[i] - here[i]) ** 2).sum() for i in range(len(data.x))]
        return lam * mean(squares if power == "squared" else [square.sqrt() for square in squares])

    return visited(me, data, STILL, "cure", regularizer)


@pytest.fixture
def smooth(net: nn.Module) -> nn.Module:
    """Without kinks, so that second derivatives are of every layer."""
    for number, layer in enumerate(net):
        if isinstance(layer, nn.ReLU):
            net[number] = nn.Softplus()
    return net


def start(net: nn.Module, data, name: str, attack: Attack, **options: object):
    return pair(net, [name], attack=attack, samples=data.samples, lr=0.05, seed=SEED, options={name: options})


@pytest.mark.parametrize("options", [{}, {"lam": 2.5, "growth": 1.6}], ids=str)
def test_gradalign(smooth: nn.Module, data, options) -> None:
    subject, me = start(smooth, data, "gradalign", ATTACK, **options)
    for epoch in range(VISITS):
        expected = gradalign(me, data, epoch, **options)
        assert_parity(subject.visit(*data.of_step, epoch), expected)
        assert float(expected["gradalign"]) > 0


@pytest.mark.parametrize("options", [{}, {"h": 0.5, "lam": 1.0}, {"power": "squared"}], ids=str)
def test_cure(smooth: nn.Module, data, options) -> None:
    subject, me = start(smooth, data, "cure", STILL, **options)
    for epoch in range(VISITS):
        assert_parity(subject.visit(*data.of_step, epoch), cure(me, data, **options))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("gradalign", {"lam": 0.201}),
        ("gradalign", {"lam": 0.2, "growth": 10.01}),
        ("cure", {"lam": 0.0301}),
        ("cure", {"h": 3.01}),
        ("cure", {"power": "squared"}),
    ],
    ids=str,
)
def test_a_wrong_constant_is_told_apart(smooth: nn.Module, data, name: str, wrong) -> None:
    subject, me = start(smooth, data, name, ATTACK if name == "gradalign" else STILL)
    expected = gradalign(me, data, 1, **wrong) if name == "gradalign" else cure(me, data, **wrong)
    errors = differences(subject.visit(*data.of_step, 1), expected)
    assert min(errors[name], errors["gradient 0.weight"]) > APART


def test_it_is_0_where_gradients_are_aligned_and_leaves_out_those_of_0() -> None:
    gradient = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0]]).view(4, 1, 1, 2)
    beside = torch.tensor([[6.0, 8.0], [1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]).view(4, 1, 1, 2).requires_grad_()
    terms = misalignment(gradient, beside)
    # Of four samples two count: the mean over all is theirs.
    assert torch.allclose(terms, torch.tensor([0.0, 0.0, 2.0, 0.0]), atol=1e-6)
    terms.sum().backward()
    assert beside.grad is not None and bool(beside.grad.isfinite().all())
    assert misalignment(torch.zeros(2, 1, 1, 2), torch.ones(2, 1, 1, 2)).tolist() == [0.0, 0.0]
    one, other = torch.tensor([[1.0, 0], [0, 0]]), torch.tensor([[0, 1.0], [1, 0]])
    alone = misalignment(one.view(2, 1, 1, 2), other.view(2, 1, 1, 2))
    assert alone.tolist() == [2.0, 0.0], "the mean over the batch is that of the one sample that has both"


def test_the_step_of_cure_is_of_length_one() -> None:
    signs = torch.tensor([[1.0, -1.0, 0.0, 1.0], [0.0] * 4]).view(2, 1, 2, 2)
    assert of_unit_length(signs).flatten(1).norm(dim=1).tolist() == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize("eps", [1, 8, 16])
def test_lambda_is_the_papers_at_every_eps(eps: int) -> None:
    """0.02 10^(eps / 8) on CIFAR-10 and 1.5625 1.6^(eps / 8) on SVHN, eps in 255ths."""
    cifar, svhn = (GradAlign(GradAlign.Options(**given)) for given in ({}, {"lam": 2.5, "growth": 1.6}))
    assert 0.2 * cifar.scale(eps / 255) == pytest.approx(0.02 * 10 ** (eps / 8))
    assert 2.5 * svhn.scale(eps / 255) == pytest.approx(1.5625 * 1.6 ** (eps / 8))


def test_beyond_the_eps_of_the_paper_lambda_stays_and_is_told_of() -> None:
    assert GradAlign(GradAlign.Options()).scale(0.5) == pytest.approx(10)
    told, none = (resolve(["gradalign"], [Layer("test", {"attack.eps": eps})]).cautions for eps in (0.15, 8 / 255))
    assert list(told) == ["gradalign.lam is times 10, as at eps 16/255, up to which the paper knows it; eps is 0.15"]
    assert not none


class Linear(nn.Module):
    """Logits 0 and w.x, of which cross-entropy's gradient by x is one direction: aligned everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(72, 1, bias=False, dtype=torch.float64)
        self.rest = nn.Parameter(torch.zeros(CLASSES - 1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.w(x.flatten(1)), self.rest.expand(len(x), -1)], dim=1)


def test_a_net_of_one_direction_is_aligned(data) -> None:
    subject, _ = start(Linear(), data, "gradalign", ATTACK)
    assert float(subject.visit(*data.of_step, 0)["gradalign"]) == pytest.approx(0, abs=1e-9)


def test_a_linear_loss_has_no_curvature(data, monkeypatch) -> None:
    """The control: that of a net with cross-entropy has."""
    subject, _ = start(Linear(), data, "cure", STILL)
    assert float(subject.visit(*data.of_step, 0)["cure"]) > 1e-6
    monkeypatch.setattr("advkit_plugins.cure.soft_cross_entropy", lambda logits, target: (logits * target).sum(dim=1))
    straight, _ = start(Linear(), data, "cure", STILL)
    assert float(straight.visit(*data.of_step, 0)["cure"]) == 0
