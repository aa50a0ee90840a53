"""The `Step` under test, seen as the naive code sees itself, and the comparison of the two."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
from naive import Attack, Learner, Record
from torch import Tensor, nn

from advkit import Plugin, Step

TOLERANCE = 1e-10
"""Relative, a tensor at a time: max |a - b| <= TOLERANCE max |b|; where b is 0, a must be."""

APART = 1e-6
"""What a wrong constant must change at least, by the same measure."""


class Subject:
    """A copy of `model`, torch's SGD with momentum 0.9 and weight decay 5e-4, and one `Step` on both."""

    def __init__(
        self,
        model: nn.Module,
        plugins: Iterable[str | type[Plugin]],
        *,
        attack: Attack,
        samples: int,
        lr: float,
        options: Mapping[str, Mapping[str, object]] | None = None,
        settings: Mapping[str, object] | None = None,
        seed: int = 0,
        **more: Any,
    ) -> None:
        self.model = deepcopy(model)
        self.step = Step(
            self.model,
            torch.optim.SGD(self.model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4),
            plugins,
            num_samples=samples,
            options=options,
            settings={
                "attack.steps": attack.m,
                "attack.step_size": attack.alpha,
                "run.epochs": 20,
                **(settings or {}),
            },
            eps=attack.eps,
            seed=seed,
            **more,
        )
        self.forwards: list[tuple[bool, Tensor, dict[str, Tensor]]] = []
        """The last visit's: whether in train mode, of which images, with which weights in the model's places."""
        self.model.register_forward_pre_hook(self._watch)

    def _watch(self, model: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.forwards.append((model.training, arguments[0].detach().clone(), weights))

    def visit(self, x: Tensor, y: Tensor, index: Tensor, epoch: int) -> Record:
        self.forwards.clear()
        report = self.step(x, y, index, epoch=epoch)
        record = {
            "loss": report.loss,
            "x_adv": report.x_train,
            "radius": report.radius,
            **report.weighted,
            **{f"gradient {n}": p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None},
            **{f"parameter {n}": p.detach().clone() for n, p in self.model.named_parameters()},
            **{f"statistic {n}": b.double() for n, b in self.model.named_buffers()},
        }
        if report.shift_ratio is not None:
            record["shift"] = report.shift_ratio
        if report.success is not None:
            record["success"] = report.success.double()
        if "cat-eps/eps" in self.step.state.samples:
            record["eps"] = self.step.state.samples["cat-eps/eps"][index]
        return record


def pair(model: nn.Module, plugins: Iterable[str | type[Plugin]], **both: Any) -> tuple[Subject, Learner]:
    """Both start from the same weights, with the same learning rate."""
    return Subject(model, plugins, **both), Learner(model, both["samples"], both["lr"])


def differences(measured: Record, expected: Record) -> dict[str, float]:
    """The relative error of each tensor the naive code knows; gradients, parameters and statistics are all there."""
    whole = ("gradient", "parameter", "statistic")
    assert {n for n in measured if n.startswith(whole)} == {n for n in expected if n.startswith(whole)}
    errors = {}
    for name, value in expected.items():
        gap, size = (measured[name] - value).abs().max().item(), value.abs().max().item()
        errors[name] = gap / size if size else float("inf" if gap else 0)
    return errors


def assert_parity(measured: Record, expected: Record) -> None:
    assert {name: error for name, error in differences(measured, expected).items() if not error <= TOLERANCE} == {}
