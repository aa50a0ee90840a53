"""What an answer must be. Shapes and gradients are checked at every step, values where asked: they cost a sync."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import described
from ..ascent import per_sample
from ..compose.composition import Composition
from ..errors import HookContract, blamed
from ..types import AttackResult, Batch, Budget, BudgetScale, Mix, Objective
from .by_row import Rows, a_loss
from .guard import Lent, plain, unchanged, values_of
from .sums import told
from .values import GRADIENT, LOSS, Values

LONG = torch.int64
SLACK = 1e-6
"""Relative: what a budget may round above the largest."""


class Contract(Rows):
    """Checks answers of one step's hooks, and adds what is in them to `seen`.

    `values` also checks finiteness, ranges and the simplex. Where that fails after something that nobody has answered
    is not finite, such as logits, the step fails of it (`Undo`), and no plugin is to blame.
    """

    def __init__(
        self, batch: Batch, classes: int, composition: Composition, model: nn.Module, seen: Values, values: bool
    ) -> None:
        super().__init__(batch, values)
        self.seen = seen
        self.classes, self.steps, self.model, self.lent = classes, composition.setting.attack.steps, model, Lent(batch)
        self.largest = composition.company.largest_budget if values else None

    def mixed(self, who: str, batch: object) -> Batch:
        """The batch that all later answers are checked against."""
        if not isinstance(batch, Batch):
            raise _broken(who, "mix_batch", f"an advkit.Batch is expected, not {type(batch).__name__}")
        self._like(who, "mix_batch", batch.x)
        x = batch.x
        self.seen.answer(who, "mix_batch", x)
        self._true(who, "mix_batch", lambda: ((x >= 0) & (x <= 1)).flatten(1).all(1), "images leave [0, 1]")
        if batch.y is not self.batch.y or batch.index is not self.batch.index:
            raise _broken(who, "mix_batch", "y and index must stay those of the batch")
        if batch.occurrence is not self.batch.occurrence or not isinstance(batch.mix, Mix | None):
            raise _broken(who, "mix_batch", "occurrence must stay that of the batch, and mix be an advkit.Mix or None")
        if x.requires_grad:
            raise _broken(who, "mix_batch", "the images must be detached")
        if isinstance(mix := batch.mix, Mix):
            self._per_sample(who, "mix_batch", "ratio", mix.ratio)
            if not isinstance(mix.partner, Tensor) or mix.partner.shape != (self.rows,) or mix.partner.dtype != LONG:
                raise _broken(who, "mix_batch", f"partner must be ({self.rows},) int64, not {described(mix.partner)}")
            self._true(who, "mix_batch", lambda: (mix.ratio >= 0) & (mix.ratio <= 1), "ratio leaves [0, 1]")
            self._true(who, "mix_batch", lambda: (mix.partner >= 0) & (mix.partner < self.rows), "partner is no place")
        self.batch = batch
        return batch

    def budget(self, who: str, hook: str, budget: object) -> Budget:
        if not isinstance(budget, Budget):
            raise _broken(who, hook, f"an advkit.Budget is expected, not {type(budget).__name__}")
        for name in ("attack", "label", "step_size"):
            value = getattr(budget, name)
            self.seen.answer(who, hook, value)
            if value is not None or name != "step_size":
                self.size(who, hook, name, value)
                most = getattr(self.largest, name, math.inf) * (1 + SLACK)
                too_large = f"{name} is above {most:.4g}, which Plugin.largest_budget says is the largest"
                self._true(who, hook, partial(torch.le, value, most), too_large)
        if (steps := budget.steps) is not None:
            if not isinstance(steps, Tensor) or steps.shape != (self.rows,) or steps.dtype != LONG:
                raise _broken(who, hook, f"steps must be ({self.rows},) int64, not {described(steps)}")
            self._true(
                who,
                hook,
                lambda: (steps >= 0) & (steps <= self.steps),
                f"steps must lie in 0..{self.steps} (attack.steps), so that the cost is known",
            )
        return budget

    def scale(self, who: str, scale: object, most: float) -> BudgetScale:
        """`most` is what its plugin says is the largest factor on the radius."""
        if not isinstance(scale, BudgetScale):
            raise _broken(who, "budget_scale", f"an advkit.BudgetScale is expected, not {type(scale).__name__}")
        for name in ("radius", "step_size"):
            value = getattr(scale, name)
            value = torch.tensor(value) if isinstance(value, int | float) else value
            if not isinstance(value, Tensor) or value.shape not in ((), (self.rows,)) or value.is_complex():
                raise _broken(who, "budget_scale", f"{name} must be () or ({self.rows},), not {described(value)}")
            self.seen.answer(who, "budget_scale", value)
            self._true(who, "budget_scale", partial(_not_negative, value), f"{name} must be finite and not negative")
            if name == "radius":
                too_large = f"radius is above {most:.4g}, which Plugin.largest_scale says is the largest"
                self._true(who, "budget_scale", partial(torch.le, value, most * (1 + SLACK)), too_large)
        return scale

    def target(self, who: str, target: Tensor) -> Tensor:
        fits = isinstance(target, Tensor) and target.shape == (self.rows, self.classes) and not target.is_complex()
        if not fits or target.device != self.batch.x.device:
            raise _broken(who, "target_label", f"({self.rows}, {self.classes}) is expected, not {described(target)}")
        if target.requires_grad:
            raise _broken(who, "target_label", "the target must be detached")
        self.seen.answer(who, "target_label", target)
        self._true(who, "target_label", lambda: target.isfinite().all(1), "a row is not finite")
        self._true(who, "target_label", lambda: (target >= 0).all(1), "a row has a negative entry")
        self._true(who, "target_label", lambda: (target.sum(1) - 1).abs() <= 1e-5, "a row does not sum to 1")
        return target

    def objective(self, who: str, goal: object, known: Mapping[str, object]) -> Objective:
        if not callable(goal):
            raise _broken(who, "attack_objective", f"a callable is expected, not {type(goal).__name__}")

        def checked(logits: Tensor) -> Tensor:
            lent = {"logits": logits, **known, **values_of(self.model)}
            watch = unchanged(who, "attack_objective", lent, self.model) if self.values else nullcontext()
            with blamed(f"in plugin {who}, the objective of hook attack_objective"), watch:
                loss = plain(("attack_objective", who), goal(logits))
            return a_loss(who, "attack_objective", loss, logits)

        return self.seen.objective(who, "objective", checked)

    def attack(self, who: str, result: object, radius: Tensor, norm: str) -> AttackResult:
        if not isinstance(result, AttackResult):
            raise _broken(who, "inner_attack", f"an advkit.AttackResult is expected, not {type(result).__name__}")
        self.images(who, "inner_attack", result.x_adv, radius, norm)
        for name, shape, dtype in (
            ("steps", (self.rows,), LONG),
            ("zero_gradients", (self.rows,), LONG),
            ("finite", (), torch.bool),
            ("start", self.batch.x.shape, self.batch.x.dtype),
        ):
            value = getattr(result, name)
            if value is not None and not (isinstance(value, Tensor) and (value.shape, value.dtype) == (shape, dtype)):
                expected = f"{tuple(shape)} {str(dtype).removeprefix('torch.')} or None"
                raise _broken(who, "inner_attack", f"{name} must be {expected}, not {described(value)}")
        traces = result.traces
        if not isinstance(traces, Mapping) or not all(isinstance(trace, Tensor) for trace in traces.values()):
            raise _broken(who, "inner_attack", "traces must be tensors by name")
        return result

    def start(self, who: str, attack: AttackResult) -> Tensor:
        """Where the attack began, which this run needs."""
        if attack.start is None:
            complaint = "it does not say where it began (AttackResult.start), which update.clean=start needs"
            raise _broken(who, "inner_attack", complaint)
        self._like(who, "inner_attack", attack.start)
        return attack.start

    def images(self, who: str, hook: str, x_adv: Tensor, radius: Tensor, norm: str) -> Tensor:
        """x_adv inside box and ball. The ball has the slack that rounding x + radius takes."""
        x = self.batch.x
        self._like(who, hook, x_adv)
        if x_adv.requires_grad:
            raise _broken(who, hook, "the images must be detached")
        fine = x_adv.isfinite().flatten(1).all(1)
        self.seen.answer(who, hook, fine.all())
        self._true(who, hook, lambda: fine, "images are not finite")
        slack = 4 * torch.finfo(x.dtype).eps

        def inside() -> Tensor:
            shift = (x_adv - x).flatten(1)
            if norm == "linf":
                return (shift.abs() <= per_sample(radius, shift) + slack).all(1)
            lengths = torch.linalg.vector_norm(shift, dim=1)
            inside_l2: Tensor = lengths <= radius * (1 + slack) + slack * shift.shape[1] ** 0.5
            return inside_l2

        self._true(who, hook, lambda: ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1), "images leave [0, 1]")
        self._true(who, hook, inside, "images leave the ball of the budget")
        return x_adv

    def commit(
        self, who: str, answer: object, before: Budget, radius: Tensor, norm: str
    ) -> tuple[Budget, Tensor | None]:
        """Images within the `radius` of the attack, or where the budget `before` it has grown, within that."""
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise _broken(who, "commit_attack", f"(Budget, images or None) is expected, not {described(answer)}")
        budget, x_train = self.budget(who, "commit_attack", answer[0]), answer[1]
        if x_train is not None:
            grown = torch.where(budget.attack > before.attack, budget.attack, radius)
            self.images(who, "commit_attack", x_train, grown, norm)
        return budget, x_train

    def move(self, who: str, move: Tensor) -> Tensor:
        self._like(who, "attack_move", move)
        if move.requires_grad:
            raise _broken(who, "attack_move", "the move must be detached")
        fine = move.isfinite().flatten(1).all(1)
        self.seen.answer(who, "attack_move", fine.all())
        self._true(who, "attack_move", lambda: fine, "the move is not finite")
        return move

    def mask(self, who: str, mask: Tensor) -> Tensor:
        here = torch.bool, self.batch.x.device
        if not isinstance(mask, Tensor) or mask.shape != (self.rows,) or (mask.dtype, mask.device) != here:
            raise _broken(who, "attack_step", f"({self.rows},) bool is expected, not {described(mask)}")
        return mask

    def term(self, who: str, hook: str, term: Tensor) -> Tensor:
        self._per_sample(who, hook, "the term", term, finite=False)  # NaN here is the run's failure, named there
        self.seen.add(f"{LOSS} (term {'base_loss' if hook == 'base_loss' else who})", term)
        if term.requires_grad and term.is_leaf:
            raise _broken(who, hook, "the term does not depend on the net; compute it from the logits")
        if hook == "extra_regularizer" and torch.is_grad_enabled() and not term.requires_grad:
            # Zeros are how a coefficient of 0 may say that it has nothing to add.
            self._true(
                who, hook, lambda: term == 0, "the term has no gradient, so it trains nothing; drop its .detach()"
            )
        return term

    def weight(self, who: str, weight: Tensor) -> Tensor:
        self.seen.answer(who, "instance_weight", weight)
        self._per_sample(who, "instance_weight", "the weight", weight)
        if weight.requires_grad:
            raise _broken(who, "instance_weight", "weights must be detached")
        self._true(who, "instance_weight", lambda: weight >= 0, "weights must not be negative")
        return weight

    def shift(self, who: str, shift: object, params: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if not isinstance(shift, Mapping):
            raise _broken(who, "weight_perturbation", f"a mapping is expected, not {type(shift).__name__}")
        for name, value in shift.items():
            if name not in params:
                raise _broken(who, "weight_perturbation", f"there is no trainable parameter {name}")
            if described(value) != described(params[name]):
                raise _broken(
                    who,
                    "weight_perturbation",
                    f"the shift of {name} must be {described(params[name])} like it, not {described(value)}",
                )
            if value.data_ptr() == params[name].data_ptr() and value.numel():
                raise _broken(
                    who, "weight_perturbation", f"the shift of {name} is the weight itself; give a tensor of its own"
                )
            if value.requires_grad:
                raise _broken(
                    who,
                    "weight_perturbation",
                    f"the shift of {name} requires grad, which would corrupt the gradient; detach it",
                )
        self.seen.answer(who, "weight_perturbation", *_all_finite(shift))
        for name, value in shift.items():
            complaint = f"the shift of {name} is not finite"
            self._true(who, "weight_perturbation", partial(_finite, value), complaint)
        return shift

    def noted(self, gradient_at: Callable[..., Mapping[str, Tensor]]) -> Callable[..., Mapping[str, Tensor]]:
        """`gradient_at`, what it returns being added to `seen`."""

        def noted(*arguments: Any, **named: Any) -> Mapping[str, Tensor]:
            gradients = gradient_at(*arguments, **named)
            self.seen.add(GRADIENT, *_all_finite(gradients))
            return gradients

        return noted

    def question(self, who: str, shift: object, loss: str, params: Mapping[str, Tensor]) -> None:
        """What `gradient_at` is asked."""
        if loss not in ("adv_ce", "objective"):
            complaint = f'gradient_at knows the losses "adv_ce" and "objective", not {loss!r}'
            raise _broken(who, "weight_perturbation", complaint)
        if shift is not None:
            self.shift(who, shift, params)

    def selection(self, who: str, mask: object) -> Tensor:
        """What `select` of `gradient_at` answered."""
        if not isinstance(mask, Tensor) or mask.shape != (self.rows,):
            complaint = f"select must return a mask ({self.rows},), not {described(mask)}"
            raise _broken(who, "weight_perturbation", complaint)
        return mask

    def _like(self, who: str, hook: str, images: object) -> None:
        expected = described(self.batch.x)
        if described(images) != expected:
            raise _broken(who, hook, f"images {expected} are expected, not {described(images)}")


_broken = HookContract.broken


def _not_negative(value: Tensor) -> Tensor:
    return value.isfinite() & (value >= 0)


def _all_finite(values: Mapping[str, Tensor]) -> list[Tensor]:
    """() bool each, for one is small and theirs is the memory of the net."""
    return [flags.all() for _, flags in told([*values.values()]).values()]


def _finite(value: Tensor) -> Tensor:
    return value.isfinite().all()
