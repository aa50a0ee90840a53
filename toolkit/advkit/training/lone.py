"""One image by itself, of which BatchNorm takes no statistics: known from a run's numbers, before its first step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..config.resolve import Resolved
from ..data.transforms import to_float
from ..errors import OptionError
from ..explained import LONE, wants_several
from ..hidden import without_trace
from ..modules import mode, own_generator, placement
from ..settings import RunSettings
from .compiled import eagerly
from .pieces import cut

if TYPE_CHECKING:
    from .loop import Trainer


def batched(order: Tensor, run: RunSettings) -> list[Tensor]:
    """The batches of an epoch, each (b,), of its images in their order (n,)."""
    *batches, last = torch.split(order, run.batch_size)
    if len(last) > 1 or not batches or run.lone_image == "keep":
        return [*batches, last]
    return [*batches[:-1], torch.cat([batches[-1], last])] if run.lone_image == "merge" else batches


def lone(
    resolved: Resolved, batches: Iterable[int], judged: int | None, processes: int, sampler: str = ""
) -> dict[bool, str]:
    """Where a run shows its net one image alone, in training (True) or where it is judged: what to do about it.

    `batches` are how many images those of an epoch have, which the plugin `sampler` makes, if any; `judged` are how
    many choose `best`: of several the last one is shown beside others (`Victim`).
    """
    found = {True: _in_training(resolved.run, {*batches}, processes, sampler)}
    if judged == 1:
        test = resolved.validation.split == "test"
        found[False] = "best is chosen by one: " + (
            "give two test images at least, or take validation.split=validation"
            if test
            else "raise validation.fraction to two images at least, or set it to 0"
        )
    return {training: remedy for training, remedy in found.items() if remedy}


def refuse_lone(model: nn.Module, images: Tensor, found: Mapping[bool, str]) -> None:
    """OptionError where the model takes no image by itself, the first of `images` (n, C, H, W) uint8, and `lone` has
    found that it would be shown one."""
    for training, remedy in found.items():
        if refuses_one(model, images, training):
            raise OptionError(f"{LONE}{remedy}.")


def _in_training(run: RunSettings, batches: set[int], processes: int, sampler: str) -> str:
    """What to do where a forward of the training has one image; "" where none has."""
    other = f"another batch size of {sampler}" if sampler else "another run.batch_size"
    for size in sorted(batches, reverse=True):
        if size == 1 and sampler:
            return f"let the plugin {sampler}, whose train_sampler gives such a batch, give two images at least"
        if size == 1 and run.batch_size == 1:
            return "raise run.batch_size to two images at least"
        if size == 1 and len(batches) == 1:
            return "give two images at least to train on"
        if size == 1:
            return f"an epoch's last batch has one (run.lone_image={run.lone_image}): take merge or drop, or {other}"
        shares = torch.arange(size).tensor_split(processes)
        most = len(shares[0]) if processes > 1 else None
        if processes > 1 and run.batchnorm == "synchronised":  # over the shares of all
            continue
        if all(len(part) != 1 for share in shares for part in cut(share, run.accumulate, most)):
            continue
        if processes > 1:
            return (
                f"one of {processes} processes has one image of a batch of {size}: take run.batchnorm=synchronised, "
                f"{other}, or another number of processes"
            )
        return f"run.accumulate={run.accumulate} makes such parts of a batch of {size}: lower it, or take {other}"
    return ""


def refuse_lone_of(trainer: Trainer, batches: Sequence[Tensor] | None = None) -> None:
    """`refuse_lone` of a run before it begins, and of the `batches` of an epoch where a plugin makes them."""
    resolved, owner = trainer.resolved, trainer.panel.stage.owner("train_sampler")
    if batches is None:
        owner, sampled = None, resolved.composition.always("train_sampler")
        batches = [] if sampled else batched(trainer.feed.training, resolved.run)
    elif owner is None:
        return
    judged = len(trainer.splits.test if resolved.validation.split == "test" else trainer.feed.validation)
    found = lone(resolved, map(len, batches), judged, trainer.ranks.size, owner.plugin.name if owner else "")
    refuse_lone(trainer.model, trainer.splits.train.images, found)


def refuses_one(model: nn.Module, images: Tensor, training: bool) -> bool:
    """Whether the model takes no image by itself in this mode; one on the meta device tells, too.

    What else it refuses is said where it is called.
    """
    device, dtype = placement(model)
    x = to_float(images[:1].to(device), dtype)
    unchanged: AbstractContextManager[None]
    if device.type == "meta":  # which holds no values to put back
        device, unchanged = torch.device("cpu"), nullcontext()
    else:
        unchanged = without_trace(model, hooks=True)
    with own_generator(device), eagerly(model), unchanged, mode(model, training), torch.no_grad():
        try:
            model(x)
        except Exception as error:
            return wants_several(error)
    return False
