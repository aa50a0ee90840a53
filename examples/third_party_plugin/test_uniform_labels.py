"""Tests of a plugin through what advkit exports; they need the package installed (`pip install -e .`)."""

from __future__ import annotations

import math

import pytest
import torch
from advkit_uniform_labels import smooth
from torch import Tensor, nn

import advkit


def trained(
    *plugins: str, alpha: float | None = None, settings: dict[str, object] | None = None
) -> tuple[Tensor, advkit.Step]:
    """The weights after three steps of a linear net, and the step that made them."""
    linear = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.linspace(-1, 1, 12).view(3, 4))
    model = nn.Sequential(nn.Flatten(), linear)
    step = advkit.Step(
        model,
        torch.optim.SGD(model.parameters(), lr=0.5),
        plugins,
        num_samples=6,
        eps=0.1,
        options={} if alpha is None else {"uniform-labels": {"alpha": alpha}},
        settings={"attack.steps": 3, "run.check_hooks": True, **(settings or {})},
    )
    x = torch.linspace(0, 1, 24).view(6, 1, 2, 2)
    for epoch in range(3):
        step(x, torch.arange(6) % 3, torch.arange(6), epoch=epoch)
    return linear.weight.detach().clone(), step


def test_the_rows_stay_on_the_simplex_and_move_towards_uniform() -> None:
    target = torch.eye(4, dtype=torch.float64)
    smoothed = smooth(target, 0.2)
    assert torch.equal(smoothed.argmax(1), target.argmax(1))
    torch.testing.assert_close(smoothed.diagonal(), torch.full((4,), 0.85, dtype=torch.float64))
    torch.testing.assert_close(smoothed.sum(1), torch.ones(4, dtype=torch.float64))


def test_smoothed_labels_reach_the_loss() -> None:
    _, step = trained("uniform-labels", alpha=0.3)
    report = step(torch.zeros(6, 1, 2, 2), torch.arange(6) % 3, torch.arange(6), epoch=3)
    # No prediction has a lower cross-entropy with a smoothed label than the label itself, its entropy.
    entropy = -(0.8 * math.log(0.8) + 2 * 0.1 * math.log(0.1))
    assert float(report.loss) > entropy


def test_alpha_0_changes_no_bit_and_alpha_does() -> None:
    plain, _ = trained()
    assert torch.equal(trained("uniform-labels", alpha=0.0)[0], plain)
    assert not torch.equal(trained("uniform-labels", alpha=0.1)[0], plain)


def test_it_comes_before_dirichlet_ls_however_they_are_named() -> None:
    one, step = trained("uniform-labels", "dirichlet-ls")
    other, _ = trained("dirichlet-ls", "uniform-labels")
    assert step.composition.owners("target_label") == ("uniform-labels", "dirichlet-ls")
    assert torch.equal(one, other)


def test_it_costs_no_pass() -> None:
    assert trained("uniform-labels")[1].composition.at(0).cost == trained()[1].composition.at(0).cost


@pytest.mark.parametrize("alpha", [-0.1, 1.0, math.nan])
def test_alpha_has_a_range(alpha: float) -> None:
    with pytest.raises(advkit.OptionError, match=r"uniform-labels\.alpha"):
        trained("uniform-labels", alpha=alpha)
