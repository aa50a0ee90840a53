"""A step happens or it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial

import torch
from torch import Tensor, nn
from torch.jit import ScriptModule

from ..bits import overwrite, same_bits
from ..errors import HookContract, NonFinite
from ..inventory import Inventory, statistics_of
from ..run import RunState
from .finite import Judged
from .given import refuse_late
from .optimizer_state import Address, OptimizerState, begun_so, moments
from .sums import by_kind, finite, read, told
from .values import REMEDY, Values

USUAL_ERRORS = ("advkit", "builtins", "numpy", "torch")
"""Whose exceptions come of values that are not finite. One of somebody's own class passes as what it is."""


class Undo:
    """A step of `model` by `optimizer` as a whole, or nothing of it.

    Between steps it keeps room for one copy of the weights and of the optimizer's state.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: RunState) -> None:
        self._model, self._optimizer, self._state, self._room = model, optimizer, state, Room()

    @contextmanager
    def all_or_nothing(self, held: Inventory, index: Tensor, careful: bool, seen: Values) -> Iterator[list[Judged]]:
        """Put weights, buffers, optimizer and plugins' state back if the scope fails, or leaves anything not finite.

        `held` is what the model has now, `index` (B,) the samples whose state may change; `careful`: HookContract where
        another's does, which costs a copy of all. What the scope appends is refused first, and with what the update
        left: one synchronisation a step. It fails of what is not finite in `seen`, where it has appended nothing.
        """
        optimizer, state = self._optimizer, self._state
        bound = [(module, dict(module._buffers)) for module in held.modules if not isinstance(module, ScriptModule)]
        samples = [(name, values, values[index]) for name, values in state.samples.items()]
        whole = {name: values.clone() for name, values in state.samples.items()} if careful else {}
        gradients = [(parameter, parameter.grad) for parameter in held.parameters.values()]
        kept = OptimizerState(optimizer)
        named = _named(held, state) | _strangers(held, optimizer)
        tensors = [*named.values(), *kept.tensors]
        copies = self._room.copies(tensors)
        judged = list[Judged]()
        try:
            with _its_cause(judged, seen, state):
                yield judged
            now = Inventory.of(self._model)
            refuse_late(now, held)
            _refuse_other_rows(state, whole, index)
            before = dict(zip(named, copies, strict=False))
            after = _named(now, state) | _strangers(now, optimizer)
            parts = [(name, tensor, before.get(name)) for name, tensor in after.items()]
            parts += [(f"the per-sample state {name}", values[index], was) for name, values, was in samples]
            was_of = {id(tensor): copy for tensor, copy in zip(tensors, copies, strict=True)}
            earlier = {address: was_of.get(id(tensor)) for address, tensor in kept.at.items()}
            begun = partial(begun_so, optimizer, lambda: _as_before(kept, tensors, copies), tensors)
            if what := _not_finite(parts, earlier, optimizer, begun, now, judged, state):
                raise NonFinite(
                    f"NaN or Inf in {what} after the update of {state.place}. The step was not applied; {REMEDY}."
                )
        except BaseException:
            with torch.no_grad():
                _as_before(kept, tensors, copies)
            for module, buffers in bound:  # some bind theirs anew: self.m = 0.9 * self.m
                module._buffers.clear()
                module._buffers.update(buffers)
            for name, values, was in samples:
                values[index] = was
                if name in whole:
                    values.copy_(whole[name])
            for parameter, gradient in gradients:
                if parameter.grad is not gradient:  # this step's own, which nobody may step on
                    parameter.grad = None
            raise


def _as_before(kept: OptimizerState, tensors: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
    kept.put_back()
    for tensor, was in zip(tensors, copies, strict=True):
        overwrite(tensor, was)


@contextmanager
def _its_cause(judged: Sequence[Judged], seen: Values, state: RunState) -> Iterator[None]:
    """What fails after something that is not finite fails of that."""
    try:
        yield
    except Exception as error:
        with suppress(RuntimeError):  # of a device that failed
            for one, fine in zip(judged, read([one.flags for one in judged]), strict=True):
                one.refuse(state, fine)
            if not judged and type(error).__module__.partition(".")[0] in USUAL_ERRORS:
                seen.refuse(state)
        raise


class Room:
    """Memory for copies of tensors that are the same ones, but for their values, step after step."""

    def __init__(self) -> None:
        self._copies, self._groups = list[Tensor](), list[list[int]]()

    def copies(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The values as they are now, until they are asked for the next time."""
        if not self._fits(tensors):
            self._copies, self._groups = [torch.empty_like(tensor) for tensor in tensors], by_kind(tensors)
        with torch.no_grad():
            for places in self._groups:
                torch._foreach_copy_([self._copies[place] for place in places], [tensors[place] for place in places])
        return self._copies

    def _fits(self, tensors: Sequence[Tensor]) -> bool:
        return len(tensors) == len(self._copies) and all(
            copy.shape == tensor.shape and copy.dtype == tensor.dtype and copy.device == tensor.device
            for copy, tensor in zip(self._copies, tensors, strict=True)
        )


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
            overwrite(value.data, self._whole[name])  # unseen, as BatchNorm itself: graphs of the loop may be alive
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


def _named(held: Inventory, state: RunState) -> dict[str, Tensor]:
    return {**held.parameters, **held.buffers, **state.tensors}


def _strangers(held: Inventory, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimizer trains and the model does not have, by its place there."""
    own = {id(parameter) for parameter in held.parameters.values()}
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {f"parameter {place} of the optimizer": p for place, p in enumerate(trained) if id(p) not in own}


@torch.no_grad()
def _not_finite(
    parts: Sequence[tuple[str, Tensor, Tensor | None]],
    earlier: Mapping[Address, Tensor | None],
    optimizer: torch.optim.Optimizer,
    begun: Callable[[], set[int]],
    now: Inventory,
    judged: Sequence[Judged],
    state: RunState,
) -> str | None:
    """What is not finite and was, by name: a mask of -inf, or NaN for what is absent, may stay. One synchronisation.

    Statistics of a norm may not: they never come back, and train mode does not look at them. `earlier` are the tensors
    of the optimizer's state before the step; what it has made in this step may have `begun` so, as a least value does.
    """
    own = [
        ("the optimizer's state", value, earlier.get(address))
        for address, parameter, value in moments(optimizer)
        # Counts of steps stay on the CPU; what is of all parameters may have a name for a key.
        if value.device == getattr(parameter, "device", value.device)
    ]
    every = [*parts, *own]
    left = [*told([tensor for _, tensor, _ in every]).values()]
    values = read([*(one.flags for one in judged), *(flags for _, flags in left)])
    for one, fine in zip(judged, values, strict=False):
        one.refuse(state, fine)
    groups = zip(left, values[len(judged) :], strict=True)
    broken = [place for (places, _), fine in groups for place, good in zip(places, fine, strict=True) if not good]
    broken = [place for place in sorted(broken) if not finite(every[place][1])]
    made = any(place >= len(parts) and every[place][2] is None for place in broken)
    begins = begun() if made else set()
    for place in broken:
        name, tensor, was = every[place]
        if id(tensor) in begins:
            continue
        if was is None or was.shape != tensor.shape or became_broken(was, tensor):
            return name
        if any(values is now.buffers.get(name) for module in now.modules for values in statistics_of(module)):
            return name
    return None


def became_broken(was: Tensor, now: Tensor) -> bool:
    """Whether an entry is NaN or Inf that was finite, or NaN that was Inf; what was so before is a mask, or absent."""
    return bool(((was.isfinite() & ~now.isfinite()) | (now.isnan() & ~was.isnan())).any())
