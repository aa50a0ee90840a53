"""The evaluation of a net in memory: no robustness without gradients, and the same answer twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import advkit
from advkit import Dataset
from advkit.errors import NonFinite
from advkit.evaluation.statistics import wilson

Net = Callable[..., nn.Sequential]


def pictures(count: int, seed: int = 0) -> Dataset:
    drawn = torch.randint(0, 256, (count, 2, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Dataset("toy", drawn, torch.arange(count) % 3, ("a", "b", "c"))


class RootOfZero(nn.Module):
    """Finite logits whose gradient by the input is NaN, the derivative of a square root at 0."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + 0 * (x * 0).flatten(1).sum(1, keepdim=True).sqrt()


@pytest.mark.parametrize("attack", ["fgsm", "pgd-2", "cw-2"])
def test_an_attack_without_a_gradient_is_no_robustness(tiny_net: Net, attack: str) -> None:
    net = tiny_net()
    assert advkit.evaluate(net, pictures(20), ("clean", attack), eps=0.1)["n"] == 20
    broken = RootOfZero(net)
    clean = advkit.evaluate(broken, pictures(20), ("clean",), eps=0.1)["attacks"][0]["accuracy"]
    assert clean == advkit.evaluate(net, pictures(20), ("clean",), eps=0.1)["attacks"][0]["accuracy"]
    with pytest.raises(NonFinite, match=f"{attack} met an input gradient that is NaN or Inf"):
        advkit.evaluate(broken, pictures(20), ("clean", attack), eps=0.1)


class Noisy(nn.Module):
    """Draws in eval mode too."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + 0.5 * torch.randn_like(x))


def test_a_model_that_draws_in_eval_mode_evaluates_the_same_twice_and_leaves_the_generator(tiny_net: Net) -> None:
    net, results = Noisy(tiny_net()), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        result = advkit.evaluate(net, pictures(200), ("clean", "pgd-2", "cw-2"), eps=0.1)
        results.append({**result, "attacks": [{**row, "seconds": 0} for row in result["attacks"]]})
        assert torch.equal(torch.get_rng_state(), before)
    assert results[0] == results[1]
    x, logits = pictures(4).images / 255, []
    for seed in (1, 2):
        torch.manual_seed(seed)
        logits.append(net(x))
    assert not torch.equal(*logits)  # left alone, it draws


@pytest.mark.parametrize("n", [1, 3, 7, 10, 100, 200, 539, 10_000])
def test_an_interval_of_none_begins_at_0_and_of_all_ends_at_1(n: int) -> None:
    assert wilson(0, n)[0] == 0.0 < wilson(0, n)[1]
    assert wilson(n, n)[1] == 1.0 > wilson(n, n)[0]
