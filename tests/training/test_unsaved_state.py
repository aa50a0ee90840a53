"""State of a net that no checkpoint holds is refused, before a resume would go on without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import advkit
from advkit import OptionError

Net = Callable[..., nn.Sequential]


class Around(nn.Module):
    """Subtracts a buffer that is in no state_dict, and moves it in training if told to."""

    def __init__(self, core: nn.Module, pace: float) -> None:
        super().__init__()
        self.core, self.pace = core, pace
        self.register_buffer("mean", torch.full((2, 1, 1), 0.25), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.pace:
            with torch.no_grad():
                self.mean.lerp_(x.mean((0, 2, 3)).view(2, 1, 1), self.pace)
        return self.core(x - self.mean)


class Extra(Around):
    """Has more state than tensors, or a tensor of it."""

    def __init__(self, core: nn.Module, state: Any) -> None:
        super().__init__(core, 0.0)
        self.more = state

    def get_extra_state(self) -> Any:
        return self.more

    def set_extra_state(self, state: Any) -> None:
        self.more = state


def trained(net: nn.Module, **arguments: Any) -> advkit.TrainResult:
    drawn = torch.randint(0, 256, (12, 2, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    toy = advkit.Dataset("toy", drawn, torch.arange(12) % 3, ("a", "b", "c"))
    settings = {"attack.steps": 1, "validation.fraction": 0.0}
    splits = advkit.Splits(toy, toy, "none")
    return advkit.train(net, splits, (), settings=settings, epochs=1, batch_size=4, eps=0.1, **arguments)


def test_a_buffer_that_moves_is_persistent(tiny_net: Net, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"The model's buffer mean moves in training, but .* persistent=False"):
        trained(Around(tiny_net(), 0.1), out=tmp_path / "moving")
    trained(Around(tiny_net(), 0.1))  # nothing is to be saved
    trained(Around(tiny_net(), 0.0), out=tmp_path / "constant")


def test_extra_state_is_tensors(tiny_net: Net, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="_extra_state of the model's state_dict is a dict, which no checkpoint"):
        trained(Extra(tiny_net(), {"count": 3}), out=tmp_path / "dict")
    assert not (tmp_path / "dict").exists()
    trained(Extra(tiny_net(), {"count": 3}))
    trained(Extra(tiny_net(), torch.tensor(3)), out=tmp_path / "tensor")
    fresh = Extra(tiny_net(), torch.tensor(0))
    advkit.load_weights(fresh, tmp_path / "tensor", "last")
    assert fresh.more == 3
