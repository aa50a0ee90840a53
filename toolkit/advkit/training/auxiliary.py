"""Frozen nets beside the model, `run.module`: how they compute, and what is booked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor

from ..generators import generators, put_back
from ..judging import checked_logits
from ..modules import mode
from ..run import RunState
from .engine import Engine
from .network import Network
from .pieces import pieces
from .trained import TrainedNet, blamed


@dataclass(frozen=True)
class FrozenNet:
    """A net beside the model, which is never trained."""

    engine: Engine
    source: str
    sha256: str

    def logits(self, network: Network, label: str, x: Tensor) -> Tensor:
        """(B, K) of images x, without gradient, in eval mode and else as the model computes."""
        before = generators()  # what it draws is nobody else's
        try:
            with mode(self.engine.model, training=False), torch.no_grad():
                output = self.engine.forward({}, x.detach(), partial(network.seed, label), network.careful)
        finally:
            put_back(before)
        return checked_logits(output, len(x), network.classes)


def auxiliary_logits(
    state: RunState, network: Network, phase: str, plugin: str, name: str, x: Tensor, parts: int = 1
) -> Tensor:
    """What `Run.module` answers in a step: booked, unless it has been asked about this very tensor before.

    It is computed in `parts`.
    """
    net, ledger = cast(FrozenNet | TrainedNet, state.modules[name]), network.ledger
    images, version, logits = ledger.answered.get((name, id(x)), (None, 0, x))
    if images is x and version == x._version:
        return logits.clone()  # whoever asks may write into what he gets
    with blamed(name, net.source, x):
        each = [net.logits(at, f"{phase} {name}", *part) for at, part in pieces(network, parts, len(x), x)]
        logits = each[0] if len(each) == 1 else torch.cat(each)
    ledger.values.add(f"what the net {name} returns", logits)
    ledger.auxiliary(phase, name, plugin)
    ledger.answered[name, id(x)] = x, x._version, logits
    return logits.clone()
