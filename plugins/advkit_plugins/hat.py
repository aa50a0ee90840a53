"""Helper-based adversarial training: Rade, Moosavi-Dezfooli: Reducing Excessive Margin to Achieve a Better Accuracy vs.
Robustness Trade-off (ICLR 2022)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from advkit import (
    Batch,
    Company,
    Costs,
    Passes,
    Place,
    Plugin,
    PluginOptions,
    Real,
    Run,
    Schedule,
    hookimpl,
    kl_divergence,
    option,
    soft_cross_entropy,
)


def beyond(x: Tensor, x_adv: Tensor, s: float) -> Tensor:
    """x + s (x' - x): images (B, C, H, W), which may leave the box."""
    return x + s * (x_adv - x)


class Hat(Plugin):
    """TRADES, with a standard net's class of x' as the label of x + s delta, against excessive margins (HAT)."""

    name = "hat"
    # Of the official code: all three forwards move running statistics, that of x + s delta the last.
    prefers = {
        "attack.init": "normal",
        "attack.step_size": "eps/4",
        "attack.mode": "eval",
        "update.batch_norm": "clean_logits,adv_logits",
    }

    class Options(PluginOptions):
        helper: Place = option("", help="folder of a run of standard training, or a file of weights; empty: TRADES")
        helper_model: str = option(
            "", under="helper", help="installed net that a file of weights is for; empty: the run's own"
        )
        beta: Schedule = option(2.5, symbol="β", help="weight of the robust term, by epoch; 3.5 with averaged weights")
        gamma: Schedule = option(
            0.5, symbol="γ", under="helper", help="weight of the helper's term, by epoch; 0: TRADES"
        )
        s: Real = option(
            2.0, symbol="s", ge=0, under="helper", help="how many times as far as x' the helper's images are from x"
        )
        robust: Literal["kl", "ce"] = option(
            "kl", help="robust term, which the attack increases: KL(p(x) || p(x')) or cross-entropy with the label"
        )
        batch_norm: Literal["all", "views"] = option(
            "all",
            under="helper",
            help="what moves running statistics: x + s delta too, after the others, as in the official code, or "
            "only the views of update.batch_norm",
        )

    options: Options

    def __init__(self, options: PluginOptions, helper: nn.Module | None = None) -> None:
        super().__init__(options)
        self.passed = helper

    @property
    def by_sample(self) -> bool:
        return True

    def helps(self, epoch: int) -> bool:
        """Whether there is a term of the helper."""
        return bool(self.passed is not None or self.options.helper) and self.options.gamma.at(epoch) > 0

    def active(self, hook: str, epoch: int) -> bool:
        return hook != "attack_objective" or self.options.robust == "kl"

    def passes(self, hook: str, costs: Costs) -> Passes:
        helped = hook == "extra_regularizer" and self.helps(costs.epoch)
        return Passes(1, full_backward=1, auxiliary_forward=1) if helped else Passes()

    def join(self, company: Company) -> list[str]:
        said = []
        if self.passed is None and not self.options.helper:
            said.append(
                "hat.helper names no net, so nothing helps and hat is TRADES; give a run of standard training: "
                "hat.helper=RUN"
            )
        if company.attacks_from_x and self.options.robust == "kl":
            said.append(
                "attack.init is zero, where the KL of hat has no gradient beyond rounding, so some samples may never "
                "be attacked; set attack.init=normal"
            )
        return said

    @hookimpl
    def setup(self, run: Run) -> None:
        source = self.options.helper if self.passed is None else self.passed
        if source != "":
            self.helper = run.module("helper", source, model=self.options.helper_model)

    @hookimpl
    def attack_objective(self, clean_logits: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda logits: kl_divergence(clean_logits, logits)

    @hookimpl
    def base_loss(self, target: Tensor, clean_logits: Tensor) -> Tensor:
        return soft_cross_entropy(clean_logits, target)

    @hookimpl
    def extra_regularizer(
        self, batch: Batch, target: Tensor, x_train: Tensor, adv_logits: Tensor, clean_logits: Tensor, run: Run
    ) -> Tensor:
        with_label = self.options.robust == "ce"
        robust = soft_cross_entropy(adv_logits, target) if with_label else kl_divergence(clean_logits, adv_logits)
        robust = self.options.beta.at(run.epoch) * robust
        if not self.helps(run.epoch):
            return robust
        label = self.helper(x_train).argmax(1)
        far = run.forward(beyond(batch.x, x_train, self.options.s), statistics=self.options.batch_norm == "all")
        return robust + self.options.gamma.at(run.epoch) * F.cross_entropy(far, label, reduction="none")
