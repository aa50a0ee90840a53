"""What an answer borrows it gives back as it was, and it leaves no trace in global state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..compose.stage import Answer
from ..errors import HookContract
from ..judging import drawn_from, generators, put_back, same_bits, switch_back, switches
from ..plugin import Plugin
from ..run import RunState


def guarded(answer: Answer, arguments: Mapping[str, Any]) -> Any:
    """The answer, of a plugin that is watched while it is asked."""
    listed = {name: arguments[name] for name in answer.arguments}
    borrowed = dict(listed)
    if answer.hook == "after_update":
        borrowed.pop("model", None)  # an average of weights may be put back into the net
    net = {name: _apart(listed[name]) for name in ("model", "gradient_at") if not isinstance(listed.get(name), _OWN)}
    with unchanged(answer.plugin.name, answer.hook, borrowed):
        return answer({**arguments, **net})


_OWN = (nn.Module, type(None))
"""No callable of the core's."""


def _apart(call: Callable[..., Any]) -> Callable[..., Any]:
    """The callable, whose own draws are not the plugin's: the core seeds the net anew for every forward."""

    def apart(*given: Any, **named: Any) -> Any:
        before = generators()
        try:
            return call(*given, **named)
        finally:
            put_back(before)

    return apart


class Bindings:
    """Where plugins keep the state they have claimed: what is bound anew is neither checkpointed nor put back."""

    def __init__(self, plugins: Iterable[Plugin], state: RunState) -> None:
        self._kept = [
            (plugin, attribute, name, tensor)
            for plugin in plugins
            for name, tensor in {**state.samples, **state.tensors}.items()
            for attribute, value in vars(plugin).items()
            if value is tensor
        ]

    def check(self) -> None:
        """HookContract where a plugin holds its state no more."""
        for plugin, attribute, name, tensor in self._kept:
            if vars(plugin).get(attribute) is not tensor and not any(v is tensor for v in vars(plugin).values()):
                raise HookContract(
                    f"Plugin {plugin.name} binds its state {name} anew (self.{attribute} = ...), which no checkpoint "
                    f"holds and no failed step puts back; write in place, as self.{attribute}.copy_(...)."
                )


@contextmanager
def unchanged(who: str, hook: str, borrowed: Mapping[str, object]) -> Iterator[None]:
    """HookContract where the scope changes a tensor in `borrowed`, a global generator, grad mode or default dtype.

    Everything is put back as it was, so that nobody else meets the damage.
    """
    before = [(name, tensor, tensor.detach().clone()) for name, tensor in _tensors(borrowed)]
    switched, states = switches(), generators()
    try:
        yield
    except BaseException:
        switch_back(switched)
        put_back(states)
        raise
    for name, tensor, copy in before:
        if not same_bits(tensor.detach(), copy):
            with torch.no_grad():
                tensor.detach().copy_(copy)
            raise HookContract.broken(who, hook, f"it changed {name}, which it only borrows; work on a copy")
    changed = [(name, "leave it as it was") for name, now in switches().items() if now != switched[name]]
    changed += [(name, "draw from run.draws(...)") for name in drawn_from(states)]
    for name, remedy in changed:
        switch_back(switched)
        put_back(states)
        raise HookContract.broken(who, hook, f"it changed {name}; {remedy}")


def _tensors(value: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, nn.Module):
        yield from (*value.named_parameters(), *value.named_buffers())
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name), f"{name}.{field.name}")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(inner, f"{name}[{key}]" if name else str(key))
