"""The loss around an image: CAT's Fig. 2 (after Engstrom et al. 2018) and ISEAT's Eq. 8 and Fig. 3."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Literal

import torch
from torch import Tensor, nn

from ...arguments import checked
from ...ascent import per_sample
from ...data.base import Dataset
from ...errors import NonFinite, OptionError
from ...evaluation.soundness import refuse_unsound, sound
from ...evaluation.verdicts import FARTHEST
from ...global_state import one_at_a_time
from ...rng import Draws, derive_key
from .perturb import BATCH, Ascent, Forward, asked, batches, caution, cross_entropies, still, tell_doubt, unit

Kind = Literal["cat", "iseat"]
MOST = 1001
"""Points a side: their square is a forward of every image."""


@dataclass(frozen=True, eq=False)
class Landscape:
    """The mean cross-entropy of n images on a grid around each of them."""

    kind: Kind
    index: Tensor
    """(n,) int64: the images' places in the data set, those without a direction left out."""
    skipped: Tensor
    """int64: those without a direction, delta being 0, and those whose logits are NaN or Inf."""
    first: Tensor
    """(P,) float64, the coordinates along the gradient's sign in pixels in [0, 1] (cat), along delta / ||delta||_2 in
    L2 units (iseat); the middle one is 0."""
    second: Tensor
    """(P,) the same along the random direction."""
    loss: Tensor
    """(P, P) float64: [i, j] at first[i], second[j]."""
    prediction: Tensor
    """(n,) int64: argmax f(x)."""
    clip: bool
    """Whether the images were kept in [0, 1]."""

    def as_dict(self) -> dict[str, float | int | None]:
        """Loss at x, its extremes and where they are, in nats and in the unit of the axes; None for NaN and Inf."""
        middle, top, bottom = len(self.first) // 2, int(self.loss.argmax()), int(self.loss.argmin())
        found: dict[str, float | int] = {
            "n": len(self.index),
            "skipped": len(self.skipped),
            "loss_at_x": float(self.loss[middle, middle]),
        }
        for name, place in (("highest", top), ("lowest", bottom)):
            i, j = divmod(place, len(self.second))
            found |= {
                name: float(self.loss[i, j]),
                f"{name}_at_first": float(self.first[i]),
                f"{name}_at_second": float(self.second[j]),
            }
        return {name: value if isfinite(value) else None for name, value in found.items()}


def default_extent(attack: Ascent | None, dataset: Dataset) -> float:
    """0.10 for "cat", its figure's axes; for "iseat" twice the largest ||delta||_2 that the budget allows."""
    if attack is None:
        return 0.1
    size = dataset.images[0].numel()
    return 2 * attack.eps * (size**0.5 if attack.norm == "linf" else 1.0)


@checked("kind")
@one_at_a_time
def loss_landscape(
    model: nn.Module,
    dataset: Dataset,
    attack: Ascent | None = None,
    *,
    kind: Kind = "cat",
    index: Tensor | None = None,
    batch_size: int = BATCH,
    points: int = 41,
    extent: float | None = None,
    clip: bool | None = None,
    seed: int = 0,
    tick: Callable[[int], None] = lambda done: None,
    tell: Callable[[str], None] = caution,
) -> Landscape:
    """The mean loss with the true labels around the images of `dataset` at `index` (n,), all by default.

    `attack` is needed for "iseat" and ignored for "cat", which attacks nothing.

    "cat": x + a sign(grad_x CE) + b r, r Rademacher (+1 or -1 in every pixel). "iseat": x + alpha delta / ||delta||_2 +
    beta u / ||u||_2, delta by `attack`, u uniform in [-eps, eps]^d; an image with delta = 0 is skipped. The random
    direction depends on `seed` and the image's place alone. `points` (odd) a side, from -`extent` to `extent`;
    `clip` keeps the images in [0, 1]; None: for "iseat", whose paper does (footnote 2), and not for "cat", whose paper
    does not say. `batch_size` images are computed at once. Raises OptionError where no image has a direction.
    """
    if kind not in ("cat", "iseat"):
        raise OptionError(f"kind = {kind!r} must be cat or iseat.")
    if kind == "cat":
        attack = None
    elif attack is None:
        raise OptionError("kind = 'iseat' needs an attack, whose delta is the adversarial direction.")
    clip = kind == "iseat" if clip is None else clip
    extent = default_extent(attack, dataset) if extent is None else extent
    if not 3 <= points <= MOST or points % 2 == 0:
        raise OptionError(
            f"points = {points} must be odd and at least 3, so that x itself is on the grid, and at most {MOST}."
        )
    if not 0 < extent <= FARTHEST:
        raise OptionError(f"extent = {extent} must be a finite number > 0, and at most {FARTHEST:g}.")
    index, batch_size = asked(dataset, index, batch_size)
    half = points // 2
    axis = torch.arange(-half, half + 1, dtype=torch.float64) * (extent / half)
    total = torch.zeros(points, points, dtype=torch.float64)
    kept, skipped, predictions, done, broken = [], [], [], 0, 0
    with still(model, len(dataset.classes) or None) as forward:
        for x, y in batches(model, dataset, index, batch_size):
            rows = dataset.index[index[done : done + len(x)]]
            done += len(x)
            with torch.no_grad():
                logits = forward(x)
            good = sound(logits)  # first: where logits are none, the gradient is none either
            broken += int((~good).sum())
            first, second = torch.zeros_like(x), torch.zeros_like(x)
            if bool(good.any()):
                first[good], second[good] = _directions(forward, x[good], y[good], rows[good.cpu()], attack, seed)
            if kind == "iseat":
                good &= first.flatten(1).any(1)
            kept.append(rows[good.cpu()])
            skipped.append(rows[~good.cpu()])
            predictions.append(logits.argmax(1)[good].cpu())
            for one in good.nonzero().flatten().tolist():
                total += _surface(forward, x[one], y[one], first[one], second[one], axis, clip, batch_size)
                tick(1)
    refuse_unsound(broken, len(index))
    found = torch.cat(kept)
    if not len(found):
        raise OptionError("The attack moves none of these images, so there is no adversarial direction; choose others.")
    tell_doubt(model, dataset, index, batch_size, tell)
    return Landscape(kind, found, torch.cat(skipped), axis, axis, total / len(found), torch.cat(predictions), clip)


def _directions(
    forward: Forward, x: Tensor, y: Tensor, rows: Tensor, attack: Ascent | None, seed: int
) -> tuple[Tensor, Tensor]:
    """Both directions of the images x (B, C, H, W), in their shape; those of "cat" without an attack."""
    kind = "cat" if attack is None else "iseat"
    draws = Draws(derive_key(seed, "analysis", f"landscape {kind}"), rows.to(x.device))
    if attack is None:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(cross_entropies(forward(x), y).sum(), x)
        if not bool(gradient.isfinite().all()):
            raise NonFinite("An input gradient is NaN or Inf; the landscape would mean nothing.")
        return gradient.sign(), (2 * draws.integers(2, *x.shape[1:]) - 1).to(x.dtype)
    delta = attack(forward, x, y) - x
    return unit(delta), unit(draws.uniform(*x.shape[1:], low=-1, high=1, dtype=x.dtype))


@torch.no_grad()
def _surface(
    forward: Forward, x: Tensor, y: Tensor, first: Tensor, second: Tensor, axis: Tensor, clip: bool, batch_size: int
) -> Tensor:
    """(P, P) float64 on the CPU: the loss of one image (C, H, W) on the grid, `batch_size` points at once."""
    grid = torch.cartesian_prod(axis, axis).to(x.device, x.dtype)
    losses = []
    for part in torch.split(grid, batch_size):
        a, b = (per_sample(column, x.unsqueeze(0)) for column in part.unbind(1))
        images = x + a * first + b * second
        losses.append(cross_entropies(forward(images.clamp_(0, 1) if clip else images), y.expand(len(part))).cpu())
    return torch.cat(losses).view(len(axis), len(axis))
