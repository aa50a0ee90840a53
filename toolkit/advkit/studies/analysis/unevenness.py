"""How unevenly vulnerability is spread over samples: Li and Spratling 2023 (ISEAT), Eq. 6 and Table 1."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isfinite, nan

import torch
from torch import Tensor

from ...arguments import checked


@dataclass(frozen=True)
class Unevenness:
    """The columns of ISEAT's Table 1, in the unit of the loss (nats); NaN where there are too few samples.

    `top_10` and `bottom_10` are the means over the floor(n / 10) samples with the highest and the lowest value.
    """

    n: int
    mean: float
    sd: float
    """Population standard deviation (divided by n), Eq. 6."""
    top_10: float
    bottom_10: float
    at_least_1: float
    """Share of samples with a value >= 1: the attack changes the answer significantly."""
    at_most_0: float
    """Share of samples with a value <= 0: the attack changes hardly anything."""

    @classmethod
    @checked()
    def of(cls, vulnerability: Tensor) -> Unevenness:
        """Of AV_i (n,), those that are not finite left out."""
        values = vulnerability[vulnerability.isfinite()].double().sort().values
        n, tenth = len(values), len(values) // 10
        if not n:
            return cls(0, *[nan] * 6)
        return cls(
            n,
            mean=float(values.mean()),
            sd=float(values.std(correction=0)),
            top_10=float(values[n - tenth :].mean()) if tenth else nan,
            bottom_10=float(values[:tenth].mean()) if tenth else nan,
            at_least_1=float((values >= 1).to(torch.float64).mean()),
            at_most_0=float((values <= 0).to(torch.float64).mean()),
        )

    def as_dict(self) -> dict[str, float | None]:
        """By name; None for NaN, which JSON has not."""
        return {name: value if isfinite(value) else None for name, value in asdict(self).items()}
