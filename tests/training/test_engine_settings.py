"""Optimizers, rates and clipping in whole runs: resumed in the middle of an epoch, they end in the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from methods import pictures
from torch import nn

import advkit
from advkit import OptionError, Splits, Step
from advkit.errors import Stopped
from advkit.optimizers import FIT
from advkit.storage import checkpoint
from advkit.training.loop import Trainer
from advkit.training.progress import Silent

TOY = Splits(pictures(40), pictures(8), "none")
SHORT = {"attack.steps": 1, "validation.steps": 1, "validation.fraction": 0.25, "checkpoint.every_steps": 3}
"""Thirty images to train on, in batches of 8: four steps an epoch."""


class Watch(Silent):
    """Stops after so many steps, and remembers the rate of every step."""

    def __init__(self, stop_after: int = -1) -> None:
        self.left, self.rates = stop_after, [-1.0]

    def stepped(self, trainer: Trainer, report: object) -> None:
        self.left -= 1
        self.rates.append(trainer.optimizer.param_groups[0]["lr"])

    def stop_requested(self) -> type[Stopped] | None:
        return Stopped if self.left == 0 else None


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(16, 3)
        )


def train(settings: dict[str, object], **arguments: Any) -> advkit.TrainResult:
    given = {f"optimizer.{key}": value for key, value in settings.items()}
    return advkit.train(net(), TOY, epochs=3, batch_size=8, eps=0.1, settings=SHORT | given, **arguments)


def contents(folder: Path) -> dict[str, bytes]:
    tensors, _ = checkpoint.load(folder / "checkpoints" / "last")
    return {name: value.contiguous().numpy().tobytes() for name, value in tensors.items()}


@pytest.mark.parametrize(
    "settings",
    [
        *({"name": name} for name in sorted(FIT)),
        {"name": "adamw", "decay_norms_and_biases": False, "clip_norm": 0.1, "schedule": "one-cycle"},
        {"schedule": "cyclic", "cycles": 2, "warmup": 1.5, "clip_norm": 1.0},
        {"schedule": "linear", "momentum": 0.0},
    ],
    ids=lambda settings: ",".join(str(value) for value in settings.values()),
)
def test_resumed_in_the_middle_of_an_epoch_it_ends_in_the_same_bits(
    settings: dict[str, object], tmp_path: Path
) -> None:
    whole = Watch()
    train(settings, out=tmp_path / "whole", progress=whole)
    first, second = Watch(stop_after=6), Watch()
    with pytest.raises(Stopped):
        train(settings, out=tmp_path / "parts", progress=first)
    train(settings, resume_from=tmp_path / "parts", progress=second)
    assert first.rates[1:] + second.rates[1:] == whole.rates[1:] and len(whole.rates) == 13
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_the_line_of_an_epoch_has_the_rate_of_its_last_step() -> None:
    watch = Watch()
    history = train({"schedule": "cyclic"}, progress=watch).history
    assert [row["lr"] for row in history] == watch.rates[4::4] and len(set(watch.rates)) == 13


def test_clipping_is_part_of_training_and_a_large_norm_is_none() -> None:
    def weights(**settings: object) -> list[bytes]:
        return [p.detach().numpy().tobytes() for p in train(settings).model.parameters()]

    assert weights(clip_norm=1e9) == weights() != weights(clip_norm=0.01)


@pytest.mark.parametrize("key", ["lr", "name", "clip_norm", "warmup"])
def test_a_step_leaves_optimizer_and_rate_to_its_loop(key: str) -> None:
    model = net()
    value = {"name": "adamw"}.get(key, 1.0)
    with pytest.raises(OptionError) as refusal:
        Step(model, torch.optim.AdamW(model.parameters()), num_samples=4, settings={f"optimizer.{key}": value})
    assert (
        str(refusal.value) == f"A Step takes the optimizer and its rates as they are; set optimizer.{key} in the loop."
    )
