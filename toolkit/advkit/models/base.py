"""What a model is built from: the shape and statistics of the data, and the builder's options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import field_validator
from torch import Tensor, nn

from ..arguments import checked
from ..data.base import Dataset
from ..errors import OptionError
from ..numerals import parse_number
from ..options import OptionModel, option


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

    `mean` and `std` hold a number for each channel, of images in [0, 1]. `stored` is whether both are in the state
    dict; where files of weights are other people's, they are not. Raises OptionError.
    """

    mean: Tensor
    std: Tensor

    @checked()
    def __init__(self, mean: Iterable[float], std: Iterable[float], stored: bool = True) -> None:
        super().__init__()
        try:
            given = _of_images([*map(float, mean)], [*map(float, std)])
        except ValueError as error:
            raise OptionError(f"The normalisation {error}.") from None
        for name, values in zip(("mean", "std"), given, strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=stored)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def statistics(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Means and deviations by channel of "0.5,0.4,0.3,0.2,0.2,0.2": the former first. Raises ValueError."""
    try:
        numbers = [parse_number(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    half = len(numbers) // 2
    if not half or len(numbers) % 2:
        raise ValueError("is neither a name nor means and then as many deviations, such as 0.5,0.25")
    return _of_images(numbers[:half], numbers[half:])


def _of_images(mean: list[float], std: list[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Means and deviations that images in [0, 1] may have; ValueError for others."""
    if not mean or len(mean) != len(std):
        raise ValueError(f"has {len(mean)} means and {len(std)} deviations, but needs one of each by channel")
    if not all(0 <= value <= 1 for value in mean) or not all(0 < value <= 1 for value in std):
        raise ValueError(
            "has means beyond [0, 1] or deviations beyond (0, 1], which images in [0, 1] can not have; divide gray "
            "levels by 255"
        )
    return tuple(mean), tuple(std)


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

        All that has weights is built anew at every call, without a cache: one process may need several such nets, and
        refuses weights that it has had. They are drawn by torch's default initialisation, seeded by the caller, inside
        `fork_rng`.
        """

    def renamed(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of published files under this model's names; as it is where nothing is known of others.

        Raises CheckpointError where a file is of another net than the options say; the file is named before it.
        """
        return weights


class Normalised(ModelBuilder.Options):
    """What a net is told that has its normalisation as its first layer."""

    normalise: str = option(
        "data",
        help="inside the net: data (mean and deviation of the training set), none, or means and then deviations by "
        "channel, such as 0.5,0.25",
    )

    @field_validator("normalise")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in ("data", "none"):
            statistics(value)
        return value

    def layer(self, spec: DataSpec) -> nn.Module:
        """The first layer; one that does nothing keeps the names of the others."""
        if self.normalise == "none":
            return nn.Identity()
        mean, std = (spec.mean, spec.std) if self.normalise == "data" else statistics(self.normalise)
        if len(mean) not in (1, spec.channels):
            raise OptionError(
                f"model.normalise has {len(mean)} means, and the images {spec.channels} channels; give as many."
            )
        return (
            Normalize(mean, std) if len(mean) == spec.channels else Normalize(mean * spec.channels, std * spec.channels)
        )
