"""The perturbation v of a step's weights: how large it is, and standing at theta+v."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..compose.declarations import declared
from ..compose.stage import Stage


def shift_ratio(shift: Mapping[str, Tensor], model: nn.Module) -> Tensor:
    """||v|| / ||theta|| over all trainable parameters."""
    weights = [p.detach() for p in model.parameters() if p.requires_grad]
    return nn.utils.get_total_norm(list(shift.values())) / nn.utils.get_total_norm(weights)


def elsewhere(stage: Stage) -> str:
    """The plugin that lets the optimizer step at theta+v, as it declares; "" where it steps at theta."""
    owner = stage.owner("weight_perturbation")
    return owner.plugin.name if owner is not None and declared(owner.plugin, "steps_at_shift") else ""


@contextmanager
def moved(params: Mapping[str, Tensor], shift: Mapping[str, Tensor]) -> Iterator[None]:
    """The parameters at theta + v for the scope, in place: added before, subtracted after, as the official AWP code.

    The subtraction rounds, so theta is not restored bit for bit.
    """
    with torch.no_grad():
        for name, value in shift.items():
            params[name].add_(value)
        yield
        for name, value in shift.items():
            params[name].sub_(value)
