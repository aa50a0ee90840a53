"""Budgets that are found by attacking: IAAT against a loop over samples, and the probes themselves."""

from __future__ import annotations

from dataclasses import replace

import naive
import pytest
import torch
from conftest import CLASSES
from hypothesis import given, strategies as st
from methods import Method, run
from naive import Attack, Branch, Learner, boxed, cross_entropy, mean, one_hot, perturbed, prediction
from subject import APART, Subject, assert_parity, differences, pair
from torch import Tensor, nn

from advkit import Budget, HookContract, NonFinite, OptionError, Passes, Plugin, PluginOptions, Run, Step, hookimpl
from advkit.config.layer import Layer
from advkit.config.resolve import resolve
from advkit.rng import Draws, derive_key
from advkit_plugins.iaat import next_eps

EPS, STEPS = 0.12, 4
ATTACK = Attack(EPS, EPS / 4, STEPS)


def with_options(name, *others, settings=(), **values):
    return run(name, *others, options={name: values}, settings=dict(settings))


IN_EVAL = {"attack.mode": "eval"}
METHODS = {
    "iaat": Method(
        # A budget that is rounded off: both train on the images as they are, and the probes leave no trace.
        neutral=[
            (
                with_options("iaat", *others, settings=IN_EVAL, warm_up=0, cap=1e-30),
                run(*others, eps=1e-30, settings=IN_EVAL),
            )
            for others in ((), ("awp",), ("ema",))
        ],
        changes=[
            (with_options("iaat", settings=IN_EVAL, warm_up=1), run(settings=IN_EVAL)),
            (with_options("iaat", settings=IN_EVAL, warm_up=1), with_options("iaat", settings=IN_EVAL, warm_up=0)),
        ],
        moving={"iaat": {"warm_up": 1, "beta": 0.5}},
    ),
}


# ---------------------------------------------------------------------- IAAT


def drawn(owner: str, purpose: str, phase: str, epoch: int, index: Tensor, x: Tensor) -> Tensor:
    draws = Draws(derive_key(0, owner, purpose, phase, epoch), index)
    return draws.uniform(*x[0].shape, low=-1, high=1, dtype=torch.float64)


class Adapter:
    """The budgets of IAAT, one sample at a time, as its code has them: eps_i of each, all 0 at first."""

    def __init__(self, gamma: float, beta: float, warm_up: int, cap: float = 1.0, floor: float = EPS / 4) -> None:
        self.gamma, self.beta, self.warm_up, self.cap, self.floor = gamma, beta, warm_up, cap, floor
        self.eps: dict[int, float] = {}

    def visit(self, me: Learner, x: Tensor, y: Tensor, index: Tensor, epoch: int) -> Tensor:
        """The images to train on."""
        model, target, x_adv = me.copy(training=False), one_hot(y, CLASSES), x.clone()
        noise = {purpose: drawn("iaat", purpose, "probe", epoch, index, x) for purpose in ("low", "high")}
        noise["train"] = drawn("core", "start", "attack", epoch, index, x)
        for i, sample in enumerate(index.tolist()):
            label, before = int(y[i]), self.eps.get(sample, 0.0)

            def attacked(eps: float, purpose: str, i: int = i) -> Tensor:
                attack = Attack(eps, max(eps / (0.5 * STEPS), self.floor), STEPS)
                begin = boxed(x[i], eps * noise[purpose][i])
                return perturbed(model, x[i], lambda z: cross_entropy(z, target[i]), eps, attack, begin)

            right = prediction(model, x[i]) == label
            if epoch < self.warm_up:
                eps = EPS if right else 0.0
            else:
                high = prediction(model, attacked(before + self.gamma, "high")) == label
                low = prediction(model, attacked(before, "low")) == label
                eps = before + self.gamma if high else before if low else before - self.gamma
                eps = max(0.0, eps if right else 0.0)
                eps = eps * self.beta + before * (1 - self.beta)
            self.eps[sample] = eps = min(eps, self.cap)
            x_adv[i] = attacked(eps, "train")
        return x_adv


def update(me: Learner, x_adv: Tensor, y: Tensor) -> dict[str, Tensor]:
    live, target = Branch(me.copy(), x_adv), one_hot(y, CLASSES)
    return {"x_adv": x_adv} | me.descend(mean([cross_entropy(live.z[i], target[i]) for i in range(len(y))]), live)


def iaat(net: nn.Module, data, **options: object) -> tuple[Subject, Learner]:
    settings = {"attack.mode": "eval"}
    return pair(
        net, ["iaat"], attack=ATTACK, samples=data.samples, lr=0.1, options={"iaat": options}, settings=settings
    )


@pytest.mark.parametrize(("warm_up", "beta", "cap"), [(1, 0.1, 0.0), (1, 1.0, 0.0), (0, 0.6, 0.0), (1, 1.0, 0.13)])
def test_iaat_moves_each_budget_by_two_attacks(net: nn.Module, data, warm_up: int, beta: float, cap: float) -> None:
    subject, me = iaat(net, data, warm_up=warm_up, beta=beta, gamma=0.03, cap=cap)
    naive_one, seen = Adapter(0.03, beta, warm_up, cap or 1.0), []
    for epoch in range(4):
        x_adv = naive_one.visit(me, *data.of_step, epoch)
        assert_parity(subject.visit(*data.of_step, epoch), update(me, x_adv, data.y))
        eps = torch.tensor([naive_one.eps[sample] for sample in data.index.tolist()], dtype=torch.float64)
        torch.testing.assert_close(subject.step.state.samples["iaat/eps"][data.index], eps, rtol=1e-12, atol=0)
        seen.append(eps)
    assert len(set(torch.stack(seen).flatten().tolist())) >= (3 if cap else 4), "budgets differ"
    untouched = [i for i in range(data.samples) if i not in data.index.tolist()]
    assert not subject.step.state.samples["iaat/eps"][untouched].any()


@pytest.mark.parametrize("other", [{"gamma": 0.04}, {"least_step": 0.004}])
def test_another_constant_would_be_seen(net: nn.Module, data, other: dict[str, float]) -> None:
    subject, me = iaat(net, data, **({"warm_up": 0, "beta": 1.0, "gamma": 0.03} | other))
    x_adv = Adapter(0.03, 1.0, 0).visit(me, *data.of_step, 0)
    assert differences(subject.visit(*data.of_step, 0), update(me, x_adv, data.y))["x_adv"] > APART


@given(st.floats(0, 0.2), st.booleans(), st.booleans(), st.booleans())
def test_the_candidate_of_the_code(eps: float, right: bool, low: bool, high: bool) -> None:
    """The sum of three products of its epsilon_select, clamped, times beta, plus the rest."""
    gamma, beta = 0.02, 0.1
    p_high, p_low, c = float(high), float(low), float(right)
    code = p_high * (eps + gamma) + (1 - p_high) * p_low * eps + (1 - p_high) * (1 - p_low) * (eps - gamma)
    code = max(0.0, code * c) * beta + eps * (1 - beta)
    mine = next_eps(
        torch.tensor([eps], dtype=torch.float64),
        *(torch.tensor([flag]) for flag in (right, low, high)), gamma=gamma, beta=beta,
    )  # fmt: skip
    assert mine.item() == pytest.approx(code, abs=1e-15)


class Ramp(nn.Module):
    """Two classes of one pixel, apart at 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        z = self.slope * (x.flatten(1) - 0.5)
        return torch.cat([-z, z], 1)


def test_a_budget_settles_just_below_the_margin() -> None:
    """Of a linear net whose margin is known, within gamma; a misclassified image goes to 0."""
    x = torch.tensor([0.9, 0.7, 0.6, 0.3], dtype=torch.float64).view(4, 1, 1, 1)
    y = torch.tensor([1, 1, 1, 1])
    model = Ramp()
    step = Step(
        model, torch.optim.SGD(model.parameters(), 0.0), ["iaat"], num_samples=4, eps=0.1,
        options={"iaat": {"warm_up": 0, "gamma": 0.02, "beta": 0.3}}, settings={"attack.steps": 4},
    )  # fmt: skip
    for epoch in range(100):
        step(x, y, torch.arange(4), epoch=epoch)
    eps = step.state.samples["iaat/eps"]
    margin = torch.tensor([0.4, 0.2, 0.1, 0.0], dtype=torch.float64)
    assert ((margin - 0.02 - 1e-9 <= eps) & (eps <= margin + 0.002)).all() and eps[3] == 0


def test_a_warm_up_writes_eps_or_nothing(net: nn.Module, data) -> None:
    subject, me = iaat(net, data, warm_up=1)
    right = me.copy(training=False)(data.x).argmax(1) == data.y
    subject.visit(*data.of_step, 0)
    assert 0 < right.sum() < len(right)
    assert torch.equal(subject.step.state.samples["iaat/eps"][data.index], EPS * right.double())


def test_what_the_plan_says_of_iaat() -> None:
    def cautions(*others: str, epochs: int = 20, mode: str = "train", **options: object) -> tuple[str, ...]:
        settings = {"run.epochs": epochs, "attack.mode": mode}
        return resolve(["iaat", *others], [Layer("test", settings, {"iaat": options})]).cautions

    grows = "iaat.cap is 0: eps_i of easy samples grows beyond attack.eps, as in the paper"
    assert cautions() == (grows,) and cautions(cap=0.1) == ()
    assert cautions(cap=0.1, mode="eval") == ("the official IAAT code attacks in train mode; this run in eval mode",)
    assert cautions(cap=0.1, epochs=5) == ("iaat.warm_up is 10 epochs: a run of 5 adapts nothing",)
    scaled = "eps-ramp scales the radius that is attacked, but iaat probes as if it were not scaled"
    assert cautions("eps-ramp", cap=0.1) == (scaled,)
    stages = resolve(["iaat"], [Layer("test", {"run.epochs": 12})]).composition.stages()
    assert [(epoch, stage.passes["attack"]) for epoch, stage in stages] == [
        (0, Passes(11, 10)),
        (10, Passes(33, 30)),
    ]


# ---------------------------------------------------------------------- the probes


OF_TWO_STEPS = Passes(3, 2)
"""A probe of two steps, and the logits at its end."""


class Prober(Plugin):
    """Probes with what a test gives, and keeps what came of it."""

    name = "prober"

    def __init__(self, options: PluginOptions, *, declared: Passes = OF_TWO_STEPS, at: str = "", **how: object) -> None:
        super().__init__(options)
        self.how, self.declared, self.at = how, declared, at

    def passes(self, hook, costs):
        return self.declared if hook == "perturbation_budget" else Passes()

    @hookimpl
    def perturbation_budget(self, batch, run: Run):
        radius = torch.full_like(batch.x[:, 0, 0, 0], 0.1)
        if not self.at:
            given = {"batch": batch, "radius": radius, "steps": 2, **self.how}
            self.result = run.probe(**given)
            self.logits = run.logits(self.result.x_adv)
        return Budget(attack=radius, label=radius)

    @hookimpl
    def observe_update(self, batch, run: Run):
        if self.at == "observe_update":
            run.logits(batch.x)


def probed(net: nn.Module, data, **how) -> tuple[Prober, Subject]:
    prober = Prober(PluginOptions(), **how)
    subject = Subject(net, [prober], attack=ATTACK, samples=data.samples, lr=0.1)
    subject.visit(*data.of_step, 0)
    return prober, subject


def test_a_probe_is_the_attack_that_it_says(net: nn.Module, data) -> None:
    """From x and from a random start; another objective, another step size; and the logits at its end."""
    model = Learner(net, data.samples, 0.1).copy(training=False)
    for how in (
        {},
        {"init": "uniform", "purpose": "other"},
        {"objective": lambda logits: -logits[:, 0]},
        {"step_size": 0.07},
        {"radius": 0.1},
        {"radius": torch.tensor(0.1, dtype=torch.float64), "step_size": torch.tensor(0.07, dtype=torch.float64)},
    ):
        prober, _ = probed(net, data, **how)
        attack, goal = Attack(0.1, float(how.get("step_size", ATTACK.alpha)), 2), how.get("objective")
        noise = drawn("prober", "other", "probe", 0, data.index, data.x)
        for i, target in enumerate(one_hot(data.y, CLASSES)):
            begin = boxed(data.x[i], 0.1 * noise[i]) if "init" in how else None
            aim = (lambda z: -z[0]) if goal else naive.ce_with(target)
            expected = perturbed(model, data.x[i], aim, 0.1, attack, begin)
            torch.testing.assert_close(prober.result.x_adv[i], expected, rtol=0, atol=1e-12)
            torch.testing.assert_close(prober.logits[i], model(expected[None])[0])
        assert not prober.logits.requires_grad and not prober.result.x_adv.requires_grad


def test_a_probe_is_booked_to_who_probes(net: nn.Module, data) -> None:
    prober = Prober(PluginOptions())
    step = Subject(net, [prober], attack=ATTACK, samples=data.samples, lr=0.1).step
    report = step(*data.of_step, epoch=0)
    assert report.passes["attack"] == Passes(STEPS + 3, STEPS + 2) == step.composition.at(0).passes["attack"]
    assert report.demanded_by["attack.probe of prober"] == ["prober"] == report.demanded_by["attack.logits of prober"]


def test_a_probe_that_is_not_declared_is_refused(net: nn.Module, data) -> None:
    with pytest.raises(HookContract, match="Plugin prober ran other passes than declared"):
        probed(net, data, declared=Passes())


def test_probes_change_neither_the_attack_nor_the_net(normed: nn.Module, data) -> None:
    """BatchNorm's statistics, in a mode in which iterates may not move them; and nobody's random numbers."""
    for mode in ("eval", "train-frozen"):
        steps = []
        for prober in (
            Prober(PluginOptions(), init="uniform"),
            Prober(PluginOptions(), at="nowhere", declared=Passes()),
        ):
            subject = Subject(
                normed, [prober], attack=ATTACK, samples=data.samples, lr=0.1, settings={"attack.mode": mode}
            )
            steps.append(subject.visit(*data.of_step, 0))
        assert all(torch.equal(steps[0][name], steps[1][name]) for name in steps[0])


def test_where_no_probe_is_booked_none_runs(net: nn.Module, data) -> None:
    with pytest.raises(HookContract) as refused:
        probed(net, data, at="observe_update", declared=Passes())
    assert str(refused.value) == (
        "Plugin prober probes the model where no probe is booked; call run.probe and run.logits in hooks of the attack "
        "phase, in epoch_end, or in observe_update within `with run.ahead():`."
    )


BROKEN, PAGE = " broke the contract of run.probe", "See docs/writing-a-plugin.md."
NAN = torch.tensor([0.1] * 8).where(torch.arange(8) != 2, torch.nan)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        (
            {"radius": torch.ones(3)},
            f"{BROKEN}: radius must be (8,) floating point or a number, not (3,) float32. {PAGE}",
        ),
        (
            {"radius": torch.ones(8).long()},
            f"{BROKEN}: radius must be (8,) floating point or a number, not (8,) int64. {PAGE}",
        ),
        (
            {"step_size": torch.tensor(True)},
            f"{BROKEN}: step_size must be (8,) floating point or a number, not () bool. {PAGE}",
        ),
        ({"radius": NAN}, f"{BROKEN}: radius is not finite (dataset index 29). {PAGE}"),
        ({"radius": -NAN.isnan().double()}, f"{BROKEN}: radius must not be negative (dataset index 29). {PAGE}"),
        ({"radius": torch.inf}, f"{BROKEN}: radius is not finite (dataset index 17). {PAGE}"),
        ({"radius": True}, ": radius of run.probe is True; pass a number."),
        ({"step_size": NAN}, f"{BROKEN}: step_size is not finite (dataset index 29). {PAGE}"),
        ({"step_size": -0.1}, f"{BROKEN}: step_size must not be negative (dataset index 17). {PAGE}"),
        ({"step_size": "eps"}, ": step_size of run.probe is 'eps'; pass a number."),
        ({"batch": "all"}, ": run.probe takes an advkit.Batch, not str."),
        ({"objective": "ce"}, f"{BROKEN[:-9]}the objective of run.probe: a callable is expected, not str. {PAGE}"),
        (
            {"objective": lambda z: z.sum()},
            f"{BROKEN[:-9]}the objective of run.probe: it must return (8,), not () float64. {PAGE}",
        ),
        ({"init": "here"}, ": init of run.probe must be one of zero, uniform, normal, not 'here'."),
    ],
)
def test_what_a_probe_can_not_be(net: nn.Module, data, how: dict[str, object], sentence: str) -> None:
    with pytest.raises((HookContract, OptionError)) as refused:
        probed(net, data, **how)
    assert str(refused.value) == f"Plugin prober{sentence}"


ODD_BATCHES = {
    "y must be (4,) int64, a row for each image, not (8,) int64": lambda batch: {"x": batch.x[:4]},
    "y must be (8,) int64, a row for each image, not (4,) int64": lambda batch: {"y": batch.y[:4]},
    "y must be (8,) int64, a row for each image, not (8,) float32": lambda batch: {"y": batch.y.float()},
    "y must be (8,) int64, a row for each image, not list": lambda batch: {"y": batch.y.tolist()},
    "index must be (8,) int64, a row for each image, not (4,) int64": lambda batch: {"index": batch.index[:4]},
    "occurrence must be (8,) int64, a row for each image, not (8, 1) int64": lambda batch: {
        "occurrence": batch.occurrence[:, None]
    },
    f"labels leave 0..{CLASSES - 1} (dataset index 17)": lambda batch: {"y": batch.y - CLASSES},
    "it is called in torch.inference_mode, where nothing has a gradient; call it outside of that": lambda batch: {},
}


@pytest.mark.parametrize("sentence", ODD_BATCHES)
def test_what_a_probe_can_not_be_of(net: nn.Module, data, sentence: str) -> None:
    class Odd(Prober):
        @hookimpl
        def perturbation_budget(self, batch, run: Run):
            with torch.inference_mode(sentence.startswith("it is")):
                run.probe(replace(batch, **ODD_BATCHES[sentence](batch)), 0.1, init="uniform")

    with pytest.raises(HookContract) as refused:
        Subject(net, [Odd(PluginOptions())], attack=ATTACK, samples=data.samples, lr=0.1).visit(*data.of_step, 0)
    assert str(refused.value) == f"Plugin prober{BROKEN}: {sentence}. {PAGE}"


def test_on_a_cpu_a_probe_is_looked_at_in_every_step(net: nn.Module, data) -> None:
    class Late(Prober):
        @hookimpl
        def perturbation_budget(self, batch, run: Run):
            odd = {"y": batch.y + CLASSES} if run.epoch else {}
            run.logits(run.probe(replace(batch, **odd), 0.1, steps=2).x_adv)
            return Budget(attack=torch.full_like(batch.x[:, 0, 0, 0], 0.1), label=batch.x.new_full((8,), 0.1))

    subject = Subject(net, [Late(PluginOptions())], attack=ATTACK, samples=data.samples, lr=0.1)
    subject.visit(*data.of_step, 0)
    with pytest.raises(HookContract, match=rf"run\.probe: labels leave 0\.\.{CLASSES - 1} \(dataset index 17\)"):
        subject.visit(*data.of_step, 1)


class Spoilt(nn.Module):
    """Its gradient at the images is NaN in its first two backwards."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.left = net, 2

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and self.left and len(x) > 1:
            self.left -= 1
            x.register_hook(lambda gradient: gradient * float("nan"))
        return self.net(x)


def test_a_probe_of_nan_gradients_ends_the_step(net: nn.Module, data) -> None:
    """sign(NaN) is 0: else the probe would be no attack, and every image robust."""
    with pytest.raises(NonFinite, match="an input gradient of the attack"):
        probed(Spoilt(net), data)
