"""ALP, LSR and SCORE: distances of clean and attacked outputs, against loops over samples, classes and entries."""

from __future__ import annotations

from copy import deepcopy

import naive
import pytest
import torch
from conftest import CLASSES
from methods import Method, run
from naive import Attack, Branch, Learner, Record, cross_entropy, log_softmax, mean, one_hot
from subject import APART, assert_parity, differences, pair
from torch import Tensor, nn

from advkit import OptionError
from advkit.config.layer import Layer
from advkit.config.resolve import resolve
from advkit_plugins.alp import pairing
from advkit_plugins.lsr import largest_shifts

EPS, SEED, VISITS = 0.1, 5, 3
ATTACK = Attack(eps=EPS, alpha=0.03, m=4)
UNMOVED = {"settings": {"attack.mode": "eval", "update.batch_norm": "adv_logits"}, "dropout": 0.0}


def given(name, *others, more=None, **values):
    return run(name, *others, options={name: values}, **(more or {}))


METHODS = {
    "alp": Method(
        neutral=[
            (given("alp", *others, lam=0, mixed=False, more=UNMOVED), run(*others, **UNMOVED))
            for others in ((), ("awp",))
        ],
        changes=[
            (given("alp", lam=1e-3), given("alp", lam=0)),
            (given("alp"), given("alp", mixed=False)),
            (given("alp"), given("alp", over="sum")),
        ],
        moving={"alp": {"lam": [[0, 0.1], [1, 1.0]]}},
    ),
    "lsr": Method(
        neutral=[(given("lsr", *others, lam=0), run(*others)) for others in ((), ("trades",), ("awp",))],
        changes=[(given("lsr", lam=1e-3), run()), (given("lsr"), given("lsr", top=1))],
        moving={"lsr": {"lam": [[0, 0.1], [1, 1.0]]}},
    ),
    "score": Method(
        # Without the consistency nothing that the attack finds is trained on, whatever it looks for.
        neutral=[(given("score", beta=0), given("score", beta=4, slack=2))],
        changes=[(given("score"), given("score", beta=1)), (given("score"), given("score", slack=0.01))],
        moving={"score": {"beta": [[0, 1.0], [1, 4.0]]}},
    ),
}


def probabilities(z: Tensor) -> Tensor:
    return log_softmax(z).exp()


def two_branches(me: Learner, x: Tensor, x_adv: Tensor, first: str) -> tuple[Branch, Branch, Branch]:
    """Adversarial, clean, and the one whose statistics are kept; each forward moves them, `first` first."""
    images = {"adv": x_adv, "clean": x}
    second = next(name for name in images if name != first)
    one = Branch(me.copy(), images[first])
    other = Branch(deepcopy(one.model), images[second])
    branches = {first: one, second: other}
    return branches["adv"], branches["clean"], other


def alp(me: Learner, data, lam: float = 0.5, mixed: bool = True, over: str = "mean") -> Record:
    target = one_hot(data.y, CLASSES)
    x_adv = naive.attacked(me, data.x, target, ATTACK)
    adversarial, clean, last = two_branches(me, data.x, x_adv, "clean")
    terms, pairs = [], []
    for i, aimed in enumerate(target):
        loss = cross_entropy(adversarial.z[i], aimed)
        if mixed:
            loss = 0.5 * loss + 0.5 * cross_entropy(clean.z[i], aimed)
        gap = sum((adversarial.z[i][k] - clean.z[i][k]) ** 2 for k in range(CLASSES))
        pairs.append(lam * (gap / CLASSES if over == "mean" else gap))
        terms.append(loss)
    record = {"x_adv": x_adv, "alp": sum(pairs).detach(), "base_loss": sum(terms).detach()}
    others = {adversarial, clean} - {last}
    return record | me.descend(mean([a + b for a, b in zip(terms, pairs, strict=True)]), last, *others)


def lsr(me: Learner, data, lam: float = 0.3, top: float = 0.1) -> Record:
    target = one_hot(data.y, CLASSES)
    x_adv = naive.attacked(me, data.x, target, ATTACK)
    # The core's own: only the attacked images move statistics.
    adversarial, clean = Branch(me.copy(), x_adv), Branch(me.copy(), data.x)
    shifts = [
        (adversarial.z[i][k] - clean.z[i][k]).abs() for i in range(len(data.x)) for k in range(CLASSES)
    ]  # all m K of them, of whichever sample
    largest = sorted(shifts, key=Tensor.item, reverse=True)[: max(1, int(top * len(shifts)))]
    base = [cross_entropy(adversarial.z[i], target[i]) for i in range(len(data.x))]
    whole = lam * sum(largest) / len(data.x)
    return {"x_adv": x_adv} | me.descend(mean(base) + whole, adversarial, clean)


def score(me: Learner, data, epoch: int, beta: float = 4.0, slack: float = 0.0) -> Record:
    model = me.copy(training=False)
    noise, target = naive.start_noise(SEED, epoch, data.index, data.x[0].shape), one_hot(data.y, CLASSES)

    def apart(z: Tensor, p: Tensor) -> Tensor:
        return ((probabilities(z) - p) ** 2).sum()

    moved = []
    for i, image in enumerate(data.x):
        p = probabilities(model(image[None])[0]).detach()
        moved.append(naive.perturbed(model, image, lambda z, p=p: apart(z, p), EPS, ATTACK, 0.001 * noise[i]))
    x_adv = torch.stack(moved)
    adversarial, clean, last = two_branches(me, data.x, x_adv, "adv")
    base, consistency = [], []
    for i, aimed in enumerate(target):
        base.append(apart(clean.z[i], aimed))
        distance = apart(adversarial.z[i], probabilities(clean.z[i]))
        consistency.append(beta * (distance - slack if distance > slack else 0 * distance))
    record = {"x_adv": x_adv, "score": sum(consistency).detach(), "base_loss": sum(base).detach()}
    return record | me.descend(mean([a + b for a, b in zip(base, consistency, strict=True)]), last, adversarial)


def start(net: nn.Module, data, name: str, **options):
    return pair(net, [name], attack=ATTACK, samples=data.samples, lr=0.05, seed=SEED, options={name: options})


@pytest.mark.parametrize("options", [{}, {"lam": 2.0}, {"mixed": False}, {"over": "sum"}], ids=str)
def test_alp(net: nn.Module, data, options) -> None:
    subject, me = start(net, data, "alp", **options)
    for epoch in range(VISITS):
        assert_parity(subject.visit(*data.of_step, epoch), alp(me, data, **options))


@pytest.mark.parametrize("options", [{}, {"lam": 2.0}, {"top": 0.5}, {"top": 1}, {"top": 1e-6}], ids=str)
def test_lsr(net: nn.Module, data, options) -> None:
    subject, me = start(net, data, "lsr", **options)
    for epoch in range(VISITS):
        assert_parity(subject.visit(*data.of_step, epoch), lsr(me, data, **options))


@pytest.mark.parametrize("options", [{}, {"beta": 1.0}, {"slack": 0.002}], ids=str)
def test_score(net: nn.Module, data, options) -> None:
    subject, me = start(net, data, "score", **options)
    for epoch in range(VISITS):
        expected = score(me, data, epoch, **options)
        assert_parity(subject.visit(*data.of_step, epoch), expected)
        assert float(expected["score"]) > 0


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("alp", {}, {"lam": 0.501}),
        ("alp", {}, {"over": "sum"}),
        ("lsr", {}, {"lam": 0.301}),
        ("lsr", {}, {"top": 0.2}),
        ("score", {}, {"beta": 4.001}),
        ("score", {"slack": 0.002}, {"slack": 1.0}),
    ],
)
def test_a_wrong_constant_is_told_apart(net: nn.Module, data, name: str, right, wrong) -> None:
    subject, me = start(net, data, name, **right)
    expected = score(me, data, 0, **wrong) if name == "score" else {"alp": alp, "lsr": lsr}[name](me, data, **wrong)
    errors = differences(subject.visit(*data.of_step, 0), expected)
    assert min(errors["loss"], errors["gradient 0.weight"]) > APART


def test_the_largest_shifts_are_of_the_batch_not_of_each_sample() -> None:
    clean = torch.zeros(2, 3)
    adversarial = torch.tensor([[3.0, -2.0, 1.0], [0.5, 0.0, 0.0]])
    assert largest_shifts(clean, adversarial, 0.34).tolist() == [5.0, 0.0]
    assert largest_shifts(clean, adversarial, 1).tolist() == [6.0, 0.5]
    assert largest_shifts(clean, adversarial, 0.01).tolist() == [3.0, 0.0]


def test_the_code_of_alp_averages_over_classes() -> None:
    clean, adversarial = torch.zeros(1, 4), torch.tensor([[1.0, -1.0, 1.0, 1.0]])
    assert pairing(clean, adversarial, "mean").item() == 1 and pairing(clean, adversarial, "sum").item() == 4


@pytest.mark.parametrize("name", ["score", "trades"])
@pytest.mark.parametrize(("noise", "starts_at_x"), [(0.0, True), (2.0, False)])
def test_a_start_at_the_image_is_told_of_unless_a_plugin_makes_another(
    name: str, noise: float, starts_at_x: bool
) -> None:
    """fgsm-rs makes a start of its own with noise, and none without."""
    layer = Layer("test", {"attack.init": "zero"}, {"fgsm-rs": {"noise": noise}})
    try:
        told = any("attack.init is zero" in caution for caution in resolve([name, "fgsm-rs"], [layer]).cautions)
    except OptionError as refused:
        told = "attack.init is zero" in str(refused)
    assert told == starts_at_x


def test_a_slack_beyond_the_distance_of_two_predictions_is_told() -> None:
    layers = [Layer("test", {}, {"score": {"slack": slack}}) for slack in (1.99, 2)]
    less, more = (resolve(["score"], [layer]).cautions for layer in layers)
    assert [caution for caution in more if caution not in less] == [
        "score.slack of 2 or more leaves nothing of the consistency, which is below 2; lower it"
    ]
