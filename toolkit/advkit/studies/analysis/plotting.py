"""The style of the pictures and what they share: readable in gray and by the colour-blind, the same bytes each time.

Importing this needs matplotlib (`pip install 'advkit[plot]'`). Figures are made without pyplot, and settings hold only
while one is drawn, so a caller's own figures and backend stay as they are.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, cast

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "savefig.facecolor": "white",
    "svg.hashsalt": "advkit",  # ids that do not change from one drawing to the next
}
FILL, DARK, MARK = "#8fb8de", "#1b3a57", "#d55e00"
"""Light blue and vermilion of different lightness (after Okabe and Ito), and a blue near black."""

BARS: Any = {"color": FILL, "edgecolor": DARK, "linewidth": 0.4}
COLUMN, PAGE = 3.5, 7.0
"""Widths in inches: one column and both."""


def rendered(draw: Callable[[], Figure]) -> dict[str, bytes]:
    """{"png": ..., "svg": ...} of a figure, without dates or versions in them."""
    found = {}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a matplotlibrc of the user's must not change the bytes
        matplotlib.rcParams.update(cast(Any, STYLE))
        figure = draw()
        for kind, unsaid in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            stream = io.BytesIO()
            figure.savefig(stream, format=kind, dpi=300, metadata=cast(Any, unsaid))
            found[kind] = stream.getvalue()
    return found


def legend_above(axes: Axes, handles: list[Any], title: str | None = None) -> None:
    """Above the axes, so that it hides nothing."""
    axes.legend(
        handles=handles,
        title=title,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        alignment="left",
        borderaxespad=0.2,
        columnspacing=1.2,
    )


def axis_break(axes: Axes, start: float, end: float) -> None:
    """A gap in the horizontal axis between two data coordinates, with a slash at either side."""
    on_axis: Any = {"transform": axes.get_xaxis_transform(), "clip_on": False, "zorder": 4}
    axes.plot([start, end], [0, 0], color="white", linewidth=2, solid_capstyle="butt", **on_axis)
    axes.plot([start, end], [0, 0], color="black", marker=[(-0.5, -1), (0.5, 1)], linestyle="none", **on_axis)


def percent(shown: int, of: int | None = None) -> Any:
    """Weights (shown,) that make a histogram one of percents."""
    return np.full(shown, 100 / max(1, shown if of is None else of))


def log_axis(axes: Axes, low: float, high: float) -> None:
    """A logarithmic vertical axis from `low` to `high` with plain numbers, also where it has few powers of ten."""
    subs = (1.0,) if high > 1000 * low else (1.0, 2.0, 5.0)
    axes.set(ylim=(low, high), yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
