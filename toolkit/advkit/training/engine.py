"""How a net computes in training: in which precision, how it lies in memory, compiled or not. No plugin sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from ..bits import same_bits
from ..errors import OptionError, says
from ..explained import calling
from ..global_state import products
from ..hidden import without_trace
from ..judging import examined, untouched
from ..modes import has_mode
from ..modules import mode, own_generator, placement
from ..settings import RunSettings
from ..spaces import layers, told
from ..substituted import call_at
from ..torch_func import refuse_transforms
from .compiled import Compiled, another_gradient, compiled, eagerly, of_the_users
from .given import standing_in
from .synchronised import Synchronised, Watch

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
BACKEND = "inductor"

WRITING = "compute a new tensor in the forward, w / w.norm() instead of w.div_(w.norm())"
MODES = "override train(self, mode) and put it into its mode there"


class Engine:
    """Runs the forwards of one model. Weights, images, losses, gradients and state are of the model's own type.

    With `run.precision=bf16` the forwards of training run under autocast, and their logits are cast back, so that
    nothing after them is in half precision. Validation and evaluation know nothing of it.
    """

    def __init__(
        self,
        run: RunSettings,
        model: nn.Module,
        batch_norm: Callable[[bool], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.half, self.matmul, self.layout = run.precision == "bf16", run.matmul, LAYOUTS[run.memory_format]
        self.device, dtype = placement(model)
        self.model, self._how = model, run.compile
        self.compiled: Compiled | None = None
        self._together = set[bool]()
        """The modes, training or not, in which BatchNorm takes the statistics of all processes."""
        self._batch_norm = batch_norm
        self.shape: tuple[int, ...] | None = None
        """Of the images that are trained on, (C, H, W): what the model raises on others is not its fault."""
        self.running = False
        """Whether the model is called by the core now."""
        self._empty, self.wrote, self.by_itself = False, list[tuple[str, str]](), set[str]()
        """What forwards that were watched have done to the model, with what it should do instead, and what they may set
        in it: attributes of its modules."""
        self.twice = set[tuple[int, str]]()
        """By stage, plugins that take the gradient of an input gradient, for which the model was looked at."""
        if self.half and dtype != torch.float32:
            raise OptionError(
                f"run.precision=bf16 computes in bfloat16 with weights in float32, and the model's are in "
                f"{str(dtype).removeprefix('torch.')}; leave one of them out."
            )

    def compile(self, shape: Sequence[int], warn: Callable[[str], None], trains: bool = True) -> None:
        """Compile the model for batches of that shape, (B, C, H, W), if the run has it so; where that fails, `warn`.

        A net that is not one that `trains` is compiled for forwards in eval mode alone.
        """
        refuse_compiled(self.model)
        if self._how == "off":
            return
        dtype = placement(self.model)[1]
        x = self.laid_out(torch.full(tuple(shape), 0.5, device=self.device, dtype=dtype))
        try:
            with self.numbers(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                self._together = self._of_all(x)
                self.compiled = compiled(self.model, self._how, x, BACKEND, trains, self._together)
        except (
            Exception
        ) as error:  # of dynamo, of a compiler that is absent, or of the model, which its first step tells
            cause = getattr(error, "inner_exception", error)
            reason = next((line for line in says(cause).splitlines() if line.strip()), type(cause).__name__)
            warn(
                f"run.compile={self._how}: the model can not be compiled here ({reason.strip().rstrip('.')[:160]}); "
                "it trains in eager mode, which computes the same, slower."
            )
        if self.compiled is not None and trains and True in self._together:
            warn(
                "run.compile: in train mode BatchNorm takes the statistics of all processes, and those forwards stay "
                "eager; run.batchnorm=local would compile them, as another run."
            )

    def refuse_another(self, x: Tensor) -> None:
        """OptionError where what the owner of the model has compiled differs from it, at images like x (B, C, H, W)."""
        if self.compiled is None:
            return
        with self.numbers(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            what = another_gradient(self.model, self.compiled, x)
        if what:
            raise OptionError(
                f"The compiled model's {what}, as torch.compile has it where a forward moves a buffer that it computes "
                "with; pass the model as it was before."
            )

    def _of_all(self, x: Tensor) -> set[bool]:
        """What `_together` is."""
        found = set[bool]()
        for training in (False, True) if isinstance(self._batch_norm(False), Synchronised) else ():
            buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
            with own_generator(self.device), without_trace(self.model), mode(self.model, training), Watch() as seen:
                call_at(self.model, buffers, x)
            found |= {training} if seen.took else set()
        return found

    @property
    def compile_seconds(self) -> float | None:
        """How long compiling has taken so far; None where nothing is compiled."""
        return None if self.compiled is None else self.compiled.seconds

    @contextmanager
    def numbers(self) -> Iterator[None]:
        """A scope in which products of matrices have the precision of `run.matmul`; afterwards what they had."""
        with products(self.matmul), nullcontext() if self.compiled is None else self.compiled.compiling():
            yield

    def laid_out(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in the memory format of the run."""
        return x.contiguous(memory_format=self.layout)

    @contextmanager
    def twice_differentiable(self) -> Iterator[None]:
        """A scope in which nothing compiled runs, which has no second derivative."""
        held, self.compiled = self.compiled, None
        try:
            with eagerly(self.model):
                yield
        finally:
            self.compiled = held

    def forward(self, replaced: Mapping[str, Tensor], x: Tensor, seed: Callable[[], None], careful: bool) -> object:
        """What the model returns for images x with some parameters and buffers replaced; never in half precision.

        It draws after `seed()`. `careful`: what it does to its images and in which precision it computes is watched.
        Of no image, as in a share of a batch that has none, it returns no row: many nets fail at such a tensor.
        """
        refuse_transforms()
        self.running, self._empty, attributes = True, not len(x), layers(self.model) if careful else []
        before, grads = (self._values(), self._grads()) if careful else ((), {})
        parts = self.model.named_modules() if careful else ()
        modes = [(name, module, module.training) for name, module in parts if has_mode(module)]
        try:
            with calling(x.shape) if x.shape[1:] == self.shape else nullcontext():
                output = self._forward(replaced, standing_in(x) if self._empty else x, seed, careful)
        finally:
            self.running = False
        self.by_itself |= {*told(attributes)}
        now = self._grads() if grads else {}
        if added := [name for name, was in grads.items() if was != now.get(name, was)]:
            raise OptionError(
                f"The model's forward runs a backward of its own, which adds to the gradient of {added[0]}; let it "
                "take torch.autograd.grad instead."
            )
        for name, value, was, version in before:
            if value._version != version or not same_bits(value.detach(), was):
                self.wrote.append((f"writes into {name} in its forward (as nn.Embedding with max_norm does)", WRITING))
        self.wrote += [
            (f"puts {name or 'itself'} into another mode in its forward", MODES)
            for name, module, training in modes
            if module.training != training
        ]
        return output[:0] if self._empty and isinstance(output, Tensor) and output.dim() else output

    def _values(self) -> list[tuple[str, Tensor, Tensor, int]]:
        """What a forward may not write into: by name, with a copy and torch's count of writes."""
        own = [*self.model.named_parameters(), *(() if self.model.training else self.model.named_buffers())]
        return [(name, value, value.detach().clone(), value._version) for name, value in own]

    def _grads(self) -> dict[str, tuple[int, int]]:
        """By parameter, which gradient it has and torch's count of writes into that."""
        grads = {name: parameter.grad for name, parameter in self.model.named_parameters()}
        return {name: (0, 0) if grad is None else (id(grad), grad._version) for name, grad in grads.items()}

    def _forward(self, replaced: Mapping[str, Tensor], x: Tensor, seed: Callable[[], None], careful: bool) -> object:
        seed()
        if self.compiled is None or not self.compiled.takes(x) or self.model.training in self._together:
            with examined(x, half=self.half) if careful else untouched(x):
                return self._eager(replaced, x)
        if careful:  # under the watch nothing compiled would run, and later steps would compute other bits
            with eagerly(self.model), torch.no_grad(), examined(x, half=self.half), without_trace(self.model):
                held = {**dict(self.model.named_buffers()), **replaced}
                self._eager({name: value.clone() for name, value in held.items()}, x)
            seed()
        with untouched(x, by_value=careful), self._precision():
            return self._float(self.compiled(replaced, x), x)

    def _eager(self, replaced: Mapping[str, Tensor], x: Tensor) -> object:
        with self._precision(), self._batch_norm(self._empty):
            return self._float(call_at(self.model, replaced, x) if replaced else self.model(x), x)

    def _precision(self) -> AbstractContextManager[object]:
        if not self.half and not torch.is_autocast_enabled(self.device.type):
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half)

    def _float(self, output: object, x: Tensor) -> object:
        return output.to(x.dtype) if self.half and isinstance(output, Tensor) else output


def refuse_compiled(model: nn.Module) -> None:
    """OptionError for a net that its owner has compiled in place, where the run compiles."""
    if of_the_users(model) is not None:
        raise OptionError("advkit compiles by itself; pass a module that is not compiled, with run.compile=default.")
