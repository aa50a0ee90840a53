"""Temporal ensembling against its equations, sample by sample: the average, its ramp, the attack and the loss."""

from __future__ import annotations

from math import exp

import naive
import pytest
import torch
from conftest import CLASSES
from methods import Method, run
from naive import Attack, Branch, Learner, Record, cross_entropy, log_softmax, mean, one_hot
from subject import APART, assert_parity, differences, pair
from torch import Tensor, nn

from advkit import OptionError
from advkit.config.layer import Layer
from advkit.config.resolve import resolve
from advkit_plugins.te import ramp

ATTACK = Attack(eps=0.1, alpha=0.03, m=4)
UNIFORM = {"settings": {"attack.init": "uniform"}}
EPOCHS = 4


def given(*others, **values):
    return run("te", *others, options={"te": values})


METHODS = {
    "te": Method(
        neutral=[
            (given(weight=0), run(**UNIFORM)),
            (given("awp", start=0.9, full=1.0), run("awp", **UNIFORM)),  # after the last epoch
        ],
        changes=[
            (given(start=0), run(**UNIFORM)),
            (given(start=0), given()),
            (given(start=0), given(start=0, momentum=0.5)),
        ],
        moving={"te": {"start": 0.0, "full": 0.6}},
    )
}


def te(
    me: Learner,
    data,
    epoch: int,
    kept: dict[int, Tensor],
    weight: float = 300.0,
    momentum: float = 0.9,
    start: float = 0.25,
    full: float = 0.75,
    attacks: bool = True,
    divided: bool = True,
) -> Record:
    """`kept` are the averages by sample id; `attacks`: the attack increases the term too; `divided`: by their sums."""
    first, last = start * EPOCHS, full * EPOCHS
    share = 0.0 if epoch < first else exp(-5 * (1 - (epoch - first) / (last - first)) ** 2) if epoch < last else 1.0
    target, model = one_hot(data.y, CLASSES), me.copy(training=False)
    aims: list[Tensor] = []
    for x, i in zip(data.x, data.index.tolist(), strict=True):
        if epoch >= first:
            said = log_softmax(model(x[None])[0].detach()).exp()
            kept[i] = momentum * kept.get(i, torch.zeros(CLASSES, dtype=torch.float64)) + (1 - momentum) * said
        aims.append(kept.get(i, target[0]) / (kept[i].sum() if divided and i in kept else 1))

    def term(z: Tensor, i: int) -> Tensor:
        return weight * share * sum((log_softmax(z)[k].exp() - aims[i][k]) ** 2 for k in range(CLASSES)) / CLASSES

    x_adv = torch.stack(
        [
            naive.perturbed(
                model,
                data.x[i],
                lambda z, i=i: cross_entropy(z, target[i]) + (term(z, i) if attacks else 0),
                ATTACK.eps,
                ATTACK,
            )
            for i in range(len(data.y))
        ]
    )
    adversarial = Branch(me.copy(), x_adv)
    base = [cross_entropy(adversarial.z[i], target[i]) for i in range(len(data.y))]
    pulls = [term(adversarial.z[i], i) for i in range(len(data.y))]
    terms = {"te": sum(pulls).detach()} if epoch >= first else {}
    loss = mean([a + b for a, b in zip(base, pulls, strict=True)])
    return {"x_adv": x_adv, "base_loss": sum(base).detach(), **terms} | me.descend(loss, adversarial)


def start(net: nn.Module, data, **options):
    options = {"start": 0.25, "full": 0.75, **options}
    settings = {"attack.init": "zero", "run.epochs": EPOCHS}
    return pair(
        net, ["te"], attack=ATTACK, samples=data.samples, lr=0.05, options={"te": options}, settings=settings,
        num_classes=CLASSES,
    )  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"weight": 40.0, "momentum": 0.5}, {"start": 0.0}], ids=str)
def test_te(net: nn.Module, data, options) -> None:
    subject, me = start(net, data, **options)
    kept: dict[int, Tensor] = {}
    for epoch in range(EPOCHS):
        assert_parity(subject.visit(*data.of_step, epoch), te(me, data, epoch, kept, **options))
    averages = subject.step.state.samples["te/average"]
    assert averages.shape == (data.samples, CLASSES)
    rows = [kept.get(i, torch.zeros(CLASSES, dtype=torch.float64)) for i in range(data.samples)]
    assert torch.allclose(averages, torch.stack(rows), rtol=0, atol=1e-12)


@pytest.mark.parametrize("wrong", [{"weight": 301.0}, {"attacks": False}, {"divided": False}], ids=str)
def test_a_wrong_reading_is_told_apart(net: nn.Module, data, wrong) -> None:
    subject, me = start(net, data)
    errors = differences(subject.visit(*data.of_step, 2), te(me, data, 2, {}, **wrong))
    assert errors["gradient 0.weight"] > APART


def test_the_ramp_is_that_of_the_code() -> None:
    """Which counts from 1: nothing before epoch 90, exp(-5) there, all of it at 150."""
    first, last = 89, 149.0
    assert ramp(88, first, last) == 0 and ramp(89, first, last) == exp(-5)
    assert (
        ramp(119, first, last) == pytest.approx(exp(-5 / 4)) and ramp(149, first, last) == ramp(199, first, last) == 1
    )


def composed(**options: float):
    top = Layer("python", {"run.epochs": 200}, {"te": options}, ("te",))
    return resolve(["te"], [top]).composition


def test_its_defaults_are_the_epochs_of_the_code() -> None:
    (plugin,) = composed().plugins
    assert (plugin.first, plugin.last) == (89, pytest.approx(149))
    assert [epoch for epoch, _ in composed().stages()] == [0, 89]


def test_a_ramp_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(OptionError, match=r"^te\.full = 0\.3 is not after te\.start = 0\.445"):
        composed(full=0.3)
    assert composed(start=0.999, full=1.0).cautions[-1].startswith("te does nothing: te.start = 0.999 of 200 epochs")
