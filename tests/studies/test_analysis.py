"""The analyses against closed forms: linear nets, a ray that flips twice, hand-made numbers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from math import isnan, nan, sqrt
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from advkit import Dataset, OptionError, Unevenness, train
from advkit.cli.main import run
from advkit.errors import Caution, NonFinite
from advkit.evaluation.soundness import BY_BATCH, doubt
from advkit.studies.analysis import Ascent, Study, adversarial_vulnerability, loss_landscape, margins
from advkit.studies.analysis.margin import first_flip
from advkit.studies.analysis.perturb import BATCH, still
from advkit.training.meter import quantiles

D = 16


def images(rows: int, seed: int = 0, low: int = 90, high: int = 166) -> Dataset:
    """Around the middle of [0, 1], where no clipping happens."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(low, high, (rows, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return Dataset("toy", pixels, torch.arange(rows) % 2, ("a", "b"))


class Linear(nn.Module):
    """Logits (0, w x + b), in float64."""

    def __init__(self, seed: int = 1, bias: float = 0.0) -> None:
        super().__init__()
        weight = torch.rand(D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5
        self.w = nn.Parameter(weight)
        self.b = nn.Parameter(torch.tensor(bias, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.w + self.b
        return torch.stack([torch.zeros_like(score), score], dim=1)


def centred(dataset: Dataset) -> Linear:
    """A linear net whose boundary goes through the middle of the images."""
    model = Linear()
    with torch.no_grad():
        model.b.copy_(-(dataset.images.double().flatten(1) / 255 @ model.w).mean())
    return model


class Along(nn.Module):
    """A function of the first pixel alone: class 1 where `inside` says so. Gradients point up."""

    def __init__(self, inside: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inside, self.own = inside, nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        pixel = x.flatten(1)[:, 0]
        score = torch.where(self.inside(pixel), 1.0, -1.0) + (pixel - pixel.detach()) + self.own
        return torch.stack([torch.zeros_like(score), score], dim=1)


# ---------------------------------------------------------------------- what they are asked for

ANALYSES: list[Callable[..., Any]] = [adversarial_vulnerability, margins, loss_landscape]
WRONG: list[tuple[dict[str, Any], str]] = [
    *[({"index": torch.tensor(given)}, "must be a tensor of places of these 8 images") for given in (8, [8], [-1])],
    *[({"index": torch.tensor(given)}, "whole numbers from 0 to 7") for given in ([], [1.0], [True] * 8, [[1]])],
    *[({"index": given}, "index must be a tensor or None") for given in (3, [0], True)],
    *[({"batch_size": given}, "batch_size") for given in (0, -1, True, 1.5, None, 10**30)],
    *[({"attack": given}, "attack must be an advkit.Ascent") for given in ("pgd-1", 1)],
    ({"tick": 3}, "tick must be a function"),
    ({"dataset": "digits"}, "dataset must be an advkit.Dataset"),
]


@pytest.mark.parametrize("analysis", ANALYSES)
def test_what_no_analysis_can_take_is_one_sentence(analysis: Callable[..., Any]) -> None:
    asked = {"model": Linear(), "dataset": images(8), "attack": Ascent(0.1, steps=1), "batch_size": numpy.int64(5)}
    asked |= {loss_landscape: {"points": 3}, margins: {"cap": 1}}.get(analysis, {})
    assert len(analysis(**asked).index) == 8
    assert analysis(**asked, index=torch.tensor([7, 0])).index.tolist() == [7, 0]
    for wrong, sentence in WRONG:
        with pytest.raises(OptionError, match=sentence):
            analysis(**asked | wrong)


@pytest.mark.parametrize("wrong", [{"steps": 1.5}, {"steps": True}, {"steps": 0}, {"eps": None}, {"norm": ["linf"]}])
def test_nor_is_an_attack_of_it(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=rf"^{next(iter(wrong))} (=|is) "):
        Ascent(**{"eps": 0.1} | wrong)


# ---------------------------------------------------------------------- vulnerability


@pytest.mark.parametrize("eps", [0.0, 0.02, 0.1])
def test_the_vulnerability_of_a_linear_net_is_its_closed_form(eps: float) -> None:
    """The worst case of w x + b in the Linf ball moves the score by eps ||w||_1 against the label."""
    dataset = images(2 * BATCH + 3)
    model = centred(dataset)
    found = adversarial_vulnerability(model, dataset, Ascent(eps, steps=5))
    score = model(dataset.images.double() / 255)[:, 1].detach()
    sign = 1.0 - 2 * dataset.labels.double()  # +1: label 0, which a higher score hurts
    worst = score + sign * eps * model.w.detach().abs().sum()
    expected = F.softplus(sign * worst) - F.softplus(sign * score)
    torch.testing.assert_close(found.av, expected, rtol=0, atol=1e-12)
    assert (eps == 0) == bool((found.av == 0).all()) and torch.equal(found.index, torch.arange(2 * BATCH + 3))


def test_the_l2_attack_moves_by_eps_times_the_weights_length() -> None:
    dataset = images(20)
    model = centred(dataset)
    found = adversarial_vulnerability(model, dataset, Ascent(0.1, steps=8, norm="l2"), index=torch.tensor([7, 2]))
    score = model(dataset.images.double() / 255)[[7, 2], 1].detach()
    sign = 1.0 - 2 * dataset.labels[[7, 2]].double()
    worst = score + sign * 0.1 * model.w.detach().norm()
    torch.testing.assert_close(found.av, F.softplus(sign * worst) - F.softplus(sign * score), rtol=0, atol=1e-9)
    assert found.index.tolist() == [7, 2]


def test_the_figures_of_hand_made_numbers() -> None:
    values = torch.tensor([nan, *range(-5, 15), 1.0])  # 21 finite ones: the tenth are two
    figures = Unevenness.of(values)
    finite = [*range(-5, 15), 1]
    mean = sum(finite) / 21
    assert figures == Unevenness(
        n=21,
        mean=pytest.approx(mean),
        sd=pytest.approx(sqrt(sum((v - mean) ** 2 for v in finite) / 21)),
        top_10=13.5,
        bottom_10=-4.5,
        at_least_1=pytest.approx(15 / 21),
        at_most_0=pytest.approx(6 / 21),
    )


@given(st.lists(st.floats(-50, 50), max_size=40))
@settings(deadline=None, max_examples=60)
def test_figures_are_of_the_set_and_ordered(values: list[float]) -> None:
    found = Unevenness.of(torch.tensor(values, dtype=torch.float64))
    assert found.as_dict() == Unevenness.of(torch.tensor(values[::-1], dtype=torch.float64)).as_dict()
    assert found.n == len(values) and isnan(found.sd) == (not values) and isnan(found.top_10) == (len(values) < 10)
    if len(values) >= 10:
        assert found.bottom_10 <= found.mean + 1e-9 and found.mean <= found.top_10 + 1e-9
        assert found.at_least_1 + found.at_most_0 <= 1


def test_what_json_can_not_hold_is_none() -> None:
    assert Unevenness.of(torch.tensor([2.0])).as_dict() == {
        "n": 1, "mean": 2.0, "sd": 0.0, "top_10": None, "bottom_10": None, "at_least_1": 1.0, "at_most_0": 0.0,
    }  # fmt: skip


# ---------------------------------------------------------------------- margin


@pytest.mark.parametrize("clip", [True, False])
def test_the_margin_of_a_linear_net_is_its_closed_form(clip: bool) -> None:
    """delta is eps sign(w), towards the boundary, so mu = |score| sqrt(d) / ||w||_1, rounded up to the grid."""
    dataset = images(300)
    model = centred(dataset)
    found = margins(model, dataset, Ascent(0.05, steps=5), cap=1.0, precision=0.01, clip=clip)
    score = model(dataset.images.double() / 255)[:, 1].detach()
    exact = score.abs() * sqrt(D) / model.w.detach().abs().sum()
    # The label is hurt, not the prediction: a sample on the wrong side is pushed away from the boundary.
    right = (score > 0) == dataset.labels.bool()
    steps = found.mu[right] / 0.01
    assert 50 < int(right.sum()) < 250
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-9)
    assert bool(((found.mu[right] >= exact[right]) & (found.mu[right] <= exact[right] + 0.01 + 1e-9)).all())
    assert not found.flipped[~right].any() and (found.mu[~right] == 1.0).all()
    torch.testing.assert_close(found.length, torch.full((300,), 0.05 * 4, dtype=torch.float64))


def test_the_first_of_several_flips_is_found() -> None:
    """Class 0 below 0.5 and again from 0.6 to 0.95: neither ends nor middle of the ray see the first flip."""

    def inside(pixel: Tensor) -> Tensor:
        return ((pixel >= 0.5) & (pixel < 0.6)) | (pixel >= 0.95)

    model = Along(inside)
    x = torch.full((3, 1, 1, 2), 0.205, dtype=torch.float64)
    x[1] = 0.7  # flips at 0.95
    x[2] = 0.55  # leaves class 1 at 0.6
    way = torch.zeros_like(x)
    way[..., 0] = 1
    scan = torch.arange(1, 81, dtype=torch.float64) / 100
    found = first_flip(model, x, way, scan)
    torch.testing.assert_close(found, torch.tensor([0.30, 0.25, 0.05], dtype=torch.float64))
    ends = model(x[:1] + 0.45 * way[:1]).argmax(1), model(x[:1] + 0.7 * way[:1]).argmax(1)
    assert [int(end) for end in ends] == [0, 0]  # a bisection of [0, 0.9] would say: never, or 0.75


@given(
    st.lists(st.integers(0, 1), min_size=2, max_size=60),
    st.integers(1, 400),
    st.sampled_from([1, 3, BATCH - 1, BATCH + 1]),
)
@settings(deadline=None, max_examples=25)
def test_a_scan_equals_looking_at_every_point(classes: list[int], seed: int, rows: int) -> None:
    """Whatever the classes along the ray, and however many samples share a forward."""
    table = torch.tensor(classes)

    class Table(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            place = (x.flatten(1)[:, 0] * 100).round().long().clamp(max=len(classes) - 1)
            return F.one_hot(table[place], 2).double()

    starts = torch.randint(0, len(classes), (rows,), generator=torch.Generator().manual_seed(seed))
    x = (starts.double() / 100).view(-1, 1, 1, 1)
    scan = torch.arange(1, 60, dtype=torch.float64) / 100
    found = first_flip(Table(), x, torch.ones_like(x), scan, clip=False)
    for start, mu in zip(starts.tolist(), found.tolist(), strict=True):
        along = [classes[min(start + step, len(classes) - 1)] for step in range(60)]
        expected = next((step / 100 for step in range(1, 60) if along[step] != along[0]), float("inf"))
        assert mu == pytest.approx(expected)


def test_clipping_bounds_the_ray() -> None:
    """Unclipped, the pixel reaches 1.5; clipped, it stays at 1 and the prediction with it."""
    model = Along(lambda pixel: pixel >= 1.5)
    x, way = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    scan = torch.arange(1, 31, dtype=torch.float64) / 10
    assert first_flip(model, x, way, scan, clip=True).isinf().all()
    assert first_flip(model, x, way, scan, clip=False).item() == pytest.approx(1.0)


class Flat(Linear):
    """No gradient where the first pixel is dark."""

    def forward(self, x: Tensor) -> Tensor:
        score = super().forward(x)
        dark = (x.flatten(1)[:, :1] < 0.5).detach()
        return torch.where(dark, score.detach(), score)


def test_a_sample_without_a_direction_is_undefined_and_counted_apart() -> None:
    dataset = images(40)
    dataset.images[:, 0, 0, 0] = torch.arange(40).remainder(4).eq(0).logical_not().to(torch.uint8) * 40 + 100
    dark = dataset.images[:, 0, 0, 0] < 127
    model = Flat(bias=-100.0)  # always class 0: nothing flips
    found = margins(model, dataset, Ascent(0.02, steps=5), cap=2.0)
    assert torch.equal(found.mu.isnan(), dark) and not found.flipped.any()
    figures = found.as_dict()
    assert (figures["n"], figures["undefined"], figures["disordered"]) == (40, 10, 1.0)
    assert figures["mean"] == 2.0 and figures["mean_flipped"] is None and figures["within_eps"] == 0
    assert figures["mean_mu_eps"] == pytest.approx(0.02 * 4)  # of those that have one


def test_nobody_has_a_direction_at_eps_0() -> None:
    figures = margins(Linear(), images(5), Ascent(0.0), cap=1.0).as_dict()
    assert figures["undefined"] == 5 and figures["mean"] is None and figures["disordered"] is None


def test_the_shares_are_against_each_samples_own_budget() -> None:
    from advkit.studies.analysis import Margins

    mu = torch.tensor([0.1, 0.3, 0.9, 1.1, 2.1, 50.0, 50.0, nan], dtype=torch.float64)
    flipped = torch.tensor([True, True, True, True, True, True, False, False])
    length = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 60.0, 25.0, 0.0], dtype=torch.float64)
    figures = Margins(torch.arange(8), mu, flipped, length, 50.0, 0.1).as_dict()
    assert figures["within_third_of_eps"] == pytest.approx(2 / 7)
    assert figures["within_eps"] == pytest.approx(4 / 7)  # the one that never flips is not within
    assert figures["beyond_twice_eps"] == pytest.approx(2 / 7)
    assert figures["disordered"] == pytest.approx(1 / 7)  # a flip at the very cap is a flip
    assert (figures["q10"], figures["q50"], figures["q90"]) == (0.1, 1.1, 50.0)
    assert quantiles(torch.arange(6.0)) == {"q00": 0, "q25": 1, "q50": 2, "q75": 3, "q100": 5}, "lower ones, too"
    assert figures["mean"] == pytest.approx((0.1 + 0.3 + 0.9 + 1.1 + 2.1 + 100) / 7)


@pytest.mark.parametrize(("never", "unknown"), [(0.5, 0), (0.6, 1), (1.2, 2), (3.3, 3)])
def test_a_share_is_not_known_where_the_scan_ends_before_its_bound(never: float, unknown: int) -> None:
    """Of margins up to 1; the length of the sample that never flips tells which bounds the scan has passed."""
    from advkit.studies.analysis import Margins
    from advkit.studies.analysis.words import figure_rows
    from advkit.studies.records import AnalysisRecord

    mu, length = torch.tensor([0.5, 1.0], dtype=torch.float64), torch.tensor([9.0, never], dtype=torch.float64)
    figures = Margins(torch.arange(2), mu, torch.tensor([True, False]), length, 1.0, 0.1).as_dict()
    values = [figures[key] for key in ("within_third_of_eps", "within_eps", "beyond_twice_eps")]
    assert values == [*[0.5] * (3 - unknown), *[None] * unknown] and figures["disordered"] == 0.5
    head: dict[str, Any] = {"analysis": "margin", "split": "test", "n": 2, "seed": 0, "versions": {}, "cap": 1.0}
    rows = dict(figure_rows("margin", AnalysisRecord(**head, figures=figures))[0])
    assert [*rows.values()].count("not known: the cap is too low") == unknown


@pytest.mark.parametrize(("cap", "precision"), [(1.0, 0.3), (1.0, 0.0), (0.1, 1.0), (float("inf"), 0.1), (nan, 0.1)])
def test_a_cap_that_is_no_multiple_is_refused(cap: float, precision: float) -> None:
    with pytest.raises(OptionError, match="positive multiple"):
        margins(Linear(), images(2), Ascent(0.1), cap=cap, precision=precision)


# ---------------------------------------------------------------------- landscape


@pytest.mark.parametrize("kind", ["cat", "iseat"])
@pytest.mark.parametrize("clip", [True, False])
def test_the_middle_is_the_loss_at_x(kind: Any, clip: bool) -> None:
    dataset, model = images(6), Linear(bias=0.3)
    found = loss_landscape(model, dataset, Ascent(0.05), kind=kind, points=7, clip=clip)
    logits = model(dataset.images.double() / 255)
    assert found.loss[3, 3].item() == pytest.approx(F.cross_entropy(logits, dataset.labels).item(), abs=1e-12)
    assert found.first[3] == 0 == found.second[3] and torch.equal(found.prediction, logits.argmax(1))
    assert found.as_dict()["loss_at_x"] == found.loss[3, 3]


def test_the_plane_of_a_linear_net_is_its_closed_form() -> None:
    """Along the gradient's sign the score moves by a ||w||_1; along r by b w r, a number for all a."""
    dataset, model = images(1), Linear(bias=0.1)
    found = loss_landscape(model, dataset, Ascent(0.05), kind="cat", points=11, extent=0.2, clip=False)
    score = model(dataset.images.double() / 255)[0, 1].item()  # label 0: the loss is softplus(score)
    scores = found.loss.expm1().log()
    torch.testing.assert_close(scores[:, 5], score + found.first * model.w.detach().abs().sum(), rtol=0, atol=1e-9)
    across = (scores[5, :] - score)[6:] / found.second[6:]
    signs = (torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * D) @ model.w.detach()).sort().values
    torch.testing.assert_close(across, across[:1].expand(5), rtol=0, atol=1e-9)
    assert (signs - across[0]).abs().min() < 1e-9  # w r of one r of all 2**16
    torch.testing.assert_close(scores - scores[5:6], (scores - scores[5:6])[:, :1].expand(11, 11), rtol=0, atol=1e-9)


def test_the_axes_of_iseat_are_l2_units() -> None:
    dataset, model = images(1), Linear(bias=0.1)
    found = loss_landscape(model, dataset, Ascent(0.05, steps=3), kind="iseat", points=5, clip=False)
    assert found.first[-1].item() == pytest.approx(2 * 0.05 * sqrt(D))
    scores = found.loss.expm1().log()
    slope = (scores[4, 2] - scores[2, 2]) / found.first[4]
    assert slope.item() == pytest.approx((model.w.abs().sum() / sqrt(D)).item(), rel=1e-6)  # sign(w) has length 4
    beta = (scores[2, 4] - scores[2, 2]) / found.second[4]
    assert 0 < abs(beta.item()) <= model.w.detach().norm().item()


def test_the_random_direction_depends_on_seed_and_image_alone() -> None:
    dataset, model = images(8), Linear()

    def plane(*index: int, seed: int = 0, kind: Any = "cat") -> Tensor:
        places = torch.tensor(index)
        return loss_landscape(model, dataset, Ascent(0.05), kind=kind, index=places, points=3, seed=seed).loss

    for kind in ("cat", "iseat"):
        assert torch.equal(plane(3, kind=kind), plane(3, kind=kind))
        assert not torch.equal(plane(3, kind=kind), plane(3, seed=1, kind=kind))
        torch.testing.assert_close(plane(3, 5, kind=kind), (plane(3, kind=kind) + plane(5, kind=kind)) / 2)


def test_clipping_keeps_the_grid_in_the_box() -> None:
    dataset, model = images(1, low=0, high=3), Linear()
    clipped = loss_landscape(model, dataset, Ascent(0.05), points=3, extent=5.0, clip=True).loss
    assert not torch.equal(clipped, loss_landscape(model, dataset, Ascent(0.05), points=3, extent=5.0).loss)
    assert clipped.max() <= F.softplus(model.w.detach().clamp(min=0).sum()) + 1e-9


def test_a_landscape_of_cat_is_the_same_whatever_the_attack() -> None:
    plane = loss_landscape(Linear(), images(3), points=3)
    assert plane.first[-1] == 0.1 and not plane.clip
    assert torch.equal(plane.loss, loss_landscape(Linear(), images(3), Ascent(0.3, steps=1), points=3).loss)


def test_images_without_a_direction_are_skipped() -> None:
    dataset = images(4)
    dataset.images[:, 0, 0, 0] = torch.tensor([100, 140, 100, 140], dtype=torch.uint8)
    found = loss_landscape(Flat(), dataset, Ascent(0.05, steps=2), kind="iseat", points=3)
    assert found.index.tolist() == [1, 3] and found.skipped.tolist() == [0, 2]
    alone = loss_landscape(Flat(), dataset, Ascent(0.05, steps=2), kind="iseat", points=3, index=torch.tensor([1, 3]))
    assert torch.equal(found.loss, alone.loss)
    with pytest.raises(OptionError, match="moves none of these images"):
        loss_landscape(Flat(), dataset, Ascent(0.05), kind="iseat", points=3, index=torch.tensor([0]))


class Void(Linear):
    """Logits that are none where the first pixel is dark, and there no gradient either."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.where(x.flatten(1)[:, :1] < 0.3, torch.nan, 1.0)


class Masked(Linear):
    """The same, with a gradient of 0; or with `value` for all classes."""

    def __init__(self, value: float = torch.nan) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x.flatten(1)[:, :1] < 0.3, self.value, super().forward(x))


@pytest.mark.parametrize("kind", ["cat", "iseat"])
@pytest.mark.parametrize("model", [Void(), Masked(), Masked(-torch.inf)])
def test_images_without_logits_are_left_out_of_a_landscape(model: nn.Module, kind: Any) -> None:
    dataset, attack = images(4), Ascent(0.05, steps=2)
    dataset.images[:, 0, 0, 0] = torch.tensor([10, 140, 10, 140], dtype=torch.uint8)
    found = loss_landscape(model, dataset, attack, kind=kind, points=3, extent=0.1)
    assert found.index.tolist() == [1, 3] and found.skipped.tolist() == [0, 2] and bool(found.loss.isfinite().all())
    alone = loss_landscape(model, dataset, attack, kind=kind, points=3, extent=0.1, index=torch.tensor([1, 3]))
    assert torch.equal(found.loss, alone.loss)
    wide = loss_landscape(model, dataset, attack, kind=kind, points=3, extent=50.0, clip=False).as_dict()
    assert (wide["n"], wide["highest"]) == (2, None), "JSON has no NaN"
    with pytest.raises(NonFinite, match="on all 2 images"):
        loss_landscape(model, dataset, attack, kind=kind, points=3, index=torch.tensor([0, 2]))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"points": 40}, "points = 40 must be odd and at least 3"),
        ({"points": 1}, "points = 1 must be odd"),
        ({"points": 200001}, "so that x itself is on the grid, and at most 1001."),
        ({"extent": 1e308}, "extent = 1e+308 must be a finite number > 0, and at most 1e+06."),
        ({"extent": 0.0}, "extent = 0.0 must be a finite number > 0"),
        ({"extent": nan}, "extent = nan must be"),
        ({"kind": "trades"}, "kind = 'trades' must be cat or iseat"),
        ({"kind": "iseat", "attack": None}, "kind = 'iseat' needs an attack"),
    ],
)
def test_impossible_grids_are_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError) as refused:
        loss_landscape(Linear(), images(1), **{"attack": Ascent(0.1), **wrong})
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("cap", "precision"), [(50.0, 1e-12), (50.0, 5e-324), (1e308, 1e307), (1.0, 0.3), (0.0, 0.1), (1.0, nan)]
)
def test_impossible_scans_are_refused(cap: float, precision: float) -> None:
    with pytest.raises(OptionError, match="the cap must be a positive multiple of it, at most 100,000 times it"):
        margins(Linear(), images(1), Ascent(0.1), cap=cap, precision=precision)


# ---------------------------------------------------------------------- the attack, and the model that stays


@pytest.mark.parametrize(
    ("name", "eps", "norm", "sentence"),
    [
        ("pgd-0", 0.1, "linf", "Unknown attack pgd-0"),
        ("cw-20", 0.1, "linf", "takes pgd-K"),
        ("pgd-5", nan, "linf", "eps = nan must be"),
        ("pgd-5", 8, "linf", "eps = 8 is above 1, but images lie in [0, 1]"),
        ("pgd-5", 1e20, "l2", "eps = 1e+20 is above 1e+06, but images lie in [0, 1]; give a smaller one."),
        ("pgd-5", "8/255", "linf", "eps is '8/255'; pass a number."),
    ],
)
def test_attacks_that_are_none_are_refused(name: str, eps: Any, norm: str, sentence: str) -> None:
    with pytest.raises(OptionError) as refused:
        Ascent.parse(name, eps=eps, norm=norm)
    assert sentence in str(refused.value)


def test_the_default_is_iseats_attack() -> None:
    assert Ascent(8 / 255).as_dict() == {
        "name": "pgd-50", "norm": "linf", "eps": 8 / 255, "steps": 50, "step_size": 2 / 255, "start": "zero",
    }  # fmt: skip


def test_a_gradient_that_is_not_finite_is_no_direction() -> None:
    class Broken(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + (x - x.detach()).square().sum().sqrt()  # 0, whose slope is none

    for call in (adversarial_vulnerability, margins, loss_landscape):
        with pytest.raises(NonFinite, match="would mean nothing"):
            call(Broken(), images(2), Ascent(0.1))


def test_the_model_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8, 2))
    model[1].eval()
    model[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    for call in (adversarial_vulnerability, margins, loss_landscape):
        call(model, images(3), Ascent(0.05, steps=2))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [module.training for module in model] == [True, False, True, True, True]
    assert [p.requires_grad for p in model.parameters()][:2] == [False, True] and torch.equal(
        state, torch.get_rng_state()
    )
    with still(model) as forward:  # the control: dropout is off
        x = images(3).images.float() / 255
        assert torch.equal(forward(x), forward(x))


@pytest.mark.parametrize("width", [2, 3, 5])
@pytest.mark.parametrize("call", [adversarial_vulnerability, margins, loss_landscape])
def test_logits_of_another_width_than_the_classes_are_refused(call: Callable[..., object], width: int) -> None:
    toy = Dataset("toy", images(6).images, torch.arange(6) % 3, ("a", "b", "c"))
    model, sentence = nn.Sequential(nn.Flatten(), nn.Linear(D, width)), f"returns {width} logits .* has 3 classes"
    with nullcontext() if width == 3 else pytest.raises(OptionError, match=sentence):
        call(model, toy, Ascent(0.05, steps=1))


@pytest.mark.parametrize("tracked", [True, False])
def test_a_net_that_looks_at_the_batch_is_told(
    tracked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("advkit.studies.analysis.of_run.write", lambda *_, **__: None)  # pictures take seconds
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        f"    norm = nn.BatchNorm2d(2, track_running_stats={tracked})\n"
        "    return nn.Sequential(nn.Conv2d(1, 2, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(72, 10))\n"
    )
    model, folder = f"{tmp_path / 'own.py'}:net", tmp_path / "run"
    train(model, "digits", epochs=1, settings={"attack.steps": 0, "data.limit": 40}, out=folder)
    study, noted = Study(folder, n=4, attack="pgd-1", model=model, out=tmp_path / "out"), not tracked
    records = study.vulnerability(), study.margin(cap=1), study.landscape(points=3), study.landscape(index=5, points=3)
    for record in records:
        assert (BY_BATCH.replace("verdicts", "figures") in record.notes) == noted, record.analysis
    capsys.readouterr()
    sentence, named = BY_BATCH.removesuffix(" verdicts"), ["--model", model]
    for arguments in (
        ["analyze", "margin", str(folder), "--n", "2", "--attack", "pgd-1", "--out", str(tmp_path / "out"), *named],
        ["data", "pseudo-label", "digits", "--with", str(folder), "--out", str(tmp_path / "labelled"), *named],
        ["data", "check", str(tmp_path / "labelled")],
    ):
        assert run(arguments) == 0
        assert (sentence in " ".join(capsys.readouterr().out.split())) == noted, arguments
    refuses_one = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(D, track_running_stats=tracked), nn.Linear(D, 2))
    assert bool(doubt(refuses_one, images(8).images / 255, "figures")) == noted
    for call in (adversarial_vulnerability, margins, loss_landscape):
        with pytest.warns(Caution, match="and so do these figures") if noted else nullcontext([]) as warned:
            call(refuses_one, images(8), Ascent(0.05, steps=1))
        assert all(one.filename == __file__ for one in warned)
