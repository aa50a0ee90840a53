"""A class that the net masks, by a logit of -inf, adds nothing to any loss but its own: the limit, not NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from methods import pictures, tiny_net
from torch import Tensor, nn

import advkit
from advkit_plugins.alp import pairing
from advkit_plugins.lsiw import squared_l2
from advkit_plugins.lsr import largest_shifts
from advkit_plugins.mart import boosted_cross_entropy, weighted_kl

LABELS = torch.tensor([0, 1, 2, 4])


def logits(seed: int, masked: float) -> Tensor:
    drawn = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    drawn[:, 3] = masked
    return drawn.requires_grad_()


@pytest.mark.parametrize(
    "loss",
    [
        lambda adversarial, clean: weighted_kl(clean, adversarial, LABELS),
        lambda adversarial, clean: weighted_kl(clean, adversarial, LABELS, detach_target=True),
        lambda adversarial, clean: boosted_cross_entropy(adversarial, LABELS),
        lambda adversarial, clean: squared_l2(clean, adversarial),
        lambda adversarial, clean: pairing(clean, adversarial, "mean"),
        lambda adversarial, clean: largest_shifts(clean, adversarial, 0.3),
    ],
)
def test_the_limit(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    values, gradients = [], []
    for masked in (-torch.inf, -700.0):
        pair = logits(0, masked), logits(1, masked)
        values.append(loss(*pair))
        gradients.append(torch.autograd.grad(values[-1].sum(), pair, allow_unused=True))
    assert torch.allclose(values[0], values[1], rtol=0, atol=1e-9)
    for at_infinity, near in zip(*gradients, strict=True):
        assert (at_infinity is None) == (near is None)
        assert near is None or torch.allclose(at_infinity, near, rtol=0, atol=1e-9)


class Masked(nn.Module):
    """Its mask is a parameter, as of many a transformer; another has no entries, as of a prompt of no tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_net(False, 0.0, torch.float32)
        self.mask = nn.Parameter(torch.tensor([0.0, 0.0, -torch.inf]), requires_grad=False)
        self.tokens = nn.Parameter(torch.zeros(0, 3))

    def forward(self, x: Tensor) -> Any:
        return self.net(x) + self.mask + self.tokens.sum(0)


@pytest.mark.parametrize("plugin", ["ema", "swa"])
def test_a_mask_and_an_empty_tensor_have_no_average_and_stay_the_models_own(plugin: str) -> None:
    data = pictures(8).take(slice(0, 8))
    two = advkit.Dataset("two", data.images, data.labels % 2, data.classes)
    result = advkit.train(
        Masked(), advkit.Splits(two, two, "none"), plugin, epochs=2, batch_size=4, eps=0.1,
        options={"swa": {"start": 0.0}} if plugin == "swa" else {},
        settings={"attack.steps": 1, "validation.fraction": 0.0},
    )  # fmt: skip
    assert "net.0.weight" in result.averaged and not {"mask", "tokens"} & result.averaged.keys()
