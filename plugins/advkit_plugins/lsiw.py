"""ISEAT's regularizer: Li and Spratling 2023, Eq. 16 to 18, and the couplings of its Table 6."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from advkit import Company, Plugin, PluginOptions, Run, Schedule, hookimpl, kl_divergence, option


def squared_l2(clean_logits: Tensor, adv_logits: Tensor) -> Tensor:
    """||f(x') - f(x)||_2^2, summed over classes (Eq. 16): (B,). A class that is -inf in both, masked, adds nothing."""
    masked = (adv_logits == -torch.inf) & (clean_logits == -torch.inf)
    return (adv_logits - clean_logits).masked_fill(masked, 0).square().sum(dim=1)


class Lsiw(Plugin):
    """Logit stability against input and weight perturbation: lam ||f(x'; theta+v) - f(x; theta)||^2 (ISEAT)."""

    name = "lsiw"
    companions = {
        "weight_perturbation": ("awp", {"gamma": 0.007, "loss": "adv_ce"}),
        "instance_weight:lsiw": ("av-rank", {}),
    }

    class Options(PluginOptions):
        lam: Schedule = option(
            0.1, symbol="λ", help="lambda, by epoch; ISEAT on CIFAR: 0 until the first learning-rate decay"
        )
        distance: Literal["l2", "kl"] = option("l2", help="squared L2 of logits (Eq. 16) or KL (Eq. 17)")
        adv_at: Literal["theta+v", "theta"] = option("theta+v", help="weights under the adversarial logits")
        clean_at: Literal["theta+v", "theta"] = option(
            "theta",
            help="weights under the clean logits; Table 6: LSI theta/theta, TRADE-AWP theta+v/theta+v",
        )

    options: Options

    @property
    def by_sample(self) -> bool:
        return True

    def active(self, hook: str, epoch: int) -> bool:
        return self.options.lam.at(epoch) > 0

    def demands(self, hook: str, epoch: int) -> set[str]:
        return {
            "adv_logits" if self.options.adv_at == "theta+v" else "adv_logits_base",
            "clean_logits" if self.options.clean_at == "theta+v" else "clean_logits_base",
        }

    def join(self, company: Company) -> list[str]:
        cautions = []
        if company.attack.mode == "eval":
            cautions.append("the official ISEAT code attacks in train mode; this run attacks in eval mode")
        if (lam := self.options.lam.at(0)) > 0:
            cautions.append(
                f"lsiw.lam is {lam:g} from epoch 0 on; ISEAT on CIFAR has 0 until the first decay of the learning "
                f"rate, as lsiw.lam='{lam:g} after decay 1'"
            )
        return cautions

    @hookimpl
    def extra_regularizer(
        self,
        adv_logits: Tensor | None,
        clean_logits: Tensor | None,
        adv_logits_base: Tensor | None,
        clean_logits_base: Tensor | None,
        run: Run,
    ) -> Tensor:
        adversarial = adv_logits if adv_logits is not None else adv_logits_base
        clean = clean_logits if clean_logits is not None else clean_logits_base
        assert adversarial is not None and clean is not None  # `demands` asks for one of each
        distance = squared_l2 if self.options.distance == "l2" else kl_divergence
        return self.options.lam.at(run.epoch) * distance(clean, adversarial)
