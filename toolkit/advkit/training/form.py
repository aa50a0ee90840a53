"""What a model is made of, as it was before a plugin was asked: told where it has changed, and put back."""

from __future__ import annotations

from collections.abc import Set

from torch import nn
from torch.jit import ScriptModule

from ..hidden import HOOKS
from ..modes import has_mode, modes_back
from ..spaces import layers, told

STORED = ("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")
"""Where a module has what changes its state_dict, which checkpoints hold."""

BENDING = ("_backward_hooks", "_post_accumulate_grad_hooks")
"""Where a parameter has what sees its gradient, or changes it."""


class Form:
    """What a model is made of, its values aside: parts, hooks, modes, which weights ask for a gradient and have one.

    And functions of its modules, and settings of torch's layers (`spaces.layers`).
    """

    def __init__(self, model: nn.Module | None, hook: str) -> None:
        self._modules = [*model.named_modules()] if model is not None else []
        seen = HOOKS if hook != "setup" else ()  # to read features
        places = ("_modules", "_parameters", "_buffers", *STORED, *seen)
        self._held = [
            (name, vars(module), place, dict(vars(module)[place]))
            for name, module in self._modules
            if not isinstance(module, ScriptModule)  # its parts are no dicts, and nobody binds them anew
            for place in places
        ]
        self._modes = [(name, module, module.training) for name, module in self._modules if has_mode(module)]
        self._layers = layers(model) if model is not None else []
        own = [*model.named_parameters()] if model is not None else []
        self._asking = [(name, p, p.requires_grad, p.grad) for name, p in own]
        self._bent = [(name, p, {place: dict(getattr(p, place) or ()) for place in BENDING}) for name, p in own]

    def put_back(self, by_itself: Set[str]) -> list[str]:
        """What has changed since, in words, but for attributes that the model sets `by_itself`; it is undone."""
        changed = []
        for name, attributes, place, before in self._held:
            now = attributes[place]
            if now.keys() != before.keys() or any(now[key] is not value for key, value in before.items()):
                names = [key for key in {**before, **now} if before.get(key) is not now.get(key)]
                changed.append("a hook" if place in (*HOOKS, *STORED) else f"{name}.{names[0]}".lstrip("."))
                now.clear()
                now.update(before)
        for name, module, training in self._modes:
            if module.training != training:
                changed.append("the mode" + (f" of {name}" if name else ""))
        modes_back([(module, training) for _, module, training in self._modes])
        for name, parameter, asks, gradient in self._asking:
            if parameter.requires_grad != asks:
                changed.append(f"requires_grad of {name}")
                parameter.requires_grad_(asks)
            if parameter.grad is not gradient:
                changed.append(f"the gradient of {name}")
                parameter.grad = gradient
        for name, parameter, before in self._bent:
            for place, hooks in before.items():
                if (now := getattr(parameter, place)) is not None and now.keys() - hooks.keys():
                    changed.append(f"the gradient of {name} by a hook")
                    for key in now.keys() - hooks.keys():
                        del now[key]
        named = [f"{name} of the model" for name in changed]
        if others := [words for words in told(self._layers) if words not in by_itself]:
            for space in self._layers:
                space.restore()
        return named + others
