"""The pictures of the analyses, for papers. Importing this needs matplotlib (`pip install 'advkit[plot]'`)."""

from __future__ import annotations

from math import ceil, isclose, isfinite
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ...data.base import Dataset
from .budget import SampleBudgets
from .landscape import Landscape
from .margin import Margins
from .plotting import BARS, COLUMN, DARK, FILL, MARK, PAGE, axis_break, legend_above, log_axis, percent
from .vulnerability import Vulnerability

UNIT = {"linf": "pixels in [0, 1]", "l2": "L2 distance"}
L2 = "L2 distance, pixels in [0, 1]"

SHOWN_CLASSES, SHOWN_SAMPLES, SHOWN_VALUES = 10, 16, 30


def vulnerability_picture(found: Vulnerability) -> Figure:
    """Histogram of AV_i, with the thresholds 0 and 1 of ISEAT's Table 1."""
    figure = Figure(figsize=(COLUMN, 2.6), layout="constrained")
    axes = figure.add_subplot()
    av, figures = found.av[found.av.isfinite()].numpy(), found.unevenness
    low, high = min(float(av.min(initial=0)), -0.1), max(float(av.max(initial=0)), 1.1)
    per_nat = max(1, round(50 / (high - low)))  # 0 and 1 are edges of bins
    bins = np.arange(np.floor(low * per_nat), np.ceil(high * per_nat) + 1) / per_nat
    shares, *_ = axes.hist(av, bins=cast(Any, bins), weights=percent(len(av)), **BARS)
    for threshold, sign, share, line in ((0, "≤", figures.at_most_0, ":"), (1, "≥", figures.at_least_1, "--")):
        label = f"AV {sign} {threshold}: {100 * share:.2f} %"
        axes.axvline(threshold, color=MARK, linestyle=line, linewidth=1.2, label=label)
    axes.set(xlabel="adversarial vulnerability AV (nats)", ylabel="samples (%)")
    log_axis(axes, 50 / max(1, len(av)), 1.5 * float(np.max(shares)))
    said = f"n = {figures.n}, mean {figures.mean:.3f}, SD {figures.sd:.3f} nats"
    if isfinite(figures.top_10):
        said += f"\ntop 10 % {figures.top_10:.3f}, bottom 10 % {figures.bottom_10:.3f} nats"
    legend_above(axes, axes.get_legend_handles_labels()[0], said)
    return figure


def margin_picture(found: Margins) -> Figure:
    """ISEAT's Fig. 1b: the distribution of mu, its cumulative share, and where the budget lies.

    Samples that never flip are a bar of their own behind a break of the axis.
    """
    figure = Figure(figsize=(COLUMN, 2.6), layout="constrained")
    axes = figure.add_subplot()
    flipped, n = np.sort(found.mu[found.flipped].numpy()), max(1, int((~found.mu.isnan()).sum()))
    never = n - len(flipped)
    last = max(1, round(float(flipped.max(initial=0)) / found.precision))
    wide = ceil(last / 40) * found.precision  # whole steps of the scan: other bins would alternate
    edges = found.precision / 2 + wide * np.arange(-1, ceil(last * found.precision / wide) + 1)
    end = float(edges[-1])
    *_, found_bars = axes.hist(flipped, bins=cast(Any, edges), weights=percent(len(flipped), n), **BARS)
    bars = cast(Any, found_bars)
    bars.set_label("samples")
    marks: list[Any] = []
    reached = found.length[found.length > 0]
    if len(reached):
        typical = float(reached.median())
        label = f"$μ_ε$ of the attack, median {typical:.2f}"
        marks.append(axes.axvline(typical, color=MARK, linestyle="--", linewidth=1.2, label=label))
    axes.set(xlabel=f"margin μ ({L2})", ylabel="samples (%)", xlim=(0, 1.02 * end))
    if never and found.mu.isfinite().any():
        share = 100 * never / n
        label = f"never flips up to {found.cap:g}: {share:.1f} %"
        marks.append(axes.bar(1.12 * end, share, 0.06 * end, hatch="////", label=label, **BARS))
        ticks = [tick for tick in MaxNLocator(5).tick_values(0, end) if tick <= end]
        axes.set_xlim(0, 1.17 * end)
        axes.set_xticks([*ticks, 1.12 * end], [*(f"{tick:g}" for tick in ticks), "never"])
        axis_break(axes, 1.04 * end, 1.065 * end)
    axes.set_ylim(bottom=0)
    total = axes.twinx()
    (steps,) = total.step(
        [0, *flipped, end],
        [0, *(100 * np.arange(1, len(flipped) + 1) / n), 100 * len(flipped) / n],
        where="post",
        color=DARK,
        linewidth=1.4,
        label="cumulative",
    )
    total.set(ylabel="cumulative (%)", ylim=(0, 102))
    total.spines["right"].set_visible(True)
    legend_above(total, [bars, steps, *marks])
    return figure


def landscape_picture(found: Landscape, classes: tuple[str, ...], labels: Tensor) -> Figure:
    """Surface and heat map of the loss, on one colour scale."""
    figure = Figure(figsize=(PAGE, 3.0))
    first, second, loss = found.first.numpy(), found.second.numpy(), found.loss.numpy()
    short, names, plane = {
        "cat": (
            ("a", "b"),
            ("a, along the gradient's sign (pixels in [0, 1])", "b, along random signs (pixels in [0, 1])"),
            "x + a sign(∇CE) + b r",
        ),
        "iseat": (
            ("α", "β"),
            (f"α, along the attack\n({L2})", f"β, along uniform noise\n({L2})"),
            "x + α δ/‖δ‖ + β u/‖u‖",
        ),
    }[found.kind]
    if len(found.index) == 1:
        said, true = classes[int(found.prediction[0])], classes[int(labels[0])]
        of = f"image {int(found.index[0])} (label {true}, predicted {said})"
    else:
        of = f"mean over {len(found.index)} images"
    clipped = "clipped to [0, 1]" if found.clip else "not clipped"
    figure.suptitle(f"{found.kind}: {plane}, {clipped}; {of}", x=0.01, ha="left", fontsize=8)
    # Placed by hand: the layout engines leave room for the whole box around a surface, most of which is white.
    solid = cast(Any, figure.add_axes((0.03, 0.0, 0.47, 0.94), projection="3d"))
    across, along = np.meshgrid(second, first)
    solid.plot_surface(
        along, across, loss, cmap="cividis", rcount=len(first), ccount=len(second), linewidth=0.1, antialiased=True
    )
    solid.set(xlabel=short[0], ylabel=short[1])
    solid.zaxis.set_rotate_label(False)
    solid.set_zlabel("cross-entropy (nats)", rotation=90)
    solid.view_init(elev=28, azim=-125)
    end = 0.9 * first[-1]  # further out the labels of both axes meet in the corner
    for each in (solid.xaxis, solid.yaxis):
        each.set_ticks([tick for tick in MaxNLocator(5).tick_values(-end, end) if abs(tick) <= end])
    solid.zaxis.set_major_locator(MaxNLocator(5))
    solid.tick_params(pad=0)
    solid.set_box_aspect((1, 1, 0.75), zoom=0.95)
    flat = figure.add_axes((0.58, 0.17, 0.32, 0.74))
    mesh = flat.pcolormesh(first, second, loss.T, cmap="cividis", shading="nearest", rasterized=True)
    low, high = loss.min(), loss.max()
    edge = 0.02 * (high - low)  # a line nearer to an extreme is a speck
    levels = [level for level in MaxNLocator(6).tick_values(low, high) if low + edge < level < high - edge]
    if levels:
        middle = (low + high) / 2
        colors = ["white" if level < middle else "black" for level in levels]
        flat.clabel(flat.contour(first, second, loss.T, levels=levels, colors=colors, linewidths=0.6), fontsize=7)
    flat.plot(0, 0, marker="+", color=MARK, markersize=9, markeredgewidth=1.6)
    flat.set(xlabel=names[0], ylabel=names[1], aspect="equal")
    for each in (flat.xaxis, flat.yaxis):
        each.set_major_locator(MaxNLocator(5))
    figure.colorbar(mesh, cax=figure.add_axes((0.915, 0.17, 0.015, 0.74)), label="cross-entropy (nats)")
    return figure


def budget_picture(found: SampleBudgets, train: Dataset) -> Figure:
    """eps_i over the epochs, at the checkpoint and by class, above the hardest samples."""
    figure = Figure(figsize=(PAGE, 5.1), layout="constrained")
    above, below = cast(Any, figure.subfigures(2, 1, height_ratios=(1.25, 1)))
    left, middle, right = above.subplots(1, 3, width_ratios=(1.2, 1.1, 1))
    _over_epochs(left, found)
    _at_checkpoint(middle, found)
    rows = found.by_class()[:SHOWN_CLASSES]
    right.barh([row["class"] for row in rows], [row["mean"] for row in rows], **BARS)
    right.invert_yaxis()
    right.xaxis.set_major_locator(MaxNLocator(4))
    title = "By class" + (", the hardest" if len(found.classes) > len(rows) else "")
    right.set_xlim(left=0)
    right.set(xlabel=f"mean $ε_i$ ({UNIT[found.norm]})", title=title)
    above.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=3)
    below.suptitle(
        "The hardest samples, by class and #index: smallest $ε_i$, then largest cross-entropy CE (nats)",
        x=0.01,
        ha="left",
        fontsize=8,
    )
    chosen = found.hardest(SHOWN_SAMPLES).tolist()
    for axes, place in zip(
        below.subplots(2, SHOWN_SAMPLES // 2).flat, [*chosen, *[None] * SHOWN_SAMPLES], strict=False
    ):
        axes.set_axis_off()
        if place is not None:
            image = train.images[train.index == found.index[place]][0].permute(1, 2, 0).numpy()
            gray = image.shape[2] == 1
            axes.imshow(
                image[..., 0] if gray else image[..., :3], cmap="gray", vmin=0, vmax=255, interpolation="nearest"
            )
            label = found.classes[int(found.label[place])]
            label = label if len(label) <= 14 else f"{label[:13]}…"
            said = f"{label}\n#{int(found.index[place])}\n$ε_i$ {found.eps[place]:.3f}\nCE {found.loss[place]:.3f}"
            axes.set_title(said, fontsize=7, loc="center")
    return figure


def _over_epochs(axes: Axes, found: SampleBudgets) -> None:
    epochs = [int(row["epoch"]) + 1 for row in found.history]
    rows = {key: [row[key] for row in found.history] for key in ("q00", "q25", "q50", "q75", "q100", "mean_radius")}
    alone = "o" if len(epochs) == 1 else None  # a line of one point is not seen
    axes.fill_between(epochs, rows["q00"], rows["q100"], color=FILL, alpha=0.35, linewidth=0, label="all $ε_i$")
    axes.fill_between(epochs, rows["q25"], rows["q75"], color=FILL, linewidth=0, label="middle half")
    axes.plot(epochs, rows["q50"], color=DARK, linewidth=1.4, marker=alone, label="median $ε_i$")
    axes.plot(
        epochs,
        rows["mean_radius"],
        color=MARK,
        linestyle="--",
        linewidth=1.2,
        marker=alone,
        label="mean radius of the attack",
    )
    for value, label, line in _bounds(found):
        axes.axhline(value, color="black", linestyle=line, linewidth=0.9, label=label)
    axes.set(xlabel="epoch", ylabel=f"$ε_i$ ({UNIT[found.norm]})", title="Over the epochs")
    axes.set_ylim(bottom=0)
    if epochs:
        axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _at_checkpoint(axes: Axes, found: SampleBudgets) -> None:
    """A bar per value where there are few; bins centred on multiples of their width where there are many."""
    eps = found.eps.numpy()
    span = max(float(eps.max(initial=0)), found.run_eps, 1e-9)
    values, counts = np.unique((eps / span).round(5), return_counts=True)  # as float32 sums differ in the last digits
    if len(values) <= SHOWN_VALUES:
        gap = float(np.diff(values).min(initial=0.1))
        axes.bar(values * span, 100 * counts / max(1, len(eps)), width=span * max(0.8 * gap, 0.01), **BARS)
    else:
        edges = (np.arange(SHOWN_VALUES + 2) - 0.5) * float(eps.max()) / SHOWN_VALUES
        axes.hist(eps, bins=cast(Any, edges), weights=percent(len(eps)), **BARS)
    for value, _, line in _bounds(found):
        axes.axvline(value, color="black", linestyle=line, linewidth=0.9)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set(xlabel=f"$ε_i$ ({UNIT[found.norm]})", ylabel="samples (%)", title="At the checkpoint")


def _bounds(found: SampleBudgets) -> list[tuple[float, str, str]]:
    """Value, label and line style of the run's eps and of the cap of eps_i, one line where they are equal."""
    if found.eps_max is not None and isclose(found.eps_max, found.run_eps):
        return [(found.run_eps, f"eps of the run = cap of $ε_i$ = {found.run_eps:.3g}", ":")]
    cap = [] if found.eps_max is None else [(found.eps_max, f"cap of $ε_i$ = {found.eps_max:.3g}", "-.")]
    return [(found.run_eps, f"eps of the run = {found.run_eps:.3g}", ":"), *cap]
