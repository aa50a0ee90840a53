"""Charts as inline SVG. Colours are CSS variables; a line is also told by its dashes, markers and direct label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, cos, floor, log10, pi, sin
from textwrap import wrap

from .markup import Html, join, tag

COLOURS = 6
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4")
MARKERS = 6
MARK = 3.6
"""Half the size of a marker."""
LETTER = 7.0
"""Room for a character; wide enough for every system's font."""


@dataclass(frozen=True)
class Series:
    """A line: (x, y) points in the order of x. `style` picks colour, dashes and marker; 30 are different."""

    label: str
    points: Sequence[tuple[float, float]]
    style: int
    held: bool = False
    """Each value holds until the next, as a learning rate does."""
    short: str = ""
    """What stands at its end; its label by default."""


@dataclass(frozen=True)
class Bar:
    """A share with its interval; `label` tells it from others of one name."""

    label: str
    value: float
    interval: tuple[float, float]
    style: int


@dataclass(frozen=True)
class Axis:
    """Maps values in [low, high] to pixels in [start, end]."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (log10(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return self.start + (at - low) / (high - low) * (self.end - self.start)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from at most low to at least high."""
    if high - low <= max(1e-300, 1e-9 * max(abs(low), abs(high))):
        low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
    rough = (high - low) / about
    power = 10.0 ** floor(log10(rough))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999999)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    digits = max(0, 2 - floor(log10(step)))
    return [round(index * step, digits) for index in range(first, last + 1)]


def decades(low: float, high: float) -> list[float]:
    """Powers of ten around positive values."""
    first, last = floor(log10(low) + 1e-9), ceil(log10(high) - 1e-9)
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]


def lines(
    key: str, title: str, series: Sequence[Series], *, share: bool = False, log: bool = False, best: float | None = None
) -> Html:
    """Lines over epochs, as a figure. `share`: the axis is 0 to 1. `best` marks an epoch."""
    drawn = [each for each in series if each.points]
    xs = [x for each in drawn for x, _ in each.points]
    ys = [y for each in drawn for _, y in each.points]
    log = log and min(ys) > 0
    floor_at = 0.0 if min(ys) >= 0 and (min(ys) < 0.4 * max(ys) or min(ys) == max(ys)) else min(ys)
    y_ticks = [0, 0.2, 0.4, 0.6, 0.8, 1] if share else decades(min(ys), max(ys)) if log else ticks(floor_at, max(ys), 5)
    labelled = len(drawn) > 1
    names = [each.short or each.label for each in drawn]
    room = 27 + LETTER * max(map(len, names)) if labelled else 14
    left, right, top, bottom = 48.0, 460 - room, 10.0, 212.0
    low, high = min(xs), max(xs)
    x_axis = Axis(low - (low == high), high + (low == high), left + 8, right)
    y_axis = Axis(y_ticks[0], y_ticks[-1], bottom, top, log)
    x_ticks = [x for x in ticks(low, high, 6 if high - low >= 6 else 3) if low <= x <= high and x == int(x)] or [low]
    parts = [_grid_line(left, right, y_axis(y), _plain(y)) for y in y_ticks]
    parts += [_text(x_axis(x), bottom + 17, _plain(x), "middle") for x in x_ticks]
    parts += [_text((left + right) / 2, bottom + 34, "epoch", "middle")]
    if best is not None and low <= best <= high:
        x = x_axis(best)
        parts += [tag("path", d=f"M{x:.1f} {top}V{bottom}", class_="best"), _text(x - 4, bottom - 6, "best", "end")]
    # A line that reaches the edge goes on to its label, whose marker is then that of its end.
    through = [labelled and len(each.points) > 1 and each.points[-1][0] == high for each in drawn]
    parts += [_line(each, x_axis, y_axis, go) for each, go in zip(drawn, through, strict=True)]
    if labelled:
        ends = [y_axis(each.points[-1][1]) for each in drawn]
        for each, name, go, at, y in zip(drawn, names, through, ends, _apart(ends, 15, top + 6, bottom), strict=True):
            if go:
                parts.append(tag("path", d=f"M{right:.1f} {at:.1f}L{right + 12:.1f} {y:.1f}", class_="lead"))
            parts += [_marker(each.style, right + 12, y), _text(right + 21, y + 4, name, "start")]
    return _figure(key, title, " ".join(_told(each) for each in drawn), 460, 252, parts)


def bars(key: str, title: str, groups: Sequence[tuple[str, Sequence[Bar]]]) -> Html:
    """Shares with their intervals, a group of lines for each name, as a figure. A name may have several lines."""
    labels = [[line for part in name.splitlines() for line in wrap(part, 24)] for name, _ in groups]
    marks = max(len(bar.label) for _, entries in groups for bar in entries)
    edge = 4 + LETTER * max((len(line) for lines in labels for line in lines), default=0)
    left, top = edge + 10 + (8 + LETTER * marks if marks else 0), 8.0
    right = left + 284
    axis = Axis(0, 1, left, right)
    parts: list[Html] = []
    y = top
    told = []
    for (name, entries), lines in zip(groups, labels, strict=True):
        height = max(16 * len(entries), 14 * len(lines))
        first = y + height / 2 - 7 * len(lines) + 13
        parts += [_text(edge, first + 14 * place, line, "end") for place, line in enumerate(lines)]
        at = y + height / 2 - 8 * len(entries) + 10
        for bar in entries:
            low, high = (axis(min(1.0, max(0.0, end))) for end in bar.interval)
            whisker = f"M{low:.1f} {at:g}H{high:.1f}M{low:.1f} {at - 4:g}v8M{high:.1f} {at - 4:g}v8"
            parts += [
                tag("path", d=whisker, class_=f"line s{bar.style % COLOURS}"),
                _marker(bar.style, axis(bar.value), at),
                _text(right + 8, at + 4, f"{bar.value:.3f}", "start"),
            ]
            if bar.label:
                parts.append(_text(left - 8, at + 4, bar.label, "end"))
            whose = ", ".join([*name.splitlines(), *([bar.label] if bar.label else [])])
            told.append(f"{whose}: {bar.value:.3f}, {bar.interval[0]:.3f} to {bar.interval[1]:.3f}.")
            at += 16
        y += height + 10
    grid = [tag("path", d=f"M{axis(x / 5):.1f} {top}V{y:g}", class_="grid") for x in range(6)]
    grid += [_text(axis(x / 5), y + 17, _plain(x / 5), "middle") for x in range(6)]
    grid += [_text((left + right) / 2, y + 34, "accuracy, 95 % interval", "middle")]
    return _figure(key, title, " ".join(told), right + 48, y + 42, grid + parts)


def swatch(style: int) -> Html:
    """A sample of a line beside its name in a text."""
    stroke = tag("path", d="M1 8H37", class_=f"line s{style % COLOURS}", stroke_dasharray=_dashes(style))
    return tag("svg", stroke, _marker(style, 19, 8), viewBox="0 0 38 16", class_="swatch", aria_hidden="true")


def _figure(key: str, title: str, description: str, width: float, height: float, parts: Sequence[Html]) -> Html:
    names = {"role": "img", "aria_labelledby": f"{key}-t", "aria_describedby": f"{key}-d"}
    head = (tag("title", title, id=f"{key}-t"), tag("desc", description, id=f"{key}-d"))
    picture = tag("svg", *head, *parts, viewBox=f"0 0 {width:.0f} {height:.0f}", class_="chart", **names)
    return tag("figure", tag("figcaption", title), picture, class_="plot")


def _line(series: Series, x_axis: Axis, y_axis: Axis, goes_on: bool) -> Html:
    at = [(x_axis(x), y_axis(y)) for x, y in series.points]
    path = f"M{at[0][0]:.1f} {at[0][1]:.1f}"
    path += "".join(f"H{x:.1f}V{y:.1f}" if series.held else f"L{x:.1f} {y:.1f}" for x, y in at[1:])
    every = ceil(len(at) / 8)
    # Not the same epochs for every line, or markers would hide each other.
    marked = [point for place, point in enumerate(at) if len(at) <= 8 or place % every == series.style % every]
    if goes_on and marked[-1] == at[-1]:
        marked.pop()
    stroke = tag("path", d=path, class_=f"line s{series.style % COLOURS}", stroke_dasharray=_dashes(series.style))
    return join([stroke, *(_marker(series.style, x, y) for x, y in marked)])


def _marker(style: int, x: float, y: float) -> Html:
    kind, r = style % MARKERS, MARK
    if kind == 0:
        d = f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z"
    elif kind == 5:
        d = f"M{x - r:.1f} {y - r:.1f}l{2 * r} {2 * r}m0 {-2 * r}l{-2 * r} {2 * r}"
    else:
        # Square, triangle up, diamond, triangle down.
        sides, turn = ((4, 0.25), (3, -0.25), (4, 0.0), (3, 0.25))[kind - 1]
        angles = [2 * pi * (corner / sides + (turn if sides == 3 else turn / 2)) for corner in range(sides)]
        d = "M" + "L".join(f"{x + 1.25 * r * cos(a):.1f} {y + 1.25 * r * sin(a):.1f}" for a in angles) + "z"
    return tag("path", d=d, class_=f"mark s{style % COLOURS}")


def _dashes(style: int) -> str | None:
    return DASHES[style % len(DASHES)] or None


def _grid_line(left: float, right: float, y: float, name: str) -> Html:
    stroke = tag("path", d=f"M{left} {y:.1f}H{right}", class_="grid")
    return join([stroke, _text(left - 6, y + 4, name, "end")])


def _text(x: float, y: float, content: str, anchor: str) -> Html:
    return tag("text", content, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)


def _plain(value: float) -> str:
    return f"{value:.4g}"


def _told(series: Series) -> str:
    (first, begin), (last, end) = series.points[0], series.points[-1]
    values = [y for _, y in series.points]
    return (
        f"{series.label}: {_plain(begin)} at epoch {first:.0f}, {_plain(end)} at epoch {last:.0f}, "
        f"between {_plain(min(values))} and {_plain(max(values))}."
    )


def _apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near those wanted, at least `gap` apart where there is room, inside [low, high]."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    placed = [0.0] * len(wanted)
    at = low - gap
    for index in order:
        at = placed[index] = max(wanted[index], at + gap)
    ceiling = high
    for index in reversed(order):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed
