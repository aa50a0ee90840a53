"""LAS-AT against its loop written out: a strategy net draws, each image is attacked, a step ahead, REINFORCE."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import naive
import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES
from methods import Method, run
from naive import Attack, Branch, Learner, boxed, cross_entropy, log_softmax, mean, one_hot, perturbed
from subject import APART, TOLERANCE, Subject, assert_parity, pair
from torch import Tensor, nn

from advkit import HookConflict, OptionError, Passes, Step
from advkit.config.layer import Layer
from advkit.config.resolve import resolve
from advkit.rng import Draws, derive_key
from advkit.training.cost import pgd_at_cost
from advkit.training.plan import plan
from advkit_plugins.las_at import drawn, log_probability, nearest

EPS, STEPS, SEED = 0.1, 4, 5
ATTACK = Attack(EPS, EPS / 4, STEPS)
AS_LAS = {"attack.init": "uniform", "attack.mode": "eval", "attack.step_size": "eps/4"}
ONE = {"eps_min": "eps", "eps_max": "eps", "steps_min": 3, "step_min": "eps/4", "step_max": "eps/4", "width": 2}
"""One choice of each: the run's own attack."""
MANY = {"eps_count": 4, "step_count": 3, "steps_min": 2, "width": 3, "ahead_steps": 3, "lr": 0.05, "every": 1}


def given(*others, **values):
    return run("las-at", *others, options={"las-at": values}, settings=AS_LAS)


METHODS = {
    "las-at": Method(
        # Where there is nothing to choose, trial steps and a strategy that learns leave no trace.
        neutral=[
            (given(*others, **ONE, every=every), run(*others, settings=AS_LAS))
            for others, every in (((), 1), (("awp",), 1), (("ema",), 2), (("trades",), 1))
        ],
        changes=[
            (given(width=2), run(settings=AS_LAS)),
            (given(width=2), given(width=2, train_eps="eps/2")),
            (given(width=2, lr=1.0, every=1), given(width=2, every=1)),
        ],
        moving={"las-at": {"lr": 1.0, "every": 1, "width": 2, "ahead_steps": 1}},
    )
}


def uniform(owner: str, purpose: str, phase: str, epoch: int, index: Tensor, *shape: int, draw: int = 0) -> Tensor:
    return Draws(derive_key(SEED, owner, purpose, phase, epoch), index).uniform(*shape, draw=draw, dtype=torch.float64)


class Strategist:
    """The strategy net as a list of weights, its choices and rewards one sample at a time, SGD by hand."""

    def __init__(self, subject: Subject, *, eps_min: float, eps_max: float, step_min: float, step_max: float) -> None:
        prefix = "las-at/strategy/weights/"
        stored = subject.step.state.tensors.items()
        self.w = {name.removeprefix(prefix): v.clone() for name, v in stored if name.startswith(prefix)}
        self.eps = [eps_min + k * (eps_max - eps_min) / 3 for k in range(4)]
        self.steps, self.sizes = [2, 3, 4], [step_min + k * (step_max - step_min) / 2 for k in range(3)]

    def logits(self, x: Tensor, w: dict[str, Tensor]) -> list[Tensor]:
        """Of one image, by head."""
        z = x[None]
        for layer, stride in (("0", 1), ("1", 2), ("2", 2)):
            z = F.conv2d(z, w[f"{layer}.weight"], w[f"{layer}.bias"], stride, 1).clamp(min=0)
        flat = w["3.weight"] @ z[0].flatten(1).sum(1) / z[0, 0].numel() + w["3.bias"]
        return [flat[:4], flat[4:7], flat[7:]]

    def choose(self, x: Tensor, u: list[float]) -> list[int]:
        """The first choice whose cumulated probability exceeds the number drawn."""
        chosen = []
        for head, number in zip(self.logits(x, self.w), u, strict=True):
            total, choice = 0.0, len(head) - 1
            for k, p in enumerate(log_softmax(head).exp().tolist()):
                total += p
                if number < total:
                    choice = k
                    break
            chosen.append(choice)
        return chosen

    def learn(self, x: Tensor, choices: list[list[int]], reward: float, lr: float, clip: float) -> dict[str, Tensor]:
        """-r sum over heads of the batch's mean log pi(a); its gradient, clipped, and a step of SGD."""
        w = {name: value.clone().requires_grad_() for name, value in self.w.items()}
        terms = []
        for image, chosen in zip(x, choices, strict=True):
            terms += [log_softmax(head)[k] for head, k in zip(self.logits(image, w), chosen, strict=True)]
        loss = -reward * sum(terms) / len(x)
        gradients = dict(zip(w, torch.autograd.grad(loss, [*w.values()]), strict=True))
        norm = sum((g**2).sum() for g in gradients.values()).sqrt()
        scale = min(1.0, clip / (float(norm) + 1e-6))
        self.w = {name: value - lr * scale * gradients[name] for name, value in self.w.items()}
        return gradients


def ahead(
    me: Learner, live: nn.Module, gradient: dict[str, Tensor], data, epoch: int, attack: Attack, restarts: int
) -> tuple[float, float]:
    """Accuracies under attack and without, of theta - lr g with the statistics that the update has moved."""
    model = deepcopy(live).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p -= me.lr * gradient[f"gradient {name}"]
    noise = [uniform("las-at", f"ahead {k}", "probe", epoch, data.index, *data.x[0].shape) for k in range(restarts)]
    robust = right = 0
    for i, (x, y) in enumerate(zip(data.x, data.y.tolist(), strict=True)):
        target = one_hot(data.y, CLASSES)[i]
        ends = []
        for k in range(restarts):
            begin = boxed(x, EPS * (2 * noise[k][i] - 1))
            end = perturbed(model, x, naive.ce_with(target), EPS, attack, begin)
            z = model(end[None])[0].detach()
            ends.append((float(cross_entropy(z, target)), int(z.argmax()) == y))
        robust += max(ends)[1]
        right += naive.prediction(model, x) == y
    return robust / len(data.y), right / len(data.y)


def las(me: Learner, strategist: Strategist, data, epoch: int, *, learns: bool = True, **how) -> naive.Record:
    options = {"adv": 1.0, "robust": 4.0, "clean": 2.0, "lr": 0.05, "clip": 1.0, "train_eps": 0.0, "ahead_steps": 3}
    options |= {"ahead_step_size": EPS / 4, "restarts": 2, **how}
    judge, target = me.copy(training=False), one_hot(data.y, CLASSES)
    u = [uniform("las-at", "strategy", "", epoch, data.index, draw=head) for head in range(3)]
    start = uniform("core", "start", "attack", epoch, data.index, *data.x[0].shape)
    choices, x_adv, radius = [], [], 0.0
    for i, x in enumerate(data.x):
        choices.append(strategist.choose(x, [float(head[i]) for head in u]))
        e, n, a = choices[-1]
        eps, attack = strategist.eps[e], Attack(strategist.eps[e], strategist.sizes[a], strategist.steps[n])
        end = perturbed(judge, x, naive.ce_with(target[i]), eps, attack, boxed(x, eps * (2 * start[i] - 1)))
        most = options["train_eps"] or eps
        x_adv.append((x + (end - x).clamp(-most, most)).clamp(0, 1))
        radius += eps
    images = torch.stack(x_adv)
    live = Branch(me.copy(), images)
    losses = [cross_entropy(live.z[i], target[i]) for i in range(len(data.y))]
    first = float(mean(losses).detach())
    record = {"x_adv": images, "radius": torch.tensor(radius, dtype=torch.float64)} | me.descend(mean(losses), live)
    if learns:
        before = deepcopy(me.theta)
        for name, p in before.named_parameters():  # the weights that the gradient is of
            p.data = record[f"parameter {name}"] + me.lr * me.velocity[name]
        trial = Attack(EPS, options["ahead_step_size"], options["ahead_steps"])
        robust, right = ahead(me, before, record, data, epoch, trial, options["restarts"])
        reward = options["adv"] * min(first, 10.0) + options["robust"] * robust + options["clean"] * right
        strategist.learn(data.x, choices, reward, options["lr"], options["clip"])
    return record


def begun(start: nn.Module, data, **options) -> tuple[Subject, Learner, Strategist]:
    subject, me = pair(
        start, ["las-at"], attack=ATTACK, samples=data.samples, lr=0.1, seed=SEED, num_classes=CLASSES,
        image_shape=data.x[0].shape, options={"las-at": {**MANY, **options}}, settings=AS_LAS,
    )  # fmt: skip
    ends = {"eps_min": 0.375 * EPS, "eps_max": 1.875 * EPS, "step_min": 0.125 * EPS, "step_max": 0.625 * EPS}
    return subject, me, Strategist(subject, **{name: options.get(name, value) for name, value in ends.items()})


def learnt(subject: Subject, strategist: Strategist) -> dict[str, float]:
    """The relative error of each of the strategy net's weights."""
    now = subject.step.state.tensors
    gaps = {name: (now[f"las-at/strategy/weights/{name}"] - value).abs().max() for name, value in strategist.w.items()}
    return {name: float(gap / strategist.w[name].abs().max()) for name, gap in gaps.items()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"train_eps": EPS, "restarts": 1, "ahead_step_size": EPS / 3, "ahead_steps": 2},
        {"eps_min": 0.02, "eps_max": 0.2, "step_min": 0.01, "step_max": 0.05},
        {"clip": 0.01, "adv": 0.3, "robust": 2.0, "clean": 0.0},
    ],
    ids=str,
)
def test_las_at(net: nn.Module, data, options) -> None:
    """Three visits: what is drawn, what is attacked, what is learnt of it, by the model and by the strategy net."""
    subject, me, strategist = begun(net, data, **options)
    first = deepcopy(strategist.w)
    for epoch in range(3):
        assert_parity(subject.visit(*data.of_step, epoch), las(me, strategist, data, epoch, **options))
        assert max(learnt(subject, strategist).values()) <= TOLERANCE
    assert all(not torch.equal(value, first[name]) for name, value in strategist.w.items())


def test_it_learns_at_the_steps_it_says(net: nn.Module, data) -> None:
    subject, me, strategist = begun(net, data, every=2)
    for learns in (True, False, True):
        record = subject.visit(*data.of_step, 0)
        if learns:
            last = strategist.w
        assert_parity(record, las(me, strategist, data, 0, learns=learns))
        assert max(learnt(subject, strategist).values()) <= TOLERANCE
    assert strategist.w is not last


@pytest.mark.parametrize("wrong", [{"adv": 1.01}, {"robust": 4.1}, {"clean": 2.1}, {"lr": 0.051}], ids=str)
def test_a_wrong_constant_is_told_apart(normed: nn.Module, data, wrong) -> None:
    subject, me, strategist = begun(normed, data, clip=0.0)
    subject.visit(*data.of_step, 0)
    las(me, strategist, data, 0, clip=1e9, **wrong)
    assert max(learnt(subject, strategist).values()) > APART


def test_its_passes_are_declared_and_apart(normed: nn.Module, data) -> None:
    subject, _, _ = begun(normed, data, every=2)
    attack = Passes(STEPS, STEPS, auxiliary_forward=1)
    reports = [subject.step(*data.of_step, epoch=0) for _ in range(2)]
    assert [report.passes["attack"] for report in reports] == [attack, attack]
    tried = Passes(2 * (3 + 1) + 1, 2 * 3, auxiliary_forward=1, auxiliary_backward=1)
    assert [report.passes["update"] for report in reports] == [Passes(1, 0, 1) + tried, Passes(1, 0, 1)]


@pytest.mark.parametrize(("images", "steps", "looks"), [(64, 2, 1), (160, 5, 2)])
def test_the_plan_knows_how_often_it_looks_ahead_in_an_epoch(images: int, steps: int, looks: int) -> None:
    settings = {"attack.steps": 5, "data.limit": images, "validation.fraction": 0.0, "run.batch_size": 32}
    resolved = resolve(["las-at"], [Layer("test", settings, {"las-at": {"every": 3}})])
    found, stage = plan(resolved), resolved.composition.at(0)
    ((_, ahead),) = stage.seldom
    dear = sum(passes.cost for passes in stage.passes.values())
    cost = dear - (steps - looks) / steps * ahead.cost
    assert found["relative_cost"] == round(cost / pgd_at_cost(5), 4) > round(stage.cost / pgd_at_cost(5), 4)
    assert found["at_epochs"] == round(resolved.run.epochs * cost / pgd_at_cost(10), 1)


def test_a_reward_is_ten_at_most_from_the_loss() -> None:
    logits, choice = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]]), torch.tensor([[1, 0], [0, 0]])
    wanted = [float(F.log_softmax(row[:2], 0)[k]) for row, k in zip(logits, (1, 0), strict=True)]
    assert log_probability(logits, [2, 1], choice).tolist() == pytest.approx(wanted)
    numbers = [torch.tensor([0.2, 0.99]), torch.tensor([0.0, 0.999999])]
    assert drawn(logits, [2, 1], numbers).tolist() == [[0, 0], [1, 0]]
    assert nearest(torch.tensor([0.1, 0.31]), torch.tensor([0.1, 0.2, 0.3])).tolist() == [0, 2]


def test_the_models_own_net_may_be_the_strategy(normed: nn.Module, data) -> None:
    subject, _, _ = begun(normed, data, net="model")
    before = {name: value.clone() for name, value in subject.step.state.tensors.items()}
    subject.step(*data.of_step, epoch=0)
    now = subject.step.state.tensors
    assert {"las-at/strategy/weights/0.0.weight", "las-at/strategy/weights/1.weight"} <= set(now)
    assert all(not torch.equal(now[name], before[name]) for name in now if name.endswith("weight"))


def test_what_it_refuses_and_says(normed: nn.Module) -> None:
    def cautions(*others: str, **options: object):
        return resolve(["las-at", *others], [Layer("test", {"attack.steps": 5}, {"las-at": options})]).cautions

    assert cautions() == (
        "las-at looks ahead once in 20 steps, from an epoch's first: passes are those of such a step, the cost is the "
        "mean",
    )
    assert cautions(every=1, steps_min=6) == (
        "las-at.steps_min is above the 5 steps of attack.steps: every attack has 5",
    )
    with pytest.raises(OptionError, match=r"^las-at\.eps_min = 0\.2 is above las-at\.eps_max = 0\.1; exchange them\.$"):
        cautions(eps_min=0.2, eps_max=0.1)
    with pytest.raises(HookConflict, match="Plugins cat-eps and las-at both own perturbation_budget"):
        cautions("cat-eps")
    half_told: tuple[dict[str, Any], ...] = ({}, {"num_classes": CLASSES}, {"image_shape": (1, 4, 4)})
    for told in half_told:
        with pytest.raises(OptionError, match=r"^las-at builds its strategy net for images of a size; tell the Step"):
            Step(normed, torch.optim.SGD(normed.parameters(), 0.1), ["las-at"], num_samples=4, **told)
