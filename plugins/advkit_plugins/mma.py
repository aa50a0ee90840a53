"""Max-margin adversarial training: Ding, Sharma, Lui, Huang: MMA Training: Direct Input Space Margin Maximization (ICLR
2020), Algorithms 1 (AN-PGD) and 2."""

from __future__ import annotations

from collections.abc import Callable
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
    L2Ball,
    LinfBall,
    Passes,
    Plugin,
    PluginOptions,
    Real,
    Run,
    hookimpl,
    option,
    per_sample,
    soft_cross_entropy,
)


def soft_logit_margin(logits: Tensor, y: Tensor) -> Tensor:
    """(B,): log of the sum of exp over the other classes of logits (B, K), less the label's; negative where it wins."""
    own = torch.nn.functional.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(own, -torch.inf).logsumexp(1) - logits.gather(1, y[:, None]).squeeze(1)


def bisected(margin: Callable[[Tensor], Tensor], first: Tensor, cap: float, steps: int) -> Tensor:
    """Where `margin`, of lengths (B,), turns positive between 0 and `cap`: first asked at `first`, then at middles.

    The last middle; `cap` where no length that was asked at is beyond the turn.
    """
    length, low, high = first, torch.zeros_like(first), torch.full_like(first, cap)
    reached = torch.zeros_like(first, dtype=torch.bool)
    for _ in range(steps):
        below = margin(length) < 0
        reached |= ~below
        low, high = torch.where(below, length, low), torch.where(below, high, length)
        length = (low + high) / 2
    return torch.where(reached, length, cap)


class Mma(Plugin):
    """Attacks each sample up to its decision boundary, and trains on that point (MMA; OMMA with lam=0)."""

    name = "mma"
    replaces = {"perturbation_budget": ("attack.step_size",)}
    prefers = {"attack.init": "uniform", "attack.mode": "eval"}
    terms = ("base_loss",)

    class Options(PluginOptions):
        d_max: Real = option(
            "1.5 eps", symbol="d_max", gt=0, unit="pixels in [0, 1]", help="samples of larger margin are not trained on"
        )
        lam: Real = option(
            "1/3", symbol="λ", ge=0, le=1, help="share of the clean cross-entropy in the loss; 0: OMMA, 1/3 in its code"
        )
        cap: Real = option(1.05, ge=1, le=10, help="how far the search goes, in d_max")
        eps_min: Real = option(
            "0.159375 eps", gt=0, unit="pixels in [0, 1]", help="least radius of the attack; 0.005 at 8/255"
        )
        search: int = option(10, ge=1, le=100, help="steps of the bisection, a forward each")

    options: Options
    trained: Tensor

    @property
    def farthest(self) -> float:
        return max(self.options.cap * self.options.d_max, self.options.eps_min)

    def largest_budget(self, eps: float) -> Budgets:
        return Budgets(attack=self.farthest, label=eps)

    def active(self, hook: str, epoch: int) -> bool:
        return hook != "extra_regularizer" or self.options.lam > 0

    def passes(self, hook: str, costs: Costs) -> Passes:
        return Passes(self.options.search) if hook == "commit_attack" else Passes()

    def join(self, company: Company) -> list[str]:
        cautions = [
            f"mma looks for the boundary along the attack, which {name} stops before its end"
            for name in company.owners("attack_step")
            if name in ("fat", "fosc")
        ]
        cautions += [
            f"{owner} scales the radius that is attacked, but mma measures margins as if it were not scaled"
            for owner in company.owners("budget_scale")
        ]
        return cautions

    @hookimpl
    def setup(self, run: Run) -> None:
        self.margin = run.sample_state("eps", least=0, most=self.farthest)

    @hookimpl
    def perturbation_budget(self, batch: Batch, clean_logits: Tensor, run: Run) -> Budget:
        right = soft_logit_margin(clean_logits, batch.y) < 0
        eps = self.margin[batch.index].to(batch.x.dtype).clamp(self.options.eps_min, self.farthest) * right
        return Budget(attack=eps, label=eps.clamp(max=run.attack.eps), step_size=2.5 * eps / max(1, run.attack.steps))

    @hookimpl
    def attack_objective(self, batch: Batch) -> Callable[[Tensor], Tensor]:
        return lambda logits: soft_logit_margin(logits, batch.y)

    @hookimpl
    def commit_attack(
        self, batch: Batch, budget: Budget, attack: AttackResult, run: Run
    ) -> tuple[Budget, Tensor | None]:
        right = budget.attack > 0
        unit = (attack.x_adv - batch.x) / per_sample(torch.where(right, budget.attack, 1.0), batch.x)

        def image(length: Tensor) -> Tensor:
            ball = (LinfBall if run.attack.norm == "linf" else L2Ball)(batch.x, length)
            return ball.project_(batch.x + per_sample(length, batch.x) * unit)  # the way is rounded, and may be long

        def margin(length: Tensor) -> Tensor:
            return soft_logit_margin(run.logits(image(length)), batch.y)

        eps = bisected(margin, budget.attack, self.farthest, self.options.search) * right
        self.margin[batch.index] = eps.to(self.margin.dtype)
        self.trained = ~right | (eps < self.options.d_max)
        return replace(budget, attack=eps, label=eps.clamp(max=run.attack.eps)), image(eps)

    @hookimpl
    def instance_weight(self, batch: Batch) -> Tensor:
        return (1 - self.options.lam) * self.trained.to(batch.x.dtype)

    @hookimpl
    def extra_regularizer(self, target: Tensor, clean_logits: Tensor) -> Tensor:
        return self.options.lam * soft_cross_entropy(clean_logits, target)
