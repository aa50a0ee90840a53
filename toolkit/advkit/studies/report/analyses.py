"""The section on `advkit analyze`: pictures, and figures in the words of the command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .markup import Html, figure, join, listing, paragraph, section, table, tag
from .records import number
from .samples import data_uri
from .sources import ANALYSES, Analysis, Source

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
        "disordered": ("never up to the cap (disordered)", "%"),
        "undefined": ("no direction (undefined)", ""),
    },
    "landscape": {
        "loss_at_x": ("loss at x", "nats"),
        "highest": ("highest loss", "nats"),
        "lowest": ("lowest loss", "nats"),
        "skipped": ("images without a direction", ""),
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
HEAD = {"analysis", "run", "dataset", "model", "checkpoint", "weights", "epoch", "selected_on", "split", "n", "norm"}
HEAD |= {"eps", "attack", "figures", "versions", "kind", "index", "sha256_of_weights"}
"""What title, caption and the rest of the page say."""


def analyses(source: Source) -> Html:
    """Pictures and figures of `advkit analyze`."""
    parts = [
        section(f"{source.key}-analysis-{count}", _title(found), 4, _analysis(found))
        for count, found in enumerate(source.analyses, 1)
    ]
    absent = [name for name in ANALYSES if name not in {found.kind for found in source.analyses}]
    if absent:
        commands = [tag("code", source.command("analyze", name)) for name in absent]
        lead = "Not made yet:" if source.analyses else "No analysis has been made yet; these commands make them:"
        parts.append(tag("div", paragraph(lead), listing(commands), class_="missing"))
    return join(parts)


def _title(found: Analysis) -> str:
    """Names are no guide: a landscape of an older version is landscape.json whatever its plane."""
    plane, index = found.record.get("kind"), found.record.get("index")
    if found.kind != "landscape" or plane is None:
        return found.name
    which = f"mean of {figure(found.record.get('n'))} images" if index is None else f"image {figure(index)}"
    return f"landscape, {plane}, {which}"


def _analysis(found: Analysis) -> Html:
    parts = [paragraph(_caption(found)), *(paragraph(problem, kind="missing") for problem in found.problems)]
    beside: list[Html] = []
    if found.picture is not None:
        alt = f"Picture of the analysis {_title(found)}; its figures follow."
        beside.append(tag("figure", tag("img", src=data_uri(*found.picture), alt=alt, class_="paper")))
    rows, left = _figures(found)
    left |= {key: value for key, value in found.record.items() if key not in HEAD}
    rows += [(key.replace("_", " "), figure(value, 5)) for key, value in left.items() if not _nested(value)]
    if rows:
        beside.append(table(f"{_title(found)}: figures", ("figure", "value"), rows))
    if nested := [key for key, value in left.items() if _nested(value)]:
        parts.append(paragraph(f"More is in the file: {', '.join(nested)}."))
    return join([*parts, tag("div", *beside, class_="beside") if beside else None])


def _caption(found: Analysis) -> str:
    record, facts = found.record, [f"analysis/{found.name}.json"]
    if record.get("checkpoint") is not None:
        epoch = number(record.get("epoch"))
        facts.append(f"checkpoint {record['checkpoint']}" + ("" if epoch is None else f" (epoch {epoch + 1:.0f})"))
    if record.get("weights") not in (None, "raw"):
        facts.append(f"{record['weights']} weights")
    if record.get("split") is not None:
        facts.append(f"{record['split']} split")
    if record.get("n") is not None:
        facts.append(f"n = {figure(record['n'])}")
    if isinstance(attack := record.get("attack"), Mapping):
        facts.append(f"{attack.get('name')} at eps {figure(attack.get('eps'))} ({attack.get('norm')})")
    return f"{', '.join(facts)}."


def _nested(value: object) -> bool:
    return isinstance(value, (list, dict))


def _figures(found: Analysis) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """Figures that have words, in their order, and what is left."""
    given = found.record.get("figures")
    left: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {}
    left.pop("n", None)
    rows = []
    for key, (name, unit) in WORDS[found.kind].items():
        if key not in left:
            continue
        value, whole = number(left[key]), isinstance(left.pop(key), int)
        digits = 0 if whole else 3 if unit else 4
        text = "–" if value is None else f"{100 * value:.2f} %" if unit == "%" else f"{value:.{digits}f} {unit}"
        place = [number(left.pop(f"{key}_at_{axis}", None)) for axis in ("first", "second")]
        if None not in place:
            text += f" at ({place[0]:.3g}, {place[1]:.3g})"
        rows.append((name, text.rstrip()))
    lists = (
        ("classes", 5, "hardest classes (mean eps_i)", "{class} ({mean:.4f})"),
        ("hardest", 8, "hardest samples, index (class)", "{index} ({class})"),
    )
    for key, most, name, how in lists:
        try:
            rows.append((name, ", ".join(how.format_map(each) for each in left[key][:most])))
        except (KeyError, TypeError, ValueError):  # absent, or of another version
            continue
        del left[key]
    return rows, left
