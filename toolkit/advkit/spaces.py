"""Attributes of objects, classes and Python modules: what makes a net beside its weights, compared and put back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from copy import copy
from inspect import unwrap
from typing import Any

import torch
from torch import nn
from torch.jit import ScriptModule
from torch.optim import optimizer

from .hidden import TORCHS_OWN, fixed


class Space:
    """The attributes of an owner of which `counts` says so, by name and value; and what stands in containers.

    Of all that counts what makes a net is told where it changes, its parts, hooks and functions; of the `whole` all.
    """

    def __init__(
        self,
        owner: Any,
        called: str,
        counts: Callable[[str, Any], bool] = lambda name, value: True,
        whole: bool = False,
    ) -> None:
        self.owner, self.called, self.counts, self.whole, self.kind = owner, called, counts, whole, type(owner)
        self.held = self._now()

    def _now(self) -> dict[str, tuple[Any, Any]]:
        return {
            name: (value, copy(value) if isinstance(value, dict | list | set) else None)
            for name, value in vars(self.owner).items()
            if self.counts(name, value)
        }

    def changes(self) -> Iterator[str]:
        """What has, in words."""
        if type(self.owner) is not self.kind:
            yield f"the class of {self.called}"
        now, inside = self._now(), "." if "'s " in self.called else "'s "
        for name in [*self.held, *(now.keys() - self.held.keys())]:
            (was, inner), (value, content) = (space.get(name, (None, None)) for space in (self.held, now))
            if name in ("_modules", "_parameters", "_buffers") and isinstance(inner, dict) and isinstance(value, dict):
                yield from (
                    f"{self.called}{inside}{key}"
                    for key in [*inner, *(value.keys() - inner.keys())]
                    if inner.get(key) is not value.get(key)
                )
            elif "_hooks" in name and _elements(content) != _elements(inner):
                yield f"the hooks of {self.called}"
            elif not _same(value, was) and (self.whole or callable(value) or callable(was)):
                yield f"{self.called}.{name}" if self.called == "net" else f"{name} of {self.called}"

    def restore(self) -> None:
        if type(self.owner) is not self.kind:
            self.owner.__class__ = self.kind
        now = vars(self.owner)
        for name in [name for name, value in now.items() if self.counts(name, value) and name not in self.held]:
            type.__delattr__(self.owner, name) if isinstance(self.owner, type) else now.pop(name)
        for name, (value, inner) in self.held.items():
            if now.get(name, self) is not value:
                if isinstance(self.owner, type):
                    type.__setattr__(self.owner, name, value)
                else:
                    now[name] = value
            if inner is not None and _elements(value) != _elements(inner):
                value.clear()
                value.extend(inner) if isinstance(value, list) else value.update(inner)


def layers(model: nn.Module) -> list[Space]:
    """Of all modules the functions, and of torch's own layers the settings: numbers, texts, tuples of them.

    What else stands in modules of somebody's class is theirs: nets keep counters and caches there.
    """
    return [
        Space(
            module,
            f"{name} of the model" if name else "the model",
            _settings if _of_torch(module) else _functions,
            True,
        )
        for name, module in model.named_modules()
        if not isinstance(module, ScriptModule)
    ]


class Patched:
    """Functions of torch, of its optimizers and of the classes of a model's modules, which everybody calls by name.

    One comparison of the whole of each, where nothing differs.
    """

    def __init__(self, model: nn.Module | None) -> None:
        kinds = {type(module) for module in model.modules()} if model is not None else set()
        own = {one: f"the class {one.__name__}" for kind in kinds for one in kind.__mro__ if issubclass(one, nn.Module)}
        for owner in _SHARED:
            if vars(owner) != _SEEN.get(owner):
                _SEEN[owner] = dict(vars(owner))
        held = _SEEN | {owner: dict(vars(owner)) for owner in own}
        self._held = [(owner, called, held[owner]) for owner, called in (_SHARED | own).items()]
        everywhere = vars(nn.modules.module)
        self._hooks = [(everywhere[name], dict(everywhere[name])) for name in everywhere if name in _EVERYWHERE]

    def put_back(self) -> list[str]:
        """What is another function now, in words; it is undone."""
        changed = []
        for owner, called, before in self._held:
            if (now := vars(owner)) == before:
                continue
            for name in [*before, *(name for name in [*now] if name not in before)]:
                value, was = now.get(name), before.get(name)
                if value is not was and (callable(value) or callable(was)) and not _wrapped_by_torch(owner, name, was):
                    changed.append(f"{called}.{name}" if called[:5] == "torch" else f"{name} of {called}")
                    setattr(owner, name, was) if name in before else delattr(owner, name)
        for hooks, before in self._hooks:
            if hooks != before:
                changed.append("the hooks of all modules")
                hooks.clear()
                hooks.update(before)
        return changed


def _wrapped_by_torch(owner: Any, name: str, was: object) -> bool:
    """Whether torch itself has put another function there.

    It wraps `step` when the first optimizer of a class is made, and others when something is compiled.
    """
    value = vars(owner).get(name)
    made_in = getattr(getattr(value, "__code__", None), "co_filename", "")
    if was is None and isinstance(owner, type):
        was = next((vars(base)[name] for base in owner.__mro__[1:] if name in vars(base)), None)
    wraps = callable(value) and callable(was) and unwrap(value) is unwrap(was)
    return made_in.startswith(_COMPILING) or (made_in == optimizer.__file__ and wraps)


_COMPILING = os.path.join(os.path.dirname(torch.__file__), "_dynamo", "")

_SHARED: dict[Any, str] = {
    nn.functional: "torch.nn.functional",
    torch: "torch",
    torch.Tensor: "torch.Tensor",
    **{one: f"torch.optim.{name}" for name, one in vars(torch.optim).items() if isinstance(one, type)},
}
_SEEN: dict[Any, dict[str, Any]] = {}
"""As they were when they were last looked at: a copy of all of them takes ten times as long as a comparison."""

_EVERYWHERE = {name for name, held in vars(nn.modules.module).items() if name[:8] == "_global_" and "hooks" in name}


def told(spaces: Iterable[Space]) -> list[str]:
    """What of them is another now, in words."""
    return [word for space in spaces for word in space.changes()]


def _of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.")


def _functions(name: str, value: object) -> bool:
    return name not in TORCHS_OWN and callable(value)


def _settings(name: str, value: object) -> bool:
    return name not in TORCHS_OWN and (callable(value) or fixed(value))


def _same(one: object, other: object) -> bool:
    return one is other or (fixed(one) and type(one) is type(other) and one == other)


def _elements(container: Any) -> list[Any]:
    """What stands in it, by identity."""
    if isinstance(container, Mapping):
        return [(id(key), id(value)) for key, value in container.items()]
    return sorted(map(id, container)) if isinstance(container, Set) else [id(value) for value in container or ()]
