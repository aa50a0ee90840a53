"""CutMix: boxes, partners and labels against loops over pixels, and TRADES on mixed images as Rebuffi's code has it."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import naive
import pytest
import torch
from conftest import CLASSES
from methods import Method, run
from naive import Attack, Branch, Learner, Record, cross_entropy, mean, one_hot
from subject import APART, assert_parity, differences, pair
from torch import Tensor, nn

from advkit import Batch, HookConflict, OptionError, Step
from advkit.config.layer import Layer
from advkit.config.resolve import resolve
from advkit.rng import Draws, derive_key
from advkit_plugins.cutmix import boxes

ATTACK = Attack(eps=0.1, alpha=0.03, m=4)
SEED, VISITS = 5, 3


def given(*others, **values):
    return run("cutmix", *others, options={"cutmix": values})


METHODS = {
    "cutmix": Method(
        neutral=[(given(*others, probability=0), run(*others)) for others in ((), ("awp",), ("label-smoothing",))],
        changes=[(given(), run()), (given(), given(group=2)), (given(), given(window=2))],
    )
}


def original(lam: float, down: float, across: float, height: int, width: int) -> tuple[int, int, int, int]:
    """`rand_bbox` of CutMix's code: first and past the last row, first and past the last column."""
    share = sqrt(1 - lam)
    edges = []
    for centre, length in ((int(down * height), height), (int(across * width), width)):
        cut = int(length * share)
        edges += [max(0, min(length, centre - cut // 2)), max(0, min(length, centre + cut // 2))]
    return tuple(edges)


def mixed(
    x: Tensor, y: Tensor, index: Tensor, epoch: int, probability: float = 1.0, group: int = 0, window: int = 0
) -> tuple[Tensor, list[Tensor]]:
    """The images with their boxes filled in, a pixel at a time, and their labels; draws are those of the run."""
    numbers = Draws(derive_key(SEED, "cutmix", "box", "", epoch), index).uniform(4, dtype=torch.float64)
    places = Draws(derive_key(SEED, "cutmix", "partner", "", epoch), index)
    place, mate = (places.uniform(draw=draw, dtype=torch.float64).tolist() for draw in (0, 1))
    images, hard = x.clone(), one_hot(y, CLASSES)
    labels = list(hard)
    height, width = x.shape[2:]
    size, line = group or len(x), sorted(range(len(x)), key=lambda i: place[i])
    for first in range(0, len(x), size):
        members = line[first : first + size]
        area, down, across, coin = numbers[members[0]].tolist()
        top, bottom, left, right = original(1 - area, down, across, height, width)
        if window:
            corner = int(down * height) - window // 2, int(across * width) - window // 2
            top, bottom = max(0, corner[0]), min(height, corner[0] + window)
            left, right = max(0, corner[1]), min(width, corner[1] + window)
        if coin >= probability:
            top = bottom
        for member, other in zip(members, sorted(members, key=lambda i: mate[i]), strict=True):
            for row in range(top, bottom):
                for column in range(left, right):
                    images[member, :, row, column] = x[other, :, row, column]
            share = max(0, bottom - top) * (right - left) / (height * width)
            labels[member] = (1 - share) * hard[member] + share * hard[other]
    return images, labels


def cutmix(me: Learner, data, epoch: int, **options) -> Record:
    x, target = mixed(*data.of_step, epoch, **options)
    x_adv = naive.attacked(me, x, target, ATTACK)
    adversarial = Branch(me.copy(), x_adv)
    loss = mean([cross_entropy(adversarial.z[i], aimed) for i, aimed in enumerate(target)])
    return {"x_adv": x_adv} | me.descend(loss, adversarial)


def start(net: nn.Module, data, *others: str, **options):
    shared = {"attack": ATTACK, "samples": data.samples, "lr": 0.05, "seed": SEED}
    return pair(net, ["cutmix", *others], options={"cutmix": options}, **shared)


@pytest.mark.parametrize(
    "options", [{}, {"group": 3}, {"window": 3}, {"window": 4, "group": 4}, {"group": 2, "probability": 0.5}], ids=str
)
def test_cutmix(net: nn.Module, data, options) -> None:
    subject, me = start(net, data, **options)
    for epoch in range(VISITS):
        assert_parity(subject.visit(*data.of_step, epoch), cutmix(me, data, epoch, **options))


@pytest.mark.parametrize("wrong", [{"group": 2}, {"window": 5}, {"probability": 1e-9}], ids=str)
def test_a_wrong_constant_is_told_apart(net: nn.Module, data, wrong) -> None:
    subject, me = start(net, data, window=4)
    errors = differences(subject.visit(*data.of_step, 0), cutmix(me, data, 0, **({"window": 4} | wrong)))
    assert min(errors["loss"], errors["x_adv"], errors["gradient 0.weight"]) > APART


@pytest.mark.parametrize(("height", "width"), [(6, 6), (5, 8), (32, 32)])
def test_a_box_is_that_of_the_code(height: int, width: int) -> None:
    shares = torch.rand(3, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for inside, (area, down, across) in zip(boxes(*shares, height, width), shares.T.tolist(), strict=True):
        top, bottom, left, right = original(1 - area, down, across, height, width)
        expected = torch.zeros(height, width, dtype=torch.bool)
        expected[top:bottom, left:right] = True
        assert torch.equal(inside, expected)


def test_a_label_is_mixed_as_the_pixels_are(net: nn.Module, data) -> None:
    """White images of one class and black ones of another: the share of white is the label."""
    kept = []
    subject, _ = start(net, data)
    plugin = next(plugin for plugin in subject.step.composition.plugins if plugin.name == "cutmix")
    white = torch.arange(8) % 2
    x = white.double()[:, None, None, None].expand(8, 2, 6, 6).clone()
    for epoch in range(20):
        subject.step.state.epoch = epoch
        batch = Batch(x, white, data.index, torch.zeros(8, dtype=torch.int64))
        done = plugin.mix_batch(batch, subject.step.panel.runs["cutmix"])
        labels = plugin.target_label(torch.nn.functional.one_hot(white, 2).double(), done)
        assert torch.allclose(done.x.mean(dim=(1, 2, 3)), labels[:, 1], atol=1e-12)
        kept.append(done.mix.ratio)
    assert 0.3 < torch.stack(kept).mean() < 0.9


def attacked_by_kl(me: Learner, x: Tensor, index: Tensor, epoch: int) -> Tensor:
    model, noise = me.copy(training=False), naive.start_noise(SEED, epoch, index, x[0].shape)

    def goal(i: int) -> Callable[[Tensor], Tensor]:
        clean = model(x[i][None])[0].detach()
        return lambda z: naive.kl(z, clean)

    begun = enumerate(0.001 * noise)
    return torch.stack([naive.perturbed(model, x[i], goal(i), ATTACK.eps, ATTACK, begin) for i, begin in begun])


@pytest.mark.parametrize("chosen", ["kl", "label"])
def test_trades_attacks_what_its_option_says(net: nn.Module, data, chosen: str) -> None:
    """Rebuffi et al.'s code attacks the mixed label, and keeps KL(p(x) || p(x')) in the loss."""
    shared = {"attack": ATTACK, "samples": data.samples, "lr": 0.05, "seed": SEED}
    options = {"trades": {"attack": chosen, "beta": 3.0}}
    settings = {"attack.init": "zero"} if chosen == "label" else {}
    subject, me = pair(net, ["cutmix", "trades"], options=options, settings=settings, **shared)
    for epoch in range(VISITS):
        x, target = mixed(*data.of_step, epoch)
        by_label, by_kl = naive.attacked(me, x, target, ATTACK), attacked_by_kl(me, x, data.index, epoch)
        x_adv, other = (by_label, by_kl) if chosen == "label" else (by_kl, by_label)
        expected = {"x_adv": x_adv} | naive.two_forwards(
            me,
            x,
            x_adv,
            lambda i, _, clean, target=target: cross_entropy(clean, target[i]),
            lambda i, adversarial, clean: 3.0 * naive.kl(adversarial, clean),
            "trades",
            0.0,
        )
        measured = subject.visit(*data.of_step, epoch)
        assert_parity(measured, expected)
        assert (measured["x_adv"] - other).abs().max() > APART


def test_who_judges_success_is_refused_and_who_is_given_one_label_is_told() -> None:
    with pytest.raises(HookConflict) as refused:
        resolve(["cutmix", "cat-eps"], [Layer("test")])
    assert str(refused.value) == (
        "Plugin cat-eps asks whether an attack succeeds, which is judged by one label, but cutmix gives images two; "
        "leave one of them out."
    )
    cautions = resolve(["cutmix", "mart", "gairat"], [Layer("test")]).cautions
    assert [caution for caution in cautions if "batch.y" in caution] == [
        "cutmix mixes images of two labels, and batch.y, which gairat, mart are given, is that of one part"
    ]
    assert not any("batch.y" in caution for caution in resolve(["cutmix", "trades", "ema"], [Layer("test")]).cautions)


def test_a_window_is_smaller_than_the_images() -> None:
    model, options = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), {"cutmix": {"window": 9}}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = Step(model, optimizer, "cutmix", num_samples=8, eps=0.1, options=options, settings={"attack.steps": 1})
    with pytest.raises(OptionError, match=r"cutmix\.window = 9 is larger than the images \(8 x 8\)"):
        step(torch.rand(8, 1, 8, 8), torch.arange(8), torch.arange(8), epoch=0)
