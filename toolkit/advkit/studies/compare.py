"""Runs on the same images, best against last."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..arguments import checked
from ..config.resolve import Resolved
from ..errors import OptionError, named
from ..evaluation.attacks.base import EvaluationAttack
from ..evaluation.results import Verdicts, worst_cases
from ..evaluation.statistics import image_interval
from ..global_state import one_at_a_time
from ..own_file import FLAGS
from ..storage.run_folder import RunFolder
from ..training.same_run import files_of_several, of_several
from .evaluate import Watch, evaluate_subject
from .evaluation_request import ATTACKS, WORST, EvaluationRequest
from .paired_records import (
    AttackDifference,
    ComparedAccuracy,
    ComparedAttack,
    ComparedRun,
    Comparison,
    Difference,
    Overfitting,
)
from .records import Evaluation
from .subject import of_run

CHECKPOINTS = ("best", "last")


@checked("attacks")
@one_at_a_time
def compare(
    runs: Sequence[str | Path],
    attacks: str | Sequence[str | EvaluationAttack] = ATTACKS,
    *,
    eps: float | str | None = None,
    eps_l2: float | str | None = None,
    eps_linf: float | str | None = None,
    step: str = "eps/5",
    n: int | str | None = None,
    split: str = "test",
    seed: int | str = 0,
    batch_size: int | str | None = None,
    fresh: bool = False,
    data_root: str | Path | None = None,
    model: str | None = None,
    dataset: str | None = None,
    watch: Watch | None = None,
) -> Comparison:
    """Both checkpoints of every run as `evaluate` judges them, with paired differences; arguments are `evaluate`'s.

    `model` and `dataset` are the FILE.py:NAME of all runs whose net or data came from one.

    Differences are to the same checkpoint of the first run. How far `last` falls behind `best` is robust overfitting.
    """
    if len(runs) < 2 or len({os.path.realpath(run) for run in runs}) < len(runs):
        raise OptionError("Name two or more runs to compare, each once.")
    request = EvaluationRequest.of(
        attacks,
        eps=eps,
        by_norm={"l2": eps_l2, "linf": eps_linf},
        step=step,
        n=n,
        split=split,
        seed=seed,
        batch_size=batch_size,
        fresh=fresh,
        data_root=data_root,
    )
    names = [str(run) for run in runs]
    folders = [RunFolder.open(Path(run)) for run in runs]
    named = files_of_several(folders, model, dataset)
    first, *others = [of_several(folder, {}) for folder in folders]
    for run, other in zip(names[1:], others, strict=True):
        if reason := incomparable(first, other, names[0], run, request.radius):
            raise OptionError(reason)
    resolved = [of_several(folder, named) for folder in folders]
    pairs: list[tuple[Evaluation, dict[str, Verdicts]]] = []
    judged_on: str | None = None
    for run, own in zip(names, resolved, strict=True):
        for which in CHECKPOINTS:
            subject = of_run(Path(run), which, data_root, files=own.files)
            fingerprint = subject.images(split, 1000 if request.n is None else request.n).fingerprint()
            judged_on = judged_on or fingerprint
            if fingerprint != judged_on:
                held_out = (
                    "" if split == "test" else " that hold out the same, as run.seed decides, or take the test split"
                )
                raise OptionError(
                    f"{run} is judged on other images than {names[0]}; compare runs of one data set{held_out}."
                )

            def seen(done: int, total: int, what: str, label: str = f"{run} {which}") -> None:
                if watch is not None:
                    watch(done, total, f"{what} {label}")

            pairs.append(evaluate_subject(subject, request, watch=seen))
    return compared(*zip(*pairs, strict=True))


def incomparable(first: Resolved, other: Resolved, name: str, run: str, eps: float | None = None) -> str:
    """Why `run` can not be compared with the first, called `name`, as far as settings tell; "" where it can."""
    if first.data.name != other.data.name:
        return f"{run} is judged on {other.data.name}, {name} on {first.data.name}; compare runs of one data set."
    if first.attack.norm != other.attack.norm:
        return f"{run} was trained in {other.attack.norm}, {name} in {first.attack.norm}; compare one norm."
    for key in first.files.keys() & other.files.keys():
        one, another = first.files[key], other.files[key]
        if one.path != another.path and one.recorded != another.recorded:
            return (
                f"{run} is of {another.path}, {name} of {one.path}, and one {named(FLAGS[key])} is for all runs; judge "
                "each with `advkit evaluate`, and see them side by side with `advkit report`."
            )
    if eps is None and first.attack.eps != other.attack.eps:
        return (
            f"{run} was trained at eps {other.attack.eps:g}, {name} at {first.attack.eps:g}; "
            f"say at which both are judged: {named('--eps', 'E')}."
        )
    return ""


def apart(best: str | None, last: str | None) -> list[str]:
    """A note where the checkpoints of a run are judged by weights of two sorts, "raw" and "averaged"."""
    if not best or not last or best == last:
        return []
    return [f"best is judged by {best} weights, last by {last} ones, so averaging is part of how they differ"]


def compared(results: Sequence[Evaluation], verdicts: Sequence[Mapping[str, Verdicts]]) -> Comparison:
    """Accuracies; differences to the first run, at the same checkpoint; best minus last of each run."""
    norm = results[0].norm

    def robust(of: Mapping[str, Verdicts]) -> dict[str, Tensor]:
        worst = worst_cases(of.values())
        return {name: one.robust for name, one in of.items()} | ({WORST: worst[norm]} if norm in worst else {})

    def difference(one: Tensor, other: Tensor) -> dict[str, Any]:
        values = (one.double() - other.double()).tolist()
        return {"difference": sum(values) / len(values), "interval": image_interval(values)}

    tables = [robust(of) for of in verdicts]
    rows, overfitting = [], []
    for place, (result, mine) in enumerate(zip(results, tables, strict=True)):
        base = tables[CHECKPOINTS.index(str(result.checkpoint))]
        to_first: dict[str, Any] = {
            name: {"to_first": difference(mine[name], base[name])} for name in mine if mine is not base
        }
        attacks = [
            ComparedAttack(
                name=row.name,
                norm=row.norm,
                eps=row.eps,
                accuracy=row.accuracy,
                interval=row.interval,
                **to_first.get(row.name, {}),
            )
            for row in result.attacks
        ]
        mixed = apart(results[place - 1].weights, result.weights) if result.checkpoint == "last" else ()
        worst = result.worst_case
        rows.append(
            ComparedRun(
                run=str(result.run),
                checkpoint=str(result.checkpoint),
                weights=result.weights,
                epoch=result.epoch,
                selected_on=result.selected_on,
                suspect=result.suspect,
                audit=result.audit or [],
                alarms=result.alarms,
                notes=[*result.of_net, *mixed],
                attacks=attacks,
                worst_case=None if worst is None else ComparedAccuracy(**dict(worst), **to_first.get(WORST, {})),
            )
        )
        if result.checkpoint == "last":
            best = tables[place - 1]
            gaps = {name: difference(best[name], mine[name]) for name in mine}
            lowest = gaps.pop(WORST, None)
            overfitting.append(
                Overfitting(
                    run=str(result.run),
                    attacks=[AttackDifference(name=name, **gap) for name, gap in gaps.items()],
                    worst_case=None if lowest is None else Difference(**lowest),
                )
            )
    head = {key: results[0][key] for key in ("split", "n", "images", "norm", "eps", "seed", "versions")}
    return Comparison(**head, runs=rows, best_minus_last=overfitting)
