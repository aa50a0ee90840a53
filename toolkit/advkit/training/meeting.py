"""How the processes that torchrun has started meet, and what they can not do together."""

from __future__ import annotations

import atexit
import os
from datetime import timedelta
from importlib import import_module

import torch
import torch.distributed as dist
from torch import nn

from ..compose.composition import Composition
from ..compose.parts import WHOLE, refuse_parts
from ..config import runfile
from ..config.resolve import Resolved
from ..data.base import Splits
from ..errors import HookConflict, OptionError
from ..modules import placement
from ..settings import RunSettings
from ..torchrun import several, unsaid
from .ranks import Alone, answered, here


def join(run: RunSettings, timeout: float) -> Alone:
    """Meet the other processes that torchrun has started, if it has; each waits `timeout` seconds for another."""
    if several() and not (dist.is_available() and dist.is_initialized()):
        if missing := unsaid():
            raise OptionError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {missing[0]} is not set: start several processes with "
                "torchrun, or unset WORLD_SIZE."
            )
        gpu = torch.device(run.device).type == "cuda"
        if gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        # Before: defaults of its functions would hold the group, whose threads then outlive Python and may abort it.
        import_module("torch.distributed.nn.functional")

        with answered():
            # By name: left to itself, torch takes nccl alone where there are GPUs, which sends nothing from a CPU.
            backends = "cpu:gloo,cuda:nccl" if gpu else "gloo"
            dist.init_process_group(backends, timeout=timedelta(seconds=timeout))
        atexit.register(_part)  # not before: a script may train again
    return here()


def _part() -> None:
    """Leave the others, whose threads must not outlive Python."""
    if dist.is_initialized():
        dist.destroy_process_group()


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


def refuse_unfit_for_several(ranks: Alone, model: nn.Module, composition: Composition, run: RunSettings) -> None:
    """OptionError or HookConflict for what several processes can not do."""
    if ranks.size == 1:
        return
    gpus = [name for name, module in model.named_modules() if isinstance(module, nn.SyncBatchNorm)]
    if gpus and placement(model)[0].type == "cpu":
        raise OptionError(
            f"{gpus[0]} of the model is an nn.SyncBatchNorm, which several processes can not compute on CPUs; leave "
            "nn.BatchNorm as it is: run.batchnorm=synchronised takes the statistics of all."
        )
    refuse_parts(composition, f"a run of {ranks.size} processes", (*WHOLE, "instance_weight"))
    if run.accumulate > 1 and (weighing := composition.answers["instance_weight"]):
        raise HookConflict(
            f"Plugin {weighing[0].plugin.name} weighs the instances of a whole batch, which run.accumulate in several "
            "processes never brings together; leave one of them out."
        )
    if torch.device(run.device).index is not None:
        raise OptionError(f"run.device = {run.device!r} is one device; name its type, and each process takes its own.")
