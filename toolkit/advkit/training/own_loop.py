"""`Step`: adversarial training inside a loop of one's own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import a_whole_number, checked
from ..claims import beyond, finite_of
from ..compose.registration import HOOKS
from ..config.layer import Layer, PluginChoice
from ..config.request import merged
from ..config.resolve import resolve
from ..errors import HookConflict, OptionError, ResumeMismatch
from ..modes import refuse_resting
from ..modules import own_generator, placement
from ..run import RunState
from .accumulate import together
from .compiled import of_the_users, without_wrapper
from .finite import Judged
from .given import a_batch, an_epoch
from .lent_loss import gradients_apart, lent, refuse_no_grad, standing_in
from .objective import Update
from .panel import Panel
from .shift import elsewhere
from .step import TrainingStep
from .step_report import Report
from .sums import read
from .undo import Kept
from .unfit import refuse_unfit
from .visits import AGAIN, Visits
from .workshop import Workshop

USED = {
    "optimizer": ("schedule", "milestones"),  # for plugins that wait for the decay of the rate
    "run": ("seed", "epochs", "precision", "matmul", "accumulate", "batchnorm", "check_hooks"),
    "checkpoint": ("max_bytes",),
    "data": (),
    "model": (),
    "validation": (),
}
"""Of the sections that a Step does not take as a whole, the settings that it uses."""

INSTEAD = {"run.memory_format": "call model.to(memory_format=...)", "run.compile": "pass torch.compile(model)"}


def refuse_unused(key: str) -> None:
    """OptionError for a setting that would change nothing in a Step."""
    section, _, name = key.partition(".")
    if name in USED.get(section, (name,)):
        return
    if instead := INSTEAD.get(key):
        raise OptionError(f"A Step takes the model as it is; {instead}, without the setting.")
    if section == "optimizer":
        raise OptionError(f"A Step takes the optimizer and its rates as they are; set {key} in the loop.")
    raise OptionError(f"A Step has no use for {key}, since model, batches and loop are yours; leave it out.")


def _refuse_unawaited(key: str, asked: Callable[..., object]) -> None:
    """OptionError for a setting of the decays of the rate, where the run is the same without them."""
    try:
        asked(decays_known=False)
    except OptionError:  # an option of a plugin is relative to a decay
        return
    raise OptionError(
        f"No plugin of this Step waits for a decay of the learning rate, so {key} would change nothing; leave it out."
    )


class Step(TrainingStep):
    """`report = step(x, y, index, epoch=e)`: one attack and one update of `model` by `optimizer`.

    Or `step.loss(x, y, index, epoch=e).backward()`, with an update that is yours, and `step.updated()` after it.

    Args:
        model: any module from images (B, C, H, W) in [0, 1] to logits (B, K); normalise inside it. It may be compiled.
        optimizer: any torch optimizer over the model's parameters that steps on gradients; None for `loss` alone.
        plugins: names of installed plugins, plugin classes or instances, in any order.
        num_samples: N; every `index` is below it.
        num_classes, image_shape: K and (C, H, W), for plugins that keep state of such a shape.
        options: {"cat-eps": {"eta": 0.005}}, by plugin.
        settings: {"attack.steps": 10, "attack.init": "uniform"}, as `advkit train --set`.
        eps, seed: short for the settings attack.eps and run.seed.
        no_companion: hooks whose companions are declined.

    Raises OptionError, HookConflict and their relatives before anything runs; NonFinite from a step whose loss or
    gradients are not finite: parameters, buffers and per-sample state are then as they were.
    """

    @checked("model", "optimizer", "num_samples", "num_classes")
    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        plugins: str | Iterable[PluginChoice] = (),
        *,
        num_samples: int,
        num_classes: int | None = None,
        image_shape: Sequence[int] | None = None,
        options: Mapping[str, Mapping[str, object]] | None = None,
        settings: Mapping[str, object] | None = None,
        eps: float | str | None = None,
        seed: int | None = None,
        no_companion: Iterable[str] = (),
    ) -> None:
        short = {"attack.eps": ("eps", eps), "run.seed": ("seed", seed)}
        typed = {key: value for key, value in short.items() if value[1] is not None}
        given = merged(settings or {}, typed, "settings {key} = {value}")
        own = {"model.name": "python:model", "data.name": "python:data"}
        layer = Layer("python", own | given, options or {})
        long, decays = "run.epochs" in given, "optimizer.milestones" in given
        asked = partial(resolve, plugins, [layer], no_companion=no_companion, epochs_known=long)
        resolved = asked(decays_known=long and decays)
        for key in sorted(given):
            refuse_unused(key)
        if rates := [key for key in sorted(given) if key.startswith("optimizer.")]:
            _refuse_unawaited(rates[0], asked)
        for hook, spec in HOOKS.items():
            if spec.asked_by == "loop" and (owners := resolved.composition.owners(hook)):
                raise HookConflict(
                    f"Plugin {owners[0]} answers {hook}, which only advkit.train asks; "
                    "train with advkit.train, or leave the plugin out."
                )
        own_compiled, model = of_the_users(model), without_wrapper(model)
        self._whole, steps = optimizer is not None, standing_in(model) if optimizer is None else optimizer
        refuse_unfit(model, steps)  # type: ignore[arg-type]  # before the plugins are taken
        samples = a_whole_number("num_samples", num_samples, 1, 2**31 - 1)
        state = RunState(resolved.run.seed, samples, resolved.attack, *placement(model))
        if num_classes is not None:
            state.num_classes = a_whole_number("num_classes", num_classes, 2, 2**31 - 1)
        if image_shape is not None:
            state.image_shape = tuple(
                a_whole_number("a size of image_shape", size, 1, 2**31 - 1) for size in image_shape
            )
        super().__init__(model, steps, Panel(resolved.composition, state), resolved.run)  # type: ignore[arg-type]
        self.agreement.without_checkpoints(resolved)
        self.engine.compiled, self._unseen = own_compiled, own_compiled is not None
        state.building = Workshop(resolved, model, state, self.warn)
        self.panel.notify("setup", model=model)
        self._visits = Visits(samples if state.samples else 0, self.state.device, resolved.run.epochs if long else None)
        self._updates: Sequence[Update] = ()
        self._found: Kept | None = None
        """What the last loss found, for `again`; None where no loss was."""
        self._lending = False
        self._lent: int | None = None
        """The epoch of losses that no update has followed yet, as far as is told."""

    def __call__(self, x: Tensor, y: Tensor, index: Tensor, *, epoch: int, occurrence: Tensor | None = None) -> Report:
        """Attack x (B, C, H, W) with labels y (B,), then update the model.

        `index` (B,) int64 is each sample's place in the training set. `occurrence` (B,) counts earlier visits of
        an index in this epoch; leave it out where every index comes once.
        """
        if not self._whole:
            raise OptionError("This Step has no optimizer; pass one, or take step.loss(...) and update by yourself.")
        self._updates, self._found = (), None  # `again` is of a loss, and a call is none
        with self._counted(x, y, index, epoch, occurrence) as number:
            return super().__call__(x.clone(), y, index, epoch=number, occurrence=occurrence)  # x is its caller's

    def loss(self, x: Tensor, y: Tensor, index: Tensor, *, epoch: int, occurrence: Tensor | None = None) -> Tensor:
        """The loss () after an attack on x; arguments as those of a call. Nothing is updated: that is yours.

        Its `backward` adds the gradients of the loss, known already, to `.grad`, scaled as you scale the loss; it has
        no gradient of second order. `report` has the step's figures. Raises HookConflict where a plugin lets the
        optimizer step elsewhere than at the weights.
        """
        if perturber := elsewhere(self.panel.composition.at(an_epoch(epoch))):
            raise HookConflict(
                f"Plugin {perturber} lets the optimizer step at theta+v, and step.loss leaves that step to you; choose "
                "another option of it, or call the step."
            )
        return lent(*self._lent_loss(x, y, index, epoch, occurrence))

    def _lent_loss(
        self, x: Tensor, y: Tensor, index: Tensor, epoch: int, occurrence: Tensor | None
    ) -> tuple[Tensor, dict[nn.Parameter, Tensor]]:
        refuse_no_grad()
        refuse_resting(self.model)
        if isinstance(x, Tensor) and x.requires_grad:
            raise OptionError(
                "x requires a gradient, and step.loss(...) gives none to the images or to what made them; pass "
                "x.detach()."
            )
        with (
            self._counted(x, y, index, epoch, occurrence) as number,
            gradients_apart(self.model, self.optimizer) as gradients,
        ):
            self._untold(number)
            self._updates, self._lending = (), True
            try:
                with self.computed(x.clone(), y, index, number, occurrence) as (_, updates, _):
                    pass
            finally:
                self._lending = False
            self._updates = updates
        self._lent = number
        assert self.report is not None
        return self.report.loss, gradients

    def _update(self, known: Mapping[str, Any], updates: Sequence[Update]) -> Judged:
        if self._lending:
            self._found = Kept(self.model, self.state, updates[0].shares.index)
        return super()._update(known, updates)

    def again(self) -> Tensor:
        """The loss of the same images under the same attack, at the weights as they are now: for closures.

        Plugins and buffers are for it what they were for that loss, and then as they are: BatchNorm's running
        statistics and what plugins keep stay.
        """
        refuse_no_grad()
        if not self._updates or self._found is None or self.report is None:
            raise OptionError("step.again() is the loss of the last step.loss(...) at other weights; take that first.")
        state, now = self.state, Kept(self.model, self.state, self._updates[0].shares.index)
        epoch, step = state.epoch, state.step
        self._found.put_back()
        self.seek(self.report.epoch, self.report.step)  # the net draws what it drew
        try:
            with (
                gradients_apart(self.model, self.optimizer) as gradients,
                own_generator(state.device),
                self.engine.numbers(),
            ):
                judged = super()._update(together([update.known for update in self._updates]), self._updates)
                judged.refuse(state, *read([judged.flags]))
        finally:
            self.seek(epoch, step)
            now.put_back()
        return lent(judged.outcome.loss.detach(), gradients)

    def updated(self) -> None:
        """Tell the plugins that you have updated the weights (`after_update`): after every step of your optimizer."""
        self._lent = None
        self.panel.notify("after_update", model=self.model)

    def _untold(self, epoch: int | None = None) -> None:
        """OptionError where an epoch has ended with losses and without a word of an update to those who wait for it."""
        waiting = [] if self._lent in (None, epoch) else self.composition.owners("after_update")
        if waiting:
            before, self._lent = self._lent, None
            raise OptionError(
                f"Plugin {waiting[0]} waits for every update (after_update), and epoch {before} ended without "
                "step.updated(); call it after each optimizer.step()."
            )

    @contextmanager
    def _counted(self, x: Tensor, y: Tensor, index: Tensor, epoch: int, occurrence: Tensor | None) -> Iterator[int]:
        """The scope of a step, which counts its visits; the epoch's number."""
        batch = a_batch(x, y, index, occurrence, self.model, self.state, self.ranks.size > 1)
        seen, visits = batch.occurrence, self._visits
        epoch = an_epoch(epoch)
        if epoch != visits.epoch:
            for caution in visits.begin(epoch):
                warnings.warn(caution, stacklevel=4)
        if self.care.always and self.state.samples and visits.fit(index, seen) and bool(visits.repeats(index, seen)):
            raise OptionError(AGAIN[0].upper() + AGAIN[1:])
        if self._unseen:
            self.engine.refuse_another(x)
            self._unseen = False
        yield epoch
        if self.state.samples:
            visits.add(index, seen)

    def close(self) -> None:
        """Tell the plugins that the run is over (`teardown`)."""
        self._untold()
        self.panel.notify("teardown")

    def state_dict(self) -> dict[str, Tensor]:
        """The plugins' state, by name: save it beside the model's and the optimizer's, for an exact resume."""
        place = torch.tensor([self.state.epoch, self.state.step])
        return self.state.stored() | {"position": place}

    def load_state_dict(self, stored: Mapping[str, Tensor]) -> None:
        """Put back what `state_dict` gave. Raises ResumeMismatch if these plugins claim other state."""
        if not isinstance(stored, Mapping) or not all(isinstance(value, Tensor) for value in stored.values()):
            raise ResumeMismatch("The stored state is no mapping of tensors; give what Step.state_dict returned.")
        position = stored.get("position")
        if (
            not isinstance(position, Tensor)
            or (position.dtype, position.shape) != (torch.int64, (2,))
            or position.min() < 0
        ):
            raise ResumeMismatch("The stored state has no position; give what Step.state_dict returned.")
        for name, (low, high) in self.state.bounds.items():
            if name in stored and beyond(stored[name], (low, high)):
                raise ResumeMismatch(
                    f"The stored {name} has a value outside of {low:g} to {high:g}; give an earlier one."
                )
        if broken := sorted(self.state.finite & stored.keys() - finite_of(stored)):
            raise ResumeMismatch(f"The stored {broken[0]} holds NaN or Inf; give an earlier one.")
        self.state.restore({name: values for name, values in stored.items() if name != "position"})
        self.seek(*position.tolist())
