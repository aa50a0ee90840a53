"""Runs as a whole: start one, resume one, take the weights of one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from .. import registry
from ..config import runfile
from ..config.layer import Layer, PluginChoice, chosen
from ..config.request import PASSED, SHORT, Request, merged
from ..config.resolve import Resolved
from ..data.base import Dataset, DataSource, Splits
from ..errors import CheckpointError, DataError, OptionError, ResumeMismatch
from ..models.base import DataSpec, ModelBuilder
from ..modules import own_generator
from ..plugin import CORE
from ..rng import derive_seed
from ..storage import checkpoint, files, schema
from ..storage.foreign import fitted, read_weights
from ..storage.run_folder import Mark, RunFolder
from ..storage.weights import MODEL, prefixed, put_weights
from .loop import Position, Trainer, TrainResult
from .progress import Progress, Silent
from .saving import publish, restore, save


def load_data(name: str, root: str | Path | None = None, limit: int | None = None) -> Splits:
    """A registered data set: its training and test images. `limit` is at most so many a split.

    Raises PluginLoad for an unknown name, OptionError and DataError as `advkit train` does.
    """
    source = cast(type[DataSource], registry.load("data set", name))()
    return source.load(Path(root) if root else None, limit or None)


def data_of(resolved: Resolved) -> Splits:
    """The data set that the settings name."""
    data = resolved.data
    if data.name.startswith(PASSED):
        raise DataError("This run was trained on images passed from Python; pass them to advkit.evaluate.")
    return load_data(data.name, data.root, data.limit)


def build_model(resolved: Resolved, train: Dataset) -> nn.Module:
    """The model that the settings name, initialised from the seed."""
    name = resolved.model_name
    if name.startswith(PASSED):
        raise CheckpointError(
            "This run trained a model passed from Python; use advkit.load_weights(model, run) and advkit.evaluate."
        )
    builder = _builder(resolved)
    with own_generator(torch.device("cpu")) as seed:
        seed(derive_seed(resolved.run.seed, CORE, "init"))
        return builder.build(DataSpec.of(train))


def _builder(resolved: Resolved) -> ModelBuilder:
    builder = cast(type[ModelBuilder], registry.load("model", resolved.model_name))
    return builder(builder.Options(**resolved.model_options))


def put_file(model: nn.Module, path: Path, resolved: Resolved) -> None:
    """Copy a file of weights, of advkit's export or of other programs, into the model that `resolved` names.

    Wrappers' prefixes and the names of published files are brought to the model's. Raises CheckpointError.
    """
    weights = read_weights(path)
    named = not resolved.model_name.startswith(PASSED)
    own = fitted(weights, model.state_dict(), _builder(resolved).renamed if named else dict)
    put_weights(model, prefixed(MODEL, own), str(path))


def on_this_machine(resolved: Resolved) -> Resolved:
    """Refuse what can not run here; put the number of threads in force where it was left open."""
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise OptionError("Distributed training is not supported yet; start one process, without torchrun.")
    try:
        torch.zeros(1, device=resolved.run.device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise OptionError(f"run.device = {resolved.run.device!r} can not be used here ({reason}).") from None
    if resolved.run.threads:
        torch.set_num_threads(resolved.run.threads)
    run = resolved.run.model_copy(update={"threads": torch.get_num_threads()})
    origins = dict(resolved.origins)
    origins.setdefault("run.threads", "this machine")
    return replace(resolved, sections={**resolved.sections, "run": run}, origins=origins)


def start(
    resolved: Resolved,
    splits: Splits,
    model: nn.Module,
    *,
    out: Path | None = None,
    init_from: Path | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train from the beginning, into the new folder `out`, or into none; from the weights of `init_from`, if given.

    That is the folder of a run, whose best weights are taken, or a file of weights.
    """
    if init_from is not None and os.path.isfile(init_from):
        put_file(model, init_from, resolved)
    elif init_from is not None:
        load_weights(model, init_from)
    if out is None:
        return Trainer(resolved, splits, model, None, progress).run()
    trainer = Trainer(resolved, splits, model, None, progress)  # whatever it refuses, it refuses before writing
    folder = trainer.folder = RunFolder.create(out)
    with folder.lock:
        folder.describe(resolved)
        save(trainer)  # no seed brings back weights that were passed, or that --init-from names
        return trainer.run()


def resume(
    folder: RunFolder,
    resolved: Resolved,
    splits: Splits,
    model: nn.Module,
    progress: Progress | None = None,
) -> TrainResult:
    """Go on from the newest checkpoint that verifies; from the beginning where there is none yet."""
    seen = progress or Silent()
    with folder.lock:
        for sentence in folder.drift(resolved):
            seen.warn(f"environment.json differs: {sentence}; bits may differ too")
        files.sweep(folder.path)
        files.sweep(files.below(folder.path, folder.checkpoints.name))
        trainer = Trainer(resolved, splits, model, folder, seen)
        newest = checkpoint.newest(folder.checkpoints, seen.warn)
        if newest is not None:
            tensors, state = checkpoint.load(newest)
            schema.check_place(newest, schema.state_of(state))
            restore(trainer, tensors, state)
            trainer.metrics, trainer.history = _history(folder, trainer.position, state["position"], seen)
            _mend_best(folder, trainer.position, seen)
            publish(trainer, newest)
        elif checkpoint.steps(folder.checkpoints):
            raise CheckpointError(
                f"No checkpoint of {folder.path} is intact; restore one, or start again with "
                f"`advkit train --config {folder.path}/run.toml`."
            )
        else:
            trainer.history = folder.history_to(Mark())
        if trainer.finished:
            seen.warn(f"The run in {folder.path} is finished; nothing is left to do.")
            return TrainResult(trainer.model, trainer.history, trainer.position.best, folder.path)
        return trainer.run()


def _history(
    folder: RunFolder, at: Position, stored: Mapping[str, Any], seen: Progress
) -> tuple[Mark, list[dict[str, Any]]]:
    """How far metrics.jsonl really goes, and the lines of the epochs that are done, as far as they are left."""
    mark = Mark(at.metrics_size, at.metrics_crc)
    if mark.size and not os.path.lexists(folder.metrics):
        seen.warn(f"{folder.metrics} is absent: what it said of {at.epoch} epochs is lost")
        return Mark(), []
    if "metrics_crc" not in stored:
        seen.warn(f"{folder.metrics} is taken as it is: the checkpoint is of an advkit that could not check it")
        mark = folder.mark(mark.size)
    rows = folder.history_to(mark)
    best = next((row["epoch"] for row in reversed(rows) if row.get("best")), None)
    if [row["epoch"] for row in rows] != list(range(at.epoch)) or best != (at.best and at.best["epoch"]):
        if len(rows) == at.epoch:
            raise CheckpointError(f"{folder.metrics} and the checkpoint disagree about epochs; restore one of them.")
        seen.warn(f"{folder.metrics} lacks epochs: {len(rows)} of {at.epoch} are left")
    return mark, rows


def _mend_best(folder: RunFolder, at: Position, seen: Progress) -> None:
    """Let `best` name the checkpoint of the best epoch, or say that it is lost."""
    if at.best is None:
        return
    path = folder.end_of(at.best["epoch"])
    if path is not None:
        checkpoint.point(folder.checkpoints, "best", path)
    else:
        seen.warn(
            f"The best checkpoint of {folder.path}, of epoch {at.best['epoch'] + 1}, is lost or damaged; until an "
            "epoch is better, take --checkpoint last"
        )


def resolve_folder(folder: RunFolder, given: Layer | None = None) -> Resolved:
    """The run of a folder. What is given on top must not change it: ResumeMismatch lists the difference."""
    file = Request((folder.file(),))
    stored = Resolved.of(file)
    if given is None or given.empty:
        return stored
    if given.plugins is not None:
        _refuse_other_plugins(stored.chosen, given.names)
    refuse_difference(stored, Resolved.of(file.over(replace(given, plugins=None))))
    return stored


def refuse_difference(stored: Resolved, wanted: Resolved) -> None:
    """A run goes on as it began, or not at all."""
    _refuse_other_plugins(stored.chosen, wanted.chosen)
    _refuse(runfile.difference(runfile.dump(stored), runfile.dump(wanted)))


def _refuse_other_plugins(stored: Sequence[str], wanted: Sequence[str]) -> None:
    if list(stored) != list(wanted):
        raise ResumeMismatch(
            f"The run was started with the plugins {', '.join(stored) or 'none'}, not {', '.join(wanted) or 'none'}; "
            "start a new run with another --out."
        )


def _refuse(changes: Sequence[str]) -> None:
    if changes:
        raise ResumeMismatch(
            f"A run can not change its settings: {'; '.join(changes)}. Leave them out, or start a new run "
            "with another --out."
        )


def train(
    model: str | nn.Module | None = None,
    dataset: str | Splits | None = None,
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
    no_companion: Iterable[str] = (),
    progress: Progress | None = None,
) -> TrainResult:
    """Adversarial training, as `advkit train` does it.

    Args:
        model: a registered name, or any module from images in [0, 1] to logits (B, K), which is trained in place;
            None: that of the recipe or file, else small-cnn.
        dataset: a registered name, or `advkit.Splits`; None: that of the recipe or file, else digits.
        plugins: names, plugin classes or instances, in any order; () is PGD-AT; None: those of the recipe or file.
        recipe: published settings by name, as `--recipe`.
        config: a run file, as `--config`, over the recipe; the other arguments lie over both.
        options: by plugin, {"cat-eps": {"eta": 0.005}}.
        settings: {"attack.steps": 10, "optimizer.lr": 0.05}, as `--set`.
        eps, epochs, batch_size, seed: short for attack.eps, run.epochs, run.batch_size, run.seed.
        out: a new folder for run.toml, metrics and checkpoints; None writes nothing.
        resume_from: the folder of a stopped run of these very arguments.
        init_from: the folder of a run whose best weights are the start, or a file of weights.

    Raises AdvkitError's subclasses, each one sentence.
    """
    names = {
        "model": model if model is None or isinstance(model, str) else f"{PASSED}{type(model).__name__}",
        "dataset": dataset if dataset is None or isinstance(dataset, str) else f"{PASSED}{dataset.train.name}",
    }
    short = {**names, "eps": eps, "epochs": epochs, "batch_size": batch_size, "seed": seed}
    given = merged(
        settings or {},
        {SHORT[name]: (name, value) for name, value in short.items() if value is not None},
        "settings {key} = {value}",
    )
    top = Layer("python", given, options or {}, chosen(plugins), tuple(no_companion))
    resolved = on_this_machine(Resolved.of(Request.of(top, recipe=recipe, config=config)))
    splits = dataset if isinstance(dataset, Splits) else data_of(resolved)
    net = model if isinstance(model, nn.Module) else build_model(resolved, splits.train)
    if resume_from is None:
        start_from = Path(init_from) if init_from else None
        return start(resolved, splits, net, out=Path(out) if out else None, init_from=start_from, progress=progress)
    folder = RunFolder.open(Path(resume_from))
    _refuse_other_plugins(folder.file().names, resolved.chosen)
    # By the file's text: plugins may be classes or objects that no name brings back.
    _refuse(runfile.difference((folder.path / "run.toml").read_text(), runfile.dump(resolved)))
    return resume(folder, resolved, splits, net, progress)


def load_weights(model: nn.Module, run: str | Path, checkpoint: str = "best") -> None:
    """Copy the weights of a run's checkpoint ("best", "last") into `model`, in place.

    Averaged weights are taken where a plugin provided some, as `advkit evaluate` does. Raises CheckpointError.
    """
    tensors, _ = RunFolder.open(Path(run)).load(checkpoint)
    put_weights(model, tensors, str(run), averaged=True)


def evaluate_folder(
    folder: RunFolder, resolved: Resolved, splits: Splits, name: str
) -> tuple[nn.Module, dict[str, Any]]:
    """The run's model with the weights of the checkpoint `name`, and that checkpoint's position."""
    tensors, state = folder.load(name)
    model = build_model(resolved, splits.train).to(resolved.run.device)
    put_weights(model, tensors, str(folder.path), averaged=True)
    return model, state["position"]
