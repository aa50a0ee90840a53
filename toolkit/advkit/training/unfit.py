"""Models and optimizers that no step can train, told before anything is."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from math import inf, isfinite
from numbers import Real

import torch
from torch import Tensor, nn

from ..errors import NonFinite, OptionError, shown
from ..judging import broken, refuse_unready
from ..modes import exported
from ..precision import named, refuse_half
from .compiled import optimized
from .stored import refuse_expanded, refuse_unstored, stored_by


def refuse_unfit(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """OptionError for what no step can train, NonFinite for a model that holds NaN or Inf before any."""
    for name, value, wanted in (("model", model, nn.Module), ("optimizer", optimizer, torch.optim.Optimizer)):
        if not isinstance(value, wanted):
            what = value.__name__ if isinstance(value, type) else type(value).__name__
            raise OptionError(f"The {name} is {what}; pass a {wanted.__module__.split('.')[0]} {wanted.__name__}.")
        if value is model:
            refuse_unfit_net(model)
    if name := broken(model):
        raise NonFinite(f"{name} of the model holds NaN or Inf before the first step; give it numbers or leave it out.")
    own = {id(p) for p in model.parameters()}
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise OptionError("The optimizer has none of the model's parameters; build it from model.parameters().")
    refuse_rates(optimizer)
    if any(group.get("differentiable") for group in optimizer.param_groups):
        raise OptionError(
            f"The optimizer {type(optimizer).__name__} has differentiable=True, which steps only on parameters that "
            "are computed of others; build it without."
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise OptionError(wants_closure(optimizer))


def refuse_rates(optimizer: torch.optim.Optimizer) -> None:
    """OptionError for a learning rate that is no number from 0, NonFinite for NaN and Inf; none on a device is read."""
    for group in optimizer.param_groups:
        rate = group.get("lr")
        if rate is None or (isinstance(rate, Tensor) and rate.numel() == 1):
            continue
        if isinstance(rate, bool) or not isinstance(rate, Real) or not 0 <= float(rate) < inf:
            endless = isinstance(rate, Real) and not isfinite(float(rate))
            sentence = f"The optimizer's lr is {shown(rate)}; give each of its param_groups a number from 0."
            raise NonFinite(sentence) if endless else OptionError(sentence)


def refuse_unfit_net(model: nn.Module, loaded: bool = False) -> None:
    """OptionError for a net that no step can train, whatever the optimizer; and one into which no checkpoint can be
    `loaded`, where a run does that."""
    for name, module in model.named_modules():
        refuse_wrapped(name, module)
    refuse_unready(model)
    if any(exported(module) for module in model.modules()):
        raise OptionError(
            "The model is of torch.export, whose graph computes in one mode; train the module that it was made of."
        )
    dtypes = {p.dtype for p in model.parameters()}
    if any(dtype.is_complex for dtype in dtypes):
        raise OptionError(
            "Complex weights are not supported; keep their real and imaginary parts as real parameters, and put them "
            "together in the forward with torch.view_as_complex."
        )
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            raise OptionError(
                f"{name} of the model is a parameter of {named(parameter.dtype)}, which nothing can learn; hold it as "
                "a buffer (register_buffer)."
            )
    if not dtypes <= {torch.float32, torch.float64}:
        raise OptionError(
            "Weights in half precision are not supported; train in float32 or float64. For faster forwards set "
            "run.precision=bf16."
        )
    refuse_half(model)
    refuse_unstored(model) if loaded else stored_by(model)  # a loop of one's own stores what it wants
    if not any(p.requires_grad for p in model.parameters()):
        raise OptionError("The model has no trainable parameter; nothing could be learnt.")
    refuse_expanded(model, loaded)


def refuse_wrapped(name: str, module: nn.Module) -> None:
    """Wrappers that change what a forward is, at the top ("") or inside."""
    wrappers: Sequence[tuple[bool, str]] = (
        (
            isinstance(module, nn.parallel.DistributedDataParallel),
            "DistributedDataParallel is not supported: pass the module itself in every process; advkit adds up the "
            "gradients of all.",
        ),
        (isinstance(module, nn.DataParallel), "DataParallel is not supported; pass the module itself."),
        (
            optimized(module),
            f"{name} of the model is what torch.compile returned, under which weights have other names; compile it in "
            f"place with {name}.compile(), or the whole model."
            if name
            else "advkit compiles by itself; pass the module that torch.compile was given, with run.compile=default.",
        ),
    )
    for wrapped, sentence in wrappers:
        if wrapped:
            raise OptionError(sentence)


def differentiates_again(optimizer: torch.optim.Optimizer) -> str:
    """The sentence for an optimizer that takes gradients of the gradients."""
    return (
        f"The optimizer {type(optimizer).__name__} differentiates the gradients again in its step, as those with a "
        "Hessian do, and a step of advkit keeps no graph of them; take one that steps on gradients, such as SGD or "
        "AdamW."
    )


def wants_closure(optimizer: torch.optim.Optimizer) -> str:
    """The sentence for an optimizer that evaluates the loss by itself."""
    return (
        f"The optimizer {type(optimizer).__name__} steps with a closure that evaluates the loss again, which a step of "
        "advkit has not; take one that steps on gradients, such as SGD or AdamW (for sharpness-aware training: awp); "
        "or build Step(model, None, ...) and give step.again() as that loss."
    )
