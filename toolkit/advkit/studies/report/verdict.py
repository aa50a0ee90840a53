"""What a run is worth in one sentence, before everything else: its worst case, and what the audits say of it."""

from __future__ import annotations

from ..kept import is_of, most_telling
from ..records import AuditRecord, Evaluation
from .alarms import alarms
from .markup import Html, figure, paragraph, share, span, tag
from .sources import Source


def verdict(source: Source) -> Html:
    """Of the evaluation that says most: of test images, at the run's eps, with AutoAttack, of the most, the worst."""
    judged = {
        name: one
        for name, one in source.evaluations.items()
        if isinstance(one, Evaluation) and one.worst and not source.outdated(one)
    }
    if not judged:
        return paragraph(tag("strong", "Robustness unknown"), ": no evaluation of this net.", kind="missing")
    threat = source.values.get("attack.norm"), source.values.get("attack.eps")
    found = most_telling(judged.values(), *threat)[0]
    norm = found.norm if found.norm in found.worst else next(iter(found.worst))
    worst = found.worst[norm]
    attacks = [row.name for row in found.attacked(norm)]
    other = found.checkpoint not in (None, "last" if source.standard else "best")
    where = f"checkpoint {found.checkpoint}, {found.judged_on}" if other else found.judged_on
    sets = {name: source.split_of(name, one) for name, one in judged.items() if one.split == found.split}
    if len({*sets.values()} - {""}) > 1:
        where += f", images {next(sets[name][:8] for name in sets if judged[name] is found) or 'unknown'}"
    audited, audit = alarms(source), source.audit
    whole = audit if isinstance(audit, AuditRecord) and not source.outdated(audit) else None
    nothing = found.hopeless or (whole and whole.hopeless)
    if audited:
        said = ["; audit: ", tag("strong", f"alarms, {audited}", class_="alarm")]
    elif nothing:
        said = [f"; there is nothing to be robust: {nothing}"]
    else:
        said = ["; audit: no alarm" if found.audit or whole else "; not audited"]
    content = [
        tag("strong", f"Worst case {share(worst.accuracy)}"),
        f" ({span(worst.interval)}) within {norm} {figure(found.eps_in(norm))} under {', '.join(attacks)} ({where})",
        *said,
        "." if _strong(found) else ". AutoAttack was not among the attacks, so the truth may be lower.",
        " The checkpoint was chosen on the test split: the figure is optimistic."
        if found.selected_on == "test"
        else "",
        " It was trained on these images: of others fewer may withstand." if found.split == "train" else "",
        ""
        if source.standard or is_of(found, *threat)
        else f" It was trained against {threat[0]} {figure(threat[1])}, where nothing is known.",
    ]
    return paragraph(*content, kind="caution" if audited or nothing else "verdict")


def _strong(found: Evaluation) -> bool:
    return any(row.is_autoattack for row in found.attacks)
