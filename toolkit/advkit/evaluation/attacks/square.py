"""Square Attack (Andriushchenko et al., ECCV 2020) in Linf: random search without gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...ascent import per_sample
from ...losses import margin
from .base import EvaluationAttack, Victim

BLOCK = 50
"""Queries whose random numbers are drawn together, and after which broken images are dropped."""

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass(frozen=True)
class Square(EvaluationAttack):
    """Random search with 5,000 queries, in linf, no gradient (Andriushchenko et al. 2020).

    Squares of +-eps at random places, kept where the margin grows. Settings of AutoAttack: p 0.8, the schedule not
    rescaled to the number of queries.
    """

    name: str = "square"
    queries: int = 5000
    p: float = 0.8
    norm: str | None = "linf"
    access: ClassVar[str] = "scores"
    place: ClassVar[int] = 60

    def perturb(self, net: Victim, x: Tensor, y: Tensor, radius: Tensor, index: Tensor) -> Tensor:
        best = self._stripes(net, x, radius, index)
        value = self._margin(net, best, y)
        left = torch.nonzero(value <= 0).squeeze(1)
        for first in range(1, self.queries, BLOCK):
            if not len(left):
                break
            part = [rows[left] for rows in (x, y, radius, index, best, value)]
            queries = range(first, min(first + BLOCK, self.queries))
            best[left], value[left] = self._search(net, queries, *part)
            left = left[value[left] <= 0]
        return best

    def settings(self, eps: float | None) -> Mapping[str, object]:
        return {"queries": self.queries, "p": self.p}

    def _stripes(self, net: Victim, x: Tensor, radius: Tensor, index: Tensor) -> Tensor:
        channels, width = x.shape[1], x.shape[3]
        sign = net.draws("square stripes", index).uniform(channels, 1, width, low=-1, high=1, dtype=x.dtype).sign_()
        return (x + per_sample(radius, x) * sign).clamp_(0, 1)

    def _search(
        self,
        net: Victim,
        queries: range,
        x: Tensor,
        y: Tensor,
        radius: Tensor,
        index: Tensor,
        best: Tensor,
        value: Tensor,
    ) -> tuple[Tensor, Tensor]:
        _, channels, height, width = x.shape
        wide = per_sample(radius, x)
        lower, upper = (x - wide).clamp_(min=0), (x + wide).clamp_(max=1)
        draws = net.draws("square", index, queries.start).uniform(len(queries), 2 + channels, dtype=x.dtype)
        rows, columns = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
        for turn, query in enumerate(queries):
            side = max(1, min(round((share(self.p, query) * height * width) ** 0.5), height, width))
            u = draws[:, turn]
            top = (u[:, 0, None] * (height - side + 1)).long()
            left = (u[:, 1, None] * (width - side + 1)).long()
            inside = ((rows >= top) & (rows < top + side))[:, None, :, None]
            inside = inside & ((columns >= left) & (columns < left + side))[:, None, None, :]
            sign = (2 * u[:, 2:] - 1).sign()[:, :, None, None]
            tried = torch.where(inside, best + 2 * wide * sign, best).clamp_(lower, upper)
            now = self._margin(net, tried, y)
            # A broken image keeps the perturbation that broke it.
            better = (now > value) & (value <= 0)
            value = torch.where(better, now, value)
            best = torch.where(per_sample(better, x), tried, best)
        return best, value

    def _margin(self, net: Victim, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            return margin(y)(net(x))


def share(p: float, query: int) -> float:
    """The share of the image that a square covers at a query: `p`, halved nine times (their Section 3)."""
    return p / 2.0 ** sum(query > bound for bound in _HALVINGS)
