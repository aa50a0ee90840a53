"""How the processes that torchrun has started meet, and what they can not do together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from ..compose.composition import Composition
from ..compose.parts import WHOLE, refuse_parts
from ..config import runfile
from ..config.resolve import Resolved
from ..data.base import Splits
from ..errors import OptionError
from ..settings import RunSettings
from ..torchrun import several, unsaid
from .ranks import Alone, answered, here


def join(run: RunSettings) -> Alone:
    """Meet the other processes that torchrun has started, if it has. Raises OptionError."""
    if several() and not (dist.is_available() and dist.is_initialized()):
        if missing := unsaid():
            raise OptionError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {missing[0]} is not set: start several processes with "
                "torchrun, or unset WORLD_SIZE."
            )
        if torch.device(run.device).type == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        with answered():
            dist.init_process_group(timeout=timedelta(seconds=run.timeout))
    return here()


def met(ranks: Alone, resolved: Resolved, splits: Splits, samples: int) -> None:
    """OptionError where processes were started for different runs, or are too many for the `samples` to train on."""
    if ranks.size == 1:
        return
    ranks.refuse_others({"settings": runfile.dump(resolved), "training images": splits.train.fingerprint()})
    if ranks.size > min(resolved.run.batch_size, samples):
        raise OptionError(
            f"A batch of {min(resolved.run.batch_size, samples)} images is too small for {ranks.size} processes; raise "
            "run.batch_size, or start fewer."
        )


@contextmanager
def parting() -> Iterator[None]:
    """A scope after which this process has left the others, if there were any."""
    try:
        yield
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


def refuse_unfit_for_several(ranks: Alone, composition: Composition, run: RunSettings) -> None:
    """OptionError or HookConflict for what several processes can not do."""
    if ranks.size == 1:
        return
    refuse_parts(composition, f"a run of {ranks.size} processes", (*WHOLE, "instance_weight"))
    if run.accumulate > 1:
        raise OptionError("run.accumulate is of one process; leave it at 1, and start more processes.")
    if run.compile != "off":
        raise OptionError("run.compile is not supported in several processes yet; set run.compile=off.")
    if torch.device(run.device).index is not None:
        raise OptionError(f"run.device = {run.device!r} is one device; name its type, and each process takes its own.")
