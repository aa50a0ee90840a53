"""RSLAD, and ARD by its options, against equations written out sample by sample, with a frozen teacher."""

from __future__ import annotations

from copy import deepcopy

import naive
import pytest
import torch
from conftest import CLASSES
from methods import Method, run
from naive import Attack, Branch, Learner, Record, cross_entropy, kl, mean, one_hot
from subject import APART, assert_parity, differences, pair
from torch import Tensor, nn

from advkit import HookConflict, OptionError, Passes
from advkit.config.layer import Layer
from advkit.config.resolve import resolve
from advkit_plugins.rslad import Rslad, distilled

ATTACK = Attack(eps=0.1, alpha=0.025, m=4)
SEED, VISITS = 5, 3
ARD = {"adv": 0.9, "clean": 0.1, "clean_term": "label", "attack": "label", "temperature": 5.0, "reduction": "mean"}

PLAIN = {"attack.init": "normal", "attack.step_size": "eps/4", "update.batch_norm": "adv_logits"}


def given(*others, settings={}, **values):  # noqa: B006 - never written to
    return run("rslad", *others, options={"rslad": values}, settings=settings)


METHODS = {
    "rslad": Method(
        # Without a teacher the labels teach: with weight 0 at x that is adversarial training.
        neutral=[
            (given(*others, adv=1.0, clean=0.0, settings=PLAIN), run(*others, settings=PLAIN))
            for others in ((), ("awp",))
        ],
        changes=[(given(adv=0.5), given()), (given(clean=0.2), given())],
    )
}


def rslad(
    me: Learner,
    data,
    teacher: nn.Module,
    epoch: int,
    *,
    adv: float = 5 / 6,
    clean: float = 1 / 6,
    clean_term: str = "teacher",
    attack: str = "teacher",
    temperature: float = 1.0,
    reduction: str = "sum",
) -> Record:
    target, judge = one_hot(data.y, CLASSES), me.copy(training=False)
    noise = 0.001 * naive.start_noise(SEED, epoch, data.index, data.x[0].shape)
    with torch.no_grad():
        taught = teacher(data.x)
    adversarial = []
    for i, x in enumerate(data.x):
        goal = (lambda z, t=taught[i]: kl(z, t)) if attack == "teacher" else naive.ce_with(target[i])
        adversarial.append(naive.perturbed(judge, x, goal, ATTACK.eps, ATTACK, noise[i]))
    x_adv = torch.stack(adversarial)

    def distance(z: Tensor, i: int) -> Tensor:
        value = temperature**2 * kl(z / temperature, taught[i] / temperature)
        return value / CLASSES if reduction == "mean" else value

    at_adv = Branch(me.copy(), x_adv)
    at_x = Branch(deepcopy(at_adv.model), data.x)
    terms = []
    for i, aimed in enumerate(target):
        natural = distance(at_x.z[i], i) if clean_term == "teacher" else cross_entropy(at_x.z[i], aimed)
        terms.append(adv * distance(at_adv.z[i], i) + clean * natural)
    known = {"x_adv": x_adv, "base_loss": sum(terms).detach()}
    return known | me.descend(mean(terms), at_x, at_adv)


@pytest.fixture
def teacher(net: nn.Module) -> nn.Module:
    """Another net of the same kind."""
    other = deepcopy(net).eval().requires_grad_(False)
    for value in other.parameters():
        value.copy_(value.flip(0))
    return other


def start(net: nn.Module, data, beside: nn.Module | None, **options):
    plugin = Rslad(Rslad.Options(**options), beside)
    return pair(net, [plugin], attack=ATTACK, samples=data.samples, lr=0.05, seed=SEED)


@pytest.mark.parametrize("options", [{}, ARD, {"reduction": "mean"}, {"temperature": 2.0, "adv": 1.0}], ids=str)
def test_rslad(net: nn.Module, data, teacher: nn.Module, options) -> None:
    subject, me = start(net, data, teacher, **options)
    for epoch in range(VISITS):
        assert_parity(subject.visit(*data.of_step, epoch), rslad(me, data, teacher, epoch, **options))


@pytest.mark.parametrize(
    "wrong",
    [
        {"adv": 0.834},
        {"clean": 0.167},
        {"clean_term": "label"},
        {"attack": "label"},
        {"temperature": 1.01},
        {"reduction": "mean"},
    ],
    ids=str,
)
def test_a_wrong_constant_is_told_apart(net: nn.Module, data, teacher: nn.Module, wrong) -> None:
    subject, me = start(net, data, teacher)
    errors = differences(subject.visit(*data.of_step, 0), rslad(me, data, teacher, 0, **wrong))
    assert errors["gradient 0.weight"] > APART


def test_the_teacher_may_lie_in_a_file(net: nn.Module, data, teacher: nn.Module, tmp_path) -> None:
    """Of weights of the run's own net; to build another one, a loop of one's own knows too little."""
    torch.save(teacher.state_dict(), tmp_path / "teacher.pt")
    subject, me = start(net, data, None, teacher=str(tmp_path / "teacher.pt"))
    assert_parity(subject.visit(*data.of_step, 0), rslad(me, data, teacher, 0))
    with pytest.raises(OptionError, match=r"^rslad/teacher: a Step knows no images to build vgg16-bn for; pass"):
        start(net, data, None, teacher=str(tmp_path / "teacher.pt"), teacher_model="vgg16-bn")


@pytest.mark.parametrize(("attack", "phase"), [("teacher", "attack"), ("label", "update")])
def test_the_teacher_is_asked_once_a_step(net: nn.Module, data, teacher: nn.Module, attack: str, phase: str) -> None:
    subject, _ = start(net, data, teacher, attack=attack)
    passes = subject.step(*data.of_step, epoch=0).passes
    assert passes["attack"] + passes["update"] == Passes(4 + 2, 4, 2, auxiliary_forward=1)
    assert passes[phase].auxiliary_forward == 1


def test_at_temperature_1_it_is_the_divergence_and_hot_it_is_the_squared_distance_of_centred_logits() -> None:
    one, other = torch.tensor([[1.0, 2.0, -1.0]]).double(), torch.tensor([[0.5, 0.0, 1.0]]).double()
    assert float(distilled(one, one, 1.0, "sum")) == 0
    apart = (one - other) - (one - other).mean()
    assert float(distilled(one, other, 1e4, "sum")) == pytest.approx(float(apart.square().mean() / 2), rel=1e-3)


def test_soft_labels_that_nothing_would_use_are_refused_and_others_told() -> None:
    def cautions(*others: str, **options: object) -> list[str]:
        own = {"teacher": "RUN", **options}
        found = resolve(["rslad", *others], [Layer("test", {"attack.steps": 5}, {"rslad": own})]).cautions
        return [caution for caution in found if "do not reach" in caution]

    with pytest.raises(
        HookConflict, match=r"uses the target label of dirichlet-ls; leave dirichlet-ls out, or set rsl"
    ):
        cautions("dirichlet-ls")
    with pytest.raises(HookConflict):
        cautions("dirichlet-ls", clean_term="label", clean=0)
    assert cautions("dirichlet-ls", attack="label") == [
        "the soft labels of dirichlet-ls do not reach the loss of rslad, whose teacher gives the labels"
    ]
    assert cautions("dirichlet-ls", clean_term="label") == [
        "the soft labels of dirichlet-ls do not reach the attack of rslad"
    ]
    assert cautions("dirichlet-ls", clean_term="label", attack="label") == []
    assert cautions("dirichlet-ls", teacher="") == []
    assert cautions("cutmix") == ["the soft labels of cutmix do not reach the attack of rslad"], "images are mixed too"
