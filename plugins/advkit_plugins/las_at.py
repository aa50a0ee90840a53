"""Adversarial training with a learnable attack strategy: Jia, Zhang, Wu, Ma, Wang, Cao: LAS-AT: Adversarial Training
with Learnable Attack Strategy (CVPR 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advkit import (
    AttackResult,
    Batch,
    Budget,
    Budgets,
    Company,
    Costs,
    L2Ball,
    LinfBall,
    OptionError,
    Passes,
    Plugin,
    PluginOptions,
    Real,
    Run,
    hookimpl,
    option,
)


class Strategy(nn.Sequential):
    """Three convolutions, the mean over pixels, and a linear layer: (B, C, H, W) to (B, choices)."""

    def __init__(self, channels: int, width: int, choices: int) -> None:
        convolutions = [
            nn.Conv2d(channels, width, 3, padding=1),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1),
        ]
        super().__init__(*convolutions, nn.Linear(2 * width, choices))

    def forward(self, x: Tensor) -> Tensor:
        *convolutions, heads = self
        for convolution in convolutions:
            x = convolution(x).relu()
        choices: Tensor = heads(x.flatten(2).mean(2))
        return choices


def drawn(logits: Tensor, counts: Sequence[int], uniform: Sequence[Tensor]) -> Tensor:
    """One choice of each head, (B, H) int64, from logits (B, sum of `counts`) and a number (B,) in [0, 1) a head."""
    heads = zip(torch.split(logits, [*counts], dim=1), uniform, strict=True)
    return torch.stack([(u[:, None] >= head.softmax(1).cumsum(1)[:, :-1]).sum(1) for head, u in heads], dim=1)


def log_probability(logits: Tensor, counts: Sequence[int], choice: Tensor) -> Tensor:
    """sum over heads of log pi(choice), (B,), for choices (B, H)."""
    heads = zip(torch.split(logits, [*counts], dim=1), torch.split(choice, 1, dim=1), strict=True)
    return torch.cat([head.log_softmax(1).gather(1, one) for head, one in heads], dim=1).sum(1)


def nearest(values: Tensor, choices: Tensor) -> Tensor:
    """Which of `choices` (n,) each of `values` (B,) is."""
    return (values[:, None] - choices).abs().argmin(1)


class LasAt(Plugin):
    """A strategy net draws each sample's eps, steps and step size, and learns which of them help the model (LAS-AT)."""

    name = "las-at"
    replaces = {"perturbation_budget": ("attack.step_size",)}
    prefers = {"attack.init": "uniform", "attack.mode": "eval", "attack.steps": 14}

    class Options(PluginOptions):
        eps_min: Real = option("0.375 eps", ge=0, unit="pixels in [0, 1]", help="smallest budget that can be drawn")
        eps_max: Real = option("1.875 eps", ge=0, unit="pixels in [0, 1]", help="largest budget that can be drawn")
        eps_count: int = option(13, ge=1, le=1000, help="number of budgets, evenly from the smallest to the largest")
        steps_min: int = option(3, ge=1, le=9999, help="fewest steps of an attack; the most are attack.steps")
        step_min: Real = option("0.125 eps", ge=0, unit="pixels in [0, 1]", help="smallest step size")
        step_max: Real = option("0.625 eps", ge=0, unit="pixels in [0, 1]", help="largest step size")
        step_count: int = option(5, ge=1, le=1000, help="number of step sizes")
        train_eps: Real = option(
            0.0, ge=0, unit="pixels in [0, 1]", help="training images lie within this of x; 0: as attacked"
        )
        net: Literal["small", "model"] = option(
            "small", help="strategy net: three convolutions, or the model's own net with a linear layer on its logits"
        )
        width: int = option(
            16, ge=1, le=4096, under="net=small", help="channels of the small net's first layer; the others have twice"
        )
        lr: Real = option(1e-4, gt=0, help="learning rate of the strategy net, by SGD without momentum")
        clip: Real = option(1.0, ge=0, help="largest norm of the strategy net's gradient; 0: no limit")
        every: int = option(20, ge=1, le=1_000_000, help="the strategy net learns once in this many steps of an epoch")
        adv: Real = option(1.0, ge=0, help="reward: factor of the cross-entropy at x', 10 at most")
        robust: Real = option(4.0, ge=0, help="reward: factor of the model's accuracy under attack one step ahead")
        clean: Real = option(2.0, ge=0, help="reward: factor of the model's clean accuracy one step ahead")
        ahead_steps: int = option(10, ge=0, le=9999, help="steps of the attack on the model one step ahead")
        ahead_step_size: Real = option(
            "eps/4",
            ge=0,
            unit="pixels in [0, 1]",
            under="ahead_steps",
            help="step size of that attack; its radius is eps",
        )
        restarts: int = option(2, ge=1, le=100, help="random starts of that attack")

    options: Options

    @property
    def by_sample(self) -> bool:
        return True

    def every(self, hook: str) -> int:
        return self.options.every

    def active(self, hook: str, epoch: int) -> bool:
        return hook != "commit_attack" or self.options.train_eps > 0

    def largest_budget(self, eps: float) -> Budgets:
        return Budgets(attack=self.options.eps_max, label=eps)

    def passes(self, hook: str, costs: Costs) -> Passes:
        if hook == "perturbation_budget":
            return Passes(auxiliary_forward=1)
        if hook != "observe_update":
            return Passes()
        once = Passes(self.options.ahead_steps + 1, self.options.ahead_steps)
        return once * self.options.restarts + Passes(1, auxiliary_forward=1, auxiliary_backward=1)

    def join(self, company: Company) -> list[str]:
        options, most = self.options, company.attack.steps
        for name in ("eps", "step"):
            low, high = getattr(options, f"{name}_min"), getattr(options, f"{name}_max")
            if low > high:
                raise OptionError(f"las-at.{name}_min = {low:g} is above las-at.{name}_max = {high:g}; exchange them.")
        said = []
        if options.steps_min > most:
            said.append(f"las-at.steps_min is above the {most} steps of attack.steps: every attack has {most}")
        if options.every > 1:
            said.append(
                f"las-at looks ahead once in {options.every} steps, from an epoch's first: passes are those of such a "
                "step, the cost is the mean"
            )
        said += [
            f"{owner} attacks by itself, and may not ask for the steps and step sizes that las-at draws"
            for owner in company.owners("inner_attack")
        ]
        short = company.attack.short(
            options.ahead_steps, options.ahead_step_size, "las-at.ahead_step_size", "the random start of its look ahead"
        )
        return [*said, *short]

    @hookimpl
    def setup(self, run: Run) -> None:
        options, most, at = self.options, run.attack.steps, run.device
        self.budgets = torch.linspace(options.eps_min, options.eps_max, options.eps_count, dtype=run.dtype, device=at)
        self.steps = torch.arange(min(options.steps_min, most), most + 1, device=at)
        self.sizes = torch.linspace(options.step_min, options.step_max, options.step_count, dtype=run.dtype, device=at)
        self.counts = [len(self.budgets), len(self.steps), len(self.sizes)]

        def built(model: nn.Module) -> nn.Module:
            if not run.image_shape or not run.num_classes:
                raise OptionError(
                    "las-at builds its strategy net for images of a size; tell the Step: Step(..., num_classes=10, "
                    "image_shape=(3, 32, 32))."
                )
            if options.net == "model":
                return nn.Sequential(model, nn.Linear(run.num_classes, sum(self.counts)))
            return Strategy(run.image_shape[0], options.width, sum(self.counts))

        rates = {"lr": options.lr, "momentum": 0.0, "weight_decay": 0.0, "clip_norm": options.clip}
        self.strategy = run.module("strategy", built, optimizer=rates)

    @hookimpl
    def perturbation_budget(self, batch: Batch, run: Run) -> Budget:
        draws = run.draws("strategy", batch)
        uniform = [draws.uniform(draw=head, dtype=batch.x.dtype) for head in range(3)]
        eps, steps, size = drawn(self.strategy(batch.x), self.counts, uniform).unbind(1)
        radius = self.budgets[eps]
        label = radius.clamp(max=run.attack.eps)
        return Budget(attack=radius, label=label, steps=self.steps[steps], step_size=self.sizes[size])

    @hookimpl
    def commit_attack(
        self, batch: Batch, budget: Budget, attack: AttackResult, run: Run
    ) -> tuple[Budget, Tensor | None]:
        radius = budget.attack.clamp(max=self.options.train_eps)
        ball = (L2Ball if run.attack.norm == "l2" else LinfBall)(batch.x, radius)
        return budget, ball.project_(attack.x_adv.clone())

    @hookimpl
    def observe_update(self, batch: Batch, budget: Budget, adv_logits: Tensor, run: Run) -> None:
        assert budget.steps is not None and budget.step_size is not None
        heads = ((budget.attack, self.budgets), (budget.steps, self.steps), (budget.step_size, self.sizes))
        self.strategy.learn(
            batch.x,
            lambda logits, choice, reward: -reward * log_probability(logits, self.counts, choice),
            torch.stack([nearest(values, choices) for values, choices in heads], dim=1),
            self._reward(batch, adv_logits, run).expand(len(batch.y)),
        )

    def _reward(self, batch: Batch, adv_logits: Tensor, run: Run) -> Tensor:
        """(): what the attack does to the model as it is, and to the model that has learnt from it."""
        options, eps = self.options, torch.full_like(batch.x[:, 0, 0, 0], run.attack.eps)
        with run.ahead():
            right, worst = torch.ones_like(batch.y, dtype=torch.bool), torch.full_like(eps, -torch.inf)
            for restart in range(options.restarts):
                size, purpose = options.ahead_step_size, f"ahead {restart}"
                attack = run.probe(
                    batch, eps, steps=options.ahead_steps, step_size=size, init="uniform", purpose=purpose
                )
                logits = run.logits(attack.x_adv)
                loss = F.cross_entropy(logits, batch.y, reduction="none")
                right = torch.where(loss > worst, logits.argmax(1) == batch.y, right)
                worst = torch.maximum(loss, worst)
            clean = run.logits(batch.x).argmax(1) == batch.y
        accuracies = options.robust * right.to(eps.dtype).mean() + options.clean * clean.to(eps.dtype).mean()
        return options.adv * F.cross_entropy(adv_logits, batch.y).clamp(max=10) + accuracies
