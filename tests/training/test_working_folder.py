"""A net or a plugin that goes to another folder: everything else stays where it was typed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import advkit
from advkit import Plugin, hookimpl
from advkit.data.pictures import listed
from advkit.errors import HookContract

IMAGES = torch.rand(12, 1, 2, 2, generator=torch.Generator().manual_seed(0))
DATA = advkit.Dataset("own", (IMAGES * 255).to(torch.uint8), torch.arange(12) % 3, ("a", "b", "c"))
BOTH = advkit.Splits(DATA, DATA, "none")
HOW: dict[str, Any] = {"epochs": 1, "batch_size": 4, "eps": 0.1, "settings": {"attack.steps": 1}}


class Wanderer(nn.Module):
    """Goes to the folder `elsewhere` in every forward."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        os.chdir("/")
        return self.linear(x.flatten(1))  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which everything is named by relative paths, and which nothing leaves."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert os.getcwd() == os.path.realpath(tmp_path)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder).parts[0]) for path in folder.rglob("*")}


def test_what_a_net_goes_to_takes_nothing_with_it(here: Path) -> None:
    Wanderer()(IMAGES)
    assert os.getcwd() == "/", "the control"
    os.chdir(here)
    advkit.train(Wanderer(), BOTH, **HOW, out="run")
    advkit.evaluate("run", BOTH, "clean,pgd-1", model=Wanderer(), audit=False)
    assert files(here) == {"run"} and (here / "run/evaluations").is_dir()


def going(hook: str, when: int = 0) -> type[Plugin]:
    """A plugin whose hook goes elsewhere, in its call number `when`."""
    calls = iter(range(99))

    def deed() -> None:
        if next(calls) == when:
            os.chdir("/")

    def train_transform(self: Any, x: Tensor) -> Tensor:
        deed()
        return x

    def told(self: Any) -> None:
        deed()

    method = hookimpl({"train_transform": train_transform}.get(hook, told))
    return type("Going", (Plugin,), {"__doc__": "x.", "name": "going", hook: method})


@pytest.mark.parametrize(
    ("hook", "when", "checks"),
    [
        ("setup", 0, False),
        ("epoch_start", 0, False),
        ("epoch_end", 0, False),
        ("observe_update", 0, False),
        ("train_transform", 0, False),
        ("observe_update", 1, True),
        ("after_update", 1, True),
    ],
)
def test_a_plugin_that_goes_elsewhere_is_blamed_where_it_is_watched(
    here: Path, hook: str, when: int, checks: bool
) -> None:
    how = HOW | {"settings": {"attack.steps": 1, "run.check_hooks": checks}}
    with pytest.raises(HookContract, match=f"Plugin going broke the contract of {hook}: it changed the working folder"):
        advkit.train(Wanderer(), BOTH, [going(hook, when)], **how, out="run")
    assert files(here) <= {"run"}


@pytest.mark.parametrize("hook", ["observe_update", "after_update", "train_transform"])
def test_elsewhere_it_takes_nothing_with_it(here: Path, hook: str) -> None:
    advkit.train(Wanderer(), BOTH, [going(hook, when=1)], **HOW, out="run")
    assert files(here) == {"run"} and (here / "run/checkpoints/last").is_dir()


def test_an_attack_that_goes_elsewhere_is_blamed() -> None:
    class Going(advkit.EvaluationAttack):
        """x."""

        name = "going"

        def perturb(self, net: advkit.Victim, x: Tensor, y: Tensor, radius: Tensor, index: Tensor) -> Tensor:
            os.chdir("/")
            return x

    with pytest.raises(HookContract, match="The attack going changed the working folder; its accuracy"):
        advkit.evaluate(Wanderer(), DATA, [Going()], eps=0.1, audit=False)


def test_pictures_are_opened_where_they_were_listed(here: Path) -> None:
    (here / "pictures/a").mkdir(parents=True)
    (here / "pictures/a/1.png").write_bytes(b"1")
    with listed(Path("pictures")) as found:
        os.chdir("/")
        with found.open("a/1.png") as file:
            assert (file.read(), found.size("a/1.png"), str(found.root)) == (b"1", 1, "pictures")
    os.chdir(here)
