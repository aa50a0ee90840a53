"""The section on `advkit analyze`: pictures, and figures in the words of the command."""

from __future__ import annotations

from ..analysis.words import figure_rows
from ..documents import number
from .markup import Html, figure, join, listing, paragraph, section, sentences, table, tag
from .recorded import ANALYSES, Analysis
from .samples import data_uri
from .sources import Source

HEAD = {"analysis", "run", "dataset", "model", "checkpoint", "weights", "epoch", "selected_on", "split", "n", "norm"}
HEAD |= {
    "eps",
    "attack",
    "figures",
    "versions",
    "kind",
    "index",
    "sha256_of_weights",
    "another_net",
    "notes",
    "images",
    "pictures",
}
"""What title, caption and the rest of the page say."""


def analyses(source: Source) -> Html:
    """Pictures and figures of `advkit analyze`."""
    parts = [
        section(f"{source.key}-analysis-{count}", _title(found), 4, _analysis(found, source.outdated(found.record)))
        for count, found in enumerate(source.analyses, 1)
    ]
    made = {analysis.kind for analysis in source.analyses}
    possible = [name for name in ANALYSES if name != "budget" or source.has_budgets]
    absent = [] if source.closed else [name for name in possible if name not in made]
    if source.closed and not made:
        parts.append(paragraph("Not analysed: ", sentences(source.closed), kind="missing"))
    source.without_pictures += [problem for found in source.analyses for problem in found.problems]
    if absent and not source.analyses:
        source.without_pictures.append(f"No analysis has been made yet: {source.command('analyze', absent[0])} is one.")
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


def _analysis(found: Analysis, outdated: str) -> Html:
    parts = [paragraph(_caption(found)), *(paragraph(problem, kind="missing") for problem in found.problems)]
    if outdated:
        parts.append(paragraph(tag("strong", "Caution. "), f"This analysis is {outdated}.", kind="caution"))
    beside: list[Html] = []
    if found.picture is not None:
        alt = f"Picture of the analysis {_title(found)}; its figures follow."
        beside.append(tag("figure", tag("img", src=data_uri(*found.picture), alt=alt, class_="paper")))
    rows, left = figure_rows(found.kind, found.record)
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
    if record.judged_on:
        facts.append(record.judged_on)
    if attack := record.attack:
        facts.append(f"{attack.get('name')} at eps {figure(attack.get('eps'))} ({attack.get('norm')})")
    return f"{', '.join(facts)}."


def _nested(value: object) -> bool:
    return isinstance(value, (list, dict))
