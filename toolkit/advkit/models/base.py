"""What a model is built from: the shape and statistics of the data, and the builder's options."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..data.base import Dataset
from ..errors import CheckpointError
from ..options import Options


@dataclass(frozen=True)
class DataSpec:
    """Shape, number of classes and per-channel statistics, in [0, 1], of the images a model is built for."""

    channels: int
    height: int
    width: int
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, dataset: Dataset) -> DataSpec:
        """Of a training set: its statistics become part of the model."""
        return cls(*dataset.shape, len(dataset.classes), *dataset.statistics())


class Normalize(nn.Module):
    """(x - mean) / std per channel. Part of the model, so attacks and budgets stay in pixels in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class ModelBuilder(ABC):
    """Builds one kind of model. The first line of a subclass's docstring is its summary.

    Subclasses are final; their `Options` derive from `ModelBuilder.Options`.
    """

    name: ClassVar[str]
    """Kebab-case, equal to the entry point's name."""

    class Options(Options):
        """None by default."""

    def __init__(self, options: Options) -> None:
        self.options = options

    @abstractmethod
    def build(self, spec: DataSpec) -> nn.Module:
        """A new module from images (B, C, H, W) in [0, 1] to logits (B, classes), on the CPU.

        Weights are drawn by torch's default initialisation; the caller seeds it, inside `fork_rng`.
        """


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
