"""MART: Wang, Zou, Yi, Bailey, Ma, Gu: Improving Adversarial Robustness Requires Revisiting Misclassified Examples
(ICLR 2020), Eq. 11 and 12."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from advkit import Batch, Plugin, PluginOptions, Run, Schedule, hookimpl, option


def boosted_cross_entropy(adv_logits: Tensor, y: Tensor) -> Tensor:
    """-log p_y(x') - log(1 - max_{k != y} p_k(x')): (B,). The constants inside the logarithms are the code's."""
    p = adv_logits.softmax(dim=1)
    rival = p.masked_fill(F.one_hot(y, p.shape[1]).bool(), 0).amax(dim=1)
    return F.cross_entropy(adv_logits, y, reduction="none") - (1.0001 - rival + 1e-12).log()


def weighted_kl(
    clean_logits: Tensor, adv_logits: Tensor, y: Tensor, detach_weight: bool = False, detach_target: bool = False
) -> Tensor:
    """KL(p(x) || p(x')) (1 - p_y(x)): (B,). Gradients flow through all of it unless detached.

    As in the code, except that log p(x) is taken of the logits: where p(x) rounds to 0, the code's gradient is NaN.
    A class that is masked in the clean logits, by -inf, adds nothing: the limit.
    """
    log_clean = F.log_softmax(clean_logits, dim=1)
    weight = 1.0000001 - log_clean.gather(1, y[:, None]).squeeze(1).exp()
    log_target = log_clean.detach() if detach_target else log_clean
    ratio = log_target - (adv_logits.softmax(dim=1) + 1e-12).log()
    kl = (log_target.exp() * ratio.masked_fill(log_target == -torch.inf, 0)).sum(dim=1)
    return kl * (weight.detach() if detach_weight else weight)


class Mart(Plugin):
    """Boosted cross-entropy plus KL weighted by how misclassified the clean image is (MART)."""

    name = "mart"
    # The official code's start and mode; both of its forwards move running statistics.
    prefers = {
        "attack.init": "normal",
        "attack.mode": "eval",
        "update.batch_norm": "adv_logits,clean_logits",
        "optimizer.lr": 0.01,  # at 0.1 a seed of six learns nothing on the digits for eight epochs
    }

    class Options(PluginOptions):
        lam: Schedule = option(
            5.0, symbol="λ", help="lambda, weight of the KL term, by epoch; 5 for ResNet-18, 6 for WRN-34-10"
        )
        detach_weight: bool = option(False, help="no gradient through 1 - p_y(x); the code has one")
        detach_target: bool = option(False, help="no gradient through the KL's target p(x); the code has one")

    options: Options

    @property
    def by_sample(self) -> bool:
        return True

    def detached(self, hook: str, epoch: int) -> tuple[str, ...]:
        both = self.options.detach_weight and self.options.detach_target
        return ("clean_logits",) if hook == "extra_regularizer" and both else ()

    @hookimpl
    def base_loss(self, batch: Batch, adv_logits: Tensor) -> Tensor:
        return boosted_cross_entropy(adv_logits, batch.y)

    @hookimpl
    def extra_regularizer(self, batch: Batch, adv_logits: Tensor, clean_logits: Tensor, run: Run) -> Tensor:
        options = self.options
        kl = weighted_kl(clean_logits, adv_logits, batch.y, options.detach_weight, options.detach_target)
        return options.lam.at(run.epoch) * kl
