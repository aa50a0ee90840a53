"""HAT against its official loop written out: three images, a frozen helper, statistics in the order of the forwards."""

from __future__ import annotations

from copy import deepcopy

import naive
import pytest
import torch
from conftest import CLASSES
from methods import Method, run
from naive import Attack, Branch, Learner, Record, cross_entropy, kl, mean, one_hot
from subject import APART, assert_parity, differences, pair
from torch import nn

from advkit import OptionError, Passes
from advkit_plugins.hat import Hat, beyond

ATTACK = Attack(eps=0.1, alpha=0.025, m=4)
SEED, VISITS = 5, 3

AS_HAT = {"attack.step_size": "eps/4", "update.batch_norm": "clean_logits,adv_logits"}


def given(*others, **values):
    return run("hat", *others, options={"hat": values})


def trades(*others, **values):
    return run("trades", *others, options={"trades": values}, settings=AS_HAT)


METHODS = {
    "hat": Method(
        # Without a helper, or with gamma 0, it is TRADES.
        neutral=[
            *((given(*others), trades(*others, beta=2.5)) for others in ((), ("awp",), ("lsiw",))),
            (given(gamma=0), given()),
        ],
        changes=[(given(beta=2.501), given()), (given(robust="ce"), given())],
        moving={"hat": {"beta": [[0, 1.0], [1, 2.5]]}},
    )
}


def hat(
    me: Learner,
    data,
    helper: nn.Module,
    epoch: int,
    *,
    beta: float = 2.5,
    gamma: float = 0.5,
    s: float = 2.0,
    robust: str = "kl",
    batch_norm: str = "all",
    asked_at: str = "adv",
) -> Record:
    """`asked_at`: the images that the helper labels; the official code asks about x', not about x + s delta."""
    target, judge = one_hot(data.y, CLASSES), me.copy(training=False)
    noise = 0.001 * naive.start_noise(SEED, epoch, data.index, data.x[0].shape)
    adversarial = []
    for i, x in enumerate(data.x):
        clean = judge(x[None])[0].detach()
        goal = (lambda z, c=clean: kl(z, c)) if robust == "kl" else naive.ce_with(target[i])
        adversarial.append(naive.perturbed(judge, x, goal, ATTACK.eps, ATTACK, noise[i]))
    x_adv = torch.stack(adversarial)
    far_x = torch.stack([x + s * (adv - x) for x, adv in zip(data.x, x_adv, strict=True)])
    with torch.no_grad():
        labels = helper(x_adv if asked_at == "adv" else far_x).argmax(1)
    clean = Branch(me.copy(), data.x)
    adv = Branch(deepcopy(clean.model), x_adv)
    far = Branch(deepcopy(adv.model) if batch_norm == "all" else me.copy(), far_x)
    terms, bases = [], []
    for i, aimed in enumerate(target):
        divergence = kl(adv.z[i], clean.z[i]) if robust == "kl" else cross_entropy(adv.z[i], aimed)
        bases.append(cross_entropy(clean.z[i], aimed))
        terms.append(beta * divergence + gamma * cross_entropy(far.z[i], one_hot(labels[i : i + 1], CLASSES)[0]))
    order = [far, adv, clean] if batch_norm == "all" else [adv, clean, far]
    known = {"x_adv": x_adv, "base_loss": sum(bases).detach(), "hat": sum(terms).detach()}
    return known | me.descend(mean(bases) + mean(terms), *order)


@pytest.fixture
def helper(net: nn.Module) -> nn.Module:
    """Another net of the same kind, which does not say of x' what the labels say."""
    other = deepcopy(net).eval().requires_grad_(False)
    for value in other.parameters():
        value.copy_(value.flip(0))
    return other


def start(net: nn.Module, data, beside: nn.Module | None, **options):
    plugin = Hat(Hat.Options(**options), beside)
    return pair(net, [plugin], attack=ATTACK, samples=data.samples, lr=0.05, seed=SEED)


@pytest.mark.parametrize(
    "options",
    [{}, {"robust": "ce", "beta": 1.0}, {"s": 3.5, "gamma": 2.0}, {"batch_norm": "views"}],
    ids=str,
)
def test_hat(net: nn.Module, data, helper: nn.Module, options) -> None:
    subject, me = start(net, data, helper, **options)
    before = deepcopy(helper.state_dict())
    for epoch in range(VISITS):
        assert_parity(subject.visit(*data.of_step, epoch), hat(me, data, helper, epoch, **options))
    assert all(torch.equal(value, before[name]) for name, value in helper.state_dict().items())


@pytest.mark.parametrize(
    "wrong",
    [{"beta": 2.501}, {"gamma": 0.501}, {"s": 2.01}, {"robust": "ce"}],
    ids=str,
)
def test_a_wrong_constant_is_told_apart(net: nn.Module, data, helper: nn.Module, wrong) -> None:
    subject, me = start(net, data, helper)
    errors = differences(subject.visit(*data.of_step, 0), hat(me, data, helper, 0, **wrong))
    assert errors["gradient 0.weight"] > APART


def test_the_helper_is_asked_about_the_attacked_image(net: nn.Module, data, helper: nn.Module) -> None:
    subject, me = start(net, data, helper, s=40.0)
    errors = differences(subject.visit(*data.of_step, 0), hat(me, data, helper, 0, s=40.0, asked_at="far"))
    assert errors["gradient 0.weight"] > APART > errors["x_adv"]


def test_the_image_of_the_helper_is_seen_by_batch_norm_last(normed: nn.Module, data) -> None:
    (subject, me), helper = start(normed, data, normed), deepcopy(normed).eval()
    errors = differences(subject.visit(*data.of_step, 0), hat(me, data, helper, 0, batch_norm="views"))
    assert errors["statistic 1.running_mean"] > APART > errors["loss"]


def test_the_helper_may_lie_in_a_file(net: nn.Module, data, helper: nn.Module, tmp_path) -> None:
    """Of weights of the run's own net; to build another one, a loop of one's own knows too little."""
    torch.save(helper.state_dict(), tmp_path / "helper.pt")
    subject, me = start(net, data, None, helper=str(tmp_path / "helper.pt"))
    assert_parity(subject.visit(*data.of_step, 0), hat(me, data, helper, 0))
    with pytest.raises(OptionError, match=r"^hat/helper: a Step knows no images to build small-cnn for; pass"):
        start(net, data, None, helper=str(tmp_path / "helper.pt"), helper_model="small-cnn")


def test_its_passes_are_those_of_trades_and_two_more(net: nn.Module, data, helper: nn.Module) -> None:
    subject, _ = start(net, data, helper)
    report = subject.step(*data.of_step, epoch=0)
    assert report.passes == {"attack": Passes(5, 4), "update": Passes(3, full_backward=3, auxiliary_forward=1)}


def test_images_of_the_helper_may_leave_the_box() -> None:
    x, x_adv = torch.tensor([[0.5, 1.0]]), torch.tensor([[0.6, 0.9]])
    assert torch.allclose(beyond(x, x_adv, 6.0), torch.tensor([[1.1, 0.4]]))
