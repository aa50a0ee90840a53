"""The processes of one run, as torchrun starts them: who they are, and what they tell each other.

`Alone` is the one process of most runs: it has the whole batch and tells nobody anything. `Ranks` are several, each
with a share of every batch, by torch.distributed. What is large goes by the backend of its device (gloo on a CPU,
nccl on CUDA), what is decided by gloo.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, TypeVar, cast

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..bits import as_bytes, overwrite
from ..errors import HookContract, Interrupted, OptionError, ProcessLost, Stopped, named
from ..evaluation.team import Team
from .shares import Shares, Whole
from .step_report import Report
from .synchronised import Synchronised

T = TypeVar("T")
GradientAt = Callable[..., Mapping[str, Tensor]]
ENDINGS: tuple[type[Stopped] | None, ...] = (None, Stopped, Interrupted)
"""How a step can be asked to be the last, the most urgent last."""


def urgency(request: type[Stopped] | None) -> int:
    """The place among `ENDINGS`; of a class of somebody's own, that of what it is a subclass of."""
    return max(place for place, kind in enumerate(ENDINGS) if kind is None or (request and issubclass(request, kind)))


DIFFERENT = {
    "epoch": "The processes are in different epochs, {} and {}; give all of them the same.",
    "step": "The processes have taken different numbers of steps of an epoch, {} and {}; all must take equally many.",
    "rates": "The optimizers of the processes are set differently, in lr or another value of param_groups; give all of "
    "them the same.",
    "trained": "The processes train different parameters; build the same model in all of them, and freeze the same.",
}
"""By what is told with a step: what to say where it is not the same everywhere."""


class Alone(Team):
    """One process."""

    part = ""

    def share(self, rows: Tensor) -> Tensor:
        """This process's rows of a batch."""
        return rows

    def shares(self, index: Tensor, occurrence: Tensor, careful: bool, now: Mapping[str, int]) -> Whole:
        """How a batch lies in the processes, from the own share of its index and occurrence (b,).

        OptionError where not all say the same of `now`, by the names of `DIFFERENT`.
        """
        return Whole(index)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Sum over the processes, in place; the same bits everywhere."""

    def add_gradients(self, model: nn.Module) -> None:
        """Sum `.grad`. Where no process has one, there is none."""

    def summed(self, gradient_at: GradientAt) -> GradientAt:
        """`gradient_at` of the batch, from that of a share."""
        return gradient_at

    def of_all(self, report: Report, batch: Whole) -> Report:
        """What a step tells of the whole batch, from what is left to add up of a share of it."""
        return report

    def told(self, value: T) -> T:
        """What the first process says, as JSON."""
        return value

    def stop(self, request: type[Stopped] | None) -> type[Stopped] | None:
        """How the run is to end, if any process is asked to end it."""
        return request

    def refuse_apart(self, tensors: Mapping[str, Tensor]) -> None:
        """HookContract where the processes do not hold the same bits."""

    def refuse_others(self, facts: Mapping[str, str]) -> None:
        """OptionError where the processes were not started for one run, by facts that must be equal."""

    def batch_norm(self, empty: bool) -> AbstractContextManager[object]:
        """The scope of a forward of training; `empty`: of images that stand in for a share that has none."""
        return nullcontext()


class Ranks(Alone):
    """Several processes, of which this is number `rank`."""

    def __init__(self, synchronised: bool) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.part = f" part {self.rank}" if self.rank else ""
        self.synchronised = synchronised

    def share(self, rows: Tensor) -> Tensor:
        return torch.tensor_split(rows, self.size)[self.rank]

    def shares(self, index: Tensor, occurrence: Tensor, careful: bool, now: Mapping[str, int]) -> Shares:
        told = [one.tolist() for one in self._gathered(torch.tensor([len(index), *now.values()]))]
        rows, *others = zip(*told, strict=True)
        for name, values in zip(now, others, strict=True):
            if len({*values}) > 1:
                raise OptionError(DIFFERENT[name].format(min(values), max(values)))
        shares = Shares(self.rank, rows, self._gathered)
        shares.index = shares.whole(index)
        if careful:
            visits = torch.stack([shares.index, shares.whole(occurrence)], dim=1)
            if len(torch.unique(visits, dim=0)) != len(visits):
                raise OptionError(
                    "index names a sample in two processes; give each its own part of the batch, without the samples "
                    "that DistributedSampler repeats."
                )
        return shares

    def add(self, tensors: Sequence[Tensor]) -> None:
        with torch.no_grad(), answered():
            for group in _by_type(tensors):
                flat = torch.cat([tensor.detach().reshape(-1) for tensor in group])
                dist.all_reduce(flat)
                _put(group, flat)

    def add_gradients(self, model: nn.Module) -> None:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        somewhere = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.int64)
        self.add([somewhere])
        for parameter, count in zip(trained, somewhere.tolist(), strict=True):
            if count and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.add([parameter.grad for parameter in trained if parameter.grad is not None])

    def summed(self, gradient_at: GradientAt) -> GradientAt:
        def added(*arguments: Any, **named: Any) -> Mapping[str, Tensor]:
            gradients = dict(gradient_at(*arguments, **named))
            self.add([*gradients.values()])
            return gradients

        return added

    def of_all(self, report: Report, batch: Whole) -> Report:
        counts = (report.adv_correct, report.clean_correct, report.success, report.zero_gradients, report.radius)
        self.add([count for count in counts if count is not None])
        return replace(report, count=batch.count)

    def as_first(self, tensors: Sequence[Tensor]) -> None:
        with torch.no_grad(), answered():
            for group in _by_type(tensors):
                flat = torch.cat([tensor.detach().reshape(-1) for tensor in group])
                dist.broadcast(flat, 0)
                _put(group, flat)

    def heard(self, value: T) -> list[T]:
        return [cast(T, _read(content)) for content in self._all(_written(value))]

    def shown(self, value: T, tensors: Sequence[Tensor]) -> list[tuple[T, Sequence[Tensor]]]:
        own = safetensors.torch.save({str(place): tensor.contiguous() for place, tensor in enumerate(tensors)})
        contents = self._all(torch.frombuffer(bytearray(own), dtype=torch.uint8))
        named = [safetensors.torch.load(content.numpy().tobytes()) for content in contents]
        rows = [[one[str(place)] for place in range(len(one))] for one in named]
        return list(zip(self.heard(value), rows, strict=True))

    def told(self, value: T) -> T:
        content = _written(value)
        length = torch.tensor([len(content)])
        with answered():
            dist.broadcast(length, 0)
            content = content if self.rank == 0 else torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(content, 0)
        return cast(T, _read(content))

    def stop(self, request: type[Stopped] | None) -> type[Stopped] | None:
        wanted = torch.tensor([urgency(request)])
        with answered():
            dist.all_reduce(wanted, dist.ReduceOp.MAX)
        return ENDINGS[int(wanted)]

    def refuse_apart(self, tensors: Mapping[str, Tensor]) -> None:
        sums = {name: _checksum(tensors[name]) for name in sorted(tensors)}  # a file has them in any order
        for other in self.heard(sums):
            for name in sorted({*sums, *other}):
                if sums.get(name) != other.get(name):
                    raise HookContract(
                        f"The processes hold different bits of {name}. What a plugin keeps must not depend on a part "
                        "of the batch; what it keeps of samples it writes in hooks of the attack or in one of the "
                        "whole batch, such as observe_update. In a script of one's own every process must build the "
                        "same model (torch.manual_seed)."
                    )

    def refuse_others(self, facts: Mapping[str, str]) -> None:
        sums = torch.tensor([zlib.crc32(fact.encode()) for fact in facts.values()], dtype=torch.int64)
        for other in self._gathered(sums):
            for name, same in zip(facts, (other == sums).tolist(), strict=True):
                if not same:
                    raise OptionError(f"The processes were started with different {name}; give all of them the same.")

    def batch_norm(self, empty: bool) -> AbstractContextManager[object]:
        return Synchronised(self.add, empty) if self.synchronised else nullcontext()

    def _all(self, content: Tensor) -> list[Tensor]:
        """Bytes of every process, of any length."""
        lengths = [int(length) for length in self._gathered(torch.tensor([len(content)]))]
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(content)] = content
        return [one[:length] for one, length in zip(self._gathered(padded), lengths, strict=True)]

    def _gathered(self, tensor: Tensor) -> list[Tensor]:
        """Of every process; all of one shape."""
        everywhere = [torch.empty_like(tensor) for _ in range(self.size)]
        with answered():
            dist.all_gather(everywhere, tensor.contiguous())
        return everywhere


ALONE = Alone()


def here(synchronised: bool = False) -> Alone:
    """The processes that have joined; with BatchNorm `synchronised`."""
    return Ranks(synchronised) if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 else ALONE


@contextmanager
def answered() -> Iterator[None]:
    """ProcessLost where the others do not answer."""
    try:
        yield
    except (RuntimeError, dist.DistError) as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise ProcessLost(
            f"Another process of the run has ended, or has not answered within run.timeout ({reason}); what was saved "
            f"is intact: start all of them again with {named('--resume')}."
        ) from error


def _written(value: object) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _read(content: Tensor) -> object:
    return json.loads(content.numpy().tobytes())


def _by_type(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """What can be sent as one, in order."""
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    return [*groups.values()]


def _put(tensors: Sequence[Tensor], flat: Tensor) -> None:
    for tensor, values in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        overwrite(tensor, values.view(tensor.shape))


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(as_bytes(tensor.cpu()).numpy().tobytes())
