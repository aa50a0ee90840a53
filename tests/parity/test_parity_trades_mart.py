"""TRADES and MART, alone and with AWP, over two visits of one batch."""

from __future__ import annotations

from types import MappingProxyType

import naive
import pytest
import torch
import torch.nn.functional as F
from methods import Method, run, trained
from naive import Attack
from subject import APART, assert_parity, differences, pair

from advkit import Plugin, Step, hookimpl
from advkit_plugins.mart import Mart

EPS = 0.1
ATTACK = Attack(eps=EPS, alpha=7 / 31 * EPS, m=4)  # four steps stay inside: the start's noise is in the result
BETA, LAM, GAMMA, SEED = 4.0, 3.0, 0.02, 5
VISITS = 2


class Boosted(Plugin):
    """MART without its second term, written again."""

    name = "boosted"
    prefers = Mart.prefers

    @hookimpl
    def base_loss(self, batch, adv_logits):
        p = adv_logits.softmax(1)
        rival = p.masked_fill(F.one_hot(batch.y, p.shape[1]).bool(), 0).amax(1)
        return F.cross_entropy(adv_logits, batch.y, reduction="none") - (1.0001 - rival + 1e-12).log()


# Only one forward moves the statistics, as without the plugin; dropout has masks of its own for each forward.
ON_CLEAN = {"settings": {"attack.mode": "eval", "update.batch_norm": "clean_logits"}, "dropout": 0.0}
UNATTACKED = {"settings": {"attack.mode": "eval", "attack.steps": 0}, "dropout": 0.0}
ON_ADVERSARIAL = {"settings": {"attack.mode": "eval", "update.batch_norm": "adv_logits"}}


def given(name, *others, more=MappingProxyType({}), **values):
    return run(name, *others, options={name: values}, **more)


METHODS = {
    "trades": Method(
        # beta 0 is standard training; with AWP, AWP on clean images.
        neutral=[
            (given("trades", beta=0.0, more=ON_CLEAN), run(**UNATTACKED)),
            (given("trades", beta=[[0, 0.0], [2, 6.0]], more=ON_CLEAN), run(**UNATTACKED)),
            (given("trades", "awp", beta=0.0, more=ON_CLEAN), run("awp", **UNATTACKED)),
        ],
        changes=[(given("trades", beta=1e-3), given("trades", beta=0.0))],
        moving={"trades": {"beta": [[0, 1.0], [1, 6.0]]}},
    ),
    "mart": Method(
        # lambda 0 is the boosted cross-entropy, whatever would be detached.
        neutral=[
            (
                given("mart", *others, lam=0.0, detach_target=detached, more=ON_ADVERSARIAL),
                run(Boosted, *others, **ON_ADVERSARIAL),
            )
            for detached in (False, True)
            for others in ((), ("awp",))
        ],
        changes=[
            (given("mart", lam=1e-3), given("mart", lam=0.0)),
            (given("mart", detach_target=True), given("mart")),
        ],
        moving={"mart": {"lam": [[0, 1.0], [1, 5.0]]}},
    ),
}
EQUATIONS = {"trades": (naive.trades, {"beta": BETA}), "mart": (naive.mart, {"lam": LAM})}

method = pytest.mark.parametrize("name", sorted(EQUATIONS))


def start(net, data, name, plugins=(), **own):
    options = {name: EQUATIONS[name][1] | own} | {plugin: {"gamma": GAMMA} for plugin in plugins}
    more = {"attack": ATTACK, "samples": data.samples, "lr": 0.1, "options": options, "seed": SEED}
    return pair(net, [name, *plugins], **more)


def expect(me, data, name, epoch, **changed):
    loss, constants = EQUATIONS[name]
    more = {"attack": ATTACK, "index": data.index, "epoch": epoch, "seed": SEED} | constants | changed
    return loss(me, *data.of_naive, **more)


@method
def test_alone(net, data, name):
    subject, me = start(net, data, name)
    for epoch in range(VISITS):
        expected = expect(me, data, name, epoch)
        assert_parity(subject.visit(*data.of_step, epoch), expected)
        assert expected.keys() >= {"x_adv", "base_loss", name, "loss"}
    assert 0 < (expected["x_adv"] - data.x).abs().max() <= EPS


@method
def test_with_awp_v_increases_the_whole_loss(net, data, name):
    subject, me = start(net, data, name, ["awp"])
    for epoch in range(VISITS):
        expected = expect(me, data, name, epoch, gamma=GAMMA)
        assert_parity(subject.visit(*data.of_step, epoch), expected)
        assert expected.keys() >= {"shift"}


def test_defaults_are_the_papers(net, data):
    for name, constants in {"trades": {"beta": 6.0}, "mart": {"lam": 5.0}}.items():
        subject, me = pair(net, [name], attack=ATTACK, samples=data.samples, lr=0.1, seed=SEED)
        assert_parity(subject.visit(*data.of_step, 0), expect(me, data, name, 0, **constants))


def test_start_step_and_mode_that_the_methods_prefer(net):
    """TRADES: 0.007 at its eps 0.031. MART's paper takes eps / 4."""
    for name, step_size in {"trades": 0.007, "mart": 0.031 / 4}.items():
        attack = Step(net, torch.optim.SGD(net.parameters(), 0.1), [name], num_samples=1, eps=0.031).attack
        assert (attack.init, attack.mode) == ("normal", "eval")
        assert attack.step_size == pytest.approx(step_size, rel=1e-12)


@method
def test_the_start_is_not_clipped_before_the_first_gradient(net, data, name):
    subject, _ = start(net, data, name)
    record = subject.visit(*data.of_step, 0)
    noise = naive.start_noise(SEED, 0, data.index, data.x[0].shape)
    begin = data.x + 0.001 * noise
    clean = 1 if name == "trades" else 0  # after the probe of one image, f(x; theta) for the KL
    first = [x for training, x, _ in subject.forwards if not training and len(x) > 1][clean]
    torch.testing.assert_close(first, begin, rtol=0, atol=1e-15)
    assert (first < 0).any() and (first > 1).any()
    assert ((record["x_adv"] >= 0) & (record["x_adv"] <= 1)).all()


def test_the_attack_of_trades_knows_no_labels(net, data):
    measured = [
        start(net, data, "trades")[0].visit(data.x, y, data.index, 0)["x_adv"] for y in (data.y, data.y.flip(0))
    ]
    assert measured[0].equal(measured[1]) and not data.y.equal(data.y.flip(0))


DETACHED = {"weight": "detach_weight", "target": "detach_target"}


@pytest.mark.parametrize("parts", [("weight",), ("target",), ("weight", "target")], ids="+".join)
def test_the_detach_switches_of_mart(net, data, parts):
    subject, me = start(net, data, "mart", **{DETACHED[part]: True for part in parts})
    for epoch in range(VISITS):
        assert_parity(subject.visit(*data.of_step, epoch), expect(me, data, "mart", epoch, detach=parts))
    subject, me = start(net, data, "mart", **{DETACHED[part]: True for part in parts})
    errors = differences(subject.visit(*data.of_step, 0), expect(me, data, "mart", 0))
    assert errors["loss"] == pytest.approx(0, abs=1e-12)  # a switch of the gradient alone
    assert errors["gradient 0.weight"] > APART


# ---------------------------------------------------------------------- what must be told apart


@method
@pytest.mark.parametrize(
    "wrong",
    [
        {"coefficient": 1.001},
        {"gamma": GAMMA * 1.001},
        {"seed": SEED + 1},
        {"epoch": 1},
        {"attack": Attack(EPS / 2, ATTACK.alpha, ATTACK.m)},
        {"attack": Attack(EPS, ATTACK.alpha * 1.001, ATTACK.m)},
        {"attack": Attack(EPS, ATTACK.alpha, ATTACK.m - 1)},
    ],
    ids=["coefficient", "gamma", "seed", "epoch", "eps", "alpha", "m"],
)
def test_a_wrong_constant_is_told_apart(net, data, name, wrong):
    subject, me = start(net, data, name, ["awp"])
    if factor := wrong.get("coefficient"):
        wrong = {key: value * factor for key, value in EQUATIONS[name][1].items()}
    expected = expect(me, data, name, **({"epoch": 0, "gamma": GAMMA} | wrong))
    errors = differences(subject.visit(*data.of_step, 0), expected)
    assert min(errors["loss"], errors["gradient 0.weight"], errors["parameter 0.weight"]) > APART


KL, NOISE, BOOSTED = naive.kl, naive.start_noise, naive.boosted


def _other_way_round(adversarial, clean):
    return KL(clean, adversarial)


def _another_start(*address):
    return NOISE(*address).flip(0)


def _cross_entropy(adversarial, y):
    return -naive.log_softmax(adversarial)[y]


def _of_true_class(clean, y):
    return naive.log_softmax(clean)[y].exp()


@pytest.mark.parametrize(
    ("name", "part", "wrong"),
    [
        ("trades", "kl", _other_way_round),
        ("trades", "clean_side", lambda z: z.detach()),
        ("trades", "start_noise", _another_start),
        ("mart", "boosted", _cross_entropy),
        ("mart", "misclassification", _of_true_class),
        ("mart", "misclassification", lambda clean, y: torch.ones(())),
        ("mart", "kl_of_mart", _other_way_round),
        ("mart", "start_noise", _another_start),
    ],
)
def test_a_wrong_part_is_told_apart(net, data, monkeypatch, name, part, wrong):
    subject, me = start(net, data, name)
    monkeypatch.setattr(naive, part, wrong)
    assert differences(subject.visit(*data.of_step, 0), expect(me, data, name, 0))["gradient 0.weight"] > APART


def test_the_constants_of_mart_are_told_apart(net, data, monkeypatch):
    """1.0001 inside the logarithm is 1e-4 of the loss."""
    subject, me = start(net, data, "mart")
    monkeypatch.setattr(naive, "boosted", lambda z, y: BOOSTED(z, y) + torch.log(torch.tensor(1.0001).double()))
    assert differences(subject.visit(*data.of_step, 0), expect(me, data, "mart", 0))["loss"] > APART


@method
def test_statistics_see_both_forwards(normed, data, name):
    """`update.batch_norm` decides, not the coefficient: with one forward named, the other is not in the statistics."""
    settings = {"update.batch_norm": "adv_logits"}
    subject, _ = pair(normed, [name], attack=ATTACK, samples=data.samples, lr=0.1, seed=SEED, settings=settings)
    both, me = start(normed, data, name)
    expected = expect(me, data, name, 0)
    assert differences(both.visit(*data.of_step, 0), expected)["statistic 1.running_mean"] < 1e-10
    assert differences(subject.visit(*data.of_step, 0), expected)["statistic 1.running_mean"] > APART


@method
def test_a_coefficient_of_0_changes_no_policy_of_statistics(name):
    """Both forwards move them, whatever the coefficient."""
    coefficient = {"trades": "beta", "mart": "lam"}[name]

    def mean(value, **settings):
        return trained([name], options={name: {coefficient: value}}, settings=settings, lr=0.0)["1.running_mean"]

    assert torch.equal(mean(0.0), mean(1.0))
    assert not torch.equal(mean(0.0), mean(0.0, **{"update.batch_norm": "adv_logits"}))


@pytest.mark.parametrize(("name", "base"), [("trades", []), ("mart", [Boosted])])
def test_at_radius_0_a_divergence_is_0(name, base):
    """Up to rounding, and to the 1e-12 inside MART's logarithm: gradients cancel, bits do not."""
    exact = {"dropout": 0.0, "dtype": torch.float64, "lr": 0.01, "settings": ON_ADVERSARIAL["settings"]}

    def apart(eps):
        one, other = (trained(plugins, eps=eps, **exact) for plugins in ([name], base))
        return max((one[key] - other[key]).abs().max().item() for key in one)

    assert apart(0.0) < 1e-10 and apart(0.1) > 1e-4
