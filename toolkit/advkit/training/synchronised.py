"""BatchNorm over the batch of all processes. torch's SyncBatchNorm is for CUDA alone, and changes the net."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Add = Callable[[Sequence[Tensor]], None]


class Synchronised(TorchFunctionMode):
    """A scope in which F.batch_norm of a batch takes the statistics of all processes' batches.

    `add` sums tensors over the processes, in place. All processes run the same forwards and backwards, in one order.
    Of an `empty` share nothing counts, whatever stands in for it.
    """

    def __init__(self, add: Add, empty: bool) -> None:
        super().__init__()
        self._add, self._empty = add, empty

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            return batch_norm(self._add, self._empty, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class Watch(TorchFunctionMode):
    """Sees whether F.batch_norm `took` the statistics of a batch."""

    took = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            self.took |= bool((kwargs or {}).get("training", args[5] if len(args) > 5 else False))
        return func(*args, **(kwargs or {}))


def batch_norm(
    add: Add,
    empty: bool,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """F.batch_norm of x (b, C, ...), a share of the batch; nothing of it counts where that is `empty`."""
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    dims, per_channel = [0, *range(2, x.dim())], (1, -1, *[1] * (x.dim() - 2))
    rows = 0 if empty else len(x)
    count = wide.new_tensor([x[:rows].numel() / x.shape[1]])
    total, everywhere = _Sum.apply(add, wide[:rows].sum(dims)), _Sum.apply(add, count)
    mean = total / everywhere
    apart = wide - mean.view(per_channel)
    variance = _Sum.apply(add, apart[:rows].square().sum(dims)) / everywhere
    with torch.no_grad():
        for running, now in ((running_mean, mean), (running_var, variance * everywhere / (everywhere - 1))):
            if running is not None:
                running.mul_(1 - momentum).add_((momentum * now).to(running.dtype))
    scale = torch.rsqrt(variance + eps) * (1 if weight is None else weight)
    y = apart * scale.view(per_channel)
    normed: Tensor = y if bias is None else y + bias.view(per_channel)
    return normed.to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum over the processes, and of its gradient, as the loss is the sum of theirs; differentiable any number of
    times."""

    @staticmethod
    def forward(ctx: Any, add: Add, value: Tensor) -> Tensor:
        ctx.add, total = add, value.clone()
        add([total])
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, _Sum.apply(ctx.add, gradients[0])
