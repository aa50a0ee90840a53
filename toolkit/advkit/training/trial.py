"""What `observe_update` may try and teach: the weights one step ahead, `run.ahead`, and nets that learn beside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..arguments import images, refuse_inference
from ..compose.stage import Answer, Stage
from ..errors import HookContract, OptionError
from ..optimizers import before_step
from ..run import RunState
from ..types import AttackResult, Batch
from .by_row import refuse_no_function
from .ledger import Ledger
from .lent_loss import Never
from .network import Network
from .probes import Probes, answering
from .ranks import Alone
from .shares import Whole
from .trained import TrainedNet, trained_nets


class Shared(Probes):
    """Probes of a whole batch, of which every process runs the share that it has, in `parts`."""

    def __init__(self, state: RunState, network: Network, batch: Whole, parts: int) -> None:
        super().__init__(state, network, moves=False, parts=parts * batch.processes)
        self._batch, self._share = batch, Probes(state, network, moves=False, parts=parts)

    def attack(self, plugin: str, batch: Batch, radius: Tensor | float, **how: Any) -> AttackResult:
        own = self._batch.own
        if self._batch.count != len(batch.y) or how["objective"] is not None:  # whose tensors are of the whole batch
            return super().attack(plugin, batch, radius, **how)
        share = Batch(own(batch.x), own(batch.y), own(batch.index), own(batch.occurrence))
        how["step_size"] = own(how["step_size"])
        result: AttackResult = self._batch.whole(self._share.attack(plugin, share, own(radius), **how))
        return result

    def logits(self, plugin: str, x: Tensor) -> Tensor:
        if self._batch.count != len(x):
            return super().logits(plugin, x)
        logits: Tensor = self._batch.whole(self._share.logits(plugin, self._batch.own(x)))
        return logits


@dataclass(frozen=True)
class Trial:
    """The services of `observe_update`, which is asked about the whole `batch`."""

    state: RunState
    network: Network
    optimizer: torch.optim.Optimizer
    batch: Whole
    parts: int
    """Of a share of the batch."""
    tried: dict[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """The weights one step ahead by name, by plugin that has looked."""

    @contextmanager
    def ahead(self, plugin: str) -> Iterator[None]:
        """`Run.ahead`, for `plugin`."""
        if isinstance(self.optimizer, Never):
            raise OptionError(f"Plugin {plugin} looks a step ahead, and this Step has no optimizer; pass it one.")
        if not all("lr" in group for group in self.optimizer.param_groups):
            raise OptionError(
                f"Plugin {plugin} looks a step ahead, and {type(self.optimizer).__name__} has no lr in its groups; "
                "take another optimizer, or leave the plugin out."
            )
        at = stepped(self.optimizer)
        self.network.at = self.tried[plugin] = {
            name: at[id(p)] for name, p in self.network.params.items() if id(p) in at
        }
        try:
            with answering(self.state, Shared(self.state, self.network, self.batch, self.parts)):
                yield
        finally:
            self.network.at = {}

    def learn(self, plugin: str, name: str, x: Tensor, loss: Callable[..., Tensor], rows: Sequence[Tensor]) -> None:
        """`Trained.learn`, for `plugin`."""
        net = self.state.modules[name]
        assert isinstance(net, TrainedNet)
        if not all(isinstance(value, Tensor) and value.shape[:1] == (self.batch.count,) for value in (x, *rows)):
            raise HookContract(
                f"Plugin {plugin} teaches {name} by other rows than those of the batch; pass tensors of its "
                f"{self.batch.count} samples."
            )
        refuse_inference(plugin, f"run.module ({name})")
        images(plugin, f"run.module ({name})", x, self.state.dtype)
        refuse_no_function(plugin, f"the loss of run.module ({name})", loss)
        net.learn(self.network, x, loss, rows, self.batch, self.parts)
        self.network.ledger.auxiliary("update", name, plugin)
        self.network.ledger.backward("update", "auxiliary_backward")


def stepped(optimizer: torch.optim.Optimizer) -> dict[int, Tensor]:
    """theta - lr g by the id of each parameter that has a gradient; g is clipped as the step will clip it."""
    rates = [(p, group["lr"]) for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    twins = [p.detach() for p, _ in rates]  # of the same memory, with gradients of their own
    clips, _ = before_step(optimizer)
    for twin, (p, _) in zip(twins, rates, strict=True):
        twin.grad = p.grad.clone() if clips else p.grad
    for clip in clips:
        clip.scale(twins)
    return {id(p): twin - rate * twin.grad for twin, (p, rate) in zip(twins, rates, strict=True)}


def due(stage: Stage, step: int) -> list[Answer]:
    """Who answers `observe_update` at a step of the epoch."""
    answers = zip(stage.answers["observe_update"], stage.seldom, strict=True)
    return [answer for answer, (every, _) in answers if not step % every]


@contextmanager
def trying(
    state: RunState, network: Network, optimizer: torch.optim.Optimizer, batch: Whole, ranks: Alone
) -> Iterator[Mapping[str, Mapping[str, Tensor]]]:
    """The scope in which plugins may try and teach, with the weights tried; nets that have learnt are updated after."""
    own = Network(
        network.model, network.engine, Ledger(), network.seed, network.classes, network.careful, network.params
    )
    own.phase, nets = "update", trained_nets(state)
    for net in nets:
        net.forget()
    state.trial = trial = Trial(state, own, optimizer, batch, network.ledger.parts)
    try:
        yield trial.tried
    finally:
        state.trial = None
    for net in nets:
        if net.taught:
            ranks.add_gradients(net.engine.model)
            ranks.as_first([*net.engine.model.buffers()])
            net.update(state)
    network.ledger.include(own.ledger)
