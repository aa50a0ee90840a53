"""Checks of settings that no plugin sees: precision, memory format, compiled nets, GPUs, several processes."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor

from ..compose.parts import WHOLE, refuse_parts
from ..errors import HookConflict
from ..storage import files
from ..training import engine
from .company import resolved
from .runs import ROUNDING, differing, exact
from .small import SETTINGS, Trained, batches, close, copies, step_of, tiny_net
from .subject import Came, Subject, check, told

BF16 = 3e-2
"""Relative difference of an epoch's update that bfloat16 may leave: eight steps of its rounding, 2 ** -8. An attack
flips signs of small gradients, and its images are others then. Measured: 0.0007 (eps-ramp) to 0.013 (awp)."""


@check()
def check_channels_last(subject: Subject) -> None:
    """With images and weights in channels_last, the run is that of contiguous ones but for rounding."""
    subject.repeatable()
    one, other = (_by_the_loop(subject, **{"run.memory_format": layout}) for layout in ("contiguous", "channels_last"))
    if name := close(other.weights, one.weights, rtol=1e-9, atol=1e-11):
        raise Came(f"{name} differs")


def _by_the_loop(subject: Subject, **settings: object) -> Trained:
    return subject.trained(dtype=torch.float64, dropout=0.0, by_the_loop=True, settings=settings)


@check()
def check_bf16(subject: Subject) -> None:
    """In bfloat16 an epoch's update is that of float32 within 3 percent."""
    subject.repeatable()
    start = copies(tiny_net(batch_norm=True, dropout=0.0, dtype=torch.float32).state_dict())
    one, other = (
        subject.trained(
            dropout=0.0, lr=0.01, epochs=(0,), by_the_loop=True,
            settings={"attack.mode": "eval", "run.precision": precision},
        ).weights
        for precision in ("float32", "bf16")
    )  # fmt: skip
    apart = float(_flat(other, one).norm() / _flat(one, start).norm())
    if not 0 < apart < BF16:
        raise Came(f"the updates differ by {apart:.2g}")


def _flat(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([(one[key] - other[key]).flatten() for key in one if one[key].is_floating_point()])


@check()
def check_compile(subject: Subject) -> None:
    """With a compiled net the run is the eager one but for rounding, and runs the same passes."""
    subject.repeatable()
    backend, engine.BACKEND = engine.BACKEND, "aot_eager"  # seconds in place of a minute, and no compiler
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # dynamo looks at .grad of what a plugin differentiates by
            one, other = (_by_the_loop(subject, **{"run.compile": how}) for how in ("off", "default"))
    finally:
        engine.BACKEND = backend
    if name := close(other.weights, one.weights, rtol=1e-9, atol=1e-11):
        raise Came(f"{name} differs")
    if [report.passes for report in one.reports] != [report.passes for report in other.reports]:
        raise Came("the steps ran other passes")


# ---------------------------------------------------------------------- GPUs


def _needs_a_gpu(subject: Subject) -> str:
    return "" if torch.cuda.is_available() else "there is no CUDA device here"


@check(_needs_a_gpu)
def check_cuda(subject: Subject) -> None:
    """On a GPU the run is that of the CPU but for rounding, has bits that come again, and waits no more for the GPU."""
    subject.repeatable()
    with _deterministic():
        how: dict[str, Any] = {"dtype": torch.float64, "dropout": 0.0}
        one, other = (subject.trained(device=device, **how) for device in ("cpu", "cuda"))
        if name := close(other.everything, one.everything, rtol=1e-9, atol=1e-11):
            raise Came(f"{name} differs from that of the CPU")
        if name := differing(*(subject.trained(device="cuda") for _ in range(2))):
            raise Came(f"two runs of one seed differ in {name}, with torch.use_deterministic_algorithms")
    if subject.by_the_loop:
        return
    known = Counter(_waits_of(subject, ()))
    if more := Counter(_waits_of(subject, subject.company)) - known:
        places = ", ".join(f"{place} ({times})" for place, times in sorted(more.items()))
        raise Came(f"a step waits for the GPU at {places}, which it does not without the plugin")


@contextmanager
def _deterministic() -> Iterator[None]:
    """A scope in which torch takes algorithms whose bits come again, and refuses where it has none."""
    before, workspace = torch.are_deterministic_algorithms_enabled(), "CUBLAS_WORKSPACE_CONFIG"
    here = os.environ.get(workspace)
    os.environ[workspace] = here or ":4096:8"  # what CUDA's products of matrices ask for
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        if here is None:
            del os.environ[workspace]


def _waits_of(subject: Subject, plugins: tuple[Any, ...]) -> list[str]:
    net = tiny_net(batch_norm=True, dropout=0.0, dtype=torch.float32).to("cuda")
    step = step_of(net, plugins, options=subject.given(plugins), settings=SETTINGS)
    x, y, index = (part.to("cuda") for part in batches()[0])
    for epoch in (0, 1):
        step(x, y, index, epoch=epoch)
    return waits(lambda: step(x, y, index, epoch=1))


def waits(work: Callable[[], object]) -> list[str]:
    """Where `work` waits for the GPU, as FILE:LINE of every time."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return [f"{Path(one.filename).name}:{one.lineno}" for one in caught if "called a synchronizing" in str(one.message)]


# ---------------------------------------------------------------------- several processes

PROCESSES, PATIENCE = 2, 60.0
"""How many of them, and how many seconds one waits for another."""
LARGEST = 1 << 24
"""Bytes of what one of them leaves."""


def _needs_one_process(subject: Subject) -> str:
    if isinstance(subject.plain, Exception):  # which may be about parts
        return ""
    run = resolved(subject.company, subject.given(subject.company))
    try:
        refuse_parts(run.composition, "a run of several processes", (*WHOLE, "instance_weight"))
    except HookConflict:
        return "it does not declare by_sample, or is beside a plugin that does not"
    if not (dist.is_available() and dist.is_gloo_available()) or "fork" not in multiprocessing.get_all_start_methods():
        return "it takes gloo and fork, which this system does not have"
    if dist.is_initialized() or torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return "it takes a process that uses neither CUDA nor other processes"
    return ""


@check(_needs_one_process)
def check_processes(subject: Subject) -> None:
    """Two processes that share every batch end both as one that has all of it, but for rounding."""
    subject.repeatable()
    whole = _shared(subject, 0, 1)
    context = multiprocessing.get_context("fork")  # so that it knows the plugin, wherever its class stands
    with tempfile.TemporaryDirectory(prefix="advkit-testing-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads, which these processes do not use
        running = []
        try:
            for rank in range(PROCESSES):
                running.append(context.Process(target=_one_of, args=(subject, folder, rank)))
                running[-1].start()
            for process in running:
                process.join(2 * PATIENCE)
        finally:
            for process in running:
                process.kill()
                process.join()
        if failures := [files.read(path, LARGEST).decode() for path in sorted(Path(folder).glob("*.txt"))]:
            raise Came(min(failures, key=lambda said: said.startswith("Another process")))
        for rank in range(PROCESSES):
            left = Path(folder, f"{rank}.safetensors")
            if not left.exists():
                raise Came(f"process {rank} did not come to an end")
            ended = load(files.read(left, LARGEST))
            if name := close({name: whole[name] for name in whole if name in ended}, ended, **ROUNDING):
                raise Came(f"{name} of process {rank} differs")


def _one_of(subject: Subject, folder: str, rank: int) -> None:
    """One of the processes: leaves what it ends with, or what went wrong."""
    torch.set_num_threads(1)  # threads of the process that was forked are not here
    try:
        meeting = f"file://{folder}/meeting"
        dist.init_process_group(
            "gloo", init_method=meeting, rank=rank, world_size=PROCESSES, timeout=timedelta(seconds=PATIENCE)
        )
        tensors = {name: tensor.contiguous() for name, tensor in _shared(subject, rank, PROCESSES).items()}
        files.write_new(Path(folder, f"{rank}.safetensors"), save(tensors))
    except Exception as error:
        files.write_new(Path(folder, f"{rank}.txt"), told(error).encode())
    finally:
        os._exit(0)  # what the other process registered to be done at its end is not done here


def _shared(subject: Subject, rank: int, size: int) -> dict[str, Tensor]:
    """Weights and state after a training with the share of process `rank`; the first alone shows state of the loop."""
    if subject.by_the_loop:
        return _by_the_loop(subject).everything
    rows = torch.tensor_split(torch.arange(4), size)[rank]
    return exact(subject, [(x[rows], y[rows], index[rows]) for x, y, index in batches(torch.float64)]).everything
