"""What an optimizer keeps from step to step, found wherever it lies, and put back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from ..bits import overwrite, same_bits

KNOWN = ("state", "param_groups", "defaults")
"""Attributes of every optimizer, which are put back apart or never change."""

PLAIN = (int, float, str, type(None))
FLAT = (Tensor, *PLAIN)


class OptimizerState:
    """An optimizer as it is now, and those inside it, such as the one that Lookahead wraps.

    Its tensors are `tensors`, which the caller copies and puts back; `put_back` does the rest: state, groups, and
    attributes (`self.count += 1`), their lists and dicts. What an object of another class keeps is not known.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._own = [*_with_inner(optimizer, set())]
        self._attributes = [(one, dict(vars(one))) for one in self._own]
        values = [value for _, held in self._attributes for name, value in held.items() if name not in KNOWN]
        held = list[Tensor]()
        self._containers = [(one, one.copy()) for one in _containers(values, set(), held)]
        self._states = [(one, {key: _emptied(values) for key, values in one.state.items()}) for one in self._own]
        self._groups = [
            (group, _copied({k: v for k, v in group.items() if k != "params"}))
            for one in self._own
            for group in one.param_groups
        ]
        self.at = {address: tensor for address, _, tensor in moments(optimizer)}
        """The tensors of its state by where they lie."""
        distinct = {id(tensor): tensor for tensor in (*self.at.values(), *held) if not tensor.requires_grad}
        self.tensors: Sequence[Tensor] = [*distinct.values()]
        """All that it may write to, but what is trained."""

    def put_back(self) -> None:
        """All but the values of `tensors`."""
        for one, attributes in self._attributes:
            vars(one).clear()
            vars(one).update(attributes)
        for container, was in self._containers:
            container.clear()
            (container.update if isinstance(container, dict | set) else container.extend)(was)
        for one, state in self._states:
            one.state.clear()
            one.state.update(state)
        for group, rates in self._groups:
            group.update(rates)


Address = tuple[int, object, object]


def moments(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Address, object, Tensor]]:
    """The tensors of an optimizer's state, however deep in lists and dicts: their place, of which parameter they are.

    The place is the number of the optimizer, of those inside it, then the parameter, and the key.
    """
    for number, one in enumerate(_with_inner(optimizer, set())):
        for owner, values in one.state.items():
            leaves = values.items() if _flat(values) else enumerate(tree_leaves(values))
            for key, leaf in leaves:
                if isinstance(leaf, Tensor):
                    yield (number, id(owner) if isinstance(owner, Tensor) else owner, key), owner, leaf


def begun_so(optimizer: torch.optim.Optimizer, before: Callable[[], None], tensors: Sequence[Tensor]) -> set[int]:
    """The ids of tensors of its state, after a step, that the signs of the gradients alone leave the same in its place.

    So it begins, and that is no overflow. That step is tried from what `before` puts back, and nothing of it stays: it
    writes to `tensors` and to what the optimizer keeps. None are known where it fails.
    """
    after, made = OptimizerState(optimizer), {place: one for place, _, one in moments(optimizer)}
    held = [*tensors, *made.values(), *after.tensors]
    values = [one.detach().clone() for one in held]
    was = {place: one.detach().clone() for place, one in made.items()}
    trained = [(p, p.grad) for group in optimizer.param_groups for p in group["params"]]
    begun = set[int]()
    try:
        before()
        for parameter, gradient in trained:
            parameter.grad = None if gradient is None else gradient.sign()
        with suppress(Exception):  # the step that was meant has told what is wrong with it
            optimizer.step()
            begun = {id(made[at]) for at, _, one in moments(optimizer) if at in made and same_bits(one, was[at])}
    finally:
        after.put_back()
        for tensor, value in zip(held, values, strict=True):
            overwrite(tensor, value)
        for parameter, gradient in trained:
            parameter.grad = gradient
    return begun


def _with_inner(optimizer: torch.optim.Optimizer, seen: set[int]) -> Iterator[torch.optim.Optimizer]:
    """It, and the optimizers among its attributes."""
    seen.add(id(optimizer))
    yield optimizer
    for name, value in vars(optimizer).items():
        if name not in KNOWN:
            for inner in value if isinstance(value, list | tuple) else (value,):
                if isinstance(inner, torch.optim.Optimizer) and id(inner) not in seen:
                    yield from _with_inner(inner, seen)


def _containers(values: Iterable[object], seen: set[int], tensors: list[Tensor]) -> Iterator[Any]:
    """The lists, dicts, sets and deques among values and inside them; beside them `tensors` gets theirs."""
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, list | dict | set | deque | tuple) and id(value) not in seen:
            seen.add(id(value))
            if not isinstance(value, tuple):
                yield value
            yield from _containers(value.values() if isinstance(value, dict) else value, seen, tensors)


def _flat(values: object) -> bool:
    """Whether it is a dict of single things, as of torch's own optimizers but LBFGS, some 100 times in a step."""
    return isinstance(values, dict) and all(isinstance(value, FLAT) for value in values.values())


def _emptied(values: Any) -> Any:
    """With lists and dicts of its own, and the same tensors in them."""
    return dict(values) if _flat(values) else tree_map(lambda leaf: leaf, values)


def _copied(values: dict[Any, Any]) -> dict[Any, Any]:
    """With copies of its tensors, however deep in lists and dicts they lie; what is trained stays what it is."""
    return {key: value if isinstance(value, PLAIN) else _deeply(value) for key, value in values.items()}


def _deeply(value: Any) -> Any:
    return tree_map_only(Tensor, lambda one: one if one.requires_grad else one.clone(), value)
