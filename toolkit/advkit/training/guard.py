"""An answer returns what it borrows unchanged, and leaves no trace in global state."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import _HookMixin

from ..arguments import described
from ..bits import overwrite, same_bits
from ..compose.registration import HOOKS
from ..compose.stage import Answer
from ..errors import HookContract, OptionError
from ..generators import drawn_from, generators, put_back
from ..global_state import switch_back, switches
from ..hookspec import Rule
from ..judging import writes
from ..modules import hook_before
from ..plugin import Plugin
from ..run import RunState
from ..spaces import Patched
from ..types import Batch
from .by_sample import Halved
from .compiled import of_the_users
from .engine import Engine
from .form import Form


def guarded(
    answer: Answer,
    arguments: Mapping[str, Any],
    step: Mapping[str, Any],
    model: nn.Module | None,
    by_itself: Set[str] = frozenset(),
) -> Any:
    """The answer, of a plugin that is watched while it is asked: what it is given, all that the `step` knows, the net.

    It may have kept a tensor or the net from an earlier hook. `by_itself` is what forwards of the net set in it.
    """
    listed = {name: arguments[name] for name in answer.arguments}
    net = {name: _apart(listed[name]) for name in ("model", "gradient_at") if not isinstance(listed.get(name), _OWN)}
    moving = answer.hook == "after_update"  # an average may be put back
    statistics = answer.spec.phase == "attack" and arguments["run"].attack.mode == "train"
    values = values_of(model, parameters=not moving, buffers=not moving and not statistics)
    own = values_of(model) if moving else {}
    fine = [name for name, value in own.items() if bool(value.isfinite().all())]
    with unchanged(answer.plugin.name, answer.hook, {**listed, **step, **values}, model, by_itself):
        halved = Halved(answer, arguments, arguments["run"]._state)
        whole = plain(answer.key, answer({**arguments, **net}))
    halved.check(whole)
    if broken := [name for name in fine if not bool(own[name].isfinite().all())]:
        raise HookContract.broken(answer.plugin.name, answer.hook, f"it leaves NaN or Inf in {broken[0]} of the model")
    return whole


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
                    f"holds and no failed step puts back; write in place, as self.{attribute}.copy_(...).",
                    "state",
                )


class Strays:
    """Calls of the model that the engine does not make: plugins make them, and no plan counts them."""

    def __init__(self) -> None:
        self._calls, self._wrote = 0, list[tuple[str, str]]()
        self._by_itself: Set[str] = frozenset()

    @contextmanager
    def counted(self, engine: Engine) -> Iterator[None]:
        """Of a model that is compiled none are: a hook would compile it anew."""
        self._wrote, self._by_itself = engine.wrote, engine.by_itself
        self._wrote.clear()
        if engine.compiled is not None or of_the_users(engine.model) is not None:
            yield
            return

        def called(module: nn.Module, images: object) -> None:
            self._calls += module is engine.model and not engine.running  # a copy has the hook too

        hook = hook_before(engine.model, called)
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def refused(self, answer: Answer) -> Iterator[Set[str]]:
        """HookContract where an answer within a step makes one, whatever else it breaks thereby.

        OptionError where what has changed meanwhile was changed by the model, in a forward of the engine's. Yielded are
        attributes of it that such forwards set: those may change.
        """
        before, known = self._calls, len(self._wrote)
        try:
            yield self._by_itself
        except HookContract as error:
            if error.rule == "borrowed" and len(self._wrote) > known:
                what, instead = self._wrote[-1]
                raise OptionError(
                    f"The model {what}, and plugin {answer.plugin.name} needs it to stay as it is; {instead}, or leave "
                    "the plugin out."
                ) from error
            if self._calls == before:
                raise
        if self._calls > before and answer.hook != "after_update":
            raise HookContract.broken(
                answer.plugin.name,
                answer.hook,
                "it calls the model itself, at other weights and in another mode than the step may, and no plan counts "
                "that; take clean_logits or adv_logits as arguments, or ask run.logits(...)",
                "passes",
            )


@contextmanager
def unchanged(
    who: str, hook: str, borrowed: Mapping[str, object], model: nn.Module | None, by_itself: Set[str] = frozenset()
) -> Iterator[None]:
    """HookContract where the scope changes a tensor in `borrowed`, the model, or what is global in torch.

    Of the model that is what it is made of, but for what it sets `by_itself`.

    Everything is put back as it was, so that nobody else meets the damage.
    """
    lent: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in _tensors(borrowed):
        lent.setdefault(id(tensor), (name, tensor))
    before = [(name, t, t.detach().clone(), writes(t), _hooks_of(t)) for name, t in lent.values()]
    form, patched, switched, states = Form(model, hook), Patched(model), switches(), generators()
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    try:
        # A scope alone puts the first one back, and it would follow gradients.
        with (
            torch.inference_mode(inference),
            torch.set_grad_enabled(grad),
            hooked_nodes() as nodes,
        ):
            yield
            left, after = torch.is_inference_mode_enabled() != inference, switches()
    except BaseException:
        switch_back(switched)
        patched.put_back()
        put_back(states)
        raise
    changed = []
    for name, tensor, copy, version, hooks in before:
        if writes(tensor) != version or not same_bits(tensor.detach(), copy):  # torch refuses its gradient afterwards
            changed.append((f"{name}, which it only borrows", "work on a copy"))
            with torch.no_grad():
                overwrite(tensor.detach(), copy)
        if _hooks_of(tensor) > hooks:
            changed.append((f"the gradient of {name} by a hook", "return another term instead"))
    changed += [("a gradient by a hook on a node of its graph (grad_fn)", "return another term instead")] * bool(nodes)
    changed += [(name, "leave it as it was") for name in form.put_back(by_itself)]
    changed += [(name, "leave it as it was") for name, now in after.items() if now != switched[name]]
    changed += [("torch.inference_mode", "leave it as it was")] * left
    changed += [(name, "leave it as it was") for name in patched.put_back()]
    changed += [(name, "draw from run.draws(...)") for name in drawn_from(states)]
    if changed:
        switch_back(switched)
        put_back(states)
        what, remedy = changed[0]
        raise HookContract.broken(who, hook, f"it changed {what}; {remedy}", "borrowed")


class Lent:
    """A batch as it is handed to a step, whose tensors nobody in it may write into: asked at no cost, of every step."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._lent = [(name, getattr(batch, name)) for name in ("x", "y", "index", "occurrence")]
        self._writes = [writes(tensor) for _, tensor in self._lent]

    def refuse_written(self) -> None:
        """HookContract where one has been; who did it is known where plugins are watched."""
        for (name, tensor), before in zip(self._lent, self._writes, strict=True):
            if writes(tensor) != before or getattr(self._batch, name) is not tensor:
                raise HookContract(
                    f"A plugin wrote into batch.{name}, which it only borrows, so this step is not applied; work on a "
                    "copy. Which one it is, run.check_hooks=true says.",
                    "borrowed",
                )


def _hooks_of(tensor: Tensor) -> int:
    """How many functions see its gradient, or change it."""
    return len(tensor._backward_hooks or ()) + len(getattr(tensor, "_post_accumulate_grad_hooks", None) or ())


@contextmanager
def hooked_nodes() -> Iterator[Sequence[object]]:
    """The hooks that the scope registers on nodes of graphs, which are taken off at its end: torch shows none of them.

    Those do not count that a module registers in its forward, or torch itself, as for full backward hooks.
    """
    found, plain, within = list[tuple[Any, object]](), vars(_HookMixin)["_register_hook"], _forwards()

    def register(hooks: Any, hook: object) -> Any:
        hooks, handle = plain.__func__(hooks, hook)
        if not sys._getframe(1).f_globals.get("__name__", "").startswith("torch.") and _forwards() == within:
            found.append((hooks, handle.id))
        return hooks, handle

    _HookMixin._register_hook = staticmethod(register)  # type: ignore[method-assign]  # torch calls it, from C++ too
    try:
        yield found
    finally:
        _HookMixin._register_hook = plain  # type: ignore[method-assign]
        for hooks, key in found:
            hooks.pop(key, None)


def _forwards() -> int:
    """How many modules are in their forward."""
    frame, count = sys._getframe(), 0
    while frame := frame.f_back:  # type: ignore[assignment]
        count += frame.f_code is nn.Module._call_impl.__code__
    return count


def values_of(model: nn.Module | None, *, parameters: bool = True, buffers: bool = True) -> dict[str, Tensor]:
    """What is written in a model, by name: its parameters with their gradients, its buffers."""
    own = dict(model.named_parameters()) if model is not None and parameters else {}
    gradients = {f"the gradient of {name}": p.grad for name, p in own.items() if p.grad is not None}
    return {**own, **gradients, **(dict(model.named_buffers()) if model is not None and buffers else {})}


def _tensors(value: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name), f"{name}.{field.name}")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(inner, f"{name}[{key}]" if name else str(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner, name)


def plain(key: tuple[str, str], answer: Any) -> Any:
    """The answer of (hook, plugin). HookContract for one that nobody reads, or could compute with."""
    hook, who = key
    if answer is not None and HOOKS[hook].rule is Rule.NOTIFY:
        raise HookContract.broken(who, hook, f"it returns {described(answer)}, which nobody reads; return nothing")
    for _, tensor in _tensors(answer):
        if tensor.is_nested or tensor.layout != torch.strided or tensor.is_quantized:
            raise HookContract.broken(who, hook, "it gives a sparse, nested or quantized tensor; give a dense one")
        if tensor.is_meta:
            raise HookContract.broken(who, hook, "it gives a tensor without memory, of the device meta")
        if tensor.is_inference():
            raise HookContract.broken(who, hook, "it gives a tensor of torch.inference_mode; compute it under no_grad")
    return answer
