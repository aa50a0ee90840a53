"""What the codes of the baselines have as options, against loops written out; and that the defaults have none of it."""

from __future__ import annotations

from copy import deepcopy

import naive
import pytest
import torch
from methods import run, same, trained
from naive import Attack, Learner
from subject import APART, TOLERANCE, Subject, assert_parity, differences

from advkit import AttackResult, OptionError, Plugin, hookimpl
from advkit.errors import HookConflict, HookContract

ATTACK = Attack(eps=0.1, alpha=0.03, m=4)
SEED = 5


def subject_of(net, data, plugins=(), attack=ATTACK, options=None, **settings):
    return Subject(
        net, plugins, attack=attack, samples=data.samples, lr=0.1, settings=settings, options=options, seed=SEED
    )


def learner(net, data):
    return Learner(net, data.samples, 0.1)


def counted(subject, data):
    """The report of a step, after its passes were compared with the plan and with the module's own count."""
    subject.forwards.clear()
    report = subject.step(*data.of_step, epoch=0)
    assert report.passes == subject.step.composition.at(0).passes
    ran = {"attack": 0, "update": 0}
    for training, images, _ in subject.forwards:
        if len(images) > 1:  # not the probe of the number of classes
            ran["update" if training else "attack"] += 1
    assert ran == {phase: passes.forward for phase, passes in report.passes.items()}
    return report


# ---------------------------------------------------------------------- restarts

RANDOM = {"attack.init": "uniform"}


def test_restarts_keep_the_strongest_attack_of_each_image(net, data):
    subject = subject_of(net, data, **RANDOM, **{"attack.restarts": 3})
    more = {"attack": ATTACK, "index": data.index, "seed": SEED}
    measured = subject.visit(*data.of_step, 0)
    assert_parity(measured, naive.restarted(learner(net, data), *data.of_naive, restarts=3, **more))
    for wrong in ({"restarts": 2}, {"restarts": 1}, {"restarts": 3, "seed": SEED + 1}):
        expected = naive.restarted(learner(net, data), *data.of_naive, **more | wrong)
        assert differences(measured, expected)["x_adv"] > APART, wrong


def test_restarts_are_planned_and_counted(normed, data):
    report = counted(subject_of(normed, data, **RANDOM, **{"attack.restarts": 3}), data)
    assert (report.passes["attack"].forward, report.passes["attack"].input_backward) == (3 * (4 + 1), 3 * 4)


@pytest.mark.parametrize("init", ["zero", "uniform"])
def test_the_final_loss_alone_changes_nothing_but_train_mode_statistics(normed, data, init):
    settings = {"attack.init": init}
    one, other = (
        subject_of(normed, data, **settings, **more).visit(*data.of_step, 0)
        for more in ({}, {"attack.final_loss": True})
    )
    assert all(one[name].equal(other[name]) for name in one)
    report = counted(subject_of(normed, data, **settings, **{"attack.final_loss": True}), data)
    assert (report.passes["attack"].forward, report.passes["attack"].input_backward) == (5, 4)


def test_batch_norm_sees_the_final_loss_of_an_attack_in_train_mode(normed, data):
    """As the codes of Rice et al. and of AT-AWP: the iterates, the last one again, and the update's."""
    subject = subject_of(normed, data, **RANDOM, **{"attack.mode": "train", "attack.final_loss": True})
    before = deepcopy(subject.model)
    x_adv = subject.visit(*data.of_step, 0)["x_adv"]
    moving = [images for training, images, _ in subject.forwards if training]
    assert len(moving) == ATTACK.m + 2 and all(images.equal(x_adv) for images in moving[-2:])
    for images, right in ((moving, True), (moving[:-1], False)):
        copy = deepcopy(before).train()
        for batch in images:
            copy(batch)
        gaps = [
            ((value.double() - other.double()).abs().max() / other.double().abs().max()).item()
            for value, other in zip(subject.model.buffers(), copy.buffers(), strict=True)
        ]
        assert (max(gaps) < TOLERANCE) is right and (max(gaps) > APART) is not right


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"attack.restarts": 2}, "with init=zero each attack starts at x; choose uniform or normal"),
        ({"attack.restarts": 2, "attack.init": "uniform", "attack.steps": 0}, "there is no attack to restart"),
        ({"attack.final_loss": True, "attack.steps": 0}, "there is no attack to restart and no final_loss"),
        ({"attack.l2_projection": "box-ball"}, "l2_projection orders nothing in the norm linf"),
        ({"update.clean": "start"}, "update.clean is start, but this run's update has no clean logits"),
    ],
)
def test_settings_that_nobody_would_use_are_refused(normed, data, settings, sentence):
    with pytest.raises(OptionError, match=sentence):
        subject_of(normed, data, **settings)


class Starts(Plugin):
    """Starts of its own; if it is `early` in the first epoch alone."""

    name, early = "starts", False

    def active(self, hook, epoch):
        return not (self.early and epoch)

    @hookimpl
    def attack_start(self, batch, restart):
        return (batch.x + ATTACK.eps * (-1) ** restart).clamp(0, 1)


class Early(Starts):
    early = True


def test_restarts_need_starts_that_differ_whose_ever_they_are(normed, data):
    report = counted(subject_of(normed, data, [Starts], **{"attack.restarts": 2}), data)
    assert report.passes["attack"].forward == 2 * ATTACK.m + 2
    several = {"attack.restarts": 2, "attack.init": "zero", "run.epochs": 2}
    subject_of(normed, data, ["fgsm-rs"], options={"fgsm-rs": {"noise": 1.0}}, **several)
    for plugin in (Early, "fgsm-rs"):  # without starts of their own in some epoch
        with pytest.raises(OptionError, match="each attack starts at x"):
            subject_of(normed, data, [plugin], **several)


class Inner(Plugin):
    """An attack that moves nothing, and says nothing of a start."""

    name = "inner"

    @hookimpl
    def inner_attack(self, batch):
        return AttackResult(batch.x.clone())


def test_another_inner_attack_has_no_such_settings(normed, data):
    with pytest.raises(HookConflict, match="are for the core's attack, not inner's; drop them"):
        subject_of(normed, data, [Inner], **RANDOM, **{"attack.restarts": 2})
    subject = subject_of(normed, data, [Inner, "lsiw"], **{"update.clean": "start"})
    with pytest.raises(HookContract, match="it does not say where it began"):
        subject.visit(*data.of_step, 0)


# ---------------------------------------------------------------------- L2


@pytest.mark.parametrize("order", ["ball-box", "box-ball"])
def test_the_order_of_box_and_ball_in_l2(net, data, order):
    attack, target = Attack(eps=0.6, alpha=0.3, m=4), naive.one_hot(data.y, data.of_naive[2])
    subject = subject_of(net, data, attack=attack, **{"attack.norm": "l2", "attack.l2_projection": order})
    measured = subject.visit(*data.of_step, 0)["x_adv"]
    model = deepcopy(net).eval()
    for box_first in (True, False):
        expected = torch.stack(
            [naive.perturbed_l2(model, x, aim, attack, box_first) for x, aim in zip(data.x, target, strict=True)]
        )
        gap = (measured - expected).abs().max().item()
        assert gap < 1e-12 if box_first is (order == "box-ball") else gap > 1e-4
    assert measured.min() >= 0 and measured.max() <= 1
    assert (measured - data.x).flatten(1).norm(dim=1).max() <= attack.eps * (1 + 1e-12)


# ---------------------------------------------------------------------- AWP in several steps


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_awp_in_steps(net, data, steps):
    subject = subject_of(net, data, ["awp"], options={"awp": {"gamma": 0.05, "steps": steps}})
    me = learner(net, data)
    for epoch in range(2):
        expected = naive.awp_in_steps(me, *data.of_naive, attack=ATTACK, gamma=0.05, steps=steps)
        measured = subject.visit(*data.of_step, epoch)
        assert_parity(measured, expected)
    wrong = naive.awp_in_steps(learner(net, data), *data.of_naive, attack=ATTACK, gamma=0.05, steps=steps + 1)
    first = subject_of(net, data, ["awp"], options={"awp": {"gamma": 0.05, "steps": steps}}).visit(*data.of_step, 0)
    assert differences(first, wrong)["gradient 0.weight"] > APART


@pytest.mark.parametrize(("plugins", "update"), [(["awp"], (1 + 3, 1 + 3)), (["trades", "awp"], (2 + 6, 2 + 6))])
def test_steps_of_awp_are_planned_and_counted(normed, data, plugins, update):
    report = counted(subject_of(normed, data, plugins, options={"awp": {"steps": 3}}), data)
    assert (report.passes["update"].forward, report.passes["update"].full_backward) == update


def test_one_step_is_awp_as_it_was():
    """Bit for bit; three are not."""
    one, default, three = (trained(**run("awp", options={"awp": given})) for given in ({"steps": 1}, {}, {"steps": 3}))
    assert same(one, default) and not same(three, default)


# ---------------------------------------------------------------------- ISEAT from a random start


def test_iseat_may_take_the_random_start_for_the_clean_image(net, data):
    lam, gamma = 0.3, 0.02
    options = {"lsiw": {"lam": lam}, "awp": {"gamma": gamma}}
    more = {"attack": ATTACK, "index": data.index, "seed": SEED, "lam": lam, "gamma": gamma}
    measured = subject_of(net, data, ["lsiw"], options=options, **RANDOM, **{"update.clean": "start"}).visit(
        *data.of_step, 0
    )
    expected = naive.iseat_from_a_random_start(learner(net, data), *data.of_naive, **more)
    assert_parity(measured, expected)
    default = subject_of(net, data, ["lsiw"], options=options, **RANDOM).visit(*data.of_step, 0)
    assert default["x_adv"].equal(measured["x_adv"])
    assert differences(default, expected)["gradient 0.weight"] > APART


def test_a_start_at_x_is_x():
    """Bit for bit."""
    one, other = (trained(**run("lsiw", settings={"update.clean": clean})) for clean in ("x", "start"))
    assert same(one, other)
