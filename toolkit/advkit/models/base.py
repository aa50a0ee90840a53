"""What a model is built from: the shape and statistics of the data, and the builder's options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..arguments import checked
from ..data.base import Dataset
from ..options import OptionModel


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
    """(x - mean) / std per channel. Part of the model, so attacks and budgets stay in pixels in [0, 1].

    `stored` is whether both are in the state dict; where files of weights are other people's, they are not.
    """

    mean: Tensor
    std: Tensor

    @checked()
    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], stored: bool = True) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=stored)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=stored)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class ModelBuilder(ABC):
    """Builds one kind of model. The first line of a subclass's docstring is its summary.

    Subclasses are final; their `Options` derive from `ModelBuilder.Options`.
    """

    name: ClassVar[str]
    """Kebab-case, equal to the entry point's name."""
    distribution: ClassVar[str] = ""
    """The package that defines the net, where it is not the builder's own: verdicts depend on its version."""

    class Options(OptionModel):
        """None by default."""

    def __init__(self, options: Options) -> None:
        self.options = options

    @abstractmethod
    def build(self, spec: DataSpec) -> nn.Module:
        """A new module from images (B, C, H, W) in [0, 1] to logits (B, classes), on the CPU.

        Weights are drawn by torch's default initialisation; the caller seeds it, inside `fork_rng`.
        """

    def renamed(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of published files under this model's names; as it is where nothing is known of others."""
        return weights
