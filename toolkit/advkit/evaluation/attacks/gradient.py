"""No attack, and projected gradient ascent on cross-entropy or on the margin."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...ascent import NORMS, Observer, pgd
from ...errors import OptionError
from ...losses import cross_entropy, margin
from ...types import AttackResult, Objective
from .base import CAT_PACE, EvaluationAttack, Typed, Victim

Loss = Literal["cross-entropy", "margin"]
OBJECTIVES: dict[str, Callable[[Tensor], Objective]] = {"cross-entropy": cross_entropy, "margin": margin}

_NUMBERS = re.compile(r"-([1-9][0-9]{0,3})(?:x([1-9][0-9]{0,2}))?(?:-(linf|l2))?")
"""Steps, restarts and norm behind the name."""


def climb(
    net: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    radius: Tensor,
    *,
    norm: str,
    steps: int,
    step_size: Tensor,
    loss: str = "cross-entropy",
    begin: Callable[[], Tensor] | None = None,
    observe: Observer | None = None,
) -> AttackResult:
    """PGD that judges: from x, or from where `begin` says, on the loss with the labels y (B,)."""
    ball = NORMS[norm](x, radius)
    start = x.clone() if begin is None else begin()
    return pgd(net, ball, start, OBJECTIVES[loss](y), steps=steps, step_size=step_size, observe=observe)


@dataclass(frozen=True)
class Clean(EvaluationAttack):
    """The images as they are."""

    name: str = "clean"
    access: ClassVar[str] = "scores"
    place: ClassVar[int] = 0

    def perturb(self, net: Victim, x: Tensor, y: Tensor, radius: Tensor, index: Tensor) -> Tensor:
        return x


@dataclass(frozen=True)
class Pgd(EvaluationAttack):
    """K steps up the cross-entropy from the image, and from R - 1 random points of the ball (Madry et al. 2018; CAT).

    An image is broken if any last iterate is, so more restarts never raise the accuracy. Images that are broken are
    not attacked again.
    """

    name: str = "pgd"
    steps: int = 20
    loss: Loss = "cross-entropy"
    pace: float = CAT_PACE
    """Step size as a share of eps."""
    restarts: int = 1
    norm: str | None = None
    spellings: ClassVar[tuple[str, ...]] = ("pgd-K", "pgd-KxR", "pgd-K-l2", "pgd-K-linf")
    place: ClassVar[int] = 20

    @classmethod
    def spelled(cls, typed: Typed) -> EvaluationAttack | None:
        numbers = _NUMBERS.fullmatch(typed.text.removeprefix(cls.name))
        if numbers is None:
            return None
        steps, restarts, norm = numbers.groups()
        return cls(typed.text, int(steps), pace=typed.pace, restarts=int(restarts or 1), norm=norm)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1 or not (isfinite(self.pace) and self.pace > 0):
            raise OptionError(f"{self.name}: steps and restarts must be 1 or more, and pace a finite number above 0.")

    def perturb(self, net: Victim, x: Tensor, y: Tensor, radius: Tensor, index: Tensor) -> Tensor:
        best = x.clone()
        left = torch.arange(len(x), device=x.device)
        for restart in range(self.restarts):
            best[left] = ends = self._climb(net, x[left], y[left], radius[left], index[left], restart)
            if restart + 1 == self.restarts:
                break
            left = left[net.correct(ends, y[left])]
            if not len(left):
                break
        return best

    def _climb(self, net: Victim, x: Tensor, y: Tensor, radius: Tensor, index: Tensor, restart: int) -> Tensor:
        def random() -> Tensor:
            return NORMS[net.norm](x, radius).uniform(net.draws("restart", index, restart))

        begin = random if restart else None
        step = self.pace * radius
        return climb(
            net, x, y, radius, norm=net.norm, steps=self.steps, step_size=step, loss=self.loss, begin=begin
        ).x_adv

    def settings(self, eps: float | None) -> Mapping[str, object]:
        size = f"{self.pace:g} eps" if eps is None else self.pace * eps
        return {"loss": self.loss, "steps": self.steps, "step_size": size, "restarts": self.restarts}


@dataclass(frozen=True)
class Cw(Pgd):
    """K steps up the margin max_j Z_j - Z_y, what CAT and ISEAT call C&W; starts as those of pgd."""

    name: str = "cw"
    loss: Loss = "margin"
    spellings: ClassVar[tuple[str, ...]] = ("cw-K", "cw-KxR", "cw-K-l2", "cw-K-linf")
    place: ClassVar[int] = 30


@dataclass(frozen=True)
class Fgsm(Pgd):
    """One step of eps up the cross-entropy (Goodfellow et al. 2015)."""

    name: str = "fgsm"
    steps: int = 1
    pace: float = 1.0
    spellings: ClassVar[tuple[str, ...]] = ()
    place: ClassVar[int] = 10

    @classmethod
    def spelled(cls, typed: Typed) -> EvaluationAttack | None:
        return cls() if typed.text == cls.name else None
