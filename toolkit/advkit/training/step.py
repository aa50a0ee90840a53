"""One step of adversarial training, as data flowing down: batch, budget, attack, target, shift, loss, update."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ascent import NORMS, pgd, start
from ..compose.composition import Composition
from ..compose.stage import Answer, Stage
from ..config.layer import Layer
from ..config.resolve import Resolved, resolve
from ..errors import HookConflict, HookContract, NonFinite, OptionError, ResumeMismatch
from ..judging import checked_logits
from ..losses import soft_cross_entropy
from ..modules import frozen, mode, own_generator
from ..plugin import CORE, Plugin
from ..rng import Draws, derive_key, derive_seed
from ..run import Run, RunState
from ..settings import AttackSettings
from ..types import AttackResult, Batch, Budget, BudgetScale, Passes
from .contracts import Contract
from .ledger import Ledger
from .network import Network, moved, refuse_wrapped
from .objective import Objective, Outcome, Update
from .step_report import Report, not_finite, shift_ratio

LOOP_HOOKS = (
    "train_dataset",
    "train_sampler",
    "train_transform",
    "evaluation_weights",
    "epoch_start",
    "epoch_end",
)
"""Answered by `advkit.train`; a loop of one's own must do this itself."""


class Step:
    """`report = step(x, y, index, epoch=e)`: one attack and one update of `model` by `optimizer`.

    Args:
        model: any module from images (B, C, H, W) in [0, 1] to logits (B, K); normalise inside it.
        optimizer: any torch optimizer over the model's parameters.
        plugins: names of installed plugins, plugin classes or instances, in any order.
        num_samples: N; every `index` is below it.
        options: {"cat-eps": {"eta": 0.005}}, by plugin.
        settings: {"attack.steps": 10, "attack.init": "uniform"}, as `advkit train --set`.
        eps, seed: short for the settings attack.eps and run.seed.
        no_companion: hooks whose companions are declined.

    Raises OptionError, HookConflict and their relatives before anything runs; NonFinite from a step whose loss or
    gradients are not finite: parameters, buffers and per-sample state are then as they were.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        plugins: Iterable[str | type[Plugin] | Plugin] = (),
        *,
        num_samples: int,
        options: Mapping[str, Mapping[str, object]] | None = None,
        settings: Mapping[str, object] | None = None,
        eps: float | str | None = None,
        seed: int | None = None,
        no_companion: Iterable[str] = (),
    ) -> None:
        short = {"attack.eps": eps, "run.seed": seed}
        given = dict(settings or {}) | {key: value for key, value in short.items() if value is not None}
        own = {"model.name": "python:model", "data.name": "python:data"}
        layer = Layer("python", own | given, options or {})
        resolved = resolve(plugins, [layer], no_companion=no_companion)
        for hook in LOOP_HOOKS:
            if owners := resolved.composition.owners(hook):
                raise HookConflict(
                    f"Plugin {owners[0]} answers {hook}, which only advkit.train asks; "
                    "train with advkit.train, or leave the plugin out."
                )
        self._start(model, optimizer, resolved, num_samples)
        self.notify("setup", model=model)

    @classmethod
    def of(cls, model: nn.Module, optimizer: torch.optim.Optimizer, resolved: Resolved, num_samples: int) -> Step:
        """For a loop that answers the data hooks itself, has resolved the plugins, and will notify `setup`."""
        step = cls.__new__(cls)
        step._start(model, optimizer, resolved, num_samples)
        return step

    def _start(self, model: nn.Module, optimizer: torch.optim.Optimizer, resolved: Resolved, num_samples: int) -> None:
        refuse_wrapped(model)
        trained = next((p for p in model.parameters() if p.requires_grad), None)
        if trained is None:
            raise OptionError("The model has no trainable parameter; nothing could be learnt.")
        own = {id(p) for p in model.parameters()}
        if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
            raise OptionError("The optimizer has none of the model's parameters; build it from model.parameters().")
        for plugin in resolved.composition.plugins:
            if plugin.taken:
                raise OptionError(
                    f"The plugin object {plugin.name} is in another run already; build a new one, or pass its class."
                )
            plugin.taken = True
        self.model, self.optimizer = model, optimizer
        self.objective = Objective(model)
        self.composition: Composition = resolved.composition
        self.attack: AttackSettings = resolved.attack
        self.check_hooks = resolved.run.check_hooks
        self.state = RunState(
            seed=resolved.run.seed,
            num_samples=num_samples,
            attack=self.attack,
            device=trained.device,
            dtype=trained.dtype,
        )
        self.runs = {p.name: Run(self.state, p.name, self.composition) for p in self.composition.plugins}
        self._checked: set[int] = set()

    def __call__(self, x: Tensor, y: Tensor, index: Tensor, *, epoch: int, occurrence: Tensor | None = None) -> Report:
        """Attack x (B, C, H, W) with labels y (B,), then update the model.

        `index` (B,) int64 is each sample's place in the training set. `occurrence` (B,) counts earlier visits of
        an index in this epoch; leave it out where every index comes once.
        """
        batch = self._batch(x, y, index, epoch, occurrence)
        stage = self.composition.at(epoch)
        first = id(stage) not in self._checked
        classes = self._classes(batch.x)
        if first or self.check_hooks:
            self._fits(batch, classes)
        ledger = Ledger()
        with (
            self.state.unless_failed(self.model, batch.index),
            own_generator(self.state.device) as seed,
        ):
            network = Network(self.model, ledger, lambda label: seed(self._seed(label)))
            contract = Contract(batch, classes, self.attack.steps, values=first or self.check_hooks)
            known = self._attack(batch, stage, network, contract)
            outcome, shift = self._update(known, stage, network, contract)
            # Now: theta is what v was made for only until the optimizer steps.
            ratio = shift_ratio(shift, self.model) if shift else None
            passes = ledger.passes()
            if first or self.check_hooks:
                self._as_declared(stage, passes)
            perturber = stage.owner("weight_perturbation")
            at_shift = perturber is not None and perturber.plugin.steps_at_shift
            with moved(network.params, shift if at_shift else {}):
                self.optimizer.step()
        self._checked.add(id(stage))
        self.notify("after_update", epoch, model=self.model)
        report = Report.of(self.state, known, outcome, ratio, ledger)
        self.state.step += 1
        return report

    def state_dict(self) -> dict[str, Tensor]:
        """The plugins' state, by name: save it beside the model's and the optimizer's, for an exact resume."""
        stored = {f"samples/{name}": values for name, values in self.state.samples.items()}
        stored |= {f"tensors/{name}": values for name, values in self.state.tensors.items()}
        return stored | {"position": torch.tensor([self.state.epoch, self.state.step])}

    def load_state_dict(self, stored: Mapping[str, Tensor]) -> None:
        """Put back what `state_dict` gave. Raises ResumeMismatch if these plugins claim other state."""
        own = self.state_dict()
        different = sorted({*stored, *own} - {n for n in stored.keys() & own.keys() if stored[n].shape == own[n].shape})
        if different:
            raise ResumeMismatch(
                f"The stored state and that of the plugins differ in {different[0]}; "
                "resume with the same plugins and data."
            )
        for name, values in stored.items():
            own[name].copy_(values)
        self.state.epoch, self.state.step = stored["position"].tolist()

    # ------------------------------------------------------------------ the two phases

    def _attack(self, batch: Batch, stage: Stage, network: Network, contract: Contract) -> dict[str, Any]:
        """theta, no parameter gradients, the attack mode. Returns the arguments of all later hooks."""
        answers = stage.answers
        with mode(self.model, training=self.attack.mode != "eval"), torch.no_grad():
            if owner := stage.owner("mix_batch"):
                batch = contract.mixed(owner.plugin.name, self._ask(owner, batch=batch))
            clean = network.judge("clean_logits", stage.attack_view, batch.x) if stage.attack_view else None
            known: dict[str, Any] = {"batch": batch, "clean_logits": clean}

            budget = self._budget(stage, known, contract)
            scale = self._scale(answers["budget_scale"], known, contract)
            radius = budget.attack * scale.radius
            known |= {"budget": budget, "radius": radius}
            known["target"] = self._target(stage, known, "attack", contract)
            with frozen(self.model):
                attack = self._attacked(stage, known, scale, network, contract)

            known |= {"attack": attack, "x_train": attack.x_adv, "success": None}
            if stage.success:
                final = network.judge("success", stage.success, attack.x_adv)
                known["success"] = final.argmax(1) != batch.y
            if owner := stage.owner("commit_attack"):
                answer = self._ask(owner, **known)
                known["budget"], x_train = contract.commit(owner.plugin.name, answer, radius, self.attack.norm)
                if x_train is not None:
                    known["x_train"] = x_train
            known["target"] = self._target(stage, known, "train", contract)
        return known

    def _update(
        self, known: Mapping[str, Any], stage: Stage, network: Network, contract: Contract
    ) -> tuple[Outcome, Mapping[str, Tensor]]:
        """Train mode: v, the loss at theta+v, and its gradient in `.grad`, all of it finite. Returns loss and v."""
        update = Update(network, stage, known, self.runs, contract)
        shift: Mapping[str, Tensor] = {}
        with mode(self.model, training=True), torch.enable_grad():
            if owner := stage.owner("weight_perturbation"):
                params = {name: p.detach() for name, p in network.params.items() if p.requires_grad}
                gradient_at = update.gradient_at(owner.plugin.name)
                with torch.no_grad():
                    answer = self._ask(owner, params=params, gradient_at=gradient_at)
                shift = contract.shift(owner.plugin.name, answer, params)
            outcome = self.objective(update, shift, samples=len(known["batch"].y))
            if not outcome.loss.requires_grad:
                raise HookContract(
                    f"The loss ({', '.join(stage.terms)}) has no gradient, so nothing would be learnt; "
                    "return terms that depend on the logits, undetached."
                )
            self._forget_gradients()
            outcome.loss.backward()
        self._stop_if_not_finite(known["attack"], outcome)
        with torch.no_grad():
            for answer in stage.answers["observe_update"]:
                answer(update.arguments(answer, outcome.logits))
        return outcome, shift

    # ------------------------------------------------------------------ one question each

    def _ask(self, answer: Answer, **known: Any) -> Any:
        """What a plugin did not demand it does not see, whoever else had it computed."""
        needs = self.composition.at(self.state.epoch).demands.get((answer.hook, answer.plugin.name), frozenset())
        hidden: dict[str, Any] = {
            name: None for name in ("clean_logits", "success") if name in known and name not in needs
        }
        return answer({**known, **hidden, "run": self.runs[answer.plugin.name]})

    def _budget(self, stage: Stage, known: Mapping[str, Any], contract: Contract) -> Budget:
        if owner := stage.owner("perturbation_budget"):
            budget = self._ask(owner, **known)
            return contract.budget(owner.plugin.name, "perturbation_budget", budget)
        eps = known["batch"].x.new_full((len(known["batch"].y),), self.attack.eps)
        return Budget(attack=eps, label=eps)

    def _scale(self, answers: Sequence[Answer], known: Mapping[str, Any], contract: Contract) -> BudgetScale:
        total = BudgetScale()
        for answer in answers:
            scale = contract.scale(answer.plugin.name, self._ask(answer, **known))
            total = BudgetScale(total.radius * scale.radius, total.step_size * scale.step_size)
        return total

    def _target(self, stage: Stage, known: Mapping[str, Any], phase: str, contract: Contract) -> Tensor:
        """One-hot labels (B, K), through the chain of `target_label`."""
        target = F.one_hot(known["batch"].y, self.state.num_classes).to(self.state.dtype)
        for answer in stage.answers["target_label"]:
            rows = self._ask(answer, **{**known, "target": target, "phase": phase})
            target = contract.target(answer.plugin.name, rows)
        return target

    def _attacked(
        self,
        stage: Stage,
        known: Mapping[str, Any],
        scale: BudgetScale,
        network: Network,
        contract: Contract,
    ) -> AttackResult:
        batch, budget, radius, target = known["batch"], known["budget"], known["radius"], known["target"]
        owner = stage.owner("attack_objective")
        objective: Callable[[Tensor], Tensor] = (
            contract.objective(owner.plugin.name, self._ask(owner, **known))
            if owner
            else lambda logits: soft_cross_entropy(logits, target)
        )
        inner = stage.owner("inner_attack")
        model = network.attacked(inner.plugin.name if inner else CORE, self.attack.mode == "train")
        observe = self._observer(stage.answers["attack_step"], batch, contract)
        if inner:
            if budget.step_size is not None or budget.steps is not None:
                raise HookConflict(
                    f"Plugin {self.composition.owner('perturbation_budget')} sets steps or step sizes per sample, but "
                    f"the inner attack {inner.plugin.name} has its own; leave one of them out."
                )
            self.runs[inner.plugin.name]._observe = observe
            with torch.enable_grad():
                result = self._ask(inner, **known, model=model, objective=objective)
            return contract.attack(inner.plugin.name, result, radius, self.attack.norm)
        if self.attack.steps == 0:
            return AttackResult(batch.x)
        ball = NORMS[self.attack.norm](batch.x, radius)
        step_size = budget.step_size if budget.step_size is not None else torch.full_like(radius, self.attack.step_size)
        return pgd(
            model,
            ball,
            start(ball, self.attack.init, lambda: self._draws("start", batch)),
            objective,
            steps=self.attack.steps,
            step_size=step_size * scale.step_size,
            limit=budget.steps,
            observe=observe,
        )

    def _observer(self, answers: Sequence[Answer], batch: Batch, contract: Contract) -> Callable[..., Tensor] | None:
        """The `attack_step` answers as one, and-ed; None where nobody observes, so that nothing is called."""
        if not answers:
            return None

        def observe(**seen: Any) -> Tensor:
            masks = [contract.mask(answer.plugin.name, self._ask(answer, batch=batch, **seen)) for answer in answers]
            return torch.stack(masks).all(dim=0)

        return observe

    def notify(self, hook: str, active_in: int | None = None, **known: Any) -> None:
        """Tell everybody who answers a NOTIFY hook, or only those who are active in an epoch."""
        answers = self.composition.answers if active_in is None else self.composition.at(active_in).answers
        for answer in answers[hook]:
            self._ask(answer, **known)

    # ------------------------------------------------------------------ checks and bookkeeping

    def _batch(self, x: Tensor, y: Tensor, index: Tensor, epoch: int, occurrence: Tensor | None) -> Batch:
        rows = len(x)
        if (
            not rows
            or (y.shape, index.shape) != ((rows,), (rows,))
            or (y.dtype, index.dtype) != (torch.int64, torch.int64)
        ):
            raise OptionError(
                f"A step takes x (B, C, H, W), y (B,) and index (B,), the last two int64; got {tuple(x.shape)}, "
                f"{tuple(y.shape)} {y.dtype} and {tuple(index.shape)} {index.dtype}."
            )
        if x.dtype != self.state.dtype:
            raise OptionError(f"x is {x.dtype} and the model {self.state.dtype}; convert x.")
        if epoch < 0:
            raise OptionError(f"epoch = {epoch} must be 0 or more.")
        if torch.is_autocast_enabled(x.device.type):
            raise OptionError("Mixed precision is not supported yet; call the step outside torch.autocast.")
        if epoch != self.state.epoch:
            self.state.epoch, self.state.step = epoch, 0
        return Batch(x, y, index, torch.zeros_like(index) if occurrence is None else occurrence)

    def _fits(self, batch: Batch, classes: int) -> None:
        """Values of a batch, where they are checked: mistakes that would train, but not what was meant."""
        x, index = batch.x, batch.index
        if not bool(((x >= 0) & (x <= 1)).all()):
            raise OptionError("x leaves [0, 1]; pass images in [0, 1] and normalise them inside the model.")
        if not bool(((index >= 0) & (index < self.state.num_samples)).all()):
            raise OptionError(
                f"index leaves 0..{self.state.num_samples - 1}; pass each sample's place in the training set."
            )
        if not bool(((batch.y >= 0) & (batch.y < classes)).all()):
            raise OptionError(f"y leaves 0..{classes - 1}, the classes of the model's {classes} logits.")
        visits = torch.stack([index, batch.occurrence], dim=1)
        if len(torch.unique(visits, dim=0)) != len(index):
            raise OptionError("index names a sample twice in a batch; number its visits with `occurrence`.")

    def _classes(self, x: Tensor) -> int:
        """K, from one eval forward of one image before the first step."""
        if not self.state.num_classes:
            with own_generator(self.state.device), mode(self.model, training=False), torch.no_grad():
                self.state.num_classes = checked_logits(self.model(x[:1]), 1).shape[1]
        return self.state.num_classes

    def _seed(self, label: str) -> int:
        return derive_seed(self.state.seed, CORE, "model", f"{self.state.step} {label}", self.state.epoch)

    def _draws(self, purpose: str, batch: Batch) -> Draws:
        key = derive_key(self.state.seed, CORE, purpose, "attack", self.state.epoch)
        return Draws(key, batch.index, batch.occurrence)

    def _stop_if_not_finite(self, attack: AttackResult, outcome: Outcome) -> None:
        """Before the update. One synchronisation a step."""
        what = not_finite(self.model, attack, outcome)
        if what is not None:
            self._forget_gradients()
            raise NonFinite(
                f"NaN or Inf in {what} at epoch {self.state.epoch}, step {self.state.step}. The step was not applied; "
                "lower optimizer.lr or look at the options of the plugins in this run."
            )

    def _forget_gradients(self) -> None:
        """Those of parameters that the optimizer does not have, too: they would add up."""
        self.optimizer.zero_grad(set_to_none=True)
        self.model.zero_grad(set_to_none=True)

    def _as_declared(self, stage: Stage, passes: Mapping[str, Passes]) -> None:
        for phase, ran in passes.items():
            if ran != stage.passes[phase]:
                hook = "inner_attack" if phase == "attack" else "weight_perturbation"
                owner = stage.owner(hook)
                who = f"Plugin {owner.plugin.name}" if owner else f"The plugins {', '.join(self.runs)}"
                raise HookContract(
                    f"{who} ran other passes than declared: {ran.as_dict()} in the {phase} phase, where the plan says "
                    f"{stage.passes[phase].as_dict()}. Declare them in Plugin.passes or Plugin.detached."
                )
