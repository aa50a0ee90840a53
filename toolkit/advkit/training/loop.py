"""The training loop: data, steps, validation, metrics, checkpoints. Resuming continues it bit for bit.

All of a run's state is in its checkpoint: model, optimizer, plugins' tensors, the epoch's sums so far. Order,
augmentation, attacks and labels are functions of the seed and an address, so there is no generator to save.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..config.resolve import Resolved
from ..data.base import Splits
from ..modules import placement
from ..run import RunState
from ..storage.run_folder import Mark, RunFolder
from .chance import Chance, refuse_broken_net
from .ending import break_off, farewell, tell_plugins, written
from .engine import LAYOUTS
from .feed import Feed
from .lone import refuse_lone_of
from .meeting import met
from .meter import Meter, quantiles_of
from .panel import Panel
from .passed_net import PassedNet
from .progress import Progress, Silent, asked_to_stop
from .result import TrainResult
from .saving import Position, Writer, save
from .step import TrainingStep
from .step_report import Report
from .stored import unsaved
from .unfit import refuse_unfit_net
from .validation import not_stored, refuse_unattackable, validated, weights_of
from .visits import occurrences
from .workshop import Workshop


class Trainer:
    """One run, ready to go. `run()` trains from the current position to the end."""

    def __init__(
        self,
        resolved: Resolved,
        splits: Splits,
        model: nn.Module,
        folder: RunFolder | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.resolved, self.splits, self.folder = resolved, splits, folder
        self.progress: Progress = Silent() if progress is None else progress
        self.device = torch.device(resolved.run.device)
        refuse_unfit_net(model, loaded=True)
        self.model = model.to(self.device).to(memory_format=LAYOUTS[resolved.run.memory_format])
        self.optimizer = resolved.optimizer.build(self.model)
        state = RunState(resolved.run.seed, len(splits.train), resolved.attack, *placement(self.model))
        state.first = 1
        self.panel = Panel(resolved.composition, state)
        self.feed = Feed(resolved, splits, self.panel)
        self.step = TrainingStep(self.model, self.optimizer, self.panel, resolved.run)
        self.passed = PassedNet.of(resolved.model_name, self.model, splits.train.shape)
        self.step.warn, self.unsaved, self.ranks = self.progress.warn, unsaved(self.model), self.step.ranks
        met(self.ranks, resolved, splits, len(self.feed.training))
        self.global_step, self.metrics, self.stopped = 0, Mark(), ""
        self.best: dict[str, Any] | None = None
        self._evaluated: Mapping[str, Tensor] | None = None
        self.meter, self.chance, self.writer = Meter(self.step.engine), Chance(), Writer()
        self.step.engine.compile((self.feed.rows, *splits.train.shape), self.progress.warn)
        self.history: list[dict[str, Any]] = []
        state.building = Workshop(resolved, self.model, state, self.progress.warn, splits.train, self.feed.rows)
        self.panel.notify("setup", model=self.model)
        refuse_lone_of(self)
        refuse_unattackable(self)

    # ------------------------------------------------------------------ the run

    @property
    def position(self) -> Position:
        """Where the run is."""
        state = self.panel.state
        return Position(state.epoch, state.step, self.global_step, self.best, *self.metrics, self.stopped)

    @property
    def finished(self) -> bool:
        """Whether every epoch is done, or a plugin has ended the run."""
        return bool(self.stopped) or self.panel.state.epoch >= self.resolved.run.epochs

    def run(self) -> TrainResult:
        """Train to the end; on any failure the last checkpoint stays as it was."""
        self.progress.begin(self)
        try:
            while not self.finished:
                self._epoch()
            written(self)
        except BaseException as error:
            break_off(self, error)
            raise
        self.panel.notify("teardown")
        return self.result()

    def result(self) -> TrainResult:
        """What there is after the last epoch."""
        folder = self.folder.path if self.folder else None
        averaged = self.evaluated() if self._evaluated is None else self._evaluated
        return TrainResult(self.model, self.history, self.best, folder, self.stopped, averaged)

    def _epoch(self) -> None:
        state = self.panel.state
        batches = self.feed.batches(state.epoch)
        refuse_lone_of(self, batches)
        state.epoch_steps = len(batches)
        if state.step == 0:
            self.panel.notify("epoch_start", epoch=state.epoch)
        turns = list(zip(batches, occurrences(batches), strict=True))
        while state.step < len(batches):
            for group in self.optimizer.param_groups:
                group["lr"] = self._rate(state.step)
            report = self.one_step(*turns[state.step], *turns[state.step + 1 : state.step + 2])
            self.meter.add(report)
            self.global_step += 1
            self.progress.stepped(self, report)
            stop = self.ranks.stop(asked_to_stop(self.progress))
            if stop or self.global_step % self.resolved.checkpoint.every_steps == 0:
                save(self)
            if stop:
                raise stop(farewell(self))
        self._end_epoch()

    def one_step(self, index: Tensor, occurrence: Tensor | None = None, following: tuple[Tensor, ...] = ()) -> Report:
        """Attack and update on the images of `index` (b,); counts nothing and saves nothing. `following` come next."""
        seen = torch.zeros_like(index) if occurrence is None else occurrence
        index, seen = self.ranks.share(index), self.ranks.share(seen)
        x, y, index = self.feed.images(index, seen)
        if following:
            self.feed.begin(*map(self.ranks.share, following))
        x = self.step.engine.laid_out(x)
        return self.step(x, y, index, epoch=self.panel.state.epoch, occurrence=seen.to(self.device))

    def _rate(self, step: int) -> float:
        state = self.panel.state
        return self.resolved.optimizer.lr_at(state.epoch, self.resolved.run.epochs, step, state.epoch_steps)

    def _end_epoch(self) -> None:
        epoch = self.panel.state.epoch
        if epoch + 1 == self.resolved.run.epochs:
            refuse_broken_net(self, not_stored(self))
        self.meter.lap()
        self._evaluated = evaluated = self.evaluated()
        row: dict[str, Any] = {
            "epoch": epoch,
            "lr": self._rate(self.panel.state.step - 1),  # the last step's
            **self.meter.row(self.resolved.attack.steps),
            "state": quantiles_of(self.panel.state.samples, self.feed.training),
            "validation": self.ranks.told(validated(self, epoch, evaluated)),
        }
        self.chance.stood_still(self.progress, epoch, row["zero_gradient_share"], self.resolved.composition)
        chosen = row["validation"]["selected"] if row["validation"] else None
        if self.selecting_split() is None:
            row["best"] = True  # nothing chooses: the last epoch is the one to take
        else:
            row["best"] = chosen is not None and (self.best is None or chosen > self.best["selected"])
        tell_plugins(self, row, {"epoch": epoch, "selected": chosen, "split": self.selecting_split()})
        self.stopped = self.ranks.told(self.stopped)
        row["figures"], self.panel.state.figures = self.panel.state.figures, {}
        self.meter.lap()
        row["seconds"] = {name: round(value, 3) for name, value in self.meter.seconds.items()}
        self.history.append(row)
        if self.folder:
            self.metrics = self.folder.append_metrics(row, self.metrics)
        self.step.seek(epoch + 1)
        self.meter = Meter(self.step.engine)
        save(self, evaluated)
        self.progress.finished_epoch(row)
        if self.folder and (remembers := self.step.care.memory.caution()):
            self.progress.warn(remembers)
        if self.stopped:
            self.progress.warn(self.stopped)

    def selecting_split(self) -> str | None:
        """The images that choose `best`: "validation", "test", or None where nothing does."""
        if self.resolved.validation.split == "test":
            return "test"
        return "validation" if len(self.feed.validation) else None

    def evaluated(self) -> Mapping[str, Tensor]:
        """The weights that would be evaluated, where they are not the model's own."""
        owner = self.panel.stage.owner("evaluation_weights")
        if owner is None:
            return {}
        return weights_of(owner.plugin.name, self.panel.ask(owner, {"model": self.model}), self.model.state_dict())

    def go_on_from(self, stored: Mapping[str, Any]) -> None:
        """Stand where a checkpoint's position says."""
        at = Position(**stored)
        self.global_step, self.best = at.global_step, at.best
        self.metrics, self.stopped = Mark(at.metrics_size, at.metrics_crc), at.stopped
        self.step.seek(at.epoch, at.step)
