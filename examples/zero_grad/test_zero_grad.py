"""ZeroGrad in closed form, and every check of advkit; they need the package installed (`pip install -e .`)."""

from __future__ import annotations

import torch
from advkit_zero_grad import without_small

from advkit.testing import conformance

test_zero_grad = conformance("zero-grad", options={"q": 0.35}, neutral={"q": 0.0})


def test_the_smallest_gradients_of_each_image_do_not_move() -> None:
    gradient = torch.tensor([[1.0, -2.0, 3.0, -4.0], [0.0, 0.0, 0.0, -1.0]]).view(2, 1, 2, 2)
    move = gradient.sign()
    assert without_small(move, gradient, 0.5).flatten(1).tolist() == [[0, 0, 1, -1], [0, 0, 0, -1]]
    assert torch.equal(without_small(move, gradient, 0.0), move)
