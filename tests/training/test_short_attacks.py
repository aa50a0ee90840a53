"""Attacks that can not reach the edge of the ball, and those that begin where their objective is flat, are told."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import advkit
from advkit.reach import misfit
from advkit.training.progress import Silent

ONE = "1 step of 0.25 eps can end no further than 0.25 eps from "
TEN = "choose attack.step_size=eps/10 or more, or more steps"
CHOOSE = "; choose attack.step_size=eps or more, or more steps"


@pytest.mark.parametrize(("steps", "pace"), [(0, 0.25), (4, 0.25), (3, 1 / 3), (7, 1 / 7), (1, 2.0), (2, math.inf)])
def test_what_reaches_the_edge_is_no_caution(steps: int, pace: float) -> None:
    assert misfit(steps, pace, "step") == ""
    if steps:
        assert misfit(steps, 0.999 / steps, "step").startswith(f"{steps} step")


def test_a_step_across_the_whole_ball_is_told() -> None:
    """Such as one in gray levels."""
    (said,) = advkit.plan((), eps="8/255", settings={"attack.step_size": 2})["cautions"]
    assert said.startswith("a step of 63.75 eps is longer than the ball is wide, 2 eps; choose attack.step_size=eps/4")
    assert advkit.plan((), eps="8/255", settings={"attack.step_size": "16/255"})["cautions"] == []


def cautions(plugins: str = "", **settings: object) -> list[str]:
    given = {name.replace("__", "."): value for name, value in settings.items()}
    return [said for said in advkit.plan(plugins or (), settings=given)["cautions"] if "can end no further" in said]


@pytest.mark.parametrize(
    ("plugins", "settings", "said"),
    [
        ("", {}, []),
        ("", {"attack__steps": 1}, [f"{ONE}the image{CHOOSE}"]),
        ("", {"attack__steps": 1, "attack__init": "normal"}, [f"{ONE}the image{CHOOSE}"]),
        ("", {"attack__steps": 1, "attack__init": "uniform"}, [f"{ONE}a random start{CHOOSE}"]),
        ("", {"attack__steps": 1, "attack__step_size": "eps"}, []),
        ("", {"attack__steps": 1, "attack__eps": 0}, []),
        ("", {"attack__steps": 4}, []),
        ("fgsm-rs", {}, []),  # the step is the method's
        ("mma", {"attack__steps": 1}, []),  # whose steps are the plugin's answer
        ("ccat", {"attack__steps": 1}, []),  # which attacks by itself
        ("", {"attack__step_size": 0}, [f"10 steps of 0 eps can end no further than 0 eps from the image; {TEN}"]),
        ("lsiw", {"attack__steps": 1}, [f"{ONE}the image{CHOOSE}"]),
    ],
)
def test_a_plan_says_that_the_attack_is_short(plugins: str, settings: dict[str, object], said: list[str]) -> None:
    assert cautions(plugins, **settings) == said


@pytest.mark.parametrize(
    ("plugin", "steps", "size"),
    [("collapse-guard", "steps", "step_size"), ("las-at", "ahead_steps", "ahead_step_size")],
)
def test_a_plan_says_that_the_attack_of_a_plugin_is_short(plugin: str, steps: str, size: str) -> None:
    def said(**options: object) -> list[str]:
        told = advkit.plan(plugin, options={plugin: options}, eps=options.pop("eps", 0.1))["cautions"]
        return [one for one in told if "can end no further" in one]

    start = {"las-at": "the random start of its look ahead"}.get(plugin, "the random start of the PGD that looks")
    short = f"2 steps of 0.25 eps can end no further than 0.5 eps from {start}"
    assert said(**{steps: 2}) == [f"{short}; choose {plugin}.{size}=eps/2 or more, or more steps"]
    assert said() == said(**{steps: 2, size: "eps/2"}) == said(**{steps: 2, size: 0.1, "eps": 0}) == []


def test_a_plan_says_that_the_attacks_that_choose_are_short() -> None:
    short = "validation: 2 steps of 0.25 eps can end no further than 0.5 eps from the image; choose validation.steps=4"
    assert cautions(validation__steps=2) == [f"{short} or more"]
    assert cautions(validation__steps=2, validation__fraction=0) == cautions(validation__steps=4) == []


def test_an_evaluation_says_which_of_its_attacks_are_short(tiny_net: Callable[..., nn.Module]) -> None:
    x, y = torch.rand(6, 2, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
    found = advkit.evaluate(tiny_net(True), (x, y), "clean,fgsm,pgd-5,pgd-2,cw-1x3", eps=0.1, audit=False)
    notes = {row.name: row.notes for row in found.attacks if row.notes}
    assert notes == {
        "pgd-2": ["2 steps of 0.2 eps can end no further than 0.4 eps from the image; choose step=eps/2 or more, "
                  "or more steps"],
        "cw-1x3": ["1 step of 0.2 eps can end no further than 0.2 eps from the start; choose step=eps or more, or "
                   "more steps"],
    }  # fmt: skip


class Heard(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, sentence: str) -> None:
        self.said.append(sentence)


@pytest.mark.parametrize(
    ("plugins", "settings", "blamed"),
    [
        ("cat-eps,trades", {}, True),  # whose preferences for attack.init differ, so it is zero
        ("trades", {}, False),
        ("cat-eps", {}, False),
        ("iaat,trades", {"attack.init": "normal"}, False),  # of images without a radius the second gradient is 0
        ("eps-ramp,trades", {}, False),
    ],
)
def test_an_objective_without_gradient_at_x_is_blamed_and_not_the_model(
    tmp_path: Path, plugins: str, settings: dict[str, object], blamed: bool
) -> None:
    drawn = torch.randint(0, 256, (16, 2, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    toy = advkit.Splits(*[advkit.Dataset("toy", drawn, torch.arange(16) % 3, ("a", "b", "c"))] * 2, "none")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    given, heard = {"validation.fraction": 0, "attack.steps": 10, **settings}, Heard()
    advkit.train(net, toy, plugins, epochs=1, batch_size=8, eps=0.1, settings=given, out=tmp_path, progress=heard)
    (zeros,) = [said for said in heard.said if "input gradients in epoch 1 were zero" in said] or [""]
    assert ("the objective of trades has none at x, where attack.init=zero begins; or the model" in zeros) == blamed
    assert bool(zeros) == blamed


def test_a_step_that_moves_nothing_names_the_objective() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(32, 3)).double()
    with torch.no_grad():
        net[1].weight *= 0  # a last layer of zeros: the model and the objective are both possible causes
    step = advkit.Step(
        net, torch.optim.SGD(net.parameters(), 0.1), "trades", num_samples=4, eps=0.1, settings={"attack.init": "zero"}
    )
    with pytest.warns(UserWarning, match=r"begins at x \(attack.init\), where the objective of trades has none"):
        step(torch.rand(4, 2, 4, 4, dtype=torch.float64), torch.arange(4) % 3, torch.arange(4), epoch=0)
