"""What is looked at before steps are believed: the run's first, the first of every stage and some later, or all."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..bits import same_bits
from ..compose.stage import Stage
from ..errors import OptionError
from ..evaluation.edges import stuck_at_edges
from ..explained import calling
from ..hidden import Counts, Generators, unregistered
from ..modes import traced
from ..modules import mode
from ..optimizers import before_step
from ..settings import RunSettings
from ..types import Batch
from .announced import refuse_changed
from .by_itself import by_itself
from .compiled import eagerly
from .given import at_rest, first_logits, idle, refuse_strangers, refuse_stray_values, unlearnt
from .memory import Memory, by_batch
from .objective import Update
from .panel import Panel
from .probe import doubts, refuse_other_weights, standing_still
from .ranks import here
from .unfit import refuse_unfit
from .visits import all_differ

MANY = 100
"""Steps of an epoch: one that is looked at, of so many, adds a hundredth or two."""


class Care:
    """Looks at the steps of one run; with `run.check_hooks` at all that cost a synchronisation."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, panel: Panel, run: RunSettings) -> None:
        refuse_unfit(model, optimizer)
        self.model, self.optimizer, self.state = model, optimizer, panel.state
        self.always, self._parts = run.check_hooks, run.accumulate
        self._composition = panel.composition
        self._plugins, self._generators = panel.composition.plugins, dict[str, Generators]()
        self._counts = dict[str, Counts]()
        self.memory, self._idle, self._seen = Memory(model), idle(dict(model.named_parameters()), optimizer), set[int]()
        self._tried, self._shifted = set[tuple[int, str]](), set[tuple[int, str]]()
        """By stage: who looks a step ahead, and parameters that are shifted, which were looked at."""
        self._unlearnt = self._cut = ""
        """What is said of tensors of the model that ask for a gradient and are no parameters, before its first step; of
        parameters that got none in it."""
        self._judged = torch.empty(0)
        """The model's logits in eval mode before its first update, (1, K), or of the few images of a larger batch."""
        self.computing: Container[object] = ()
        """Of the model's hooks those that computed in the last step that was looked at."""

    def begin(self, batch: Batch, stage: Stage, parameters: Mapping[str, nn.Parameter]) -> bool:
        """Whether this step is looked at. Raises OptionError for a net, an optimizer or values that do not fit."""
        refuse_strangers(parameters, self.optimizer, self._idle)
        if not self._seen:
            self.memory, self._unlearnt = Memory(self.model), unregistered(self.model, self.optimizer)
            self._generators = {plugin.name: Generators(plugin, self.model) for plugin in self._plugins}
            claimed = [*self.state.samples.values(), *self.state.tensors.values()]
            self._counts = {p.name: Counts(p, self.model, claimed, len(batch.x)) for p in self._plugins}
            self._judged = first_logits(self.model, batch, self.state)
            self.state.num_classes = self._judged.shape[1]
        if self.state.image_shape and batch.x.shape[1:] != self.state.image_shape:
            raise OptionError(
                f"Images are {tuple(batch.x.shape[1:])}, and the run was set up for {self.state.image_shape}; give "
                "image_shape=(C, H, W) of those that are trained on."
            )
        careful = self.always or id(stage) not in self._seen or self._due
        if careful or not self.state.step:
            refuse_changed(self._composition, self.state.epoch)
        if careful:
            refuse_stray_values(batch, self.state.num_classes, self.state.num_samples)
        return careful

    def learnt(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """The gradients of the loss are in `.grad`. OptionError where the optimizer's parameters got none."""
        if not self._seen:
            self._cut = unlearnt(parameters, self.optimizer)

    @property
    def _due(self) -> bool:
        """Whether this step is looked at though its stage is known, since a net can become another in a stage.

        The first step of an epoch that has many, so that it costs nothing to speak of, and of every tenth epoch.
        """
        return not self.state.step and (self.state.epoch_steps >= MANY or self.state.epoch % 10 == 0)

    @property
    def _again(self) -> bool:
        """Whether gradients at other weights are looked at though those of this stage were: such a fault is silent."""
        return self.always or not self.state.step

    def cautions(
        self,
        stage: Stage,
        known: Mapping[str, Any],
        logits: Mapping[str, Tensor],
        shift: Mapping[str, Tensor],
    ) -> list[str]:
        """Of the first step of a stage, from what it knew: its attack, its update's `logits` (B, K) by view.

        `shift` is v, and for parameters that it lacks what `gradient_at` was asked about. Raises OptionError where
        gradients are not those at theta + `shift`.
        """
        with calling(known["batch"].x.shape):
            return self._cautions(stage, known, logits, shift)

    def _cautions(
        self,
        stage: Stage,
        known: Mapping[str, Any],
        logits: Mapping[str, Tensor],
        shift: Mapping[str, Tensor],
    ) -> list[str]:
        first = id(stage) not in self._seen
        if not len(known["batch"].x):  # the share of a batch that lies in other processes
            return []
        shifted = {(id(stage), name) for name in shift}
        if shift and (not shifted <= self._shifted or self._again):
            with mode(self.model, training=True):
                refuse_other_weights(self.model, *self._part(known), shift, self.computing)
            self._shifted |= shifted
        if not first:
            return []
        x, batched = known["batch"].x[: len(self._part(known)[0])], ""
        if not self._seen:
            batched, several = by_batch(self.model, x, self.computing)
            self._judged = several if len(several) else self._judged
        final, steps = logits.get("adv_logits"), self.state.attack.steps
        flat = "" if (owner := stage.owner("attack_objective")) is None else owner.plugin.name
        still = standing_still(known["attack"], known["batch"], known["radius"], final, steps, flat)
        cautions = [still, doubts(logits, self._judged)]
        if steps and known["attack"].finite is not None and bool((known["radius"] > 0).any()):
            with by_itself(self.model, self.computing), eagerly(self.model):
                cautions.append(stuck_at_edges(self.model, self.model, x, known["batch"].y[: len(x)]))
        if not self._seen:
            if self.state.building is not None:
                self.state.building.refuse_left_out(self.computing)
            cautions += [
                f"Plugin {name} draws from a generator of its own ({', '.join(moved)}), which no checkpoint holds and "
                "every batch moves on; draw from run.draws(...), which is a function of the seed and the sample."
                for name, generators in self._generators.items()
                if (moved := generators.changed())
            ]
            cautions += [
                f"Plugin {name} changes self.{' and self.'.join(changed[:3])} in a step, and no checkpoint holds that: "
                "a resumed run starts without it. Keep what later steps need in run.tensor_state(...)."
                for name, counts in self._counts.items()
                if (changed := counts.changed())
            ]
            self._generators, self._counts = {}, {}
            cautions += [
                _kept_twice(known["batch"], self.state.samples),
                at_rest(self._idle),
                self._unlearnt,
                _of_one_mode(self.model),
                self.memory.first(_several(x), self.computing) or self._cut,
                batched,
            ]
        return [caution for caution in cautions if caution]

    def _part(self, known: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Attacked images (b, C, H, W) with their targets (b, K), no more than a step computes at once."""
        most = -(-len(known["x_train"]) // self._parts)
        x = _several(known["x_train"][:most])
        return x, known["target"][:most].expand(len(x), -1)

    def ahead(
        self,
        stage: Stage,
        known: Mapping[str, Any],
        tried: Mapping[str, Mapping[str, Tensor]],
        updates: Sequence[Update],
    ) -> list[str]:
        """Cautions on who has `tried` weights, by plugin. OptionError where they were not shown the net that has these.

        HookContract where one has written into a batch of the `updates`.

        Looked at in the attack's mode, when a plugin looks ahead for the first time in a stage, and later where v is.
        """
        for update in updates:
            update.contract.lent.refuse_written()
        cautions, (_, hooks) = list[str](), before_step(self.optimizer)
        for plugin, at in tried.items() if len(known["batch"].x) else ():
            if hooks and not any(name == plugin for _, name in self._tried):
                cautions.append(
                    f"Plugin {plugin} looks a step ahead without what the optimizer calls before its step "
                    f"({', '.join(hooks)}). If that changes gradients, as clipping does, {plugin} judges weights that "
                    "the run does not reach: leave one of them out, or clip by optimizer.clip_norm in advkit.train."
                )
            if (id(stage), plugin) not in self._tried or self._again:
                shift = {name: at[name] - p.detach() for name, p in self.model.named_parameters() if name in at}
                who = f"the plugin {plugin}, which looks a step ahead"
                with mode(self.model, training=self.state.attack.mode != "eval"):
                    refuse_other_weights(self.model, *self._part(known), shift, self.computing, who)
                self._tried.add((id(stage), plugin))
        return cautions

    @contextmanager
    def updating(self, stage: Stage, warn: Callable[[str], None]) -> Iterator[None]:
        """The scope of the optimizer's step; of the first of a stage a caution where it changes no weight."""
        groups = [] if id(stage) in self._seen else self.optimizer.param_groups
        before = [(p, p.detach().clone(), group.get("lr", 1)) for group in groups for p in group["params"]]
        yield
        if any(_moves(p, rate) for p, _, rate in before) and all(same_bits(p.detach(), was) for p, was, _ in before):
            warn(
                f"The optimizer {type(self.optimizer).__name__} changed no weight in its first step, though its "
                "gradients are not zero and its rate is above 0. That is right if it waits for further steps; if its "
                "step does nothing without a closure, nothing is learnt: take one that steps on gradients, or build "
                "Step(model, None, ...) and give step.again() as that loss."
            )

    def done(self, stage: Stage) -> None:
        """A step of this stage has happened."""
        self._seen.add(id(stage))


def _of_one_mode(model: nn.Module) -> str:
    """A sentence on a net that train() and eval() do not change."""
    if not (fixed := traced(model)):
        return ""
    return (
        f"BatchNorm and dropout of the model's torch.jit graph are in {fixed} mode whatever train() and eval() say, as "
        "torch.jit.trace leaves them. If that is not meant, train the module that it was traced from, or what "
        "torch.jit.script makes of it."
    )


def _kept_twice(batch: Batch, kept: Mapping[str, Tensor]) -> str:
    """What becomes of the state of samples that come more than once in a batch, if there is any."""
    if not kept or all_differ(batch.index):
        return ""
    return (
        f"Samples come more than once in a batch: {' and '.join(kept)} is then of one of these visits, and with "
        "run.accumulate another one may count; draw batches without replacement where each visit has to count."
    )


def _several(x: Tensor) -> Tensor:
    """Images (b, C, H, W); of a share that is one image its mirror image too, since no statistics of all are taken."""
    return torch.cat([x, x.flip(-1)]) if len(x) == 1 and here().size > 1 else x


def _moves(parameter: Tensor, rate: float | Tensor) -> bool:
    """Whether a plain step changes a parameter, along its gradient and along its sign: a rate may be below rounding."""
    gradient, held = parameter.grad, parameter.detach()
    if gradient is None or not bool((gradient := gradient.to_dense()).isfinite().all()):  # NaN is refused
        return False
    return all(bool((held - rate * way != held).any()) for way in (gradient, gradient.sign()))
