"""run.accumulate: a step in parts is the step of the whole batch, for all methods that can be asked about parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import methods
import pytest
import torch
from methods import pictures, tiny_net
from torch import Tensor, nn

import advkit
from advkit import HookConflict, OptionError, Plugin, PluginOptions, Run, Splits, Step, hookimpl, option
from advkit.errors import Stopped
from advkit.training.accumulate import parts_of
from advkit.training.progress import Silent
from advkit.types import Batch

TOY = Splits(pictures(19), pictures(), "none")
"""Nineteen images to train on: in batches of eight, the last has three."""

WHOLE = {
    "av-rank": {},
    "ccat": {},
    "cutmix": {},
    "gairat": {},
    "gradalign": {},
    "lsr": {},
    "mma": {},
    "cat-margin": {"weight": "eps-sum"},
}
"""Built-ins that weigh or choose within the batch, or keep something of it from the attack to the update, with the
options that do so."""

ALONE = {"lsiw": ["instance_weight:lsiw"]}
"""Whose companion needs the whole batch."""


SIZES: set[int] = set()
"""Of the images that a `Counting` was called on."""


class Counting(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        SIZES.add(len(x))
        out: Tensor = super().forward(x)
        return out


def train(*plugins: Any, parts: int, batch_norm: bool = False, **arguments: Any) -> advkit.TrainResult:
    SIZES.clear()
    net = Counting(*tiny_net(batch_norm=batch_norm, dropout=0.0, dtype=torch.float64))
    settings = {"attack.steps": 3, "attack.init": "uniform", "validation.fraction": 0, "run.accumulate": parts}
    given = {"epochs": 2, "batch_size": 8, "eps": 0.1, "settings": settings | arguments.pop("settings", {})}
    return advkit.train(net, TOY, plugins, **given | arguments)


def apart(one: nn.Module, other: nn.Module) -> float:
    def flat(net: nn.Module) -> Tensor:
        return torch.cat([value.flatten().double() for value in net.state_dict().values()])

    return float((flat(one) - flat(other)).norm() / flat(other).norm())


def taking_parts() -> list[str]:
    return [name for name in methods.names() if WHOLE.get(name, True)]


@pytest.mark.parametrize("name", ["", *taking_parts()])
def test_in_parts_it_is_the_whole_batch(name: str) -> None:
    """In float64, for nets without BatchNorm and dropout. Passes, figures and per-sample state are the same, too.

    No net computes more than a part at once.
    """
    declined, results, most = ALONE.get(name, ()), [], []
    for parts in (1, 2, 3):
        results.append(train(*([name] if name else []), parts=parts, no_companion=declined))
        most.append(max(SIZES))
    whole, halves, thirds = results
    assert most == [8, 4, 3]
    for parted in (halves, thirds):
        assert apart(parted.model, whole.model) < 1e-12
        for one, other in zip(parted.history, whole.history, strict=True):
            assert {k: v for k, v in one.items() if k != "seconds"} == close({**other, "seconds": 0})
    assert apart(whole.model, tiny_net(batch_norm=False, dropout=0.0, dtype=torch.float64)) > 1e-3  # the control


class Looks(Plugin):
    """Asks what may be asked between steps: in `part`, whose answers are by image, or of the whole batch."""

    name = "looks"

    class Options(PluginOptions):
        whole: bool = option(False, help="by an objective")

    options: Options

    @hookimpl
    def setup(self, model: nn.Module, run: Run) -> None:
        self.twin = run.module("twin", model)

    @hookimpl
    def epoch_end(self, batch: Batch, run: Run) -> None:
        def loss(logits: Tensor) -> Tensor:
            return logits[torch.arange(len(batch.y)), batch.y].neg()

        attack = run.probe(batch, 0.1, steps=2, init="uniform", objective=loss if self.options.whole else None)
        run.figure("logits", float(run.logits(attack.x_adv).square().sum()))
        run.figure("twin", float(self.twin(attack.x_adv).square().sum()))


RE_ESTIMATED = {"buffers": "re-estimated", "start": 0.0}


@pytest.mark.parametrize(
    ("plugin", "options", "mode", "most"),
    [
        ("ema", RE_ESTIMATED, "eval", 3),
        ("swa", RE_ESTIMATED, "eval", 3),
        ("las-at", {"net": "model"}, "eval", 3),
        (Looks, {}, "eval", 3),
        (Looks, {}, "train-frozen", 8),  # whose statistics are of all
        (Looks, {"whole": True}, "eval", 8),
    ],
)
def test_beside_steps_no_more_at_once_than_in_them(plugin: Any, options: Any, mode: str, most: int) -> None:
    given = {"options": {getattr(plugin, "name", plugin): options}, "settings": {"attack.mode": mode}, "epochs": 1}
    train(plugin, parts=3, batch_norm=True, **given)
    assert max(SIZES) == most
    whole, parted = (train(plugin, parts=parts, **given) for parts in (1, 3))
    assert apart(parted.model, whole.model) < 1e-12
    assert parted.history[0]["figures"] == close(whole.history[0])["figures"]


def close(row: dict[str, Any]) -> dict[str, Any]:
    """A row without its seconds, its numbers to rounding."""

    def near(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: near(inner) for key, inner in value.items()}
        return pytest.approx(value, rel=1e-9, abs=1e-12) if isinstance(value, float) else value

    return {key: near(value) for key, value in row.items() if key != "seconds"}


def test_awp_perturbs_by_the_gradient_of_the_whole_batch() -> None:
    """With TRADES-AWP v follows the objective, in several steps, and the optimizer steps at theta+v."""
    options = {"awp": {"gamma": 0.1, "steps": 2, "step_at": "theta+v"}}
    whole, parted = (train("trades", "awp", parts=parts, options=options) for parts in (1, 3))
    assert apart(parted.model, whole.model) < 1e-12
    assert apart(train("trades", parts=1).model, whole.model) > 1e-4  # the control
    assert parted.history[0]["passes"] == whole.history[0]["passes"]


@pytest.mark.parametrize("name", WHOLE)
def test_who_needs_the_whole_batch_is_refused(name: str) -> None:
    plugins = ("alp", name) if name == "av-rank" else (name,)
    options = {name: WHOLE[name] | ({"term": "alp"} if name == "av-rank" else {})}
    with pytest.raises(HookConflict) as refusal:
        train(*plugins, parts=2, options=options)
    assert str(refusal.value) == (
        f"Plugin {name} may need the whole batch (it does not declare by_sample), and run.accumulate = 2 asks it about "
        "parts; leave one of them out."
    )
    train(*plugins, parts=1, options=options)


def test_batch_norm_sees_parts() -> None:
    """What is not the same, as the documentation says."""
    nets = []
    for parts in (1, 2):
        net = tiny_net(batch_norm=True, dropout=0.0, dtype=torch.float64)
        step = Step(
            net, torch.optim.SGD(net.parameters(), 0.1), num_samples=8, eps=0.1,
            settings={"attack.steps": 2, "run.accumulate": parts},
        )  # fmt: skip
        rows = torch.arange(8)
        report = step(pictures(8).images.double() / 255, rows % 3, rows, epoch=0)
        assert report.count == 8 and report.x_train.shape[0] == 8
        nets.append(net)
    assert [int(net.state_dict()["1.num_batches_tracked"]) for net in nets] == [1, 2]
    assert apart(nets[0], nets[1]) > 1e-4


def test_parts_share_no_dropout() -> None:
    masks = []
    net = tiny_net(batch_norm=False, dropout=0.5, dtype=torch.float64)
    net[2].register_forward_hook(lambda module, args, output: masks.append(output == 0) if module.training else None)
    step = Step(
        net, torch.optim.SGD(net.parameters(), 0.1), num_samples=4, eps=0.1,
        settings={"attack.steps": 0, "run.accumulate": 2},
    )  # fmt: skip
    x = torch.full((4, 2, 4, 4), 0.5, dtype=torch.float64)
    step(x, torch.arange(4) % 3, torch.arange(4), epoch=0)
    assert len(masks) == 2 and not torch.equal(masks[0], masks[1])


@pytest.mark.parametrize(("rows", "count", "sizes"), [(8, 3, [3, 3, 2]), (7, 3, [3, 4]), (2, 2, [2]), (5, 1, [5])])
def test_an_image_is_never_left_alone(rows: int, count: int, sizes: list[int]) -> None:
    x, index = torch.rand(rows, 1, 2, 2), torch.arange(rows)
    parts = list(parts_of(Batch(x, index % 2, index, index * 0), count).values())
    assert [len(part.y) for part in parts] == sizes
    assert torch.equal(torch.cat([part.index for part in parts]), index)


def test_stopped_in_the_middle_of_an_epoch_it_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    class Stop(Silent):
        left = 2

        def stop_requested(self) -> type[Stopped] | None:
            self.left -= 1
            return Stopped if self.left == 0 else None

    whole = train("cat-eps", "awp", parts=3)
    with pytest.raises(Stopped):
        train("cat-eps", "awp", parts=3, out=tmp_path / "run", progress=Stop())
    rest = train("cat-eps", "awp", parts=3, resume_from=tmp_path / "run")
    assert methods.same(rest.model.state_dict(), whole.model.state_dict())


def test_more_parts_than_images_are_refused() -> None:
    with pytest.raises(OptionError, match="accumulate is 9, but a batch has 8 images; lower it"):
        train(parts=9)


def test_no_more_images_are_judged_at_once_than_are_trained_on_at_once(tmp_path: Path) -> None:
    SIZES.clear()
    net = Counting(nn.Flatten(), nn.Linear(32, 3))
    settings = {"attack.steps": 1, "validation.steps": 1, "validation.fraction": 0.5, "run.accumulate": 3}
    data = Splits(pictures(72), pictures(72), "none")
    advkit.train(net, data, ("trades", "awp"), epochs=1, batch_size=36, eps=0.1, settings=settings, out=tmp_path)
    advkit.evaluate(tmp_path, dataset=data, model=net, attacks="clean,pgd-1", n=40, audit=False)
    assert max(SIZES) == 12
