"""PGD-AT and AWP against their equations."""

from __future__ import annotations

import naive
import pytest
import torch
from methods import Method, run
from naive import Attack, Learner
from subject import APART, assert_parity, differences, pair

ATTACK = Attack(eps=0.1, alpha=0.03, m=4)
VISITS = 2  # the second step has momentum

METHODS = {
    "awp": Method(
        neutral=[
            (run("awp", options={"awp": {"gamma": 0.0}}), run()),
            (run("awp", "cat-eps", "dirichlet-ls", options={"awp": {"gamma": 0.0}}), run("cat-eps", "dirichlet-ls")),
        ],
        changes=[(run("awp", options={"awp": {"gamma": 1e-3}}), run())],
        moving={"awp": {"gamma": [[0, 0.0], [1, 0.01]], "step_at": "theta+v"}},
    )
}


def test_pgd_at(net, data):
    subject, me = pair(net, [], attack=ATTACK, samples=data.samples, lr=0.1)
    for epoch in range(VISITS):
        expected = naive.pgd_at(me, *data.of_naive, attack=ATTACK)
        assert_parity(subject.visit(*data.of_step, epoch), expected)
    assert (expected["x_adv"] - data.x).abs().max().item() == pytest.approx(ATTACK.eps)


@pytest.mark.parametrize("wrong", [{"eps": 0.101}, {"alpha": 0.031}, {"m": 3}])
def test_a_wrong_attack_is_told_apart(net, data, wrong):
    subject, me = pair(net, [], attack=ATTACK, samples=data.samples, lr=0.1)
    measured = subject.visit(*data.of_step, 0)
    errors = differences(measured, naive.pgd_at(me, *data.of_naive, attack=Attack(**(vars(ATTACK) | wrong))))
    assert all(errors[name] > APART for name in ("loss", "x_adv", "gradient 0.weight", "parameter 0.weight"))


@pytest.mark.parametrize("wrong", [{"lr": 0.1001}, {"momentum": 0.89}, {"decay": 4e-4}])
def test_a_wrong_optimizer_is_told_apart(net, data, wrong):
    subject, _ = pair(net, [], attack=ATTACK, samples=data.samples, lr=0.1)
    me = Learner(net, data.samples, **({"lr": 0.1} | wrong))
    for epoch in range(VISITS):
        errors = differences(subject.visit(*data.of_step, epoch), naive.pgd_at(me, *data.of_naive, attack=ATTACK))
    assert errors["parameter 0.weight"] > APART


def test_an_attack_in_train_mode_is_told_apart(normed, data, monkeypatch):
    subject, me = pair(normed, [], attack=ATTACK, samples=data.samples, lr=0.1)
    copy = Learner.copy
    monkeypatch.setattr(Learner, "copy", lambda self, training=True: copy(self))
    errors = differences(subject.visit(*data.of_step, 0), naive.pgd_at(me, *data.of_naive, attack=ATTACK))
    assert errors["x_adv"] > APART


def test_the_clip_to_the_box_is_told_apart(net, data, monkeypatch):
    """CAT's Algorithm 1 prints no clip: on images that touch 0 or 1 it would leave [0, 1]."""
    subject, me = pair(net, [], attack=ATTACK, samples=data.samples, lr=0.1)
    monkeypatch.setattr(naive, "boxed", lambda x, delta: delta)
    assert differences(subject.visit(*data.of_step, 0), naive.pgd_at(me, *data.of_naive, attack=ATTACK))["x_adv"] > 0.01
    inside = data.x * 0.5 + 0.25  # where every point of the ball is an image, the two are one
    subject, me = pair(net, [], attack=ATTACK, samples=data.samples, lr=0.1)
    expected = naive.pgd_at(me, inside, *data.of_naive[1:], attack=ATTACK)
    assert_parity(subject.visit(inside, data.y, data.index, 0), expected)


def test_awp(net, data):
    subject, me = pair(net, ["awp"], attack=ATTACK, samples=data.samples, lr=0.1, options={"awp": {"gamma": 0.02}})
    for epoch in range(VISITS):
        expected = naive.awp(me, *data.of_naive, attack=ATTACK, gamma=0.02)
        assert_parity(subject.visit(*data.of_step, epoch), expected)


@pytest.mark.parametrize("min_dim", [1, 3, 4])
def test_min_dim(net, data, min_dim):
    """1: biases and norms, too; 3 and 4: the convolutions alone."""
    if min_dim == 1:  # a bias that is 0 has no length to scale by
        net.load_state_dict({name: value + 0.01 * (value == 0) for name, value in net.state_dict().items()})
    options = {"awp": {"gamma": 0.02, "min_dim": min_dim}}
    subject, me = pair(net, ["awp"], attack=ATTACK, samples=data.samples, lr=0.1, options=options)
    for epoch in range(VISITS):
        expected = naive.awp(me, *data.of_naive, attack=ATTACK, gamma=0.02, min_dim=min_dim)
        assert_parity(subject.visit(*data.of_step, epoch), expected)
    wrong = naive.awp(Learner(net, data.samples, 0.1), *data.of_naive, attack=ATTACK, gamma=0.02)
    subject, _ = pair(net, ["awp"], attack=ATTACK, samples=data.samples, lr=0.1, options=options)
    assert differences(subject.visit(*data.of_step, 0), wrong)["gradient 0.weight"] > APART


@pytest.mark.parametrize("step_at", ["theta", "theta+v"])
def test_step_at_theta_plus_v_is_the_official_order(net, data, step_at):
    """The official code's loop, hand-written, over three steps: equal but for what adding and subtracting rounds.

    A difference of the two is at most a few units in the last place of the largest weight (below 1), a step;
    momentum and the next attack's signs do not amplify it here. The negative control is the other order.
    """
    options = {"awp": {"gamma": 0.02, "step_at": step_at}}
    subject, _ = pair(net, ["awp"], attack=ATTACK, samples=data.samples, lr=0.1, options=options)
    me = Learner(net, data.samples, 0.1)
    optimizer = torch.optim.SGD(me.theta.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    target = naive.one_hot(data.y, data.of_naive[2])
    for epoch in range(3):
        x_adv = naive.attacked(me, data.x, target, ATTACK)
        v = naive.projected(naive.ascent(me, data.x, x_adv, target), me.theta, 0.02)
        naive.awp_as_its_code(me.theta, optimizer, x_adv, data.y, v)
        subject.visit(*data.of_step, epoch)
    own = dict(subject.model.named_parameters())
    gaps = {name: (own[name] - p).abs().max().item() for name, p in me.theta.named_parameters()}
    if step_at == "theta+v":
        assert max(gaps.values()) < 1e-14
    else:
        assert min(gaps[name] for name in v) > 1e-9  # lr decay v, the decay of v alone
    for measured, expected in zip(subject.model.buffers(), me.theta.buffers(), strict=True):
        torch.testing.assert_close(measured, expected, rtol=1e-4 if step_at == "theta" else 1e-12, atol=0)


def test_v_is_gamma_times_the_norm_of_every_weight_and_nothing_for_biases_and_norms(net, data):
    gamma = 0.02
    subject, _ = pair(net, ["awp"], attack=ATTACK, samples=data.samples, lr=0.1, options={"awp": {"gamma": gamma}})
    theta = {name: p.detach().clone() for name, p in subject.model.named_parameters()}
    record = subject.visit(*data.of_step, 0)
    *before, (training, images, weights) = subject.forwards
    assert training and images.equal(record["x_adv"])
    for name, w in theta.items():
        v = weights[name] - w
        assert v.norm().item() == pytest.approx(gamma * w.norm().item() if w.dim() > 1 else 0, rel=1e-10, abs=1e-14)
        assert all(earlier[name].equal(w) for _, _, earlier in before)  # attack and ascent are at theta


def _globally(gradient, theta, gamma, min_dim):
    """Eq. 14 with one norm over all layers, as its missing index suggests."""
    weights = {name: p.detach() for name, p in theta.named_parameters() if p.dim() > 1}
    scale = gamma * naive.length(torch.cat([w.flatten() for w in weights.values()]))
    return {n: scale * gradient[n] / naive.length(torch.cat([gradient[k].flatten() for k in weights])) for n in weights}


def _everything(gradient, theta, gamma, min_dim):
    """Eq. 13 on all tensors, biases and norms too."""
    return {
        n: gamma * gradient[n] / naive.length(gradient[n]) * naive.length(p)
        for n, p in theta.named_parameters()
        if p.any()
    }


def _of_clean_images(me, x, x_adv, target):
    return ASCENT(me, x, x, target)


def _moving_statistics(me, x, x_adv, target):
    me.theta.train()(x_adv)
    return ASCENT(me, x, x_adv, target)


ASCENT = naive.ascent


@pytest.mark.parametrize(
    ("name", "wrong", "where"),
    [
        ("projected", _globally, "gradient 0.weight"),
        ("projected", _everything, "gradient 0.weight"),
        ("ascent", _of_clean_images, "gradient 0.weight"),
        ("ascent", _moving_statistics, "statistic 1.running_mean"),
    ],
)
def test_a_wrong_v_is_told_apart(normed, data, monkeypatch, name, wrong, where):
    subject, me = pair(normed, ["awp"], attack=ATTACK, samples=data.samples, lr=0.1)
    monkeypatch.setattr(naive, name, wrong)
    expected = naive.awp(me, *data.of_naive, attack=ATTACK, gamma=0.01)
    assert differences(subject.visit(*data.of_step, 0), expected)[where] > APART


def test_a_wrong_gamma_is_told_apart(net, data):
    subject, me = pair(net, ["awp"], attack=ATTACK, samples=data.samples, lr=0.1)
    expected = naive.awp(me, *data.of_naive, attack=ATTACK, gamma=0.0101)
    errors = differences(subject.visit(*data.of_step, 0), expected)
    assert errors["x_adv"] == pytest.approx(0, abs=1e-12)
    assert all(errors[name] > APART for name in ("loss", "shift", "gradient 0.weight", "parameter 0.weight"))
