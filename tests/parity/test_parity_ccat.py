"""CCAT: half a batch, its attack with momentum and backtracking, and the label by distance, against its code's loop."""

from __future__ import annotations

import pytest
import torch
from conftest import CLASSES
from hypothesis import given, strategies as st
from methods import Method, run
from naive import Attack, Branch, Learner, Record, boxed, cross_entropy, log_softmax, mean, one_hot
from subject import APART, Subject, assert_parity, differences
from torch import Tensor, nn

from advkit import OptionError, Passes
from advkit.config.layer import Layer
from advkit.config.resolve import resolve
from advkit.rng import Draws, derive_key
from advkit_plugins.ccat import backtracked, faded

EPS, ALPHA, STEPS, VISITS = 0.12, 0.05, 6, 3
STILL = {"batch_norm": False, "dropout": 0.0}


def with_options(*others, settings=(), **values):
    return run("ccat", *others, options={"ccat": values}, settings=dict(settings))


METHODS = {
    "ccat": Method(
        # All images as they are: standard training.
        neutral=[
            ({**with_options(*others, clean=1), **STILL}, {**run(*others, settings={"attack.steps": 0}), **STILL})
            for others in ((), ("ema",))
        ],
        changes=[
            (run("ccat"), run()),
            (run("ccat"), with_options(rho=1)),
            (run("ccat"), with_options(clean=0)),
            (run("ccat"), with_options(objective="cross-entropy")),
        ],
    ),
}


def draws(purpose: str, epoch: int, index: Tensor) -> Draws:
    return Draws(derive_key(0, "ccat", purpose, "", epoch), index)


def confidence(z: Tensor, y: int) -> Tensor:
    """max_{k != y} p_k."""
    return torch.stack([log_softmax(z)[k].exp() for k in range(CLASSES) if k != y]).max()


def attacked(model: nn.Module, x: Tensor, goal, delta: Tensor, momentum: float, shrink: float) -> Tensor:
    """Its code's loop on one image, which asks the net twice an iteration; the least error so far is kept."""

    def projected(delta: Tensor) -> Tensor:
        return boxed(x, delta.clamp(-EPS, EPS))

    def error(delta: Tensor) -> Tensor:
        return -goal(model((x + delta)[None])[0])

    lr, velocity, least, kept = ALPHA, torch.zeros_like(x), float("inf"), delta
    for i in range(STEPS + 1):
        delta = projected(delta.detach()).requires_grad_()
        now = error(delta)
        if now.item() < least:
            least, kept = now.item(), delta.detach()
        if i == STEPS:
            break
        (gradient,) = torch.autograd.grad(now, delta)
        assert ((gradient == 0) | (gradient.abs() > 1e-11)).all()
        velocity = momentum * velocity - (1 - momentum) * gradient.sign()
        moved = projected(delta.detach() + lr * velocity)
        if error(moved).item() <= now.item():
            delta = delta.detach() + lr * velocity
        else:
            lr /= shrink
    return x + kept


def ccat(
    me: Learner, data, epoch: int, *, rho: float = 10.0, clean: float = 0.5, objective: str = "confidence",
    momentum: float = 0.9, shrink: float = 1.5,
) -> Record:  # fmt: skip
    model, x_adv, targets = me.copy(training=False), data.x.clone(), one_hot(data.y, CLASSES)
    drawn = draws("half", epoch, data.index).uniform(dtype=torch.float64).tolist()
    first = sorted(drawn)[: int(clean * len(drawn))]
    way = draws("start", epoch, data.index).normal(*data.x[0].shape, dtype=torch.float64)
    share = draws("start", epoch, data.index).uniform(draw=1, dtype=torch.float64)
    rows = []
    for i, image in enumerate(data.x):
        y = int(data.y[i])
        if drawn[i] not in first:
            begin = EPS * share[i] * way[i] / way[i].abs().max()

            def goal(z: Tensor, y: int = y, aimed: Tensor = targets[i]) -> Tensor:
                return confidence(z, y) if objective == "confidence" else cross_entropy(z, aimed)

            x_adv[i] = attacked(model, image, goal, begin, momentum, shrink)
        q = (1 - min(1.0, float((x_adv[i] - image).abs().max()) / EPS)) ** rho
        rows.append(q * targets[i] + (1 - q) / CLASSES)
    live = Branch(me.copy(), x_adv)
    return {"x_adv": x_adv} | me.descend(mean([cross_entropy(live.z[i], rows[i]) for i in range(len(rows))]), live)


class Wavy(nn.Module):
    """In the place of ReLU: so curved that many steps do not help."""

    def forward(self, x: Tensor) -> Tensor:
        return (6 * x).sin()


def start(net: nn.Module, data, **options: object) -> tuple[Subject, Learner]:
    settings = {"attack.steps": STEPS, "attack.step_size": ALPHA}
    for place, layer in enumerate(net):
        if isinstance(layer, nn.ReLU):
            net[place] = Wavy()
    attack = Attack(EPS, ALPHA, STEPS)
    return (
        Subject(
            net, ["ccat"], attack=attack, samples=data.samples, lr=0.02, options={"ccat": options}, settings=settings
        ),
        Learner(net, data.samples, 0.02),
    )


OPTIONS = [
    {},
    {"rho": 1.0},
    {"clean": 0.0},
    {"clean": 0.3},
    {"objective": "cross-entropy"},
    {"momentum": 0.0, "shrink": 3.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_ccat(net: nn.Module, data, options: dict[str, object]) -> None:
    subject, me = start(net, data, **options)
    for epoch in range(VISITS):
        assert_parity(subject.visit(*data.of_step, epoch), ccat(me, data, epoch, **options))


@pytest.mark.parametrize(
    ("right", "wrong", "seen"),
    [
        ({"rho": 1.0}, {"rho": 1.01}, "loss"),
        ({}, {"clean": 0.4}, "x_adv"),
        ({}, {"objective": "cross-entropy"}, "x_adv"),
        ({"clean": 0.0}, {"momentum": 0.8}, "x_adv"),
        ({"clean": 0.0, "momentum": 0.0}, {"shrink": 1.6}, "x_adv"),
    ],
)
def test_a_wrong_constant_is_told_apart(net: nn.Module, data, right, wrong, seen: str) -> None:
    subject, me = start(net, data, **right)
    expected = ccat(me, data, 0, **(right | wrong))
    assert differences(subject.visit(*data.of_step, 0), expected)[seen] > APART


def test_half_of_a_batch_is_as_it_was_and_which_half_is_drawn_anew(net: nn.Module, data) -> None:
    subject, _ = start(net, data)
    halves = [
        (subject.visit(*data.of_step, epoch)["x_adv"] == data.x).flatten(1).all(1).tolist() for epoch in range(VISITS)
    ]
    assert [sum(half) for half in halves] == [4] * VISITS and len({tuple(half) for half in halves}) > 1


# ---------------------------------------------------------------------- closed forms


def test_the_label_at_no_distance_half_and_all_of_it() -> None:
    target = torch.eye(4, dtype=torch.float64)[[1, 1, 1, 1]]
    rows = faded(target, torch.tensor([0.0, 0.05, 0.1, 0.3], dtype=torch.float64), 0.1, 2.0)
    assert torch.equal(rows[0], target[0]) and torch.equal(rows[2], torch.full((4,), 0.25, dtype=torch.float64))
    torch.testing.assert_close(rows[1], 0.25 * target[1] + 0.75 / 4)
    assert torch.equal(rows[3], rows[2])


@given(st.floats(0, 1), st.floats(0.1, 20))
def test_the_label_never_lets_another_class_win(share: float, rho: float) -> None:
    row = faded(torch.eye(5, dtype=torch.float64)[:1], torch.tensor([share], dtype=torch.float64), 1.0, rho)
    assert row.sum().item() == pytest.approx(1) and row.argmax() == 0 and (row >= 0).all()


def test_the_attack_on_a_parabola_stays_where_no_step_helps() -> None:
    """The objective is -(x - 0.29)^2: from 0 by steps of 0.2 without momentum to 0.2; 0.4 is worse, 0.3 is not."""
    seen = []

    def model(x: Tensor) -> Tensor:
        seen.append(float(x.detach()))
        return x.flatten(1)

    x = backtracked(
        model, torch.zeros(1, 1, 1, 1, dtype=torch.float64), lambda point: point, lambda z: -(z[:, 0] - 0.29) ** 2,
        steps=3, step_size=0.2, momentum=0.0, shrink=2.0,
    )  # fmt: skip
    assert seen == pytest.approx([0.0, 0.2, 0.4, 0.3]) and float(x) == pytest.approx(0.3)


def test_of_iterates_that_are_equally_good_the_first_is_kept() -> None:
    """The objective has a slope, which is followed, and one value."""
    flat = backtracked(
        lambda x: x.flatten(1), torch.full((1, 1, 1, 1), 0.2), lambda point: point.clamp(0, 1),
        lambda z: z[:, 0] - z[:, 0].detach(), steps=4, step_size=0.2, momentum=0.5, shrink=2.0,
    )  # fmt: skip
    assert float(flat) == pytest.approx(0.2)


# ---------------------------------------------------------------------- what the plan says


def test_what_the_plan_says() -> None:
    def resolved(*others: str, settings=(), **options: object):
        return resolve(["ccat", *others], [Layer("test", dict(settings), {"ccat": options})])

    plain = resolved(settings={"attack.eps": 0.03})
    assert plain.cautions == ()
    assert plain.attack.steps == 40 and plain.attack.step_size == pytest.approx(0.005)
    assert plain.composition.at(0).passes == {"attack": Passes(41, 40), "update": Passes(1, full_backward=1)}
    scaled = "eps-ramp scales the radius that is attacked, but ccat's label counts from attack.eps"
    assert scaled in resolved("eps-ramp").cautions
    with pytest.raises(OptionError) as refused:
        resolved(settings={"attack.norm": "l2", "attack.eps": 0.5})
    assert str(refused.value) == "ccat attacks in attack.norm = linf, not l2; drop it."
