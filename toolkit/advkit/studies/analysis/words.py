"""The figures of an analysis in words: the same in the table of the command and on the report's page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..documents import number
from ..records import AnalysisRecord

WORDS: dict[str, dict[str, tuple[str, str]]] = {
    "vulnerability": {
        "mean": ("AV mean", "nats"),
        "sd": ("AV SD", "nats"),
        "top_10": ("top 10 %", "nats"),
        "bottom_10": ("bottom 10 %", "nats"),
        "at_least_1": ("AV >= 1", "%"),
        "at_most_0": ("AV <= 0", "%"),
    },
    "margin": {
        "mean": ("mu mean", "L2"),
        "mean_flipped": ("mu mean, flipped ones", "L2"),
        "q10": ("mu 10 % quantile", "L2"),
        "q50": ("mu 50 % quantile", "L2"),
        "q90": ("mu 90 % quantile", "L2"),
        "mean_mu_eps": ("mu_eps mean", "L2"),
        "within_third_of_eps": ("mu <= mu_eps / 3", "%"),
        "within_eps": ("mu <= mu_eps", "%"),
        "beyond_twice_eps": ("mu > 2 mu_eps", "%"),
        "disordered": ("never up to {cap} (disordered)", "%"),
        "undefined": ("no direction (undefined)", ""),
    },
    "landscape": {
        "loss_at_x": ("loss at x", "nats"),
        "highest": ("highest loss", "nats"),
        "lowest": ("lowest loss", "nats"),
        "skipped": ("images left out", ""),
    },
    "budget": {
        "mean": ("eps_i mean", ""),
        "sd": ("eps_i SD", ""),
        **{f"q{share}": (f"eps_i {int(share)} % quantile", "") for share in ("00", "25", "50", "75", "100")},
        "at_0": ("share with eps_i = 0", "%"),
        "at_q100": ("share at the 100 % quantile", "%"),
        "at_largest": ("share at its largest", "%"),
    },
}
"""Of a figure by its key: its name and its unit."""

LISTS = (
    ("classes", 5, "hardest classes (mean eps_i)", "{class} ({mean:.4f})"),
    ("hardest", 8, "hardest samples, index (class)", "{index} ({class})"),
)
"""Of a figure that is a list: how many are shown, its name, and how each is."""

PLANES = {
    "cat": "cat: x + a sign(grad CE) + b r, r random signs; no attack",
    "iseat": "iseat: x + alpha delta / ||delta|| + beta u / ||u||, u uniform noise",
}


def figure_rows(analysis: str, record: AnalysisRecord) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """Names and values of the figures that have words, in their order, and the figures that have none."""
    left: dict[str, Any] = dict(record.figures)
    left.pop("n", None)
    cap, largest = number(record.get("cap")), number(left.get("q100"))
    rows, known = [], number(left.get("mean")) is not None
    for key, (name, unit) in WORDS[analysis].items():
        if key not in left:
            continue
        value, whole = number(left[key]), isinstance(left.pop(key), int)
        digits = 0 if whole else 3 if unit else 4
        # Shares of margins: those without a direction have no mean either.
        unknown = "not known: the cap is too low" if known and unit == "%" else "–"
        text = unknown if value is None else f"{100 * value:.2f} %" if unit == "%" else f"{value:.{digits}f} {unit}"
        place = [number(left.pop(f"{key}_at_{axis}", None)) for axis in ("first", "second")]
        if None not in place:
            text += f" at ({place[0]:.3g}, {place[1]:.3g})"
        if key == "at_q100" and largest is not None:
            text += f" (eps_i = {largest:.4f})"
        rows.append((name.format(cap="the cap" if cap is None else f"{cap:g}"), text.rstrip()))
    for key, most, name, how in LISTS:
        try:
            rows.append((name, ", ".join(how.format_map(entry) for entry in left[key][:most])))
        except (KeyError, TypeError, ValueError):  # absent, or of another version
            continue
        del left[key]
    return rows, left


def setting_rows(analysis: str, record: AnalysisRecord | Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a person needs to read the figures."""
    if analysis == "landscape":
        unit = "pixels in [0, 1]" if record["kind"] == "cat" else "L2"
        return [
            ("kind", PLANES[record["kind"]]),
            *([] if record["index"] is None else [("image", str(record["index"]))]),
            ("extent", f"-{record['extent']:.4g} to {record['extent']:.4g}, {unit}"),
            ("clipped to [0, 1]", "yes" if record["clip"] else "no"),
        ]
    if analysis == "budget":
        cap = "none known" if record["eps_max"] is None else f"{record['eps_max']:.4f}"
        return [
            ("unit of eps_i", "pixels in [0, 1]" if record["norm"] == "linf" else "L2"),
            ("cap of eps_i (eps_max)", cap),
            ("largest possible radius", f"{record['largest_radius']:.4f}"),
        ]
    return []
