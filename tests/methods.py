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
from torch import Tensor

from advkit import Plugin, registry
from advkit.testing import company, small
from advkit.testing.small import SAMPLES as SAMPLES, pictures as pictures, same as same, tiny_net as tiny_net

PARITY = Path(__file__).with_name("parity")

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
    return small.needs_the_loop(registry.load("plugin", name) if isinstance(name, str) else name for name in names)


points_read_once = cache(registry.points)
"""Reading the entry points is most of what a refusal costs."""


@cache
def refusal(chosen: tuple[str, ...]) -> str:
    """Why a set of plugins is refused with its default options, "" if it runs."""
    with mock.patch.object(registry, "points", points_read_once):
        return company.refusal(chosen)


def alone(name: str) -> tuple[str, ...]:
    """The smallest set with this plugin that runs: itself, or itself and somebody it needs."""
    return company.alone(name, [other for other in names() if other != name], refusal)


def crowd(name: str) -> tuple[str, ...]:
    """A set with this plugin to which no other can be added."""
    return company.crowd(alone(name), names(), refusal)


@cache
def crowds() -> list[tuple[str, ...]]:
    """Such sets, as many as it takes for every plugin to be in one."""
    largest: list[tuple[str, ...]] = []
    for name in names():
        if not any(name in chosen for chosen in largest):
            largest.append(tuple(sorted(crowd(name))))
    return largest


@cache
def parties() -> list[tuple[str, ...]]:
    """Sets of up to six, every plugin in one: they cost a fraction of as many trainings of one plugin each."""
    sets: list[tuple[str, ...]] = []
    for name in names():
        if any(name in chosen for chosen in sets):
            continue  # somebody needed it
        open_to_it = [chosen for chosen in sets if len(chosen) < 6 and not refusal((*chosen, name))]
        if open_to_it:
            smallest = min(open_to_it, key=len)
            sets[sets.index(smallest)] = (*smallest, name)
        else:
            sets.append(alone(name))
    return sets


# ---------------------------------------------------------------------- small trainings


def trained(plugins: Collection[Any] = (), **arguments: Any) -> dict[str, Tensor]:
    """Everything the model holds after a few steps of batch statistics and dropout, by a `Step` or `advkit.train`."""
    return small.trained(plugins, **arguments).weights


_ended: dict[str, dict[str, Tensor]] = {}
"""By how it was trained: a third of the trainings that `METHODS` names are asked for more than once."""


def both(one: Arguments, other: Arguments) -> bool:
    """Whether two trainings end in the same bits."""
    loop = needs_the_loop([*one.get("plugins", ()), *other.get("plugins", ())])
    for arguments in (one, other):
        if repr((loop, arguments)) not in _ended:
            _ended[repr((loop, arguments))] = trained(**arguments, by_the_loop=loop)
    return same(*(_ended[repr((loop, arguments))] for arguments in (one, other)))
