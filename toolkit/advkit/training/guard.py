"""What an answer borrows it gives back as it was, and it leaves no trace in global state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..compose.stage import Answer
from ..errors import HookContract
from ..judging import drawn_from, generators, put_back, same_bits


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


@contextmanager
def unchanged(who: str, hook: str, borrowed: Mapping[str, object]) -> Iterator[None]:
    """HookContract where the scope changes a tensor in `borrowed`, a global generator, grad mode or default dtype.

    Everything is put back as it was, so that nobody else meets the damage.
    """
    before = [(name, tensor, tensor.detach().clone()) for name, tensor in _tensors(borrowed)]
    switches, states = _switches(), generators()
    try:
        yield
    except BaseException:
        _restore(switches)
        put_back(states)
        raise
    for name, tensor, copy in before:
        if not same_bits(tensor.detach(), copy):
            with torch.no_grad():
                tensor.detach().copy_(copy)
            raise HookContract.broken(who, hook, f"it changed {name}, which it only borrows; work on a copy")
    changed = [(name, "leave it as it was") for name, now in _switches().items() if now != switches[name]]
    changed += [(name, "draw from run.draws(...)") for name in drawn_from(states)]
    for name, remedy in changed:
        _restore(switches)
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


def _switches() -> dict[str, Any]:
    return {"the grad mode": torch.is_grad_enabled(), "the default dtype": torch.get_default_dtype()}


def _restore(switches: Mapping[str, Any]) -> None:
    torch.set_grad_enabled(switches["the grad mode"])
    torch.set_default_dtype(switches["the default dtype"])
