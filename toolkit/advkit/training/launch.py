"""Runs as a whole: start one, or resume one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..arguments import checked, refuse_unused
from ..config import runfile
from ..config.layer import Layer, PluginChoice, chosen
from ..config.request import SHORT, Request, merged
from ..config.resolve import Resolved
from ..data.base import Splits
from ..data.transforms import to_float
from ..errors import CheckpointError, DataError, called, named
from ..global_state import one_at_a_time
from ..judging import broken
from ..stopping import Signals
from ..storage import checkpoint, files, naming, schema
from ..storage.run_folder import Mark, RunFolder
from ..types import Batch
from .added import added, seen_in_training
from .beginning import begin_from
from .code_told import RESUMED, changes, code_of
from .given import first_logits
from .inherited import ancestors, inherited
from .loop import Trainer
from .notes import note
from .objects import refuse_undone, tell_undone, unchanged_if_refused
from .parts import held_out_in_vain, none_held_out, on_this_machine, passed, prepared, refuse_no_test, unusual_type
from .progress import Aloud, Progress, Stoppable, voice
from .ranks import here
from .result import TrainResult, ended, finished, left_by
from .same_run import on_top, refuse_changes, refuse_other_plugins
from .saving import Position, publish, refuse_unsavable, restore, save
from .tracking import tracked


@one_at_a_time
def start(
    resolved: Resolved,
    splits: Splits,
    model: nn.Module,
    *,
    out: Path | None = None,
    init_from: Path | None = None,
    partial_head: bool = False,
    progress: Progress | None = None,
) -> TrainResult:
    """Train from the beginning, into the new folder `out`, or into none; from the weights of `init_from`, if given.

    That is the folder of a run, whose best weights are taken, the last of standard training, or a file of weights.
    """
    ranks = here()
    seen = voice(ranks, Aloud() if progress is None else progress)
    with unchanged_if_refused(resolved, model, init_from is not None):
        handed_on = begin_from(init_from, model, resolved, splits.train, partial_head, seen.warn)
        if init_from and (name := broken(model)):
            raise CheckpointError(f"{init_from} holds NaN or Inf in {name}; give weights from before that.")
        notes = inherited(init_from, handed_on, resolved, splits) if init_from else []
        held_out = *none_held_out(resolved, splits), *held_out_in_vain(resolved, splits)
        for note in (*notes, *splits.cautions, *unusual_type(resolved, model), *held_out):
            seen.warn(note)
        if out is not None:
            refuse_unsavable(model)
        trainer = Trainer(resolved, splits, model, None, seen)  # whatever it refuses, it refuses before writing
        if "model.name" in resolved.files:
            _refuse_other_images(trainer)
        beside = trainer.panel.state.building
        for note in (beyond := [*seen_in_training(trainer), *(beside.notes if beside else [])]):
            seen.warn(note)
        folder = trainer.folder = None if out is None or ranks.rank else RunFolder.create(out)
    with folder.lock if folder else nullcontext():
        if folder:
            begun: dict[str, object] = {"notes": [*notes, *beyond] or None, "added": added(trainer) or None}
            if init_from:
                begun |= {"init_from": str(init_from), "ancestors": [run.model_dump() for run in ancestors(init_from)]}
            folder.describe(resolved, code_of(resolved, model), begun)
        save(trainer)  # no seed brings back weights that were passed, or that --init-from names
        return trainer.run() if out is None else _run(trainer)


def _run(trainer: Trainer) -> TrainResult:
    """To the end, or to a signal that nobody else has taken, as the command line takes all; the folder is there."""
    with Signals(unheard=True) as signals:
        trainer.progress = Stoppable(trainer.progress, signals)
        return trainer.run()


def _refuse_other_images(trainer: Trainer) -> None:
    """OptionError for a net that can not be called on the images, which the first step would find later."""
    some, state = trainer.splits.train.take(slice(0, 2)), trainer.panel.state
    x, y, index = (part.to(state.device) for part in (some.images, some.labels, some.index))
    first_logits(trainer.model, Batch(to_float(x, state.dtype), y, index, torch.zeros_like(index)), state)


@one_at_a_time
def resume(
    folder: RunFolder,
    resolved: Resolved,
    splits: Splits,
    model: nn.Module,
    progress: Progress | None = None,
) -> TrainResult:
    """Go on from the newest checkpoint that verifies; from the beginning where there is none yet."""
    ranks = here()
    seen = voice(ranks, Aloud() if progress is None else progress)
    with nullcontext() if ranks.rank else folder.lock:  # the first process alone writes
        for file in resolved.files.values():
            if file.changed:
                seen.warn(f"{file.changed}; bits may differ too")
        for sentence in folder.drift(resolved, code_of(resolved, model)):
            seen.warn(f"environment.json differs: {sentence}; bits may differ too")
        if not ranks.rank:
            folder.sweep()
        with unchanged_if_refused(resolved, model, True):
            try:
                trainer = Trainer(resolved, splits, model, None if ranks.rank else folder, seen)
            except (CheckpointError, DataError):  # of images or nets beside, which a finished run needs no more
                if not (over := finished(folder, resolved)):
                    raise
                seen.warn(over)
                return left_by(folder, model)
            _restore(trainer, folder, seen)
        if trainer.finished:
            seen.warn(ended(folder.path, trainer.stopped))
            return trainer.result()
        if trainer.folder:
            trainer.folder.refuse_unwritable_metrics()
            note(folder, [f"{RESUMED}{said}" for said in changes(folder, resolved, model)])
        return _run(trainer)


def _restore(trainer: Trainer, folder: RunFolder, seen: Progress) -> None:
    """Put a trainer to the newest checkpoint of the folder, or to the beginning."""
    ranks = here()
    newest = None if ranks.rank else checkpoint.newest(folder.checkpoints, seen.warn)
    if told := ranks.told(newest and newest.name):
        tensors, state = checkpoint.load(folder.checkpoints / told)
        schema.check_place(folder.checkpoints / told, known := schema.state_of(state))
        restore(trainer, tensors, state)
        if newest:
            trainer.metrics, trainer.history = _history(folder, trainer.position, state["position"], seen)
            _mend_best(folder, known.position, seen)
            publish(trainer.position, trainer.resolved.checkpoint.keep, newest)
        trainer.history = ranks.told(trainer.history)
    elif checkpoint.steps(folder.checkpoints):
        raise CheckpointError(
            f"No checkpoint of {folder.path} is intact; restore one, or start again with "
            f"`{called('train', ['--config', f'{folder.path}/run.toml'])}`."
        )
    elif trainer.folder:
        if weights := folder.init_from():
            raise CheckpointError(
                f"{folder.path} has no checkpoint, and its first one had the weights of {weights}, with which the run "
                f"began: restore its checkpoints, or start it again with them and another {named('--out')}."
            )
        if lost := len(folder.history()):
            seen.warn(f"The checkpoints of {folder.path} are gone, after {lost} epochs: the run begins anew")


def _history(
    folder: RunFolder, at: Position, stored: Mapping[str, Any], seen: Progress
) -> tuple[Mark, list[dict[str, Any]]]:
    """How far metrics.jsonl really goes, and the lines of the epochs that are done, as far as they are left."""
    mark = Mark(at.metrics_size, at.metrics_crc)
    if mark.size and not files.there(folder.metrics):
        seen.warn(f"{folder.metrics} is absent: what it said of {at.epoch} epochs is lost")
        return Mark(), []
    if "metrics_crc" not in stored:
        seen.warn(f"{folder.metrics} is taken as it is: the advkit that wrote the checkpoint could not check it")
        mark = folder.mark(mark.size)
    rows = folder.history_to(mark)
    best = next((_chosen(row, row.get("validation")) for row in reversed(rows) if row.get("best")), None)
    steps = sum(row.get("steps", 0) for row in rows) + at.step
    told = [row["epoch"] for row in rows], steps, best, rows[-1].get("stopped", "") if rows else ""
    if told != ([*range(at.epoch)], at.global_step, at.best and _chosen(at.best, at.best), at.stopped):
        if len(rows) == at.epoch:
            raise CheckpointError(
                f"{folder.metrics} and the checkpoint disagree about epochs, the best or the end; restore one of them."
            )
        seen.warn(f"{folder.metrics} lacks epochs: {len(rows)} of {at.epoch} are left")
    return mark, rows


def _chosen(row: Mapping[str, Any], by: object) -> tuple[object, object]:
    """An epoch, and the accuracy that chose it."""
    return row["epoch"], by.get("selected") if isinstance(by, Mapping) else None


def _mend_best(folder: RunFolder, at: schema.Position, seen: Progress) -> None:
    """Let `best` name the checkpoint of the best epoch, or say that it is lost or another run's."""
    if at.best is None:
        return
    path = naming.best_of(folder.checkpoints, at)
    if path is not None:
        checkpoint.point(folder.checkpoints, "best", path)
    else:
        seen.warn(
            f"The best checkpoint of {folder.path}, of epoch {at.best.epoch + 1}, is "
            f"{naming.missing(folder.checkpoints, at)}; until an epoch is better, take {named('--checkpoint', 'last')}"
        )


@contextmanager
def _made_on_the_cpu() -> Iterator[None]:
    """Data and nets are, whatever torch.set_default_device says: run.device is where they go."""
    with torch.device("cpu") if torch.get_default_device().type != "cpu" else nullcontext():
        yield


@checked()
@one_at_a_time
@_made_on_the_cpu()
def train(
    model: str | nn.Module | None = None,
    dataset: Any = None,
    plugins: str | Iterable[PluginChoice] | None = None,
    *,
    recipe: str | None = None,
    config: str | Path | None = None,
    options: Mapping[str, Mapping[str, object]] | None = None,
    settings: Mapping[str, object] | None = None,
    eps: float | str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    resume_from: str | Path | None = None,
    init_from: str | Path | None = None,
    partial_head: bool = False,
    no_companion: Iterable[str] = (),
    progress: Progress | None = None,
) -> TrainResult:
    """Adversarial training, as `advkit train` does it.

    Args:
        model: a registered name, FILE.py:NAME, or any module from images in [0, 1] to logits (B, K), which is trained
            in place; None: that of the recipe or file, else small-cnn.
        dataset: a registered name, FILE.py:NAME, `advkit.Splits`, or what `data/own.py` makes them of: a pair (images,
            labels), a torch data set or DataLoader, or two of them to train and to test on; None: that of the recipe
            or file, else digits.
        plugins: names, plugin classes or instances, in any order, and trackers by name; () is PGD-AT; None: those of
            the recipe or file.
        recipe: published settings by name, as `--recipe`.
        config: a run file, as `--config`, over the recipe; the other arguments lie over both.
        options: by plugin, {"cat-eps": {"eta": 0.005}}.
        settings: {"attack.steps": 10, "optimizer.lr": 0.05}, as `--set`.
        eps, epochs, batch_size, seed: short for attack.eps, run.epochs, run.batch_size, run.seed.
        out: a new folder for run.toml, metrics and checkpoints; None writes nothing.
        resume_from: the folder of a stopped run, whose settings are taken; objects that it was trained with are
            passed again. What else is given must be as it was, but for settings["data.root"], where its data lies now.
        init_from: the folder of a run whose best weights are the start, or a file of weights.
        partial_head: leave the model's last layer as it is where that alone does not fit, as for other classes.

    Raises AdvkitError's subclasses, each one sentence.
    """
    if resume_from is not None:
        begins = {"out": out, "init_from": init_from, "partial_head": partial_head or None}
        refuse_unused("resume_from continues a run as it is", **begins)
    own, names = passed(model, dataset)
    short = {**names, "eps": eps, "epochs": epochs, "batch_size": batch_size, "seed": seed}
    given = merged(
        settings or {},
        {SHORT[name]: (name, value) for name, value in short.items() if value is not None},
        "settings {key} = {value}",
    )
    top = Layer("python", given, options or {}, chosen(plugins), tuple(no_companion))
    if resume_from is not None:
        folder, wanted = RunFolder.open(Path(resume_from)), Request.of(top, recipe=recipe, config=config)
        resolved = on_top(folder.file(), wanted.top) if recipe is None and config is None else Resolved.of(wanted)
        resolved = on_this_machine(resolved, resolved.run.timeout)
        refuse_other_plugins(folder.file().names, resolved.chosen)
        # By the file's text: plugins may be classes or objects that no name brings back.
        refuse_changes(runfile.difference(folder.text(), runfile.dump(resolved)))
        with tracked(progress, wanted.trackers, folder.path) as seen:
            return resume(folder, resolved, *prepared(resolved, given.get("data.root"), own, model), seen)
    wanted = Request.of(top, recipe=recipe, config=config)
    resolved = Resolved.of(wanted)
    resolved = on_this_machine(resolved, resolved.run.timeout)
    refuse_undone(resolved, given, own, model)
    splits, net = prepared(resolved, splits=own, model=model)
    refuse_no_test(resolved, splits)
    into, begin = (Path(path) if path else None for path in (out, init_from))
    with tracked(progress, wanted.trackers, into) as seen:
        tell_undone(seen.warn, resolved if progress is None else None, given, out)
        return start(resolved, splits, net, out=into, init_from=begin, partial_head=partial_head, progress=seen)
