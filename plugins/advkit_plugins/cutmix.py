"""CutMix: Yun, Han, Oh, Chun, Choe, Yoo (ICCV 2019); for robust training Rebuffi, Gowal, Calian, Stimberg, Wiles, Mann:
Data Augmentation Can Improve Robustness (NeurIPS 2021)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from advkit import (
    Batch,
    Company,
    Mix,
    OptionError,
    Order,
    Plugin,
    PluginOptions,
    Real,
    Run,
    hookimpl,
    option,
    per_sample,
)


def boxes(area: Tensor, down: Tensor, across: Tensor, height: int, width: int, window: int = 0) -> Tensor:
    """(B, H, W) bool: a box around each centre, given (B,) as shares of the image's sides.

    Its sides are `window` pixels, or sqrt(area) of the image's, rounded down to an even number as in CutMix's code.
    What leaves the image is cut off.
    """
    axes = []
    for centre, length in ((down, height), (across, width)):
        place, middle = torch.arange(length, device=area.device), (centre * length).floor()
        half = (area.sqrt() * length).floor() // 2
        before, after = (half, half) if not window else (half * 0 + window // 2, half * 0 + window - window // 2)
        axes.append((place >= (middle - before).unsqueeze(1)) & (place < (middle + after).unsqueeze(1)))
    return axes[0].unsqueeze(2) & axes[1].unsqueeze(1)


class CutMix(Plugin):
    """Pastes a box of another image into each image, and mixes the labels in proportion to the areas (CutMix)."""

    name = "cutmix"
    order = {"target_label": Order(before=frozenset({"bilateral", "ccat", "dirichlet-ls", "label-smoothing"}))}

    class Options(PluginOptions):
        probability: Real = option(
            1.0, ge=0, le=1, help="probability that a group is mixed; 0.5 in CutMix's code for CIFAR"
        )
        group: int = option(
            0,
            ge=0,
            le=1 << 20,
            under="probability",
            help="images that share a box and are mixed with each other; 0 is the batch; DM: 128",
        )
        window: int = option(
            0,
            ge=0,
            le=1 << 12,
            unit="pixels",
            under="probability",
            help="side of a box of fixed size; 0 draws its area uniformly",
        )

    options: Options

    def active(self, hook: str, epoch: int) -> bool:
        return self.options.probability > 0

    def join(self, company: Company) -> list[str]:
        if self.options.group == 1:
            raise OptionError("cutmix.group = 1 mixes no image with another; give 2 or more, or 0 for the batch.")
        return []

    @hookimpl
    def setup(self, run: Run) -> None:
        if run.image_shape:
            self._fits(*run.image_shape[1:])

    def _fits(self, height: int, width: int) -> None:
        if self.options.window > max(height, width):
            raise OptionError(
                f"cutmix.window = {self.options.window} is larger than the images ({height} x {width}), which would be "
                "replaced whole; give a side below theirs."
            )

    @hookimpl
    def mix_batch(self, batch: Batch, run: Run) -> Batch:
        rows, (height, width) = len(batch.y), batch.x.shape[2:]
        self._fits(height, width)
        group, numbers = self.options.group or rows, run.draws("partner", batch)
        place, mate = (numbers.uniform(draw=draw, dtype=torch.float64) for draw in (0, 1))  # in (0, 1)
        # In an order of its own, so that the batch's says nothing: groups, and whom each image is mixed with.
        order = place.argsort(stable=True)
        first = torch.arange(rows, device=order.device) // group * group
        partner, lead = torch.empty_like(order), torch.empty_like(order)
        partner[order] = order[(first + mate[order]).argsort(stable=True)]
        lead[order] = order[first]
        # The numbers of a group are those of its first image.
        area, down, across, coin = run.draws("box", batch).uniform(4, dtype=torch.float64)[lead].unbind(1)
        inside = boxes(area, down, across, height, width, self.options.window)
        inside &= per_sample(coin < self.options.probability, inside)
        x = torch.where(inside.unsqueeze(1), batch.x[partner], batch.x)
        return replace(batch, x=x, mix=Mix(partner, 1 - inside.to(x.dtype).mean(dim=(1, 2))))

    @hookimpl
    def target_label(self, target: Tensor, batch: Batch) -> Tensor:
        assert batch.mix is not None
        own = batch.mix.ratio.unsqueeze(1)
        return own * target + (1 - own) * target[batch.mix.partner]
