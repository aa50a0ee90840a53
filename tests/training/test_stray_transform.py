"""A plugin's training transform is held to [0, 1] at every batch, not at the first alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import advkit
from advkit import CheckpointError, HookContract, Plugin, hookimpl

TINY: dict[str, Any] = {
    "data.limit": 40,
    "attack.steps": 1,
    "validation.steps": 1,
    "run.batch_size": 12,
    "run.epochs": 1,
}


class Brightens(Plugin):
    """From the second batch on."""

    name = "brightens"

    @hookimpl
    def train_transform(self, x: Tensor, run: advkit.Run) -> Tensor:
        return x + run.step


def test_a_later_batch_that_leaves_the_box_is_refused() -> None:
    with pytest.raises(HookContract, match=r"Plugin brightens broke .*: images leave \[0, 1\]"):
        advkit.train(plugins=[Brightens], settings=TINY)


def test_how_large_a_file_of_weights_may_be_is_a_setting(tmp_path: Path) -> None:
    file = tmp_path / "net.pt"
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    torch.save(net.state_dict(), file)
    with pytest.raises(CheckpointError, match=r"\(it has more than 100 bytes, checkpoint\.max_bytes\)"):
        advkit.train(net, settings=TINY | {"checkpoint.max_bytes": 100}, init_from=file)
    assert advkit.train(net, settings=TINY, init_from=file).history
