"""What any torch module is asked and put into: where it computes, its mode, its parameters, its random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .bits import write_back
from .modes import exported, has_mode, modes_back, put
from .own_file import staying


def placement(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a model computes, and in which floating type: its first floating parameter's or buffer's, else float32."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.float32


def hook_before(model: nn.Module, hook: Callable[..., Any]) -> RemovableHandle:
    """A forward pre-hook. Modules of torch.jit refuse them by name and run them all the same."""
    return nn.Module.register_forward_pre_hook(model, hook)


@contextmanager
def mode(model: nn.Module, training: bool, modules: Iterable[nn.Module] | None = None) -> Iterator[None]:
    """The model in train or eval mode; every submodule gets its own mode back.

    A model that is in train mode stays as it is: submodules that its owner keeps in eval mode are meant to be. Its
    `modules` are given where they are known.
    """
    if not has_mode(model) or (training and model.training):
        yield
        return
    parts = model.modules() if modules is None else modules
    before = [(module, module.training) for module in parts if has_mode(module)]
    if any(exported(module) for module, _ in before):
        for module, _ in before:
            module.training = training
    else:
        put(model, training, before)
    try:
        yield
    finally:
        modes_back(before)


@contextmanager
def frozen(model: nn.Module | Iterable[nn.Parameter]) -> Iterator[None]:
    """No parameter asks for a gradient; those that did ask again afterwards. Values are never touched."""
    parameters = model.parameters() if isinstance(model, nn.Module) else model
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_()


@contextmanager
def kept_values(model: nn.Module) -> Iterator[None]:
    """Parameters and buffers have their values back afterwards: some nets write to them in every forward."""
    weights = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]
    before = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, was in before:
                if isinstance(module._buffers, dict):  # not of torch.jit, where no buffer is bound anew
                    module._buffers[name] = buffer
                write_back(buffer, was)
            for parameter, was in weights:
                write_back(parameter, was)


@contextmanager
def own_generator(device: torch.device) -> Iterator[Callable[[int], None]]:
    """A scope in which models may draw, by a seeding function; global generators and the working folder come back."""
    cuda = [torch.empty(0, device=device).device] if device.type == "cuda" else []  # with its number

    def seed(value: int) -> None:
        for one in (torch.default_generator, *(torch.cuda.default_generators[gpu.index or 0] for gpu in cuda)):
            one.manual_seed(value)

    with torch.random.fork_rng(devices=cuda), staying():
        yield seed
