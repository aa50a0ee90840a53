"""VGG-16 for small images (Simonyan and Zisserman 2015), with BN and one linear layer, as CAT's code has it."""

from __future__ import annotations

from typing import final

from torch import nn

from ..options import option
from .base import DataSpec, ModelBuilder, Normalised

STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))
"""Channels, in multiples of the width, and the number of convolutions before each of the five poolings."""


@final
class Vgg16Bn(ModelBuilder):
    """VGG-16 with batch normalisation and one linear layer, for images of 8x8 to 64x64.

    Width 64, 3 channels and 10 classes make 14,728,266 parameters; the convolutions have biases, as in CAT's code,
    and start as torch's defaults.
    """

    name = "vgg16-bn"

    class Options(Normalised):
        width: int = option(64, ge=1, help="channels of the first stage; the others have 2x, 4x, 8x and 8x")

    options: Options

    def build(self, spec: DataSpec) -> nn.Module:
        layers: list[nn.Module] = [self.options.layer(spec)]
        channels = spec.channels
        for factor, convolutions in STAGES:
            for _ in range(convolutions):
                out = factor * self.options.width
                layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
                channels = out
            # Rounding up leaves 32x32 as it is, and a pixel of images whose side is not a multiple of 32.
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, spec.classes)]
        return nn.Sequential(*layers)
