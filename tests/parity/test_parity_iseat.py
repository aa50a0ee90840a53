"""ISEAT's Algorithm 2: its loss, its two-model gradient, its weights, and the rows of its Tables 5 and 6."""

from __future__ import annotations

import naive
import pytest
import torch
from conftest import CLASSES
from methods import Method, run
from naive import Attack, Learner
from subject import APART, assert_parity, differences, pair

from advkit import Batch
from advkit_plugins.av_rank import AvRank

ATTACK = Attack(eps=0.1, alpha=0.03, m=4)
GAMMA, LAM = 0.02, 0.3
VISITS = 2
BOTH = ("weight_perturbation", "instance_weight:lsiw")

METHODS = {
    "lsiw": Method(
        neutral=[
            (run("lsiw", options={"lsiw": {"lam": 0.0}}, no_companion=BOTH), run()),
            # Its companion awp is not switched off: what is left is awp alone.
            (
                run("lsiw", options={"lsiw": {"lam": 0.0}}),
                run("awp", options={"awp": {"gamma": 0.007, "loss": "adv_ce"}}),
            ),
            # Two epochs are run: the schedule has not begun.
            (run("lsiw", options={"lsiw": {"lam": [[0, 0.0], [2, 0.1]]}}), run("lsiw", options={"lsiw": {"lam": 0.0}})),
            (run("lsiw"), run("lsiw", "awp", "av-rank")),
        ],
        changes=[(run("lsiw", options={"lsiw": {"lam": 1e-3}}, no_companion=BOTH), run())],
        moving={"lsiw": {"lam": [[0, 0.0], [1, 0.1]]}},
    ),
    "av-rank": Method(
        neutral=[
            (
                run("lsiw", "av-rank", options={"av-rank": {"scheme": "uniform"}}),
                run("lsiw", no_companion=["instance_weight:lsiw"]),
            )
        ],
        changes=[
            (run("lsiw", "av-rank", options={"av-rank": {"scheme": "top-k"}}), run("lsiw", "av-rank")),
            (run("av-rank", options={"av-rank": {"term": "base_loss"}}), run()),
        ],
    ),
}


def start(net, data, plugins=("lsiw",), options=None, **more):
    options = {"lsiw": {"lam": LAM}, "awp": {"gamma": GAMMA}} if options is None else options
    return pair(net, plugins, attack=ATTACK, samples=data.samples, lr=0.1, options=options, **more)


def expect(me, data, **options):
    chosen = {"gamma": GAMMA, "lam": LAM} | options
    return naive.iseat(me, *data.of_naive, attack=ATTACK, index=data.index, **chosen)


def test_iseat_is_lsiw_and_its_companions(net, data):
    subject, me = start(net, data)
    for epoch in range(VISITS):
        expected = expect(me, data)
        assert_parity(subject.visit(*data.of_step, epoch), expected)
        assert expected.keys() >= {"shift", "base_loss", "lsiw", "loss", "x_adv"}


def test_defaults_are_the_papers_on_cifar_10(net, data):
    subject, me = start(net, data, options={})
    assert_parity(subject.visit(*data.of_step, 0), expect(me, data, gamma=0.007, lam=0.1))


@pytest.mark.parametrize("adv_at", ["theta", "theta+v"])
@pytest.mark.parametrize("clean_at", ["theta", "theta+v"])
@pytest.mark.parametrize("distance", ["l2", "kl"])
def test_couplings_and_distances(net, data, adv_at, clean_at, distance):
    """Table 6: theta/theta is LSI, theta+v/theta+v TRADE-AWP, theta+v/theta LSIW; Table 5's distances with each."""
    lsiw = {"lam": LAM, "adv_at": adv_at, "clean_at": clean_at, "distance": distance}
    subject, me = start(net, data, options={"lsiw": lsiw, "awp": {"gamma": GAMMA}})
    how = {"l2": naive.squared_l2, "kl": naive.kl}[distance]
    for epoch in range(VISITS):
        expected = expect(me, data, adv_at=adv_at, clean_at=clean_at, distance=how)
        assert_parity(subject.visit(*data.of_step, epoch), expected)


@pytest.mark.parametrize(
    ("options", "weight"),
    [
        ({"scheme": "linear"}, naive.linear),
        ({"scheme": "top-k", "share": 0.4}, naive.top(0.4)),  # 3 of 8
        ({"scheme": "top-k"}, naive.top(0.1)),  # one at least
        ({"scheme": "uniform"}, naive.unweighted),
    ],
)
def test_weights(net, data, options, weight):
    subject, me = start(net, data, options={"lsiw": {"lam": LAM}, "awp": {"gamma": GAMMA}, "av-rank": options})
    for epoch in range(VISITS):
        assert_parity(subject.visit(*data.of_step, epoch), expect(me, data, weight=weight))


@pytest.mark.parametrize("target", ["hard", "soft"])
def test_vulnerability_is_measured_by_the_labels_that_are_named(data, target):
    """Where labels are smoothed, the hard ones rank otherwise than those that are trained on."""
    y, draw = data.of_naive[1], torch.Generator().manual_seed(4)
    adversarial, clean, soft = (torch.randn(len(y), CLASSES, generator=draw, dtype=torch.float64) for _ in range(3))
    labels = {"hard": naive.one_hot(y, CLASSES), "soft": (3 * soft).softmax(1)}
    orders = {name: naive.ranks(naive.vulnerability(adversarial, clean, rows), data.index.tolist())
              for name, rows in labels.items()}  # fmt: skip
    plugin = AvRank(AvRank.Options(target=target))
    plugin.normalise = "none"
    batch = Batch(data.x, y, data.index, torch.zeros_like(data.index))
    weights = plugin.instance_weight(batch, labels["soft"], None, adversarial, clean, None)
    assert weights.tolist() == [1 - rank / len(y) for rank in orders[target]] and orders["hard"] != orders["soft"]


def test_eq_9_has_no_weight_perturbation(net, data):
    options = {"lsiw": {"lam": LAM}, "av-rank": {"scheme": "top-k", "share": 0.4}}
    subject, me = start(net, data, ("lsiw",), options, no_companion=["weight_perturbation"])
    for epoch in range(VISITS):
        assert_parity(subject.visit(*data.of_step, epoch), expect(me, data, gamma=0, weight=naive.top(0.4)))


def test_no_companions_is_plain_logit_stability(net, data):
    declined = ["weight_perturbation", "instance_weight:lsiw"]
    subject, me = start(net, data, ("lsiw",), {"lsiw": {"lam": LAM}}, no_companion=declined)
    for epoch in range(VISITS):
        assert_parity(subject.visit(*data.of_step, epoch), expect(me, data, gamma=0, weight=naive.unweighted))


def test_the_warm_up_of_lam_is_awp(net, data):
    options = {"lsiw": {"lam": [[0, 0.0], [1, LAM]]}, "awp": {"gamma": GAMMA}}
    subject, me = start(net, data, options=options)
    assert_parity(subject.visit(*data.of_step, 0), naive.awp(me, *data.of_naive, attack=ATTACK, gamma=GAMMA))
    assert_parity(subject.visit(*data.of_step, 1), expect(me, data))


def test_trades_awp_lets_v_increase_the_regularizer_too(net, data, monkeypatch):
    """AWP's own TRADES-AWP: v increases the whole loss, which at theta+v/theta+v is one model's."""
    lsiw = {"lam": LAM, "clean_at": "theta+v", "distance": "kl"}
    options = {"lsiw": lsiw, "awp": {"gamma": GAMMA, "loss": "objective"}, "av-rank": {"scheme": "uniform"}}
    subject, me = start(net, data, options=options)
    of_cross_entropy = naive.ascent

    def of_the_whole_loss(me, x, x_adv, target):
        proxy = me.copy()
        adversarial, clean = proxy(x_adv), proxy(x)
        terms = [
            naive.cross_entropy(adversarial[i], target[i]) + LAM * naive.kl(adversarial[i], clean[i])
            for i in range(len(x))
        ]
        naive.mean(terms).backward()
        return {name: p.grad for name, p in proxy.named_parameters()}

    how = {"clean_at": "theta+v", "distance": naive.kl, "weight": naive.unweighted}
    for epoch in range(VISITS):
        monkeypatch.setattr(naive, "ascent", of_the_whole_loss)
        measured = subject.visit(*data.of_step, epoch)
        assert_parity(measured, expect(me, data, **how))
    monkeypatch.setattr(naive, "ascent", of_cross_entropy)
    subject, me = start(net, data, options=options)
    assert differences(subject.visit(*data.of_step, 0), expect(me, data, **how))["gradient 0.weight"] > APART


# ---------------------------------------------------------------------- Eq. 20 and 21, in closed form


def two_models(me, data):
    """theta' = theta + v and theta after one backward each, with dL/df of Eq. 18 written out; and v."""
    m, target = len(data.y), naive.one_hot(data.y, data.of_naive[2])
    x_adv = naive.attacked(me, data.x, target, ATTACK)
    v = naive.projected(naive.ascent(me, data.x, x_adv, target), me.theta, GAMMA)
    moved, still = me.moved(v), me.copy()
    f_adv, f_clean = moved(x_adv), still(data.x)
    w = [1 - r / m for r in naive.ranks(naive.vulnerability(f_adv, f_clean, target), data.index.tolist())]
    apart = (f_adv - f_clean).detach()
    to_adv = [(f_adv[i].detach().softmax(0) - target[i] + 2 * LAM * w[i] * apart[i]) / m for i in range(m)]
    to_clean = [-2 * LAM * w[i] * apart[i] / m for i in range(m)]
    f_adv.backward(torch.stack(to_adv))
    f_clean.backward(torch.stack(to_clean))
    return dict(moved.named_parameters()), dict(still.named_parameters()), v


def test_eq_20_is_the_sum_of_two_backward_passes(net, data):
    subject, me = start(net, data)
    moved, still, _ = two_models(me, data)
    measured = subject.visit(*data.of_step, 0)
    for name in moved:
        gradient = moved[name].grad + still[name].grad
        torch.testing.assert_close(measured[f"gradient {name}"], gradient, rtol=1e-10, atol=1e-12)
        assert (gradient - moved[name].grad).abs().max() > 1e-4 * gradient.abs().max()  # both terms count


def test_eq_21_steps_at_theta_plus_v_which_differs_by_the_decay_of_v(net, data):
    """theta <- (theta + v) - l (gradient + decay (theta + v)) - v; advkit decays theta, and that is all."""
    lr, decay = 0.1, 5e-4
    subject, me = start(net, data)
    moved, still, v = two_models(me, data)
    measured = subject.visit(*data.of_step, 0)
    for name, at_v in moved.items():
        shift = v.get(name, torch.zeros_like(at_v))
        gradient = at_v.grad + still[name].grad
        printed = at_v.detach() - lr * (gradient + decay * at_v.detach()) - shift
        torch.testing.assert_close(measured[f"parameter {name}"] - lr * decay * shift, printed, rtol=0, atol=1e-14)
        if name in v:
            assert (measured[f"parameter {name}"] - printed).abs().max() > 1e-9


# ---------------------------------------------------------------------- what must be told apart


@pytest.mark.parametrize("wrong", [{"gamma": GAMMA * 1.001}, {"lam": LAM * 1.001}])
def test_a_wrong_constant_is_told_apart(net, data, wrong):
    subject, me = start(net, data)
    errors = differences(subject.visit(*data.of_step, 0), expect(me, data, **wrong))
    assert min(errors["loss"], errors["gradient 0.weight"], errors["parameter 0.weight"]) > APART


def _per_class(adversarial, clean):
    return ((adversarial - clean) ** 2).mean()


def _from_one(rank, m):
    return 1 - (rank + 1) / m


RANKS, VULNERABILITY = naive.ranks, naive.vulnerability
DESCEND, MOVED = Learner.descend, Learner.moved


def _reversed(keys, index):
    return RANKS([-key for key in keys], index)


def _of_the_loss(adversarial, clean, target):
    return VULNERABILITY(adversarial, torch.zeros_like(clean), target)


def _keeping_the_clean_statistics(self, loss, live, *others):
    return DESCEND(self, loss, *reversed([live, *others]))


def _on_one_model(self, v):
    """theta + v for both terms, as one model perturbed in place would have it."""
    self.theta = MOVED(self, v)
    return MOVED(self, {})


@pytest.mark.parametrize(
    ("owner", "name", "wrong", "where"),
    [
        (naive, "clean_side", lambda z: z.detach(), "gradient 0.weight"),
        (naive, "ranks", _reversed, "loss"),
        (naive, "vulnerability", _of_the_loss, "loss"),
        (Learner, "descend", _keeping_the_clean_statistics, "statistic 1.running_mean"),
        (Learner, "moved", _on_one_model, "loss"),
    ],
)
def test_a_wrong_part_is_told_apart(normed, data, monkeypatch, owner, name, wrong, where):
    subject, me = start(normed, data)
    monkeypatch.setattr(owner, name, wrong)
    assert differences(subject.visit(*data.of_step, 0), expect(me, data))[where] > APART


@pytest.mark.parametrize(
    "wrong", [{"distance": _per_class}, {"distance": naive.kl}, {"weight": _from_one}, {"weight": naive.unweighted}]
)
def test_a_wrong_term_is_told_apart(net, data, wrong):
    subject, me = start(net, data)
    errors = differences(subject.visit(*data.of_step, 0), expect(me, data, **wrong))
    assert min(errors["loss"], errors["gradient 0.weight"]) > APART


def test_kl_the_other_way_round_is_told_apart(net, data):
    subject, me = start(net, data, options={"lsiw": {"lam": LAM, "distance": "kl"}, "awp": {"gamma": GAMMA}})
    expected = expect(me, data, distance=lambda adversarial, clean: naive.kl(clean, adversarial))
    assert differences(subject.visit(*data.of_step, 0), expected)["loss"] > APART
