"""Temporal ensembling against memorization: Dong, Xu, Yang, Pang, Deng, Su, Zhu: Exploring Memorization in Adversarial
Training (ICLR 2022)."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, exp

from torch import Tensor

from advkit import (
    Batch,
    Company,
    OptionError,
    Plugin,
    PluginOptions,
    Real,
    Run,
    hookimpl,
    option,
    soft_cross_entropy,
)


def distance(logits: Tensor, ensembled: Tensor) -> Tensor:
    """||p - s||_2^2 / K of p = softmax of logits (B, K) and distributions s (B, K): (B,)."""
    return (logits.softmax(dim=1) - ensembled).square().mean(dim=1)


def ramp(epoch: int, first: int, last: float) -> float:
    """The share of the weight in an epoch: 0 before `first`, exp(-5 (1 - t)^2) up to `last`, 1 after it."""
    if epoch < first:
        return 0.0
    return exp(-5 * (1 - (epoch - first) / (last - first)) ** 2) if epoch < last else 1.0


class Te(Plugin):
    """Pulls predictions under attack towards an average of each sample's clean ones, against memorization (TE)."""

    name = "te"
    prefers = {"attack.init": "uniform", "attack.mode": "eval"}
    first, last = 0, 0.0  # epochs, known to `join`

    class Options(PluginOptions):
        weight: Real = option(
            300.0, ge=0, symbol="w", help="weight of the mean over classes: the paper's w is this / K"
        )
        momentum: Real = option(0.9, ge=0, lt=1, symbol="η", help="share of a sample's average that stays at a visit")
        start: Real = option(
            0.445, ge=0, lt=1, help="share of the run's epochs before the average begins; the code: epoch 90 of 200"
        )
        full: Real = option(
            0.745, gt=0, le=1, help="share of the epochs before the weight is whole; the code: epoch 150 of 200"
        )

    options: Options

    @property
    def by_sample(self) -> bool:
        return True

    def active(self, hook: str, epoch: int) -> bool:
        return hook == "setup" or (self.options.weight > 0 and epoch >= self.first)

    def join(self, company: Company) -> list[str]:
        start, full = self.options.start, self.options.full
        if full <= start:
            raise OptionError(f"te.full = {full:g} is not after te.start = {start:g}, where the ramp begins; raise it.")
        self.first = ceil(company.share_of_run("te.start", start) - 1e-9)
        self.last = company.share_of_run("te.full", full)
        cautions = [
            f"{owner} mixes images, and te averages what the net says of the mixtures by the first image of each"
            for owner in company.owners("mix_batch")
        ]
        if self.first >= company.epochs:
            cautions.append(
                f"te does nothing: te.start = {start:g} of {company.epochs} epochs is after the last begins"
            )
        return cautions

    @hookimpl
    def setup(self, run: Run) -> None:
        self.average = run.sample_state("average", shape=(run.num_classes,), least=0, most=1)

    @hookimpl
    def attack_objective(
        self, batch: Batch, target: Tensor, clean_logits: Tensor, run: Run
    ) -> Callable[[Tensor], Tensor]:
        keep = self.options.momentum
        now = clean_logits.softmax(dim=1).to(self.average.dtype)
        self.average[batch.index] = keep * self.average[batch.index] + (1 - keep) * now
        weight, ensembled = self._weight(run), self._ensembled(batch)
        return lambda logits: soft_cross_entropy(logits, target) + weight * distance(logits, ensembled)

    @hookimpl
    def extra_regularizer(self, batch: Batch, adv_logits: Tensor, run: Run) -> Tensor:
        return self._weight(run) * distance(adv_logits, self._ensembled(batch))

    def _weight(self, run: Run) -> float:
        return self.options.weight * ramp(run.epoch, self.first, self.last)

    def _ensembled(self, batch: Batch) -> Tensor:
        """The average of each sample, (B, K), as a distribution: what was 0 at first is divided out."""
        average = self.average[batch.index].to(batch.x.dtype)
        return average / average.sum(dim=1, keepdim=True)
