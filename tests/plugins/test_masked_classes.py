"""A class that the net masks, by a logit of -inf, adds nothing to any loss but its own: the limit, not NaN."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

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
