"""Whether the processes of a run are in one step of one run: they say so with every batch, before they take it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..config import runfile
from ..config.resolve import Resolved
from ..inventory import Inventory
from ..settings import RunSettings
from ..storage.weights import MODEL, prefixed
from ..types import Batch
from .meeting import refuse_unfit_for_several
from .panel import Panel
from .ranks import Alone
from .shares import Whole


class Agreement:
    """What the processes compare at the steps of one run.

    Raises OptionError or HookConflict for what several can not do.
    """

    def __init__(
        self, ranks: Alone, model: nn.Module, optimizer: torch.optim.Optimizer, panel: Panel, run: RunSettings
    ) -> None:
        refuse_unfit_for_several(ranks, model, panel.composition, run)
        self._ranks, self._optimizer, self._state = ranks, optimizer, panel.state
        self._facts: Mapping[str, str] | None = None
        self._epoch: int | None = None

    def without_checkpoints(self, resolved: Resolved) -> None:
        """What they were started with, and the bits that they hold, are compared as an epoch begins: nobody else does.

        A run on disk compares the first as its processes meet, and the bits at every checkpoint.
        """
        if self._ranks.size > 1:
            sizes = ("num_samples", "num_classes", "image_shape")
            told = {size: str(getattr(self._state, size)) for size in sizes}
            self._facts = {"settings": runfile.dump(resolved), **told}

    def shares(self, batch: Batch, careful: bool, held: Inventory) -> Whole:
        """How the batch of a step lies in the processes. Raises OptionError or HookContract where they are apart."""
        state, ranks = self._state, self._ranks
        if ranks.size == 1:
            return ranks.shares(batch.index, batch.occurrence, careful, {})
        trained = [name for name, parameter in held.parameters.items() if parameter.requires_grad]
        now = {
            "epoch": state.epoch,
            "step": state.step,
            "rates": _crc(_rates(self._optimizer)),
            "trained": _crc(trained),
        }
        shares = ranks.shares(batch.index, batch.occurrence, careful, now)
        if self._facts is not None and self._epoch != state.epoch:
            ranks.refuse_others(self._facts)
            ranks.refuse_apart(prefixed(MODEL, {**held.parameters, **held.buffers}) | state.stored())
            self._epoch = state.epoch
        return shares


def _crc(value: object) -> int:
    return zlib.crc32(repr(value).encode())


def _rates(optimizer: torch.optim.Optimizer) -> list[object]:
    """What its groups are set to, as far as that can be said without waiting for a GPU."""
    return [
        {key: value for key, one in group.items() if key != "params" and (value := _plain(one)) is not None}
        for group in optimizer.param_groups
    ]


def _plain(value: object) -> object:
    if isinstance(value, Tensor):
        return value.tolist() if value.device.type == "cpu" and value.numel() == 1 else None
    if isinstance(value, list | tuple):
        return [*map(_plain, value)]
    return value if isinstance(value, bool | int | float | str) else None
