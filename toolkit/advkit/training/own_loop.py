"""`Step`: adversarial training inside a loop of one's own."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ..arguments import a_whole_number, checked
from ..compose.registration import HOOKS
from ..config.layer import Layer, PluginChoice
from ..config.resolve import resolve
from ..errors import HookConflict, OptionError, ResumeMismatch
from ..modules import placement
from ..run import RunState
from .compiled import of_the_users, without_wrapper
from .given import a_batch, an_epoch, refuse_unfit
from .panel import Panel
from .step import TrainingStep
from .step_report import Report
from .visits import AGAIN, Visits


class Step(TrainingStep):
    """`report = step(x, y, index, epoch=e)`: one attack and one update of `model` by `optimizer`.

    Args:
        model: any module from images (B, C, H, W) in [0, 1] to logits (B, K); normalise inside it. It may be compiled.
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

    @checked("model", "optimizer", "num_samples")
    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        plugins: str | Iterable[PluginChoice] = (),
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
        known = {"run.epochs", "optimizer.milestones"} <= given.keys()
        resolved = resolve(plugins, [layer], no_companion=no_companion, decays_known=known)
        for key in sorted(given):
            if key.startswith("optimizer.") and key.removeprefix("optimizer.") not in ("schedule", "milestones"):
                raise OptionError(f"A Step takes the optimizer and its rates as they are; set {key} in the loop.")
        if "run.memory_format" in given:
            raise OptionError("A Step takes the model as it is; call model.to(memory_format=...), without the setting.")
        for hook, spec in HOOKS.items():
            if spec.asked_by == "loop" and (owners := resolved.composition.owners(hook)):
                raise HookConflict(
                    f"Plugin {owners[0]} answers {hook}, which only advkit.train asks; "
                    "train with advkit.train, or leave the plugin out."
                )
        if "run.compile" in given:
            raise OptionError("A Step takes the model as it is; pass torch.compile(model), without the setting.")
        own_compiled, model = of_the_users(model), without_wrapper(model)
        refuse_unfit(model, optimizer)  # before the plugins are taken
        samples = a_whole_number("num_samples", num_samples, 1, 2**31 - 1)
        state = RunState(resolved.run.seed, samples, resolved.attack, *placement(model))
        super().__init__(model, optimizer, Panel(resolved.composition, state), resolved.run)
        self.engine.compiled = own_compiled
        self.panel.notify("setup", model=model)
        self._visits = Visits(samples, self.state.device)

    def __call__(self, x: Tensor, y: Tensor, index: Tensor, *, epoch: int, occurrence: Tensor | None = None) -> Report:
        """Attack x (B, C, H, W) with labels y (B,), then update the model.

        `index` (B,) int64 is each sample's place in the training set. `occurrence` (B,) counts earlier visits of
        an index in this epoch; leave it out where every index comes once.
        """
        seen, visits = a_batch(x, y, index, occurrence, self.state.dtype, self.ranks.size > 1).occurrence, self._visits
        epoch = an_epoch(epoch)
        if epoch != visits.epoch:
            if self.state.samples and bool(visits.repeated):
                warnings.warn(f"In epoch {visits.epoch}, {AGAIN}", stacklevel=2)
            visits.begin(epoch)
        if self.care.always and self.state.samples and visits.fit(index, seen) and bool(visits.repeats(index, seen)):
            raise OptionError(AGAIN[0].upper() + AGAIN[1:])
        report = super().__call__(x, y, index, epoch=epoch, occurrence=occurrence)
        visits.add(index, seen)
        return report

    def close(self) -> None:
        """Tell the plugins that the run is over (`teardown`)."""
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
            or position.dtype != torch.int64
            or position.shape != (2,)
            or position.min() < 0
        ):
            raise ResumeMismatch("The stored state has no position; give what Step.state_dict returned.")
        self.state.restore({name: values for name, values in stored.items() if name != "position"})
        self.seek(*position.tolist())
