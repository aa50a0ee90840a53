"""What a step tells: its figures, and whether anything in it was not finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor

from ..run import RunState
from ..types import Passes
from .ledger import Ledger
from .objective import Outcome


@dataclass(frozen=True)
class Report:
    """What one step did. Tensors are detached and stay on the device: reading one synchronises.

    `raw` and `weighted` are each loss term's sum over the batch. `adv_correct`, `clean_correct` (at the weights of
    the loss) and `success` are counts, None where nothing demanded what they need. `shift_ratio` is
    ||v|| / ||theta||.
    """

    epoch: int
    step: int
    count: int
    loss: Tensor
    raw: Mapping[str, Tensor]
    weighted: Mapping[str, Tensor]
    adv_correct: Tensor | None
    clean_correct: Tensor | None
    success: Tensor | None
    zero_gradients: Tensor | None
    radius: Tensor
    shift_ratio: Tensor | None
    x_train: Tensor = field(repr=False)
    passes: Mapping[str, Passes]
    demanded_by: Mapping[str, Sequence[str]]

    @classmethod
    def of(
        cls, state: RunState, known: Mapping[str, Any], outcome: Outcome, ratio: Tensor | None, ledger: Ledger
    ) -> Self:
        """From what the step knew at its end; no synchronisation."""
        batch, zeros, logits = known["batch"], known["attack"].zero_gradients, outcome.logits

        def correct(view: str) -> Tensor | None:
            return (logits[view].argmax(1) == batch.y).sum() if view in logits else None

        return cls(
            epoch=state.epoch,
            step=state.step,
            count=len(batch.y),
            loss=outcome.loss.detach(),
            raw=outcome.raw,
            weighted=outcome.weighted,
            adv_correct=correct("adv_logits"),
            clean_correct=correct("clean_logits" if "clean_logits" in logits else "clean_logits_base"),
            success=None if known["success"] is None else known["success"].sum(),
            zero_gradients=None if zeros is None else (zeros * (known["radius"] > 0)).sum(),
            radius=known["radius"].sum(),
            shift_ratio=ratio,
            x_train=known["x_train"],
            passes=ledger.passes(),
            demanded_by=ledger.demanded_by(),
        )
