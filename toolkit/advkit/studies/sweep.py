"""Sweeps: a grid of options and settings, each cell trained at every seed and judged on the images it held out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from ..arguments import checked
from ..config.layer import Layer, with_files
from ..config.request import Request
from ..config.resolve import Resolved
from ..errors import OptionError, named, shown
from ..evaluation.attacks.base import EvaluationAttack
from ..global_state import one_at_a_time
from ..plain import listed
from ..settings import SECTIONS
from ..training.progress import Aloud, Progress
from .arms import Arm, Study, distinct
from .evaluation_request import ATTACKS, EvaluationRequest
from .inputs import seeds as parse_seeds
from .paired_records import AblationRow
from .paired_tables import SWEEP
from .plan import requested
from .search import Range, search

Grid = Mapping[str, Any]
"""The values of each option or setting, a list or an array: {"lsiw.lam": [0.03, 0.1]}; of a search also a range."""

FIXED = {
    "run.seed": "each cell of a sweep is trained with the same seeds",
    "data": "all cells of a sweep train on the same images",
    "validation": "all cells of a sweep are judged on the same images",
    "attack.eps": "cells would be judged at different budgets",
    "attack.norm": "cells would be judged in different norms",
}
"""What no grid has, a section or a setting, and why."""


def cells(request: Request, grid: Grid, seeds: Sequence[int]) -> list[Arm]:
    """Every combination of the grid's values, in the order in which they are given."""
    _refuse_grid(request, grid)
    return distinct(_arm(request, dict(zip(grid, values, strict=True)), seeds) for values in product(*grid.values()))


def _arm(request: Request, cell: Mapping[str, object], seeds: Sequence[int]) -> Arm:
    """The runs with these values, which have to hold out images to be judged on."""
    own = request.with_typed(_layer(cell))
    resolved = {seed: Resolved.of(own.over(Layer("--seeds", {"run.seed": seed}))) for seed in seeds}
    validation = resolved[seeds[0]].validation
    if validation.split == "test" or not validation.fraction:
        raise OptionError(
            "A sweep chooses on images that its runs hold out; leave validation.split=test and "
            "validation.fraction=0 out."
        )
    name = " ".join(f"{key}={value}" for key, value in cell.items())
    return Arm(name, tuple(sorted(str(plugin) for plugin in request.plugins)), resolved, request.declined)


def _refuse_grid(request: Request, grid: Grid) -> None:
    top = request.top
    given = top.values
    for key, values in grid.items():
        if key in given:
            raise OptionError(f"{key} is given twice, {shown(given[key])} and as values to sweep; give it once.")
        reason = FIXED.get(key) or FIXED.get(key.partition(".")[0])
        if reason:
            raise OptionError(f"{key} is no part of a sweep: {reason}; leave it out, or give it one value.")
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise OptionError(f"The values of {key} are {shown(values)}; give a list.")
    if all(len(values) < 2 for values in grid.values()):
        raise OptionError("There is nothing to sweep; give an option several values: lsiw.lam=0.03,0.1.")
    if "run.seed" in top.settings:  # that of a run file gives way
        raise OptionError(f"A sweep takes its seeds from {named('--seeds')}; leave {named('--seed')} (run.seed) out.")


def _layer(cell: Mapping[str, object]) -> Layer:
    """Settings and options by their names, as they are typed."""
    settings: dict[str, object] = {}
    options: dict[str, dict[str, object]] = {}
    for key, value in cell.items():
        section, _, name = key.partition(".")
        if section in (*SECTIONS, "model", "order"):
            settings[key] = value
        else:
            options.setdefault(section, {})[name] = value
    return with_files(Layer("sweep", settings, options))


@checked("attacks")
@one_at_a_time
def sweep(
    plugins: str | Sequence[str] | None = None,
    *,
    grid: Mapping[str, Any],
    out: str | Path,
    seeds: int | str | Sequence[int] = 3,
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
    progress: Callable[[], Progress] = Aloud,
    tell: Callable[[str], None] | None = None,
    task: int | None = None,
    trials: int | None = None,
) -> list[AblationRow]:
    """Train every combination of the grid's values at every seed, and judge each on the images that it held out.

    `grid` is {"lsiw.lam": [0.03, 0.1], "optimizer.lr": np.linspace(0.05, 0.1, 3)}; everything else is as `ablate` has
    it. A row's `difference` is that to the first combination, paired by seed and by image. The test images are never
    looked at. With `trials` Optuna proposes so many combinations instead, one after the other, also of ranges such as
    {"lsiw.lam": "0.01..0.3 log"}.
    """
    short = {"model": model, "dataset": dataset, "eps": eps, "epochs": epochs, "batch_size": batch_size}
    request = requested(plugins, recipe, config, options, settings, no_companion, **short)
    judging = EvaluationRequest.of(attacks, n=n)
    study = Study(Path(out), judging, SWEEP, request.trackers, progress, tell)
    return sweep_request(request, grid, parse_seeds("seeds", seeds), study, task, trials)


def sweep_request(
    request: Request,
    grid: Grid,
    seeds: Sequence[int],
    study: Study,
    task: int | None = None,
    trials: int | None = None,
) -> list[AblationRow]:
    """As `sweep`."""
    held_out = replace(study, judging=replace(study.judging, split="validation"))
    space = {key: Range.written(values) or listed(values) for key, values in grid.items()}
    if trials is None:
        if ranges := [key for key, values in space.items() if isinstance(values, Range)]:
            many = named("--trials", "N")
            raise OptionError(f"{ranges[0]} has a range, {grid[ranges[0]]}; say how many are tried: {many}.")
        return held_out.table(cells(request, space, seeds), task)
    if task is not None:
        without = f"leave {named('--task')} out"
        raise OptionError(f"What a search proposes follows from the runs before, so it has no tasks; {without}.")
    if trials < 1:
        raise OptionError(f"{named('--trials')} {trials} tries nothing; give 1 or more.")
    _refuse_grid(request, space)
    return search(held_out, space, trials, lambda cell: _arm(request, cell, seeds))
