"""Tables of runs that are paired by seed and by image, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from .paired_records import AblationRow, SeedDifference

FULL = "full"
"""The arm that others are compared with."""
HEADER = ("plugins", "attack", "accuracy", "over images", "minus full", "over seeds", "over images", "")
LEGEND = (
    "Means over seeds, with 95 % intervals. An accuracy's is Wilson's, over images. A difference is paired; its "
    "intervals are over seeds (Student's t; of two seeds they say next to nothing) and over images (Bonett and Price). "
    "Suspect: the short audit of the evaluation raises an alarm; the run's report says which."
)


def table(rows: Sequence[AblationRow]) -> tuple[list[list[str]], list[str]]:
    """Cells below `HEADER`, a line an attack, and footnotes: for the terminal and for Markdown."""
    cells, notes = [], []
    for row in rows:
        name = row.arm
        if row.refused is not None:
            cells.append([name, "refused", *[""] * 6])
            notes.append(f"{name} is refused: {row.refused}")
            continue
        mark = f"suspect (seed {', '.join(map(str, row.suspect))})" if row.suspect else ""
        for attack, mean in row.accuracy.items():
            low, high = mean.interval
            gap = row.difference.get(attack)
            cells.append([name, attack, f"{mean.mean:.3f}", f"{low:.3f} to {high:.3f}", *_gap(gap), mark])
            name = mark = ""
        if row.declined and row.arm != FULL:
            notes.append(f"{row.arm}: declined as companions: {', '.join(row.declined)}")
        for key, (before, after) in row.changed.items():
            notes.append(f"{row.arm}: {key} is {after}, in the full set {before}")
    return cells, notes


def _gap(gap: SeedDifference | None) -> list[str]:
    """A difference and its intervals, over seeds and over images."""
    if gap is None:
        return ["", "", ""]
    intervals = (gap.seed_interval, gap.image_interval)
    return [_signed(gap.mean), *(" to ".join(map(_signed, interval)) if interval else "" for interval in intervals)]


def _signed(value: float) -> str:
    return f"{round(value, 3) + 0.0:+.3f}"  # no -0.000


def markdown(rows: Sequence[AblationRow]) -> str:
    """The table as a page."""
    cells, notes = table(rows)
    text = ["| " + " | ".join(line) + " |" for line in (HEADER, ["---"] * len(HEADER), *cells)]
    return "\n".join([*text, "", LEGEND, *(["", *(f"- {note}" for note in notes)] if notes else [])]) + "\n"
