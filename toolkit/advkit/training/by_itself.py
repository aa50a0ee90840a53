"""A model without those who watch it: what is asked of it beside a step is nobody's pass."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..hidden import HOOKS, without_trace


@contextmanager
def hooks_told_apart(model: nn.Module) -> Iterator[set[object]]:
    """Of the model's hooks, those that compute in the scope: others only watch, as those that count passes do."""
    computing: set[object] = set()

    def told(hook: Callable[..., object]) -> Callable[..., object]:
        def call(module: nn.Module, *given: Any, **named: Any) -> object:
            tensors = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor) and not leaf.is_inference()]
            versions = [tensor._version for tensor in tensors]
            attributes = [(vars(part), dict(vars(part))) for part in module.modules()]
            answer = hook(module, *given, **named)
            written = versions != [tensor._version for tensor in tensors]
            bound = any(value is not was.get(name) for now, was in attributes for name, value in now.items())
            if written or bound or not (answer is None or any(answer is one for one in given)):
                computing.update((hook, call))
            return answer

        return call

    places = [vars(module)[kind] for module in model.modules() for kind in HOOKS if kind in vars(module)]
    before = [(hooks, dict(hooks)) for hooks in places]
    for hooks, own in before:
        hooks.update({key: hook if _computes_weights(hook) else told(hook) for key, hook in own.items()})
    try:
        yield computing
    finally:
        for hooks, own in before:
            hooks.update({key: hook for key, hook in own.items() if key in hooks})


@contextmanager
def by_itself(model: nn.Module, computing: Container[object]) -> Iterator[None]:
    """Without hooks that only watch, and afterwards without a trace.

    Those of torch.nn.utils stay: they compute weights.
    """
    before = [(vars(module), kind, vars(module)[kind]) for module in model.modules() for kind in HOOKS]
    with without_trace(model, hooks=True):
        for attributes, kind, hooks in before:
            staying = {key: hook for key, hook in hooks.items() if hook in computing or _computes_weights(hook)}
            attributes[kind] = type(hooks)(staying)
        try:
            yield
        finally:
            for attributes, kind, hooks in before:
                attributes[kind] = hooks


def copied(net: nn.Module, model: nn.Module) -> tuple[nn.Module, list[object]]:
    """A copy of the net without the hooks that somebody has put on the model, where they share parts; and those hooks.

    A copy would call the very function, which then reads the copy for the model. Methods of the net itself stay, and
    those of torch.nn.utils: a copy has its own.
    """
    shared = {id(part) for part in model.modules()}
    parts = [vars(part) for part in net.modules() if id(part) in shared]
    before = [(part, kind, part[kind]) for part in parts for kind in HOOKS if kind in part]
    own, left_out = {id(part) for part in net.modules()}, list[object]()
    try:
        for part, kind, hooks in before:
            staying = {
                key: hook
                for key, hook in hooks.items()
                if id(getattr(hook, "__self__", hook)) in own or _computes_weights(hook)
            }
            left_out += [hook for key, hook in hooks.items() if key not in staying]
            part[kind] = type(hooks)(staying)
        return deepcopy(net), left_out
    finally:
        for part, kind, hooks in before:
            part[kind] = hooks


def _computes_weights(hook: object) -> bool:
    return type(hook).__module__.startswith("torch.nn.utils")
