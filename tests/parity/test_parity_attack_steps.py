"""What watches the attack, and fixed label smoothing: FAT, FOSC and GAIRAT against loops over samples and iterates."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from math import exp, tanh

import naive
import pytest
import torch
from conftest import CLASSES
from hypothesis import given, strategies as st
from methods import Method, run
from naive import Attack, Branch, Learner, cross_entropy, mean, one_hot
from subject import APART, Subject, assert_parity, differences, pair
from torch import Tensor, nn

from advkit import OptionError, Plugin, PluginOptions, Step, hookimpl
from advkit.config.layer import Layer
from advkit.config.resolve import resolve
from advkit_plugins.fat import one_more
from advkit_plugins.fosc import stationarity, threshold
from advkit_plugins.gairat import geometry_weights
from advkit_plugins.label_smoothing import smoothed

ATTACK = Attack(eps=0.12, alpha=0.02, m=9)


def with_options(name, *others, **values):
    return run(name, *others, options={name: values})


METHODS = {
    "fat": Method(
        neutral=[(with_options("fat", *others, tau=3), run(*others)) for others in ((), ("trades",), ("lsiw",))],
        changes=[(run("fat"), run()), (run("fat"), with_options("fat", tau=1))],
        moving={"fat": {"tau": [[0, 0.0], [1, 1.0]]}},
    ),
    "fosc": Method(
        # Nothing is below 0, and in these steps nothing is at 0.
        neutral=[(with_options("fosc", *others, c_max=0), run(*others)) for others in ((), ("trades",), ("lsiw",))],
        changes=[(with_options("fosc", c_max=50), run())],
        moving={"fosc": {"c_max": 0.02, "until": 1}},
    ),
    "gairat": Method(
        neutral=[
            (with_options("gairat", *others, lam=50, burn_in=0), run(*others))
            for others in ((), ("trades",), ("lsiw",))
        ]
        + [(with_options("gairat", burn_in=1), run())],
        changes=[
            (with_options("gairat", burn_in=0), run()),
            (with_options("gairat", "trades", burn_in=0, term="trades"), with_options("gairat", "trades", burn_in=0)),
        ],
        moving={"gairat": {"burn_in": 0}},
    ),
    "label-smoothing": Method(
        neutral=[(with_options("label-smoothing", *others, alpha=0), run(*others)) for others in ((), ("awp",))],
        changes=[
            (run("label-smoothing"), run()),
            (run("label-smoothing"), with_options("label-smoothing", attack=True)),
            (run("label-smoothing"), with_options("label-smoothing", over="others")),
        ],
        moving={"label-smoothing": {"alpha": 0.3}},
    ),
}


Stop = Callable[[int, int, Tensor, Tensor, Tensor], bool]
"""Of sample i: (i, k, logits z (K,), gradient, shift) at iterate k, whether it stays there."""


def iterates(
    me: Learner, x: Tensor, target: list[Tensor], attack: Attack, stop: Stop
) -> tuple[Tensor, list[list[int]]]:
    """The attack of `naive.perturbed`, one sample at a time, asking at each iterate; and the classes said there."""
    model, moved, classes = me.copy(training=False), [], []
    for i in range(len(x)):
        delta, said, stopped = torch.zeros_like(x[i]), [], False
        for k in range(attack.m):
            delta.requires_grad_()
            z = model((x[i] + delta)[None])[0]
            (gradient,) = torch.autograd.grad(cross_entropy(z, target[i]), delta)
            delta = delta.detach()
            said.append(int(z.argmax()))
            stopped = stopped or stop(i, k, z, gradient, delta)
            if not stopped:
                delta = (delta + attack.alpha * gradient.sign()).clamp(-attack.eps, attack.eps)
                delta = naive.boxed(x[i], delta)
        moved.append(x[i] + delta)
        classes.append(said)
    return torch.stack(moved), classes


def update(me: Learner, x_adv: Tensor, target: list[Tensor], weights: list[float] | None = None) -> dict[str, Tensor]:
    live = Branch(me.copy(), x_adv)
    terms = [cross_entropy(live.z[i], target[i]) for i in range(len(x_adv))]
    return {"x_adv": x_adv} | me.descend(
        mean([w * term for w, term in zip(weights or [1.0] * len(terms), terms, strict=True)]), live
    )


# ---------------------------------------------------------------------- FAT


def friendly(y: Tensor, tau: int) -> Stop:
    left = [tau] * len(y)

    def stop(i: int, k: int, z: Tensor, gradient: Tensor, delta: Tensor) -> bool:
        if int(z.argmax()) == y[i]:
            return False
        left[i] -= 1
        return left[i] < 0

    return stop


@pytest.mark.parametrize("tau", [0, 1, 2])
def test_fat_stops_each_sample_tau_steps_after_it_is_fooled(net: nn.Module, data, tau: int) -> None:
    options = {"fat": {"tau": tau}}
    subject, me = pair(net, ["fat"], attack=ATTACK, samples=data.samples, lr=0.1, options=options)
    target = one_hot(data.y, CLASSES)
    for epoch in range(3):
        x_adv, _ = iterates(me, data.x, target, ATTACK, friendly(data.y, tau))
        measured, expected = subject.visit(*data.of_step, epoch), update(me, x_adv, target)
        assert_parity(measured, expected)
    subject, me = pair(net, ["fat"], attack=ATTACK, samples=data.samples, lr=0.1, options=options)
    other, _ = iterates(me, data.x, target, ATTACK, friendly(data.y, tau + 1))
    assert differences(subject.visit(*data.of_step, 0), update(me, other, target))["x_adv"] > APART


def test_a_friendly_image_is_fooled_and_was_not_a_step_before(net: nn.Module, data) -> None:
    """With tau = 0, of samples that are classified correctly at the image."""
    subject, me = pair(net, ["fat"], attack=ATTACK, samples=data.samples, lr=0.1)
    x_adv = subject.visit(*data.of_step, 0)["x_adv"]
    _, said = iterates(me, data.x, one_hot(data.y, CLASSES), ATTACK, friendly(data.y, 0))
    model = me.copy(training=False)
    assert 0 < sum(row[0] == label for row, label in zip(said, data.y.tolist(), strict=True)) < len(said)
    for i, label in enumerate(data.y.tolist()):
        fooled = [k for k, name in enumerate(said[i]) if name != label]
        if fooled:
            assert naive.prediction(model, x_adv[i]) != label
            assert all(name == label for name in said[i][: fooled[0]])


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(0, 4))
def test_one_more_counts_as_the_code_does(wrong: list[bool], tau: int) -> None:
    """control: 0 stops, else it is taken down by one; and a stopped sample, wrong where it is, stays stopped."""
    left, moves = torch.tensor([tau]), 0
    for name in wrong:
        go, left = one_more(torch.tensor([name]), left)
        moves += int(name and bool(go))
    assert moves == min(tau, sum(wrong)) and int(left) == tau - moves


# ---------------------------------------------------------------------- FOSC


@pytest.mark.parametrize(("c_max", "epoch"), [(0.2, 0), (0.2, 5), (1.0, 12)])
def test_fosc_stops_where_the_criterion_is_met(net: nn.Module, data, c_max: float, epoch: int) -> None:
    """c(x^k) = eps ||g||_1 - <x^k - x^0, g> <= c_t, asked from the first move on; 20 epochs, T' = 50 / 3."""
    c_t = max(0.0, c_max - c_max * epoch / (5 / 6 * 20))

    def stop(i: int, k: int, z: Tensor, gradient: Tensor, delta: Tensor) -> bool:
        return k > 0 and bool(ATTACK.eps * gradient.abs().sum() - (delta * gradient).sum() <= c_t)

    options = {"fosc": {"c_max": c_max}}
    subject, me = pair(net, ["fosc"], attack=ATTACK, samples=data.samples, lr=0.1, options=options)
    target = one_hot(data.y, CLASSES)
    x_adv, _ = iterates(me, data.x, target, ATTACK, stop)
    plain = naive.attacked(me, data.x, target, ATTACK)
    assert_parity(subject.visit(*data.of_step, epoch), update(me, x_adv, target))
    assert (x_adv - plain).abs().max() > APART, "it stops somebody"


def test_the_criterion_is_0_at_the_best_corner_and_eps_times_the_dual_norm_at_the_centre() -> None:
    gradient, radius = torch.randn(5, 2, 3, 3, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    wide = radius.view(-1, 1, 1, 1)
    assert stationarity(gradient, wide * gradient.sign(), radius, "linf").abs().max() < 1e-14
    norm = gradient.flatten(1).norm(dim=1)
    assert stationarity(gradient, wide * gradient / norm.view(-1, 1, 1, 1), radius, "l2").abs().max() < 1e-14
    still = torch.zeros_like(gradient)
    assert torch.allclose(stationarity(gradient, still, radius, "linf"), radius * gradient.abs().flatten(1).sum(1))
    assert torch.allclose(stationarity(gradient, still, radius, "l2"), radius * norm)


def test_the_threshold_falls_to_0_after_100_of_120_epochs() -> None:
    assert [threshold(epoch, 120 * (5 / 6), 0.5) for epoch in (0, 50, 100, 119)] == pytest.approx([0.5, 0.25, 0, 0])


class Watch(Plugin):
    """Keeps what it sees of an attack."""

    name = "watch"

    @hookimpl
    def attack_step(self, x_adv: Tensor, gradient: Tensor, step: int) -> Tensor:
        self.seen = [*(self.seen if step else []), (x_adv.clone(), gradient.clone())]
        return torch.ones(len(x_adv), dtype=torch.bool)


def test_the_start_can_be_the_centre(net: nn.Module, data) -> None:
    """As the code, which counts the shift from the random start."""
    visits = {}
    for centre in ("image", "start"):
        watch = Watch(PluginOptions())
        subject = Subject(
            net, ["fosc", watch], attack=ATTACK, samples=data.samples, lr=0.1,
            options={"fosc": {"c_max": 0.05, "centre": centre}}, settings={"attack.init": "uniform"},
        )  # fmt: skip
        visits[centre] = subject.visit(*data.of_step, 0)["x_adv"]
        begin = watch.seen[0][0] if centre == "start" else data.x
        stopped, at_each = torch.zeros(len(data.y), dtype=torch.bool), []
        for (now, gradient), (later, _) in itertools.pairwise(watch.seen[1:]):
            c = ATTACK.eps * gradient.abs().flatten(1).sum(1) - ((now - begin) * gradient).flatten(1).sum(1)
            stopped |= c <= 0.05
            assert torch.equal((later == now).flatten(1).all(1), stopped)
            at_each.append(int(stopped.sum()))
        assert at_each[0] < len(stopped) and at_each[-1] > 0
    assert not torch.equal(visits["image"], visits["start"])


# ---------------------------------------------------------------------- GAIRAT


@pytest.mark.parametrize("form", ["tanh", "sigmoid", "discrete"])
@pytest.mark.parametrize("m", [9, 4])
def test_gairat_weighs_by_the_iterates_that_are_right(net: nn.Module, data, form: str, m: int) -> None:
    attack = Attack(ATTACK.eps, ATTACK.alpha, m)
    options = {"gairat": {"form": form, "burn_in": 0}}
    subject, me = pair(net, ["gairat"], attack=attack, samples=data.samples, lr=0.1, options=options)
    target = one_hot(data.y, CLASSES)
    for epoch in range(3):
        x_adv, said = iterates(me, data.x, target, attack, lambda *at: False)
        kappa = [sum(name == label for name in row) for row, label in zip(said, data.y.tolist(), strict=True)]
        assert len(set(kappa)) > 1
        ways = [-1 + 5 * (1 - 2 * k / m) for k in kappa]
        raw = {
            "tanh": [(1 + tanh(way)) / 2 for way in ways],
            "sigmoid": [1 / (1 + exp(-way)) for way in ways],
            "discrete": [(m + 1 - k) / (m + 1) for k in kappa],
        }[form]
        weights = [w * len(raw) / sum(raw) for w in raw]
        assert_parity(subject.visit(*data.of_step, epoch), update(me, x_adv, target, weights))


def test_of_several_restarts_gairat_counts_the_one_that_is_kept(net: nn.Module, data) -> None:
    seen = []

    class Spy(Plugin):
        name = "spy"

        @hookimpl
        def attack_step(self, batch, logits, step, restart):
            seen.append((restart, (logits.argmax(1) == batch.y).double()))
            return torch.ones_like(batch.y, dtype=torch.bool)

        @hookimpl
        def observe_update(self, attack, adv_logits):
            seen.append((attack.restart, adv_logits))

    settings = {"attack.restarts": 3, "attack.init": "uniform", "attack.steps": 3, "attack.step_size": 0.05}
    step = Step(
        net, torch.optim.SGD(net.parameters(), 0.0), ["gairat", Spy], num_samples=data.samples, eps=0.5,
        options={"gairat": {"burn_in": 0}}, settings=settings | {"run.epochs": 1},
    )  # fmt: skip
    with torch.no_grad():
        y = net.eval()(data.x).argmax(1)  # so that the attack has something to turn
    report = step(data.x, y, data.index, epoch=0)
    kept, logits = seen.pop()
    kappa = torch.stack([sum(right for of, right in seen if of == restart) for restart in range(3)])
    losses = nn.functional.cross_entropy(logits, y, reduction="none")
    own, of_the_last = (
        float((geometry_weights(counts, 3, form="tanh", lam=-1.0) * losses).mean())
        for counts in (kappa.gather(0, kept[None])[0], kappa[-1])
    )
    assert float(report.loss) == pytest.approx(own, rel=1e-12) and abs(own - of_the_last) > 1e-3


def test_the_weights_of_related_work() -> None:
    """At ten steps and lambda = -1 the raw weights are 0.9997, 0.8808, 0.5 and 0.1192 at kappa = 0, 3, 4, 5."""
    weights = geometry_weights(torch.tensor([0.0, 3, 4, 5]), 10, form="tanh", lam=-1.0)
    assert (weights / weights[2] / 2).tolist() == pytest.approx([0.9997, 0.8808, 0.5, 0.1192], abs=5e-5)
    assert weights.mean().item() == pytest.approx(1)


def test_nobody_who_is_fooled_leaves_all_alike() -> None:
    assert geometry_weights(torch.full((4,), 10.0), 10, form="tanh", lam=-50.0).tolist() == [1.0] * 4


def test_the_burn_in_is_plain(net: nn.Module, data) -> None:
    subject, me = pair(net, ["gairat"], attack=ATTACK, samples=data.samples, lr=0.1)  # 10 of 20 epochs
    assert_parity(subject.visit(*data.of_step, 9), naive.pgd_at(me, *data.of_naive, attack=ATTACK))
    assert (
        differences(subject.visit(*data.of_step, 10), naive.pgd_at(me, *data.of_naive, attack=ATTACK))["loss"] > APART
    )


def test_a_burn_in_of_one_epoch_and_a_half_is_two() -> None:
    (gairat,) = resolve(["gairat"], [Layer("test", {"run.epochs": 3})]).composition.plugins
    assert [gairat.active("instance_weight", epoch) for epoch in range(3)] == [False, False, True]


# ---------------------------------------------------------------------- label smoothing


@pytest.mark.parametrize("over", ["all", "others"])
@pytest.mark.parametrize("attacked", [False, True])
def test_labels_are_smoothed_by_a_fixed_share(net: nn.Module, data, over: str, attacked: bool) -> None:
    options = {"label-smoothing": {"alpha": 0.3, "over": over, "attack": attacked}}
    subject, me = pair(net, ["label-smoothing"], attack=ATTACK, samples=data.samples, lr=0.1, options=options)
    hard = one_hot(data.y, CLASSES)
    rest = 0.3 / CLASSES if over == "all" else 0.3 / (CLASSES - 1)
    soft = [torch.where(row == 1, 1 - rest * (CLASSES - 1), torch.full_like(row, rest)) for row in hard]
    for epoch in range(2):
        x_adv = naive.attacked(me, data.x, soft if attacked else hard, ATTACK)
        assert_parity(subject.visit(*data.of_step, epoch), update(me, x_adv, soft))


def test_another_share_would_be_seen(net: nn.Module, data) -> None:
    options = {"label-smoothing": {"alpha": 0.3}}
    subject, me = pair(net, ["label-smoothing"], attack=ATTACK, samples=data.samples, lr=0.1, options=options)
    hard = one_hot(data.y, CLASSES)
    expected = update(me, naive.attacked(me, data.x, hard, ATTACK), [0.8 * row + 0.2 / CLASSES for row in hard])
    assert differences(subject.visit(*data.of_step, 0), expected)["loss"] > APART


@given(st.floats(0, 1), st.sampled_from(["all", "others"]))
def test_smoothed_rows_stay_on_the_simplex(alpha: float, over: str) -> None:
    rows = torch.tensor([[1.0, 0, 0], [0.2, 0.3, 0.5]], dtype=torch.float64)
    after = smoothed(rows, alpha, over)  # type: ignore[arg-type]
    assert (after >= 0).all() and torch.allclose(after.sum(1), torch.ones(2, dtype=torch.float64))


# ---------------------------------------------------------------------- what the plan says


def test_what_the_plan_says() -> None:
    def cautions(*plugins: str, **options: object) -> tuple[str, ...]:
        return resolve(plugins, [Layer("test", options.pop("settings", {}), options)]).cautions

    assert cautions("fat") == ()
    never = "fat.tau is never below the 10 steps of the attack: no sample stops early"
    assert cautions("fat", fat={"tau": 10}) == (never,)
    with pytest.raises(OptionError, match=r"fat\.tau = 0\.5 counts steps; give whole numbers\."):
        cautions("fat", fat={"tau": 0.5})
    base = "gairat weighs the base loss: its figures hold for the attack it trains with; judge it by AutoAttack"
    assert cautions("gairat") == (base,)
    assert "gairat.burn_in is the whole run: no sample is weighed" in cautions("gairat", gairat={"burn_in": 1})
    assert any("compares steps between samples" in said for said in cautions("gairat", "cat-eps"))
    one = cautions("gairat", settings={"attack.steps": 1})
    assert "gairat counts the steps of the attack until a sample is fooled, and this attack has one" in one
    start = "fosc.centre=start is the image where the attack starts at it (attack.init)"
    assert cautions("fosc", fosc={"centre": "start"}) == (start,)
    half = "label-smoothing.alpha = 0.6 leaves the label less than half"
    assert cautions("label-smoothing", **{"label-smoothing": {"alpha": 0.6}}) == (half,)
