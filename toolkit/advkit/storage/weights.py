"""Weights by name: into a model, out of other people's files, and what tells them apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..models.base import Normalize

WRAPPERS = ("state_dict", "model", "net", "model_state_dict")
"""Keys below which other people's files keep the state dict."""


def put_weights(model: nn.Module, tensors: Mapping[str, Tensor], where: str, averaged: bool = False) -> None:
    """Copy the weights that a checkpoint stores as "model/NAME" into `model`.

    `averaged` prefers those stored as "evaluated/NAME", where a plugin provided some. Raises CheckpointError if
    they are another architecture's; `where` says whose they are.
    """
    weights = _stored(tensors, "model/")
    own = model.state_dict()
    fitting = {name for name in weights.keys() & own.keys() if weights[name].shape == own[name].shape}
    different = sorted({*weights, *own} - fitting)
    if different:
        layers = [name for name, layer in model.named_modules() if isinstance(layer, Normalize)]
        advice = "use the model and the data set they were trained with"
        if any(f"{name}.mean" not in weights or weights[f"{name}.mean"].dim() != 4 for name in layers):
            advice += "; if they are an export without normalisation, give the one with it"
        raise CheckpointError(
            f"The weights of {where} do not fit this model (first difference: {different[0]}); {advice}."
        )
    model.load_state_dict(weights | (_stored(tensors, "evaluated/") if averaged else {}))


def _stored(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values."""
    found = hashlib.sha256()
    for name, value in sorted(weights.items()):
        plain = value.detach().cpu().contiguous()
        found.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        found.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from a .safetensors file, or from what torch.save wrote; nothing in it is executed."""
    try:
        if path.suffix == ".safetensors":
            found: Any = safetensors.torch.load(path.read_bytes())
        else:
            # weights_only: tensors and plain containers; a file that would run code is refused.
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; give a run folder or a file of weights.") from None
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        if "weights_only" in reason:  # torch's own advice is to switch the protection off
            reason = "it is damaged, or holds more than tensors"
        reason = reason.split(". ")[0][:120]
        raise CheckpointError(
            f"{path} can not be read as weights ({reason}); give a .safetensors file or a state dict saved by "
            "torch.save."
        ) from None
    if isinstance(found, dict) and any(str(name).startswith("model/") for name in found):
        raise CheckpointError(
            f"{path} is part of a run's checkpoint; give the run's folder, or write its weights with `advkit export`."
        )
    for key in WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path} holds no state dict, a dictionary of tensors by name; save model.state_dict().")
    wrapped = all(str(name).startswith("module.") for name in found)  # DataParallel
    return {str(name).removeprefix("module.") if wrapped else str(name): value for name, value in found.items()}
