"""Who raised which alarm: the short audit of an evaluation, or `advkit audit`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..records import AuditRecord, Evaluation
from .markup import figure
from .sources import Source


def short_alarms(source: Source) -> dict[str, list[str]]:
    """The checks that raise alarms in short audits, each with the evaluations that have it."""
    found: dict[str, list[str]] = {}
    for each in source.evaluations.values():
        if isinstance(each, Evaluation) and not source.outdated(each):
            where = f"short audit of the evaluation at n = {each.n}, {each.split}, checkpoint {each.checkpoint}"
            for name in each.alarms:
                found[name] = list(dict.fromkeys([*found.get(name, ()), where]))
    return found


def alarms(source: Source) -> str:
    """Every check that raises an alarm, once, each with the audits that say so; "" where none does."""
    found, audit, silent = short_alarms(source), source.audit, ""
    if isinstance(audit, AuditRecord) and not source.outdated(audit):
        where = f"audit.json, n = {figure(audit.n)}"
        silent = "" if audit.raised or not found else f"; {where}, raises none"
        for name in audit.raised:
            found.setdefault(name, []).append(where)
    return told(found) + silent


def told(found: Mapping[str, Sequence[str]]) -> str:
    """Checks with the audits that they are from, each audit once where it can be."""
    names: dict[str, list[str]] = {}
    for name, by in found.items():
        names.setdefault("; ".join(by), []).append(name)
    return ", ".join(f"{', '.join(each)} ({by})" for by, each in names.items())
