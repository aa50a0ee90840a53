"""Instance adaptive adversarial training: Balaji, Goldstein, Hoffman (2019), Algorithms 1 and 2."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from advkit import (
    AttackResult,
    Batch,
    Budget,
    Budgets,
    Company,
    Costs,
    Passes,
    Plugin,
    PluginOptions,
    Real,
    Run,
    hookimpl,
    option,
)


def next_eps(eps: Tensor, right: Tensor, low: Tensor, high: Tensor, *, gamma: float, beta: float) -> Tensor:
    """eps_i after a visit, all (B,): beta of the candidate, and the rest of what it was.

    The candidate is eps + gamma where the attack at that radius is survived (`high`), else eps where the one at eps is
    (`low`), else eps - gamma; it is not negative, and 0 where x itself is not classified correctly (`right`).
    """
    candidate = torch.where(high, eps + gamma, torch.where(low, eps, eps - gamma))
    candidate = (candidate * right).clamp(min=0)
    return beta * candidate + (1 - beta) * eps


class Iaat(Plugin):
    """Per-sample perturbation budget, found by attacking at eps_i and at eps_i + gamma (IAAT)."""

    name = "iaat"
    replaces = {"perturbation_budget": ("attack.step_size",)}
    prefers = {"attack.init": "uniform"}

    class Options(PluginOptions):
        gamma: Real = option(
            "0.2375 eps",
            symbol="γ",
            gt=0,
            unit="pixels in [0, 1]",
            help="how far eps_i moves at a visit; 1.9/255 at 8/255",
        )
        beta: Real = option(0.1, symbol="β", gt=0, le=1, help="share of the new budget; the rest is the old one")
        warm_up: int = option(10, ge=0, le=10_000, help="epochs with budget eps if x is classified correctly, else 0")
        cap: Real = option(0.0, ge=0, unit="pixels in [0, 1]", help="the largest eps_i; 0: none, as in the paper")
        least_step: Real = option(
            "eps/4", ge=0, unit="pixels in [0, 1]", help="the step is 2 eps_i / steps, but at least this"
        )

    options: Options
    largest = 1.0

    @property
    def by_sample(self) -> bool:
        return True

    def largest_budget(self, eps: float) -> Budgets:
        return Budgets(attack=max(eps, self.largest), label=eps)

    def passes(self, hook: str, costs: Costs) -> Passes:
        if hook != "perturbation_budget" or costs.epoch < self.options.warm_up:
            return Passes()
        return Passes(costs.steps + 1, costs.steps) * 2  # two attacks, and what the net says at their ends

    def join(self, company: Company) -> list[str]:
        # In linf nothing in the box is farther away than 1.
        self.largest = self.options.cap or (1.0 if company.attack.norm == "linf" else 1e3)
        cautions = [
            f"{owner} scales the radius that is attacked, but iaat probes as if it were not scaled"
            for owner in company.owners("budget_scale")
        ]
        if company.epochs_known and self.options.warm_up >= company.epochs:
            cautions.append(f"iaat.warm_up is {self.options.warm_up} epochs: a run of {company.epochs} adapts nothing")
        if not self.options.cap:
            cautions.append("iaat.cap is 0: eps_i of easy samples grows beyond attack.eps, as in the paper")
        if company.attack.mode == "eval":
            cautions.append("the official IAAT code attacks in train mode; this run in eval mode")
        return cautions

    @hookimpl
    def setup(self, run: Run) -> None:
        self.eps = run.sample_state("eps", least=0, most=self.largest)

    @hookimpl
    def perturbation_budget(self, batch: Batch, clean_logits: Tensor, run: Run) -> Budget:
        right, before = clean_logits.argmax(1) == batch.y, self.eps[batch.index].to(batch.x.dtype)
        if run.epoch < self.options.warm_up:
            eps = run.attack.eps * right.to(before.dtype)
        else:
            low, high = (
                self._survived(batch, radius, run, purpose)
                for purpose, radius in (("low", before), ("high", before + self.options.gamma))
            )
            eps = next_eps(before, right, low, high, gamma=self.options.gamma, beta=self.options.beta)
        eps = eps.clamp(max=self.largest)
        return Budget(attack=eps, label=eps.clamp(max=run.attack.eps), step_size=self._step_size(eps, run))

    @hookimpl
    def commit_attack(self, batch: Batch, budget: Budget, attack: AttackResult) -> tuple[Budget, Tensor | None]:
        self.eps[batch.index] = budget.attack.to(self.eps.dtype)
        return replace(budget), None

    def _survived(self, batch: Batch, radius: Tensor, run: Run, purpose: str) -> Tensor:
        attack = run.probe(batch, radius, step_size=self._step_size(radius, run), purpose=purpose)
        return run.logits(attack.x_adv).argmax(1) == batch.y

    def _step_size(self, radius: Tensor, run: Run) -> Tensor:
        return (2 * radius / max(1, run.attack.steps)).clamp(min=self.options.least_step)
