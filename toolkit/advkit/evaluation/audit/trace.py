"""What an ascent of the audit has seen, at every iterate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..soundness import classified_as


@dataclass(frozen=True)
class Trace:
    """An ascent with `steps` moves of m images, at every iterate: the whole of what the attack saw."""

    loss: Tensor
    """(steps + 1, m)"""
    right: Tensor
    """(steps + 1, m) bool: still classified as labelled."""
    blind: Tensor
    """(steps, m) bool: the input gradient was zero or not finite."""
    x_adv: Tensor
    """(m, C, H, W): the last iterate."""


class Seen:
    """Records every iterate."""

    y: Tensor

    def __init__(self) -> None:
        self.loss: list[Tensor] = []
        self.right: list[Tensor] = []
        self.blind: list[Tensor] = []

    def __call__(self, *, x_adv: Tensor, logits: Tensor, loss: Tensor, gradient: Tensor, step: int) -> Tensor:
        self.note(logits, loss)
        peak = gradient.flatten(1).abs().amax(1)
        self.blind.append((peak == 0) | ~peak.isfinite())
        return torch.ones_like(self.blind[-1])

    def note(self, logits: Tensor, loss: Tensor) -> None:
        self.loss.append(loss)
        self.right.append(classified_as(logits, self.y))
