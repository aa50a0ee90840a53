"""CAT's Algorithm 1 over three visits of one batch, and its two plugins one by one."""

from __future__ import annotations

from dataclasses import replace

import naive
import pytest
import torch
from methods import Method, run
from naive import Attack
from subject import APART, TOLERANCE, assert_parity, differences, pair

from advkit import OptionError
from advkit.config.layer import Layer
from advkit.config.resolve import resolve

ATTACK = Attack(eps=0.08, alpha=0.04, m=4)
RULE = {"eta": 0.05, "eps_max": 0.08}
C = 0.9 / 0.08  # strong labels, so that one draw in place of another changes the attack, too
SEED = 7
VISITS = 3
BOTH = ("cat-eps", "dirichlet-ls")

METHODS = {
    "cat-eps": Method(
        # Reset after every visit, eps_i + eta is always eps.
        neutral=[
            (run("cat-eps", options={"cat-eps": {"eta": "eps", "on_success": "reset", "on_failure": "reset"}}), run())
        ],
        changes=[(run("cat-eps"), run())],
    ),
    "dirichlet-ls": Method(
        neutral=[
            (run("dirichlet-ls", options={"dirichlet-ls": {"c": 0.0}}), run()),
            (run("dirichlet-ls", "lsiw", options={"dirichlet-ls": {"c": 0.0}}), run("lsiw")),
        ],
        changes=[(run("dirichlet-ls", options={"dirichlet-ls": {"c": 1.0}}), run())],
    ),
}


@pytest.fixture
def data(net, data):
    """Labelled as the net in eval mode sees the images, so that only attacks make errors."""
    return replace(data, y=net.eval()(data.x).argmax(1))


def start(net, data, plugins=BOTH, options=None):
    options = options or {"cat-eps": RULE, "dirichlet-ls": {"c": C}}
    return pair(net, plugins, attack=ATTACK, samples=data.samples, lr=0.02, options=options, seed=SEED)


def visits(net, data, **wrong):
    """(measured, expected) of each visit; `wrong` are constants for the naive side alone."""
    subject, me = start(net, data)
    constants = {**RULE, "c": C} | wrong
    for epoch in range(VISITS):
        yield (
            subject.visit(*data.of_step, epoch),
            naive.cat(me, *data.of_naive, attack=ATTACK, index=data.index, epoch=epoch, seed=SEED, **constants),
        )


def worst(pairs):
    """By name, the largest difference over the visits."""
    errors: dict[str, float] = {}
    for measured, expected in pairs:
        for name, error in differences(measured, expected).items():
            errors[name] = max(error, errors.get(name, 0.0))
    return errors


def test_three_visits(net, data):
    for measured, expected in visits(net, data):
        assert_parity(measured, expected)
        assert expected.keys() >= {"x_adv", "eps", "radius", "success", "loss"}


def test_the_three_visits_reach_every_case_of_the_rule(net, data):
    eps_max, eta = RULE["eps_max"], RULE["eta"]
    subject, _ = start(net, data)
    eps, cases = torch.zeros(len(data.y), dtype=torch.float64), set()
    for epoch in range(VISITS):
        record = subject.visit(*data.of_step, epoch)
        reach = (record["x_adv"] - data.x).abs().flatten(1).amax(dim=1)
        for old, new, distance in zip(eps.tolist(), record["eps"].tolist(), reach.tolist(), strict=True):
            if old == eps_max:
                assert distance == pytest.approx(eps_max + eta)  # the cap comes after the attack
                cases.add("attacked beyond the cap")
            if new == 0:
                cases.add("reset at once" if old == 0 else "reset after growth")
            else:
                assert new == pytest.approx(min(old + eta, eps_max), abs=TOLERANCE)
                cases.add("capped" if old + eta > eps_max else "grown")
        assert int(record["success"]) == int((record["eps"] == 0).sum())
        eps = record["eps"]
    assert cases == {"grown", "capped", "reset at once", "reset after growth", "attacked beyond the cap"}
    others = torch.ones(data.samples, dtype=torch.bool).index_fill(0, data.index, False)
    assert not subject.step.state.samples["cat-eps/eps"][others].any()


def test_success_is_the_eval_mode_answer_to_the_last_iterate_at_the_weights_before_the_update(net, data):
    subject, _ = start(net, data)
    for epoch in range(VISITS):
        before = {name: value.clone() for name, value in subject.model.state_dict().items()}
        record = subject.visit(*data.of_step, epoch)
        images, weights = [(x, weights) for training, x, weights in subject.forwards if not training][-1]
        assert images.equal(record["x_adv"]) and all(before[name].equal(w) for name, w in weights.items())
        answer = torch.func.functional_call(subject.model.eval(), before, (images,)).argmax(1)
        assert (answer != data.y).equal(record["eps"] == 0)


def test_constants_are_the_papers_at_8_255(net, data):
    """eta 0.005, eps_max 8/255 and c 10 are the defaults; seven visits reach the cap."""
    attack = Attack(eps=8 / 255, alpha=2 / 255, m=3)
    subject, me = pair(net, BOTH, attack=attack, samples=data.samples, lr=0.001)
    for epoch in range(8):
        paper = {"eta": 0.005, "eps_max": 8 / 255, "c": 10}
        expected = naive.cat(me, *data.of_naive, attack=attack, index=data.index, epoch=epoch, seed=0, **paper)
        assert_parity(subject.visit(*data.of_step, epoch), expected)
    assert (expected["eps"] == 8 / 255).any()


def test_cat_eps_alone_has_hard_labels(net, data):
    """c = 0: what the paper calls "Adp-Adv" in Table 5."""
    subject, me = start(net, data, ("cat-eps",), {"cat-eps": RULE})
    for epoch in range(VISITS):
        shared = {"attack": ATTACK, "index": data.index, "epoch": epoch, "seed": SEED}
        assert_parity(subject.visit(*data.of_step, epoch), naive.cat(me, *data.of_naive, **shared, **RULE, c=0))


def test_dirichlet_ls_alone_smooths_by_the_runs_eps(net, data):
    subject, me = start(net, data, ("dirichlet-ls",), {"dirichlet-ls": {"c": C}})
    for epoch in range(2):
        shared = {"attack": ATTACK, "index": data.index, "epoch": epoch, "seed": SEED}
        assert_parity(subject.visit(*data.of_step, epoch), naive.smoothing(me, *data.of_naive, **shared, c=C))


@pytest.mark.parametrize("wrong", [{"eta": 0.051}, {"eps_max": 0.081}, {"c": 0.89 / 0.08}])
def test_a_wrong_constant_is_told_apart(net, data, wrong):
    errors = worst(visits(net, data, **wrong))
    assert min(errors["loss"], errors["gradient 0.weight"], errors["parameter 0.weight"]) > APART


def _capped_before(eps, eta, eps_max):
    return min(eps_max, eps + eta)


def _backed_off(eps, success, eps_max):
    return min(eps_max, eps - RULE["eta"] if success else eps)


def _not_capped(eps, success, eps_max):
    return 0.0 if success else eps


def _inverted(eps, success, eps_max):
    """As the official code of June 2020."""
    return min(eps_max, eps if success else eps - RULE["eta"])


NOISE = naive.noise


def _one_draw(seed, phase, *address):
    return NOISE(seed, "attack", *address)


def _swapped(seed, phase, *address):
    return NOISE(seed, {"attack": "train", "train": "attack"}[phase], *address)


def _every_epoch_the_same(seed, phase, epoch, *address):
    return NOISE(seed, phase, 0, *address)


def _by_position(seed, phase, epoch, index, classes):
    return NOISE(seed, phase, epoch, torch.arange(len(index)), classes)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("raised", _capped_before),
        ("settled", _backed_off),
        ("settled", _not_capped),
        ("settled", _inverted),
        ("noise", _one_draw),
        ("noise", _swapped),
        ("noise", _every_epoch_the_same),
        ("noise", _by_position),
    ],
)
def test_a_wrong_rule_is_told_apart(net, data, monkeypatch, name, wrong):
    monkeypatch.setattr(naive, name, wrong)
    assert worst(visits(net, data))["gradient 0.weight"] > APART


@pytest.mark.parametrize("wrong", ["attack label from the raised eps", "training label not drawn again"])
def test_a_label_of_the_wrong_moment_is_told_apart(net, data, monkeypatch, wrong):
    smoothed, labels = naive.smoothed, []

    def once_for_the_attack_once_for_training(target, eps, c, u):
        attack = len(labels) % 2 == 0
        if attack and wrong.startswith("attack"):
            eps = min(eps + RULE["eta"], RULE["eps_max"])
        labels.append(smoothed(target, eps, c, u))
        return labels[-1] if attack or wrong.startswith("attack") else labels[-2]

    monkeypatch.setattr(naive, "smoothed", once_for_the_attack_once_for_training)
    errors = worst(visits(net, data))
    assert errors["x_adv" if wrong.startswith("attack") else "gradient 0.weight"] > APART


def test_success_in_train_mode_is_told_apart(normed, data, monkeypatch):
    monkeypatch.setattr(naive, "prediction", lambda model, x: int(model.train()(x[None])[0].argmax()))
    data = replace(data, y=normed.eval()(data.x).argmax(1))
    assert worst(visits(normed, data))["eps"] > APART


def test_how_far_a_label_may_be_smoothed() -> None:
    def cautions(c: float) -> tuple[str, ...]:
        settings = {"attack.eps": 0.1}
        return resolve(["dirichlet-ls"], [Layer("test", settings, {"dirichlet-ls": {"c": c}})]).cautions

    assert cautions(5) == ()
    assert cautions(5.1) == ("dirichlet-ls smooths by up to 0.51: above 0.5 the largest label can be a wrong class",)
    assert cautions(10) == ("dirichlet-ls smooths by up to 1: above 0.5 the largest label can be a wrong class",)
    with pytest.raises(OptionError, match="a label can not be smoothed by more than 1; lower"):
        cautions(10.1)
