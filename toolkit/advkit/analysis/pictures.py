"""The pictures of the analyses, for papers: readable in gray and by the colour-blind, the same bytes each time.

Importing this needs matplotlib (`pip install 'advkit[plot]'`). Figures are made without pyplot, and settings hold only
while one is drawn, so a caller's own figures and backend stay as they are.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from math import ceil
from typing import Any, cast

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from torch import Tensor

from ..data.base import Dataset
from .budget import SampleBudgets
from .landscape import Landscape
from .margin import Margins
from .vulnerability import Vulnerability

STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.facecolor": "white",
    "svg.hashsalt": "advkit",  # ids that do not change from one drawing to the next
}
FILL, DARK, MARK = "#8fb8de", "#1b3a57", "#d55e00"
"""Light blue and vermilion of different lightness (after Okabe and Ito), and a blue near black."""

BARS: Any = {"color": FILL, "edgecolor": DARK, "linewidth": 0.4}

SHOWN_CLASSES, SHOWN_SAMPLES = 10, 16


def rendered(draw: Callable[[], Figure]) -> dict[str, bytes]:
    """{"png": ..., "svg": ...} of a figure, without dates or versions in them."""
    found = {}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a matplotlibrc of the user's must not change the bytes
        matplotlib.rcParams.update(cast(Any, STYLE))
        figure = draw()
        for kind, unsaid in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            stream = io.BytesIO()
            figure.savefig(stream, format=kind, dpi=200, metadata=cast(Any, unsaid))
            found[kind] = stream.getvalue()
    return found


def vulnerability_picture(found: Vulnerability) -> Figure:
    """Histogram of AV_i, with the thresholds 0 and 1 of ISEAT's Table 1."""
    figure = Figure(figsize=(4.6, 2.9), layout="constrained")
    axes = figure.add_subplot()
    av, figures = found.av[found.av.isfinite()].numpy(), found.unevenness
    low, high = min(float(av.min(initial=0)), -0.1), max(float(av.max(initial=0)), 1.1)
    per_nat = max(1, round(50 / (high - low)))  # 0 and 1 are edges of bins
    bins = np.arange(np.floor(low * per_nat), np.ceil(high * per_nat) + 1) / per_nat
    axes.hist(av, bins=cast(Any, bins), weights=_percent(len(av)), **BARS)
    for threshold in (0, 1):
        axes.axvline(threshold, color=MARK, linestyle="--", linewidth=1)
    axes.set(xlabel="adversarial vulnerability AV (nats)", ylabel="samples (%)", ylim=(50 / len(av), 150), yscale="log")
    _plain_log(axes)
    axes.text(
        0.98,
        0.97,
        f"n = {figures.n}\nSD {figures.sd:.3f}\ntop 10 % {figures.top_10:.3f}\nbottom 10 % {figures.bottom_10:.3f}\n"
        f"AV ≥ 1: {100 * figures.at_least_1:.2f} %\nAV ≤ 0: {100 * figures.at_most_0:.2f} %",
        transform=axes.transAxes,
        ha="right",
        va="top",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85},
    )
    return figure


def margin_picture(found: Margins) -> Figure:
    """ISEAT's Fig. 1b: the distribution of mu, its cumulative share, and where the budget lies."""
    figure = Figure(figsize=(4.6, 2.9), layout="constrained")
    axes = figure.add_subplot()
    flipped, n = np.sort(found.mu[found.flipped].numpy()), int((~found.mu.isnan()).sum())
    last = max(1, round(float(flipped.max(initial=0)) / found.precision))
    wide = ceil(last / 40) * found.precision  # whole steps of the scan: other bins would alternate
    edges = found.precision / 2 + wide * np.arange(-1, ceil(last * found.precision / wide) + 1)
    end = float(edges[-1])
    axes.hist(flipped, bins=cast(Any, edges), weights=_percent(len(flipped), n), label="samples", **BARS)
    axes.bar(1.07 * end, 100 * (n - len(flipped)) / max(1, n), 0.05 * end, hatch="////", **BARS, label="never flips")
    reached = found.length[found.length > 0]
    if len(reached):
        typical = float(reached.median())
        axes.axvline(typical, color=MARK, linestyle="--", linewidth=1.2, label=f"$μ_ε$, median {typical:.2f}")
    axes.set(xlabel="margin μ along the adversarial direction (L2)", ylabel="samples (%)", xlim=(0, 1.12 * end))
    ticks = [tick for tick in MaxNLocator(6).tick_values(0, end) if tick <= 0.97 * end]
    axes.set_xticks([*ticks, 1.07 * end], [*(f"{tick:g}" for tick in ticks), f"{found.cap:g}"])
    total = axes.twinx()
    total.step(
        [0, *flipped, end],
        [0, *(100 * np.arange(1, len(flipped) + 1) / max(1, n)), 100 * len(flipped) / max(1, n)],
        where="post",
        color=DARK,
        linewidth=1.4,
        label="cumulative",
    )
    total.set(ylabel="cumulative (%)", ylim=(0, 102))
    total.spines["right"].set_visible(True)
    handles = [
        (handle, text) for each in (axes, total) for handle, text in zip(*each.get_legend_handles_labels(), strict=True)
    ]
    total.legend(*zip(*handles, strict=True), loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, fontsize=8)
    return figure


def landscape_picture(found: Landscape, classes: tuple[str, ...], labels: Tensor) -> Figure:
    """Surface and heat map of the loss, on one colour scale."""
    figure = Figure(figsize=(7.2, 3.1), layout="constrained")
    first, second, loss = found.first.numpy(), found.second.numpy(), found.loss.numpy()
    names = {
        "cat": ("sign of the gradient a (pixels in [0, 1])", "Rademacher b (pixels in [0, 1])"),
        "iseat": ("adversarial α (L2)", "random β (L2)"),
    }[found.kind]
    short = ("a", "b") if found.kind == "cat" else ("α", "β")
    solid = cast(Any, figure.add_subplot(1, 2, 1, projection="3d"))
    across, along = np.meshgrid(second, first)
    solid.plot_surface(
        along, across, loss, cmap="cividis", rcount=len(first), ccount=len(second), linewidth=0.1, antialiased=True
    )
    solid.set(xlabel=short[0], ylabel=short[1])  # the colour bar says what the height is
    solid.view_init(elev=28, azim=-125)
    for each in (solid.xaxis, solid.yaxis, solid.zaxis):
        each.set_major_locator(MaxNLocator(5))
    solid.tick_params(labelsize=7, pad=0)
    solid.set_box_aspect(None, zoom=0.9)
    flat = figure.add_subplot(1, 2, 2)
    mesh = flat.pcolormesh(first, second, loss.T, cmap="cividis", shading="nearest", rasterized=True)
    if loss.max() > loss.min():
        lines = flat.contour(first, second, loss.T, levels=6, colors="white", linewidths=0.6)
        flat.clabel(lines, fontsize=6, fmt="%.2g")
    flat.plot(0, 0, marker="+", color=MARK, markersize=9, markeredgewidth=1.6)
    flat.set(xlabel=names[0], ylabel=names[1], aspect="equal")
    for each in (flat.xaxis, flat.yaxis):
        each.set_major_locator(MaxNLocator(5))
    figure.colorbar(mesh, ax=flat, label="cross-entropy (nats)", shrink=0.85)
    if len(found.index) == 1:
        said, true = classes[int(found.prediction[0])], classes[int(labels[0])]
        title = f"image {int(found.index[0])}: label {true}, predicted {said}"
    else:
        title = f"mean over {len(found.index)} images"
    flat.set_title(title)
    return figure


def budget_picture(found: SampleBudgets, train: Dataset) -> Figure:
    """eps_i over the epochs, at the checkpoint and by class, above the hardest samples."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    above, below = cast(Any, figure.subfigures(2, 1, height_ratios=(1.5, 1)))
    left, middle, right = above.subplots(1, 3, width_ratios=(1.25, 1, 1.1))
    _over_epochs(left, found)
    eps = found.eps.numpy()
    middle.hist(
        eps,
        bins=cast(Any, np.linspace(0, max(eps.max(), 1e-9), 31)),
        weights=_percent(len(eps)),
        color=FILL,
        edgecolor=DARK,
        linewidth=0.4,
    )
    middle.set(xlabel="$ε_i$ (pixels in [0, 1])", ylabel="samples (%)", title="At the checkpoint")
    rows = found.by_class()[:SHOWN_CLASSES]
    right.barh([row["class"] for row in rows], [row["mean"] for row in rows], color=FILL, edgecolor=DARK, linewidth=0.6)
    right.invert_yaxis()
    right.set(xlabel="mean $ε_i$", title="Classes" + (", the hardest" if len(found.classes) > len(rows) else ""))
    below.suptitle("The hardest samples: smallest $ε_i$, then largest loss", x=0.01, ha="left", fontsize=9)
    chosen = found.hardest(SHOWN_SAMPLES).tolist()
    for axes, place in zip(
        below.subplots(2, SHOWN_SAMPLES // 2).flat, [*chosen, *[None] * SHOWN_SAMPLES], strict=False
    ):
        axes.set_axis_off()
        if place is not None:
            image = train.images[int(found.index[place])].permute(1, 2, 0).numpy()
            gray = image.shape[2] == 1
            axes.imshow(
                image[..., 0] if gray else image[..., :3], cmap="gray", vmin=0, vmax=255, interpolation="nearest"
            )
            label = found.classes[int(found.label[place])]
            axes.set_title(
                f"{label}\n#{int(found.index[place])}, {float(found.eps[place]):.3f}", fontsize=6, loc="center"
            )
    return figure


def _over_epochs(axes: Axes, found: SampleBudgets) -> None:
    epochs = [int(row["epoch"]) + 1 for row in found.history]
    rows = {key: [row[key] for row in found.history] for key in ("q00", "q25", "q50", "q75", "q100", "mean_radius")}
    axes.fill_between(epochs, rows["q00"], rows["q100"], color=FILL, alpha=0.35, linewidth=0, label="all")
    axes.fill_between(epochs, rows["q25"], rows["q75"], color=FILL, linewidth=0, label="middle half")
    axes.plot(epochs, rows["q50"], color=DARK, linewidth=1.4, label="median")
    axes.plot(epochs, rows["mean_radius"], color=MARK, linestyle="--", linewidth=1.2, label="mean attacked")
    axes.set(xlabel="epoch", ylabel="$ε_i$ (pixels in [0, 1])", title="Over the epochs")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower right", fontsize=7, frameon=True, framealpha=0.6, edgecolor="none")


def _percent(shown: int, of: int | None = None) -> Any:
    """Weights (shown,) that make a histogram one of percents."""
    return np.full(shown, 100 / max(1, shown if of is None else of))


def _plain_log(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
