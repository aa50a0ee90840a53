"""MLCAT's loss scaling, sample by sample, with the weight a constant."""

from __future__ import annotations

import naive
import pytest
import torch
from conftest import CLASSES
from methods import Method, run
from naive import Attack, Branch, Learner, Record, cross_entropy, mean, one_hot
from subject import APART, assert_parity, differences, pair
from torch import nn

from advkit import soft_cross_entropy
from advkit_plugins.mlcat import raised

ATTACK = Attack(eps=0.1, alpha=0.03, m=4)
VISITS = 3


def given(*others, **values):
    return run("mlcat", *others, options={"mlcat": values})


METHODS = {
    "mlcat": Method(
        neutral=[
            *((given(*others, least=0), run(*others)) for others in ((), ("awp",), ("trades",))),
            (given(least=1e-6), run()),  # no loss is so small
        ],
        changes=[(given(), run()), (given(least=3.0), given())],
        moving={"mlcat": {"least": [[0, 1.5], [1, 3.0]]}},
    )
}


def mlcat(me: Learner, data, least: float = 1.5, differentiated: bool = False) -> Record:
    """`differentiated`: with the gradient of the weight, by which a scaled loss would not be learnt from at all."""
    target = one_hot(data.y, CLASSES)
    x_adv = naive.attacked(me, data.x, target, ATTACK)
    adversarial = Branch(me.copy(), x_adv)
    terms = []
    for i, aimed in enumerate(target):
        loss = cross_entropy(adversarial.z[i], aimed)
        scale = least / (loss if differentiated else loss.detach())
        terms.append(scale * loss if float(loss.detach()) < least else loss)
    return {"x_adv": x_adv, "base_loss": sum(terms).detach()} | me.descend(mean(terms), adversarial)


def start(net: nn.Module, data, **options):
    return pair(net, ["mlcat"], attack=ATTACK, samples=data.samples, lr=0.05, options={"mlcat": options})


@pytest.mark.parametrize("options", [{}, {"least": 2.0}, {"least": 3.0}], ids=str)
def test_mlcat(net: nn.Module, data, options) -> None:
    subject, me = start(net, data, **options)
    for epoch in range(VISITS):
        assert_parity(subject.visit(*data.of_step, epoch), mlcat(me, data, **options))


@pytest.mark.parametrize("wrong", [{"least": 1.51}, {"differentiated": True}], ids=str)
def test_a_wrong_constant_is_told_apart(net: nn.Module, data, wrong) -> None:
    subject, me = start(net, data)
    errors = differences(subject.visit(*data.of_step, 0), mlcat(me, data, **wrong))
    assert errors["gradient 0.weight"] > APART


def test_a_loss_of_0_weighs_a_finite_much() -> None:
    losses = torch.tensor([3.0, 1.5, 0.75, 0.1, 0.0])
    weights = raised(losses, 1.5)
    assert torch.allclose(weights[:4], torch.tensor([1.0, 1.0, 2.0, 15.0]))
    assert weights.isfinite().all() and float(weights[4] * losses[4]) == 0


def test_who_is_sure_pulls_no_harder_than_the_least_loss() -> None:
    """In float32 a loss is rounded to 0 long before its gradient: divided by each other they are anything."""
    logits = torch.zeros(400, 3)
    logits[:, 0] = torch.linspace(0, 40, 400)
    logits.requires_grad_()
    losses = soft_cross_entropy(logits, torch.eye(3)[torch.zeros(400, dtype=torch.int64)])
    (pull,) = torch.autograd.grad((raised(losses.detach(), 1.5) * losses).sum(), logits)
    assert (losses == 0).any() and 1.4 < float(pull.abs().max()) <= 1.5 * 1.01
