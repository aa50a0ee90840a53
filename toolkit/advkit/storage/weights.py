"""Weights by name: the prefixes a checkpoint stores them under, into a model, and what tells them apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..bits import as_bytes, same_bits
from ..errors import CheckpointError, called, named as argument, says
from ..explained import raise_own
from ..models.base import Normalize
from ..precision import named

MODEL, OPTIMIZER, SAMPLES, TENSORS, METER, EVALUATED = PREFIXES = (
    "model/",
    "optimizer/",
    "samples/",
    "tensors/",
    "meter/",
    "evaluated/",
)
"""Parameters and buffers; momentum by parameter; per-sample and other state of plugins; sums of an unfinished epoch;
averaged weights, where a plugin provided some."""


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those stored below `prefix`, by their own names."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names they are stored under."""
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def evaluated(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a checkpoint that are judged: the averaged ones, where there are some, in place of its own."""
    own = under(tensors, MODEL)
    return own | {name: value.to(own.get(name, value)) for name, value in under(tensors, EVALUATED).items()}


class Placed(NamedTuple):
    """What became of weights that were copied into a model."""

    left: list[str]
    """The names that `partial_head` left out."""
    said: str
    """Where the model's types hold less than theirs, or images enter otherwise than its settings say; "" elsewhere."""
    notes: Sequence[str] = ()
    """What results of the weights have to say, as an export's export.json has it."""


def put_weights(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    where: str,
    averaged: bool = False,
    partial_head: bool = False,
    names: Mapping[str, str] | None = None,
) -> Placed:
    """Copy the weights that a checkpoint stores below `MODEL` into `model`.

    `averaged` prefers those below `EVALUATED`, where a plugin provided some. Raises CheckpointError if they are
    another architecture's, or numbers of another sort; `where` says whose they are. `partial_head` leaves the model's
    last layer as it is where that is all that does not fit. `names` are those that a file has for the model's.
    """
    names = names or {}
    weights, left = evaluated(tensors) if averaged else under(tensors, MODEL), list[str]()
    own = model.state_dict()
    fitting = {name for name in weights.keys() & own.keys() if weights[name].shape == own[name].shape}
    # Weights saved by torch before 0.4.1 lack this buffer, which enters no forward; torch itself takes them too.
    uncounted = {name for name in own.keys() - weights.keys() if name.endswith("num_batches_tracked")}
    different = sorted({*weights, *own} - fitting - uncounted)
    if partial_head and different and _is_head(own, weights, different):
        left = different
        weights = {name: value for name, value in weights.items() if name in fitting}
        uncounted |= {name for name in left if name in own}
        different = []
    if different and (sentence := _other_classes(weights, own, different, names)):
        raise CheckpointError(f"The weights of {where} do not fit this model: {sentence}")
    if different:
        layers = [name for name, layer in model.named_modules() if isinstance(layer, Normalize)]
        advice = "use the model and the data set they were trained with"
        means = [f"{name}.mean" for name in layers if f"{name}.mean" in own]
        if any(name not in weights or weights[name].dim() != 4 for name in means):
            advice += "; if they are an export without normalisation, give the one with it"
        raise CheckpointError(
            f"The weights of {where} do not fit this model (first difference: "
            f"{_both(different[0], weights, own, names)}); {advice}."
        )
    rounded = _rounded(weights, own, where)  # first: what is compared below has to be numbers of a sort
    _refuse_impossible(model, weights, where)
    sentences = rounded, _as_they_are(model, weights, where)
    try:
        model.load_state_dict(weights | {name: own[name] for name in uncounted})
    except Exception as error:  # of a state_dict that leaves out what load_state_dict asks for
        raise_own(error, "the model's own load_state_dict raised it")
        why = " ".join(says(error).split())[:200]
        raise CheckpointError(
            f"The weights of {where} have the names of the model's state_dict(), but its load_state_dict() does not "
            f"take them ({why}); let the one take what the other gives."
        ) from error
    return Placed(left, "; ".join(filter(None, sentences)))


def _refuse_impossible(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """CheckpointError for statistics that no images have, with which logits are NaN or turned about."""
    for prefix, layer in model.named_modules():
        names = ("running_var", "num_batches_tracked") if isinstance(layer, nn.modules.batchnorm._NormBase) else ()
        below = {f"{prefix}.{name}".removeprefix("."): "below 0" for name in names}
        if isinstance(layer, Normalize):
            below[f"{prefix}.std".removeprefix(".")] = "0 or below"
        for name, why in below.items():
            value = _wide(weights[name]) if name in weights else None  # float8 and unsigned types do not compare
            if value is not None and bool(((value < 0) if why == "below 0" else (value <= 0)).any()):
                raise CheckpointError(
                    f"The weights of {where} are damaged: {name} is {why}, which no training gives; take others."
                )


def _both(name: str, weights: Mapping[str, Tensor], own: Mapping[str, Tensor], names: Mapping[str, str]) -> str:
    """What is called `name` in the model, there and here, each with its own name and shape."""
    there = f"{names.get(name, name)} {tuple(weights[name].shape)}" if name in weights else ""
    here = f"{name} {tuple(own[name].shape)}" if name in own else ""
    return f"{there} there, {here} here" if there and here else f"{there} only there" if there else f"{here} only here"


def _as_they_are(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> str:
    """A sentence where the model is built to normalise and the weights do not, such as those under TRADES' names."""
    for name, layer in model.named_modules():
        if isinstance(layer, Normalize) and f"{name}.mean" in weights:
            own = _wide(layer.mean), _wide(layer.std)
            theirs = _wide(weights[f"{name}.mean"]), _wide(weights[f"{name}.std"])
            nothing = not theirs[0].any() and theirs[1].eq(1).all()
            if nothing and not all(map(torch.equal, own, theirs)):
                return (
                    f"{where} has no normalisation, so images enter its net as they are; if its code normalises "
                    "outside the net, give the numbers: model.normalise=MEANS,DEVIATIONS"
                )
    return ""


def _rounded(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], where: str) -> str:
    """What loses digits in the model's types, as a sentence; CheckpointError for what would become something else."""
    rounded = []
    for name, value in weights.items():
        here = own[name]
        if value.dtype == here.dtype:
            continue
        alike = _sort(value) == _sort(here)
        castable = alike or not (any(_sort(here)) or value.is_complex())
        try:
            exact = castable and same_bits(_wide(value.to(here.dtype)), _wide(value))
        except (NotImplementedError, RuntimeError):  # packed bits, which torch makes no numbers of
            alike = exact = False
        if not exact and not (alike and any(_sort(here))):
            raise CheckpointError(
                f"The weights of {where} do not fit this model: {name} is {named(value.dtype)} there and "
                f"{named(here.dtype)} here; save the state_dict() of the float model they were made of."
            )
        if not exact and not same_bits(value.isfinite(), value.to(here.dtype).isfinite()):
            raise CheckpointError(
                f"The weights of {where} do not fit this model: {name} holds numbers beyond {named(here.dtype)}, the "
                f"model's type, where they would be infinite; save a model that was trained in {named(here.dtype)}."
            )
        if not exact:
            rounded.append(name)
    if not rounded:
        return ""
    first, more = rounded[0], f" and {len(rounded) - 1} more" if len(rounded) > 1 else ""
    return (
        f"{where}: {first}{more} {'are' if more else 'is'} rounded from {named(weights[first].dtype)} to "
        f"{named(own[first].dtype)}, the model's"
    )


def _sort(value: Tensor) -> tuple[bool, bool]:
    return value.is_floating_point(), value.is_complex()


def _wide(value: Tensor) -> Tensor:
    """Numbers in the widest type of their sort."""
    return value.detach().cpu().to(torch.complex128 if value.is_complex() else torch.float64)


def _is_head(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], different: list[str]) -> bool:
    """Whether what differs is the last layer of the model, and one layer of the file at most."""
    here = {name.rpartition(".")[0] for name in different if name in own}
    there = {name.rpartition(".")[0] for name in different if name in weights}
    return here == {list(own)[-1].rpartition(".")[0]} and len(there) <= 1


def _other_classes(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], different: list[str], names: Mapping[str, str]
) -> str:
    """A sentence where all that differs is how many rows one layer has, as the last one of a net for other classes."""
    pairs = [(weights[name].shape, own[name].shape) for name in different if name in weights and name in own]
    rows = {(there[:1], here[:1]) for there, here in pairs}
    one_layer = len({name.rpartition(".")[0] for name in different}) == 1
    if len(pairs) < len(different) or not one_layer or len(rows) != 1 or any(a[1:] != b[1:] for a, b in pairs):
        return ""
    ((there, here),) = rows
    if not there or not here:
        return ""
    layer, other = (name.rpartition(".")[0] for name in (different[0], names.get(different[0], different[0])))
    ours = "" if other == layer else f"{layer} "
    anew = f"{called('train', ['--init-from', 'FILE'])} with {argument('--partial-head')}"
    return (
        f"{other} has {there[0]} outputs there and {ours}{here[0]} here; if these are classes, bring that layer to the "
        f"data's before ({anew} begins it anew), or take data of as many."
    )


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values."""
    sha = hashlib.sha256()
    for name, value in sorted(weights.items()):
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        sha.update(as_bytes(value.cpu()).numpy().data)
    return sha.hexdigest()
