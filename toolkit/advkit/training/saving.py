"""A run on disk: what a checkpoint holds of it, and how it is put back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..claims import beyond, finite_of
from ..config import runfile
from ..errors import HookContract, NonFinite, OptionError, ResumeMismatch
from ..run import RunState
from ..services import SHA256
from ..storage import checkpoint, schema
from ..storage.weights import EVALUATED, METER, MODEL, OPTIMIZER, SAMPLES, TENSORS, prefixed, put_weights, under
from .same_run import refuse_other_file
from .stored import refuse_moved
from .undo import became_broken

if TYPE_CHECKING:
    from .loop import Trainer


@dataclass(frozen=True)
class Position:
    """Where a run is, as its checkpoints store it: `epoch` and `step` name the next step to do, unless the run is
    `stopped`, for a reason."""

    epoch: int = 0
    step: int = 0
    global_step: int = 0
    best: dict[str, Any] | None = None
    metrics_size: int = 0
    metrics_crc: int = 0
    stopped: str = ""


BESIDE = 1 << 24
"""Bytes of a checkpoint from which on it is written while training goes on."""


class Writer:
    """Writes the checkpoints of one run, one after the other. What goes wrong beside the training is told by `wait`."""

    def __init__(self) -> None:
        self._pool, self._writing = ThreadPoolExecutor(1, thread_name_prefix="advkit-checkpoint"), Future[None]()
        self._writing.set_result(None)

    def write(self, work: Callable[[Mapping[str, Tensor]], None], tensors: Mapping[str, Tensor]) -> None:
        """`work(tensors)`, with their values as they are now."""
        self.wait()
        if sum(tensor.nbytes for tensor in tensors.values()) < BESIDE:
            work(tensors)
        else:
            kept = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
            self._writing = self._pool.submit(work, kept)

    def wait(self) -> None:
        """Until the last checkpoint is there. Raises what its writing raised, once."""
        wait([self._writing])  # where Ctrl-C breaks in, it is waited for again: the folder is in use until then
        writing, self._writing = self._writing, Future[None]()
        self._writing.set_result(None)
        writing.result()


def save(trainer: Trainer, evaluated: Mapping[str, Tensor] | None = None) -> None:
    """A checkpoint of where the run is, if it has a folder; `evaluated` are the weights that were validated.

    Raises NonFinite where the weights to evaluate are not finite; nothing is written then.
    """
    trainer.ranks.refuse_apart(_tensors(trainer))
    if trainer.folder is None:
        return
    refuse_unsavable(trainer.model)
    refuse_moved(trainer.model, trainer.unsaved)
    _refuse_beyond(trainer.panel.state)
    trainer.meter.lap()
    evaluated, own = trainer.evaluated() if evaluated is None else evaluated, trainer.model.state_dict()
    for name, value in evaluated.items():
        if value.is_floating_point() and became_broken(own[name].to(value), value):
            raise NonFinite(f"NaN or Inf in {name} of the weights to evaluate; the checkpoint was not written.")
    state = {
        "position": vars(trainer.position),
        "meter": trainer.meter.state(),
        "optimizer": _optimizer_numbers(trainer),
        "data": trainer.splits.train.fingerprint(),
        "classes": list(trainer.splits.train.classes),
        "run": runfile.dump(trainer.resolved),
        "evaluated": sorted(evaluated),
    }
    if trainer.passed:
        state["net"] = trainer.passed.record(trainer.step.care.memory.remembers)
    tensors = _tensors(trainer) | prefixed(EVALUATED, evaluated)
    folder, step = trainer.folder.checkpoints.absolute(), trainer.global_step  # a net may go elsewhere meanwhile
    at, keep = trainer.position, trainer.resolved.checkpoint.keep
    trainer.writer.write(lambda kept: publish(at, keep, checkpoint.save(folder, step, kept, state)), tensors)


def _refuse_beyond(state: RunState) -> None:
    """HookContract where a plugin's state has left its bounds, or holds NaN or Inf since: no resume would take it."""
    for name, values in state.stored().items():
        plugin, _, own = name.partition("/")[2].partition("/")
        if name in state.bounds and beyond(values, state.bounds[name]):
            low, high = state.bounds[name]
            what = f"has left {low:g} to {high:g}, its least and most; claim wider ones, or keep it within"
        elif name in state.finite - finite_of({name: values}):
            what = "holds NaN or Inf; fill it with that in setup, or keep it finite"
        else:
            continue
        raise HookContract(f"Plugin {plugin}: the state {own} {what}. The checkpoint was not written.", "state")


def refuse_unsavable(model: nn.Module) -> None:
    """OptionError for a model whose state is more than tensors: get_extra_state of a module."""
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise OptionError(
                f"{name} of the model's state_dict is a {type(value).__name__}, which no checkpoint holds; let "
                "get_extra_state return a tensor, or train without out."
            )


def publish(at: Position, keep: int, path: Path) -> None:
    """Point `last`, and `best` where it is that, to the checkpoint of this position; drop all but `keep`.

    A resume does it again: the run may have been killed between a checkpoint and its links.
    """
    store = path.parent
    checkpoint.point(store, "last", path)
    if at.step == 0 and at.best is not None and at.best["epoch"] == at.epoch - 1:
        checkpoint.point(store, "best", path)
    checkpoint.prune(store, keep)


def restore(trainer: Trainer, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Go on from a checkpoint of this very run."""
    known = schema.state_of(state)
    if state["data"] != trainer.splits.train.fingerprint():
        raise ResumeMismatch("The training images differ from those the run was started with; restore them.")
    refuse_other_file(state["run"], trainer.resolved)
    if trainer.passed and known.net:
        trainer.passed.refuse_other_form(known.net, trainer.progress.warn)
    _refuse_without_modules(trainer, tensors)
    parameters, optimizer = dict(trainer.model.named_parameters()), trainer.optimizer
    kept = trainer.resolved.optimizer.keeps({name: p for name, p in parameters.items() if p.requires_grad})
    epochs, stage = trainer.resolved.run.epochs, trainer.resolved.composition.at
    schema.check(
        known,
        tensors,
        _tensors(trainer),
        kept,
        trainer.panel.state.bounds,
        epochs=epochs,
        batches=trainer.feed.sizes,
        passes=stage(min(known.position.epoch, epochs - 1)).passes,
        split=trainer.selecting_split(),
        classes=trainer.splits.train.classes,
    )
    put_weights(trainer.model, tensors, "the run's checkpoint")
    if trainer.passed and known.net:
        trainer.passed.refuse_other_answer(known.net, trainer.progress.warn)
    for name, numbers in state["optimizer"].items():
        optimizer.state[parameters[name]].update(numbers)
    for name, value in under(tensors, OPTIMIZER).items():
        owner, _, key = name.rpartition("/")
        optimizer.state[parameters[owner]][key] = torch.empty_like(kept[owner][key]).copy_(value)
    trainer.panel.state.restore({n: v for n, v in tensors.items() if n.startswith((SAMPLES, TENSORS))})
    trainer.go_on_from(state["position"])
    trainer.meter.restore(state["meter"], under(tensors, METER), trainer.device)


def _refuse_without_modules(trainer: Trainer, tensors: Mapping[str, Tensor]) -> None:
    """ResumeMismatch where the run had a net beside its model that it has no more."""
    known, plugins = trainer.panel.state.stored(), {plugin.name for plugin in trainer.resolved.composition.plugins}
    for name in tensors:
        net = name.removeprefix(TENSORS).removesuffix(SHA256)
        beside = name == f"{TENSORS}{net}{SHA256}" and net.partition("/")[0] in plugins
        if beside and name not in known:
            raise ResumeMismatch(
                f"The checkpoint has {name}, of a net beside the model, {net}, that nobody gives; pass it again if it "
                "was passed from Python when the run was started, else resume an earlier checkpoint."
            )


def _tensors(trainer: Trainer) -> dict[str, Tensor]:
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    stored = prefixed(MODEL, trainer.model.state_dict())
    for parameter, values in trainer.optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                stored[f"{OPTIMIZER}{names[id(parameter)]}/{key}"] = value
    stored |= trainer.panel.state.stored()
    return stored | prefixed(METER, trainer.meter.tensors)


def _optimizer_numbers(trainer: Trainer) -> dict[str, dict[str, Any]]:
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    return {
        names[id(parameter)]: {k: v for k, v in values.items() if not isinstance(v, Tensor) and v is not None}
        for parameter, values in trainer.optimizer.state.items()
    }
