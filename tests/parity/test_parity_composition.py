"""CAT and ISEAT together: `--plugins cat-eps,dirichlet-ls,lsiw` over three visits of one batch."""

from __future__ import annotations

from dataclasses import replace

import naive
import pytest
import torch
from naive import Attack
from subject import APART, assert_parity, differences, pair

from advkit import BudgetScale, Plugin, hookimpl

ATTACK = Attack(eps=0.08, alpha=0.04, m=4)
CAT = {"eta": 0.05, "eps_max": 0.08, "c": 0.9 / 0.08}
ISEAT = {"gamma": 0.02, "lam": 0.3}
OPTIONS = {
    "cat-eps": {"eta": CAT["eta"]},
    "dirichlet-ls": {"c": CAT["c"]},
    "lsiw": {"lam": ISEAT["lam"]},
    "awp": {"gamma": ISEAT["gamma"]},
}
SENTENCE = ("cat-eps", "dirichlet-ls", "lsiw")
VISITS = 3


@pytest.fixture
def data(net, data):
    return replace(data, y=net.eval()(data.x).argmax(1))


def visits(net, data, plugins=SENTENCE, av_rank=None, cat=CAT, iseat=ISEAT, **naive_only):
    options = OPTIONS | {"av-rank": av_rank or {}}
    subject, me = pair(net, plugins, attack=ATTACK, samples=data.samples, lr=0.02, options=options)
    for epoch in range(VISITS):
        shared = {"attack": ATTACK, "index": data.index, "epoch": epoch, "seed": 0, **naive_only}
        expected = naive.cat_iseat(me, *data.of_naive, cat=cat, iseat=iseat, **shared)
        yield subject.visit(*data.of_step, epoch), expected


def assert_told_apart(pairs, name="gradient 0.weight"):
    assert max(differences(measured, expected)[name] for measured, expected in pairs) > APART


def test_the_whole_sentence(net, data):
    seen = set()
    for measured, expected in visits(net, data):
        assert_parity(measured, expected)
        assert expected.keys() >= {"x_adv", "eps", "radius", "success", "shift", "base_loss", "lsiw", "loss"}
        seen |= set(expected["eps"].tolist())
    assert seen == {0.0, CAT["eta"], CAT["eps_max"]}


def test_av_is_ranked_by_radius_only_where_budgets_differ(net, data):
    for measured, expected in visits(net, data, av_rank={"normalise": "none"}, normalise=False):
        assert_parity(measured, expected)
    assert_told_apart(visits(net, data, normalise=False))


def test_av_on_soft_labels_is_on_the_training_ones(net, data):
    for measured, expected in visits(net, data, av_rank={"target": "soft"}, judge="soft"):
        assert_parity(measured, expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {"cat": CAT | {"eta": 0.051}},
        {"cat": CAT | {"eps_max": 0.081}},
        {"cat": CAT | {"c": 11}},
        {"iseat": ISEAT | {"gamma": 0.0201}},
        {"iseat": ISEAT | {"lam": 0.301}},
        {"iseat": ISEAT | {"clean_at": "theta+v"}},
        {"iseat": ISEAT | {"adv_at": "theta"}},
    ],
)
def test_a_wrong_constant_is_told_apart(net, data, wrong):
    assert_told_apart(visits(net, data, **wrong))


def test_a_detached_clean_branch_is_told_apart(net, data, monkeypatch):
    monkeypatch.setattr(naive, "clean_side", lambda z: z.detach())
    assert_told_apart(visits(net, data))


WARM_UP = (0.0, 1.0, 0.0, 1.0, 0.5, 0.0, 1.0, 1.0)


class PartlyWarm(Plugin):
    """Some samples are not attacked at all, others by half their budget."""

    name = "partly-warm"

    @hookimpl
    def budget_scale(self) -> BudgetScale:
        return BudgetScale(radius=torch.tensor(WARM_UP, dtype=torch.float64))


def test_radius_0_has_key_0_and_ties_fall_to_the_smaller_id(net, data):
    for measured, expected in visits(net, data, (*SENTENCE, PartlyWarm), warm_up=WARM_UP):
        assert_parity(measured, expected)
        assert measured["x_adv"][0].equal(data.x[0])


@pytest.mark.parametrize("wrong", ["the key is AV", "ties by position"])
def test_another_place_for_radius_0_is_told_apart(net, data, monkeypatch, wrong):
    by_radius, ranks = naive.by_radius, naive.ranks
    if wrong == "the key is AV":
        monkeypatch.setattr(naive, "by_radius", lambda av, radius: by_radius(av, [r or 1.0 for r in radius]))
    else:
        monkeypatch.setattr(naive, "ranks", lambda keys, index: ranks(keys, list(range(len(keys)))))
    assert_told_apart(visits(net, data, (*SENTENCE, PartlyWarm), warm_up=WARM_UP))
