"""IKL against its equations: every pair of classes in a loop, the class weights of the epoch before."""

from __future__ import annotations

from copy import deepcopy

import naive
import pytest
import torch
from conftest import CLASSES
from methods import Method, run
from naive import Attack, Branch, Learner, Record, cross_entropy, log_softmax, mean, one_hot
from subject import APART, assert_parity, differences, pair
from torch import Tensor, nn

from advkit_plugins.ikl import spread

EPS, SEED = 0.1, 5
ATTACK = Attack(eps=EPS, alpha=0.03, m=3)
STILL = {"attack.mode": "eval", "update.batch_norm": "clean_logits"}


def given(*others, more=None, **values):
    return run("ikl", *others, options={"ikl": values}, **(more or {}))


METHODS = {
    "ikl": Method(
        neutral=[
            (given(beta=0), given(beta=0, gamma=0.5, temperature=1)),  # which are of that part alone
            (
                given(alpha=0, beta=0, attack="label", more={"settings": STILL, "dropout": 0.0}),
                run("trades", options={"trades": {"beta": 0}}, settings=STILL, dropout=0.0),
            ),
        ],
        changes=[
            (given(), given(beta=0)),
            (given(), given(alpha=0)),
            (given(), given(gamma=0.2)),
            (given(), given(temperature=1)),
            (given(), given(base="adversarial")),
            (given(), given(attack="whole")),
        ],
        moving={"ikl": {"alpha": [[0, 1.0], [1, 4.0]], "temperature": 1.0}},
    )
}


def differences_of_logits(clean: Tensor, adversarial: Tensor, w: Tensor) -> Tensor:
    """1/4 sum_jk w_j w_k (Delta n_jk - Delta a_jk)^2, of one sample."""
    classes = range(len(w))
    pairs = [
        w[j] * w[k] * ((clean[j] - clean[k]) - (adversarial[j] - adversarial[k])) ** 2 for j in classes for k in classes
    ]
    return sum(pairs, torch.zeros((), dtype=w.dtype)) / 4


def soft(clean: Tensor, adversarial: Tensor) -> Tensor:
    return cross_entropy(adversarial, log_softmax(clean.detach()).exp())


class Prior:
    """The class weights, a row for each label, and what is added up for the next epoch."""

    def __init__(self) -> None:
        self.rows = [torch.full((CLASSES,), 1 / CLASSES, dtype=torch.float64) for _ in range(CLASSES)]
        self.sums = [torch.zeros(CLASSES, dtype=torch.float64) for _ in range(CLASSES)]
        self.epoch = 0

    def begin(self, epoch: int) -> None:
        if epoch != self.epoch:
            for y, added in enumerate(self.sums):
                if added.sum():
                    self.rows[y] = added / added.sum()
                    self.sums[y] = torch.zeros_like(added)
            self.epoch = epoch


def ikl(
    me: Learner,
    x: Tensor,
    y: Tensor,
    index: Tensor,
    epoch: int,
    prior: Prior,
    alpha: float = 4.0,
    beta: float = 20.0,
    gamma: float = 1.0,
    temperature: float = 4.0,
    base: str = "clean",
    attack: str = "cross-entropy",
    through_clean: bool = True,
    said_at: float = 1.0,
) -> Record:
    """`through_clean`: the differences move f(x) too; `said_at`: temperature of the cross-entropy with p(x)."""
    prior.begin(epoch)
    model, target = me.copy(training=False), one_hot(y, CLASSES)
    w = [prior.rows[label] ** gamma for label in y.tolist()]
    norm = mean([v.sum() ** 2 for v in w])
    noise = naive.start_noise(SEED, epoch, index, x[0].shape)
    moved = []
    for i, image in enumerate(x):
        z = model(image[None])[0].detach()

        def goal(attacked: Tensor, i: int = i, clean: Tensor = z) -> Tensor:
            if attack == "label":
                return cross_entropy(attacked, target[i])
            whole = differences_of_logits(clean, attacked, w[i]) / norm if attack == "whole" else 0
            return soft(clean, attacked) + whole

        moved.append(naive.perturbed(model, image, goal, EPS, ATTACK, 0.001 * noise[i]))
    x_adv = torch.stack(moved)
    adversarial = Branch(me.copy(), x_adv)
    clean = Branch(deepcopy(adversarial.model), x)
    bases, pulls = [], []
    for i, label in enumerate(y.tolist()):
        bases.append(cross_entropy((clean if base == "clean" else adversarial).z[i], target[i]))
        of_clean = clean.z[i] if through_clean else clean.z[i].detach()
        pulls.append(
            alpha * soft(clean.z[i] / said_at, adversarial.z[i] / said_at)
            + beta * differences_of_logits(of_clean, adversarial.z[i], w[i]) / norm
        )
        prior.sums[label] = prior.sums[label] + log_softmax(clean.z[i].detach() / temperature).exp()
    record = {"x_adv": x_adv, "ikl": sum(pulls).detach(), "base_loss": sum(bases).detach()}
    return record | me.descend(mean([a + b for a, b in zip(bases, pulls, strict=True)]), clean, adversarial)


def start(net: nn.Module, data, **options):
    return pair(
        net, ["ikl"], attack=ATTACK, samples=data.samples, lr=0.005, seed=SEED, options={"ikl": options},
        num_classes=CLASSES,
    )  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gamma": 0.2, "temperature": 1.0},
        {"base": "adversarial", "alpha": 1.0, "beta": 5.0},
        {"attack": "whole"},
        {"attack": "label", "gamma": 0.0},
    ],
    ids=str,
)
def test_ikl(net: nn.Module, data, options) -> None:
    subject, me = start(net, data, **options)
    prior, mirrored = Prior(), (data.x.flip(3), data.y.roll(3), data.index.roll(3))
    for epoch, batch in ((0, data.of_step), (0, mirrored), (1, data.of_step), (1, mirrored), (2, mirrored)):
        assert_parity(subject.visit(*batch, epoch), ikl(me, *batch, epoch, prior, **options))
    if options.get("gamma"):
        kept = subject.step.state.tensors["ikl/weights"]
        assert torch.allclose(kept, torch.stack(prior.rows), rtol=0, atol=1e-12) and not kept.allclose(kept[0])


@pytest.mark.parametrize("wrong", [{"beta": 20.2}, {"through_clean": False}, {"said_at": 4.0}], ids=str)
def test_a_wrong_reading_is_told_apart(net: nn.Module, data, wrong) -> None:
    subject, me = start(net, data)
    errors = differences(subject.visit(*data.of_step, 0), ikl(me, *data.of_step, 0, Prior(), **wrong))
    assert errors["gradient 0.weight"] > APART


def test_the_weights_are_those_of_the_epoch_before(net: nn.Module, data) -> None:
    subject, me = start(net, data)
    subject.visit(*data.of_step, 0)
    ikl(me, *data.of_step, 0, Prior())
    errors = differences(subject.visit(*data.of_step, 1), ikl(me, *data.of_step, 1, Prior()))
    assert errors["ikl"] > APART


def test_the_pairs_of_classes_are_a_variance() -> None:
    generator = torch.Generator().manual_seed(2)
    clean, adversarial, weights = torch.rand(3, 5, 7, generator=generator, dtype=torch.float64).unbind()
    expected = torch.stack([differences_of_logits(*rows) for rows in zip(clean, adversarial, weights, strict=True)])
    assert torch.allclose(spread(clean, adversarial, weights), expected, rtol=1e-12)
    assert torch.allclose(spread(clean, adversarial + 3, weights), expected, rtol=1e-12), "a shift of all is none"


def test_a_class_that_is_masked_in_both_adds_nothing() -> None:
    clean, adversarial, weights = torch.rand(3, 5, 7, dtype=torch.float64).unbind()
    low, masked = (
        spread(*(logits.index_fill(1, torch.tensor(3), value) for logits in (clean, adversarial)), weights)
        for value in (-50.0, -torch.inf)
    )
    assert torch.equal(low, masked)


def test_a_class_that_no_epoch_has_seen_keeps_its_weights(net: nn.Module, data) -> None:
    subject, _ = start(net, data)
    for epoch in (0, 1):
        subject.visit(data.x, data.y.clamp(max=CLASSES - 2), data.index, epoch)
    kept = subject.step.state.tensors["ikl/weights"]
    assert kept.isfinite().all() and kept[-1].eq(1 / CLASSES).all() and not kept[0].eq(1 / CLASSES).any()
