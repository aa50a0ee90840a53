"""No attack, and projected gradient ascent on cross-entropy or on the margin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Literal

import torch
from torch import Tensor

from ...ascent import NORMS, pgd
from ...errors import NonFinite, OptionError
from ...losses import cross_entropy, margin
from ...types import Objective
from .base import EvaluationAttack, Victim

OBJECTIVES: dict[str, Callable[[Tensor], Objective]] = {"cross-entropy": cross_entropy, "margin": margin}


@dataclass(frozen=True)
class Clean(EvaluationAttack):
    """The images as they are."""

    name: str = "clean"

    def perturb(self, net: Victim, x: Tensor, y: Tensor, radius: Tensor, index: Tensor) -> Tensor:
        return x


@dataclass(frozen=True)
class Pgd(EvaluationAttack):
    """PGD from x with `restarts` - 1 more starts, at random in the ball; an image is broken if any last iterate is.

    So more restarts never raise the accuracy. Images that are broken are not attacked again.
    """

    name: str
    steps: int
    loss: Literal["cross-entropy", "margin"] = "cross-entropy"
    pace: float = 0.2
    """Step size as a share of eps; CAT's is 1/5."""
    restarts: int = 1
    norm: str | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1 or not (isfinite(self.pace) and self.pace > 0):
            raise OptionError(f"{self.name}: steps and restarts must be 1 or more, and pace a finite number above 0.")

    def perturb(self, net: Victim, x: Tensor, y: Tensor, radius: Tensor, index: Tensor) -> Tensor:
        """Raises NonFinite if an input gradient is not finite: such an attack is none, and every net robust."""
        best = x.clone()
        left = torch.arange(len(x), device=x.device)
        for restart in range(self.restarts):
            found = self._ascend(net, x[left], y[left], radius[left], index[left], restart)
            best[left] = found
            if restart + 1 == self.restarts:
                break
            left = left[net.correct(found, y[left])]
            if not len(left):
                break
        return best

    def _ascend(self, net: Victim, x: Tensor, y: Tensor, radius: Tensor, index: Tensor, restart: int) -> Tensor:
        ball = NORMS[net.norm](x, radius)
        begin = ball.uniform(net.draws("restart", index, restart)) if restart else x.clone()
        objective = OBJECTIVES[self.loss](y)
        result = pgd(net, ball, begin, objective, steps=self.steps, step_size=self.pace * radius)
        if result.finite is not None and not bool(result.finite):
            raise NonFinite(f"{self.name} met an input gradient that is NaN or Inf; its accuracy would mean nothing.")
        return result.x_adv

    def settings(self, eps: float | None) -> Mapping[str, object]:
        size = f"{self.pace:g} eps" if eps is None else self.pace * eps
        return {"loss": self.loss, "steps": self.steps, "step_size": size, "restarts": self.restarts}
