"""Confidence-calibrated adversarial training: Stutz, Hein, Schiele: Confidence-Calibrated Adversarial Training:
Generalizing to Unseen Attacks (ICML 2020)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from advkit import (
    AttackResult,
    Batch,
    Budget,
    Company,
    Costs,
    OptionError,
    Passes,
    Plugin,
    PluginOptions,
    Real,
    Run,
    hookimpl,
    option,
    per_sample,
)


def faded(target: Tensor, length: Tensor, eps: float, rho: float) -> Tensor:
    """q target + (1 - q) / K with q = (1 - min(1, length / eps))^rho: (B, K) from (B, K) and (B,)."""
    q = (1 - (length / max(eps, 1e-12)).clamp(max=1)).pow(rho).unsqueeze(1)
    return q * target + (1 - q) / target.shape[1]


def backtracked(
    model: Callable[[Tensor], Tensor],
    begin: Tensor,
    project: Callable[[Tensor], Tensor],
    objective: Callable[[Tensor], Tensor],
    *,
    steps: int,
    step_size: float,
    momentum: float,
    shrink: float,
) -> Tensor:
    """Ascent by momentum of signs from images `begin`: a step that lowers `objective` of a sample is not made, and its
    step size divided by `shrink`. The first of the best iterates, detached."""

    def at(x: Tensor, last: bool) -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(not last):
            x = x.detach().requires_grad_(not last)
            value = objective(model(x))
            return value.detach(), torch.zeros_like(x) if last else torch.autograd.grad(value.sum(), x)[0]

    x, size = begin, begin.new_full((len(begin),), step_size)
    value, gradient = at(x, steps == 0)
    best, highest, velocity = x, value, torch.zeros_like(x)
    for step in range(1, steps + 1):
        velocity = momentum * velocity + (1 - momentum) * gradient.sign()
        moved = project(x + per_sample(size, x) * velocity)
        there, slope = at(moved, step == steps)
        made = there >= value
        x, gradient = (torch.where(per_sample(made, x), new, old) for new, old in ((moved, x), (slope, gradient)))
        value, size = torch.where(made, there, value), torch.where(made, size, (size / shrink).clamp(min=1e-20))
        best = torch.where(per_sample(value > highest, x), x, best)
        highest = torch.maximum(value, highest)
    return best


class Ccat(Plugin):
    """Trains for less confidence the farther an image is attacked; half of each batch stays clean (CCAT)."""

    name = "ccat"
    replaces = {"inner_attack": ("attack.init",)}
    prefers = {"attack.steps": 40, "attack.step_size": "eps/6", "attack.mode": "eval"}

    class Options(PluginOptions):
        rho: Real = option(10.0, symbol="ρ", gt=0, help="power of the transition from the label to the uniform one")
        clean: Real = option(0.5, ge=0, le=1, help="share of each batch that is not attacked")
        objective: Literal["confidence", "cross-entropy"] = option(
            "confidence", help="what the attack raises: the largest probability of a wrong class, or cross-entropy"
        )
        momentum: Real = option(0.9, ge=0, lt=1, help="momentum of the gradient signs")
        shrink: Real = option(1.5, gt=1, help="divisor of the step size if a step would not help")

    options: Options

    def active(self, hook: str, epoch: int) -> bool:
        return hook != "attack_objective" or self.options.objective == "confidence"

    def passes(self, hook: str, costs: Costs) -> Passes:
        return Passes(costs.steps + 1, costs.steps) if hook == "inner_attack" else Passes()

    def join(self, company: Company) -> list[str]:
        if company.attack.norm != "linf":
            raise OptionError(f"ccat attacks in attack.norm = linf, not {company.attack.norm}; drop it.")
        return [
            f"{owner} scales the radius that is attacked, but ccat's label counts from attack.eps"
            for owner in company.owners("budget_scale")
        ]

    @hookimpl
    def perturbation_budget(self, batch: Batch, run: Run) -> Budget:
        place = run.draws("half", batch).uniform(dtype=torch.float64).argsort().argsort()
        eps = run.attack.eps * (place >= int(self.options.clean * len(place))).to(batch.x.dtype)
        return Budget(attack=eps, label=eps)

    @hookimpl
    def attack_objective(self, batch: Batch, run: Run) -> Callable[[Tensor], Tensor]:
        own = F.one_hot(batch.y, run.num_classes).bool()
        return lambda logits: logits.softmax(1).masked_fill(own, 0).amax(1)

    @hookimpl
    def inner_attack(
        self,
        model: Callable[[Tensor], Tensor],
        batch: Batch,
        radius: Tensor,
        objective: Callable[[Tensor], Tensor],
        run: Run,
    ) -> AttackResult:
        x, wide, draws = batch.x, per_sample(radius, batch.x), run.draws("start", batch)
        lower, upper = (x - wide).clamp(min=0), (x + wide).clamp(max=1)
        way = draws.normal(*x.shape[1:], dtype=x.dtype)
        length = draws.uniform(draw=1, dtype=x.dtype) / way.flatten(1).abs().amax(1)
        begin = (x + wide * per_sample(length, x) * way).clamp(lower, upper)
        x_adv = backtracked(
            model,
            begin,
            lambda point: point.clamp(lower, upper),
            objective,
            steps=run.attack.steps,
            step_size=run.attack.step_size,
            momentum=self.options.momentum,
            shrink=self.options.shrink,
        )
        return AttackResult(x_adv, start=begin)

    @hookimpl
    def commit_attack(
        self, batch: Batch, budget: Budget, attack: AttackResult, run: Run
    ) -> tuple[Budget, Tensor | None]:
        length = (attack.x_adv - batch.x).flatten(1).abs().amax(1)
        return replace(budget, label=length.clamp(max=run.attack.eps)), None

    @hookimpl
    def target_label(self, target: Tensor, budget: Budget, phase: str, run: Run) -> Tensor:
        return target if phase == "attack" else faded(target, budget.label, run.attack.eps, self.options.rho)
