"""The attacks of an evaluation against closed forms, against the libraries they come from, and against each other."""

from __future__ import annotations

import copy
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from dead import Dead
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

import advkit
from advkit.ascent import L2Ball
from advkit.data.base import Dataset
from advkit.errors import HookContract, NonFinite, OptionError
from advkit.evaluation.attacks import Cw, EvaluationAttack, Pgd, Square, Victim, parse_attack, parse_attacks
from advkit.evaluation.attacks.libraries import AutoAttack, DeepFool, FromAutoAttack
from advkit.evaluation.attacks.square import share
from advkit.evaluation.audit import short
from advkit.evaluation.results import BATCH
from advkit.evaluation.verdicts import verdicts
from advkit.models.base import Normalize
from advkit.studies.transfer import Transfer

GRADIENT = ("fgsm", "pgd-10", "pgd-10x3", "cw-10", "apgd-ce", "fab-t")
EPS = 0.04


class Linear(nn.Module):
    """Two classes, Z = (0, w.x + b) on images 2x6x6, w of both signs and of different sizes."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.linear = nn.Linear(72, classes).double()
        with torch.no_grad():
            weight = torch.randn(classes, 72, generator=generator, dtype=torch.float64)
            weight[0] *= 0 if classes == 2 else 1
            self.linear.weight.copy_(weight)
            self.linear.bias.copy_(-weight.sum(1) / 2)  # grey lies on the boundary

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x.flatten(1))
        return out

    def radius(self, x: Tensor) -> Tensor:
        """(B,) |w.x + b| / ||w||_1: the Linf distance to the boundary where no pixel leaves [0, 1]."""
        z = self(x)
        return (z[:, 1] - z[:, 0]).abs() / self.linear.weight[1].abs().sum()


def pushed(net: Linear, n: int) -> Tensor:
    """Grey, moved by up to 20/255 to either side of the boundary, and noise: pixels stay away from 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    way = net.linear.weight[1].sign().view(2, 6, 6)
    noise = torch.randint(-30, 31, (n, 2, 6, 6), generator=generator)
    push = torch.randint(-20, 21, (n, 1, 1, 1), generator=generator)
    return (128 + push * way + noise).round().to(torch.uint8)


def labelled(net: nn.Module, images: Tensor, classes: int) -> Dataset:
    """With the labels that the net gives."""
    labels = net(images.double() / 255).argmax(1)
    return Dataset("made", images, labels, tuple("abcdefghijkl"[:classes]))


@pytest.fixture(scope="module")
def linear() -> tuple[Linear, Dataset, Tensor]:
    """A net, data, and which images withstand EPS by the closed form."""
    net = Linear()
    data = labelled(net, pushed(net, 150), 2)
    return net, data, net.radius(data.images.double() / 255) > EPS


def robust(net: nn.Module, data: Dataset, *attacks: str | EvaluationAttack, eps: Any = EPS) -> dict[str, Tensor]:
    chosen = [each if isinstance(each, EvaluationAttack) else parse_attack(each) for each in attacks]
    return {name: each.robust for name, each in verdicts(net, data, chosen, eps=eps, norm="linf").items()}


@pytest.mark.parametrize("name", GRADIENT)
def test_gradient_attacks_reach_the_closed_form_on_a_linear_net(name: str, linear: Any) -> None:
    net, data, truth = linear
    assert 0.2 < truth.double().mean() < 0.8
    # FAB looks for the boundary itself and stops within a hundredth of it.
    sure = (net.radius(data.images.double() / 255) / EPS - 1).abs() > (0.01 if name == "fab-t" else 0)
    assert torch.equal(robust(net, data, name)[name][sure], truth[sure]) and sure.sum() > 140


def test_l2_pgd_reaches_the_closed_form_on_a_linear_net(linear: Any) -> None:
    net, data, _ = linear
    x = data.images.double() / 255
    z = net(x)
    truth = (z[:, 1] - z[:, 0]).abs() / net.linear.weight[1].norm() > 0.3
    found = verdicts(net, data, [parse_attack("pgd-10-l2")], eps={"linf": EPS, "l2": 0.3}, norm="linf")
    assert 0.1 < truth.double().mean() < 0.9 and torch.equal(found["pgd-10-l2"].robust, truth)


def test_black_boxes_never_beat_the_closed_form(linear: Any) -> None:
    net, data, truth = linear
    other = Linear()
    with torch.no_grad():
        other.linear.weight.add_(0.5 * torch.randn(2, 72, generator=torch.Generator().manual_seed(1)).double())
    transfer = Transfer("transfer:other", other, Pgd("pgd-20", 20))
    found = robust(net, data, Square(queries=600), transfer)
    for name, kept in found.items():
        assert not (truth & ~kept).any(), name  # breaks nothing that no perturbation can break
        assert (~kept).sum() > 0.5 * (~truth).sum(), name  # and is an attack


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e-20, 1.0, 1e30])
def test_a_step_in_l2_is_as_long_as_it_says_whatever_the_gradient(size: float) -> None:
    """The squares of tiny gradients are 0 in float32; nothing that moves would look robust."""
    x = torch.full((2, 1, 3, 3), 0.5)
    gradient = torch.ones(9).cumsum(0).view(1, 1, 3, 3).repeat(2, 1, 1, 1) * size
    gradient[1] = 0
    moved = L2Ball(x, torch.full((2,), 0.4)).move_(x.clone(), gradient, torch.full((2,), 0.1)) - x
    way = torch.ones(9).cumsum(0).view(3, 3)
    torch.testing.assert_close(moved[0, 0], 0.1 * way / way.norm(), rtol=1e-3 if size < 1e-40 else 1e-5, atol=0)
    assert not moved[1].any()


@pytest.mark.parametrize("way", ["deepfool", "fab-t"])
def test_minimal_attacks_find_the_closed_form_radius(way: str, linear: Any) -> None:
    net, data, _ = linear
    x, y = data.images[:40].double() / 255, data.labels[:40]
    victim = Victim(net, classes=2, norm="linf")
    if way == "deepfool":
        attack = DeepFool()
        found, tolerance = attack.closest(victim, x, y), (0.0201, 1.03e-4)  # overshoots by 0.02 of the way + 1e-4
    else:
        found, tolerance = (
            parse_attack(way).perturb(victim, x, y, torch.full((40,), 0.45), torch.arange(40)),
            (0.02, 1e-5),
        )
    size = (found - x).flatten(1).abs().amax(1)
    assert (net(found).argmax(1) != y).all()
    torch.testing.assert_close(size, net.radius(x), rtol=tolerance[0], atol=tolerance[1])


class Far(nn.Module):
    """A net in float32 whose logits are in float64 and have 1e7 in common, on which neither class nor loss depends."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x).double() + 1e7 + torch.zeros(())  # zeros are of the caller's default type
        return logits


class Scaled(nn.Module):
    """A net whose logits are multiplied, which changes no class."""

    def __init__(self, net: nn.Module, by: float) -> None:
        super().__init__()
        self.net, self.by = net, by

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x) * self.by
        return logits


@pytest.mark.parametrize(("name", "norm"), [("deepfool", "linf"), ("fab-t", "l2"), ("apgd-ce", "l2")])
def test_constants_of_libraries_eat_no_tiny_logits(name: str, norm: str, linear: Any) -> None:
    """foolbox adds 1e-8 to the length of a gradient, pyautoattack 1e-12, beside which tiny ones moved nothing."""
    exact, data, _ = linear
    net, few = copy.deepcopy(exact).float(), data.take(torch.arange(40))
    eps = EPS if norm == "linf" else 6 * EPS
    near, tiny, tinier = (
        verdicts(Scaled(net, by), few, [parse_attack(name)], eps=eps, norm=norm)[name].robust for by in (1, 1e-9, 1e-28)
    )
    assert torch.equal(near, tiny) and torch.equal(near, tinier) and 0.2 < near.double().mean() < 0.8


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_libraries_are_shown_what_tells_classes_apart(default: torch.dtype, linear: Any) -> None:
    exact, data, truth = linear
    net, few = copy.deepcopy(exact).float(), data.take(torch.arange(40))
    torch.set_default_dtype(default)
    try:
        near, far = (robust(each, few, "apgd-ce", "fab-t", "deepfool") for each in (net, Far(net)))
        assert torch.get_default_dtype() == default
    finally:
        torch.set_default_dtype(torch.float32)
    for name, kept in far.items():
        assert torch.equal(kept, near[name]), name
        assert (kept == truth[:40]).double().mean() > 0.9, name


def test_deepfool_counts_only_within_eps(linear: Any) -> None:
    net, data, truth = linear
    kept = robust(net, data, "deepfool")["deepfool"]
    x = data.images.double() / 255
    sure = (1.0201 * (net.radius(x) + 1e-4) <= EPS) | truth  # elsewhere the overshoot may leave the ball
    assert torch.equal(kept[sure], truth[sure])


class Ripple(nn.Module):
    """Falls at every image of whole 255ths, though it rises by and large: a gradient there leads astray."""

    def forward(self, x: Tensor) -> Tensor:
        return x - 0.01 * torch.sin(2 * torch.pi * 255 * x)


def smooth_net(classes: int = 10, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            Normalize((0.5, 0.5), (0.25, 0.25)),
            nn.Conv2d(2, 6, 3),
            nn.Softplus(),
            nn.Flatten(),
            nn.Linear(96, 32),
            nn.Tanh(),
            nn.Linear(32, classes),
        )
    with torch.no_grad():
        net[-1].weight.mul_(8)
        net[-1].bias.zero_()
    return net


def spread(net: nn.Module, n: int, classes: int = 10) -> Dataset:
    """Images of high contrast: the net's own labels differ."""
    images = torch.randint(0, 256, (n, 2, 6, 6), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    return Dataset("made", images, net(images.float() / 255).argmax(1), tuple("abcdefghijkl"[:classes]))


def test_pgd_40_is_foolbox_linf_pgd_per_sample() -> None:
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed")
    net = smooth_net().double().eval()
    data = spread(net.float(), 64, 10)
    net.double()
    x, y, eps = data.images.double() / 255, data.labels, 0.05
    ours = parse_attack("pgd-40").perturb(
        Victim(net, classes=10, norm="linf"), x, y, torch.full((64,), eps, dtype=torch.float64), torch.arange(64)
    )
    attack = foolbox.attacks.LinfPGD(rel_stepsize=0.2, steps=40, random_start=False)
    theirs, _, success = attack(foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu"), x, y, epsilons=eps)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert torch.equal(net(ours).argmax(1) != y, success) and 0 < success.double().mean() < 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parts"), [("autoattack", None), ("apgd-t", ["apgd-t"]), ("apgd-ce", ["apgd-ce"])])
def test_the_adapter_equals_pyautoattack_called_directly(name: str, parts: list[str] | None) -> None:
    pyautoattack = pytest.importorskip("pyautoattack", reason="pyautoattack is not installed")
    net = smooth_net(4).eval()
    data = spread(net, 12, 4)
    x, y, eps = data.images.float() / 255, data.labels, 0.06
    state = torch.get_rng_state()
    ours = parse_attack(name).perturb(
        Victim(net, classes=4, norm="linf"), x, y, torch.full((12,), eps), torch.arange(12)
    )
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng():
        direct = pyautoattack.AutoAttack(net, norm="Linf", eps=eps, seed=0, version="standard", device="cpu")
        direct.apgd_targeted.n_target_classes = direct.fab.n_target_classes = 3
        if parts:
            direct.attacks_to_run = parts
        theirs, _ = direct.run_standard_evaluation(x, y, batch_size=12)
    assert torch.equal(ours, theirs)
    assert 0 < (net(ours).argmax(1) == y).sum() < 12


def test_the_adapter_harms_nothing() -> None:
    net = smooth_net()
    data, logger = spread(net, 4, 10), logging.getLogger("auto-attack")
    handlers, trace = list(logger.handlers), sys.gettrace()
    traced: list[object] = []

    def watch(*_: object) -> None:
        traced.append(1)

    sys.settrace(watch)
    try:
        robust(net, data, "apgd-ce", eps=0.01)
        assert sys.gettrace() is watch
    finally:
        sys.settrace(trace)
    assert logger.handlers == handlers and logger.propagate
    with pytest.raises(OptionError, match=r"^The attack apgd-ce takes one eps for all images"):
        robust(net, data, "apgd-ce", eps=torch.linspace(0.01, 0.02, len(data)))


@pytest.mark.parametrize(("classes", "parts"), [(3, 3), (4, 4)])
def test_autoattack_with_few_classes(classes: int, parts: int) -> None:
    net = smooth_net(classes)
    data = spread(net, 3, classes)
    found = verdicts(net, data, [AutoAttack()], eps=0.4, norm="linf")["autoattack"]
    assert len(found.robust) == 3
    assert [note for note in found.notes if "four classes" in note] == ([] if parts == 4 else found.notes)
    if parts == 3:
        with pytest.raises(OptionError, match="apgd-t needs four classes or more"):
            robust(net, data, "apgd-t", eps=0.05)


@pytest.mark.parametrize("sides", [(14, 14), (15, 15), (4, 4), (9, 9), (17, 18)])
def test_autoattack_without_square_where_the_library_has_no_start_for_it(sides: tuple[int, int]) -> None:
    pyautoattack = pytest.importorskip("pyautoattack", reason="pyautoattack is not installed")
    net = nn.Sequential(nn.Flatten(), nn.Linear(sides[0] * sides[1], 4))
    square = pyautoattack.square.SquareAttack(net, norm="L2", eps=0.1, n_queries=1, device="cpu", seed=0)
    images = torch.full((1, 1, *sides), 128, dtype=torch.uint8)
    labels = net(images / 255).argmax(1)
    try:
        square.perturb(images / 255, labels)
        fits = True
    except (RuntimeError, ZeroDivisionError):
        fits = False
    assert fits == (sides in [(15, 15), (9, 9)])
    data = Dataset("one", images, labels, ("a", "b", "c", "d"))
    for norm in ("l2", "linf") if not fits else ():
        (found,) = verdicts(net, data, [AutoAttack()], eps=1e-9, norm=norm).values()
        size = f"{sides[0]}x{sides[1]}"
        without = f"without square, whose L2 start pyautoattack can not lay out on {size} pixels"
        assert bool(found.robust.all()) and [note for note in found.notes if "square" in note] == (
            [without] if norm == "l2" else []
        )


def test_other_iteration_counts_of_the_library_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pyautoattack = pytest.importorskip("pyautoattack", reason="pyautoattack is not installed")
    victim = Victim(smooth_net(), classes=10, norm="linf")
    built = FromAutoAttack.build(victim, 0.1, torch.device("cpu"))
    assert (built.apgd.n_iter, built.apgd_targeted.n_target_classes, built.square.n_queries) == (100, 9, 5000)

    class Lazy(pyautoattack.AutoAttack):  # type: ignore[misc, name-defined]
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            self.apgd.n_iter = 10

    monkeypatch.setattr(pyautoattack, "AutoAttack", Lazy)
    with pytest.raises(HookContract, match="has 10 steps of apgd-ce, not AutoAttack's 100"):
        FromAutoAttack.build(victim, 0.1, torch.device("cpu"))


@settings(deadline=None, max_examples=15)
@given(st.lists(st.sampled_from([0.0, 0.01, 0.03, 0.08]), min_size=12, max_size=12))
def test_eps_per_sample_equals_separate_runs(radii: list[float]) -> None:
    net = smooth_net().double()
    images = torch.randint(0, 256, (12, 2, 6, 6), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    data = Dataset("made", images, net(images.double() / 255).argmax(1), tuple("abcdefghij"))
    attacks = [parse_attack("pgd-5x3"), parse_attack("cw-5"), Square(queries=40)]
    together = verdicts(net, data, attacks, eps=torch.tensor(radii), norm="linf")
    for eps in set(radii):
        apart = verdicts(net, data, attacks, eps=eps, norm="linf")
        rows = torch.tensor([radius == eps for radius in radii])
        for name, found in apart.items():
            assert torch.equal(together[name].robust[rows], found.robust[rows]), name


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.floats(0, 0.3), min_size=2, max_size=4).map(sorted),
    st.sampled_from(["pgd-3", "cw-3", "pgd-3x2", "fgsm"]),
)
def test_larger_eps_never_raises_accuracy_on_a_linear_net(radii: list[float], name: str) -> None:
    net = Linear()
    data = labelled(net, pushed(net, 30), 2)
    counts = [int(robust(net, data, name, eps=eps)[name].sum()) for eps in radii]
    assert counts == sorted(counts, reverse=True)


def test_restarts_never_raise_accuracy_and_drop_what_is_broken() -> None:
    net = nn.Sequential(Ripple(), *smooth_net(seed=2))
    data = spread(net, 80, 10)
    attacks = [Pgd(f"one step x{restarts}", 1, pace=1, restarts=restarts) for restarts in (1, 2, 9)]
    one, two, nine = verdicts(net, data, attacks, eps=0.05, norm="linf").values()
    assert not (two.robust & ~one.robust).any() and not (nine.robust & ~two.robust).any()
    assert 0 < nine.robust.sum() < one.robust.sum()
    assert one.backwards == 80 and two.backwards - one.backwards == int(one.robust.sum())


def test_misclassified_images_are_broken_and_cost_nothing() -> None:
    net = smooth_net()
    data = spread(net, 20, 10)
    wrong = replace(data, labels=(data.labels + 1) % 10)
    found = verdicts(net, wrong, parse_attacks(["clean", "pgd-10"]), eps=0.05, norm="linf")
    assert not found["pgd-10"].robust.any() and found["pgd-10"].backwards == 0


def test_verdicts_do_not_depend_on_the_images_before_nor_on_the_other_attacks() -> None:
    net = smooth_net()
    data = spread(net, BATCH + 20, 10)
    names = ["clean", "pgd-3x3", "cw-3"]
    every = robust(net, data, *names, Square(queries=60), eps=0.02)
    alone = robust(net, data.take(slice(BATCH)), "pgd-3x3", eps=0.02)
    assert torch.equal(every["pgd-3x3"][:BATCH], alone["pgd-3x3"])


def test_square_follows_its_schedule() -> None:
    assert [share(0.8, q) for q in (1, 10, 11, 50, 51, 4999)] == [0.8, 0.8, 0.4, 0.4, 0.2, 0.8 / 128]
    net = smooth_net()
    data = spread(net, 16, 10)
    few, many = (verdicts(net, data, [Square(queries=q)], eps=0.02, norm="linf")["square"] for q in (20, 400))
    assert many.robust.sum() < few.robust.sum() < 16 and few.backwards == many.backwards == 0
    assert not (many.robust & ~few.robust).any()


def test_transfer_equals_attacking_the_source_directly() -> None:
    net, source = smooth_net(), smooth_net(seed=1)
    data = spread(net, 40, 10)
    kept = robust(net, data, Transfer("transfer:x", source, Pgd("pgd-20", 20)), eps=0.1)["transfer:x"]
    x = data.images.float() / 255
    victim = Victim(source, classes=10, norm="linf")
    direct = Pgd("pgd-20", 20).perturb(victim, x, data.labels, torch.full((40,), 0.1), torch.arange(40))
    assert torch.equal(kept, net(direct).argmax(1) == data.labels) and 0 < kept.sum() < 40
    assert source.training and all(parameter.requires_grad for parameter in source.parameters())


@dataclass(frozen=True)
class Liar(EvaluationAttack):
    answer: Callable[[Tensor], object]
    name: str = "liar"

    def perturb(self, net: Victim, x: Tensor, y: Tensor, radius: Tensor, index: Tensor) -> Any:
        return self.answer(x)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (lambda x: (x + 0.2).clamp(0, 1), "left the linf ball by"),
        (lambda x: x - 0.09, "pixels outside"),
        (lambda x: x * torch.nan, "returned NaN or Inf"),
        (lambda x: x[:1], "must return images as it got"),
        (lambda x: x.to_sparse(), r"returned torch.float32 \(.*\), torch.sparse_coo; it must return images as it got"),
        (
            lambda x: torch.nested.as_nested_tensor([*x], layout=torch.jagged),
            "returned a nested tensor, torch.jagged; it must return images as it got",
        ),
        (lambda x: None, "returned NoneType"),
    ],
)
def test_an_attack_is_not_believed(answer: Callable[[Tensor], object], sentence: str) -> None:
    net = smooth_net()
    with pytest.raises(HookContract, match=sentence):
        robust(net, spread(net, 8, 10), Liar(answer), eps=0.1)


def test_names() -> None:
    assert [type(each).__name__ for each in parse_attacks(["clean", "fgsm", "square", "deepfool"])] == [
        *("Clean", "Fgsm", "Square", "DeepFool")
    ]
    found = parse_attack("cw-30x4-l2", pace=0.5)
    assert found == Cw("cw-30x4-l2", 30, pace=0.5, restarts=4, norm="l2")
    for name in ("pgd-0", "pgd", "pgd-5x0", "cw-3-l1", "PGD-3", "autoatack"):
        with pytest.raises(OptionError, match=f"Unknown attack {name}"):
            parse_attack(name)
    with pytest.raises(OptionError, match="Did you mean autoattack"):
        parse_attack("autoatack")


def test_an_attack_in_another_norm_asks_for_its_eps() -> None:
    net = smooth_net()
    with pytest.raises(OptionError, match=r"pgd-3-l2 attacks in l2, but eps is in linf; give eps_l2=\"E\" too"):
        robust(net, spread(net, 4, 10), "pgd-3-l2")
    with pytest.raises(OptionError, match="eps must be a finite number >= 0, or one for each of the 4 images"):
        robust(net, spread(net, 4, 10), "pgd-3", eps=torch.ones(3))


def test_python_takes_names_and_objects() -> None:
    net = smooth_net()
    data = spread(net, 8, 10)
    found = advkit.evaluate(net, data, ("clean", Pgd("mine", 2, pace=1.0)), eps=0.1)
    assert [row["name"] for row in found["attacks"]] == ["clean", "mine"]
    assert len(found["robust"]["mine"]) == 8 and found["attacks"][1]["passes"]["input_backward"] == 2


def test_a_net_that_only_sums_pixels_is_attacked() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.tensor([0.0, -36.0]))

        def forward(self, x: Tensor) -> Tensor:
            total = x.sum((1, 2, 3))
            return torch.stack([0 * total, total], 1) + self.bias

    net, data = (
        Sum(),
        Dataset("grey", torch.full((2, 2, 6, 6), 130, dtype=torch.uint8), torch.ones(2).long(), ("a", "b")),
    )
    assert (
        robust(net, data, "pgd-5", eps=0.005)["pgd-5"].all() and not robust(net, data, "pgd-5", eps=0.02)["pgd-5"].any()
    )


class Nameless(EvaluationAttack):
    def perturb(self, net: Victim, x: Tensor, y: Tensor, radius: Tensor, index: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("given", [Nameless, Nameless(), Liar, 3, None])
def test_what_is_no_attack_is_one_sentence(given: Any) -> None:
    net = smooth_net()
    with pytest.raises(OptionError, match="is no attack; pass a name, or an object of an EvaluationAttack"):
        advkit.evaluate(net, spread(net, 4), ("clean", given), eps=0.1)


@pytest.mark.parametrize("wrong", [{"restarts": 0}, {"steps": 0}, {"pace": 0.0}, {"pace": float("nan")}])
def test_an_attack_that_attacks_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="steps and restarts must be 1 or more"):
        Pgd(**{"name": "x", "steps": 5, **wrong})


class Void(nn.Module):
    """Logits of class 0, but `value` for an image that is darker than `dark`."""

    def __init__(self, dark: float, value: float) -> None:
        super().__init__()
        self.dark, self.value = dark, value

    def forward(self, x: Tensor) -> Tensor:
        logits = x.flatten(1)[:, :3] * 0 + torch.tensor([1.0, 0.0, -torch.inf])
        return torch.where(x.flatten(1)[:, :1] < self.dark, torch.full_like(logits, self.value), logits)


def shades() -> Dataset:
    """250 images of class 0, every tenth of them dark."""
    images = torch.full((250, 2, 6, 6), 200, dtype=torch.uint8)
    images[::10] = 9
    return Dataset("grey", images, torch.zeros(250).long(), ("a", "b", "c"))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_images_without_numbers_are_misclassified_and_counted(value: float) -> None:
    told = "without an attack, the logits of 25 of 250 images are NaN or Inf; these count as misclassified"
    rows = advkit.evaluate(Void(0.1, value), shades(), ("clean", Square(queries=50)), eps=0.01)["attacks"]
    assert [(row["accuracy"], row["notes"][0]) for row in rows] == [(0.9, told)] * 2
    (row,) = advkit.evaluate(Void(0.0, value), shades(), "clean", eps=0.01)["attacks"]
    assert row["accuracy"] == 1 and not row.get("notes")


def test_a_net_without_any_number_is_not_judged() -> None:
    """Its weights are finite; neither an accuracy of 0 nor, where the label is 0, an argmax of NaN is one."""
    told = r"The net can not be judged: its logits are NaN or Inf on all 250 images as they are\. Take weights"
    with pytest.raises(NonFinite, match=told):
        advkit.evaluate(Void(2.0, torch.nan), shades(), ("clean", Square(queries=50)), eps=0.1)
    with pytest.raises(NonFinite, match=told):
        advkit.audit(Void(2.0, torch.nan), shades(), eps=0.1)


def test_a_net_without_gradient_is_one_sentence() -> None:
    net = smooth_net()

    class Blind(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = net(x.detach())
            return out.detach()

    class Quantized(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = net(Dead.apply(x))  # type: ignore[no-untyped-call]
            return out

    for kind in (Blind, Quantized):
        with pytest.raises(OptionError, match="The net has no gradient at its input"):
            robust(kind(), spread(net, 4), "pgd-3", eps=0.1)
    assert len(robust(Blind(), spread(net, 4), "clean", Square(queries=20), eps=0.1)) == 2


def test_transfer_is_no_white_box_to_the_short_audit() -> None:
    """A quantised input hides the gradient; examples of the net below it do not care."""
    net = smooth_net()

    class Rounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = net((x * 20).round() / 20)
            return out

    data = spread(Rounded(), 60)
    transfer = Transfer("transfer:x", net, Pgd("pgd-20", 20))
    attacks = [*parse_attacks(["clean", "pgd-20", "cw-20"]), transfer]
    found = verdicts(Rounded(), data, attacks, eps=0.1, norm="linf")
    checks = {check.name: check for check in short(Rounded(), data, found, eps=0.1)}
    assert found["pgd-20"].robust.all() and not found["transfer:x"].robust.all()
    assert checks["transfer"].alarm is True
