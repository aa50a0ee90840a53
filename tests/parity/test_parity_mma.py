"""MMA: the margin along the attack, and the loss there, against a loop over samples."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from conftest import CLASSES
from hypothesis import given, strategies as st
from methods import Method, run
from naive import Attack, Branch, Learner, boxed, cross_entropy, mean, one_hot, perturbed
from subject import APART, Subject, assert_parity, differences, pair
from torch import Tensor, nn

from advkit import Budget, HookContract, Passes, Plugin, Step, hookimpl
from advkit.config.layer import Layer
from advkit.config.resolve import resolve
from advkit.rng import Draws, derive_key
from advkit_plugins.mma import bisected, soft_logit_margin

EPS, STEPS = 0.12, 4
ATTACK = Attack(EPS, EPS / 4, STEPS)
STILL = {"batch_norm": False, "dropout": 0.0}


def with_options(name, *others, settings=(), **values):
    return run(name, *others, options={name: values}, settings=dict(settings))


METHODS = {
    "mma": Method(
        # All of the loss on clean images, where no statistics move: standard training.
        neutral=[({**with_options("mma", lam=1), **STILL}, {**run(settings={"attack.steps": 0}), **STILL})],
        changes=[
            (run("mma"), run()),
            (run("mma"), with_options("mma", lam=0)),
            (run("mma"), with_options("mma", d_max=0.02)),
        ],
        moving={"mma": {"d_max": 0.1}},
    ),
}


def margin(z: Tensor, y: int) -> Tensor:
    """log sum_{j != y} exp z_j - z_y."""
    return torch.logsumexp(torch.stack([z[j] for j in range(len(z)) if j != y]), 0) - z[y]


class MaxMargin:
    """AN-PGD as the code has it, one sample at a time; eps_i of each, 0 at first."""

    def __init__(self, d_max: float, cap: float, eps_min: float, lam: float, search: int = 10) -> None:
        self.d_max, self.cap, self.eps_min, self.lam, self.search = d_max, cap * d_max, eps_min, lam, search
        self.eps: dict[int, float] = {}

    def visit(self, me: Learner, x: Tensor, y: Tensor, index: Tensor, epoch: int) -> dict[str, Tensor]:
        model, x_adv, trained = me.copy(training=False), x.clone(), []
        draws = Draws(derive_key(0, "core", "start", "attack", epoch), index)
        noise = draws.uniform(*x[0].shape, low=-1, high=1, dtype=torch.float64)
        for i, sample in enumerate(index.tolist()):
            label = int(y[i])

            def at(image: Tensor, label: int = label) -> float:
                return float(margin(model(image[None])[0], label).detach())

            if at(x[i]) >= 0:
                self.eps[sample] = 0.0
                trained.append(True)
                continue
            eps = min(max(self.eps_min, self.eps.get(sample, 0.0)), self.cap)
            attack = Attack(eps, 2.5 * eps / STEPS, STEPS)
            begin = boxed(x[i], eps * noise[i])
            unit = (perturbed(model, x[i], lambda z, y=label: margin(z, y), eps, attack, begin) - x[i]) / eps
            low, high, reached = 0.0, self.cap, False
            for _ in range(self.search):
                below = at((x[i] + eps * unit).clamp(0, 1)) < 0
                low = max(eps, low) if below else low
                high = high if below else min(eps, high)
                reached |= not below
                eps = (low + high) / 2
            eps = eps if reached else self.cap
            self.eps[sample] = eps
            trained.append(eps < self.d_max)
            x_adv[i] = (x[i] + eps * unit).clamp(0, 1)
        target = one_hot(y, CLASSES)
        adversarial = Branch(me.copy(), x_adv)
        clean = Branch(me.copy(), x)  # its statistics are dropped: those of the base loss count
        near = [(1 - self.lam) * trained[i] * cross_entropy(adversarial.z[i], target[i]) for i in range(len(x))]
        plain = [self.lam * cross_entropy(clean.z[i], target[i]) for i in range(len(x))]
        loss = mean([one + other for one, other in zip(near, plain, strict=True)])
        return {"x_adv": x_adv} | me.descend(loss, adversarial, clean)


def mma(net: nn.Module, data, **options: object) -> tuple[Subject, Learner]:
    """With logits so large that about half of the images are classified with more than one half."""
    with torch.no_grad():
        net[-1].weight.mul_(8)
    return pair(net, ["mma"], attack=ATTACK, samples=data.samples, lr=0.005, options={"mma": options})


@pytest.mark.parametrize("lam", [1 / 3, 0.0])
@pytest.mark.parametrize("d_max", [0.3, 0.06])
def test_mma_trains_at_the_boundary(net: nn.Module, data, d_max: float, lam: float) -> None:
    subject, me = mma(net, data, d_max=d_max, lam=lam, eps_min=0.01)
    naive_one, dropped = MaxMargin(d_max, 1.05, 0.01, lam), 0
    for epoch in range(3):
        expected = naive_one.visit(me, *data.of_step, epoch)
        assert_parity(subject.visit(*data.of_step, epoch), expected)
        eps = torch.tensor([naive_one.eps[sample] for sample in data.index.tolist()], dtype=torch.float64)
        torch.testing.assert_close(subject.step.state.samples["mma/eps"][data.index], eps, rtol=1e-12, atol=0)
        dropped += int((eps >= d_max).sum())
        assert 0 < (eps == 0).sum() < len(eps)
    assert d_max > 0.1 or dropped, "some are too far away to be trained on"


@pytest.mark.parametrize("other", [{"lam": 0.5}, {"d_max": 0.2}, {"search": 9}, {"eps_min": 0.02}, {"cap": 1.5}])
def test_another_constant_would_be_seen(net: nn.Module, data, other: dict[str, float]) -> None:
    subject, me = mma(net, data, **({"d_max": 0.06, "eps_min": 0.01} | other))
    expected = MaxMargin(0.06, 1.05, 0.01, 1 / 3).visit(me, *data.of_step, 0)
    assert max(differences(subject.visit(*data.of_step, 0), expected).values()) > APART


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_way_that_rounding_has_made_long_stays_in_the_ball(norm: str) -> None:
    """From a radius near that of float32 the search goes a hundred times as far."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    step = Step(
        net, torch.optim.SGD(net.parameters(), 0.1), "mma", num_samples=16, eps=1e-6,
        options={"mma": {"cap": 10}}, settings={"attack.norm": norm, "attack.steps": 3, "run.check_hooks": True},
    )  # fmt: skip
    for epoch in range(2):
        step(x, net(x).argmax(1), torch.arange(16), epoch=epoch)


# ---------------------------------------------------------------------- closed forms


class Linear(nn.Module):
    """Two classes, a linear boundary w x + b = 0."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1) @ self.w + 0.1
        return torch.stack([-z, z], 1)


@pytest.mark.parametrize("search", [10, 20])
def test_the_margin_of_a_linear_net_is_its_closed_form(search: int) -> None:
    """|w x + b| / ||w||_1 in linf, to the bisection's precision, whatever the radius that the attack began with."""
    generator = torch.Generator().manual_seed(2)
    x = 0.4 + 0.2 * torch.rand(6, 1, 2, 2, generator=generator, dtype=torch.float64)  # far from the box
    model = Linear()
    z = (x.flatten(1) @ model.w + 0.1).detach()
    y = (z > 0).long()
    step = Step(
        model, torch.optim.SGD(model.parameters(), 0.0), ["mma"], num_samples=6, eps=0.1,
        options={"mma": {"d_max": 0.3, "search": search}}, settings={"attack.steps": 10},
    )  # fmt: skip
    for epoch in range(2):
        report = step(x, y, torch.arange(6), epoch=epoch)
    eps, closed = step.state.samples["mma/eps"], z.abs() / model.w.detach().abs().sum()
    assert ((eps - closed).abs() <= 0.315 / 2**search + 1e-12).all()
    assert (report.x_train - x).abs().flatten(1).amax(1).allclose(eps)


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 30))
def test_bisection_brackets_the_turn(turn: float, first: float, steps: int) -> None:
    length = bisected(lambda e: e - turn, torch.tensor([first], dtype=torch.float64), 1.0, steps)
    assert abs(float(length) - turn) <= 0.5 ** (steps - 1) + 1e-12


def test_a_boundary_that_is_not_reached_is_the_cap() -> None:
    never = bisected(lambda e: torch.full_like(e, -1.0), torch.full((1,), 0.01, dtype=torch.float64), 0.5, 10)
    assert float(never) == 0.5


@pytest.mark.parametrize(("cap", "search", "trained"), [(1.0, 10, 0), (1.05, 1, 0), (1.05, 3, 0), (1.05, 10, 6)])
def test_beyond_d_max_nothing_is_trained_on(cap: float, search: int, trained: int) -> None:
    """A short search, or one that ends at d_max itself, took what is never fooled for a margin below it."""
    x, model = 0.4 + 0.2 * torch.rand(6, 1, 2, 2, dtype=torch.float64), Linear()
    y = (x.flatten(1) @ model.w + 0.1 > 0).long().detach()
    step = Step(
        model, torch.optim.SGD(model.parameters(), 0.0), ["mma"], num_samples=6, eps=0.1, settings={"attack.steps": 2},
        options={"mma": {"d_max": 0.9 if trained else 1e-4, "eps_min": 1e-5, "lam": 0, "cap": cap, "search": search}},
    )  # fmt: skip
    report = step(x, y, torch.arange(6), epoch=0)
    assert int((step.state.samples["mma/eps"] < (0.9 if trained else 1e-4)).sum()) == trained
    assert (report.weighted["base_loss"] > 0) == bool(trained)


def test_the_soft_logit_margin() -> None:
    z = torch.tensor([[2.0, 1.0, -1.0]], dtype=torch.float64)
    assert soft_logit_margin(z, torch.tensor([0])).item() == pytest.approx(log(exp(1) + exp(-1)) - 2)
    assert soft_logit_margin(z, torch.tensor([2])).item() > 0


# ---------------------------------------------------------------------- what the plan says, and what is checked


def test_what_the_plan_says() -> None:
    def resolved(*others: str, **options: object):
        return resolve(["mma", *others], [Layer("test", {"attack.steps": 5}, {"mma": options})])

    assert resolved().cautions == ()
    stopped = "mma looks for the boundary along the attack, which fat stops before its end"
    assert stopped in resolved("fat").cautions
    scaled = "eps-ramp scales the radius that is attacked, but mma measures margins as if it were not scaled"
    assert scaled in resolved("eps-ramp").cautions
    passes = resolved(search=7).composition.at(0).passes
    assert passes == {"attack": Passes(5 + 1 + 7, 5), "update": Passes(2, full_backward=2)}
    assert resolved(lam=0).composition.at(0).passes["update"] == Passes(1, full_backward=1)
    budget = resolved(d_max=0.2).composition.company.largest_budget
    assert budget.attack == pytest.approx(0.21) and budget.label == pytest.approx(0.15)


@pytest.mark.parametrize(("grown", "passes"), [(0.2, True), (0.1, False)])
def test_images_may_leave_the_attack_as_far_as_their_budget_has_grown(net: nn.Module, data, grown, passes) -> None:
    class Far(Plugin):
        name = "far"

        def largest_budget(self, eps):
            return type(super().largest_budget(eps))(attack=0.2, label=0.2)

        @hookimpl
        def perturbation_budget(self, batch):
            radius = torch.full_like(batch.x[:, 0, 0, 0], 0.1)
            return Budget(attack=radius, label=radius)

        @hookimpl
        def commit_attack(self, batch, budget):
            radius = torch.full_like(budget.attack, grown)
            return Budget(attack=radius, label=radius), (batch.x + 0.15).clamp(max=1)

    subject, _ = pair(net, [Far], attack=ATTACK, samples=data.samples, lr=0.1)
    if passes:
        subject.visit(*data.of_step, 0)
        return
    with pytest.raises(HookContract, match="Plugin far broke the contract of commit_attack: images leave the ball"):
        subject.visit(*data.of_step, 0)
