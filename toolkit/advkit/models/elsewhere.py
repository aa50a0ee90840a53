"""Nets of timm and of torchvision by name, fitted to a data set: `timm:resnet18`, `torchvision:vit_b_16`.

One net may have several published weights, each with a tag: `timm:vit_small_patch16_224.dino`.

Nothing is downloaded: nets start from random weights, or from a file (`--init-from`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from pydantic import field_validator
from torch import Tensor, nn

from ..errors import OptionError, did_you_mean, named
from ..options import option
from .base import DataSpec, ModelBuilder, Normalize, statistics as numbers

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation by channel."""


def untagged(options: Mapping[str, object]) -> dict[str, object]:
    """Options of a net without the tag of published weights, which is of its normalisation alone."""
    return {key: str(value).partition(".")[0] if key == "architecture" else value for key, value in options.items()}


class Fitted(nn.Module):
    """Images (B, C, H, W) as the net takes them: a gray one as three equal channels, brought to `side` pixels."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.gray, self.side = channels == 1, side

    def forward(self, x: Tensor) -> Tensor:
        if self.gray:
            x = x.expand(-1, 3, -1, -1)
        if self.side:
            size = (self.side, self.side)
            x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
        return x


class Elsewhere(ModelBuilder):
    """A net of another library, between what fits images to it and nothing else."""

    class Options(ModelBuilder.Options):
        architecture: str = option("", help="the library's name of the net, or NAME.TAG; timm:NAME is short for it")
        normalise: str = option(
            "data",
            help="inside the net: data (mean and deviation of the training set), weights (those of the published "
            "weights, of the tag if one is named), none, or means and then deviations by channel, such as 0.5,0.25",
        )
        resize: int = option(
            0, ge=0, le=4096, help="side in pixels that images are brought to inside the net, bilinear; 0: as they are"
        )

        @field_validator("normalise")
        @classmethod
        def _known(cls, value: str) -> str:
            if value not in ("data", "weights", "none"):
                numbers(value)
            return value

    options: Options
    module: ClassVar[str]
    """What is imported."""
    extra: ClassVar[str]
    """What installs it, of advkit's extras."""

    @abstractmethod
    def known(self, library: ModuleType) -> list[str]:
        """The architectures that classify images."""

    @abstractmethod
    def net(self, library: ModuleType, name: str, channels: int, height: int, width: int, classes: int) -> nn.Module:
        """The net with random weights."""

    @abstractmethod
    def statistics(self, library: ModuleType, name: str) -> dict[str, Statistics]:
        """By the tag of its published weights, what they expect; first those that the library takes by itself."""

    def published(self) -> dict[str, Statistics]:
        """`statistics` of the architecture. Raises OptionError where the library has no such net."""
        return self.statistics(self.library(), self.architecture)

    @property
    def architecture(self) -> str:
        """The library's name of the net, without the tag of weights."""
        return self.options.architecture.partition(".")[0]

    def expected(self) -> Statistics:
        """What the published weights expect: of the tag, or of the library's first."""
        every, tag = self.published(), self.options.architecture.partition(".")[2]
        return every[tag or next(iter(every))]

    def doubt(self) -> str:
        """A caution where published weights differ in what they expect, and nobody has said which they are, or ""."""
        if self.options.normalise != "weights" or "." in self.options.architecture:
            return ""
        (tag, taken), *others = self.published().items()
        if not (unlike := [other for other, values in others if values != taken]):
            return ""
        net = f"{self.name}:{self.architecture}"
        return (
            f"model.normalise=weights takes the normalisation of {net}.{tag}, and weights with other tags expect "
            f"another ({', '.join(unlike)}); name the tag of yours, such as "
            f"{named('--model', f'{net}.{unlike[0]}')}, or give their numbers"
        )

    def library(self) -> ModuleType:
        """The library, which has the net. Raises OptionError where it has not, or is not installed."""
        name, (architecture, dot, tag) = self.options.architecture, self.options.architecture.partition(".")
        try:
            library = import_module(self.module)
        except ImportError as error:
            raise OptionError(
                f"model = {self.name} needs a package that is not installed ({error}); "
                f"pip install 'advkit[{self.extra}]'."
            ) from None
        known = self.known(library)
        if architecture not in known:
            raise OptionError(
                f"model.architecture = {name!r} is none of {self.name}'s {len(known)} nets."
                f"{did_you_mean(architecture, known)} Give one as {named('--model', f'{self.name}:NAME')}."
            )
        if dot and tag not in (tags := self.statistics(library, architecture)):
            raise OptionError(
                f"model.architecture = {name!r}: {self.name} knows no weights {tag!r} of {architecture}, only "
                f"{', '.join(tags)}.{did_you_mean(tag, tags)}"
            )
        return library

    def build(self, spec: DataSpec) -> nn.Module:
        library, name, side = self.library(), self.architecture, self.options.resize
        channels = 3 if spec.channels == 1 else spec.channels
        height, width = (side, side) if side else (spec.height, spec.width)
        try:
            net = self.net(library, name, channels, height, width, spec.classes)
            with torch.no_grad():
                shape = tuple(net.eval()(torch.zeros(2, channels, height, width)).shape)
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError, ZeroDivisionError) as error:
            raise OptionError(
                f"{self.name}:{name} can not be built for images of {channels} x {height} x {width} "
                f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); "
                "model.resize=224 brings them to another size inside the net."
            ) from None
        if shape != (2, spec.classes):
            raise OptionError(f"{self.name}:{name} is no classifier: it returns {shape}, not (2, {spec.classes}).")
        how = self.options.normalise
        mean, std = self.expected() if how == "weights" else (spec.mean, spec.std)
        if how not in ("data", "weights", "none"):
            mean, std = numbers(how)
        if len(mean) not in (1, channels):
            raise OptionError(
                f"model.normalise has {len(mean)} means, and the net takes {channels} channels; give as many."
            )
        if len(mean) != channels:
            mean, std = mean * channels, std * channels
        layers: list[tuple[str, nn.Module]] = [("fitted", Fitted(spec.channels, side))]
        if self.options.normalise != "none":
            layers.append(("normalise", Normalize(mean, std, stored=False)))
        return nn.Sequential(OrderedDict([*layers, ("net", net.train())]))

    def renamed(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Published weights are those of the net alone."""
        return {name if name.startswith("net.") else f"net.{name}": value for name, value in weights.items()}


@final
class Timm(Elsewhere):
    """Any classifier of timm, as timm:NAME or timm:NAME.TAG (pip install 'advkit[timm]')."""

    name = distribution = module = extra = "timm"

    def known(self, library: ModuleType) -> list[str]:
        return list(library.list_models())

    def net(self, library: ModuleType, name: str, channels: int, height: int, width: int, classes: int) -> nn.Module:
        given: dict[str, Any] = {"num_classes": classes, "in_chans": channels}
        if library.get_pretrained_cfg(name).fixed_input_size:
            given["img_size"] = (height, width)
        net: nn.Module = library.create_model(name, pretrained=False, **given)
        patch = getattr(getattr(net, "patch_embed", None), "patch_size", None)
        if patch is not None and (height % patch[0] or width % patch[1]):
            raise ValueError(f"its patches of {patch[0]} x {patch[1]} would leave a border out")
        return net

    def statistics(self, library: ModuleType, name: str) -> dict[str, Statistics]:
        every = map(library.get_pretrained_cfg, (name, *library.list_models(f"{name}.*", pretrained=True)))
        return {one.tag or "": (tuple(one.mean), tuple(one.std)) for one in every}


@final
class Torchvision(Elsewhere):
    """Any classifier of torchvision, as torchvision:NAME or torchvision:NAME.TAG (pip install 'advkit[vision]')."""

    name = distribution = "torchvision"
    module, extra = "torchvision.models", "vision"

    def known(self, library: ModuleType) -> list[str]:
        return list(library.list_models(module=library))

    def net(self, library: ModuleType, name: str, channels: int, height: int, width: int, classes: int) -> nn.Module:
        if channels != 3:
            raise ValueError("torchvision's nets take 1 or 3 channels")
        given: dict[str, Any] = {"num_classes": classes}
        if name.startswith("vit_"):
            if height != width:
                raise ValueError("it takes square images")
            given["image_size"] = height
        net: nn.Module = library.get_model(name, weights=None, **given)
        return net

    def statistics(self, library: ModuleType, name: str) -> dict[str, Statistics]:
        every = library.get_model_weights(name)
        expected = {one.name: one.transforms() for one in (every.DEFAULT, *every)}
        return {tag: (tuple(one.mean), tuple(one.std)) for tag, one in expected.items()}
