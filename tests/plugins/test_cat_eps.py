"""CAT's budgets per sample, where the paper leaves a choice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from advkit import Step

Net = Callable[..., nn.Sequential]
BatchOf = Callable[..., tuple[Tensor, Tensor, Tensor]]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_distance_of_cat_eps_is_in_the_runs_norm(tiny_net: Net, tiny_batch: BatchOf, norm: str) -> None:
    net, (x, y, index) = tiny_net(), tiny_batch()
    step = Step(
        net,
        torch.optim.SGD(net.parameters(), lr=0.1),
        "cat-eps",
        num_samples=len(x),
        eps=0.1,
        options={"cat-eps": {"on_success": "distance", "on_failure": "distance", "eta": 0.05, "eps_max": 1.0}},
        settings={"attack.norm": norm, "attack.steps": 3, "attack.step_size": 0.04},
    )
    moved = (step(x, y, index, epoch=0).x_train - x).flatten(1)
    expected = {"linf": moved.abs().amax(1), "l2": moved.norm(dim=1)}
    stored = step.state_dict()["samples/cat-eps/eps"]
    torch.testing.assert_close(stored, expected[norm])
    assert bool((expected["l2"] > expected["linf"]).all())  # the two can be told apart
