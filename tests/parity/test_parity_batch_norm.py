"""Running statistics against the official codes' loops, written out: which forwards move them, in which order."""

from __future__ import annotations

from copy import deepcopy

import naive
import pytest
import torch
from naive import Attack, Learner
from subject import APART, TOLERANCE, Subject

from advkit import OptionError

ATTACK = Attack(eps=0.1, alpha=0.03, m=4)
GAMMA = 0.02
VISITS = 3


def seen(model, *images):
    """The buffers of a copy that has seen these images in train mode, one batch after the other."""
    copy = deepcopy(model).train()
    for batch in images:
        copy(batch)
    return {name: value.double() for name, value in copy.named_buffers()}


def gap(model, expected):
    """The largest relative error of its running means, variances and counts of forwards."""
    return max(
        ((value - expected[name]).abs().max() / expected[name].abs().max()).item()
        for name, value in model.double().named_buffers()
    )


def subject_of(net, data, plugins, order, attack=ATTACK, **settings):
    settings = {"update.batch_norm": order} | settings
    options = {"awp": {"gamma": GAMMA}} if "awp" in plugins else {}
    return Subject(net, plugins, attack=attack, samples=data.samples, lr=0.1, settings=settings, options=options)


def images(order, x, x_adv):
    return [x_adv if view.startswith("adv") else x for view in order.split(",")]


@pytest.mark.parametrize(
    ("name", "code", "others"),
    [
        ("mart", "clean_logits,adv_logits", ["adv_logits,clean_logits", "adv_logits"]),
        (
            "trades",
            "clean_logits,adv_logits,clean_logits",
            ["adv_logits,clean_logits", "clean_logits,adv_logits", "adv_logits,clean_logits,clean_logits"],
        ),
    ],
)
def test_the_forwards_of_a_code_in_its_order(normed, data, name, code, others):
    subject = subject_of(normed, data, [name], code)
    for epoch in range(VISITS):
        before = deepcopy(subject.model)
        x_adv = subject.visit(*data.of_step, epoch)["x_adv"]
        assert gap(subject.model, seen(before, *images(code, data.x, x_adv))) < TOLERANCE
        for other in others:
            assert gap(subject.model, seen(before, *images(other, data.x, x_adv))) > APART, other


def test_the_forwards_of_trades_awp_are_all_at_theta_plus_v(normed, data):
    code = "adv_logits,clean_logits,clean_logits"
    subject = subject_of(normed, data, ["trades", "awp"], code)
    before = deepcopy(subject.model)
    x_adv = subject.visit(*data.of_step, 0)["x_adv"]
    me, target = Learner(before, data.samples, 0.1), naive.one_hot(data.y, data.of_naive[2])
    gradient = naive.ascent_on_the_whole(
        me, data.x, x_adv, lambda i, adv, clean: naive.cross_entropy(clean, target[i]) + 6 * naive.kl(adv, clean)
    )
    perturbed = me.moved(naive.projected(gradient, me.theta, GAMMA))
    assert gap(subject.model, seen(perturbed, *images(code, data.x, x_adv))) < TOLERANCE
    assert gap(subject.model, seen(before, *images(code, data.x, x_adv))) > APART, "at theta"
    assert gap(subject.model, seen(perturbed, *images("adv_logits,clean_logits", data.x, x_adv))) > APART


@pytest.mark.parametrize("name", ["mart", "trades"])
def test_an_order_moves_nothing_but_statistics(net, data, name):
    """The loss and its gradient are those of any other order, and of a forward that is not repeated."""
    orders = ("adv_logits,clean_logits", "clean_logits,adv_logits", "clean_logits,adv_logits,clean_logits")
    one, *others = (subject_of(net, data, [name], order).visit(*data.of_step, 0) for order in orders)
    for other in others:
        for key in one:
            if not key.startswith("statistic"):
                torch.testing.assert_close(other[key], one[key], rtol=1e-12, atol=1e-14)


def test_a_repeated_forward_is_planned_and_counted(normed, data):
    subject = subject_of(normed, data, ["trades"], "clean_logits,adv_logits,clean_logits")
    subject.forwards.clear()
    report = subject.step(*data.of_step, epoch=0)
    assert sum(training for training, _, _ in subject.forwards) == 3
    assert report.passes == subject.step.composition.at(0).passes
    assert (report.passes["update"].forward, report.passes["update"].full_backward) == (3, 2)


def test_a_repeated_forward_that_nobody_computes_is_refused(normed, data):
    with pytest.raises(OptionError, match="names clean_logits, a forward that this run never computes"):
        subject_of(normed, data, [], "clean_logits,adv_logits,clean_logits")


def test_iseat_in_train_mode_moves_as_often_as_its_code(normed, data):
    """Clean, the other iterates, x' at theta+v: the attack's first iterate is x. A view of its own is one too many."""
    for order, moves in (("base_loss", ATTACK.m + 1), ("adv_logits,clean_logits_base", ATTACK.m + 2)):
        subject = subject_of(normed, data, ["lsiw"], order, **{"attack.mode": "train"})
        before = int(subject.model[1].num_batches_tracked)
        subject.visit(*data.of_step, 0)
        first = next(images for training, images, _ in subject.forwards if training)
        assert first.equal(data.x)
        assert int(subject.model[1].num_batches_tracked) - before == moves
