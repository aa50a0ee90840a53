"""Weights of a file or of another run put into a net, and what is known beside them of the net that they are of."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import reading, registry
from ..config.request import registered
from ..config.resolve import Resolved
from ..data.base import Dataset
from ..errors import CheckpointError, DataError, OptionError, called, shown
from ..models.base import Normalize
from ..models.elsewhere import Elsewhere, untagged
from ..options import validate
from ..storage.files import there
from ..storage.foreign import read_weights, refuse_export
from ..storage.foreign_names import Normalisation, put_named
from ..storage.run_folder import RunFolder, of_a_run
from ..storage.weights import Placed, digest, evaluated, prefixed, put_weights
from .parts import build_model, builder_of, judged_weights
from .passed_net import told_apart

RECORD_CAP = 1 << 24
"""Bytes of export.json, which has the name of every class."""


class Origin(NamedTuple):
    """The net that weights are of, as run.toml or export.json has it; what they leave unsaid is empty."""

    where: str
    name: str
    options: Mapping[str, object]
    classes: Sequence[object]
    inside: Normalisation | None = None
    notes: Sequence[str] = ()
    """What results of the weights have to say."""

    def refuse_other(self, resolved: Resolved, classes: Sequence[str]) -> None:
        """DataError for its classes in another order; CheckpointError where the net normalises, and it did not."""
        if list(self.classes) != list(classes) and sorted(map(str, self.classes)) == sorted(classes):
            raise DataError(
                f"{self.where} is of the classes {listed(self.classes)}, in that order, and these data have them in "
                f"another, {listed(classes)}; bring them into that of the weights."
            )
        how = _how(resolved)
        if how not in (None, "none") and self.options.get("normalise") == "none":
            raise CheckpointError(
                f"{self.where} is of a net without normalisation, and model.normalise = {how}; set "
                "model.normalise=none."
            )

    def otherwise(self, resolved: Resolved) -> str:
        """A sentence on options of the net, but for its normalisation, that are others now; "" where none are."""
        was, now = self.options, resolved.model_options
        if registered(resolved.model_name) and issubclass(type(builder_of(resolved)), Elsewhere):
            was, now = untagged(was), untagged(now)
        same_file = self.name == resolved.model_name and not registered(self.name)  # whose defaults nobody knows
        keys = was.keys() | now.keys() if same_file else was.keys() & now.keys()
        others = [
            f"model.{key} {_said(was, key)} (now {_said(now, key)})"
            for key in sorted(keys - ({"normalise"} if _how(resolved) else set()))
            if _said(was, key) != _said(now, key)
        ]
        if not others:
            return ""
        return f"{self.where} is of a net with {', '.join(others)}, so its weights may compute something else here"


def _said(options: Mapping[str, object], key: str) -> str:
    value = options.get(key, "unset")
    return shown(list(value)) if isinstance(value, tuple) else str(value)


def _how(resolved: Resolved) -> str | None:
    """The setting model.normalise of a registered net that has one."""
    how = resolved.model_options.get("normalise") if registered(resolved.model_name) else None
    return how if isinstance(how, str) else None


def _unstored(model: nn.Module) -> bool:
    """Whether no normalisation is among the weights of a net."""
    return not any(layer.state_dict() for layer in model.modules() if isinstance(layer, Normalize))


def put_file(
    model: nn.Module,
    path: Path,
    resolved: Resolved,
    partial_head: bool = False,
    anew: bool = False,
    classes: Iterable[str] = (),
) -> Placed:
    """Copy a file of weights, of advkit's export or of other programs, into the model that `resolved` names.

    Wrappers' prefixes and the names of published files are brought to the model's. `anew`: the model is built anew
    from settings, as that of a run. `classes` are those of the data. Raises CheckpointError; DataError for an export
    of the same classes in another order.
    """
    weights, said = read_weights(path, resolved.checkpoint.max_bytes)
    builder = builder_of(resolved) if registered(resolved.model_name) else None
    origin, how = _exported(path, weights), _how(resolved)
    if origin:
        origin.refuse_other(resolved, [*classes])
    renamed = partial(registry.answer, "model", type(builder), (Mapping,), builder.renamed) if builder else dict
    beside = origin.inside if origin and how and _unstored(model) else None
    placed = put_named(model, weights, str(path), renamed, how, anew, partial_head, beside)
    said = _together(said, placed.said, origin and origin.otherwise(resolved))
    return placed._replace(said=said, notes=origin.notes if origin else ())


def _together(*sentences: str | None) -> str:
    return "; ".join(filter(None, sentences))


def _exported(path: Path, weights: Mapping[str, Tensor]) -> Origin | None:
    """What the export.json beside a file says of the net, if it is of these weights."""
    try:
        known = json.loads(reading.read(path.parent / "export.json", RECORD_CAP))
    except (OSError, ValueError, RecursionError):
        return None
    alike = weights, prefixed("net.", weights)  # the Hub has nets of timm without their place in one of advkit's
    if not isinstance(known, dict) or str(known.get("sha256_of_weights")) not in map(digest, alike):
        return None
    options, classes, notes = (known.get(key) for key in ("architecture_options", "classes", "notes"))
    mean, std = (_numbers(known.get(key)) for key in ("mean", "std"))
    inside = Normalisation(mean, std) if len(mean) == len(std) > 0 else None
    return Origin(
        str(path),
        str(known.get("architecture")),
        options if isinstance(options, dict) else {},
        classes if isinstance(classes, list) else [],
        inside,
        [str(note) for note in notes] if isinstance(notes, list) else (),
    )


def _numbers(values: object) -> Tensor:
    fits = isinstance(values, list) and all(type(one) is float for one in values)
    return torch.tensor(values if fits else [])


def begin_from(
    path: Path | None,
    model: nn.Module,
    resolved: Resolved,
    train: Dataset,
    partial_head: bool,
    tell: Callable[[str], None],
) -> Sequence[str]:
    """Put the weights of a file or of a run's folder into the model, if any; `tell` what `partial_head` left out.

    `train` are the images that the model is built for. Returns what the export.json of a file says of its weights.
    """
    if path is None:
        if partial_head:
            raise OptionError("partial_head is about the weights of init_from; give both, or leave it out.")
        return ()
    if os.path.isfile(path):
        placed: Placed = put_file(model, path, resolved, partial_head, True, train.classes)
    elif not there(path):
        raise CheckpointError(f"{path} does not exist; give a file of weights, or the folder of a run.")
    else:
        refuse_export(path)
        placed = _put_run(model, path, resolved, train, partial_head)
    if placed.said:
        tell(placed.said)
    if partial_head and placed.left:
        tell(f"Left out of {path}, so that they begin as the model has them: {', '.join(placed.left)}.")
    elif partial_head:
        tell(f"Nothing was left out of {path}: all weights fit, those of the last layer, too.")
    return placed.notes


def _put_run(model: nn.Module, path: Path, resolved: Resolved, train: Dataset, partial_head: bool) -> Placed:
    """Copy the weights of a run that are judged into a model, which is built anew from settings."""
    folder, how = RunFolder.open(path), _how(resolved)
    settings, (tensors, state) = folder.file().settings, judged_weights(folder)
    options = {key.removeprefix("model."): value for key, value in settings.items() if key.startswith("model.")}
    classes = state.get("classes")
    origin = Origin(str(path), str(options.pop("name")), options, classes if isinstance(classes, list) else [])
    origin.refuse_other(resolved, train.classes)
    beside, unknown = None, ""
    if how and _unstored(model) and origin.name == resolved.model_name:
        if origin.options.get("normalise") == "data" and state.get("data") not in (None, train.fingerprint()):
            unknown = (
                f"{path} was trained on other images, by whose mean and deviation its net normalises, and they are "
                "not among its weights"
            )
        elif origin.options != resolved.model_options:
            beside = _normalisation(origin, resolved, train)
    placed, other = put_named(model, evaluated(tensors), str(path), dict, how, True, partial_head, beside), ""
    if not partial_head:  # afterwards, for it puts the run's own weights in, and its normalisation with them
        other = told_apart(model, tensors, state, str(path))
        put_weights(model, tensors, str(path), averaged=True)
    if unknown and how == "data":
        export = f"export.json of `{called('export', [str(path)])}`"
        raise CheckpointError(f"{unknown}; give them, which {export} has: model.normalise=MEANS,DEVIATIONS.")
    if unknown:
        unknown += f"; model.normalise = {how} is taken as it is"
    return placed._replace(said=_together(other, placed.said, unknown, origin.otherwise(resolved)))


def _normalisation(origin: Origin, resolved: Resolved, train: Dataset) -> Normalisation | None:
    """That of the net of a run, which it is built anew for."""
    options = {key: origin.options.get(key, value) for key, value in resolved.model_options.items()}
    with of_a_run(Path(origin.where)):
        options = validate(type(builder_of(resolved)).Options, options, where="model").model_dump()
    net = build_model(replace(resolved, model_options=options), train)
    layers = [layer for layer in net.modules() if isinstance(layer, Normalize)]
    return Normalisation(layers[0].mean.flatten(), layers[0].std.flatten()) if len(layers) == 1 else None


def listed(classes: Sequence[object]) -> str:
    """Names of classes, the first ten."""
    return ", ".join(map(str, classes[:10])) + (f" and {len(classes) - 10} more" if len(classes) > 10 else "")
