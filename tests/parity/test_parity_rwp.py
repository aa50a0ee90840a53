"""RWP: the direction of several ascents on samples of small loss, against a loop over samples and proxies."""

from __future__ import annotations

from copy import deepcopy

import naive
import pytest
import torch
from conftest import CLASSES
from methods import Method, run
from naive import Attack, Branch, Learner, Record, cross_entropy, length, mean, one_hot, ratio
from subject import APART, Subject, assert_parity, differences, pair
from torch import Tensor, nn

from advkit.bits import same_bits
from advkit_plugins.awp import in_range, layerwise, on_the_sphere

ATTACK = Attack(eps=0.1, alpha=0.03, m=4)
VISITS = 2
LARGE = 1e9


def given(*others, **values):
    return run("rwp", *others, options={"rwp": values})


METHODS = {
    "rwp": Method(
        neutral=[
            (given(gamma=0.0), run()),
            (given("cat-eps", gamma=0.0), run("cat-eps")),
            # No sample's loss is below: v is 0.
            (given(threshold=0, steps=2), run()),
        ],
        changes=[
            (given(gamma=1e-3, threshold=LARGE), run()),
            (given(threshold=4.0), given(threshold=4.0, steps=1)),
            (given(threshold=4.0, steps=1), given(threshold=0.9, steps=1)),
        ],
        moving={"rwp": {"gamma": [[0, 0.0], [1, 0.01]], "threshold": 4.0, "step_at": "theta+v"}},
    )
}


def direction(
    me: Learner, x_adv: Tensor, y: Tensor, gamma: float, threshold: float, steps: int, min_dim: int
) -> tuple[dict[str, Tensor], list[int]]:
    """v, and how many samples were below the threshold at each ascent, at the weights moved so far."""
    theta = {name: p for name, p in me.theta.named_parameters() if p.dim() >= min_dim}
    added = {name: torch.zeros_like(p) for name, p in theta.items()}
    v: dict[str, Tensor] = {}
    counts = []
    for _ in range(steps):
        proxy = me.moved(v)
        z = proxy(x_adv)
        losses = [cross_entropy(z[i], aimed) for i, aimed in enumerate(one_hot(y, CLASSES))]
        low = [loss for loss in losses if float(loss.detach()) < threshold]
        counts.append(len(low))
        if low:
            (sum(low) / len(losses)).backward()
            for name, p in proxy.named_parameters():
                if name in added:
                    added[name] = added[name] + p.grad
        whole = sum(length(p) ** 2 for p in theta.values()).sqrt()
        way = sum(length(value) ** 2 for value in added.values()).sqrt()
        v = {name: gamma * whole / way * value if float(way) else value for name, value in added.items()}
    return v, counts


def rwp(
    me: Learner, data, gamma: float = 0.01, threshold: float = 1.7, steps: int = 10, min_dim: int = 2
) -> tuple[Record, list[int]]:
    target = one_hot(data.y, CLASSES)
    x_adv = naive.attacked(me, data.x, target, ATTACK)
    v, counts = direction(me, x_adv, data.y, gamma, threshold, steps, min_dim)
    adversarial = Branch(me.moved(v), x_adv)
    loss = mean([cross_entropy(adversarial.z[i], target[i]) for i in range(len(data.x))])
    return {"x_adv": x_adv, "shift": ratio(v, me.theta)} | me.descend(loss, adversarial), counts


def start(net: nn.Module, data, **options):
    return pair(net, ["rwp"], attack=ATTACK, samples=data.samples, lr=0.1, options={"rwp": options})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gamma": 0.05},
        {"threshold": 1.8, "gamma": 0.05},
        {"threshold": LARGE, "steps": 1},
        {"min_dim": 1, "steps": 2},
    ],
    ids=str,
)
def test_rwp(net: nn.Module, data, options) -> None:
    subject, me = start(net, data, **options)
    for epoch in range(VISITS):
        expected, _ = rwp(me, data, **options)
        assert_parity(subject.visit(*data.of_step, epoch), expected)


def test_the_samples_are_chosen_anew_at_every_ascent(net: nn.Module, data) -> None:
    """Some are below at theta and are not at theta + v; the test above has this threshold and gamma."""
    _, counts = rwp(Learner(net, data.samples, 0.1), data, threshold=1.8, gamma=0.05)
    assert 0 < counts[0] < len(data.x) and len({*counts}) > 1


@pytest.mark.parametrize(
    "wrong", [{"gamma": 0.0501}, {"steps": 2}, {"threshold": 1.0}, {"threshold": LARGE}, {"min_dim": 1}], ids=str
)
def test_a_wrong_constant_is_told_apart(net: nn.Module, data, wrong) -> None:
    right = {"gamma": 0.05, "threshold": 1.8}
    subject, me = start(net, data, **right)
    errors = differences(subject.visit(*data.of_step, 0), rwp(me, data, **(right | wrong))[0])
    assert min(errors["loss"], errors["gradient 0.weight"]) > APART


SETTINGS = {"attack.init": "zero", "attack.step_size": ATTACK.alpha, "update.batch_norm": "adv_logits,clean_logits"}


def trades_direction(me: Learner, x: Tensor, x_adv: Tensor, y: Tensor, gamma: float, threshold: float, beta: float):
    """v of two ascents on TRADES' whole loss, of the samples whose cross-entropy on x' is small."""
    theta = {name: p for name, p in me.theta.named_parameters() if p.dim() >= 2}
    added = {name: torch.zeros_like(p) for name, p in theta.items()}
    v: dict[str, Tensor] = {}
    for _ in range(2):
        proxy = me.moved(v)
        adversarial, clean = proxy(x_adv), proxy(x)
        for i, aimed in enumerate(one_hot(y, CLASSES)):
            if float(cross_entropy(adversarial[i].detach(), aimed)) < threshold:
                whole = cross_entropy(clean[i], aimed) + beta * naive.kl(adversarial[i], clean[i])
                (whole / len(x)).backward(retain_graph=True)
        for name, p in proxy.named_parameters():
            if name in added and p.grad is not None:
                added[name] = added[name] + p.grad
        scale = gamma * torch.stack([length(p) for p in theta.values()]).norm()
        way = torch.stack([length(value) for value in added.values()]).norm()
        v = {name: scale / way * value for name, value in added.items()}
    return v


@pytest.mark.parametrize("right", [True, False])
def test_trades_rwp(net: nn.Module, data, right: bool) -> None:
    """The released code of it can not run; here v increases the whole loss, as for TRADES-AWP. The control: beta."""
    gamma, threshold, beta = 0.02, 1.8, 3.0
    options = {"rwp": {"gamma": gamma, "threshold": threshold, "steps": 2}, "trades": {"beta": beta, "attack": "label"}}
    arguments = {"attack": ATTACK, "samples": data.samples, "lr": 0.05, "settings": SETTINGS, "options": options}
    subject = Subject(net, ["trades", "rwp"], **arguments)
    me = Learner(net, data.samples, 0.05)
    target = one_hot(data.y, CLASSES)
    x_adv = naive.attacked(me, data.x, target, ATTACK)
    v = trades_direction(me, data.x, x_adv, data.y, gamma, threshold, beta if right else beta + 0.01)
    adversarial = Branch(me.moved(v), x_adv)
    clean = Branch(deepcopy(adversarial.model), data.x)
    terms = [cross_entropy(clean.z[i], aimed) for i, aimed in enumerate(target)]
    regular = [beta * naive.kl(adversarial.z[i], clean.z[i]) for i in range(len(target))]
    loss = mean([one + other for one, other in zip(terms, regular, strict=True)])
    expected = {"x_adv": x_adv, "shift": ratio(v, me.theta)} | me.descend(loss, clean, adversarial)
    measured = subject.visit(*data.of_step, 0)
    if right:
        assert_parity(measured, expected)
    else:
        assert differences(measured, expected)["gradient 0.weight"] > APART


def test_the_length_is_that_of_all_tensors_together() -> None:
    params = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]]), "spared": torch.tensor([9.0])}
    v = on_the_sphere({"a": torch.tensor([0.0, 6.0]), "b": torch.tensor([[8.0]])}, params, 0.1)
    assert torch.allclose(v["a"], torch.tensor([0.0, 0.3])) and torch.allclose(v["b"], torch.tensor([[0.4]]))
    still = on_the_sphere({"a": torch.zeros(2)}, params, 0.1)
    assert still["a"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("size", [1.0, 1e25, 1e-30])
def test_a_gradient_whose_squares_have_no_room_in_float32_has_a_direction_all_the_same(size: float) -> None:
    params = {"a": torch.tensor([3.0, 0.0, 4.0]), "none": torch.ones(0, 2)}
    way = {"a": torch.tensor([0.0, 6.0, -8.0]) * size, "none": torch.ones(0, 2)}
    for v in (layerwise(way, params, 0.1), on_the_sphere(way, params, 0.1)):
        assert torch.allclose(v["a"], torch.tensor([0.0, 0.3, -0.4]))
    assert same_bits(in_range(way)["a"], way["a"]) is (size == 1)
    assert layerwise({"a": 0 * way["a"]}, params, 0.1)["a"].tolist() == [0, 0, 0]


def test_the_threshold_knows_the_hard_label_alone(net: nn.Module, data) -> None:
    """Of the even target no cross-entropy of four classes is below log 4 = 1.39."""
    arguments = {"attack": ATTACK, "samples": data.samples, "lr": 0.1}
    options = {"rwp": {"threshold": 1.2, "steps": 1, "gamma": 0.01}, "label-smoothing": {"alpha": 1.0}}
    smooth, _ = pair(net, ["rwp", "label-smoothing"], options=options, **arguments)
    report = smooth.visit(*data.of_step, 0)
    assert float(report["shift"]) > 0
