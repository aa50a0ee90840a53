"""Two small nets and one batch, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

CLASSES = 4


@dataclass(frozen=True)
class Data:
    """One batch of a training set of `samples`. The ids are neither sorted nor dense."""

    x: Tensor
    y: Tensor
    index: Tensor
    samples: int = 30

    @property
    def of_naive(self) -> tuple[Any, ...]:
        return self.x, self.y, CLASSES

    @property
    def of_step(self) -> tuple[Tensor, ...]:
        return self.x, self.y, self.index


def build(batch_norm: bool) -> nn.Module:
    """Two convolutions and a linear layer for images of 2 x 6 x 6."""
    layers: list[nn.Module] = []
    with torch.random.fork_rng():
        torch.manual_seed(13)
        for channels, width, stride in ((2, 5, 1), (5, 6, 2)):
            layers.append(nn.Conv2d(channels, width, 3, stride, padding=1, bias=not batch_norm))
            if batch_norm:
                norm = nn.BatchNorm2d(width)
                for tensor in (norm.weight, norm.running_var):  # as after some training: not 1, and not 0
                    nn.init.uniform_(tensor, 0.3, 0.9)
                for tensor in (norm.bias, norm.running_mean):
                    nn.init.uniform_(tensor, -0.3, 0.3)
                layers.append(norm)
            layers.append(nn.ReLU())
        readout = nn.Linear(54, CLASSES)
        nn.init.normal_(readout.weight, std=0.3)  # logits of a size at which samples differ
    return nn.Sequential(*layers, nn.Flatten(), readout).double()


@pytest.fixture(params=["batch-norm", "plain"])
def net(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param == "batch-norm")


@pytest.fixture
def normed() -> nn.Module:
    return build(batch_norm=True)


@pytest.fixture
def data() -> Data:
    """Eight images, some of their pixels exactly 0 or 1, with random labels."""
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(8, 2, 6, 6, generator=generator, dtype=torch.float64) * 1.3 - 0.15).clamp(0, 1)
    return Data(x, torch.randint(CLASSES, (8,), generator=generator), torch.tensor([17, 3, 29, 8, 0, 21, 5, 12]))
