"""Losses where a logit is -inf, as of a masked class: the limit, with its gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from advkit.losses import cross_entropy, kl_divergence, margin, soft_cross_entropy


def logits(masked: bool = True) -> Tensor:
    """(5, 4); the last class masked, or left out."""
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return F.pad(rows, (0, 1), value=-torch.inf) if masked else rows


TARGET = torch.tensor([[0.7, 0.2, 0.1, 0.0]], dtype=torch.float64).repeat(5, 1)
LABELS = torch.tensor([0, 1, 2, 0, 1])


def both(loss, *given: Tensor) -> tuple[Tensor, list[Tensor]]:  # type: ignore[no-untyped-def]
    """The values, and the gradients with respect to all that is given, without the masked column."""
    leaves = [one.clone().requires_grad_() for one in given]
    value = loss(*leaves)
    return value.detach(), [one[:, :3] for one in torch.autograd.grad(value.sum(), leaves)]


@pytest.mark.parametrize(
    ("loss", "count"),
    [
        (lambda z: soft_cross_entropy(z, TARGET[:, : z.shape[1]]), 1),
        (kl_divergence, 2),
        (lambda z: cross_entropy(LABELS)(z), 1),
        (lambda z: margin(LABELS)(z), 1),
    ],
    ids=["soft cross-entropy", "kl", "cross-entropy", "margin"],
)
def test_a_masked_class_is_as_if_it_were_not_there(loss, count: int) -> None:  # type: ignore[no-untyped-def]
    given = [logits(), logits().roll(1, 0)][:count]
    value, gradients = both(loss, *given)
    expected, slopes = both(loss, *(one[:, :3] for one in given))
    assert value.isfinite().all()
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-15)
    for got, right in zip(gradients, slopes, strict=True):
        torch.testing.assert_close(got, right, rtol=0, atol=1e-15)


def test_what_is_infinite_stays_so_and_what_is_no_number_too() -> None:
    wanted = torch.tensor([[0.5, 0.0, 0.0, 0.5]], dtype=torch.float64)
    assert soft_cross_entropy(logits(), wanted).eq(torch.inf).all()
    assert kl_divergence(F.pad(logits(False), (0, 1)), logits()).eq(torch.inf).all()
    broken = logits() * torch.nan
    assert soft_cross_entropy(broken, TARGET).isnan().all() and kl_divergence(broken, logits()).isnan().all()


def test_a_probability_that_underflows_meets_a_masked_class() -> None:
    clean = torch.tensor([[0.0, -2000.0]], dtype=torch.float64)
    adv = torch.tensor([[0.0, -torch.inf]], dtype=torch.float64)
    assert kl_divergence(clean, adv).item() == 0


def test_ordinary_logits_keep_their_bits() -> None:
    z, other = logits(False).float(), logits(False).roll(1, 0).float()
    target = TARGET[:, :3].float()
    assert torch.equal(soft_cross_entropy(z, target), -(target * F.log_softmax(z, 1)).sum(1))
    one, two = F.log_softmax(z, 1), F.log_softmax(other, 1)
    assert torch.equal(kl_divergence(z, other), (one.exp() * (one - two)).sum(1))
