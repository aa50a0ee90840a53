"""How a net computes in training: in which precision, and how it lies in memory. No plugin and no loss sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import OptionError
from ..modules import placement
from ..settings import RunSettings

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Engine:
    """Runs the forwards of one model. Weights, images, losses, gradients and state are of the model's own type.

    With `run.precision=bf16` the forwards of training run under autocast, and their logits are cast back, so that
    nothing after them is in half precision. Validation and evaluation know nothing of it.
    """

    def __init__(self, run: RunSettings, model: nn.Module) -> None:
        self.half, self.matmul, self.layout = run.precision == "bf16", run.matmul, LAYOUTS[run.memory_format]
        self.device, dtype = placement(model)
        if self.half and dtype != torch.float32:
            raise OptionError(
                f"run.precision=bf16 computes in bfloat16 with weights in float32, and the model's are in "
                f"{str(dtype).removeprefix('torch.')}; leave one of them out."
            )

    @contextmanager
    def numbers(self) -> Iterator[None]:
        """A scope in which products of matrices have the precision of `run.matmul`; afterwards what they had."""
        before, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
        torch.set_float32_matmul_precision(self.matmul)
        torch.backends.cudnn.conv.fp32_precision = "tf32" if self.matmul == "high" else "ieee"  # type: ignore[attr-defined]
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
            torch.backends.cudnn.conv.fp32_precision = cudnn  # type: ignore[attr-defined]

    def laid_out(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in the memory format of the run."""
        return x.contiguous(memory_format=self.layout)

    def forward(self, model: nn.Module, replaced: Mapping[str, Tensor], x: Tensor) -> object:
        """What the model returns for images x with some parameters and buffers replaced; never in half precision."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            output = functional_call(model, dict(replaced), (x,)) if replaced else model(x)
        return output.to(x.dtype) if self.half and isinstance(output, Tensor) else output
