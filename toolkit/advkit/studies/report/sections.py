"""The sections on one run. Each returns its content; what is not there is a sentence with the command that makes it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from ...data.base import Splits
from ...errors import AdvkitError
from ...evaluation.audit.checks import Check
from ...training.cost import cost_words
from ...training.notes import CHOSEN_ON_TEST
from ...training.plan import plan
from ...types import Passes
from ..kept import validated_on
from ..records import AttackRow, Evaluation
from . import charts
from .alarms import short_alarms, told
from .markup import Html, details, figure, join, listing, paragraph, section, sentences, share, span, table, tag
from .samples import SHOWN, STEPS, data_uri, draw
from .sources import Source

Data = Callable[[Source], Splits]

KINDS = [kind.name for kind in fields(Passes)]

SHARES = (
    ("train_adversarial_accuracy", "train-adv"),
    ("validation clean", "val-clean"),
    ("validation pgd", "val-{}"),
    ("validation cw", "val-{}"),
)
PLOTS = (
    ("loss", "loss", "Training loss"),
    ("lr", "lr", "Learning rate"),
    ("mean_radius", "radius", "Mean radius of the attack, pixels in [0, 1]"),
)


def settings(source: Source) -> Html:
    """Who answers what, what it costs, and every setting with its origin."""
    parts: list[Html] = []
    if source.resolved is None:
        parts.append(paragraph("The plan is not known: ", sentences(source.unresolved), kind="missing"))
    else:
        parts += _plan(plan(source.resolved, past=True))
    origins = source.origins
    rows = [(tag("code", key), figure(value, 6), origins.get(key, "run.toml")) for key, value in source.values.items()]
    notable = [row for row in rows if row[2] != "default"]
    columns = ("setting", "value", "from")
    if origins and notable:
        parts.append(table("Settings that are no defaults", columns, notable))
        if any("given" in row[2] for row in notable):
            parts.append(paragraph("given: typed, or from a file or recipe; the command is under Environment."))
    folded = "defaults" if origins else None  # three pages a run
    parts.append(details(f"All {len(rows)} settings", table("All settings", columns, rows), kind=folded))
    return join(parts)


def _plan(plan: Mapping[str, Any]) -> list[Html]:
    added = plan["companions"]
    rows = [
        (
            tag("code", hook),
            ", ".join(f"{owner} (added by {added[owner]['for']})" if owner in added else owner for owner in owners),
            plan["rules"][hook],
        )
        for hook, owners in plan["hooks"].items()
        if hook not in ("setup", "commit_attack")
    ]
    if "base_loss" not in plan["hooks"]:
        rows.append((tag("code", "base_loss"), "core: soft cross-entropy on x_adv", "exclusive"))
    parts = [table("Composition: who answers which hook", ("hook", "owner", "rule"), rows)]
    passes = [counts for stage in plan["stages"] for counts in stage["passes"].values()]
    kinds = [kind for kind in KINDS if not kind.startswith("auxiliary") or any(kind in counts for counts in passes)]
    steps = [
        (
            f"from epoch {stage['from_epoch'] + 1}",
            phase,
            *(figure(counts.get(kind, 0)) for kind in kinds),
        )
        for stage in plan["stages"]
        for phase, counts in stage["passes"].items()
    ]
    columns = ("when", "phase", *(f">{kind.replace('_', ' ')}" for kind in kinds))
    parts.append(table("Passes per step", columns, steps))
    facts = [f"Cost: {cost_words(plan)}."]
    facts += [
        f"Beside the model: {name}, from {source}, whose forwards are auxiliary ones, and not in the cost."
        for name, source in plan["modules"].items()
    ]
    if plan["state"]:
        facts.append(f"State that plugins keep: {', '.join(plan['state'])}.")
    cautions = [caution(f"{sentence}.") for sentence in plan["cautions"]]
    return [*parts, paragraph(" ".join(facts)), *cautions]


def curves(source: Source) -> Html:
    """metrics.jsonl as charts and as a table."""
    resume = source.command("train", "--resume")
    lost = [paragraph(f"{source.lost}.", kind="missing")] if source.lost else []
    if lost and not source.history:
        return join(lost)
    if not source.history:
        return paragraph("No epoch has ended yet; ", tag("code", resume), " continues the run.", kind="missing")
    best = None if source.best is None else float(source.best["epoch"] + 1)
    drawn = [
        charts.Series(name.format(source.validated(kind.partition(" ")[2])), source.curve(kind), style)
        for style, (kind, name) in enumerate(SHARES)
    ]
    plots = []
    if any(each.points for each in drawn):
        plots.append(
            charts.lines(f"{source.key}-accuracy", "Accuracy in training and validation", drawn, share=True, best=best)
        )
    for kind, _, title in PLOTS:
        points = source.curve(kind)
        if points:
            series = [charts.Series(source.name, points, 0, held=kind == "lr")]
            plots.append(charts.lines(f"{source.key}-{kind}", title, series, log=kind == "lr"))
    found = [(kind, name) for kind, name, *_ in (*SHARES, *PLOTS) if source.curve(kind)]
    by_epoch = {kind: dict(source.curve(kind)) for kind, _ in found}
    heads = [name.format(source.validated(kind.partition(" ")[2])) for kind, name in found]
    rows = [
        [str(epoch), *(figure(by_epoch[kind].get(float(epoch))) for kind, _ in found)]
        for epoch in (row["epoch"] + 1 for row in source.history)
    ]
    figures = table("Figures of every epoch", [">epoch", *(f">{head}" for head in heads)], rows)
    images = validated_on(source.history, source.values)
    lead = join([tag("div", *plots, class_="plots"), paragraph(f"Validation: {images}.") if images else None])
    parts = [lead, details(f"All {len(rows)} epochs as figures", figures)]
    parts += lost
    if source.cut_short:
        cut = "The last line of metrics.jsonl is unfinished and not shown; unless the run goes on now, "
        parts.append(paragraph(cut, tag("code", resume), " mends it.", kind="missing"))
    return join(parts)


def evaluations(source: Source) -> Html:
    """Accuracies under attack, with their intervals and their audit."""
    if not source.evaluations:
        if source.closed:
            return paragraph("Not evaluated: ", sentences(source.closed), kind="missing")
        command = source.command("evaluate", after=("--attacks", "clean,pgd-20,cw-20"))
        return paragraph("Not evaluated yet; ", tag("code", command), " does it.", kind="missing")
    parts = []
    for count, (name, found) in enumerate(source.evaluations.items(), 1):
        key = f"{source.key}-evaluation-{count}"
        content = paragraph(found, kind="missing") if isinstance(found, str) else _evaluation(source, key, found)
        parts.append(section(key, name, 4, content))
    return join(parts)


def _evaluation(source: Source, key: str, found: Evaluation) -> Html:
    checkpoint = found.checkpoint or "–"
    if found.epoch is not None:
        checkpoint += f" (epoch {found.epoch + 1})"
    facts = [
        f"checkpoint {checkpoint}",
        f"{found.dataset + ', ' if found.dataset else ''}{found.judged_on}",
        f"{found.norm}, eps {figure(found.eps)}" + ("" if found.seed is None else f", seed {found.seed}"),
    ]
    parts = [paragraph("; ".join(facts), ".")]
    if why := source.outdated(found):
        parts.append(caution(f"This evaluation is {why}."))
    if found.selected_on == "test":
        parts.append(caution(f"{CHOSEN_ON_TEST}."))
    if found.alarms:
        raised = ", ".join(found.alarms)
        parts.append(caution(f"Suspect: the short audit of this evaluation (n = {found.n}) raises alarms: {raised}."))
    parts += [caution(f"There is nothing to be robust: {found.hopeless}.")] if found.hopeless else []
    named = list(zip(found.labels, found.attacks, strict=True))
    rows = [_attack(name, row) for name, row in named]
    bars = [(name, [charts.Bar("", row.accuracy, row.interval, 0)]) for name, row in named]
    for norm, worst in found.worst.items():
        name = "worst case" + ("" if norm == found.norm else f" {norm}")
        rows.append([name, "", "", share(worst.accuracy), span(worst.interval), "", ""])
        bars.append((name, [charts.Bar("", worst.accuracy, worst.interval, 1)]))
    columns = ("attack", "norm, eps", "steps", ">accuracy", "95 % interval", ">passes an image", ">seconds")
    parts.append(table("Accuracy under each attack", columns, rows))
    notes = [note for note in found.notes if note != CHOSEN_ON_TEST]
    if notes := [*notes, *(f"{row.name}: {note}" for row in found.attacks for note in row.notes)]:
        parts.append(listing(notes))
    parts.append(charts.bars(f"{key}-bars", "Accuracy under each attack, with 95 % intervals", bars))
    if found.audit:
        parts.append(checks("Short audit of this evaluation", found.audit))
    if found.versions:
        versions = ", ".join(f"{name} {figure(version)}" for name, version in found.versions.items())
        parts.append(paragraph(f"Versions: {versions}."))
    return join(parts)


def _attack(name: str, row: AttackRow) -> list[str]:
    bound = f"{row.norm or ''} {figure(row.eps)}" if row.eps else ""
    steps = "" if not row.steps else str(row.steps)
    if row.steps and row.step_size is not None:
        steps += f" of {figure(row.step_size)}"
    if row.restarts and row.restarts > 1:
        steps += f", {row.restarts} starts"
    passes = row.passes or {}
    counts = " + ".join(f"{passes[kind]:.4g}" for kind in ("forward", "input_backward") if kind in passes)
    seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
    return [name, bound, steps, share(row.accuracy), span(row.interval), counts, seconds]


def caution(sentence: str) -> Html:
    """A doubt about what is shown, before it."""
    return paragraph(tag("strong", "Caution. "), sentence, kind="caution")


def checks(caption: str, found: Sequence[Check]) -> Html:
    """Checks of an audit; an alarm is a word before it is a colour."""
    alarm, silent = tag("strong", "ALARM", class_="alarm"), tag("span", "silent", class_="silent")
    words = {True: alarm, False: silent, None: "not run"}
    rows = [(c.name, words[c.alarm], figure(c.figure), span(c.interval), c.images, c.bound, c.sentence) for c in found]
    return table(caption, ("check", "verdict", ">figure", "95 % interval", ">images", ">alarm", "what it says"), rows)


def audit(source: Source) -> Html:
    """The audit for masked gradients."""
    found = source.audit
    if found is None:
        if source.closed:
            return paragraph("Not audited: ", sentences(source.closed), kind="missing")
        radius = () if source.values.get("attack.eps") else ("--eps", "8/255")
        command = tag("code", source.command("audit", after=radius))
        why = " looks for masked gradients. Without it an accuracy under PGD alone is weak evidence."
        return paragraph("Not audited yet; ", command, why, kind="missing")
    if isinstance(found, str):
        return paragraph(found, kind="missing")
    where = [found.checkpoint, found.judged_on, found.norm, f"eps {figure(found.eps)}"]
    parts = [paragraph("audit.json: ", ", ".join(each for each in where if each), ".")]
    if why := source.outdated(found):
        parts.append(caution(f"This audit is {why}."))
    parts += [listing(found.notes)] if found.notes else []
    parts += [caution(f"Nothing was attacked: {found.hopeless}.")] if found.hopeless else []
    ran = sum(check.alarm is not None for check in found.checks)
    rest = f"; {len(found.checks) - ran} could not be run" if ran < len(found.checks) else ""
    if raised := found.raised:
        verb = "raises" if len(raised) == 1 else "raise"
        sentence = f"{len(raised)} of the {ran} checks that ran {verb} an alarm: {', '.join(raised)}{rest}."
        parts.append(caution(sentence))
    else:
        parts.append(paragraph(f"None of the {ran} checks that ran raises an alarm{rest}."))
    if others := {name: by for name, by in short_alarms(source).items() if name not in found.raised}:
        parts.append(caution(f"Alarms raised elsewhere: {told(others)}."))
    return join([*parts, checks("Checks for masked gradients", found.checks)])


def samples(source: Source, data: Data, count: int = SHOWN) -> Html:
    """Test images before and after the attack, with what it added."""
    try:
        found = draw(source, data(source), count)
    except AdvkitError as error:
        source.without_pictures.append(f"No sample pictures: {error}")
        return paragraph("No pictures: ", sentences(str(error)), kind="missing")
    how = f"{found.norm}, eps {figure(found.eps)}, at the {found.checkpoint} checkpoint"
    how += ", averaged weights" if found.averaged else ""
    lead = (
        f"The first {len(found.rows)} test images, as they come: PGD-{STEPS} on the cross-entropy from the image, step "
        f"eps/5, {how}. Differences are magnified {found.magnified:.3g} times; grey is none."
    )
    figures = []
    for row in found.rows:
        pictures = (("clean", row.clean), ("adversarial", row.adversarial), ("difference", row.difference))
        images = [
            tag(
                "span",
                tag("img", src=data_uri("image/png", png), alt=f"Test image {row.index}, {what}", class_="pixels"),
                tag("span", what, aria_hidden="true"),
            )
            for what, png in pictures
        ]
        (before, was), (after, now) = row.before, row.after
        verdict = "withstood" if after == row.label else "fooled" if before == row.label else "wrong already"
        caption = [
            tag("strong", f"Label {row.label}"),
            f": clean {before} ({100 * was:.0f} %), adversarial {after} ({100 * now:.0f} %); {verdict}",
        ]
        figures.append(tag("li", tag("figure", tag("div", *images, class_="triple"), tag("figcaption", *caption))))
    reading = "Below each: its label, and the predictions with their probabilities."
    doubts = [caution(f"{note}.") for note in found.notes]
    return join([*doubts, paragraph(lead, " ", reading), tag("ol", *figures, class_="samples")])


def environment(source: Source) -> Html:
    """environment.json."""
    found = source.environment
    if isinstance(found, str):
        return paragraph(found, kind="missing")
    rows = []
    for key, value in found.items():
        if key == "command" and isinstance(value, list):
            value = tag("code", "advkit ", shlex.join(str(each) for each in value))
        elif isinstance(value, Mapping):
            value = ", ".join(f"{name}: {figure(each)}" for name, each in value.items()) or "none"
        rows.append((key, value if isinstance(value, Html) else figure(value)))
    return table("What the run was started with", ("what", "value"), rows)
