"""Leave-one-out ablations: a set of plugins, the set without each, and none; paired by seed and by image."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..arguments import checked
from ..config.layer import Layer
from ..config.request import Request
from ..config.resolve import Resolved
from ..data.base import Splits
from ..errors import HookConflict, OptionError, Stopped, shown
from ..evaluation.attacks.base import EvaluationAttack
from ..evaluation.statistics import accuracy, bits, difference, share
from ..reading import opened
from ..storage.files import unwritable, write_atomic
from ..storage.lock import RunLock
from ..storage.run_folder import RunFolder
from ..training.launch import resume, start
from ..training.parts import build_model, data_of, on_this_machine
from ..training.progress import Progress, Silent
from ..training.same_run import refuse_difference, resolve_folder
from ..training.tracking import tracked
from .documents import document
from .evaluate import evaluate_subject
from .evaluation_request import ATTACKS, EvaluationRequest
from .inputs import seeds as parse_seeds
from .paired_records import AblationRow, SeedAccuracy, SeedDifference
from .paired_tables import FULL, HEADER, markdown
from .plan import requested
from .subject import of_run


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


@checked("attacks")
def ablate(
    plugins: str | Sequence[str] | None = None,
    *,
    out: str | Path,
    seeds: str | Sequence[int] = "0,1,2",
    attacks: str | Sequence[str | EvaluationAttack] = ATTACKS,
    n: int = 1000,
    model: str | None = None,
    dataset: str | None = None,
    recipe: str | None = None,
    config: str | Path | None = None,
    options: Mapping[str, Mapping[str, object]] | None = None,
    settings: Mapping[str, object] | None = None,
    eps: float | str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    no_companion: Iterable[str] = (),
    progress: Callable[[], Progress] = Silent,
    tell: Callable[[str], None] | None = None,
) -> list[AblationRow]:
    """Train a set of plugins, the set without each of them, and none, at every seed, and compare them.

    The runs are those of `advkit.train` with these arguments, `attacks` and `n` are `advkit.evaluate`'s. Runs and table
    are in the folder `out`; the same call again goes on where it was. `progress` is asked for once a run; `tell` hears
    of each that is done.
    """
    short = {"model": model, "dataset": dataset, "eps": eps, "epochs": epochs, "batch_size": batch_size}
    request = requested(plugins, recipe, config, options, settings, no_companion, **short)
    judging = EvaluationRequest.of(attacks, n=n)
    return ablate_request(request, parse_seeds("seeds", seeds), judging, Path(out), progress, tell)


def ablate_request(
    request: Request,
    seeds: Sequence[int],
    judging: EvaluationRequest,
    out: Path,
    progress: Callable[[], Progress] = Silent,
    tell: Callable[[str], None] | None = None,
) -> list[AblationRow]:
    """As `ablate`."""
    if any("run.seed" in layer.settings for layer in request.layers):
        raise OptionError("An ablation takes its seeds from --seeds; leave run.seed and --seed out.")
    chosen = arms(request, seeds)
    some = next(iter(next(arm.resolved for arm in chosen if arm.resolved).values()))
    splits = data_of(some)
    _refuse_other(out)
    with RunLock(out / "lock"):
        try:
            rows = run(chosen, splits, out, judging, progress, tell, request.trackers)
        except Stopped as stopped:
            raise type(stopped)("Stopped; everything is saved. Give the same command again to go on.") from None
        write_atomic(out / "table.json", document([row.as_dict() for row in rows]))
        write_atomic(out / "table.md", markdown(rows).encode())
    return rows


def _refuse_other(out: Path) -> None:
    """Only an older ablation's table is replaced."""
    for name, mine in (("table.json", b'[\n {\n  "arm": "'), ("table.md", f"| {' | '.join(HEADER)} |".encode())):
        try:
            with opened(out / name) as file:
                head = file.read(len(mine))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise unwritable(out / name, error, "name another --out") from None
        if head and head != mine:
            raise OptionError(f"{out / name} is there and is no table of an ablation; name another --out.")


class Outcome(NamedTuple):
    """What one run withstands: by attack a text of 0 and 1, a character an image, and whether an alarm was raised."""

    verdicts: dict[str, str]
    suspect: bool


def measure(
    resolved: Resolved,
    splits: Splits,
    path: Path,
    request: EvaluationRequest,
    progress: Progress,
    trackers: Sequence[str] = (),
) -> Outcome:
    """Train the run in `path`, or go on with it, and evaluate its best checkpoint as `advkit evaluate` does.

    The verdicts are kept with the run, where `report` and `compare` find them; what is known is not asked again.
    """
    resolved = on_this_machine(resolved)
    with tracked(progress, trackers, path) as seen:
        if os.path.isfile(path / "run.toml"):
            folder = RunFolder.open(path)
            refuse_difference(resolve_folder(folder), resolved)
            resume(folder, resolved, splits, build_model(resolved, splits.train), seen)
        else:
            start(resolved, splits, build_model(resolved, splits.train), out=path, progress=seen)
    result, verdicts = evaluate_subject(of_run(path, splits=splits, files=resolved.files), request)
    return Outcome({name: bits(one.robust) for name, one in verdicts.items()}, bool(result.alarms))


def run(
    chosen: Sequence[Arm],
    splits: Splits,
    out: Path,
    request: EvaluationRequest,
    progress: Callable[[], Progress],
    tell: Callable[[str], None] | None = None,
    trackers: Sequence[str] = (),
) -> list[AblationRow]:
    """Measure every arm at every seed, in `out`; the rows of the table. Runs that are finished are not run again."""
    measured: dict[str, dict[int, Outcome]] = {arm.name: {} for arm in chosen}
    tasks = [(seed, arm) for seed in sorted({s for arm in chosen for s in arm.resolved}) for arm in chosen]
    for seed, arm in tasks:  # seed by seed: an early look at the table is a complete one
        if arm.refused is None:
            path = out / "runs" / f"{arm.name.replace(' ', '-')}-seed-{seed}"
            if not isinstance(watching := progress(), Progress):
                raise OptionError(f"progress made {shown(watching)}; let it make an advkit.Progress for each run.")
            outcome = measured[arm.name][seed] = measure(arm.resolved[seed], splits, path, request, watching, trackers)
            shares = " ".join(f"{name} {share(bits):.3f}" for name, bits in outcome.verdicts.items())
            if tell is not None:
                tell(f"{arm.name}, seed {seed}: {shares}")
    full = measured[FULL]
    settings = {arm.name: next(iter(arm.resolved.values())) for arm in chosen if arm.resolved}
    return [_row(arm, measured[arm.name], full, settings) for arm in chosen]


def _row(
    arm: Arm, runs: Mapping[int, Outcome], full: Mapping[int, Outcome], settings: Mapping[str, Resolved]
) -> AblationRow:
    head: dict[str, Any] = {"arm": arm.name, "plugins": list(arm.plugins), "refused": arm.refused}
    if arm.refused is not None:
        return AblationRow(**head)
    by_attack = {
        attack: {seed: outcome.verdicts[attack] for seed, outcome in runs.items()}
        for attack in next(iter(runs.values())).verdicts
    }
    paired = full and arm.name != FULL
    return AblationRow(
        **head,
        declined=list(arm.declined),
        seeds=list(runs),
        suspect=[seed for seed, outcome in runs.items() if outcome.suspect],
        changed=_changed(settings[arm.name], settings[FULL]) if FULL in settings else {},
        accuracy={name: SeedAccuracy(**accuracy(list(texts.values()))) for name, texts in by_attack.items()},
        difference={
            name: SeedDifference(**difference([(texts[seed], full[seed].verdicts[name]) for seed in texts]))
            for name, texts in by_attack.items()
            if paired
        },
    )


def _changed(here: Resolved, full: Resolved) -> dict[str, tuple[object, object]]:
    """Settings that the left-out plugin had preferred: {"attack.init": (full, here)}."""
    before, after = (
        {
            f"{section}.{key}": value
            for section, settings in one.sections.items()
            for key, value in settings.model_dump().items()
        }
        for one in (full, here)
    )
    return {key: (before[key], after[key]) for key in before if before[key] != after[key]}
