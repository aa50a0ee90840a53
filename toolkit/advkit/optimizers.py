"""The optimizer of a run: one of torch.optim that steps on gradients, with the options of its constructor."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from math import isfinite
from typing import Any

import torch
from pydantic import ConfigDict, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor, nn

from .errors import did_you_mean
from .numerals import parse_number
from .options import Real, option
from .rates import RateSettings

UNFIT = {
    "lbfgs": "steps with a closure that evaluates the loss again, which a step of advkit has not",
    "muon": "takes matrices alone, and nets have biases, norms and convolutions",
    "sparseadam": "takes sparse gradients, and those of a net are dense",
}
"""Of torch.optim, what no run can use, and why."""

FIT: Mapping[str, type[torch.optim.Optimizer]] = {
    name.lower(): kind
    for name, kind in sorted(vars(torch.optim).items())
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    if name.lower() not in UNFIT
}
"""The classes by the name of the setting."""

NOT_OFFERED = ("params", "maximize", "differentiable", "capturable")
"""Arguments of constructors that would train something else, or nothing that a run can do."""

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@cache
def arguments_of(name: str) -> Mapping[str, Any]:
    """The options of an optimizer and their defaults, by its constructor's signature."""
    parameters = inspect.signature(FIT[name]).parameters
    return {key: argument.default for key, argument in parameters.items() if key not in NOT_OFFERED}


KNOWN = {key for name in FIT for key in arguments_of(name)}
"""Options of any optimizer."""


class OptimizerSettings(RateSettings):
    """An optimizer of torch.optim, its options, and its learning rate.

    Options that the fields below do not name are the constructor's own, such as `betas`. What is not given is as torch
    has it; but SGD has the values of the papers.
    """

    model_config = ConfigDict(extra="allow")

    name: str = option("sgd", help="a class of torch.optim in small letters; its options are settings, such as betas")
    momentum: Real = option(0.9, ge=0, lt=1, help="momentum")
    weight_decay: Real = option(5e-4, ge=0, help="weight decay")
    nesterov: bool = option(False, help="Nesterov momentum")
    decay_norms_and_biases: bool = option(True, help="whether weight decay applies to them; false: it does not")
    clip_norm: Real = option(0.0, ge=0, help="the gradient of all weights is scaled down to this norm; 0: no limit")

    @model_validator(mode="before")
    @classmethod
    def _by_the_signature(cls, values: Any) -> Any:
        name = values.get("name", "sgd")
        if not isinstance(name, str):
            return values
        name = name.lower()
        if name in UNFIT:
            raise ValueError(f"name = {name!r} {UNFIT[name]}; take one that steps on gradients, such as sgd or adamw")
        if name not in FIT:
            raise ValueError(f"name = {name!r} is unknown.{did_you_mean(name, FIT)} Known: {', '.join(FIT)}")
        own = arguments_of(name)
        for key in values:
            if key not in own and (key not in cls.model_fields or key in KNOWN):
                near = did_you_mean(key, [*own, *(set(cls.model_fields) - KNOWN)])
                raise ValueError(f"{key} is no option of {name}.{near} It has: {', '.join(own)}")
        given = {key: _converted(key, value, own[key]) for key, value in values.items() if _is_extra(key)}
        defaults = {} if name == "sgd" else _written(own)
        return {**defaults, **values, **given, "name": name}

    @model_validator(mode="after")
    def _as_torch_allows(self) -> OptimizerSettings:
        if not self.decay_norms_and_biases and not self.arguments.get("weight_decay"):
            raise ValueError("decay_norms_and_biases = False spares them a weight_decay that is none; leave it out")
        if self.name == "sgd" and not self.model_extra and (self.momentum or not self.nesterov):
            return self  # the fields say all; the first optimizer that is made imports torch._dynamo, for seconds
        try:
            FIT[self.name]([torch.zeros(1, requires_grad=True)], **self.arguments)
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"name = {self.name!r} can not have these options ({error}); correct them") from None
        return self

    @model_serializer(mode="wrap")
    def _in_force(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        values: dict[str, object] = serialize(self)
        return {key: value for key, value in values.items() if key not in KNOWN or key in arguments_of(self.name)}

    @property
    def arguments(self) -> dict[str, Any]:
        """What the constructor is called with, beside the parameters."""
        values = vars(self) | (self.model_extra or {})
        own = arguments_of(self.name)
        return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in own}

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Over the parameters of the model that ask for a gradient; clipping is part of its step."""
        optimizer = FIT[self.name](self._groups(model), **self.arguments)
        if self.clip_norm:
            optimizer.register_step_pre_hook(Clip(self.clip_norm))
        return optimizer

    def keeps(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, dict[str, Tensor]]:
        """The tensors that such an optimizer keeps of each parameter after a step, by names; their values say nothing.

        Found by a step of another one, on copies.
        """
        twins = {name: torch.zeros_like(p).requires_grad_() for name, p in parameters.items()}
        for twin in twins.values():
            twin.grad = torch.zeros_like(twin)
        optimizer = FIT[self.name](twins.values(), **self.arguments)
        optimizer.step()
        return {
            name: {key: value for key, value in optimizer.state[twin].items() if isinstance(value, Tensor)}
            for name, twin in twins.items()
        }

    def _groups(self, model: nn.Module) -> list[Any]:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if self.decay_norms_and_biases:
            return list(trained.values())
        spared = norms_and_biases(model)
        groups = (
            {"params": [p for name, p in trained.items() if name not in spared]},
            {"params": [p for name, p in trained.items() if name in spared], "weight_decay": 0.0},
        )
        return [group for group in groups if group["params"]]


def norms_and_biases(model: nn.Module) -> set[str]:
    """Names of the parameters of normalisations, of biases, and of all others with at most one dimension."""
    return {
        f"{owner}.{name}" if owner else name
        for owner, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(module, NORMS) or name.endswith("bias") or parameter.ndim <= 1
    }


@dataclass(frozen=True)
class Clip:
    """The hook of `optimizer.clip_norm`, without a synchronisation: what is not finite was refused before."""

    norm: float

    def __call__(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self.scale(p for group in optimizer.param_groups for p in group["params"])

    @torch.no_grad()
    def scale(self, tensors: Iterable[Tensor]) -> None:
        """Scale the `.grad` of all tensors together down to the norm, as torch's `clip_grad_norm_` does, to the bit.

        But where squares overflow: that function makes such a gradient 0.
        """
        if not (gradients := [tensor.grad for tensor in tensors if tensor.grad is not None]):
            return
        largest = nn.utils.get_total_norm(gradients, torch.inf)
        unit = torch.where(nn.utils.get_total_norm(gradients).isinf(), largest, 1.0)
        torch._foreach_div_(gradients, unit)
        scale = self.norm / (nn.utils.get_total_norm(gradients) + 1e-6)
        torch._foreach_mul_(gradients, scale.clamp(max=unit))


def before_step(optimizer: torch.optim.Optimizer) -> tuple[list[Clip], list[str]]:
    """The hooks that run before a step: those of `optimizer.clip_norm`, and the names of all others."""
    hooks = vars(optimizer).get("_optimizer_step_pre_hooks", {}).values()  # optimizers that wrap another may have none
    others = [getattr(hook, "__name__", type(hook).__name__) for hook in hooks if not isinstance(hook, Clip)]
    return [hook for hook in hooks if isinstance(hook, Clip)], others


def _is_extra(key: str) -> bool:
    return key not in OptimizerSettings.model_fields


def _written(options: Mapping[str, Any]) -> dict[str, Any]:
    """As a run file has them; what is None until torch knows the device or the weights is left to it."""
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
    return {key: v for key, v in plain.items() if v is not None and not (isinstance(v, list) and None in v)}


def _converted(key: str, value: object, default: object) -> object:
    """What was given for an option that is torch's own, by the type of its default."""
    if isinstance(default, bool) or default is None:  # foreach and fused are None until torch knows the device
        if not isinstance(value, bool):
            raise ValueError(f"{key} = {value!r} must be true or false")
        return value
    if isinstance(default, tuple):
        if not isinstance(value, list | tuple) or len(value) != len(default):
            raise ValueError(f"{key} = {value!r} must be {len(default)} numbers")
        return [_number(key, part) for part in value]
    return _number(key, value)


def _number(key: str, value: object) -> float:
    try:
        number = parse_number(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"{key} = {value!r} {error}") from None
    if isinstance(number, bool) or not isinstance(number, int | float) or not isfinite(number):
        raise ValueError(f"{key} = {value!r} must be a finite number")
    return number
