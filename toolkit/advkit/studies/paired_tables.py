"""Tables of runs that are paired by seed and by image, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .paired_records import AblationRow, SeedDifference

FULL = "full"
"""The first arm of an ablation."""


LEGEND = (
    "Means over seeds, with 95 % intervals. An accuracy's is Wilson's, over images. A difference is paired; its "
    "intervals are over seeds (Student's t, given these images; of two seeds they say next to nothing) and over images "
    "(Bonett and Price)."
)
SUSPECT = "Suspect: the short audit of the evaluation raises an alarm; the run's report says which."
CHOSEN = (
    "All on the images that each run held out, other ones for other seeds; one that several seeds held out counts as "
    "one image in intervals over images. Best: in the worst case, the images that withstand every attack. It was "
    "chosen on them: judge it anew on the test images."
)


class Layout(NamedTuple):
    """What a table is of, and what its arms and the first of them are called."""

    what: str
    arms: str
    first: str
    chooses: bool = False
    """Whether the best arm is marked, by the worst case."""

    @property
    def header(self) -> tuple[str, ...]:
        return (self.arms, "attack", "accuracy", "over images", f"minus {self.first}", "over seeds", "over images", "")

    def legend(self, rows: Sequence[AblationRow]) -> str:
        """What the table's words mean, those that stand in it."""
        suspect = SUSPECT if any(row.suspect for row in rows) else ""
        return " ".join(filter(None, (LEGEND, suspect, CHOSEN if self.chooses else "")))


ABLATION = Layout("an ablation", "plugins", FULL)
SWEEP = Layout("a sweep", "values", "first", chooses=True)


def table(rows: Sequence[AblationRow], layout: Layout = ABLATION) -> tuple[list[list[str]], list[str]]:
    """Cells below the layout's header, a line an attack, and footnotes: for the terminal and for Markdown."""
    cells: list[list[str]] = []
    notes: list[str] = []
    worst = [row.worst_case.mean for row in rows if row.worst_case]
    for row in rows:
        name = row.arm
        if row.refused is not None:
            cells.append([name, "refused", *[""] * 6])
            notes.append(f"{name} is refused: {row.refused}")
            continue
        if row.failed:
            cells.append([name, "failed", *[""] * 6])
            notes += [f"{name}, seed {seed}: {sentence}" for seed, sentence in row.failed.items()]
            continue
        mark = f"suspect (seed {', '.join(map(str, row.suspect))})" if row.suspect else ""
        if layout.chooses and row.worst_case and row.worst_case.mean == max(worst):
            mark = ", ".join(filter(None, ("best", mark)))
        for attack, mean in row.accuracy.items():
            low, high = mean.interval
            gap = row.difference.get(attack)
            cells.append([name, attack, f"{mean.mean:.3f}", f"{low:.3f} to {high:.3f}", *_gap(gap), mark])
            name = mark = ""
        if layout.chooses and row.worst_case and len(row.accuracy) > 1:
            low, high = row.worst_case.interval
            cells.append(["", "worst case", f"{row.worst_case.mean:.3f}", f"{low:.3f} to {high:.3f}", *[""] * 4])
        if row.declined and row.arm != rows[0].arm:
            notes.append(f"{row.arm}: declined as companions: {', '.join(row.declined)}")
        for key, (before, after) in row.changed.items() if not layout.chooses else ():
            notes.append(f"{row.arm}: {key} is {after}, in the full set {before}")
    if averaged := [
        row.arm if row.averaged == row.seeds else f"{row.arm} (seed {', '.join(map(str, row.averaged))})"
        for row in rows
        if row.averaged
    ]:
        notes.append(f"averaged weights are judged in {', '.join(averaged)}")
    said = dict.fromkeys(note for row in rows for note in row.notes)
    for note in said:
        of = [row.arm for row in rows if note in row.notes]
        notes.append(note if len(of) == sum(bool(row.accuracy) for row in rows) else f"{', '.join(of)}: {note}")
    return cells, notes


def _gap(gap: SeedDifference | None) -> list[str]:
    """A difference and its intervals, over seeds and over images."""
    if gap is None:
        return ["", "", ""]
    intervals = (gap.seed_interval, gap.image_interval)
    return [_signed(gap.mean), *(" to ".join(map(_signed, interval)) if interval else "" for interval in intervals)]


def _signed(value: float) -> str:
    return f"{round(value, 3) + 0.0:+.3f}"  # no -0.000


def markdown(rows: Sequence[AblationRow], layout: Layout = ABLATION) -> str:
    """The table as a page."""
    cells, notes = table(rows, layout)
    text = ["| " + " | ".join(line) + " |" for line in (layout.header, ["---"] * len(layout.header), *cells)]
    footnotes = ["", *(f"- {note}" for note in notes)] if notes else []
    return "\n".join([*text, "", layout.legend(rows), *footnotes]) + "\n"
