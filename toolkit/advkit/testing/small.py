"""Small trainings: a net of a few hundred weights, sixteen images, two epochs, in milliseconds."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..compose.registration import HOOKS, hooks_of
from ..data.base import Dataset, Splits
from ..plugin import Plugin
from ..training.launch import train
from ..training.loop import Trainer
from ..training.own_loop import Step
from ..training.progress import Silent
from ..training.step_report import Report

SAMPLES = 16
SETTINGS: Mapping[str, object] = {"attack.mode": "train", "attack.steps": 3}

Images = tuple[Tensor, Tensor, Tensor]
"""x (B, C, H, W), y (B,), index (B,)."""


def tiny_net(batch_norm: bool, dropout: float, dtype: torch.dtype) -> nn.Sequential:
    """(B, 2, 4, 4) to (B, 3), the same weights always."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        layers = [nn.Conv2d(2, 4, 3, padding=1), *([nn.BatchNorm2d(4)] if batch_norm else []), nn.ReLU()]
        return nn.Sequential(*layers, nn.Dropout(dropout), nn.Flatten(), nn.Linear(64, 3)).to(dtype)


def pictures(count: int = SAMPLES) -> Dataset:
    """Noise (count, 2, 4, 4), uint8, of three classes."""
    drawn = torch.randint(0, 256, (count, 2, 4, 4), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    return Dataset("toy", drawn, torch.arange(count) % 3, ("a", "b", "c"))


def batches(dtype: torch.dtype = torch.float32) -> list[Images]:
    """Two of four images each."""
    generator = torch.Generator().manual_seed(8)
    return [
        (torch.rand(4, 2, 4, 4, generator=generator, dtype=torch.float64).to(dtype), torch.arange(4) % 3, rows)
        for rows in (torch.arange(4), torch.arange(4, 8))
    ]


@dataclass(frozen=True)
class Trained:
    """What a small training leaves."""

    weights: dict[str, Tensor]
    """All that the model holds; averages of a plugin in the place of its own where there are some."""
    state: dict[str, Tensor]
    """What the plugins have claimed."""
    reports: list[Report]
    cautions: list[str]
    seen: list[Images]
    """The batches that a `Step` was given."""

    @property
    def everything(self) -> dict[str, Tensor]:
        """Weights and state, by name."""
        return {**self.weights, **self.state}


@dataclass
class Watch(Silent):
    """Sees a run of the loop."""

    reports: list[Report] = field(default_factory=list)
    cautions: list[str] = field(default_factory=list)
    trainer: Trainer | None = None

    def begin(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def stepped(self, trainer: Trainer, report: Report) -> None:
        self.reports.append(report)

    def warn(self, sentence: str) -> None:
        self.cautions.append(sentence)


def needs_the_loop(plugins: Iterable[type[Plugin]]) -> bool:
    """Whether one of them answers a hook that only `advkit.train` asks."""
    return any(HOOKS[hook].asked_by == "loop" for plugin in plugins for hook in hooks_of(plugin))


def step_of(net: nn.Module, plugins: Collection[Any], *, lr: float = 0.1, **arguments: Any) -> Step:
    """A step of SGD with momentum."""
    optimizer = torch.optim.SGD(net.parameters(), lr, momentum=0.9)
    known = {"num_samples": SAMPLES, "num_classes": 3, "image_shape": (2, 4, 4)}
    settings = {"run.epochs": 20, **arguments.pop("settings", {})}
    return Step(net, optimizer, plugins, settings=settings, **{**known, **arguments})


def trained(
    plugins: Collection[Any] = (),
    *,
    epochs: Sequence[int] = (0, 1),
    eps: float = 0.1,
    lr: float = 0.1,
    dropout: float = 0.3,
    batch_norm: bool = True,
    dtype: torch.dtype = torch.float32,
    settings: Mapping[str, object] = {},
    by_the_loop: bool = False,
    net: nn.Module | None = None,
    given: Sequence[Images] | None = None,
    before: Callable[[Step], object] = lambda step: None,
    progress: Watch | None = None,
    device: str = "cpu",
    **arguments: Any,
) -> Trained:
    """A few steps of batch statistics and dropout, by a `Step`, or by `advkit.train` where a plugin needs it.

    A `Step` is given the batches `given`, or two of its own, in every one of the `epochs`; `before` sees it first.
    """
    net = (tiny_net(batch_norm, dropout, dtype) if net is None else net).to(device)
    settings = {**SETTINGS, **settings}
    if by_the_loop:
        toy = Splits(pictures(), pictures(), "none")
        settings = {**settings, "optimizer.lr": lr, "validation.fraction": 0.25, "validation.steps": 1}
        settings["run.device"] = device
        watch = Watch() if progress is None else progress
        result = train(
            net, toy, plugins, epochs=len(epochs), batch_size=4, eps=eps, settings=settings, progress=watch,
            **arguments,
        )  # fmt: skip
        # What is judged: the net, with averages in the place of its weights where a plugin has some.
        net.load_state_dict(dict(result.averaged), strict=False)
        state = watch.trainer.panel.state.stored() if watch.trainer else {}
        return Trained(copies(net.state_dict()), copies(state), watch.reports, watch.cautions, [])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step = step_of(net, plugins, lr=lr, eps=eps, settings=settings, **arguments)
        before(step)
        seen = [images for _ in epochs for images in given or batches(dtype)]
        places = [epoch for epoch in epochs for _ in given or batches(dtype)]
        reports = [
            step(*(part.to(device) for part in images), epoch=epoch) for epoch, images in zip(places, seen, strict=True)
        ]
    said = [*step.composition.cautions, *(str(one.message) for one in caught)]
    return Trained(copies(net.state_dict()), copies(step.state.stored()), reports, said, seen)


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as they are now, on the CPU."""
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Bit for bit; NaN equals itself."""
    return one.keys() == other.keys() and all(
        torch.equal(one[name].nan_to_num(nan=7e7), other[name].nan_to_num(nan=7e7)) for name in one
    )


def close(one: Mapping[str, Tensor], other: Mapping[str, Tensor], rtol: float, atol: float) -> str:
    """The first name under which two sets of tensors are further apart than rounding, "" where none are."""
    for name in {**one, **other}:
        if name not in one or not torch.allclose(one[name].double(), other[name].double(), rtol, atol, equal_nan=True):
            return name
    return ""
