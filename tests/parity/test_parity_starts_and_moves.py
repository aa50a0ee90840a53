"""Where the attack begins and how it moves: FGSM-RS, N-FGSM and ZeroGrad, and the noise of FAT's code."""

from __future__ import annotations

import naive
import pytest
import torch
from conftest import CLASSES
from hypothesis import given, strategies as st
from methods import Method, run
from naive import Attack, Branch, Learner, boxed, cross_entropy, mean, one_hot
from subject import APART, assert_parity, differences, pair
from torch import Tensor, nn

from advkit import BudgetScale, HookConflict, HookContract, OptionError, Plugin, hookimpl
from advkit.config.layer import Layer
from advkit.config.resolve import resolve
from advkit.rng import Draws, derive_key
from advkit_plugins.fgsm_rs import largest_only

EPS = 0.12
ONE_STEP = Attack(eps=EPS, alpha=1.25 * EPS, m=1)


def with_options(name, *others, settings=(), **values):
    return run(name, *others, options={name: values}, settings=dict(settings))


RANDOM = {"attack.step_size": "1.25 eps", "attack.init": "uniform"}
METHODS = {
    "fgsm-rs": Method(
        neutral=[
            (run("fgsm-rs", *others, settings=RANDOM), run(*others, settings=RANDOM))
            for others in ((), ("lsiw",), ("cat-eps",))
        ],
        changes=[
            (run("fgsm-rs"), run()),
            (run("fgsm-rs"), with_options("fgsm-rs", noise=2)),
            (run("fgsm-rs"), with_options("fgsm-rs", zero_share=0.35)),
        ],
        moving={"fgsm-rs": {"noise": 2.0, "zero_share": 0.35}},
    ),
}


def one_step(
    me: Learner, x: Tensor, target: list[Tensor], begin: Tensor, attack: Attack, reach: float, share: float = 0.0
) -> Tensor:
    """x + clip(begin + alpha sign(g)) of the whole batch in train mode; the statistics that this forward moves stay."""
    model, delta = me.copy(), begin.clone().requires_grad_()
    z = model(x + delta)
    (gradient,) = torch.autograd.grad(sum(cross_entropy(z[i], target[i]) for i in range(len(x))), delta)
    move = attack.alpha * gradient.sign()
    for i in range(len(x)):
        move[i][gradient[i].abs() < torch.quantile(gradient[i].abs(), share)] = 0
    for kept, moved in zip(me.theta.buffers(), model.buffers(), strict=True):
        kept.copy_(moved)
    return x + boxed(x, (begin + move).clamp(-reach, reach))


def update(me: Learner, x_adv: Tensor, target: list[Tensor]) -> dict[str, Tensor]:
    live = Branch(me.copy(), x_adv)
    loss = mean([cross_entropy(live.z[i], target[i]) for i in range(len(x_adv))])
    return {"x_adv": x_adv} | me.descend(loss, live)


def of_the_settings(net: nn.Module, data, attack: Attack = ONE_STEP, **options: object):
    """By the plugin's preferences, but for the length of the step, which a test says in pixels."""
    settings = {"attack.init": "uniform", "attack.mode": "train"}
    return pair(
        net, ["fgsm-rs"], attack=attack, samples=data.samples, lr=0.1, options={"fgsm-rs": options}, settings=settings
    )


def noise(epoch: int, index: Tensor, x: Tensor) -> Tensor:
    draws = Draws(derive_key(0, "fgsm-rs", "noise", "", epoch), index)
    return draws.uniform(*x[0].shape, low=-1, high=1, dtype=torch.float64)


# ---------------------------------------------------------------------- FGSM-RS


@pytest.mark.parametrize("share", [0.0, 0.35, 0.9])
def test_fgsm_from_a_random_start(net: nn.Module, data, share: float) -> None:
    subject, me = of_the_settings(net, data, zero_share=share)
    target = one_hot(data.y, CLASSES)
    for epoch in range(3):
        begin = naive.random_start(0, epoch, data.index, data.x, EPS)
        x_adv = one_step(me, data.x, target, begin, ONE_STEP, EPS, share)
        assert_parity(subject.visit(*data.of_step, epoch), update(me, x_adv, target))


def test_another_share_of_pixels_is_another_attack(net: nn.Module, data) -> None:
    subject, me = of_the_settings(net, data, zero_share=0.35)
    target = one_hot(data.y, CLASSES)
    begin = naive.random_start(0, 0, data.index, data.x, EPS)
    x_adv = one_step(me, data.x, target, begin, ONE_STEP, EPS, 0.4)
    assert differences(subject.visit(*data.of_step, 0), update(me, x_adv, target))["x_adv"] > APART


def test_it_prefers_one_step_of_ten_gray_levels_in_train_mode() -> None:
    attack = resolve(["fgsm-rs"], [Layer("test", {"attack.eps": "8/255"})]).attack
    assert (attack.steps, attack.step_size, attack.init, attack.mode) == (1, 10 / 255, "uniform", "train")


@given(st.integers(2, 40), st.floats(0, 0.999))
def test_as_many_pixels_stay_as_the_quantile_says(pixels: int, share: float) -> None:
    """Against torch's quantile, whose input may have 16 million elements at most; ours need not be small."""
    generator = torch.Generator().manual_seed(pixels)
    gradient = torch.randn(3, 1, 1, pixels, generator=generator, dtype=torch.float64)
    kept = largest_only(torch.ones_like(gradient), gradient, share)
    least = torch.quantile(gradient.abs().flatten(1), share, dim=1).view(-1, 1, 1, 1)
    near = (gradient.abs() - least).abs() < 1e-12  # an order statistic that the interpolation only rounds
    assert torch.equal(kept.bool() | near, (gradient.abs() >= least) | near)
    assert torch.equal(largest_only(gradient, gradient, 0.0), gradient)


# ---------------------------------------------------------------------- N-FGSM


@pytest.mark.parametrize("k", [1.0, 2.0])
def test_n_fgsm_adds_noise_and_does_not_project(net: nn.Module, data, k: float) -> None:
    attack = Attack(EPS, EPS, 1)
    subject, me = of_the_settings(net, data, attack, noise=k)
    target = one_hot(data.y, CLASSES)
    for epoch in range(3):
        begin = boxed(data.x, k * EPS * noise(epoch, data.index, data.x))
        x_adv = one_step(me, data.x, target, begin, attack, reach=10.0)
        measured = subject.visit(*data.of_step, epoch)
        assert_parity(measured, update(me, x_adv, target))
        shift = (measured["x_adv"] - data.x).abs()
        assert EPS < shift.max() <= (k + 1) * EPS + 1e-12 and measured["x_adv"].min() >= 0


def test_projecting_it_would_be_seen(net: nn.Module, data) -> None:
    attack = Attack(EPS, EPS, 1)
    subject, me = of_the_settings(net, data, attack, noise=2)
    target = one_hot(data.y, CLASSES)
    begin = boxed(data.x, 2 * EPS * noise(0, data.index, data.x))
    x_adv = one_step(me, data.x, target, begin, attack, reach=EPS)
    assert differences(subject.visit(*data.of_step, 0), update(me, x_adv, target))["x_adv"] > APART


def test_budgets_per_sample_scale_the_noise(net: nn.Module, data) -> None:
    """At its first visit cat-eps attacks with eta; noise and ball are so many times as wide."""
    eta = 0.05
    subject, _ = pair(
        net, ["fgsm-rs", "cat-eps"], attack=Attack(EPS, EPS, 1), samples=data.samples, lr=0.1,
        options={"fgsm-rs": {"noise": 2.0}, "cat-eps": {"eta": eta}},
    )  # fmt: skip
    shift = (subject.visit(*data.of_step, 0)["x_adv"] - data.x).abs()
    assert 2 * eta < shift.max() <= 3 * eta + 1e-12


# ---------------------------------------------------------------------- FAT's noise


@pytest.mark.parametrize("restarts", [1, 2])
def test_the_noise_of_fats_code_joins_the_move_before_the_projection(net: nn.Module, data, restarts: int) -> None:
    """x <- P(x + alpha sign(g) + omega N(0, 1)); tau is never reached, so no sample stops."""
    attack, omega = Attack(EPS, 0.03, 4), 0.02
    settings = {"attack.restarts": restarts, "attack.init": "uniform"}
    subject, me = pair(
        net, ["fat"], attack=attack, samples=data.samples, lr=0.1,
        options={"fat": {"tau": 4, "noise": omega}}, settings=settings,
    )  # fmt: skip
    target = one_hot(data.y, CLASSES)
    for epoch in range(3):
        model, x_adv, highest = me.copy(training=False), data.x.clone(), [float("-inf")] * len(data.x)
        for restart in range(restarts):
            begin = naive.random_start(0, epoch, data.index, data.x, EPS, restart)
            draws = Draws(derive_key(0, "fat", f"noise {restart}", "", epoch), data.index)
            drawn = [draws.normal(*data.x[0].shape, draw=k, dtype=torch.float64) for k in range(attack.m)]
            for i in range(len(data.x)):
                delta = begin[i]
                for k in range(attack.m):
                    delta.requires_grad_()
                    loss = cross_entropy(model((data.x[i] + delta)[None])[0], target[i])
                    (gradient,) = torch.autograd.grad(loss, delta)
                    delta = delta.detach() + attack.alpha * gradient.sign() + omega * drawn[k][i]
                    delta = boxed(data.x[i], delta.clamp(-EPS, EPS))
                value = float(cross_entropy(model((data.x[i] + delta)[None])[0], target[i]).detach())
                if value >= highest[i]:
                    highest[i], x_adv[i] = value, data.x[i] + delta
        assert_parity(subject.visit(*data.of_step, epoch), update(me, x_adv, target))


def test_a_stopped_sample_is_not_shaken(net: nn.Module, data) -> None:
    """With tau = 0 who is misclassified as it is stays where it is, noise or not."""
    subject, me = pair(
        net, ["fat"], attack=Attack(EPS, 0.03, 4), samples=data.samples, lr=0.1, options={"fat": {"noise": 0.02}}
    )
    wrong = me.copy(training=False)(data.x).argmax(1) != data.y
    still = (subject.visit(*data.of_step, 0)["x_adv"] == data.x).flatten(1).all(1)
    assert 0 < wrong.sum() < len(wrong) and torch.equal(still, wrong)


# ---------------------------------------------------------------------- what the plan says, and what is checked


def test_what_the_plan_says() -> None:
    def cautions(settings: dict[str, object] | None = None, **options: object) -> tuple[str, ...]:
        return resolve(["fgsm-rs"], [Layer("test", settings or {}, {"fgsm-rs": options})]).cautions

    assert cautions() == ()
    assert cautions({"attack.steps": 2}) == ("fgsm-rs is a method of one step, and attack.steps is 2",)
    far = "fgsm-rs attacks up to 3 times as far as the budget allows"
    assert cautions({"attack.step_size": "eps"}, noise=2) == (far,)
    other = "N-FGSM steps by eps (attack.step_size=eps); this run by another length"
    assert cautions(noise=2) == (other, far.replace("3", "3.25"))
    with pytest.raises(OptionError) as refused:
        cautions({"attack.norm": "l2", "attack.eps": 0.5}, noise=2)
    assert str(refused.value) == "fgsm-rs.noise and zero_share are for attack.norm = linf, not l2; drop them."


class Odd(Plugin):
    """Answers as a test says."""

    name = "odd"


def odd(data, net: nn.Module, **answers: object) -> None:
    plugin = type("Odd", (Odd,), {hook: hookimpl(answer) for hook, answer in answers.items()})
    subject, _ = pair(net, [plugin], attack=ONE_STEP, samples=data.samples, lr=0.1)
    subject.visit(*data.of_step, 0)


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        (
            {"budget_scale": lambda self: BudgetScale(radius=1.5)},
            "budget_scale: radius is above 1, which Plugin.largest_scale says is the largest",
        ),
        (
            {"attack_start": lambda self, batch: batch.x[:2]},
            "attack_start: images (8, 2, 6, 6) float64 are expected, not (2, 2, 6, 6) float64",
        ),
        (
            {"attack_start": lambda self, batch: (batch.x - 0.3).clamp(0, 1)},
            "attack_start: images leave the ball of the budget (dataset index 17)",
        ),
        ({"attack_start": lambda self, batch: batch.x - 0.1}, "attack_start: images leave [0, 1] (dataset index 17)"),
        (
            {"attack_move": lambda self, move: move[:, :1]},
            "attack_move: images (8, 2, 6, 6) float64 are expected, not (8, 1, 6, 6) float64",
        ),
        (
            {"attack_move": lambda self, move: move / 0},
            "attack_move: the move is not finite (dataset index 17)",
        ),
        ({"attack_move": lambda self, move: move.requires_grad_()}, "attack_move: the move must be detached"),
    ],
)
def test_a_breach_is_named(net: nn.Module, data, answers: dict[str, object], sentence: str) -> None:
    with pytest.raises(HookContract) as broken:
        odd(data, net, **answers)
    assert str(broken.value) == f"Plugin odd broke the contract of {sentence}. See docs/hooks.md."


@pytest.mark.parametrize(("hook", "does"), [("attack_start", "begins"), ("attack_move", "moves")])
def test_an_inner_attack_of_its_own_asks_neither(net: nn.Module, hook: str, does: str) -> None:
    own = type("Own", (Plugin,), {"name": "own", "inner_attack": hookimpl(lambda self, batch, radius, objective: None)})
    plugin = type("Odd", (Odd,), {hook: hookimpl(lambda self, batch: batch.x)})
    with pytest.raises(HookConflict) as refused:
        resolve([own, plugin])
    assert str(refused.value) == (
        f"Plugin odd answers {hook}, but the inner attack own {does} as it likes; leave one of them out."
    )


def test_without_an_attack_there_is_no_start(data, net: nn.Module) -> None:
    with pytest.raises(HookConflict, match=r"Plugin fgsm-rs answers attack_start, but attack\.steps is 0"):
        resolve(["fgsm-rs"], [Layer("test", {"attack.steps": 0})])
