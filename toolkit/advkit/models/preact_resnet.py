"""PreAct-ResNet-18 for small images (He et al. 2016, Identity Mappings in Deep Residual Networks)."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from ..options import option
from .base import DataSpec, ModelBuilder, Normalised


class PreActBlock(nn.Module):
    """BN, ReLU, 3x3 convolution, twice. A shortcut to a new shape is a 1x1 convolution after the first."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        same = stride == 1 and channels == out
        self.shortcut = None if same else nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.bn1(x).relu()
        shortcut = x if self.shortcut is None else self.shortcut(active)
        residual: Tensor = self.conv2(self.bn2(self.conv1(active)).relu())
        return residual + shortcut


@final
class PreActResNet18(ModelBuilder):
    """Pre-activation ResNet-18 with a 3x3 stem, for images of 8x8 to 64x64.

    Width 64, 3 channels and 10 classes make 11,172,170 parameters, 1,024 of them in the final BN that He et
    al. and Rice et al. (2020) have; CIFAR ports without it have 11,171,146.
    """

    name = "preact-resnet18"

    class Options(Normalised):
        width: int = option(64, ge=1, help="channels of the first stage; the others have 2x, 4x and 8x")

    options: Options

    def build(self, spec: DataSpec) -> nn.Module:
        channels = self.options.width
        layers: list[nn.Module] = [
            self.options.layer(spec),
            nn.Conv2d(spec.channels, channels, 3, padding=1, bias=False),
        ]
        for factor, stride in ((1, 1), (2, 2), (4, 2), (8, 2)):
            out = factor * self.options.width
            layers += [PreActBlock(channels, out, stride), PreActBlock(out, out, 1)]
            channels = out
        layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(channels, spec.classes))
