"""What the pictures of the analyses say, by their artists: labels, units, and what is drawn only where there is any."""

from __future__ import annotations

from math import nan
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from advkit import Dataset
from advkit.studies.analysis import Landscape, Margins, SampleBudgets, Vulnerability

pictures = pytest.importorskip("advkit.studies.analysis.pictures", reason="pip install 'advkit[plot]'")

CLASSES = ("a", "b", "c")


def legend(owner: Any) -> list[str]:
    return [text.get_text() for text in owner.get_legend().get_texts()]


def vulnerability(*values: float) -> Any:
    av = torch.tensor(values, dtype=torch.float64)
    return pictures.vulnerability_picture(Vulnerability(torch.arange(len(av)), torch.zeros_like(av), av)).axes[0]


def margin(*values: float, cap: float = 50.0) -> Any:
    mu = torch.tensor(values, dtype=torch.float64)
    found = Margins(torch.arange(len(mu)), mu, mu < cap, torch.ones_like(mu), cap, 0.1)
    return pictures.margin_picture(found).axes


def budgets(eps: Tensor, **changed: Any) -> Any:
    n = len(eps)
    row = {"epoch": 0, "q00": 0.0, "q25": 0.1, "q50": 0.1, "q75": 0.2, "q100": 0.2, "mean_radius": 0.15}
    given: dict[str, Any] = {"norm": "linf", "run_eps": 0.3, "eps_max": 0.25, "largest_radius": 0.4} | changed
    found = SampleBudgets(
        state="x/eps",
        index=torch.arange(n),
        eps=eps.double(),
        label=torch.arange(n) % 3,
        loss=torch.linspace(0, 1, n).double(),
        classes=CLASSES,
        history=[row],
        **given,
    )
    images = torch.zeros(n, 1, 2, 2, dtype=torch.uint8)
    figure = pictures.budget_picture(found, Dataset("toy", images, torch.arange(n) % 3, CLASSES))
    return figure.subfigs


def test_the_thresholds_of_a_vulnerability_are_labelled_outside_the_axes() -> None:
    axes = vulnerability(*[0.5] * 15, *[-0.5] * 2, *[1.5] * 3)
    assert legend(axes) == ["AV ≤ 0: 10.00 %", "AV ≥ 1: 15.00 %"]
    assert [line.get_xdata()[0] for line in axes.lines] == [0, 1]
    assert axes.lines[0].get_linestyle() != axes.lines[1].get_linestyle() and not axes.texts
    said = axes.get_legend().get_title().get_text()
    assert said == "n = 20, mean 0.550, SD 0.497 nats\ntop 10 % 1.500, bottom 10 % -0.500 nats"
    axes.figure.draw_without_rendering()
    assert axes.get_legend().get_window_extent().y0 >= axes.get_window_extent().y1


def test_the_shares_of_a_vulnerability_fill_their_axis() -> None:
    axes = vulnerability(*np.linspace(0.1, 2, 200))
    highest = max(bar.get_height() for bar in axes.patches)
    assert highest < axes.get_ylim()[1] <= 2 * highest


def test_what_never_flips_is_drawn_behind_a_break_where_there_is_any() -> None:
    axes, total = margin(0.1, 0.4, 1.4)
    assert legend(total) == ["samples", "cumulative", "$μ_ε$ of the attack, median 1.00"]
    assert "never" not in [tick.get_text() for tick in axes.get_xticklabels()] and axes.get_xlim()[1] < 2
    assert axes.get_xlabel() == "margin μ (L2 distance, pixels in [0, 1])"
    axes, total = margin(0.1, 0.4, 1.4, 50.0, nan)
    assert legend(total)[-1] == "never flips up to 50: 25.0 %"
    ticks = [tick.get_text() for tick in axes.get_xticklabels()]
    assert ticks[-1] == "never" and "50" not in ticks
    gap = next(line for line in axes.lines if line.get_color() == "white").get_xdata()
    assert 1.4 < gap[0] < gap[1] < axes.get_xticks()[-1]


@pytest.mark.parametrize(
    ("kind", "clip", "index", "title"),
    [
        ("cat", False, [3, 4], "cat: x + a sign(∇CE) + b r, not clipped; mean over 2 images"),
        ("iseat", True, [4], "iseat: x + α δ/‖δ‖ + β u/‖u‖, clipped to [0, 1]; image 4 (label a, predicted c)"),
    ],
)
def test_a_landscape_names_its_plane_and_its_axes(kind: Any, clip: bool, index: list[int], title: str) -> None:
    axis = torch.linspace(-1, 1, 5, dtype=torch.float64)
    loss = axis.unsqueeze(1) ** 2 + axis
    none = torch.tensor([], dtype=torch.int64)
    found = Landscape(kind, torch.tensor(index), none, axis, axis, loss, torch.full((len(index),), 2), clip)
    figure = pictures.landscape_picture(found, CLASSES, torch.zeros(len(index), dtype=torch.int64))
    solid, flat, bar = figure.axes
    assert figure.get_suptitle() == title
    assert solid.get_zlabel() == bar.get_ylabel() == "cross-entropy (nats)"
    assert all("pixels in [0, 1]" in label for label in (flat.get_xlabel(), flat.get_ylabel()))
    figure.draw_without_rendering()
    place = solid.zaxis.label.get_window_extent()
    assert figure.bbox.x0 < place.x0 and figure.bbox.y0 < place.y0 < place.y1 < figure.bbox.y1


def test_few_values_of_a_budget_have_a_bar_each_at_their_place() -> None:
    eps = torch.tensor([0.0, 0.1, 0.1, 0.1 + 1e-8, 0.25])
    above, _ = budgets(eps)
    bars = above.axes[1].patches
    places = [bar.get_x() + bar.get_width() / 2 for bar in bars]
    assert places == pytest.approx([0, 0.1, 0.25], abs=1e-5)
    assert [bar.get_height() for bar in bars] == pytest.approx([20, 60, 20])


def test_many_values_of_a_budget_are_binned_around_0_and_the_largest() -> None:
    above, _ = budgets(torch.cat([torch.zeros(50), torch.linspace(0, 0.25, 100)]))
    bars = above.axes[1].patches
    places = [bar.get_x() + bar.get_width() / 2 for bar in bars]
    assert places[0] == pytest.approx(0) and places[-1] == pytest.approx(0.25)
    assert sum(bar.get_height() for bar in bars) == pytest.approx(100)


@pytest.mark.parametrize(
    ("changed", "labels"),
    [
        ({}, ["eps of the run = 0.3", "cap of $ε_i$ = 0.25"]),
        ({"eps_max": 0.3}, ["eps of the run = cap of $ε_i$ = 0.3"]),
        ({"eps_max": None}, ["eps of the run = 0.3"]),
    ],
)
def test_a_budget_has_its_bounds_and_its_units(changed: dict[str, Any], labels: list[str]) -> None:
    above, _ = budgets(torch.tensor([0.0, 0.1]), **changed)
    left, middle, right = above.axes
    said = [text.get_text() for text in above.legends[0].get_texts()]
    assert said == ["all $ε_i$", "middle half", "median $ε_i$", "mean radius of the attack", *labels]
    assert len(middle.lines) == len(labels) and middle.lines[0].get_xdata()[0] == 0.3
    units = (left.get_ylabel(), middle.get_xlabel(), right.get_xlabel())
    assert units == ("$ε_i$ (pixels in [0, 1])", "$ε_i$ (pixels in [0, 1])", "mean $ε_i$ (pixels in [0, 1])")
    above, _ = budgets(torch.tensor([0.0, 0.1]), norm="l2", **changed)
    assert above.axes[2].get_xlabel() == "mean $ε_i$ (L2 distance)"


def test_the_hardest_samples_show_budget_and_loss() -> None:
    _, below = budgets(torch.tensor([0.1, 0.0, 0.0]))
    titles = [axes.get_title() for axes in below.axes if axes.get_title()]
    assert titles == [f"{name}\n#{i}\n$ε_i$ {eps}\nCE {ce}" for name, i, eps, ce in (
        ("c", 2, "0.000", "1.000"), ("b", 1, "0.000", "0.500"), ("a", 0, "0.100", "0.000"),
    )]  # fmt: skip
