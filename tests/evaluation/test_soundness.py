"""Images whose logits are no numbers: no attack is needed to break them, and no argmax of NaN is right."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import advkit
from advkit.data.base import Dataset
from advkit.evaluation.soundness import classified_as, sound
from advkit.judging import apart


class Void(nn.Module):
    """Class 0; where the first pixel is dark, logits of `value`."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        logits = x.flatten(1)[:, :3] * 0 + torch.tensor([1.0, 0.0, -torch.inf])
        return torch.where(x.flatten(1)[:, :1] < 0.1, torch.full_like(logits, self.value), logits)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_audit_counts_them(value: float) -> None:
    images = torch.full((20, 2, 6, 6), 200, dtype=torch.uint8)
    images[::10] = 9
    data = Dataset("grey", images, torch.zeros(20).long(), ("a", "b", "c"))
    told = "without an attack, the logits of 2 of 20 images are NaN or Inf; these count as misclassified"
    record = advkit.audit(Void(value), data, eps=0.01)
    assert record.notes == [told] and record.withstood["pgd-50"] == 0.9
    assert "notes" not in advkit.audit(Void(value), data.take(torch.arange(1, 5)), eps=0.01)


def test_no_image_whose_logits_are_none_is_right() -> None:
    rows = torch.tensor([[1.0, 0], [torch.nan, 0], [1, torch.nan], [torch.inf, 0], [-torch.inf] * 2, [1, -torch.inf]])
    assert classified_as(rows, torch.zeros(6).long()).tolist() == [True, False, False, False, False, True]
    assert sound(rows).tolist() == [True, False, False, False, False, True]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_is_like_itself_alone(value: float) -> None:
    row = torch.tensor([[1.0, value], [2.0, value]])
    assert apart(row, row + torch.tensor([1e-9, 0])).tolist() == [False, False]
    others = [one for one in (torch.nan, torch.inf, -torch.inf, 5.0) if repr(one) != repr(value)]
    for other in others:
        assert apart(row, torch.tensor([[1.0, value], [2.0, other]])).tolist() == [False, True]


def test_logits_that_are_none_for_an_image_alone_depend_on_the_batch() -> None:
    class Standardised(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            rows = x.flatten(1)[:, :3]
            return (rows - rows.mean(0)) / rows.std(0)

    images = (torch.rand(40, 2, 6, 6, generator=torch.Generator().manual_seed(0)) * 255).byte()
    found = advkit.evaluate(
        Standardised(), Dataset("grey", images, torch.arange(40) % 3, ("a", "b", "c")), "clean", eps=0.1, audit=False
    )
    assert any("depend on the other images" in note for row in found.attacks for note in row.notes)
