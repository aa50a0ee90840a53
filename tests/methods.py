"""What the tests of all methods go through: the installed plugins, found by name, each declared in its parity test.

The parity test of a plugin is the module `tests/parity/test_parity_*.py` whose `METHODS` names it:

    METHODS = {"awp": Method(neutral=[(run("awp", options={"awp": {"gamma": 0.0}}), run())], changes=[...])}

A built-in is its module, its entry point, its card and its parity test; no other list has its name.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import advkit
from advkit import Dataset, OptionError, Plugin, Splits, Step, registry
from advkit.compose.registration import HOOKS, hooks_of
from advkit.config.layer import Layer
from advkit.config.resolve import resolve
from advkit.errors import HookConflict

PARITY = Path(__file__).with_name("parity")
SAMPLES = 16

Arguments = Mapping[str, Any]
"""Of one small training, as `run` makes and `trained` takes them."""


@dataclass(frozen=True)
class Method:
    """What the tests of all methods have to know about one."""

    neutral: Sequence[tuple[Arguments, Arguments]]
    """Trainings that end in the same bits: with the method switched off, and without it; `[]` is no answer."""
    changes: Sequence[tuple[Arguments, Arguments]]
    """The control: trainings that do not."""
    moving: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Options that change or add up from one step to the next, for a resume in between; {plugin: {option: value}}."""


def run(*plugins: str | type[Plugin], **arguments: Any) -> Arguments:
    """The arguments of `trained`."""
    return {"plugins": plugins, **arguments}


# ---------------------------------------------------------------------- what is there


def names() -> tuple[str, ...]:
    """Every installed plugin."""
    return tuple(sorted(registry.names("plugin")))


@cache
def methods() -> dict[str, tuple[Method, Path]]:
    """What the parity tests declare, and where."""
    declared = {}
    for path in sorted(PARITY.glob("test_parity_*.py")):
        for name, method in getattr(importlib.import_module(path.stem), "METHODS", {}).items():
            assert name not in declared, f"{name} is declared in {path.name} and in {declared[name][1].name}"
            declared[name] = method, path
    return declared


def declared(name: str) -> Method:
    """What the parity test of a plugin says of it; fails with a sentence where there is none."""
    if name not in methods():
        pytest.fail(
            f"The plugin {name} has no parity test: write tests/parity/test_parity_{name.replace('-', '_')}.py, "
            "which compares a step with its equations and declares "
            f'METHODS = {{"{name}": Method(...)}} (see tests/methods.py).',
            pytrace=False,
        )
    return methods()[name][0]


def needs_the_loop(names: Iterable[str | type[Plugin]]) -> bool:
    """Whether one of them answers a hook that only `advkit.train` asks."""
    kinds = (registry.load("plugin", plugin) if isinstance(plugin, str) else plugin for plugin in names)
    return any(HOOKS[hook].asked_by == "loop" for plugin in kinds for hook in hooks_of(plugin))


points_read_once = cache(registry.points)
"""Reading the entry points is most of what a refusal costs."""


@cache
def refusal(chosen: tuple[str, ...]) -> str:
    """Why a set of plugins is refused with its default options, "" if it runs."""
    try:
        # Named as Step names what is passed to it: data set and model need not be looked up each time.
        with mock.patch.object(registry, "points", points_read_once):
            resolve(
                [registry.load("plugin", name) for name in chosen],
                [Layer("test", {"model.name": "python:model", "data.name": "python:data"})],
            )
    except (HookConflict, OptionError) as sentence:
        return str(sentence)
    return ""


def alone(name: str) -> tuple[str, ...]:
    """The smallest set with this plugin that runs: itself, or itself and somebody it needs."""
    for chosen in ((name,), *((name, other) for other in names() if other != name)):
        if not refusal(chosen):
            return chosen
    raise AssertionError(f"{name} runs neither alone nor beside another one: {refusal((name,))}")


def crowd(name: str) -> tuple[str, ...]:
    """A set with this plugin to which no other can be added."""
    chosen, before = alone(name), ()
    while chosen != before:  # again, as some fit only beside one that came later
        before = chosen
        for other in names():
            if other not in chosen and not refusal((*chosen, other)):
                chosen = (*chosen, other)
    return chosen


@cache
def crowds() -> list[tuple[str, ...]]:
    """Such sets, as many as it takes for every plugin to be in one."""
    largest: list[tuple[str, ...]] = []
    for name in names():
        if not any(name in chosen for chosen in largest):
            largest.append(tuple(sorted(crowd(name))))
    return largest


# ---------------------------------------------------------------------- small trainings


def tiny_net(batch_norm: bool, dropout: float, dtype: torch.dtype) -> nn.Sequential:
    """(B, 2, 4, 4) to (B, 3), the same weights always."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layers = [nn.Conv2d(2, 4, 3, padding=1), *([nn.BatchNorm2d(4)] if batch_norm else []), nn.ReLU()]
        return nn.Sequential(*layers, nn.Dropout(dropout), nn.Flatten(), nn.Linear(64, 3)).to(dtype)


def pictures(count: int = SAMPLES) -> Dataset:
    drawn = torch.randint(0, 256, (count, 2, 4, 4), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    return Dataset("toy", drawn, torch.arange(count) % 3, ("a", "b", "c"))


def trained(
    plugins: Collection[Any] = (),
    *,
    epochs: Iterable[int] = (0, 1),
    eps: float = 0.1,
    lr: float = 0.1,
    dropout: float = 0.3,
    batch_norm: bool = True,
    dtype: torch.dtype = torch.float32,
    settings: Mapping[str, object] = {},
    by_the_loop: bool = False,
    **arguments: Any,
) -> dict[str, Tensor]:
    """Everything the model holds after a few steps of batch statistics and dropout, by a `Step` or `advkit.train`."""
    net = tiny_net(batch_norm, dropout, dtype)
    settings = {"attack.mode": "train", "attack.steps": 3, **settings}
    if by_the_loop:
        toy = Splits(pictures(), pictures(), "none")
        settings = {**settings, "optimizer.lr": lr, "validation.fraction": 0.25, "validation.steps": 1}
        result = advkit.train(
            net, toy, plugins, epochs=len(list(epochs)), batch_size=4, eps=eps, settings=settings, **arguments
        )
        # What is judged: the net, with averages in the place of its weights where a plugin has some.
        net.load_state_dict(dict(result.averaged), strict=False)
    else:
        optimizer = torch.optim.SGD(net.parameters(), lr, momentum=0.9)
        step = Step(net, optimizer, plugins, num_samples=SAMPLES, eps=eps, settings=settings, **arguments)
        generator = torch.Generator().manual_seed(8)
        batches = [
            (torch.rand(4, 2, 4, 4, generator=generator, dtype=torch.float64).to(dtype), torch.arange(4) % 3, rows)
            for rows in torch.arange(8).split(4)
        ]
        for epoch in epochs:
            for x, y, index in batches:
                step(x, y, index, epoch=epoch)
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Bit for bit; NaN equals itself."""
    return one.keys() == other.keys() and all(
        torch.equal(one[name].nan_to_num(nan=7e7), other[name].nan_to_num(nan=7e7)) for name in one
    )


def both(one: Arguments, other: Arguments) -> bool:
    """Whether two trainings end in the same bits."""
    loop = needs_the_loop([*one.get("plugins", ()), *other.get("plugins", ())])
    return same(trained(**one, by_the_loop=loop), trained(**other, by_the_loop=loop))
