"""Leave-one-out ablations: a set of plugins, the set without each, and none; paired by seed and by image."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config.layer import Layer
from ..config.request import Request
from ..config.resolve import Resolved
from ..data.base import Splits
from ..errors import HookConflict, OptionError
from ..evaluation.attacks import EvaluationAttack
from ..evaluation.results import summary
from ..evaluation.statistics import accuracy, bits, difference, share
from ..evaluation.verdicts import verdicts
from ..storage import files
from ..storage.run_folder import RunFolder
from ..training.launch import refuse_difference, resolve_folder, resume, start
from ..training.parts import build_model, evaluate_folder, on_this_machine
from ..training.progress import Progress

FULL = "full"


@dataclass(frozen=True)
class Arm:
    """One line of the table: a set of plugins, resolved by seed, or the sentence that refuses it."""

    name: str
    plugins: tuple[str, ...]
    resolved: Mapping[int, Resolved] = field(default_factory=dict)
    declined: tuple[str, ...] = ()
    refused: str | None = None


def arms(request: Request, seeds: Sequence[int]) -> list[Arm]:
    """The full set, the set without each plugin, and none. A plugin left out comes not back as a companion."""
    if not request.plugins:
        raise OptionError("There is nothing to leave out; name plugins: --plugins cat-eps,lsiw.")
    chosen = tuple(sorted(str(plugin) for plugin in request.plugins))
    sets = {FULL: chosen}
    if len(chosen) > 1:
        sets |= {f"without {name}": tuple(other for other in chosen if other != name) for name in chosen}
    sets["none"] = ()
    rows = []
    for name, kept in sets.items():
        own = request if name == FULL else request.over(Layer("", plugins=kept))
        try:
            rows.append(_arm(name, own, kept, set(chosen) - set(kept), seeds))
        except HookConflict as refusal:
            rows.append(Arm(name, kept, refused=str(refusal)))
        except OptionError as refusal:
            if name == FULL:  # what was typed is wrong, whatever is left out
                raise
            rows.append(Arm(name, kept, refused=str(refusal)))
    return rows


def _arm(name: str, request: Request, plugins: tuple[str, ...], left_out: set[str], seeds: Sequence[int]) -> Arm:
    def at(seed: int) -> Resolved:
        return Resolved.of(request.over(Layer("--seeds", {"run.seed": seed})))

    first = at(seeds[0])
    back = {wish for added, (wish, _) in first.composition.added.items() if added in left_out}
    if back:
        return _arm(name, request.over(Layer("", no_companion=tuple(back))), plugins, left_out, seeds)
    rest = {seed: at(seed) for seed in seeds[1:]}
    return Arm(name, plugins, {seeds[0]: first, **rest}, request.declined)


# ---------------------------------------------------------------------- runs


def measure(
    resolved: Resolved,
    splits: Splits,
    path: Path,
    attacks: Sequence[EvaluationAttack],
    count: int,
    progress: Progress,
) -> dict[str, Any]:
    """Train the run in `path`, or go on with it, and evaluate its best checkpoint; what is there already is kept.

    Returns {"attacks", "n", "verdicts": {attack: "110..."}, "suspect"}, on `count` test images at random (0: all).
    """
    resolved, store = on_this_machine(resolved), path / "ablation.json"
    fresh = not (path / "run.toml").is_file()
    if not fresh:
        refuse_difference(resolve_folder(RunFolder.open(path)), resolved)
    test = splits.test.sample(count)
    asked = {"attacks": [attack.name for attack in attacks], "n": len(test), "data": test.fingerprint()}
    if (kept := _stored(store)) and asked.items() <= kept.items():
        return kept
    model = build_model(resolved, splits.train)
    if fresh:
        start(resolved, splits, model, out=path, progress=progress)
    else:
        resume(RunFolder.open(path), resolved, splits, model, progress)
    model, _ = evaluate_folder(RunFolder.open(path), resolved, splits, "best")
    eps, norm = resolved.attack.eps, resolved.attack.norm
    found = verdicts(model, test, attacks, eps=eps, norm=norm)
    measured = asked | {
        "verdicts": {name: bits(each.robust) for name, each in found.items()},
        "suspect": summary(list(found.values()), norm)["suspect"],
    }
    files.write_atomic(store, json.dumps(measured).encode())
    return measured


def _stored(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.keys() >= {"verdicts", "suspect"} else None


def run(
    chosen: Sequence[Arm],
    splits: Splits,
    out: Path,
    attacks: Sequence[EvaluationAttack],
    count: int,
    progress: Callable[[], Progress],
    tell: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Measure every arm at every seed, in `out`; the rows of the table. Runs that are finished are not run again."""
    measured: dict[str, dict[int, dict[str, Any]]] = {arm.name: {} for arm in chosen}
    tasks = [(seed, arm) for seed in sorted({s for arm in chosen for s in arm.resolved}) for arm in chosen]
    for seed, arm in tasks:  # seed by seed: an early look at the table is a complete one
        if arm.refused is None:
            path = out / "runs" / f"{arm.name.replace(' ', '-')}-seed-{seed}"
            found = measure(arm.resolved[seed], splits, path, attacks, count, progress())
            measured[arm.name][seed] = found
            shares = " ".join(f"{name} {share(bits):.3f}" for name, bits in found["verdicts"].items())
            tell(f"{arm.name}, seed {seed}: {shares}")
    full = measured[FULL]
    settings = {arm.name: next(iter(arm.resolved.values())) for arm in chosen if arm.resolved}
    return [_row(arm, measured[arm.name], full, settings) for arm in chosen]


def _row(
    arm: Arm,
    runs: Mapping[int, Mapping[str, Any]],
    full: Mapping[int, Mapping[str, Any]],
    settings: Mapping[str, Resolved],
) -> dict[str, Any]:
    row: dict[str, Any] = {"arm": arm.name, "plugins": list(arm.plugins), "refused": arm.refused}
    if arm.refused is not None:
        return row
    row |= {"declined": list(arm.declined), "seeds": list(runs)}
    row["suspect"] = [seed for seed, run in runs.items() if run["suspect"]]
    row["changed"] = _changed(settings[arm.name], settings[FULL]) if FULL in settings else {}
    row["accuracy"], row["difference"] = {}, {}
    for attack in next(iter(runs.values()))["verdicts"]:
        bits = {seed: run["verdicts"][attack] for seed, run in runs.items()}
        row["accuracy"][attack] = accuracy(list(bits.values()))
        if full and arm.name != FULL:
            row["difference"][attack] = difference([(bits[s], full[s]["verdicts"][attack]) for s in bits])
    return row


def _changed(here: Resolved, full: Resolved) -> dict[str, list[object]]:
    """Settings that the left-out plugin had preferred: {"attack.init": [full, here]}."""
    both = [
        {
            f"{section}.{key}": value
            for section, kind in each.sections.items()
            for key, value in kind.model_dump().items()
        }
        for each in (full, here)
    ]
    return {key: [both[0][key], both[1][key]] for key in both[0] if both[0][key] != both[1][key]}


# ---------------------------------------------------------------------- tables


HEADER = ("plugins", "attack", "accuracy", "over images", "minus full", "over seeds", "over images", "")
LEGEND = (
    "Means over seeds, with 95 % intervals. An accuracy's is Wilson's, over images. A difference is paired; its "
    "intervals are over seeds (Student's t; of two seeds they say next to nothing) and over images (Bonett and Price). "
    "Suspect: cross-entropy and margin accuracies differ by more than 0.06."
)


def table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[list[str]], list[str]]:
    """Cells below `HEADER`, a line an attack, and footnotes: for the terminal and for Markdown."""
    cells, notes = [], []
    for row in rows:
        name = row["arm"]
        if row["refused"] is not None:
            cells.append([name, "refused", *[""] * 6])
            notes.append(f"{name} is refused: {row['refused']}")
            continue
        mark = f"suspect (seed {', '.join(map(str, row['suspect']))})" if row["suspect"] else ""
        for attack, found in row["accuracy"].items():
            low, high = found["interval"]
            gap = row["difference"].get(attack)
            cells.append([name, attack, f"{found['mean']:.3f}", f"{low:.3f} to {high:.3f}", *_gap(gap), mark])
            name = mark = ""
        if row["declined"] and row["arm"] != FULL:
            notes.append(f"{row['arm']}: declined as companions: {', '.join(row['declined'])}")
        for key, (before, after) in row["changed"].items():
            notes.append(f"{row['arm']}: {key} is {after}, in the full set {before}")
    return cells, notes


def _gap(found: Mapping[str, Any] | None) -> list[str]:
    """A difference and its intervals, over seeds and over images."""
    if found is None:
        return ["", "", ""]
    intervals = (found["seed_interval"], found["image_interval"])
    return [_signed(found["mean"]), *(" to ".join(map(_signed, each)) if each else "" for each in intervals)]


def _signed(value: float) -> str:
    return f"{round(value, 3) + 0.0:+.3f}"  # no -0.000


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as a page."""
    cells, notes = table(rows)
    text = ["| " + " | ".join(line) + " |" for line in (HEADER, ["---"] * len(HEADER), *cells)]
    return "\n".join([*text, "", LEGEND, *(["", *(f"- {note}" for note in notes)] if notes else [])]) + "\n"
