"""Several runs side by side: what they are, what they withstand, how they got there, in what they differ."""

from __future__ import annotations

from collections.abc import Sequence

from ...compose.replaced import without_plugins
from ...config.request import registered
from ...evaluation.statistics import wilson
from ...training.cost import cost_words
from ...training.plan import plan
from ..documents import number
from ..kept import net_named
from . import charts
from .accuracies import accuracies, legend
from .alarms import alarms
from .markup import Html, figure, join, paragraph, section, share, span, table, tag
from .sections import PLOTS
from .sources import Source

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
        section("comparison-accuracy", "Accuracy under attack", 3, accuracies(sources)),
        section("comparison-validation", "Validation at the best epoch", 3, _validated(sources)),
        section("comparison-curves", "Curves", 3, _curves(sources)),
        section("comparison-settings", "Settings that differ", 3, _differences(sources)),
    ]
    return section("comparison", "Comparison", 2, *parts)


def _runs(sources: Sequence[Source]) -> Html:
    rows = []
    for source in sources:
        values, epochs = source.values, source.values.get("run.epochs")
        cost = "–" if source.resolved is None else cost_words(plan(source.resolved, past=True))
        seconds = [number((row.get("seconds") or {}).get("wall")) for row in source.history]
        known = [each for each in seconds if each is not None]
        link = tag("a", source.title, href=f"#{source.key}")
        rows.append(
            (
                tag("span", charts.swatch(source.number - 1), link, class_="named"),
                ", ".join(source.file.names) or f"none ({without_plugins(values)})",
                figure(values.get("data.name")),
                net_named(values),
                "–" if source.standard else f"{figure(values.get('attack.norm'))} {figure(values.get('attack.eps'))}",
                figure(values.get("run.seed")),
                f"{source.done} of {figure(epochs)}",
                cost,
                f"{sum(known) / len(known):.2f}" if known else "–",
            )
        )
    columns = (
        "run",
        "plugins",
        "data",
        "model",
        "attacked in",
        ">seed",
        ">epochs",
        "cost of a step",
        ">seconds an epoch",
    )
    return table("What was trained, and what it costs", columns, rows)


def _warnings(sources: Sequence[Source]) -> list[Html]:
    found = []
    if len({_data(source) for source in sources}) > 1:
        each = "; ".join(f"run {source.number}: {_told(source)}" for source in sources)
        found.append(f"The runs differ in their data ({each}); accuracies on different data can not be compared.")
    threats = {(source.values.get("attack.norm"), source.values.get("attack.eps")) for source in sources}
    if len(threats) > 1:
        found.append("The runs differ in norm or eps: their validation figures are of different threats.")
    if unfinished := [source for source in sources if not source.finished]:
        found.append(f"Not finished: {', '.join(f'run {source.number}' for source in unfinished)}.")
    for source in sources:
        found += [f"Run {source.number}: {sentence}." for sentence in (*source.doubts, source.optimistic) if sentence]
        if raised := alarms(source):
            found.append(f"Run {source.number} raises alarms: {raised}.")
    return [paragraph(tag("strong", "Caution. "), sentence, kind="caution") for sentence in found]


def _data(source: Source) -> object:
    values = source.values
    return source.fingerprint or tuple(str(values.get(f"data.{key}")) for key in ("name", "root", "limit", "balance"))


def _told(source: Source) -> str:
    limit = source.values.get("data.limit")
    name = str(source.values.get("data.name"))
    which = "" if registered(name) or not source.fingerprint else f", SHA-256 {source.fingerprint[:8]}"
    return f"{figure(name)}{f' with limit {limit}' if limit else ''}{which}"


def _file(source: Source) -> str:
    file = source.file.files.get("model.name")
    return file.recorded if file else ""


def _validated(sources: Sequence[Source]) -> Html:
    kinds = [kind for kind in ("clean", "pgd", "cw") if any(source.validated(kind) for source in sources)]
    bests = [(source, source.best) for source in sources]
    if not kinds or not any(best for _, best in bests):
        return paragraph("No run has validated an epoch yet.", kind="missing")
    names = {kind: {name for source in sources if (name := source.validated(kind))} for kind in kinds}
    rows = []
    for source, best in bests:
        validation = (best or {}).get("validation")
        n = int(number(validation.get("n")) or 0) if isinstance(validation, dict) else 0
        cells: list[object] = [source.title, "–" if best is None else str(best["epoch"] + 1), str(n or "–")]
        for kind in kinds:
            name = source.validated(kind)
            value = number(validation.get(name)) if isinstance(validation, dict) and name else None
            if value is None:
                cells.append("–")
            else:
                interval = wilson(value * n, n) if n else None
                label = "" if len(names[kind]) == 1 else f"{name} "
                cells.append(join([label, share(value), " ", tag("small", span(interval)) if interval else None]))
        rows.append(cells)
    columns = (
        "run",
        ">best epoch",
        ">images",
        *(next(iter(each)) if len(each) == 1 else kind for kind, each in names.items()),
    )
    note = "These images chose the epoch, so the figures are optimistic; they are no evaluation."
    return join([table("Accuracy on the validation images, with 95 % interval", columns, rows), paragraph(note)])


def _curves(sources: Sequence[Source]) -> Html:
    plots = []
    for kind, title in (*CURVES, *((kind, title) for kind, _, title in PLOTS)):
        series = [charts.Series(s.title, s.curve(kind), s.number - 1, kind == "lr", str(s.number)) for s in sources]
        if any(each.points for each in series):
            key = f"comparison-{kind.replace(' ', '-')}"
            accuracy = (kind, title) in CURVES
            plots.append(charts.lines(key, title, series, share=accuracy, log=kind == "lr"))
    if not plots:
        return paragraph("No epoch has ended yet.", kind="missing")
    return join([legend(sources), tag("div", *plots, class_="plots")])


def _differences(sources: Sequence[Source]) -> Html:
    keys = list(dict.fromkeys(key for source in sources for key in source.values))
    rows = []
    for key in keys:
        holders = [source for source in sources if key in source.values]
        cells = [figure(source.values[key], 6) if source in holders else "–" for source in sources]
        if len(holders) > 1 and len(set(cells)) > 1:  # an option that one run has is listed there
            rows.append([tag("code", key), *cells])
    begun = [source.folder.init_from() for source in sources]
    if len({*begun}) > 1:
        rows.append([tag("code", "--init-from"), *(path or "–" for path in begun)])
    for label, digests in (
        ("SHA-256 of the net's file", [_file(source) for source in sources]),
        ("SHA-256 of the training images", [source.fingerprint for source in sources]),
    ):
        if len({digest for digest in digests if digest}) > 1:
            rows.append([label, *(digest[:12] if digest else "–" for digest in digests)])
    if not rows:
        return paragraph("Every setting that the runs share is equal; plugins are in the first table.")
    return table("Values by run", ("setting", *(source.title for source in sources)), rows)
