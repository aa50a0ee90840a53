"""GAIRAT: Zhang, Zhu, Niu, Han, Sugiyama, Kankanhalli: Geometry-aware Instance-reweighted Adversarial Training
(ICLR 2021), Eq. 6 and Algorithm 2."""

from __future__ import annotations

from math import ceil
from typing import Literal

import torch
from torch import Tensor

from advkit import AttackResult, Batch, Company, Plugin, PluginOptions, Real, Run, hookimpl, option

Form = Literal["tanh", "sigmoid", "discrete"]


def geometry_weights(kappa: Tensor, steps: int, *, form: Form, lam: float) -> Tensor:
    """Weights of mean 1 from kappa (B,), the iterates of 0..`steps` - 1 at which a sample was classified correctly."""
    way = lam + 5 * (1 - 2 * kappa / steps)
    raw = {
        "tanh": (1 + torch.tanh(way)) / 2,
        "sigmoid": torch.sigmoid(way),
        "discrete": (steps + 1 - kappa) / (steps + 1),
    }[form]
    total = raw.sum()
    # All at the bottom of tanh, in a batch that no attack ever fools: then all weigh the same.
    return torch.where(total > 0, raw * len(raw) / total, torch.ones_like(raw))


class Gairat(Plugin):
    """Weights a sample's loss by how early the attack succeeds, as a proxy for its margin (GAIRAT)."""

    name = "gairat"

    class Options(PluginOptions):
        form: Form = option(
            "tanh", help="form of the weight: tanh (Eq. 6), sigmoid, or discrete, the paper's ablations"
        )
        lam: float = option(
            -1.0, symbol="λ", ge=-50, le=50, under="form=tanh,sigmoid", help="shift of both; 0 with FAT in the code"
        )
        burn_in: Real = option(0.5, ge=0, le=1, help="share of the epochs with equal weights; 60 of 120")
        term: str = option("base_loss", help="the loss term to weight: base_loss, or a plugin's name")

    options: Options
    begin = 0
    kappa: list[Tensor]
    """(B,) of each restart."""

    @property
    def terms(self) -> tuple[str, ...]:
        return (self.options.term,)

    def active(self, hook: str, epoch: int) -> bool:
        return epoch >= self.begin

    def join(self, company: Company) -> list[str]:
        self.begin = ceil(company.share_of_run("gairat.burn_in", self.options.burn_in) - 1e-9)
        cautions = []
        if self.begin >= company.epochs:
            cautions.append("gairat.burn_in is the whole run: no sample is weighed")
        if company.attack.steps == 1:
            cautions.append("gairat counts the steps of the attack until a sample is fooled, and this attack has one")
        if (owner := company.owner("perturbation_budget")) != "core":
            cautions.append(f"gairat compares steps between samples, and {owner} attacks them with different budgets")
        if self.options.term == "base_loss":
            cautions.append(
                "gairat weighs the base loss: its figures hold for the attack it trains with; judge it by AutoAttack"
            )
        return cautions

    @hookimpl
    def attack_step(self, batch: Batch, logits: Tensor, step: int, restart: int) -> Tensor:
        right = logits.argmax(1) == batch.y
        if not step:
            self.kappa = [*(self.kappa if restart else ()), torch.zeros_like(batch.x[:, 0, 0, 0])]
        self.kappa[restart] = self.kappa[restart] + right.to(batch.x.dtype)
        return torch.ones_like(right)

    @hookimpl
    def instance_weight(self, attack: AttackResult, run: Run) -> Tensor:
        kappa = self.kappa[0]
        if attack.restart is not None:
            kappa = torch.stack(self.kappa).gather(0, attack.restart[None])[0]
        return geometry_weights(kappa, run.attack.steps, form=self.options.form, lam=self.options.lam)
