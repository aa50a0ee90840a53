"""Bilateral adversarial training: one targeted step and the adversarial label, against a loop over samples."""

from __future__ import annotations

import naive
import pytest
import torch
from conftest import CLASSES
from hypothesis import given, strategies as st
from methods import Method, run
from naive import Attack, Branch, Learner, Record, cross_entropy, log_softmax, mean, one_hot
from subject import APART, assert_parity, differences, pair
from torch import Tensor, nn

from advkit import Passes
from advkit.config.layer import Layer
from advkit.config.resolve import resolve
from advkit.rng import Draws, derive_key
from advkit_plugins.bilateral import adversarial_label

EPS, VISITS = 0.1, 3
ONE_STEP = Attack(eps=EPS, alpha=EPS, m=1)


def with_options(*others, settings=(), **values):
    return run("bilateral", *others, options={"bilateral": values}, settings=dict(settings))


FGSM = {"attack.steps": 1, "attack.step_size": "eps", "attack.init": "uniform"}
METHODS = {
    "bilateral": Method(
        neutral=[
            (with_options(*others, factor=0, target="none", settings=FGSM), run(*others, settings=FGSM))
            for others in ((), ("awp",), ("cat-eps",))
        ],
        changes=[
            (with_options(factor=0, target="none", settings=FGSM), with_options(factor=0, settings=FGSM)),
            (with_options(), with_options(target="random")),
            (with_options(), with_options(factor=8)),
            (with_options(), with_options(gamma=0.1)),
        ],
    ),
}


def label(z: Tensor, y: int, gamma: float, factor: float) -> Tensor:
    """y' of the paper's closed form, class by class."""
    cost = [-float(value) for value in log_softmax(z.detach())]
    others = [k for k in range(CLASSES) if k != y]
    least, most = min(cost[k] for k in others), max(cost[k] for k in others)
    total = sum(cost[k] - least + gamma for k in others)
    share = 1 / (1 + factor * (most - least + gamma) / total)
    entries = [1 - share if k == y else share * (cost[k] - least + gamma) / total for k in range(CLASSES)]
    return torch.tensor(entries, dtype=torch.float64)


def bilateral(
    me: Learner, data, epoch: int, *, factor: float = 9.0, gamma: float = 0.01, target: str = "likely"
) -> Record:
    model, x_adv, rows = me.copy(training=False), data.x.clone(), []
    begin = naive.random_start(0, epoch, data.index, data.x, EPS)
    drawn = Draws(derive_key(0, "bilateral", "target", "", epoch), data.index).uniform(CLASSES, dtype=torch.float64)
    for i, image in enumerate(data.x):
        y, z = int(data.y[i]), model(image[None])[0].detach()
        scores = {k: float((drawn[i] if target == "random" else z)[k]) for k in range(CLASSES) if k != y}
        aimed = one_hot(torch.tensor([y if target == "none" else max(scores, key=scores.get)]), CLASSES)[0]
        sign = 1 if target == "none" else -1
        x_adv[i] = naive.perturbed(
            model, image, lambda z, a=aimed, s=sign: s * cross_entropy(z, a), EPS, ONE_STEP, begin[i]
        ).clamp(0, 1)
        rows.append(label(z, y, gamma, factor) if factor else one_hot(data.y, CLASSES)[i])
    live = Branch(me.copy(), x_adv)
    return {"x_adv": x_adv} | me.descend(mean([cross_entropy(live.z[i], rows[i]) for i in range(len(rows))]), live)


def start(net: nn.Module, data, **options: object):
    """By the plugin's preferences, but for the length of the step, which a test says in pixels."""
    settings = {"attack.init": "uniform"}
    return pair(
        net, ["bilateral"], attack=ONE_STEP, samples=data.samples, lr=0.1,
        options={"bilateral": options}, settings=settings,
    )  # fmt: skip


@pytest.mark.parametrize(
    "options", [{}, {"factor": 2.0, "gamma": 0.3}, {"target": "random"}, {"target": "none"}, {"factor": 0}], ids=str
)
def test_image_and_label(net: nn.Module, data, options: dict[str, object]) -> None:
    subject, me = start(net, data, **options)
    for epoch in range(VISITS):
        assert_parity(subject.visit(*data.of_step, epoch), bilateral(me, data, epoch, **options))


@pytest.mark.parametrize(
    ("wrong", "seen"),
    [
        ({"factor": 8.9}, "loss"),
        ({"gamma": 0.02}, "loss"),
        ({"target": "random"}, "x_adv"),
        ({"target": "none"}, "x_adv"),
    ],
)
def test_a_wrong_constant_is_told_apart(net: nn.Module, data, wrong: dict[str, object], seen: str) -> None:
    subject, me = start(net, data)
    assert differences(subject.visit(*data.of_step, 0), bilateral(me, data, 0, **wrong))[seen] > APART


# ---------------------------------------------------------------------- closed forms


@given(st.integers(2, 12), st.floats(1e-3, 1), st.floats(0.5, 100), st.integers(0, 99))
def test_the_label_has_so_many_times_the_largest_other_entry(
    classes: int, gamma: float, factor: float, seed: int
) -> None:
    z = 3 * torch.randn(4, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = torch.arange(4) % classes
    rows = adversarial_label(z, y, gamma, factor)
    own = rows.gather(1, y[:, None]).squeeze(1)
    others = rows.scatter(1, y[:, None], -1.0)
    torch.testing.assert_close(rows.sum(1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(own, factor * others.amax(1))
    least = z.scatter(1, y[:, None], torch.inf).argmin(1)
    assert torch.equal(others.argmax(1), least), "the least likely wrong class gets the most"


def test_an_even_prediction_is_label_smoothing() -> None:
    rows = adversarial_label(torch.zeros(1, 10, dtype=torch.float64), torch.tensor([3]), 0.01, 9.0)
    expected = torch.full((1, 10), 1 / 18, dtype=torch.float64)
    expected[0, 3] = 0.5
    torch.testing.assert_close(rows, expected)


@pytest.mark.parametrize("mask", [-torch.inf, torch.finfo(torch.float32).min])
def test_a_masked_class_gets_nothing(mask: float) -> None:
    z = torch.tensor([[1.0, 0.0, mask, -2.0]])
    rows = adversarial_label(z, torch.tensor([0]), 0.01, 9.0)
    assert rows[0, 2] == 0 and rows.isfinite().all() and rows.sum().item() == pytest.approx(1)
    torch.testing.assert_close(rows[:, [0, 1, 3]], adversarial_label(z[:, [0, 1, 3]], torch.tensor([0]), 0.01, 9.0))


class Linear(nn.Module):
    """Three classes whose logits are three of the pixels, times 2."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x.flatten(1)[:, :3]


def test_a_step_towards_a_class_of_a_linear_net_raises_its_pixel_and_lowers_the_others() -> None:
    """-grad CE(z, t) is 2 (e_t - p): whatever the start, the step of eps ends on that side of x, or at most at x."""
    x = torch.full((3, 1, 2, 2), 0.5, dtype=torch.float64)
    x[:, 0, 0, 1] += 0.1  # pixel 1: the likeliest class, and so the target where it is wrong
    subject, _ = pair(Linear(), ["bilateral"], attack=ONE_STEP, samples=3, lr=0.0, settings={"attack.init": "uniform"})
    shift = (subject.visit(x, torch.tensor([0, 0, 2]), torch.arange(3), 0)["x_adv"] - x).flatten(1)
    assert (shift[:, 1] >= 0).all() and (shift[:, [0, 2]] <= 0).all() and (shift.abs() <= EPS + 1e-12).all()


# ---------------------------------------------------------------------- what the plan says


def test_what_the_plan_says() -> None:
    def resolved(settings=(), *others: str, **options: object):
        return resolve(["bilateral", *others], [Layer("test", dict(settings), {"bilateral": options})])

    plain = resolved({"attack.eps": "8/255"})
    assert plain.cautions == ()
    assert (plain.attack.steps, plain.attack.step_size, plain.attack.init) == (1, 8 / 255, "uniform")
    assert plain.composition.at(0).passes == {"attack": Passes(2, 1), "update": Passes(1, full_backward=1)}
    several = "bilateral is a method of one step, and attack.steps is 7"
    assert resolved({"attack.steps": 7}).cautions == (several,)
    even = "bilateral.factor = 1 leaves the label no more than another class"
    assert resolved(factor=1).cautions == (even,)
    # A random target with a hard label needs no forward of the clean images.
    assert resolved(target="random", factor=0).composition.at(0).passes["attack"] == Passes(1, 1)
