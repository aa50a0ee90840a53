"""Wide residual nets (Zagoruyko and Komodakis 2016) as the official codes of TRADES and of ISEAT's authors have them.

The two are different functions with equally many parameters, and they start differently:

- `trades`: a block strides its first convolution, and the shortcut to a new shape convolves BN and ReLU of the
  block's input. Convolutions start as N(0, 2 / (9 out)), that is He's fan-out rule, the linear layer's bias as 0.
- `iseat`: a block strides its second convolution, and the shortcut convolves the block's input as it is. Weights
  start as torch's defaults.

TRADES' code also holds a second first stage, which its forward never calls; `dead_block` adds it, to count or to
load such weights.

Files of weights under the names of those codes are taken (`published`), each by its own variant. Their nets take
images in [0, 1] without normalisation, and so does the net they are loaded into; codes that normalise outside the net
(AWP, Rice) share the names, and of their weights `normalise` says means and deviations.
"""

from __future__ import annotations

import re
from typing import Literal, final

import torch
from pydantic import field_validator
from torch import Tensor, nn

from ..errors import CheckpointError
from ..options import option
from .base import DataSpec, ModelBuilder, Normalised, statistics

Variant = Literal["trades", "iseat"]


class WideBlock(nn.Module):
    """BN, ReLU, 3x3 convolution, twice. A shortcut to a new shape is a 1x1 convolution."""

    def __init__(self, channels: int, out: int, stride: int, variant: Variant) -> None:
        super().__init__()
        first, second = (stride, 1) if variant == "trades" else (1, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, first, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, second, padding=1, bias=False)
        same = stride == 1 and channels == out
        self.shortcut = None if same else nn.Conv2d(channels, out, 1, stride, bias=False)
        self.shortcut_takes_input = variant == "iseat"

    def forward(self, x: Tensor) -> Tensor:
        active = self.bn1(x).relu()
        shortcut = x if self.shortcut is None else self.shortcut(x if self.shortcut_takes_input else active)
        residual: Tensor = self.conv2(self.bn2(self.conv1(active)).relu())
        return residual + shortcut


class Dead(nn.Module):
    """The identity, with the parameters of a module that is never called."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return x


class WideOptions(Normalised):
    """What every wide net may be told."""

    variant: Variant = option("trades", help="whose net: trades strides a block's first convolution, iseat its second")
    dead_block: bool = option(False, help="also hold the unused second first stage of TRADES' code")


def wide_resnet(spec: DataSpec, depth: int, width: int, options: WideOptions) -> nn.Sequential:
    """Depth 6 n + 4: three stages of n blocks, of 16, 32 and 64 times `width` channels."""
    variant = options.variant
    blocks, channels = (depth - 4) // 6, 16

    def stage(before: int, out: int, stride: int) -> list[nn.Module]:
        return [WideBlock(out if k else before, out, 1 if k else stride, variant) for k in range(blocks)]

    layers: list[nn.Module] = [
        options.layer(spec),
        nn.Conv2d(spec.channels, channels, 3, padding=1, bias=False),
    ]
    for out, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
        layers += stage(channels, out, stride)
        if options.dead_block and stride == 1:  # of the first stage
            layers.append(Dead(nn.Sequential(*stage(channels, out, stride))))
        channels = out
    layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(channels, spec.classes))
    if variant == "trades":
        _start_as_trades(model)
    return model


def _start_as_trades(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


def published(weights: dict[str, Tensor], depth: int, options: WideOptions) -> dict[str, Tensor]:
    """Weights under the names of either code, or as they are where they are under neither.

    Those of TRADES' are such as block1.layer.0.convShortcut.weight, those of ISEAT's such as
    layer1.block0.shortcut.0.weight. Raises CheckpointError where options say otherwise than the file.
    """
    iseat = "fc0.weight" in weights
    if "conv1.weight" not in weights or not (iseat or "fc.weight" in weights):
        return weights
    _refuse_other(weights, "iseat" if iseat else "trades", options)
    blocks = (depth - 4) // 6
    dead = 2 + blocks
    second = dead + options.dead_block
    norm = second + 2 * blocks
    first = {"block1": 2, "block2": second, "block3": second + blocks}
    own = {}
    for name, value in weights.items():
        head, _, rest = _as_trades(name).replace("convShortcut", "shortcut").partition(".")
        number, _, inner = rest.removeprefix("layer.").partition(".")
        if head in first and number.isdecimal():
            own[f"{first[head] + int(number)}.{inner}"] = value
        elif head == "sub_block1":
            if options.dead_block:  # else nobody misses it
                own[f"{dead}.{number}.{inner}"] = value
        else:
            own[{"conv1": f"1.{rest}", "bn1": f"{norm}.{rest}", "fc": f"{norm + 4}.{rest}"}.get(head, name)] = value
    channels = weights["conv1.weight"].shape[1]
    numbers = (0.0,), (1.0,)  # whoever shares the names normalises elsewhere, or not at all
    if options.normalise not in ("data", "none"):
        numbers = statistics(options.normalise)  # type: ignore[assignment]
    mean, std = (torch.tensor(each) for each in numbers)
    if options.normalise != "none":
        own.setdefault("0.mean", mean.view(1, -1, 1, 1).expand(1, channels, 1, 1))
        own.setdefault("0.std", std.view(1, -1, 1, 1).expand(1, channels, 1, 1))
    return own


def _as_trades(name: str) -> str:
    """A name of ISEAT's code under that of TRADES'."""
    name = re.sub(r"^layer([123])\.block(\d+)\.", r"block\1.layer.\2.", name)
    return name.replace(".shortcut.0.", ".shortcut.").replace("fc0.", "fc.")


def _refuse_other(net: dict[str, Tensor], variant: Variant, options: WideOptions) -> None:
    """Their nets have weights of the same shapes, so that one would run with those of the other."""
    if options.variant != variant:
        whose, sign = ("ISEAT's", "layer1.block0") if variant == "iseat" else ("TRADES'", "block1.layer.0")
        raise CheckpointError(
            f"it has the names of {whose} code, such as {sign}, and model.variant = {options.variant} is another net; "
            f"set model.variant={variant}."
        )
    if options.dead_block and not any(name.startswith("sub_block1.") for name in net):
        raise CheckpointError("it has no sub_block1, which model.dead_block adds; leave model.dead_block out.")


@final
class WideResNet(ModelBuilder):
    """Wide ResNet of any depth and width, for images of 8x8 to 64x64."""

    name = "wide-resnet"

    class Options(WideOptions):
        depth: int = option(16, ge=10, le=1000, help="number of layers, 6 n + 4")
        width: int = option(4, ge=1, help="multiple of 16, 32 and 64 channels")

        @field_validator("depth")
        @classmethod
        def _whole_blocks(cls, value: int) -> int:
            if value % 6 != 4:
                raise ValueError("must be 6 n + 4, such as 10, 16, 22, 28 or 34")
            return value

    options: Options

    def build(self, spec: DataSpec) -> nn.Module:
        return wide_resnet(spec, self.options.depth, self.options.width, self.options)

    def renamed(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return published(weights, self.options.depth, self.options)


@final
class WideResNet2810(ModelBuilder):
    """Wide ResNet of depth 28 and width 10: 36,479,194 parameters at 3 channels and 10 classes."""

    name = "wide-resnet-28-10"
    Options = WideOptions
    options: WideOptions

    def build(self, spec: DataSpec) -> nn.Module:
        return wide_resnet(spec, 28, 10, self.options)

    def renamed(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return published(weights, 28, self.options)


@final
class WideResNet3410(ModelBuilder):
    """Wide ResNet of depth 34 and width 10: 46,160,474 parameters at 3 channels and 10 classes.

    With `dead_block` they are 48,262,586, as in TRADES' published checkpoint.
    """

    name = "wide-resnet-34-10"
    Options = WideOptions
    options: WideOptions

    def build(self, spec: DataSpec) -> nn.Module:
        return wide_resnet(spec, 34, 10, self.options)

    def renamed(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return published(weights, 34, self.options)
