"""SCORE: Pang, Lin, Yang, Zhu, Yan: Robustness and Accuracy Could Be Reconcilable by (Proper) Definition (ICML
2022)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from advkit import Company, OptionError, Plugin, PluginOptions, Real, Run, Schedule, hookimpl, option


def squared_error(p: Tensor, q: Tensor) -> Tensor:
    """||p - q||_2^2 of distributions (B, K): (B,)."""
    return (p - q).square().sum(dim=1)


class Score(Plugin):
    """Squared errors of probabilities instead of cross-entropy and KL: clean fit plus consistency (SCORE)."""

    name = "score"
    # Start, mode and order of the forwards of the authors' code without generated data.
    prefers = {
        "attack.init": "normal",
        "attack.mode": "eval",
        "update.batch_norm": "adv_logits,clean_logits",
    }

    class Options(PluginOptions):
        beta: Schedule = option(4.0, symbol="β", help="weight of the consistency, by epoch; 3 to 4 in the paper")
        slack: Real = option(0.0, ge=0, symbol="c", help="consistency below this costs nothing: max(0, d - c)")

    options: Options

    @property
    def by_sample(self) -> bool:
        return True

    def join(self, company: Company) -> list[str]:
        if company.attacks_from_x:
            raise OptionError(
                "attack.init is zero, where the squared error of score has no gradient, so nothing would ever be "
                "attacked; set attack.init=normal"
            )
        if self.options.slack >= 2:
            return ["score.slack of 2 or more leaves nothing of the consistency, which is below 2; lower it"]
        return []

    @hookimpl
    def attack_objective(self, clean_logits: Tensor) -> Callable[[Tensor], Tensor]:
        p = clean_logits.softmax(dim=1)
        return lambda logits: squared_error(logits.softmax(dim=1), p)

    @hookimpl
    def base_loss(self, target: Tensor, clean_logits: Tensor) -> Tensor:
        return squared_error(clean_logits.softmax(dim=1), target)

    @hookimpl
    def extra_regularizer(self, adv_logits: Tensor, clean_logits: Tensor, run: Run) -> Tensor:
        distance = squared_error(adv_logits.softmax(dim=1), clean_logits.softmax(dim=1))
        return self.options.beta.at(run.epoch) * (distance - self.options.slack).clamp(min=0)
