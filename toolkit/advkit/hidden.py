"""State of a net that is neither parameter nor buffer: no state_dict holds it, so no checkpoint does."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType, NoneType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.jit import ScriptModule

from .bits import overwrite, same_bits, write_back
from .gradients import set_aside

TORCHS_OWN = {*vars(nn.Module()), "_compiled_call_impl"}
"""Attributes of every module."""

STRANGERS = (
    *("advkit.", "torch._dynamo", "torch._inductor", "torch.fx", "torch.jit", "torch.optim", "torch.utils"),
    "logging",
)
"""Modules of Python whose objects are no part of a net, though something of it may refer to them."""

_FIXED = (bool, int, float, str, NoneType)

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Where a module has what others put on it."""


class Hidden:
    """What a net has now beside parameters and buffers, wherever attributes, classes, hooks and closures lead to it.

    Plain tensors, numbers, generators, and lists, dicts and objects of them. What a module of Python holds is not seen,
    and a tensor or array that shares the memory of a parameter or buffer is that one by another name.
    """

    def __init__(self, model: nn.Module, but: Collection[nn.Module] = (), hooks: bool = True) -> None:
        """Of all modules `but` some, with or without what their hooks lead to."""
        places = HOOKS if hooks else ()
        self._held = [(name, held, way, way.copy(held)) for name, held, way in self._parts(model, but, places)]

    def _parts(
        self, model: nn.Module, but: Collection[object], places: Collection[str]
    ) -> Iterator[tuple[str, Any, _Way]]:
        """Everything that can be kept, once, by name."""
        left: list[tuple[str, Any]] = []
        for name, module in model.named_modules():
            if not isinstance(module, ScriptModule) and module not in but:
                yield name, vars(module), _MODULE
                yield name, module._buffers, _Way(dict, _refill)
                own = [key for key, value in vars(module).items() if key not in TORCHS_OWN and not fixed(value)]
                left += [(_at(name, key), vars(module)[key]) for key in own]
                left += [(_at(name, key), held) for key, held in _of_class(type(module))]
                hook = f"a hook of {name or 'the model'}"
                left += [(hook, one) for kind in places for one in vars(module)[kind].values()]
        if left:
            yield from _reached(left, _of(model))

    def changed(self) -> list[str]:
        """Names of what has been bound anew or written into since."""
        names = []
        for name, held, way, before in self._held:
            now = way.copy(held)
            if isinstance(held, dict):
                names += [
                    _at(name, key) for key in {**before, **now} if not _same(before.get(key, _Way), now.get(key, _Way))
                ]
            elif not _same(before, now):
                names.append(name)
        return list(dict.fromkeys(names))

    def put_back(self) -> None:
        """Everything as it was, in place."""
        with torch.no_grad():
            for _, held, way, before in self._held:
                if not _untouched(held, before, way):
                    way.put(held, before)


@contextmanager
def without_trace(model: nn.Module, hooks: bool = False) -> Iterator[None]:
    """Whatever passes in the scope write into the model is put back: parameters, `.grad`, buffers, and what is hidden.

    Nets count, normalise their weights, or initialise themselves by the first batch that they see. With `hooks` also
    what these keep; without, those who watch have seen a pass.
    """
    hidden = Hidden(model, hooks=hooks)
    stored = [(tensor, tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())]
    try:
        with set_aside(model.parameters()):
            yield
    finally:
        hidden.put_back()
        with torch.no_grad():
            for tensor, was in stored:
                write_back(tensor, was)


class Generators(Hidden):
    """The generators that a plugin keeps in its attributes, those of the model aside."""

    def __init__(self, plugin: object, model: nn.Module) -> None:
        reached = _reached([(name, value) for name, value in vars(plugin).items()], _of(model))
        drawing = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
        self._held = [(name, held, way, way.copy(held)) for name, held, way in reached if isinstance(held, drawing)]


class Counts(Hidden):
    """Numbers and tensors that a plugin keeps from a step to later ones.

    Nothing of the model or of the state that it has claimed, and no tensors of `rows` rows, which are of a batch.
    """

    def __init__(self, plugin: object, model: nn.Module, claimed: Collection[Tensor], rows: int) -> None:
        def counts(value: object) -> bool:
            return isinstance(value, int | float | complex) or (
                isinstance(value, Tensor) and value.shape[:1] != (rows,)
            )

        numbers = _Way(lambda held: {key: value for key, value in held.items() if counts(value)}, _refill)
        known = [plugin, *_of(model), *claimed]
        reached = [("", vars(plugin), numbers), *_reached([*vars(plugin).items()], known)]
        ways = [(name, held, numbers if isinstance(held, dict) else way) for name, held, way in reached]
        self._held = [
            (name, held, way, way.copy(held)) for name, held, way in ways if isinstance(held, dict) or counts(held)
        ]


def unregistered(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """A sentence where a plain list, dict or object of the net holds parameters that nobody trains, "" elsewhere."""
    left = [
        (_at(name, key), value)
        for name, module in model.named_modules()
        if not isinstance(module, ScriptModule)
        for key, value in vars(module).items()
        if key not in TORCHS_OWN
    ]
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    held = [
        name.replace("._parameters.", ".").replace("._modules.", ".")
        for name, thing, _ in _reached(left, [*_of(model), *trained])
        if isinstance(thing, Tensor) and thing.requires_grad and thing.is_leaf and not thing.is_meta
    ]
    known = {id(parameter) for parameter in trained}
    held += [name for name, buffer in model.named_buffers() if buffer.requires_grad and id(buffer) not in known]
    if not held:
        return ""
    more = f" and {len(held) - 1} more" if len(held) > 1 else ""
    return (
        f"self.{held[-1]} of the model{more} {'ask' if more else 'asks'} for a gradient, but in a plain attribute, "
        "list, dict, object or buffer no optimizer finds them, so they never change; hold them as nn.Parameter, in "
        "nn.ModuleList or nn.ParameterList, or say by requires_grad_(False) that you mean it."
    )


# ---------------------------------------------------------------------- what leads where


class _Way(NamedTuple):
    """How a thing is copied and put back."""

    copy: Callable[[Any], Any]
    put: Callable[[Any, Any], Any]


def _refill(held: Any, copy: Any) -> None:
    held.clear()
    (held.extend if isinstance(held, list | deque) else held.update)(copy)


def _rest(attributes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in attributes.items() if key not in TORCHS_OWN}


def _reset(attributes: dict[str, Any], copy: dict[str, Any]) -> None:
    for key in _rest(attributes).keys() - copy.keys():
        del attributes[key]
    attributes.update(copy)


_MODULE, _CONTAINER = _Way(_rest, _reset), _Way(lambda held: held.copy(), _refill)
_WAYS: dict[tuple[type, ...], _Way] = {
    (Tensor,): _Way(lambda held: held.detach().clone(), lambda held, copy: overwrite(held.detach(), copy)),
    (torch.Generator,): _Way(lambda held: held.get_state(), lambda held, copy: held.set_state(copy)),
    (np.random.Generator,): _Way(
        lambda held: deepcopy(held.bit_generator.state), lambda held, copy: setattr(held.bit_generator, "state", copy)
    ),
    (np.random.RandomState,): _Way(lambda held: held.get_state(), lambda held, copy: held.set_state(copy)),
    (random.Random,): _Way(lambda held: held.getstate(), lambda held, copy: held.setstate(copy)),
    (np.ndarray,): _Way(lambda held: held.copy(), lambda held, copy: np.copyto(held, copy)),
    (CellType,): _Way(lambda held: [held.cell_contents], lambda held, copy: setattr(held, "cell_contents", copy[0])),
    (dict, list, set, deque): _CONTAINER,
}


def fixed(value: object) -> bool:
    """Whether nothing can be written into a value, which layers have dozens of."""
    return type(value) in _FIXED or (type(value) is tuple and all(type(one) in _FIXED for one in value))


def _of_class(kind: type) -> list[tuple[str, Any]]:
    """What somebody's class has in itself, and with its methods what these close over."""
    own = [base for base in kind.__mro__ if not base.__module__.startswith(("torch.", "advkit.", "builtins"))]
    return [(key, held) for base in own for key, held in vars(base).items() if key[:2] != "__" or callable(held)]


def _of(model: nn.Module) -> list[object]:
    return [*model.modules(), *model.parameters(), *model.buffers()]


def _reached(left: list[tuple[str, Any]], known: list[object]) -> Iterator[tuple[str, Any, _Way]]:
    """What can be kept of all that is reached from the things `left` and not `known`, once, by name."""
    seen = {id(thing): thing for thing in known}  # kept alive, so that no id is another's
    owned = [_memory(thing) for thing in known if isinstance(thing, Tensor)]
    while left:
        name, thing = left.pop()
        if id(thing) in seen or type(thing).__module__.startswith(STRANGERS):
            continue
        seen[id(thing)] = thing
        way = next((way for types, way in _WAYS.items() if isinstance(thing, types)), None)
        at = _memory(thing).start if isinstance(thing, Tensor | np.ndarray) else 0
        if way is not None and not any(at in memory for memory in owned):
            yield name, thing, way
        left += _inside(name, thing)


def _inside(name: str, thing: Any) -> list[tuple[str, Any]]:
    """What a thing refers to, as far as it is data."""
    if isinstance(thing, dict):
        return [(_at(name, key), value) for key, value in thing.items()]
    if isinstance(thing, list | tuple | set | deque):
        return [(name, value) for value in thing]
    if isinstance(thing, partial):
        return [(name, part) for part in (thing.func, thing.args, thing.keywords)]
    if isinstance(thing, FunctionType):
        return [(name, cell) for cell in thing.__closure__ or () if _filled(cell)]
    if isinstance(thing, CellType):
        return [(name, thing.cell_contents)]
    if isinstance(thing, MethodType):
        return [(name, thing.__self__)]
    if isinstance(thing, type | ModuleType | Tensor | ScriptModule) or not hasattr(thing, "__dict__"):
        return []
    return [(name, vars(thing))]


def _memory(values: Tensor | np.ndarray) -> range:
    """The addresses of what it lies in; of an array those from its first value on, of a sparse tensor none."""
    if isinstance(values, np.ndarray):
        start = int(values.__array_interface__["data"][0])
        return range(start, start + values.nbytes)
    if values.layout != torch.strided or values.is_meta:
        return range(0)
    storage = values.untyped_storage()
    return range(storage.data_ptr(), storage.data_ptr() + storage.nbytes())


def _filled(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a name that is bound later
        return False


def _at(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)


def _untouched(held: Any, before: Any, way: _Way) -> bool:
    """Whether a thing has its very contents still: a container its objects, anything else its values."""
    if isinstance(held, dict):
        held = way.copy(held)
        return held.keys() == before.keys() and all(held[key] is value for key, value in before.items())
    if isinstance(held, list | deque):
        return len(held) == len(before) and all(one is other for one, other in zip(held, before, strict=True))
    return _same(way.copy(held), before)


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return same_bits(one.detach(), other.detach())
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, int | float | complex | str | bytes | set) and bool(one == other)
