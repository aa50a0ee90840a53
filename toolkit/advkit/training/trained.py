"""Nets beside the model that are trained with it, `run.module(..., optimizer=...)`: how they compute and learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import HookContract, OptionError
from ..explained import reraise
from ..generators import generators, put_back
from ..modules import mode
from ..optimizers import OptimizerSettings
from ..run import RunState
from .engine import Engine
from .given import take_step
from .network import Network
from .pieces import pieces
from .shares import Whole


@dataclass(frozen=True)
class TrainedNet:
    """A net beside the model with an optimizer of its own. `store` is all of it that a checkpoint holds.

    Weights and buffers in the store are the net's own tensors. What the optimizer keeps is read from the store before
    every update and written to it after, so that a step that is undone, and a resume, find what was there. Of which
    parameters it keeps something yet the store says too: it begins with the first gradient of each.
    """

    name: str
    engine: Engine
    source: str
    settings: OptimizerSettings
    epochs: int
    store: dict[str, Tensor] = field(default_factory=dict)
    devices: dict[str, torch.device] = field(default_factory=dict)
    """Of what the optimizer keeps, by PARAMETER/KEY: counts of steps stay on the CPU."""

    def __post_init__(self) -> None:
        name = self.name
        self.store.update({f"{name}/weights/{key}": value.detach() for key, value in self.values.items()})
        for parameter, kept in self.settings.keeps(self.trained).items():
            for key, value in kept.items():
                self.devices[f"{parameter}/{key}"] = value.device
                self.store[f"{name}/optimizer/{parameter}/{key}"] = torch.zeros_like(value)
        self.store[f"{name}/begun"] = torch.zeros(len(self.trained), dtype=torch.bool)  # read in every update
        self.store[f"{name}/updates"] = torch.zeros((), dtype=torch.int64)

    @property
    def values(self) -> dict[str, Tensor]:
        """Parameters and buffers, by name."""
        return {**dict(self.engine.model.named_parameters()), **dict(self.engine.model.named_buffers())}

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by name."""
        return {name: p for name, p in self.engine.model.named_parameters() if p.requires_grad}

    def logits(self, network: Network, label: str, x: Tensor) -> Tensor:
        """(B, M) of images x, without gradient, in eval mode."""
        with mode(self.engine.model, training=False), torch.no_grad():
            return self._output(network, label, x)

    def learn(
        self, network: Network, x: Tensor, loss: Callable[..., Tensor], rows: Sequence[Tensor], batch: Whole, parts: int
    ) -> None:
        """Add to `.grad` the gradient of the mean over the batch of `loss`(output, *rows), (B,), in train mode.

        All arguments are of the whole batch; computed is the own share of it, in `parts`.
        """
        for at, (own, *others) in pieces(network, parts, batch.most, *map(batch.own, (x, *rows))):
            self._learn_part(at, own, loss, others, batch.count)
        if not self.taught:
            raise OptionError(
                f"{self.name}, {self.source}, gets no gradient, so it would learn nothing: its forward computes with "
                "copies of its weights (nn.Parameter(w.detach()), copy.deepcopy). Let it take its own."
            )

    def _learn_part(
        self, network: Network, x: Tensor, loss: Callable[..., Tensor], rows: Sequence[Tensor], count: int
    ) -> None:
        parameters = self.trained
        with mode(self.engine.model, training=True), torch.enable_grad():
            with blamed(self.name, self.source, x):
                output = self._output(network, f"learning {self.name}", x)
            values = loss(output, *rows)
            if not isinstance(values, Tensor) or values.shape != (len(x),) or not values.requires_grad:
                raise HookContract(
                    f"The loss of {self.name} must be ({len(x)},), one value a sample, with a gradient to its output."
                )
            gradients = torch.autograd.grad(values.sum() / count, [*parameters.values()], allow_unused=True)
        for parameter, gradient in zip(parameters.values(), gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    @property
    def taught(self) -> bool:
        """Whether there is anything to learn."""
        return any(parameter.grad is not None for parameter in self.trained.values())

    def update(self, state: RunState) -> None:
        """The optimizer's step."""
        parameters = self.trained
        optimizer = self.settings.build(self.engine.model)
        begun = self.store[f"{self.name}/begun"]
        held = dict(zip(parameters, begun.tolist(), strict=True))
        for key, device in self.devices.items():
            name, _, part = key.rpartition("/")
            if held[name]:
                optimizer.state[parameters[name]][part] = self._kept(key).to(device, copy=True)
        for group in optimizer.param_groups:
            group["lr"] = self.settings.lr_at(state.epoch, self.epochs, state.step, max(state.epoch_steps, 1))
        take_step(optimizer)
        with torch.no_grad():
            for name, parameter in parameters.items():
                for part, value in optimizer.state[parameter].items():
                    if isinstance(value, Tensor):
                        self._kept(f"{name}/{part}").copy_(value)
            begun.copy_(torch.tensor([bool(optimizer.state[parameter]) for parameter in parameters.values()]))
            self.store[f"{self.name}/updates"].add_(1)
        self.forget()
        for name, value in self.values.items():
            if value.data_ptr() != self.store[f"{self.name}/weights/{name}"].data_ptr():
                raise OptionError(
                    f"{self.name}, {self.source}, binds its buffer {name} anew in its forward, which no checkpoint "
                    "would hold; let it write in place."
                )

    def forget(self) -> None:
        """Drop what was learnt in a step that did not happen."""
        for parameter in self.trained.values():
            parameter.grad = None

    def _kept(self, key: str) -> Tensor:
        return self.store[f"{self.name}/optimizer/{key}"]

    def _output(self, network: Network, label: str, x: Tensor) -> Tensor:
        before = generators()  # what it draws is nobody else's
        try:
            output = self.engine.forward({}, x.detach(), partial(network.seed, label), network.careful)
        finally:
            put_back(before)
        if not (isinstance(output, Tensor) and output.dim() == 2 and len(output) == len(x)):
            given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise OptionError(f"it must return (B, M), a row for each image, and it returned {given}.")
        return output


def trained_nets(state: RunState) -> list[TrainedNet]:
    """Those of a run."""
    return [net for net in state.modules.values() if isinstance(net, TrainedNet)]


@contextmanager
def blamed(name: str, source: str, x: Tensor) -> Iterator[None]:
    """What a net beside the model raises on images x says whose it is."""
    try:
        yield
    except HookContract:
        raise
    except OptionError as error:
        raise OptionError(f"{name}, {source}: {error}") from None
    except Exception as error:  # of somebody's net
        reraise(error, x.shape, f"{name}, {source},")
