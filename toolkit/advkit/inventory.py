"""What a model has, by one walk through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Inventory:
    """What a model has: its `modules()`, `named_parameters()` and `named_buffers()`, by one walk through it.

    A walk takes a quarter of a millisecond for a ResNet-18, as a step of its training on a GPU takes twenty.
    """

    modules: Sequence[nn.Module]
    parameters: Mapping[str, nn.Parameter]
    buffers: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> Inventory:
        """As it is now."""
        modules, parameters, buffers = list[nn.Module](), dict[str, nn.Parameter](), dict[str, Tensor]()
        seen: set[int] = set()
        for prefix, module in model.named_modules():
            modules.append(module)
            held: Any
            found: Any
            for held, found in ((module._parameters, parameters), (module._buffers, buffers)):
                for name, tensor in held.items():
                    if tensor is not None and id(tensor) not in seen:
                        seen.add(id(tensor))
                        found[f"{prefix}.{name}" if prefix else name] = tensor
        return cls(modules, parameters, buffers)


def statistics_of(module: nn.Module) -> list[Tensor]:
    """What a norm keeps of the batches that it has seen."""
    own = module._buffers.values() if isinstance(module, nn.modules.batchnorm._NormBase) else ()
    return [buffer for buffer in own if buffer is not None]
