"""What several runs withstand, on equal terms: one table for each set of images and checkpoint."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ... import own_file
from ...errors import OptionError
from ...evaluation.statistics import wilson
from ...own_file import OwnFile
from ..compare import apart, incomparable
from ..records import Accuracy, AttackRow, Evaluation
from . import charts
from .attacks import Attack
from .markup import Html, details, figure, join, listing, paragraph, sentences, share, span, table, tag
from .sources import Source


class Images(NamedTuple):
    """What two evaluations must share before their accuracies compare."""

    data: str
    split: str
    n: int
    checkpoint: str
    sha256: str = ""
    """Of the whole split: two runs may call different images by one name."""

    def __str__(self) -> str:
        which = f", checkpoint {self.checkpoint}" if self.checkpoint else ""
        return f"{self.data} {self.split}, n = {self.n}{which}"


class Found(NamedTuple):
    """A row, and the evaluation of its run that has it."""

    row: AttackRow
    evaluation: str
    averaged: bool


class Line(NamedTuple):
    """A line of a table: its name there and in the chart, how it was attacked, and the runs' accuracies."""

    name: str
    how: str
    short: str
    cells: Mapping[int, Accuracy]


Group = dict[Attack, dict[int, Found]]
"""By attack and the number of the run."""


def accuracies(sources: Sequence[Source]) -> Html:
    """A chart and a table of the images that most runs share, then whatever else has been evaluated."""
    parts: list[Html] = []
    problems: list[str] = []
    groups = _groups(sources, problems)
    shared = _shared(groups, _judged(sources))
    tables = {}
    names = Counter(map(str, groups))
    for images in sorted(groups, key=lambda one: (one != shared, -one.n, one)):
        lines = _lines(sources, groups[images], problems)
        rows = [[_named(line), *(_cell(line.cells.get(source.number)) for source in sources)] for line in lines]
        other = f", images {images.sha256[:8] or 'unknown'}" if names[str(images)] > 1 else ""
        averaged = _averaged(groups[images])
        caption = f"Accuracy with 95 % interval: {images}{other}{_choice(sources, images)}{averaged}"
        tables[images] = table(caption, ("attack", *(source.title for source in sources)), rows)
        if images == shared and any(len(line.cells) > 1 for line in lines):
            parts += [legend(sources), _chart(images, averaged, lines)]
    if shared:
        parts.append(tables.pop(shared))
    elif sum(bool(source.evaluations) for source in sources) > 1:
        lead = "No two runs have been evaluated on the same number of test images at the best checkpoint."
        parts.append(paragraph(lead, kind="missing"))
    rest = list(tables.values())
    if shared and rest:
        parts.append(details(f"On other images or checkpoints ({len(rest)})", *rest))
    else:
        parts += rest
    parts += [paragraph(f"Run {source.number}: {note}.") for source in sources for note in _apart(source)]
    parts += [paragraph(problem, kind="missing") for problem in dict.fromkeys(problems)]
    if groups and (alike := _comparable(sources)):
        files = {key: file for source in alike for key, file in _files(source).items()}
        both = shlex.join(["advkit", "compare", *(source.path for source in alike), *own_file.words(files)])
        note = "Where intervals overlap, two runs on the same images may differ all the same: "
        parts.append(paragraph(note, tag("code", both), " gives the paired difference."))
    unjudged = [source for source in sources if not source.evaluations]
    missing = [source for source in unjudged if not source.closed]
    for source in unjudged:
        if source.closed:
            parts.append(paragraph(f"Run {source.number} is not evaluated: ", sentences(source.closed), kind="missing"))
    if missing:
        commands = [tag("code", s.command("evaluate", after=("--attacks", "clean,pgd-20,cw-20"))) for s in missing]
        lead = "Not evaluated yet:" if groups else "None of the runs has been evaluated yet; these commands do it:"
        parts.append(tag("div", paragraph(lead), listing(commands), class_="missing"))
    return join(parts)


def _comparable(sources: Sequence[Source]) -> list[Source]:
    """The most runs that `advkit compare` takes together; none where it takes no two."""
    able = [(source, source.resolved) for source in sources if source.resolved is not None and not source.closed]
    groups = [
        [
            other
            for other, its in able
            if not incomparable(first, its, "", "")
            and first.data == its.data
            and source.fingerprint == other.fingerprint  # the same images of the same set
            and _one_file_each(_files(source), _files(other))
        ]
        for source, first in able
    ]
    return max((group for group in groups if len(group) > 1), key=len, default=[])


def _files(source: Source) -> Mapping[str, OwnFile]:
    return source.file.files


def _one_file_each(own: Mapping[str, OwnFile], others: Mapping[str, OwnFile]) -> bool:
    """Whether one --model and one --dataset are those of both runs."""
    pairs = [(own[key], others[key]) for key in own.keys() & others.keys()]
    return all((a.path, a.name, a.recorded) == (b.path, b.name, b.recorded) for a, b in pairs)


def legend(sources: Sequence[Source]) -> Html:
    """Which number and which line is which run."""
    return listing((join([charts.swatch(source.number - 1), source.title]) for source in sources), class_="key")


def _groups(sources: Sequence[Source], problems: list[str]) -> dict[Images, Group]:
    groups: dict[Images, Group] = {}
    for source in sources:
        for name, found in source.evaluations.items():
            if isinstance(found, str):
                problems.append(f"An evaluation of run {source.number} is left out: {found}")
                continue
            if why := source.outdated(found):
                problems.append(f"An evaluation of run {source.number} at n = {found.n} is left out: it is {why}.")
                continue
            data = found.dataset or str(source.values.get("data.name"))
            judged = found.checkpoint == ("last" if source.standard else "best")
            checkpoint = _judged(sources) if judged else found.checkpoint or ""
            images = Images(data, found.split or "", found.n, checkpoint, source.split_of(name, found))
            group = groups.setdefault(images, {})
            for row in found.attacks:
                runs = group.setdefault(Attack.of(row, found.norm), {})
                held = runs.get(source.number)
                # Of two evaluations of one kind the lower counts: a claim holds as far as its strongest attack.
                if held is None or row.accuracy < held.row.accuracy:
                    runs[source.number] = Found(row, name, found.averaged)
    return groups


def _choice(sources: Sequence[Source], images: Images) -> str:
    """How the images of a table were chosen, as the first evaluation of so many says."""
    evaluations = [found for source in sources for found in source.evaluations.values() if not isinstance(found, str)]
    said = (found.images for found in evaluations if (found.split, found.n) == (images.split, images.n))
    return next((f" ({words})" for words in said if words), "")


def _averaged(group: Group) -> str:
    """Whose averaged weights a table is of; those of its other runs are raw."""
    numbers = sorted({number for runs in group.values() for number, found in runs.items() if found.averaged})
    which = f"run{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
    return f"; averaged weights: {which}" if numbers else ""


def _apart(source: Source) -> list[str]:
    judged = [each for each in source.evaluations.values() if isinstance(each, Evaluation)]
    weights = {each.checkpoint: each.weights for each in judged if not source.outdated(each)}
    return apart(weights.get("best"), weights.get("last"))


def _judged(sources: Sequence[Source]) -> str:
    """The checkpoint that is judged where none is named, of all runs in one word."""
    return "best, of standard training last" if any(source.standard for source in sources) else "best"


def _shared(groups: Mapping[Images, Group], judged: str) -> Images | None:
    """The test images that most runs share at the checkpoint that is `judged`, of two such the more."""
    counts = {images: len(set().union(*group.values())) for images, group in groups.items()}
    several = [one for one in groups if counts[one] > 1 and one.split == "test" and one.checkpoint == judged]
    return max(several, key=lambda one: (counts[one], one.n, one), default=None)


def _lines(sources: Sequence[Source], group: Group, problems: list[str]) -> list[Line]:
    """In the runs' own ball first; each ball ends with the worst case over what the runs share there."""
    balls = {f"{source.values.get('attack.norm')} {figure(source.values.get('attack.eps'))}" for source in sources}
    usual = balls.pop() if len(balls) == 1 else None
    lines = []
    threats = sorted({attack.threat for attack in group}, key=lambda threat: (threat != "", threat != usual, threat))
    for threat in threats:
        ball = "" if threat == usual else threat
        attacks = sorted((attack for attack in group if attack.threat == threat), key=lambda one: (one.place, one))
        for attack in attacks:
            apart = attack.apart(attacks)
            how = ", ".join(dict.fromkeys(filter(None, (threat, attack.pace, *apart))))
            short = "\n".join(filter(None, (attack.name, ball, *apart)))
            cells: dict[int, Accuracy] = {number: found.row for number, found in group[attack].items()}
            lines.append(Line(attack.name, how, short, cells))
        if threat:
            shared, worst = _worst(sources, {attack: group[attack] for attack in attacks}, problems)
            names = [f"{a.name} ({', '.join(own)})" if (own := a.apart(attacks)) else a.name for a in shared]
            over = f"over {', '.join(names)}" if names else "no attack is shared"
            lines.append(Line("worst case", f"{threat}, {over}", "\n".join(filter(None, ("worst case", ball))), worst))
    return lines


def _worst(sources: Sequence[Source], group: Group, problems: list[str]) -> tuple[list[Attack], dict[int, Accuracy]]:
    """Over the attacks that all runs share which were attacked in this ball at all, from the verdicts by image."""
    runs = set().union(*group.values())
    shared = [attack for attack, found in group.items() if found.keys() == runs]
    cells: dict[int, Accuracy] = {}
    for source in sources:
        if source.number not in runs or not shared:
            continue
        try:
            columns = [_withstood(source, group[attack][source.number]) for attack in shared]
        except OptionError as error:
            problems.append(f"No worst case of run {source.number}: {error}")
            continue
        n, robust = len(columns[0]), sum(map(all, zip(*columns, strict=True)))
        low, high = wilson(robust, n)
        cells[source.number] = Accuracy(accuracy=robust / n, interval=(low, high))
    return shared, cells


def _withstood(source: Source, found: Found) -> list[bool]:
    return source.withstood(found.evaluation)[found.row.column or found.row.name]


def _chart(images: Images, averaged: str, lines: Sequence[Line]) -> Html:
    """The lines that two or more runs have."""
    drawn = [(line.short, line.cells) for line in lines if len(line.cells) > 1]
    numbers = sorted(set().union(*(cells for _, cells in drawn)))
    who = f"the most that runs {', '.join(map(str, numbers))} share{averaged}"
    groups = [
        (name, [charts.Bar(str(n), cells[n].accuracy, cells[n].interval, n - 1) for n in sorted(cells)])
        for name, cells in drawn
    ]
    return charts.bars("comparison-bars", f"Accuracy with 95 % intervals: {images}, {who}", groups)


def _named(line: Line) -> Html | str:
    return join([line.name, " ", tag("small", line.how)]) if line.how else line.name


def _cell(row: Accuracy | None) -> Html | str:
    if row is None:
        return "–"
    return join([share(row.accuracy), " ", tag("small", span(row.interval))])
