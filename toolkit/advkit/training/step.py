"""One step of adversarial training, as data flowing down: batch, budget, attack, target, shift, loss, update."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..compose.stage import Stage
from ..explained import explained
from ..inventory import Inventory
from ..modes import begin_training
from ..modules import frozen, mode, own_generator
from ..plugin import CORE
from ..rng import derive_seed
from ..settings import RunSettings
from ..types import Batch
from .accumulate import backward, parts_of, summed, together
from .agreement import Agreement
from .announced import as_declared
from .attacker import Attacker
from .by_itself import hooks_told_apart
from .care import Care
from .contracts import Contract
from .engine import Engine
from .finite import Judged
from .given import a_batch, an_epoch, one_hot, take_step
from .ledger import Ledger
from .network import Network
from .objective import Objective, Update
from .panel import Panel
from .probe import nothing_moves
from .probes import opened
from .ranks import here
from .shift import elsewhere, moved, shift_ratio
from .step_report import Report
from .trial import due, trying
from .undo import Undo


class TrainingStep:
    """`report = step(x, y, index, epoch=e)`: one attack and one update of `model` by `optimizer`, asking `panel`.

    The only writer of the run's place, `panel.state.epoch` and `.step`. Raises NonFinite from a step whose loss or
    gradients are not finite: parameters, buffers and per-sample state are then as they were.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, panel: Panel, run: RunSettings) -> None:
        begin_training(model)
        self.model, self.optimizer, self.panel, self.accumulate = model, optimizer, panel, run.accumulate
        panel.model, self.ranks = model, here(run.batchnorm == "synchronised")
        self.agreement = Agreement(self.ranks, model, optimizer, panel, run)
        self.care = Care(model, optimizer, panel, run)
        self.engine = Engine(run, model, self.ranks.batch_norm)
        self.objective, self._undo = Objective(model), Undo(model, optimizer, panel.state)
        self.state, self.attack, self.composition = panel.state, panel.state.attack, panel.composition
        self.warn: Callable[[str], None] = partial(warnings.warn, stacklevel=5)
        self.report: Report | None = None
        """The figures of the last loss; a call returns its own, and keeps nothing."""

    def seek(self, epoch: int, step: int = 0) -> None:
        """Say where the run is: the next step is number `step` of `epoch`."""
        self.state.epoch, self.state.step = epoch, step

    def __call__(self, x: Tensor, y: Tensor, index: Tensor, *, epoch: int, occurrence: Tensor | None = None) -> Report:
        """Attack x (B, C, H, W) with labels y (B,), then update the model; arguments are those of `advkit.Step`."""
        # The update is of train mode: where a net's own train() merges weights, a mode in between would merge others.
        with mode(self.model, training=True), self.computed(x, y, index, epoch, occurrence) as (stage, updates, shift):
            at = shift if elsewhere(stage) else {}
            with moved(updates[0].network.params, at), self.care.updating(stage, self.warn):
                take_step(self.optimizer)
            self.panel.notify("after_update", model=self.model)
        report, self.report = self.report, None
        assert report is not None
        return report

    @contextmanager
    def computed(
        self, x: Tensor, y: Tensor, index: Tensor, epoch: int, occurrence: Tensor | None
    ) -> Iterator[tuple[Stage, Sequence[Update], Mapping[str, Tensor]]]:
        """A scope in which attack and loss are done and gradients in `.grad`; what was asked, and v. Then `report`."""
        some, epoch = a_batch(x, y, index, occurrence, self.model, self.state, self.ranks.size > 1), an_epoch(epoch)
        if epoch != self.state.epoch:
            self.seek(epoch)
        stage, self.engine.shape = self.panel.stage, some.x.shape[1:]
        held = Inventory.of(self.model)
        careful = self.care.begin(some, stage, held.parameters)
        batch = self.agreement.shares(some, careful, held)
        parts, updates = parts_of(some, self.accumulate, batch.most), list[Update]()
        classes, ledger = self.state.num_classes, Ledger(len(parts))
        with (
            explained(training=True, twice=self.engine.twice),
            self._undo.all_or_nothing(held, batch.index, careful, ledger.values) as judged,
            own_generator(self.state.device) as seed,
            self.panel.watching(careful, self.engine),
            hooks_told_apart(self.model) if careful else nullcontext(()) as computing,
            self.engine.numbers(),
        ):
            self.care.computing = computing if careful else self.care.computing
            for name, part in parts.items():
                drawn = partial(self._seed, seed, self.ranks.part + name)
                network = Network(self.model, self.engine, ledger, drawn, classes, careful, held.parameters)
                contract = Contract(part, classes, self.composition, self.model, ledger.values, careful)
                seen = self._attack(part, stage, network, contract, held)
                updates.append(Update(network, stage, seen, self.panel, contract, batch))
            batch.agree(self.state.samples)
            known = together([update.known for update in updates])
            judged.append(self._update(known, updates))
            outcome, shift = judged[0].outcome, judged[0].shift
            with torch.no_grad(), trying(self.state, updates[0].network, self.optimizer, batch, self.ranks) as tried:
                for answer in due(stage, self.state.step):
                    self.panel.ask_of_all(answer, batch, {**known, **outcome.logits})
                looked = self.care.ahead(stage, known, tried, updates)
            ratio = shift_ratio(shift, self.model) if shift else None  # while theta is what v was made for
            if careful:
                as_declared(stage, self.state.step, ledger.passes(), self.panel.runs)
            self.ranks.as_first([*self.model.buffers()])
            for caution in looked + self.care.cautions(stage, known, outcome.logits, {**updates[0].asked, **shift}):
                self.warn(caution)
            yield stage, updates, shift
            self.care.done(stage)
        if not (self.attack.steps or stage.owner("inner_attack")):
            known = {**known, "radius": 0 * known["radius"]}  # nothing was attacked
        self.report = self.ranks.of_all(Report.of(self.state, known, outcome, ratio, ledger), batch)
        self.seek(epoch, self.state.step + 1)

    # ------------------------------------------------------------------ the two phases

    def _attack(
        self, batch: Batch, stage: Stage, network: Network, contract: Contract, held: Inventory
    ) -> dict[str, Any]:
        """theta, no parameter gradients, the attack mode. Returns the arguments of all later hooks."""
        training, moves = self.attack.mode != "eval", self.attack.mode == "train"
        with mode(self.model, training, held.modules), torch.no_grad(), opened(self.state, network, moves) as probes:
            if owner := stage.owner("mix_batch"):
                batch = contract.mixed(owner.plugin.name, self.panel.ask(owner, {"batch": batch}))
            clean = network.judge("clean_logits", stage.attack_view, batch.x) if stage.attack_view else None
            known: dict[str, Any] = {"batch": batch, "clean_logits": clean}
            attacker = Attacker(stage, network, self.panel, contract)
            budget, scale = attacker.budget(known), attacker.scale(known)
            radius = budget.attack * scale.radius
            known |= {"budget": budget, "radius": radius}
            known["target"] = self._target(stage, known, "attack", contract)
            with (
                frozen(held.parameters.values()),
                nothing_moves(self.model, "the attack", contract.values and not moves),
            ):
                attack = attacker(known, scale)
            known |= {"attack": attack, "x_train": attack.x_adv, "success": None, "x_clean": batch.x}
            if self.composition.setting.clean_at_start:
                known["x_clean"] = contract.start(self.composition.company.owner("inner_attack"), attack)
            if stage.success:
                final = network.judge("success", stage.success, attack.x_adv)
                known["success"] = final.argmax(1) != batch.y
            if owner := stage.owner("commit_attack"):
                answer = self.panel.ask(owner, known)
                known["budget"], x_train = contract.commit(owner.plugin.name, answer, budget, radius, self.attack.norm)
                if x_train is not None:
                    known["x_train"] = x_train
            if stage.answers["target_label"]:
                known["target"] = self._target(stage, known, "train", contract)
            known["attack"] = probes.joined(known["attack"])
        return known

    def _update(self, known: Mapping[str, Any], updates: Sequence[Update]) -> Judged:
        """Train mode: v, the loss at theta+v, and its gradient in `.grad`. Returns loss and v, finite or not."""
        first, stage, batch = updates[0], updates[0].stage, updates[0].shares
        shift: Mapping[str, Tensor] = {}
        with mode(self.model, training=True), torch.enable_grad():
            if owner := stage.owner("weight_perturbation"):
                params = {name: p.detach() for name, p in first.network.params.items() if p.requires_grad}
                gradient_at = first.contract.noted(self.ranks.summed(summed(updates, owner.plugin.name)))
                with torch.no_grad():
                    answer = self.panel.ask_of_all(owner, batch, known, params=params, gradient_at=gradient_at)
                shift = first.contract.shift(owner.plugin.name, answer, params)
            outcome = backward(self.objective, updates, shift, partial(self._forget, first.network.params))
        self.ranks.add_gradients(self.model)
        self.care.learnt(first.network.params)
        self.ranks.add([outcome.loss, *outcome.raw.values(), *outcome.weighted.values()])
        return Judged.of(known, updates, shift, outcome)

    def _forget(self, params: Mapping[str, nn.Parameter]) -> None:
        """The gradients of the step before, those of parameters that the optimizer does not have too."""
        self.optimizer.zero_grad(set_to_none=True)
        for parameter in params.values():
            parameter.grad = None

    def _target(self, stage: Stage, known: Mapping[str, Any], phase: str, contract: Contract) -> Tensor:
        """One-hot labels (B, K), through the chain of `target_label`."""
        target = one_hot(known["batch"].y, self.state.num_classes).to(self.state.dtype)
        for answer in stage.answers["target_label"]:
            rows = self.panel.ask(answer, known, target=target, phase=phase)
            target = contract.target(answer.plugin.name, rows)
        return target

    # ------------------------------------------------------------------ checks and bookkeeping

    def seed_of(self, label: str) -> int:
        """What seeds the draws of the net itself in a forward of this step."""
        return derive_seed(self.state.seed, CORE, "model", f"{self.state.step} {label}", self.state.epoch)

    def _seed(self, seed: Callable[[int], None], part: str, label: str) -> None:
        seed(self.seed_of(label + part))
