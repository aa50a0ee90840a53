"""Tensors are compared and put back bit by bit, whatever lies on itself in memory, conjugates or negates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from advkit.bits import as_bytes, lies_on_itself, overwrite, same_bits, write_back

COMPLEX = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64)
VIEWS = {
    "expanded": torch.tensor(0.5).expand(3, 2, 1),
    "to one row": torch.tensor(0.5).expand(1, 1),
    "conjugated": COMPLEX.conj(),
    "negated": COMPLEX.conj().imag,
    "turned": torch.arange(6.0).view(2, 3).t(),
    "a number": torch.tensor(2.0),
    "nothing": torch.zeros(0, 3),
    "NaN": torch.tensor([float("nan"), -0.0]),
}


@pytest.mark.parametrize("tensor", VIEWS.values(), ids=[*VIEWS])
def test_a_view_has_the_bytes_of_its_values(tensor: Tensor) -> None:
    plain = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)
    assert bytes(as_bytes(tensor).tolist()) == plain.numpy().tobytes()
    assert same_bits(tensor, plain) and not same_bits(tensor, plain[None])
    assert not plain.numel() or not same_bits(tensor, plain.nan_to_num() + 1)


def test_zeros_of_two_signs_are_two_numbers() -> None:
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))


@pytest.mark.parametrize("how", [overwrite, write_back])
def test_what_lies_on_itself_is_put_back(how: object) -> None:
    assert callable(how)
    tensor, apart = torch.tensor([[1.0], [2.0]]).expand(2, 3), torch.zeros(2, 3)
    was = tensor.clone()
    tensor[:, 1] = 7.0  # into all three
    how(tensor, was)
    how(apart, was)
    assert lies_on_itself(tensor) and torch.equal(tensor, was)
    assert not lies_on_itself(apart) and torch.equal(apart, was)


def test_what_has_not_changed_is_not_written_to() -> None:
    tensor = torch.tensor([float("nan"), 1.0])
    write_back(tensor, tensor.clone())
    assert tensor._version == 0
    overwrite(tensor, tensor.clone())
    assert tensor._version == 1
