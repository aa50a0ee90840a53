"""Forwards and input gradients of a loss term's own: run at the weights under the loss, in its mode, and booked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..arguments import refuse_inference
from ..bits import overwrite
from ..generators import generators, put_back
from ..modules import frozen
from ..run import RunState
from ..types import Objective
from .auxiliary import auxiliary_logits
from .by_row import a_goal
from .network import Network
from .probe import by_autograd_alone
from .twice import refuse_once_differentiable


@dataclass(frozen=True)
class Views:
    """The services of one evaluation of the loss terms, at the parameters `moved`.

    `minimised`: whether it is the loss itself, whose forwards may move BatchNorm's statistics.
    """

    state: RunState
    network: Network
    moved: Mapping[str, Tensor]
    minimised: bool
    stage: int
    """Its id."""
    statistics: dict[str, Tensor] = field(default_factory=dict)
    """Buffers as forwards have moved them; the model gets them when the term is known, as hooks only borrow it."""
    turns: Counter[str] = field(default_factory=Counter)

    def forward(self, plugin: str, x: Tensor, gradient: bool, statistics: bool) -> Tensor:
        """`Run.forward`, for `plugin`."""
        if gradient:
            refuse_inference(plugin, "run.forward")
        moves = statistics and self.minimised
        if moves and not self.statistics:
            self.statistics.update({name: buffer.clone() for name, buffer in self.network.model.named_buffers()})
        params = {**self.moved, **self.statistics} if moves else self.moved
        with torch.set_grad_enabled(gradient):
            return self._logits(plugin, "forward", x.detach(), params, "full_backward", moves)

    def auxiliary(self, plugin: str, name: str, x: Tensor) -> Tensor:
        """A net of `Run.module`, for `plugin`."""
        return auxiliary_logits(self.state, self.network, "update", plugin, name, x)

    def input_gradient(self, plugin: str, x: Tensor, loss: Objective, create_graph: bool) -> Tensor:
        """`Run.input_gradient`, for `plugin`."""
        refuse_inference(plugin, "run.input_gradient")
        goal = a_goal(plugin, "the loss of run.input_gradient", loss)
        leaf, ledger = x.detach().requires_grad_(), self.network.ledger
        fixed = {name: p.detach() for name, p in self.moved.items()}
        # A net that computes a part again in the backward takes its own parameters there, so these are frozen for both.
        scope = self.network.engine.twice_differentiable() if create_graph else frozen(self.network.model)
        with torch.enable_grad(), scope, by_autograd_alone(self.network.params, plugin):
            values = goal(self._logits(plugin, "input gradient", leaf, self.moved if create_graph else fixed, ""))
            (gradient,) = torch.autograd.grad(values.sum(), leaf, create_graph=create_graph)
            if create_graph and self.network.careful and (self.stage, plugin) not in self.network.engine.twice:
                self.network.engine.twice.add((self.stage, plugin))
                refuse_once_differentiable(self.network.model, x, plugin)
        ledger.backward("update", "input_backward")
        if gradient.requires_grad:
            gradient.register_hook(lambda _: ledger.backward("update", "full_backward"))  # type: ignore[no-untyped-call]
        return gradient

    def _logits(
        self, plugin: str, what: str, x: Tensor, params: Mapping[str, Tensor], backward: str, moves: bool = False
    ) -> Tensor:
        label = f"{what} of {plugin}"
        self.turns[label] += 1
        turn = self.turns[label] - 1
        before = generators()  # what the net draws is not the plugin's: the core seeds it anew for every forward
        try:
            return self.network.forward(
                "update", label, [plugin], x, params=params, moves_statistics=moves, backward=backward, turn=turn
            )
        finally:
            put_back(before)


@contextmanager
def viewed(
    state: RunState, network: Network, moved: Mapping[str, Tensor], minimised: bool, stage: int
) -> Iterator[None]:
    """The scope in which loss terms may look at the net."""
    before, views = state.viewing, Views(state, network, moved, minimised, stage)
    state.viewing = views
    try:
        yield
    finally:
        state.viewing = before
    with torch.no_grad():
        for name, buffer in network.model.named_buffers() if views.statistics else ():
            overwrite(buffer.data, views.statistics[name])  # unseen, as BatchNorm itself: graphs are alive
