"""CAT's budget: Cheng, Lei, Chen, Dhillon, Hsieh: CAT: Customized Adversarial Training (IJCAI 2022), Algorithm 1."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from advkit import Batch, Budget, Budgets, Composition, Plugin, PluginOptions, Real, Run, hookimpl, option


def next_eps(attacked: Tensor, success: Tensor, eps_max: float) -> Tensor:
    """Lines 9 to 12 of Algorithm 1: back to 0 where the attack succeeded, then capped. All (B,)."""
    return torch.where(success, torch.zeros_like(attacked), attacked).clamp(max=eps_max)


class CatEps(Plugin):
    """Per-sample perturbation budget that grows by eta a visit and restarts at 0 when the attack succeeds (CAT)."""

    name = "cat-eps"
    prefers = {"attack.init": "zero", "attack.mode": "eval"}

    class Options(PluginOptions):
        eta: Real = option("0.159375 eps", gt=0, unit="pixels in [0, 1]", help="increment per visit; 0.005 at 8/255")
        eps_max: Real = option("eps", gt=0, unit="pixels in [0, 1]", help="cap, applied after the attack as printed")

    options: Options

    def largest_budget(self, eps: float) -> Budgets:
        return Budgets(attack=self.options.eps_max + self.options.eta, label=self.options.eps_max)

    def join(self, composition: Composition) -> list[str]:
        attack = self.largest_budget(0).attack
        scaled = [
            f"{owner} scales the radius that is attacked, but eps_i grows and resets as if it were not scaled"
            for owner in composition.owners("budget_scale")
        ]
        return [
            *scaled,
            f"cat-eps caps eps_i after the attack, as Algorithm 1 prints: samples at eps_max "
            f"({self.options.eps_max:.4g}) are attacked with eps_max + eta = {attack:.4g}",
        ]

    @hookimpl
    def setup(self, run: Run) -> None:
        self.eps = run.sample_state("eps")

    @hookimpl
    def perturbation_budget(self, batch: Batch) -> Budget:
        stored = self.eps[batch.index].to(batch.x.dtype)
        return Budget(attack=stored + self.options.eta, label=stored)

    @hookimpl
    def commit_attack(self, batch: Batch, budget: Budget, success: Tensor) -> tuple[Budget, Tensor | None]:
        eps = next_eps(budget.attack, success, self.options.eps_max)
        self.eps[batch.index] = eps.to(self.eps.dtype)
        return replace(budget, label=eps), None
