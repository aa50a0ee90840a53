"""Runs the model for one step: with which weights, moving which buffers, drawing which numbers, booked to whom."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import count

import torch
from torch import Tensor, nn

from .engine import Engine
from .given import an_answer
from .ledger import Ledger


class Network:
    """The model in one step. `seed(label)` seeds what it draws, so that no forward shifts another's dropout.

    `careful`: what it does to its images and in which precision it computes is watched, too.
    """

    def __init__(
        self,
        model: nn.Module,
        engine: Engine,
        ledger: Ledger,
        seed: Callable[[str], None],
        classes: int,
        careful: bool,
        params: Mapping[str, nn.Parameter] | None = None,
    ) -> None:
        self.model, self.engine, self.ledger, self.classes = model, engine, ledger, classes
        self.seed, self.careful = seed, careful
        self.params = dict(model.named_parameters() if params is None else params)
        self.phase, self.at = "attack", dict[str, Tensor]()  # of attacks and judgements; in place of which parameters

    def forward(
        self,
        phase: str,
        label: str,
        owners: Iterable[str],
        x: Tensor,
        *,
        params: Mapping[str, Tensor] | None = None,
        moves_statistics: bool = False,
        backward: str = "full_backward",
        turn: int = 0,
    ) -> Tensor:
        """Logits (B, K) with some parameters replaced by `params`; the module itself is never changed.

        Buffers stay as they are unless `moves_statistics`. `turn` tells calls of one label apart.
        """
        replaced = dict(params or {})
        if not moves_statistics and self.model.training:
            # Train mode updates buffers in place: on clones, which are dropped.
            replaced |= {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        seed = partial(self.seed, f"{phase} {label} {turn}")
        logits = self.engine.forward(replaced, x, seed, self.careful)
        return self.ledger.forward(phase, label, owners, an_answer(logits, x, phase, self.classes), backward)

    def attacked(self, owner: str, moves_statistics: bool, label: str = "iterates") -> Callable[[Tensor], Tensor]:
        """f(. ; theta) for an attack, which runs in the scope of `frozen`."""
        turns = count()

        def forward(x: Tensor) -> Tensor:
            return self.forward(
                self.phase,
                label,
                [owner],
                x,
                params=self.at,
                moves_statistics=moves_statistics,
                backward="input_backward",
                turn=next(turns),
            )

        return forward

    def judge(self, label: str, owners: Iterable[str], x: Tensor) -> Tensor:
        """f(x; theta) in the attack phase, without gradient, moving nothing."""
        with torch.no_grad():
            return self.forward(self.phase, label, owners, x, params=self.at)

    def shifted(self, shift: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """theta + v by name, for the parameters that v shifts."""
        return {name: self.params[name] + value for name, value in shift.items()}
