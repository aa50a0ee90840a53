"""A step happens or it does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.utils._pytree import tree_leaves, tree_map_only

from ..errors import HookContract, NonFinite
from ..judging import same_bits
from ..run import RunState
from .given import refuse_late


@contextmanager
def all_or_nothing(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: RunState, index: Tensor, careful: bool
) -> Iterator[None]:
    """Put weights, buffers, optimizer and plugins' state back if the scope fails, or leaves anything not finite.

    Costs a copy of the weights and of the optimizer's state. `index` (B,) are the samples whose state may change;
    `careful`: HookContract where another's does, which costs a copy of all.
    """
    before = {name: (tensor, tensor.detach().clone()) for name, tensor in _held(model, state)}
    bound = [(module, dict(module._buffers)) for module in model.modules() if not isinstance(module, ScriptModule)]
    samples = [(name, values, values[index]) for name, values in state.samples.items()]
    whole = {name: values.clone() for name, values in state.samples.items()} if careful else {}
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    steps = _copied(dict(optimizer.state))
    groups = [(group, _copied({k: v for k, v in group.items() if k != "params"})) for group in optimizer.param_groups]
    own = {id(parameter) for parameter in model.parameters()}
    others = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in own]
    beside = [(tensor, tensor.detach().clone()) for tensor in others]
    try:
        yield
        refuse_late(model, before)
        _refuse_other_rows(state, whole, index)
        rows = [(f"the per-sample state {name}", values[index], was) for name, values, was in samples]
        now = [(name, tensor, before[name][1] if name in before else None) for name, tensor in _held(model, state)]
        if what := _not_finite([*now, *rows], optimizer):
            raise NonFinite(
                f"NaN or Inf in {what} after the update of epoch {state.epoch}, step {state.step}. The step was not "
                "applied; lower optimizer.lr or look at the options of the plugins in this run."
            )
    except BaseException:
        with torch.no_grad():
            for tensor, was in (*before.values(), *beside):
                tensor.copy_(was)
        for module, buffers in bound:  # some bind theirs anew: self.m = 0.9 * self.m
            module._buffers.clear()
            module._buffers.update(buffers)
        for name, values, was in samples:
            values[index] = was
            if name in whole:
                values.copy_(whole[name])
        optimizer.state.clear()
        optimizer.state.update(steps)
        for group, rates in groups:
            group.update(rates)
        for parameter, gradient in gradients:
            if parameter.grad is not gradient:  # this step's own, which nobody may step on
                parameter.grad = None
        raise


class Kept:
    """What a loss may read and write beside parameters: the model's buffers and the plugins' state, of samples `index`.

    It costs a copy of all tensors but per-sample state, of which it takes the rows of the batch.
    """

    def __init__(self, model: nn.Module, state: RunState, index: Tensor) -> None:
        self._model, self._state, self._index = model, state, index
        self._whole = {name: value.clone() for name, value in self._named()}
        self._rows = {name: values[index] for name, values in state.samples.items()}

    def put_back(self) -> None:
        """Everything as it was, in place."""
        for name, value in self._named():
            value.data.copy_(self._whole[name])  # unseen, as BatchNorm itself: graphs of the loop may be alive
        for name, rows in self._rows.items():
            self._state.samples[name][self._index] = rows

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        """Buffers as the model has them now, since some nets bind them anew, and tensors of plugins."""
        yield from ((f"buffers/{name}", buffer) for name, buffer in self._model.named_buffers())
        yield from ((f"tensors/{name}", value.detach()) for name, value in self._state.tensors.items())


def _refuse_other_rows(state: RunState, before: Mapping[str, Tensor], index: Tensor) -> None:
    for name, was in before.items():
        now = state.samples[name].index_copy(0, index, was[index])
        if not same_bits(now, was):
            plugin, _, own = name.partition("/")
            raise HookContract(
                f"Plugin {plugin} writes its state {own} of samples that are not in the batch; write at batch.index, "
                "and nowhere else.",
                "state",
            )


def _held(model: nn.Module, state: RunState) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers(), *state.tensors.items()]


def _copied(values: dict[Any, Any]) -> dict[Any, Any]:
    """With copies of its tensors, however deep in lists and dicts they lie; what is trained stays what it is."""
    copied: dict[Any, Any] = tree_map_only(Tensor, lambda one: one if one.requires_grad else one.clone(), values)
    return copied


def _not_finite(held: list[tuple[str, Tensor, Tensor | None]], optimizer: torch.optim.Optimizer) -> str | None:
    """What is not finite and was, by name: a mask of -inf, or NaN for what is absent, may stay."""
    moments = [
        value
        for parameter, values in optimizer.state.items()
        for value in tree_leaves(values)
        if isinstance(value, Tensor) and value.device == parameter.device  # counts of steps stay on the CPU
    ]
    parts = [(name, tensor.detach(), was) for name, tensor, was in held]
    parts += [("the optimizer's state", moment, None) for moment in moments]
    floating = [part for part in parts if part[1].is_floating_point() and part[1].numel()]
    peaks = torch._foreach_norm([tensor for _, tensor, _ in floating], torch.inf)
    good = torch.stack([peak.isfinite() for peak in peaks]).tolist() if peaks else []
    for (name, tensor, was), fine in zip(floating, good, strict=True):
        if not fine and (was is None or was.shape != tensor.shape or bool((was.isfinite() & ~tensor.isfinite()).any())):
            return name
    return None
