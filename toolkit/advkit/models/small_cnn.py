"""A net of three convolutions that trains adversarially in seconds."""

from __future__ import annotations

from typing import Literal, final

from torch import nn

from ..options import option
from .base import DataSpec, ModelBuilder, Normalised


@final
class SmallCnn(ModelBuilder):
    """Three 3x3 convolutions and a linear layer, for images of 8x8 to 32x32."""

    name = "small-cnn"

    class Options(Normalised):
        width: int = option(24, ge=1, help="channels of the first convolution; the others have 2x and 4x")
        norm: Literal["batch", "none"] = option("batch", help="normalisation after each convolution")

    options: Options

    def build(self, spec: DataSpec) -> nn.Module:
        width, batch_norm = self.options.width, self.options.norm == "batch"
        layers: list[nn.Module] = [self.options.layer(spec)]
        channels, height, breadth = spec.channels, spec.height, spec.width
        for out, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
            layers.append(nn.Conv2d(channels, out, 3, stride, padding=1, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm2d(out))
            layers.append(nn.ReLU())
            channels, height, breadth = out, -(-height // stride), -(-breadth // stride)
        # Flattened, not pooled: on 8x8 images position matters more than it costs.
        layers += [nn.Flatten(), nn.Linear(channels * height * breadth, spec.classes)]
        return nn.Sequential(*layers)
