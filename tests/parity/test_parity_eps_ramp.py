"""The ramp against PGD-AT with the budget of each epoch written out."""

from __future__ import annotations

import naive
import pytest
import torch
from methods import Method, run
from naive import Attack
from subject import APART, assert_parity, differences, pair

from advkit import Step
from advkit.config.layer import Layer
from advkit.config.resolve import resolve

ATTACK = Attack(eps=0.1, alpha=0.03, m=4)
CAT = ("cat-eps", "cat-margin", "dirichlet-ls", "lsiw")


def ramp(*plugins, epochs=None, **values):
    """Two epochs of ramp: 0, a half, and whole from then on."""
    more = {} if epochs is None else {"epochs": epochs}
    return run(*plugins, "eps-ramp", options={"eps-ramp": {"epochs": 2} | values}, **more)


METHODS = {
    "eps-ramp": Method(
        neutral=[
            # From its end on it is not there; in its first epoch the radius is 0.
            *(
                (ramp(*others, step_size=True, epochs=[2, 3]), run(*others, epochs=[2, 3]))
                for others in ((), ("trades", "awp"), ("mart", "awp"), CAT)
            ),
            *(
                (ramp(*others, step_size=scaled, epochs=[0]), run(*others, eps=0.0, epochs=[0]))
                for others in ((), ("trades",), ("mart",), ("cat-margin",), ("lsiw",))
                for scaled in (False, True)
            ),
        ],
        changes=[(ramp(), run()), (ramp(), ramp(step_size=True)), (run(), run(epochs=[2, 3]))],
        moving={"eps-ramp": {"epochs": 2, "step_size": True}},
    )
}


def ramped(epoch: int, epochs: int, step_too: bool) -> Attack:
    """eps * e / E while e < E; the code scales alpha too."""
    share = min(1.0, epoch / epochs)
    return Attack(eps=share * ATTACK.eps, alpha=share * ATTACK.alpha if step_too else ATTACK.alpha, m=ATTACK.m)


@pytest.mark.parametrize("step_too", [False, True])
def test_every_epoch_of_the_ramp_and_after(net, data, step_too):
    options = {"eps-ramp": {"epochs": 3, "step_size": step_too}}
    subject, me = pair(net, ["eps-ramp"], attack=ATTACK, samples=data.samples, lr=0.1, options=options)
    for epoch in range(5):
        expected = naive.pgd_at(me, *data.of_naive, attack=ramped(epoch, 3, step_too))
        measured = subject.visit(*data.of_step, epoch)
        assert_parity(measured, expected)
        assert measured["x_adv"].equal(data.x) == (epoch == 0)
    assert (expected["x_adv"] - data.x).abs().max().item() == pytest.approx(ATTACK.eps)


@pytest.mark.parametrize(("epochs", "step_too"), [(4, False), (3, True)])
def test_another_ramp_is_told_apart(net, data, epochs, step_too):
    options = {"eps-ramp": {"epochs": 3}}
    subject, me = pair(net, ["eps-ramp"], attack=ATTACK, samples=data.samples, lr=0.1, options=options)
    errors = differences(
        subject.visit(*data.of_step, 1), naive.pgd_at(me, *data.of_naive, attack=ramped(1, epochs, step_too))
    )
    assert errors["x_adv"] > APART


def test_the_l2_attack_of_radius_0_is_the_image_too(net, data):
    step = Step(
        net, torch.optim.SGD(net.parameters(), 0.1), ["eps-ramp"], num_samples=data.samples,
        settings={"attack.norm": "l2"}, eps=0.5,
    )  # fmt: skip
    assert step(*data.of_step, epoch=0).x_train.equal(data.x)
    moved = (step(*data.of_step, epoch=1).x_train - data.x).flatten(1).norm(dim=1)
    assert (moved > 0.05).all() and (moved < 0.1 + 1e-12).all()  # the box takes a little off


def test_what_the_plan_says():
    def cautions(*plugins, **settings):
        layer = Layer("test", {key.replace("__", "."): value for key, value in settings.items()})
        return resolve(plugins, [layer]).cautions

    short = "eps-ramp is 5 epochs long: a run of 5 never attacks with the full eps"
    assert cautions("eps-ramp", run__epochs=5) == (short,)
    assert cautions("eps-ramp", run__epochs=6) == ()
    scaled = "eps-ramp scales the radius that is attacked, but eps_i grows and resets as if it were not scaled"
    assert scaled in cautions("eps-ramp", "cat-eps")
