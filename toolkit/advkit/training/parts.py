"""What a run is made of on this machine: its data, its model, the weights that are put into it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import registry
from ..arguments import checked
from ..compose.replaced import standard
from ..config.request import PASSED, registered
from ..config.resolve import Resolved
from ..data.base import Dataset, DataSource, Splits
from ..data.own import OwnData, as_splits, as_wide_as, loaded
from ..errors import CheckpointError, DataError, OptionError, named, shown
from ..generators import repeatable
from ..global_state import one_at_a_time
from ..models.base import DataSpec, ModelBuilder
from ..models.sizes import built, fitting
from ..modules import placement
from ..own_file import OwnFile, load_all
from ..plugin import CORE
from ..rng import derive_seed
from ..storage.run_folder import RunFolder
from ..storage.weights import put_weights
from .compiled import without_wrapper
from .meeting import join
from .own_weights import refuse_given_before
from .passed_net import told_apart
from .same_run import resolve_folder


@checked()
def load_data(
    name: str,
    root: str | Path | None = None,
    limit: int | None = None,
    max_pixels: int | None = None,
    balance: bool = False,
    size: int = 0,
) -> Splits:
    """A registered data set: its training and test images, in the order of the files.

    `limit` is at most so many a split, at random by a fixed seed, or with `balance` as many of each class as can be.
    `max_pixels` is the most of an image that is decoded from a file. With a `size` pictures are decoded on demand, as
    images of that side.

    Raises PluginLoad for an unknown name, OptionError and DataError as `advkit train` does.
    """
    return loaded(source_of(name, size, max_pixels, root), root, limit, max_pixels, balance, size)


def source_of(name: str, size: int = 0, max_pixels: int | None = None, root: object = None) -> type[DataSource]:
    """What loads a registered data set. Raises PluginLoad; OptionError for what is said of files that it has not."""
    source = cast(type[DataSource], registry.load("data set", name))
    if root and not source.reads:
        raise OptionError(f"{name} is part of advkit and reads no files; leave {named('--data-root', str(root))} out.")
    if size and source.size is None:
        raise OptionError(f"data.size is of pictures that image-folder decodes, and {name} has images; leave it at 0.")
    if max_pixels not in (None, DataSource.max_pixels) and not source.decodes:
        raise OptionError(f"data.max_pixels is of pictures that are decoded, and {name} has images; leave it out.")
    return source


def passed(model: str | nn.Module | None, dataset: object) -> tuple[Splits | None, dict[str, str | None]]:
    """The data that are an object, None for a name; and of both what a run file calls them."""
    own = None if dataset is None or isinstance(dataset, str) else as_splits(dataset)
    return own, {
        "model": f"{PASSED}{type(model).__name__}" if isinstance(model, nn.Module) else model,
        "dataset": f"{PASSED}{own.train.name}" if own else cast(str | None, dataset),
    }


def data_of(resolved: Resolved, root: str | Path | None = None) -> Splits:
    """The data set that the settings name, from `root` where it lies elsewhere now."""
    data, file = resolved.data, resolved.files.get("data.name")
    where = os.path.expanduser(root or data.root) or None
    if file is not None:
        source = OwnData(file)
        source.balance = data.balance
        if key := "size" if data.size else "max_pixels" if data.max_pixels != DataSource.max_pixels else "":
            raise OptionError(f"data.{key} is of pictures that advkit decodes, not of a FILE.py; leave it out.")
        splits = source.load(Path(where) if where else None, data.limit or None)
    elif data.name.startswith(PASSED):
        raise DataError(
            "This run was trained on images passed from Python: pass them again, as `dataset` to advkit.evaluate, "
            "advkit.audit or advkit.export and, with resume_from, to advkit.train; or name what makes them with "
            f"{named('--dataset', 'FILE.py:NAME')}."
        )
    else:
        splits = load_data(data.name, where, data.limit, data.max_pixels, data.balance, data.size)
    if not data.limit:
        return splits
    there, classes = len(torch.unique(splits.train.labels)), len(splits.train.classes)
    if there == classes:
        return splits
    note = f"data.limit = {data.limit} leaves {there} of {classes} classes with training images; see data.balance"
    return replace(splits, notes=(*splits.notes, note))


def refuse_no_test(resolved: Resolved, splits: Splits) -> None:
    """OptionError where images choose `best` that are those of the training."""
    if splits.test is splits.train and resolved.validation.split == "test":
        raise OptionError("validation.split = test has no images: one set was passed; give advkit.Splits(train, test).")


def build_model(resolved: Resolved, train: Dataset | DataSpec, looked_at: bool = False) -> nn.Module:
    """The model that the settings name, initialised from the seed; only `looked_at` where nobody changes its weights.

    OptionError where code gives weights of an earlier model again.
    """
    name, file = resolved.model_name, resolved.files.get("model.name")
    if file is None and name.startswith(PASSED):
        raise CheckpointError(
            "This run trained a model passed from Python: pass it again, as `model` to advkit.evaluate, advkit.audit "
            "or advkit.export and, with resume_from, to advkit.train; or name what makes it with "
            f"{named('--model', 'FILE.py:NAME')}."
        )
    build = partial(built, builder_of(resolved)) if file is None else _builder_of(file, resolved)
    with repeatable(derive_seed(resolved.run.seed, CORE, "init")), fitting(name, resolved.model_options):
        net = build(DataSpec.of(train) if isinstance(train, Dataset) else train)
    if not looked_at:
        refuse_given_before(net, name if file is None else file.short)
    return net


def _builder_of(file: OwnFile, resolved: Resolved) -> Callable[[DataSpec], nn.Module]:
    """A builder of the net that a file gives. What its import draws is drawn here, before the seed is set."""
    file.load()

    def build(spec: DataSpec) -> nn.Module:
        classes, channels = spec.classes, spec.channels
        known = {
            "classes": classes,
            "num_classes": classes,
            "channels": channels,
            "in_channels": channels,
            "spec": spec,
        }
        net = file.made(known, resolved.model_options)
        if not isinstance(net, nn.Module):
            raise OptionError(f"{file.short} gives {shown(net)}; let it give a torch Module.")
        return net

    return build


def prepared(
    resolved: Resolved, root: object = None, splits: Splits | None = None, model: object = None
) -> tuple[Splits, nn.Module]:
    """The data and the net of a run: those that are passed, else those that the settings name, with data at `root`.

    Data whose classes were counted have as many as a net that is nobody's package has logits.
    """
    load_all(resolved.files)
    splits = data_of(resolved, str(root) if root else None) if splits is None else splits
    net = model if isinstance(model, nn.Module) else build_model(resolved, splits.train)
    return (splits if registered(resolved.model_name) else as_wide_as(splits, net)), net


def unusual_type(resolved: Resolved, model: nn.Module) -> list[str]:
    """A sentence where a model that is built here is not of float32, because torch's default dtype is not."""
    default = torch.get_default_dtype()
    if resolved.model_name.startswith(PASSED) or placement(model)[1] is not default or default is torch.float32:
        return []
    dtype = str(default).removeprefix("torch.")
    return [
        f"{resolved.model_name} is built in {dtype}, torch's default dtype in this process, which run.toml does not "
        "record; elsewhere the run is in float32, with other bits"
    ]


def none_held_out(resolved: Resolved, splits: Splits) -> list[str]:
    """A sentence where a share of the images is to be held out, and is none."""
    validation, n = resolved.validation, len(splits.train)
    if validation.split != "validation" or not validation.fraction or round(validation.fraction * n):
        return []
    return [
        f"validation.fraction = {validation.fraction:g} of {n} images is none: nothing is validated, and the last "
        "epoch counts as the best; raise it, or set 0"
    ]


def held_out_in_vain(resolved: Resolved, splits: Splits) -> list[str]:
    """A sentence where training images are held out, and others choose."""
    share, n = resolved.validation.fraction, len(splits.train)
    if resolved.validation.split != "test" or not (unused := round(share * n)):
        return []
    return [
        f"validation.fraction = {share:g} holds {unused} of {n} training images out, and validation.split = test "
        "leaves them nothing to judge; set validation.fraction=0 to train on all"
    ]


def builder_of(resolved: Resolved) -> ModelBuilder:
    """What builds the net that an installed package has."""
    builder = cast(type[ModelBuilder], registry.load("model", resolved.model_name))
    options = builder.Options(**resolved.model_options)
    return registry.answer("model", builder, (builder,), builder, options)


def refused_here(resolved: Resolved) -> str:
    """Why the device of a run is none of this machine; "" where it is one."""
    try:
        torch.zeros(1, device=resolved.run.device).item()
    except (RuntimeError, AssertionError) as error:
        return f"run.device = {resolved.run.device!r} can not be used here ({str(error).splitlines()[0]})"
    return ""


def on_this_machine(resolved: Resolved, timeout: float | None = None) -> Resolved:
    """Refuse what can not run here; put the number of threads in force where it was left open.

    Of several processes, each meets the others here where there is a `timeout`, their seconds of patience.
    """
    if unusable := refused_here(resolved):
        raise OptionError(f"{unusable}.")
    if resolved.run.threads:
        torch.set_num_threads(resolved.run.threads)
    if timeout is not None:
        join(resolved.run, timeout)
    run = resolved.run.model_copy(update={"threads": torch.get_num_threads()})
    origins = dict(resolved.origins)
    origins.setdefault("run.threads", "this machine")
    return replace(resolved, sections={**resolved.sections, "run": run}, origins=origins)


WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel)
"""Modules of torch that hold a net as `module`."""


@checked()
@one_at_a_time
def load_weights(model: nn.Module, run: str | Path, checkpoint: str | None = None) -> None:
    """Copy the weights of a run's checkpoint ("best", "last") into `model`, or what it wraps, in place.

    None is "best", but "last" of standard training, of which no epoch is the best under attack. Averaged weights are
    taken where a plugin provided some, as `advkit evaluate` does. Warns where the model's type rounds them. Raises
    CheckpointError.
    """
    outer: nn.Module | None = None
    while model is not outer:  # of a wrapper in a wrapper, too
        outer, model = model, cast(nn.Module, model.module) if isinstance(model, WRAPPERS) else without_wrapper(model)
    folder = RunFolder.open(Path(run))
    tensors, state = folder.load(checkpoint) if checkpoint else judged_weights(folder)
    other = told_apart(model, tensors, state, str(run))
    said = put_weights(model, tensors, str(run), averaged=True).said
    if sentences := [*filter(None, (*folder.doubts(), other, said))]:
        warnings.warn("; ".join(sentences), stacklevel=4)


def judged_weights(folder: RunFolder) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of the checkpoint of a run that is judged where none is named."""
    return folder.load(judged_by(folder))


def judged_by(folder: RunFolder) -> str:
    """Its name: "best", or "last" of standard training, of which no epoch is the best under attack."""
    file, composition = folder.file(), None
    if file.names and standard(file.settings):
        with suppress(CheckpointError):  # whose plugins are not here
            composition = resolve_folder(folder).composition
    return "last" if standard(file.settings, composition) else "best"
