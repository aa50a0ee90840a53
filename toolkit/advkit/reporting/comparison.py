"""Several runs side by side: what they are, what they withstand, how they got there, in what they differ."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from .. import config
from ..evaluation import wilson
from . import charts
from .markup import Html, figure, join, listing, paragraph, section, share, span, table, tag
from .sections import PLOTS
from .sources import Accuracy, Audit, Evaluation, Source, number

Protocol = tuple[str, str, str, int, str, str]
"""Attack, its settings, data set and split, n, checkpoint, weights: what has to agree before two figures compare."""

CURVES = (
    ("train_adversarial_accuracy", "Training, adversarial accuracy"),
    ("validation clean", "Validation, clean"),
    ("validation pgd", "Validation, PGD on the cross-entropy"),
    ("validation cw", "Validation, PGD on the margin"),
)


def comparison(sources: Sequence[Source]) -> Html:
    """The first section of a page of several runs."""
    parts = [
        section("comparison-runs", "The runs", 3, _runs(sources), *_warnings(sources)),
        section("comparison-accuracy", "Accuracy under attack", 3, _evaluated(sources)),
        section("comparison-validation", "Validation at the best epoch", 3, _validated(sources)),
        section("comparison-curves", "Curves", 3, _curves(sources)),
        section("comparison-settings", "Settings that differ", 3, _differences(sources)),
    ]
    return section("comparison", "Comparison", 2, *parts)


def _runs(sources: Sequence[Source]) -> Html:
    rows = []
    for source in sources:
        values, epochs = source.values, source.values.get("run.epochs")
        cost = "–" if source.resolved is None else f"{config.plan(source.resolved)['relative_cost']:.2f}"
        seconds = [number((row.get("seconds") or {}).get("wall")) for row in source.history]
        known = [each for each in seconds if each is not None]
        link = tag("a", source.title, href=f"#{source.key}")
        rows.append(
            (
                tag("span", charts.swatch(source.number - 1), link, class_="named"),
                ", ".join(source.file.plugins or ()) or "none (PGD-AT)",
                figure(values.get("data.name")),
                figure(values.get("model.name")),
                f"{figure(values.get('attack.norm'))} {figure(values.get('attack.eps'))}",
                figure(values.get("run.seed")),
                f"{len(source.history)} of {figure(epochs)}",
                cost,
                f"{sum(known) / len(known):.2f}" if known else "–",
            )
        )
    columns = (
        "run",
        "plugins",
        "data",
        "model",
        "norm, eps",
        ">seed",
        ">epochs",
        ">cost",
        ">seconds an epoch",
    )
    return table("What was trained, and what it costs (PGD-AT: 1)", columns, rows)


def _warnings(sources: Sequence[Source]) -> list[Html]:
    found = []
    if len({_data(source) for source in sources}) > 1:
        each = "; ".join(f"run {source.number}: {_told(source)}" for source in sources)
        found.append(f"The runs differ in their data ({each}); accuracies on different data can not be compared.")
    threats = {(source.values.get("attack.norm"), source.values.get("attack.eps")) for source in sources}
    if len(threats) > 1:
        found.append("The runs differ in norm or eps: their validation figures are of different threats.")
    unfinished = [s for s in sources if len(s.history) < (number(s.values.get("run.epochs")) or 0)]
    if unfinished:
        found.append(f"Not finished: {', '.join(f'run {source.number}' for source in unfinished)}.")
    for source in sources:
        kept = [each for each in source.evaluations.values() if isinstance(each, Evaluation)]
        if any(each.suspect for each in kept):
            found.append(f"Run {source.number} is suspect: its cross-entropy and margin accuracies disagree.")
        alarms = [check for each in kept for check in each.audit or () if check.alarm]
        alarms += [c for c in source.audit.checks if c.alarm] if isinstance(source.audit, Audit) else []
        if alarms:
            names = ", ".join(dict.fromkeys(check.name for check in alarms))
            found.append(f"Run {source.number} raises alarms of the audit: {names}.")
    return [paragraph(tag("strong", "Caution. "), sentence, kind="caution") for sentence in found]


def _data(source: Source) -> object:
    values = source.values
    return source.fingerprint or tuple(str(values.get(f"data.{key}")) for key in ("name", "root", "limit"))


def _told(source: Source) -> str:
    limit = source.values.get("data.limit")
    return f"{figure(source.values.get('data.name'))}{f' with limit {limit}' if limit else ''}"


def _evaluated(sources: Sequence[Source]) -> Html:
    found: dict[Protocol, dict[int, Accuracy]] = {}
    for source in sources:
        for each in source.evaluations.values():
            for protocol, row in _rows(source, each) if isinstance(each, Evaluation) else ():
                runs = found.setdefault(protocol, {})
                # Of two evaluations of one kind the lower counts: a claim holds as far as its strongest attack.
                runs[source.number] = min(runs.get(source.number, row), row, key=lambda one: one.accuracy)
    missing = [source for source in sources if not source.evaluations]
    parts: list[Html] = []
    if found:
        ordered = sorted(found.items(), key=lambda item: (item[0][2:], _place(item[0]), item[0]))
        images = {_images(protocol) for protocol in found}
        shared = images.pop() if len(images) == 1 else ""
        rows = []
        groups = []
        for protocol, runs in ordered:
            name, how = protocol[:2]
            cells = [_cell(runs.get(source.number)) for source in sources]
            rows.append([name, ", ".join(each for each in (how, "" if shared else _images(protocol)) if each), *cells])
            entries = [(s, runs[s.number]) for s in sources if s.number in runs]
            groups.append((name, [charts.Bar(str(s.number), r.accuracy, r.interval, s.number - 1) for s, r in entries]))
        caption = "Accuracy with 95 % interval" + (f": {shared}" if shared else "")
        parts.append(table(caption, ("attack", "on" if not shared else "how", *(s.title for s in sources)), rows))
        parts.append(charts.bars("comparison-bars", "Accuracy of each run, with 95 % intervals", groups))
        both = shlex.join(["advkit", "compare", *(source.path for source in sources)])
        note = "Where intervals overlap, two runs on the same images may differ all the same: "
        parts.append(paragraph(note, tag("code", both), " gives the paired difference."))
    if missing:
        commands = [tag("code", s.command("evaluate", after=("--attacks", "clean,pgd-20,cw-20"))) for s in missing]
        lead = "Not evaluated yet:" if found else "None of the runs has been evaluated yet; these commands do it:"
        parts.append(tag("div", paragraph(lead), listing(commands), class_="missing"))
    return join(parts)


def _rows(source: Source, found: Evaluation) -> Iterator[tuple[Protocol, Accuracy]]:
    data = f"{found.dataset or source.values.get('data.name')} {found.split}"
    on = (data, found.n, found.checkpoint or "", "" if found.weights == "raw" else found.weights or "")
    for row in found.attacks:
        how = "" if not row.eps else f"{row.norm or found.norm} {figure(row.eps)}"
        if row.eps and row.step_size is not None:
            how += f", step {figure(row.step_size)}"
        yield (row.name, how, *on), row
    for norm, worst in found.worst.items():  # over other attacks it is another figure
        over = [row for row in found.attacks if norm == (row.norm or found.norm)]
        names = " ".join(row.name for row in over)
        eps = found.eps if norm == found.norm else max((row.eps or 0 for row in over), default=0)
        yield ("worst case", f"{norm} {figure(eps)} over {names}", *on), worst


def _images(protocol: Protocol) -> str:
    _, _, data, n, checkpoint, weights = protocol
    return ", ".join(
        each for each in (data, f"n = {n}", f"checkpoint {checkpoint}" if checkpoint else "", weights) if each
    )


def _place(protocol: Protocol) -> int:
    """Clean first, the field's own suites last."""
    first = protocol[0].partition("-")[0].partition(":")[0]
    known = ("clean", "fgsm", "pgd", "cw", "square", "transfer", "deepfool", "fab", "apgd", "autoattack", "worst case")
    return known.index(first) if first in known else len(known)


def _cell(row: Accuracy | None) -> Html | str:
    if row is None:
        return "–"
    return join([share(row.accuracy), " ", tag("small", span(row.interval))])


def _validated(sources: Sequence[Source]) -> Html:
    kinds = [kind for kind in ("clean", "pgd", "cw") if any(source.validated(kind) for source in sources)]
    bests = [(source, source.best) for source in sources]
    if not kinds or not any(best for _, best in bests):
        return paragraph("No run has validated an epoch yet.", kind="missing")
    names = {kind: {name for source in sources if (name := source.validated(kind))} for kind in kinds}
    rows = []
    for source, best in bests:
        validation = (best or {}).get("validation")
        cells: list[object] = [source.title, "–" if best is None else str(best["epoch"] + 1)]
        for kind in kinds:
            name = source.validated(kind)
            value = number(validation.get(name)) if isinstance(validation, dict) and name else None
            n = number(validation.get("n")) if isinstance(validation, dict) else None
            if value is None:
                cells.append("–")
            else:
                interval = wilson(value * n, int(n)) if n else None
                label = "" if len(names[kind]) == 1 else f"{name} "
                cells.append(join([label, share(value), " ", tag("small", span(interval)) if interval else None]))
        rows.append(cells)
    columns = ("run", ">best epoch", *(next(iter(each)) if len(each) == 1 else kind for kind, each in names.items()))
    note = "These images chose the epoch, so the figures are optimistic; they are no evaluation."
    return join([table("Accuracy on the validation images, with 95 % interval", columns, rows), paragraph(note)])


def _curves(sources: Sequence[Source]) -> Html:
    plots = []
    for kind, title in (*CURVES, *((kind, title) for kind, _, title in PLOTS)):
        series = [charts.Series(s.title, s.curve(kind), s.number - 1, held=kind == "lr") for s in sources]
        if any(each.points for each in series):
            key = f"comparison-{kind.replace(' ', '-')}"
            accuracy = (kind, title) in CURVES
            plots.append(charts.lines(key, title, series, share=accuracy, log=kind == "lr"))
    return tag("div", *plots, class_="plots") if plots else paragraph("No epoch has ended yet.", kind="missing")


def _differences(sources: Sequence[Source]) -> Html:
    keys = list(dict.fromkeys(key for source in sources for key in source.values))
    rows = []
    for key in keys:
        holders = [source for source in sources if key in source.values]
        cells = [figure(source.values[key], 6) if source in holders else "–" for source in sources]
        if len(holders) > 1 and len(set(cells)) > 1:  # an option that one run has is listed there
            rows.append([tag("code", key), *cells])
    if not rows:
        return paragraph("Every setting that the runs share is equal; plugins are in the first table.")
    return table("Values by run", ("setting", *(source.title for source in sources)), rows)
