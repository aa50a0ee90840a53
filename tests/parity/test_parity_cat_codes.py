"""What CAT's official codes do otherwise, option by option and state by state, and CAT's mixed loss."""

from __future__ import annotations

from dataclasses import replace

import naive
import pytest
import torch
from methods import Method, run
from naive import Attack, Mixed
from subject import APART, assert_parity, differences, pair

from advkit import Budget, Plugin, hookimpl
from advkit_plugins.cat_eps import next_eps

ATTACK = Attack(eps=0.08, alpha=0.04, m=4)
RULE = {"eta": 0.05, "eps_max": 0.08}
C = 0.9 / 0.08
SEED = 7
VISITS = 3


class NoBudget(Plugin):
    """Radius 0 for each sample."""

    name = "no-budget"

    @hookimpl
    def perturbation_budget(self, batch):
        zeros = batch.x.new_zeros(len(batch.x))
        return Budget(attack=zeros, label=zeros)


CAT = ("cat-eps", "cat-margin", "dirichlet-ls", "lsiw")
"""CAT as printed, and ISEAT."""


def margin(*plugins, **values):
    return run("cat-margin", *plugins, options={"cat-margin": values})


METHODS = {
    "cat-margin": Method(
        neutral=[
            # A weight of 0 leaves the cross-entropy.
            *((margin(NoBudget, weight=weight), run(NoBudget)) for weight in ("eps", "eps-sum")),
            # Both hinges are the margin itself while it is within kappa.
            *(
                (margin(*others, kappa=1e6, inner="literal"), margin(*others, kappa=1e6, inner="mirrored"))
                for others in ((), [name for name in CAT if name != "cat-margin"])
            ),
        ],
        changes=[
            (margin(), run()),
            (margin(NoBudget), run(NoBudget)),
            (margin(kappa=1e-2), margin(kappa=1e6)),
            (margin(kappa=1e-2), margin(kappa=1e-2, inner="mirrored")),
            (margin(weight="eps"), margin(weight="eps-sum")),
        ],
        moving={"cat-margin": {"kappa": 0.01, "weight": "eps"}},
    )
}


@pytest.fixture
def data(net, data):
    """Labelled as the net in eval mode sees the images, so that only attacks make errors."""
    return replace(data, y=net.eval()(data.x).argmax(1))


def visits(
    net, data, cat_eps=None, dirichlet_ls=None, margin=None, c=C, plugins=("cat-eps", "dirichlet-ls"), **expected
):
    """(measured, expected) of each visit: options of the plugins, and what the naive side makes of them."""
    options = {"cat-eps": RULE | (cat_eps or {}), "dirichlet-ls": {"c": c} | (dirichlet_ls or {})}
    if margin is not None:
        plugins, options = (*plugins, "cat-margin"), options | {"cat-margin": margin}
    subject, me = pair(net, plugins, attack=ATTACK, samples=data.samples, lr=0.02, options=options, seed=SEED)
    for epoch in range(VISITS):
        shared = {"attack": ATTACK, "index": data.index, "epoch": epoch, "seed": SEED, "c": c}
        measured = subject.visit(*data.of_step, epoch)
        yield measured, naive.cat(me, *data.of_naive, **shared, **RULE, **expected)


def assert_told_apart(pairs, *names):
    worst: dict[str, float] = {}
    for measured, expected in pairs:
        for name, error in differences(measured, expected).items():
            worst[name] = max(error, worst.get(name, 0.0))
    assert all(worst[name] > APART for name in names)


# ---------------------------------------------------------------------- the rule of eps_i

ACTIONS = {
    "keep": lambda before, eps, reach: eps,
    "roll-back": lambda before, eps, reach: before,
    "reset": lambda before, eps, reach: 0.0,
    "distance": lambda before, eps, reach: reach,
}


def ruled(on_success="reset", on_failure="keep"):
    def rule(before, eps, reach, success, eps_max):
        return min(eps_max, ACTIONS[on_success if success else on_failure](before, eps, reach))

    return rule


@pytest.mark.parametrize("when", ["on_success", "on_failure"])
@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_actions(net, data, when, action):
    printed = {"on_success": "reset", "on_failure": "keep"}[when] == action
    for measured, expected in visits(net, data, {when: action}, rule=ruled(**{when: action})):
        assert_parity(measured, expected)
    # A failed attack spends its whole budget on these nets, so that its distance is what it kept.
    same = printed or (when, action) == ("on_failure", "distance")
    if not same:
        assert_told_apart(visits(net, data, {when: action}), "eps", "gradient 0.weight")


def test_distance_is_what_the_attack_moved_and_not_its_budget(net, data):
    """Where the box or the steps are in the way: three steps of 0.01 reach 0.03 of a budget of 0.05."""
    short = Attack(eps=0.08, alpha=0.01, m=3)
    options = {"cat-eps": RULE | {"on_failure": "distance", "on_success": "distance"}}
    subject, me = pair(net, ["cat-eps"], attack=short, samples=data.samples, lr=0.02, options=options, seed=SEED)
    rule = ruled("distance", "distance")
    shared = {"attack": short, "index": data.index, "epoch": 0, "seed": SEED, "c": 0}
    measured = subject.visit(*data.of_step, 0)
    assert_parity(measured, naive.cat(me, *data.of_naive, **shared, **RULE, rule=rule))
    assert measured["eps"].tolist() == pytest.approx([0.03] * len(data.y))


def test_cap_before_the_attack(net, data):
    for measured, expected in visits(net, data, {"cap": "before"}, cap_before=True):
        assert_parity(measured, expected)
        assert (measured["x_adv"] - data.x).abs().max() <= RULE["eps_max"] + 1e-12
    assert_told_apart(visits(net, data, {"cap": "before"}), "x_adv", "gradient 0.weight")


def test_attack_label_of_the_new_eps(net, data):
    c = 0.9 / 0.13  # eps_i is not capped yet: at most eps_max + eta
    for measured, expected in visits(net, data, {"attack_label": "new"}, c=c, attack_label="new"):
        assert_parity(measured, expected)
    assert_told_apart(visits(net, data, {"attack_label": "new"}, c=c), "x_adv")


@pytest.mark.parametrize("outcome", ["success", "failure"])
def test_clean_images_on(net, data, outcome):
    seen = set()
    for measured, expected in visits(net, data, {"clean_on": outcome}, clean_on=outcome == "success"):
        assert_parity(measured, expected)
        seen |= {bool(row.all()) for row in (measured["x_adv"] == data.x).flatten(1)}
    assert seen == {True, False}
    assert_told_apart(visits(net, data, {"clean_on": outcome}), "x_adv", "gradient 0.weight")


def test_no_redraw(net, data):
    for measured, expected in visits(net, data, dirichlet_ls={"redraw": False}, redraw=False):
        assert_parity(measured, expected)
    assert_told_apart(visits(net, data, dirichlet_ls={"redraw": False}), "gradient 0.weight")


def test_no_redraw_without_budgets(net, data):
    options = {"dirichlet-ls": {"c": C, "redraw": False}}
    subject, me = pair(net, ["dirichlet-ls"], attack=ATTACK, samples=data.samples, lr=0.02, options=options, seed=SEED)
    shared = {"attack": ATTACK, "index": data.index, "epoch": 0, "seed": SEED, "c": C}
    assert_parity(subject.visit(*data.of_step, 0), naive.smoothing(me, *data.of_naive, **shared, redraw=False))


# ---------------------------------------------------------------------- the codes as a whole


def february_2020(before, eps, reach, success, eps_max):
    """A failure stores how far it got, a success 0."""
    return 0.0 if success else reach


def june_v1(before, eps, reach, success, eps_max):
    """The other way round."""
    return reach if success else 0.0


def june_v2(before, eps, reach, success, eps_max):
    """eps += eta; then eps -= eta where the prediction equals the label."""
    return eps if success else max(0.0, eps - RULE["eta"])


STATES = {
    "paper": ({}, {}, None),
    "feb-2020": (
        {"on_failure": "distance", "cap": "before", "clean_on": "success"},
        {"rule": february_2020, "cap_before": True, "clean_on": True},
        None,
    ),
    "jun-v1": (
        {"on_success": "distance", "on_failure": "reset", "cap": "before", "clean_on": "failure"},
        {"rule": june_v1, "cap_before": True, "clean_on": False},
        {"kappa": 0.1, "inner": "mirrored", "weight": "eps-sum"},
    ),
    "jun-v2": (
        {"on_success": "keep", "on_failure": "roll-back", "cap": "before", "attack_label": "new"},
        {"rule": june_v2, "cap_before": True, "attack_label": "new"},
        {"kappa": 0.1, "inner": "mirrored", "weight": "eps-sum"},
    ),
}


@pytest.mark.parametrize("state", sorted(STATES))
def test_code_states(net, data, state):
    options, expected, margin = STATES[state]
    mixed = Mixed(0.1, mirrored=True, weight="eps-sum") if margin else None
    for measured, wanted in visits(net, data, options, margin=margin, mixed=mixed, **expected):
        assert_parity(measured, wanted)
    if state != "paper":
        assert_told_apart(visits(net, data, options, margin=margin, mixed=mixed), "eps", "gradient 0.weight")


def test_a_failure_takes_eta_off_the_capped_budget():
    """June 2020, version 2, at its cap: .035 is stored and attacked, and a failure leaves .0325, not .035."""
    attacked = torch.tensor([0.035, 0.0025, 0.02], dtype=torch.float64)  # of .035 (capped), 0 and .0175
    actions = {"on_success": "keep", "on_failure": "roll-back", "eta": 0.0025, "eps_max": 0.035}
    failed = next_eps(attacked, attacked, torch.zeros(3, dtype=torch.bool), **actions)
    assert failed.tolist() == pytest.approx([0.0325, 0.0, 0.0175], rel=1e-12)
    assert next_eps(attacked, attacked, torch.ones(3, dtype=torch.bool), **actions).equal(attacked)


@pytest.mark.parametrize("stored", [0.0, 0.03, 0.08])
def test_a_roll_back_in_a_step(net, data, stored):
    """A step whose attacks all fail, from each stored eps_i: the cap is .08, eta .05."""
    still = Attack(eps=0.08, alpha=1e-9, m=1)  # too short to succeed
    options = {"cat-eps": RULE | STATES["jun-v2"][0]}
    subject, _ = pair(net, ["cat-eps"], attack=still, samples=data.samples, lr=0.02, options=options, seed=SEED)
    subject.step.state.samples["cat-eps/eps"].fill_(stored)
    measured = subject.visit(*data.of_step, 0)
    assert float(measured["success"]) == 0
    left = min(stored + RULE["eta"], RULE["eps_max"]) - RULE["eta"]
    assert measured["eps"].tolist() == pytest.approx([left] * len(data.y), abs=1e-7)


# 64 images that are wrong already, 600 with margins spread evenly over (0, 0.06).
MARGINS = torch.cat([torch.zeros(64), (torch.arange(600) + 0.5) * 1e-4]).double()
GROUPS = (MARGINS < 0.01, (MARGINS >= 0.01) & (MARGINS < 0.03), MARGINS >= 0.04)


def simulated(eta, eps_max, cap_before, **actions):
    """Mean eps_i a group after 40 visits of frozen images: an attack succeeds if its budget reaches the margin."""
    eps = torch.zeros_like(MARGINS)
    for _ in range(40):
        attacked = (eps + eta).clamp(max=eps_max) if cap_before else eps + eta
        eps = next_eps(attacked, attacked, attacked >= MARGINS, eta=eta, eps_max=eps_max, **actions)
    return [eps[group].mean().item() for group in GROUPS]


@pytest.mark.parametrize(
    ("arguments", "actions", "small", "middle", "large"),
    [
        ((0.005, 8 / 255, False), {}, 0.000, 0.006, 0.031),
        ((0.0025, 0.03, True), {"on_failure": "distance"}, 0.000, 0.008, 0.030),
        ((0.03, 0.06, True), {"on_success": "distance", "on_failure": "reset"}, 0.060, 0.060, 0.000),
        ((0.0025, 0.035, True), {"on_success": "keep", "on_failure": "roll-back"}, 0.019, 0.000, 0.000),
        ((0.005, 8 / 255, False), {"on_success": "roll-back"}, 0.002, 0.018, 0.031),
    ],
    ids=["paper", "feb-2020", "jun-v1", "jun-v2", "iaat-like"],
)
def test_frozen_margins(arguments, actions, small, middle, large):
    """The paper gives large budgets to robust images, both codes of June 2020 to images that are wrong already."""
    measured = simulated(*arguments, **actions)
    assert measured == pytest.approx([small, middle, large], abs=6e-4)
    inverted = "on_success" in actions and actions["on_success"] in ("keep", "distance")
    assert (measured[0] > measured[2]) == inverted


# ---------------------------------------------------------------------- the mixed loss

KAPPA = 0.1  # some margins of these nets lie beyond it, some within


@pytest.mark.parametrize("inner", ["literal", "mirrored"])
@pytest.mark.parametrize("weight", ["one", "eps", "eps-sum"])
def test_mixed_loss(net, data, inner, weight):
    margin = {"kappa": KAPPA, "inner": inner, "weight": weight}
    mixed = Mixed(KAPPA, inner == "mirrored", weight)
    for measured, expected in visits(net, data, margin=margin, mixed=mixed):
        assert_parity(measured, expected)
        assert expected.keys() >= {"base_loss", "cat-margin"}


def test_mixed_loss_alone_takes_the_runs_eps(net, data):
    options = {"cat-margin": {"kappa": KAPPA, "weight": "eps"}}
    subject, me = pair(net, ["cat-margin"], attack=ATTACK, samples=data.samples, lr=0.02, options=options, seed=SEED)
    shared = {"attack": ATTACK, "index": data.index, "epoch": 0, "seed": SEED, "c": 0, "eta": 0.0, "eps_max": 1.0}
    me.eps = [ATTACK.eps] * data.samples
    mixed = Mixed(KAPPA, weight="eps")
    expected = naive.cat(me, *data.of_naive, **shared, mixed=mixed, rule=lambda before, *_: before)
    own = {name: value for name, value in expected.items() if name not in ("eps", "success")}  # none of this run's
    assert_parity(subject.visit(*data.of_step, 0), own)


def test_the_hinge_of_the_code_has_the_same_gradient_as_the_printed_one(net, data):
    """max(max_j Z_j - Z_y + kappa, 0), times eps_i, summed: kappa sum eps_i more than the printed term."""
    margin = {"kappa": KAPPA, "weight": "eps-sum"}
    (measured, _), *_ = visits(net, data, margin=margin, mixed=Mixed(KAPPA, weight="eps-sum"))
    model = naive.Learner(net, data.samples, 0.02).copy()
    z = model(measured["x_adv"])
    hinges = [(naive.margin(z[i], int(y)) + KAPPA).clamp(min=0) for i, y in enumerate(data.y)]
    hinge = sum(measured["eps"][i] * hinges[i] for i in range(len(z)))
    assert any(h == 0 for h in hinges) and any(h > 0 for h in hinges)
    of_term = hinge.item() - KAPPA * measured["eps"].sum().item()
    assert (measured["cat-margin"] / len(z)).item() == pytest.approx(of_term, rel=1e-10)
    names = [name for name, _ in model.named_parameters()]
    code = dict(zip(names, torch.autograd.grad(hinge, list(model.parameters())), strict=True))
    base = naive.Learner(net, data.samples, 0.02).copy()
    z = base(measured["x_adv"])
    hard = naive.one_hot(data.y, 4)
    u = naive.noise(SEED, "train", 0, data.index, 4)
    labels = [naive.smoothed(hard[i], float(measured["eps"][i]), C, u[i]) for i in range(len(z))]
    naive.mean([naive.cross_entropy(z[i], labels[i]) for i in range(len(z))]).backward()
    for name, p in base.named_parameters():
        torch.testing.assert_close(measured[f"gradient {name}"], p.grad + code[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        Mixed(KAPPA * 1.01),
        Mixed(KAPPA, mirrored=True),
        Mixed(KAPPA, weight="eps"),
        Mixed(KAPPA, weight="eps-sum"),
        None,
    ],
    ids=str,
)
def test_another_mixed_loss_is_told_apart(net, data, wrong):
    assert_told_apart(visits(net, data, margin={"kappa": KAPPA}, mixed=wrong), "gradient 0.weight")


def test_kappa_in_the_wrong_place_is_told_apart(net, data, monkeypatch):
    monkeypatch.setattr(naive, "outer_hinge", lambda gap, kappa: gap.clamp(max=kappa))
    assert_told_apart(visits(net, data, margin={"kappa": KAPPA}, mixed=Mixed(KAPPA)), "gradient 0.weight")
