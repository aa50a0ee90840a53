"""The inner attack of one step: the core's, with what plugins do to its start and its moves, or a plugin's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..ascent import Observer, Transform, pgd, start
from ..compose.declarations import declared
from ..compose.stage import Answer, Stage
from ..errors import HookConflict
from ..judging import GradientWatch
from ..losses import cross_entropy, soft_cross_entropy
from ..plugin import CORE
from ..rng import Draws, derive_key
from ..types import AttackResult, Batch, Budget, BudgetScale
from .contracts import Contract
from .network import Network
from .panel import Panel
from .probes import ball_of
from .restarts import strongest
from .values import ATTACK


@dataclass(frozen=True)
class Attacker:
    """Attacks one batch. Whom to ask is in `stage`; `known` are the arguments of the hooks before the attack."""

    stage: Stage
    network: Network
    panel: Panel
    contract: Contract

    def budget(self, known: Mapping[str, Any]) -> Budget:
        """How far each sample may be attacked, before anybody scales it."""
        if owner := self.stage.owner("perturbation_budget"):
            return self.contract.budget(owner.plugin.name, owner.hook, self.panel.ask(owner, known))
        eps = known["batch"].x.new_full((len(known["batch"].y),), self.panel.state.attack.eps)
        return Budget(attack=eps, label=eps)

    def scale(self, known: Mapping[str, Any]) -> BudgetScale:
        """The product of `budget_scale`."""
        total = BudgetScale()
        for answer in self.stage.answers["budget_scale"]:
            most = declared(answer.plugin, "largest_scale", self.panel.state.attack)
            scale = self.contract.scale(answer.plugin.name, self.panel.ask(answer, known), most)
            total = BudgetScale(total.radius * scale.radius, total.step_size * scale.step_size)
        return total

    def __call__(self, known: Mapping[str, Any], scale: BudgetScale) -> AttackResult:
        """The adversarial examples, by whoever makes them."""
        settings = self.panel.state.attack
        owner, target = self.stage.owner("attack_objective"), known["target"]
        objective: Callable[[Tensor], Tensor]
        if owner:
            objective = self.contract.objective(owner.plugin.name, self.panel.ask(owner, known), known)
        elif self.stage.answers["target_label"]:
            objective = partial(soft_cross_entropy, target=target)
        else:
            objective = cross_entropy(known["batch"].y)  # the same bits, in a third of the operations
        inner = self.stage.owner("inner_attack")
        model = self.network.attacked(inner.plugin.name if inner else CORE, settings.mode == "train")
        if inner:
            return self._of_a_plugin(inner, known, scale, model, objective)
        if settings.steps == 0:
            return AttackResult(known["batch"].x, start=known["batch"].x)
        result = self._of_the_core(known, scale, model, objective)
        self.contract.seen.add(ATTACK, result.finite)
        return result

    def _of_a_plugin(
        self,
        inner: Answer,
        known: Mapping[str, Any],
        scale: BudgetScale,
        model: Callable[[Tensor], Tensor],
        objective: Callable[[Tensor], Tensor],
    ) -> AttackResult:
        if known["budget"].step_size is not None or known["budget"].steps is not None:
            who = self.panel.composition.company.owner("perturbation_budget")
            raise HookConflict(
                f"Plugin {who} sets steps or step sizes per sample, but the inner attack "
                f"{inner.plugin.name} has its own; leave one of them out."
            )
        if isinstance(scale.step_size, Tensor) or scale.step_size != 1:
            raise HookConflict(
                f"A plugin of this run ({', '.join(self.panel.composition.owners('budget_scale'))}) scales the step "
                f"size, but the inner attack {inner.plugin.name} has its own; leave it at 1, or one of them out."
            )
        watch = GradientWatch()
        with torch.enable_grad():
            result = self.panel.ask(
                inner,
                known,
                model=lambda x: model(watch(x)),
                objective=objective,
                observe=self._observer(known),
            )
        self.contract.seen.add(ATTACK, watch.finite)
        result = self.contract.attack(inner.plugin.name, result, known["radius"], self.panel.state.attack.norm)
        return replace(result, finite=watch.finite)

    def _of_the_core(
        self,
        known: Mapping[str, Any],
        scale: BudgetScale,
        model: Callable[[Tensor], Tensor],
        objective: Callable[[Tensor], Tensor],
    ) -> AttackResult:
        settings, batch, budget, radius = self.panel.state.attack, known["batch"], known["budget"], known["radius"]
        ball = ball_of(settings, batch.x, radius)
        step_size = budget.step_size if budget.step_size is not None else torch.full_like(radius, settings.step_size)
        beginner = self.stage.owner("attack_start")

        def begin(restart: int) -> Tensor:
            if beginner is None:
                purpose = f"start {restart}" if restart else "start"
                return start(ball, settings.init, lambda: self._draws(purpose, batch))
            images = self.panel.ask(beginner, known, restart=restart)
            # A copy, as the moves are in place.
            return self.contract.images(beginner.plugin.name, "attack_start", images, radius, settings.norm).clone()

        def attempt(restart: int) -> AttackResult:
            return pgd(
                model,
                ball,
                begin(restart),
                objective,
                steps=settings.steps,
                step_size=step_size * scale.step_size,
                limit=budget.steps,
                observe=self._observer(known, restart),
                transform=self._transform(known, restart),
                keep_start=self.panel.composition.setting.clean_at_start,
            )

        return strongest(attempt, settings.judged, lambda x: objective(model(x)))

    def _observer(self, known: Mapping[str, Any], restart: int = 0) -> Observer | None:
        """The `attack_step` answers as one, and-ed; None where nobody observes, so that nothing is called."""
        answers: Sequence[Answer] = self.stage.answers["attack_step"]
        if not answers:
            return None

        def observe(*, step: int, **seen: Tensor) -> Tensor:
            now = {**known, "step": step, "restart": restart} | {name: tensor.detach() for name, tensor in seen.items()}
            return torch.stack([self.contract.mask(a.plugin.name, self.panel.ask(a, now)) for a in answers]).all(dim=0)

        return observe

    def _transform(self, known: Mapping[str, Any], restart: int) -> Transform | None:
        """The chain of `attack_move`; None where nobody answers it."""
        answers: Sequence[Answer] = self.stage.answers["attack_move"]
        if not answers:
            return None

        def transform(*, move: Tensor, step: int, **seen: Tensor) -> Tensor:
            for answer in answers:
                self.contract.seen.add(ATTACK, seen["gradient"].isfinite().all())
                changed = self.panel.ask(answer, known, **seen, move=move, step=step, restart=restart)
                move = self.contract.move(answer.plugin.name, changed)
            return move

        return transform

    def _draws(self, purpose: str, batch: Batch) -> Draws:
        state = self.panel.state
        return Draws(derive_key(state.seed, CORE, purpose, "attack", state.epoch), batch.index, batch.occurrence)
