"""What a checkpoint of a run must hold. A hash says that it is what was written, not that it is what can be resumed.

Everything is judged before anything is put into the run; whatever does not fit is named, in a CheckpointError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from pydantic import ConfigDict, Field, ValidationError
from torch import Tensor

from ..claims import beyond
from ..errors import CheckpointError
from ..options import OptionModel
from ..types import Passes
from . import weights
from .weights import under

GROWING = (weights.OPTIMIZER, weights.METER, weights.EVALUATED)
"""Prefixes of tensors that a run has not from its start."""

NOT_NEGATIVE = {
    *("step", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "acc_delta", "sum"),
    *("row_var", "col_var", "variance", "step_size", "eta", "mu", "mu_product"),
}
"""What optimizers of torch keep that is never below 0: they take roots of it or divide by it."""

COUNTED, AMOUNTS = ("adv_correct", "clean_correct", "success"), ("zero_gradients", "radius", "shift_ratio")
"""Sums of an epoch that number images, and that can not be negative; a loss term may be."""

AT_TIMES = {"zero_gradients", "shift_ratio"}
"""Sums that steps may lack where a plugin attacks or shifts the weights; all others are of every step of an epoch."""

COUNT = Field(ge=0, lt=2**53)


class Best(OptionModel):
    """The epoch that `best` names."""

    epoch: int = COUNT
    selected: float | None = Field(ge=0, le=1, allow_inf_nan=False)
    split: Literal["validation", "test"] | None


class Position(OptionModel):
    """Where a run is, and how far its metrics.jsonl had got. Those of 0.1.0 lack the latter's CRC-32, and `stopped`."""

    epoch: int = COUNT
    step: int = COUNT
    global_step: int = COUNT
    best: Best | None
    metrics_size: int = COUNT
    metrics_crc: int = Field(0, ge=0, lt=2**32)
    stopped: str = ""


class Seconds(OptionModel):
    wall: float = Field(ge=0)
    cpu: float = Field(ge=0)
    compile: float = Field(0.0, ge=0)


class Meter(OptionModel):
    """The sums of an unfinished epoch."""

    counts: dict[str, int]
    seconds: Seconds


class Net(OptionModel):
    """What tells a net that was passed from Python from others: how it is built, and what it answers."""

    built: dict[str, str]
    """A line for each submodule, by name."""
    images: list[int] = Field(min_length=3, max_length=3)
    """(C, H, W) of the two images that it is asked."""
    logits: list[list[float | None]] | None = Field(min_length=2, max_length=2)
    """(2, K), None where one is no number; None of a net that does not answer twice alike."""
    code: str
    """A digest of its code."""
    torch: str
    machine: str
    """The version of torch, and the processor or GPU that it answered on."""


class State(OptionModel):
    """state.json. A later advkit may add to it."""

    model_config = ConfigDict(extra="ignore")

    position: Position
    meter: Meter
    optimizer: dict[str, dict[str, float | int | bool]]
    data: str
    classes: list[str] | None = None
    """Their names in order; None in checkpoints of before."""
    run: str
    evaluated: list[str] | None = None
    """Names of the averaged weights; None in checkpoints of before."""
    net: Net | None = None
    """Of a net that was passed; None of others, and in checkpoints of before."""


def state_of(state: Mapping[str, Any]) -> State:
    """The typed state. Raises CheckpointError naming the first part that is absent or of a wrong type."""
    try:
        return State.model_validate(dict(state))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        part = ".".join(str(key) for key in first["loc"])
        if first["type"] == "missing" and len(first["loc"]) == 1:
            raise CheckpointError("The checkpoint is of another version of advkit; resume it with that one.") from None
        _refuse(f"{part} of its state is {_short(first['input'])}: {str(first['msg'])[0].lower()}{first['msg'][1:]}")


def check(
    known: State,
    tensors: Mapping[str, Tensor],
    fresh: Mapping[str, Tensor],
    kept: Mapping[str, Mapping[str, Tensor]],
    bounds: Mapping[str, tuple[float, float]],
    *,
    epochs: int,
    batches: Sequence[int] | None,
    passes: Mapping[str, Passes],
    split: str | None,
    classes: Sequence[str],
) -> None:
    """Judge what a checkpoint holds, for a run of these settings.

    Args:
        known, tensors: what it holds.
        fresh: what the run would store before its first step: the model, and the state of plugins.
        kept: what the optimizer keeps of each parameter that is trained, by name.
        bounds: what state of plugins lies within, by name.
        epochs, batches: how many the run has, and the images in each of an epoch; None where a plugin makes them.
        passes: of a step, by phase.
        split, classes: which images choose `best`, the names in the data.
    """
    fixed = {name: value for name, value in fresh.items() if not name.startswith(GROWING)}
    for name, value in tensors.items():
        if value.dtype.is_floating_point and _finite(name, fixed) and not bool(value.isfinite().all()):
            _refuse(f"{name} holds NaN or Inf")
        if name not in fixed and not name.startswith(GROWING):
            _refuse(f"{name} is nothing that this run stores")
        if _never_negative(name) and bool((value < 0).any()):
            _refuse(f"{name} is negative")
        if name in bounds and beyond(value, bounds[name]):
            low, high = bounds[name]
            _refuse(f"{name} has a value outside of {low:g} to {high:g}")
    if known.classes not in (None, [*classes]):
        _refuse(f"its classes are {_short(known.classes)}, and those of the data {_short([*classes])}")
    check_averages(known, tensors)
    for name, value in fixed.items():
        _alike(name, tensors.get(name), value)
    for name, value in under(tensors, weights.EVALUATED).items():
        if f"{weights.MODEL}{name}" not in fixed:
            _refuse(f"{weights.EVALUATED}{name} is no weight of the model")
        _alike(f"{weights.EVALUATED}{name}", value, fixed[f"{weights.MODEL}{name}"])
    _position(known, epochs, batches, split)
    _optimizer(known, under(tensors, weights.OPTIMIZER), kept)
    _meter(known, under(tensors, weights.METER), batches, passes)


def check_averages(known: State, tensors: Mapping[str, Tensor]) -> None:
    """Judge whether the averaged weights are those that were stored, all and no others."""
    there = under(tensors, weights.EVALUATED).keys()
    if known.evaluated is not None and (different := sorted(there ^ {*known.evaluated})):
        why = "no weight that its run averaged" if different[0] in there else "missing"
        _refuse(f"{weights.EVALUATED}{different[0]} is {why}")


def check_place(path: Path, known: State) -> None:
    """Judge whether a checkpoint lies where its position says."""
    if path.name != f"step-{known.position.global_step:08d}":
        _refuse(f"its position is step {known.position.global_step}, its name {path.name}")


def _finite(name: str, fresh: Mapping[str, Tensor]) -> bool:
    """Whether a tensor must be: all but what starts with NaN or Inf itself, state of a plugin or a mask in the net."""
    if name.startswith(weights.EVALUATED):
        name = weights.MODEL + name.removeprefix(weights.EVALUATED)
    return name not in fresh or not fresh[name].dtype.is_floating_point or bool(fresh[name].isfinite().all())


def _never_negative(name: str) -> bool:
    return weights.OPTIMIZER in name and name.rpartition("/")[2] in NOT_NEGATIVE


def _alike(name: str, value: Tensor | None, own: Tensor) -> None:
    if value is None:
        _refuse(f"{name} is missing")
    if value.shape != own.shape or value.dtype != own.dtype:
        _refuse(f"{name} is {_form(value)}, and the run's is {_form(own)}")


def _position(known: State, epochs: int, batches: Sequence[int] | None, split: str | None) -> None:
    at = known.position
    if len(lacking := {"metrics_crc", "stopped"} - at.model_fields_set) == 1:
        _refuse(f"its position lacks {min(lacking)}")
    done, each = at.epoch + at.step <= at.global_step, ""
    if batches is not None:
        each = f" of {len(batches)} steps"
        done = at.step <= len(batches) and at.epoch * len(batches) + at.step == at.global_step
    if at.epoch > epochs or (at.epoch == epochs and at.step) or not done:
        _refuse(f"its position is epoch {at.epoch}, step {at.step} ({at.global_step} in all) of {epochs} epochs{each}")
    best = at.best
    if best is not None and (
        best.epoch >= at.epoch or best.split != split or (best.selected is None) != (split is None)
    ):
        _refuse(f"its best epoch is {best.epoch}, by {best.selected} on the {best.split} split, in epoch {at.epoch}")


def _optimizer(known: State, stored: Mapping[str, Tensor], kept: Mapping[str, Mapping[str, Tensor]]) -> None:
    keys: dict[str, set[str]] = {name: set() for name in known.optimizer}
    for full, value in stored.items():
        name, _, key = full.rpartition("/")
        if name not in kept or name not in keys:
            _refuse(f"{weights.OPTIMIZER}{full} belongs to no parameter that is trained")
        if key not in kept[name]:
            _refuse(f"{weights.OPTIMIZER}{full} is nothing that this run's optimizer keeps")
        _alike(f"{weights.OPTIMIZER}{full}", value, kept[name][key])
        if key == "step" and bool((value > known.position.global_step).any()):
            made = known.position.global_step
            _refuse(f"{weights.OPTIMIZER}{full} counts {float(value.max()):g} updates, and the run has made {made}")
        keys[name].add(key)
    if stray := keys.keys() - kept.keys():
        _refuse(f"its optimizer knows {min(stray)}, which the run does not train")
    for name, numbers in known.optimizer.items():
        if numbers:
            _refuse(f"its optimizer has {min(numbers)} of {name}, which is nothing that this run's keeps")
    for name, own in keys.items():
        if missing := kept[name].keys() - own:
            _refuse(f"{weights.OPTIMIZER}{name}/{min(missing)} is missing")
    if any(kept.values()) and known.position.global_step and not keys:
        _refuse("the optimizer's momentum is missing")


def _meter(
    known: State, sums: Mapping[str, Tensor], batches: Sequence[int] | None, passes: Mapping[str, Passes]
) -> None:
    counts, step = known.meter.counts, known.position.step
    if counts.get("steps", 0) != known.position.step:
        _refuse(f"its meter counts {counts.get('steps', 0)} steps of an epoch, its position {known.position.step}")
    counted, samples = {name.removeprefix("n ") for name in counts if name.startswith("n ")}, counts.get("samples", 0)
    ran = {key: count for key, count in counts.items() if key.startswith("passes ")}
    planned = {f"passes {phase} {kind}" for phase, plan in passes.items() for kind in plan.as_dict()}
    most = 10 * step * sum(sum(plan.as_dict().values()) for plan in passes.values())  # not all steps keep to it
    if (
        min(counts.values(), default=0) < 0
        or (step and "samples" not in counts)
        or (batches is not None and samples != sum(batches[:step]))
        or any(not 0 < counts[f"n {name}"] <= samples for name in counted)
        or any(counts[f"n {name}"] != samples for name in counted - AT_TIMES)
        or ran.keys() - planned
        or max(ran.values(), default=0) > most
    ):
        _refuse("its meter has counts that can not be")
    if different := sums.keys() ^ counted:
        _refuse(f"its meter has {'no count of' if min(different) in sums else 'no sum of'} {min(different)}")
    for name, value in sums.items():
        _alike(f"{weights.METER}{name}", value, torch.zeros((), dtype=torch.float64))
        if name in COUNTED and not 0 <= float(value) <= counts[f"n {name}"]:
            _refuse(f"{weights.METER}{name} is {float(value):g} of {counts[f'n {name}']} images")
        if name in AMOUNTS and float(value) < 0:
            _refuse(f"{weights.METER}{name} is negative")


def _form(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _refuse(why: str) -> NoReturn:
    raise CheckpointError(f"The checkpoint is intact, but not of this run: {why}; resume an earlier one.")
