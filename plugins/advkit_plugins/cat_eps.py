"""CAT's budget: Cheng, Lei, Chen, Dhillon, Hsieh: CAT: Customized Adversarial Training (IJCAI 2022), Algorithm 1."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from advkit import AttackResult, Batch, Budget, Budgets, Company, Plugin, PluginOptions, Real, Run, hookimpl, option

Action = Literal["keep", "roll-back", "reset", "distance"]


def next_eps(
    attacked: Tensor,
    distance: Tensor,
    success: Tensor,
    *,
    on_success: Action = "reset",
    on_failure: Action = "keep",
    eta: float,
    eps_max: float,
) -> Tensor:
    """eps_i for the next visit, all (B,). By default lines 9 to 12 of Algorithm 1: 0 after a success, then capped.

    `attacked` is eps_i + eta, capped or not; a roll-back takes eta off what was attacked, as the code of June 2020.
    """
    outcome = {
        "keep": attacked,
        "roll-back": (attacked - eta).clamp(min=0),
        "reset": torch.zeros_like(attacked),
        "distance": distance,
    }
    return torch.where(success, outcome[on_success], outcome[on_failure]).clamp(max=eps_max)


class CatEps(Plugin):
    """Per-sample perturbation budget that grows by eta a visit and restarts at 0 when the attack succeeds (CAT)."""

    name = "cat-eps"
    prefers = {"attack.init": "zero", "attack.mode": "eval"}

    class Options(PluginOptions):
        eta: Real = option(
            "0.159375 eps", symbol="η", gt=0, unit="pixels in [0, 1]", help="increment per visit; 0.005 at 8/255"
        )
        eps_max: Real = option("eps", symbol="ε_max", gt=0, unit="pixels in [0, 1]", help="the cap of eps_i")
        on_success: Action = option(
            "reset",
            help="eps_i after a successful attack: keep what was attacked with, roll-back by eta from there, reset to "
            "0, or distance, the size of the perturbation found. Code: reset (Feb 2020), distance (Jun v1), keep (v2)",
        )
        on_failure: Action = option(
            "keep", help="eps_i after a failed attack. Code: distance (Feb 2020), reset (Jun v1), roll-back (Jun v2)"
        )
        cap: Literal["after", "before"] = option(
            "after", help="cap after the attack, as printed, or before, as the code"
        )
        attack_label: Literal["old", "new"] = option(
            "old", help="the eps_i of the label in the attack: before the increment, as printed, or after (Jun v2)"
        )
        clean_on: Literal["none", "success", "failure"] = option(
            "none", help="train on the clean image after a success (Feb 2020) or a failure (Jun v1)"
        )

    options: Options

    @property
    def by_sample(self) -> bool:
        return True

    def largest_budget(self, eps: float) -> Budgets:
        above = self.options.eta if self.options.cap == "after" else 0.0
        label = self.options.eps_max + (above if self.options.attack_label == "new" else 0.0)
        return Budgets(attack=self.options.eps_max + above, label=label)

    def join(self, company: Company) -> list[str]:
        cautions = [
            f"{owner} scales the radius that is attacked, but eps_i grows and resets as if it were not scaled"
            for owner in company.owners("budget_scale")
        ]
        if self.options.cap == "after":
            attack = self.largest_budget(0).attack
            cautions.append(
                f"cat-eps caps eps_i after the attack, as Algorithm 1 prints: samples at eps_max "
                f"({self.options.eps_max:.4g}) are attacked with eps_max + eta = {attack:.4g}"
            )
        return cautions

    @hookimpl
    def setup(self, run: Run) -> None:
        self.eps = run.sample_state("eps", least=0, most=self.options.eps_max)

    @hookimpl
    def perturbation_budget(self, batch: Batch) -> Budget:
        stored = self.eps[batch.index].to(batch.x.dtype)
        attacked = stored + self.options.eta
        if self.options.cap == "before":
            attacked = attacked.clamp(max=self.options.eps_max)
        return Budget(attack=attacked, label=stored if self.options.attack_label == "old" else attacked)

    @hookimpl
    def commit_attack(
        self, batch: Batch, budget: Budget, attack: AttackResult, success: Tensor, run: Run
    ) -> tuple[Budget, Tensor | None]:
        order = torch.inf if run.attack.norm == "linf" else 2
        distance = torch.linalg.vector_norm((attack.x_adv - batch.x).flatten(1), order, dim=1)
        eps = next_eps(
            budget.attack,
            distance,
            success,
            on_success=self.options.on_success,
            on_failure=self.options.on_failure,
            eta=self.options.eta,
            eps_max=self.options.eps_max,
        )
        self.eps[batch.index] = eps.to(self.eps.dtype)
        return replace(budget, label=eps), self._train_on(batch.x, attack.x_adv, success)

    def _train_on(self, x: Tensor, x_adv: Tensor, success: Tensor) -> Tensor | None:
        if self.options.clean_on == "none":
            return None
        clean = success if self.options.clean_on == "success" else ~success
        return torch.where(clean.view(-1, *[1] * (x.dim() - 1)), x, x_adv)
