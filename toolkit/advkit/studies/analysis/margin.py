"""How far along the adversarial direction the prediction holds: Li and Spratling 2023 (ISEAT), Eq. 7 and Fig. 1b.

After Rade and Moosavi-Dezfooli (ICLR 2022), whose script takes steps of 1 before it takes steps of 0.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor, nn

from ...arguments import checked
from ...data.base import Dataset
from ...errors import OptionError
from ...evaluation.verdicts import FARTHEST
from ...global_state import one_at_a_time
from .perturb import BATCH, Ascent, Forward, asked, batches, caution, lengths, still, tell_doubt, unit

QUANTILES = (0.1, 0.5, 0.9)
MOST = 100_000
"""Points of a scan: each is a forward of every image that has not flipped before."""


@dataclass(frozen=True, eq=False)
class Margins:
    """mu of n images along delta / ||delta||_2, in L2 units on images in [0, 1]; each (n,) on the CPU."""

    index: Tensor
    """int64: places in the data set."""
    mu: Tensor
    """float64: the first scanned mu at which the prediction differs from that at x; `cap` where none does; NaN where
    delta is 0, so that there is no direction."""
    flipped: Tensor
    """bool: whether the prediction changed at all."""
    length: Tensor
    """float64: mu_eps, the sample's own ||delta||_2, to which its mu is compared."""
    cap: float
    precision: float

    def as_dict(self) -> dict[str, float | int | None]:
        """The figures of ISEAT's section 3.2. Means and shares are over the samples that have a direction.

        `disordered` is the share that never flips up to the cap ("disordered robustness"), `within_eps` that with
        mu <= mu_eps, and so on: None where the cap is below that bound of a sample that never flips. `mean` counts
        those that never flip with the cap, `mean_flipped` leaves them out.
        """
        known = ~self.mu.isnan()
        mu, length, flipped = self.mu[known], self.length[known], self.flipped[known]
        ranked, n = mu.sort().values, len(mu)

        def mean(values: Tensor) -> float | None:
            return float(values.double().mean()) if len(values) else None

        def share(holds: Tensor, bound: Tensor) -> float | None:
            scanned = bool((flipped | (bound <= self.cap)).all())  # beyond the cap nobody looked
            return mean(holds) if scanned else None

        return {
            "n": len(self.mu),
            "undefined": int((~known).sum()),
            "mean": mean(mu),
            "mean_flipped": mean(mu[flipped]),
            # Lower quantiles: a margin that a sample has, also where half of them are the cap.
            **{f"q{round(100 * q)}": float(ranked[int(q * (n - 1))]) if n else None for q in QUANTILES},
            "within_third_of_eps": share(flipped & (mu <= length / 3), length / 3),
            "within_eps": share(flipped & (mu <= length), length),
            "beyond_twice_eps": share(~flipped | (mu > 2 * length), 2 * length),
            "disordered": mean(~flipped),
            "mean_mu_eps": mean(length),
        }


@checked()
@one_at_a_time
def margins(
    model: nn.Module,
    dataset: Dataset,
    attack: Ascent,
    *,
    index: Tensor | None = None,
    batch_size: int = BATCH,
    cap: float = 50.0,
    precision: float = 0.1,
    clip: bool = True,
    tick: Callable[[int], None] = lambda done: None,
    tell: Callable[[str], None] = caution,
) -> Margins:
    """mu of the images of `dataset` at `index` (n,), all by default; delta by `attack` on the same model.

    mu = precision, 2 precision, ..., cap are scanned one after the other, so the first flip is found however often
    the prediction changes along the ray; mu is at most one `precision` too large, provided that the prediction does
    not change twice between two neighbours. `clip`: images are clipped to [0, 1], as in ISEAT. `batch_size` images
    are computed at once.
    """
    steps = round(cap / precision) if 0 < precision <= cap <= FARTHEST and cap / precision <= MOST else 0
    if not steps or abs(steps * precision - cap) > 1e-9 * cap:
        raise OptionError(
            f"cap = {cap} and precision = {precision}: the cap must be a positive multiple of it, at most {MOST:,} "
            f"times it and {FARTHEST:g}."
        )
    index, batch_size = asked(dataset, index, batch_size)
    # Of whole numbers: 0.1 added up 500 times is not 50.
    scan = torch.arange(1, steps + 1, dtype=torch.float64) * (cap / steps)
    mus, reached = [], []
    with still(model, len(dataset.classes) or None) as forward:
        for x, y in batches(model, dataset, index, batch_size):
            delta = attack(forward, x, y) - x
            length = lengths(delta)
            mu = first_flip(forward, x, unit(delta), scan, clip=clip, batch_size=batch_size)
            mus.append(mu.masked_fill(length == 0, nan).cpu())
            reached.append(length.cpu())
            tick(len(y))
    tell_doubt(model, dataset, index, batch_size, tell)
    mu = torch.cat(mus)
    flipped = mu.isfinite()
    return Margins(
        dataset.index[index], torch.where(mu.isinf(), cap, mu), flipped, torch.cat(reached), cap, cap / steps
    )


@torch.no_grad()
def first_flip(
    forward: Forward, x: Tensor, way: Tensor, scan: Tensor, *, clip: bool = True, batch_size: int = BATCH
) -> Tensor:
    """(B,) float64: the first mu of the rising `scan` (S,) with argmax f(x + mu way) != argmax f(x), else Inf.

    `x` and `way` are (B, C, H, W). Samples leave the scan when they flip, and the others get more mu a forward,
    of `batch_size` images at most, or B.
    """
    before = forward(x).argmax(1)
    found = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
    done = 0
    while done < len(scan):
        left = found.isinf().nonzero().flatten()
        if not len(left):
            break
        mu = scan[done : done + max(1, batch_size // len(left))].to(x.device)
        shifts = mu.to(x.dtype).view(1, -1, *[1] * (x.dim() - 1)) * way[left].unsqueeze(1)
        points = (x[left].unsqueeze(1) + shifts).flatten(0, 1)
        after = forward(points.clamp_(0, 1) if clip else points).argmax(1).view(len(left), -1)
        flips = torch.where(after != before[left].unsqueeze(1), mu, torch.inf)
        found[left] = flips.amin(1)
        done += len(mu)
    return found
