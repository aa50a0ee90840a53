"""The hooks. Keep this page open while you write a plugin; it holds the contract and no logic.

A plugin's method lists the arguments it needs, in any order and never with defaults. Listing one of these
makes the core compute it, and `advkit plan` show its cost; all other arguments are free:

    adv_logits         f(x_train; theta+v)   update phase, train mode, with gradient
    clean_logits       f(x; theta+v)         update phase; in hooks up to `commit_attack`, and in `target_label`:
                                             f(x; theta) in the attack mode, without gradient
    adv_logits_base    f(x_train; theta)     update phase; the same tensor as adv_logits when nothing perturbs
    clean_logits_base  f(x; theta)           update phase; the same tensor as clean_logits when nothing perturbs
    success            (B,) bool             argmax f(x_adv; theta) != y at the final iterate, in the attack mode
    gradient_at        a callable            one forward and one full backward a call

Shapes: B batch, K classes, N samples of the training set. Images are (B, C, H, W) in [0, 1]; budgets, radii and
step sizes are in the same unit. Per-sample tensors are (B,), in the order of `batch.index`.
v is the weight perturbation of this step; where nobody perturbs, theta+v is theta.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from .hookspec import Rule, hookspec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .ascent import Observer
    from .data.base import Dataset
    from .rng import Draws
    from .run import Run
    from .types import AttackResult, Batch, Budget, BudgetScale


class Hooks:
    """All questions the core asks, in the order of one run and one step."""

    @hookspec(Rule.CHAIN, "data", asked_by="loop", default="as loaded")
    def train_dataset(self, dataset: Dataset, run: Run) -> Dataset:
        """The training set, once before the run. Samples may be added at the end, never held out; 0..len-1 stay."""

    @hookspec(Rule.EXCLUSIVE, "data", asked_by="loop", default="all once, in a seeded order")
    def train_sampler(self, indices: Tensor, batch_size: int, epoch: int, run: Run) -> Sequence[Tensor]:
        """The batches of an epoch: int64 index tensors, drawn from `indices` (n,), the samples to train on.

        Called at the start of every epoch and again on resume: a pure function of its arguments. An index may
        recur; the core numbers its occurrences, so that each visit has draws of its own.
        """

    @hookspec(Rule.EXCLUSIVE, "data", asked_by="loop", default="data.transform")
    def train_transform(self, x: Tensor, draws: Draws, run: Run) -> Tensor:
        """Augmented images, (B, C, H, W) in [0, 1] as `x`. `draws` are addressed by sample, epoch and occurrence."""

    @hookspec(Rule.EXCLUSIVE, "data", default="unchanged")
    def mix_batch(self, batch: Batch, run: Run) -> Batch:
        """The batch with mixed `x` and `mix` = (partner position, ratio of the own image); y and index unchanged."""

    @hookspec(Rule.EXCLUSIVE, "attack", prefers=True, default="attack.eps for both")
    def perturbation_budget(self, batch: Batch, clean_logits: Tensor, run: Run) -> Budget:
        """Budgets per sample: `attack` bounds x_adv, `label` is what target labels depend on; each (B,), >= 0.

        `step_size` (B,) and `steps` (B,) int64, at most `attack.steps`, default to the run's settings.
        """

    @hookspec(Rule.PRODUCT, "attack", default="1")
    def budget_scale(self, batch: Batch, clean_logits: Tensor, run: Run) -> BudgetScale:
        """Factors () or (B,), >= 0, on the radius and on the step size, for warm-ups."""

    @hookspec(Rule.CHAIN, "attack", default="one-hot")
    def target_label(
        self, target: Tensor, batch: Batch, budget: Budget, phase: str, clean_logits: Tensor, run: Run
    ) -> Tensor:
        """Rows on the simplex, (B, K), detached, from `target` (the one-hot labels or a neighbour's answer).

        Called twice a step: phase "attack" with the budget of `perturbation_budget`, "train" with `commit_attack`'s.
        """

    @hookspec(Rule.EXCLUSIVE, "attack", prefers=True, default="soft cross-entropy with the target")
    def attack_objective(
        self, batch: Batch, target: Tensor, radius: Tensor, clean_logits: Tensor, run: Run
    ) -> Callable[[Tensor], Tensor]:
        """What the attack increases: a callable from logits (B, K) to (B,), built once per batch."""

    @hookspec(Rule.EXCLUSIVE, "attack", prefers=True, default="PGD by the settings")
    def inner_attack(
        self,
        model: Callable[[Tensor], Tensor],
        batch: Batch,
        target: Tensor,
        radius: Tensor,
        objective: Callable[[Tensor], Tensor],
        observe: Observer | None,
        run: Run,
    ) -> AttackResult:
        """Adversarial examples inside ball and box, detached. `model` is frozen; `Plugin.passes` declares its passes.

        An owner that lists `observe` calls it at every iterate, before the move, to learn which samples go on:
        `observe(x_adv=, logits=, loss=, gradient=, step=)` is (B,) bool; `observe` is None where no plugin observes.
        """

    @hookspec(Rule.EXCLUSIVE, "attack", prefers=True, default="by attack.init")
    def attack_start(self, batch: Batch, radius: Tensor, restart: int, run: Run) -> Tensor:
        """Where the core's attack begins: images as `batch.x`, inside ball and box, detached.

        Asked once for each of `attack.restarts`, `restart` counting from 0; take it as the `draw` of random numbers.
        """

    @hookspec(Rule.AND, "attack", default="all go on")
    def attack_step(
        self,
        batch: Batch,
        x_adv: Tensor,
        logits: Tensor,
        loss: Tensor,
        gradient: Tensor,
        radius: Tensor,
        step: int,
        restart: int,
        run: Run,
    ) -> Tensor:
        """(B,) bool: which samples go on. Called at every iterate, before its move; `step` restarts at 0.

        In later hooks `attack.restart` (B,) is the restart that a sample keeps. A stopped sample does not move.
        Tensors are detached and borrowed: read them, keep none, change nothing.
        """

    @hookspec(Rule.CHAIN, "attack", default="unchanged")
    def attack_move(
        self,
        move: Tensor,
        batch: Batch,
        x_adv: Tensor,
        gradient: Tensor,
        radius: Tensor,
        step: int,
        restart: int,
        run: Run,
    ) -> Tensor:
        """The move (B, C, H, W) in pixels that the core's attack makes from an iterate, before it is projected.

        `move` is the step along `gradient` by the norm, or a neighbour's answer; a stopped sample does not move.
        """

    @hookspec(Rule.EXCLUSIVE, "attack", default="both unchanged")
    def commit_attack(
        self, batch: Batch, budget: Budget, attack: AttackResult, success: Tensor, run: Run
    ) -> tuple[Budget, Tensor | None]:
        """The budgets from here on, and the images to train on (None: `attack.x_adv`).

        The only place that writes per-sample budgets, by the owner of `perturbation_budget`. Images are checked again,
        within the attack's radius or a larger budget that it returns, up to `Plugin.largest_budget`.
        """

    @hookspec(Rule.EXCLUSIVE, "update", default="no shift")
    def weight_perturbation(
        self, params: Mapping[str, Tensor], gradient_at: Callable[..., Mapping[str, Tensor]], run: Run
    ) -> Mapping[str, Tensor]:
        """The shift v, by parameter name; detached, shaped as the parameter; names left out are not shifted.

        `gradient_at(shift=None, loss="adv_ce", select=None)` is the gradient of a batch loss at theta+shift:
        "adv_ce", the mean soft cross-entropy on x_train, or "objective", base loss plus the regularizers that
        demand no `_base` view, instance weights 1. `select(logits, y)` is a mask (B,); sums are divided by B.
        `Plugin.passes` declares its passes. The optimizer steps at theta unless `Plugin.steps_at_shift` is true.
        """

    @hookspec(Rule.EXCLUSIVE, "update", prefers=True, default="soft cross-entropy of adv_logits")
    def base_loss(
        self,
        batch: Batch,
        target: Tensor,
        budget: Budget,
        radius: Tensor,
        attack: AttackResult,
        x_train: Tensor,
        adv_logits: Tensor,
        clean_logits: Tensor,
        adv_logits_base: Tensor,
        clean_logits_base: Tensor,
        run: Run,
    ) -> Tensor:
        """(B,), minimised in the mean. Its forwards move BatchNorm's running statistics; no others do."""

    @hookspec(Rule.SUM, "update")
    def extra_regularizer(
        self,
        batch: Batch,
        target: Tensor,
        budget: Budget,
        radius: Tensor,
        attack: AttackResult,
        x_train: Tensor,
        adv_logits: Tensor,
        clean_logits: Tensor,
        adv_logits_base: Tensor,
        clean_logits_base: Tensor,
        run: Run,
    ) -> Tensor:
        """(B,), its coefficient included; added to the base loss in the mean, as a term with the plugin's name."""

    @hookspec(Rule.PRODUCT, "update", detached=True, default="1")
    def instance_weight(
        self,
        term: str,
        batch: Batch,
        target: Tensor,
        budget: Budget,
        radius: Tensor,
        attack: AttackResult,
        x_train: Tensor,
        adv_logits: Tensor,
        clean_logits: Tensor,
        adv_logits_base: Tensor,
        clean_logits_base: Tensor,
        run: Run,
    ) -> Tensor:
        """(B,), detached, >= 0: the weights of one loss term, "base_loss" or the plugin that adds it.

        Called for each active term that `Plugin.terms` names. Not renormalised.
        """

    @hookspec(Rule.NOTIFY, "update", detached=True)
    def observe_update(
        self,
        batch: Batch,
        target: Tensor,
        budget: Budget,
        radius: Tensor,
        attack: AttackResult,
        x_train: Tensor,
        adv_logits: Tensor,
        clean_logits: Tensor,
        adv_logits_base: Tensor,
        clean_logits_base: Tensor,
        run: Run,
    ) -> None:
        """What the update computed, found finite, before its step: for logs, `run.ahead`, nets that learn. Borrowed."""

    @hookspec(Rule.NOTIFY, "update")
    def after_update(self, model: nn.Module, run: Run) -> None:
        """After the optimizer's step: for averages of the weights."""

    @hookspec(Rule.NOTIFY, "run")
    def setup(self, model: nn.Module, run: Run) -> None:
        """Once, before the first step or a resume: claim per-sample state and tensors here.

        `advkit plan` calls it too, on a run without samples, unless it takes `model`; `run.num_classes` may be 0 there.
        """

    @hookspec(Rule.NOTIFY, "run", asked_by="loop")
    def epoch_start(self, epoch: int, run: Run) -> None:
        """Before the first step of an epoch (not when resuming in its middle)."""

    @hookspec(Rule.NOTIFY, "run", asked_by="loop")
    def epoch_end(self, epoch: int, metrics: Mapping[str, object], batch: Batch, run: Run) -> None:
        """After validation, before the epoch's checkpoint; `metrics` is the epoch's line in metrics.jsonl.

        `run.figure` adds a plugin's own figures to that line; `run.stop` ends the run. `batch` is the epoch's first as
        it was augmented, for `run.probe`.
        """

    @hookspec(Rule.NOTIFY, "run")
    def teardown(self, run: Run) -> None:
        """Once, after the run, also when it failed or was stopped; `Step.close` calls it in a loop of your own."""

    @hookspec(Rule.EXCLUSIVE, "run", asked_by="loop", default="none")
    def evaluation_weights(self, model: nn.Module, run: Run) -> Mapping[str, Tensor]:
        """Parameters and buffers, by name, that validation and `best` use in place of the model's own."""
