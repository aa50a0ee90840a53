"""TRADES: Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan: Theoretically Principled Trade-off between Robustness and Accuracy
(ICML 2019), Eq. 5 and Algorithm 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from advkit import (
    Company,
    Plugin,
    PluginOptions,
    Run,
    Schedule,
    hookimpl,
    kl_divergence,
    option,
    soft_cross_entropy,
)


class Trades(Plugin):
    """Cross-entropy on clean images plus beta KL(p(x) || p(x')), which the attack increases too (TRADES)."""

    name = "trades"
    # Start and step of Algorithm 1 at the paper's eps 0.031; both forwards move running statistics in its code.
    prefers = {
        "attack.init": "normal",
        "attack.step_size": "7/31 eps",
        "attack.mode": "eval",
        "update.batch_norm": "adv_logits,clean_logits",
    }

    class Options(PluginOptions):
        beta: Schedule = option(
            6.0, symbol="β", help="weight of the KL term, by epoch; 6 on CIFAR-10, 1/lambda in the paper"
        )
        attack: Literal["kl", "label"] = option(
            "kl",
            help="what the attack increases: the KL term, or cross-entropy with the label, as Rebuffi et al.",
        )

    options: Options

    @property
    def by_sample(self) -> bool:
        return True

    def active(self, hook: str, epoch: int) -> bool:
        return hook != "attack_objective" or self.options.attack == "kl"

    def join(self, company: Company) -> list[str]:
        if company.attacks_from_x and self.options.attack == "kl":
            return [
                "attack.init is zero, where the KL of trades has no gradient beyond rounding, so some samples may "
                "never be attacked; set attack.init=normal"
            ]
        return []

    @hookimpl
    def attack_objective(self, clean_logits: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda logits: kl_divergence(clean_logits, logits)

    @hookimpl
    def base_loss(self, target: Tensor, clean_logits: Tensor) -> Tensor:
        return soft_cross_entropy(clean_logits, target)

    @hookimpl
    def extra_regularizer(self, adv_logits: Tensor, clean_logits: Tensor, run: Run) -> Tensor:
        return self.options.beta.at(run.epoch) * kl_divergence(clean_logits, adv_logits)
