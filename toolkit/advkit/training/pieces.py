"""Rows of a batch, part after part: for memory, and each drawing numbers of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy

import torch
from torch import Tensor

from .ledger import Ledger
from .network import Network


def cut(rows: Tensor, count: int, most: int | None = None) -> Sequence[Tensor]:
    """The rows (b,) of a batch by the parts of `parts_of`."""
    if most is not None:
        return rows.tensor_split(max(1, min(count, most // 2)))
    *parts, last = torch.split(rows, -(-len(rows) // count))
    return [*parts[:-1], torch.cat([parts[-1], last])] if parts and len(last) == 1 else [*parts, last]


def pieces(
    network: Network, count: int, most: int | None, *tensors: Tensor
) -> Iterator[tuple[Network, Sequence[Tensor]]]:
    """Tensors (b, ...) by the parts of `cut`, each with the network that computes it.

    Passes are booked for the first: together the parts are one of the whole batch.
    """
    parts = cut(torch.arange(len(tensors[0])), count, most)
    if len(parts) == 1:
        yield network, tensors
        return
    columns = [torch.split(tensor, [*map(len, parts)]) for tensor in tensors]
    for number, part in enumerate(zip(*columns, strict=True)):
        yield _piece(network, number) if number else network, part


def _piece(network: Network, number: int) -> Network:
    piece = copy(network)
    piece.ledger = Ledger(values=network.ledger.values)
    piece.seed = lambda label: network.seed(f"{label} piece {number}")
    return piece
