"""Checks of settings that no plugin sees: precision, memory format, compiled nets, several processes."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import warnings
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor

from ..compose.parts import WHOLE, refuse_parts
from ..errors import HookConflict
from ..storage import files
from ..training import engine
from .company import resolved
from .runs import ROUNDING, exact
from .small import Trained, batches, close, copies, tiny_net
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
