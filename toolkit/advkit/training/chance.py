"""Says that a run learns nothing, or not what was meant, while there is time to stop it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..compose.composition import Composition
from ..data.transforms import to_float
from ..errors import NonFinite
from ..evaluation.statistics import guessing
from ..explained import calling
from ..global_state import products
from ..modules import mode, own_generator, placement
from ..plugin import CORE
from .progress import Progress

if TYPE_CHECKING:
    from .loop import Trainer

PATIENCE = 3
"""Validations in a row."""
ENOUGH = 50
"""Images, below which an accuracy at chance says nothing."""

MOST = 0.5
"""Of the input gradients of an epoch."""


class Chance:
    """Counts validations in a row whose accuracy under no attack is that of guessing."""

    def __init__(self) -> None:
        self.in_a_row = 0
        self.told = False

    def tell(self, progress: Progress, right: Tensor, labels: Tensor) -> None:
        """Warn after one more validation, `right` (n,) bool on these labels; once for each time the run gets stuck."""
        n = len(labels)
        found = guessing(right, labels) if n >= ENOUGH else None
        self.in_a_row = self.in_a_row + 1 if found else 0
        if found and self.in_a_row == PATIENCE:
            progress.warn(
                f"Accuracy under no attack is {float(right.double().mean()):.3f} on {n} images ({found[0]:.3f} on "
                f"average by class) in {PATIENCE} validations in a row, no better than guessing, which gets up to "
                f"{found[1]:.3f} on as many: the run learns nothing. Try a lower optimizer.lr or the plugin eps-ramp."
            )

    def stood_still(self, progress: Progress, epoch: int, share: float | None, run: Composition) -> None:
        """Warn after the first epoch in which most of the attack's input gradients, a `share` of them, were zero.

        An attack from x itself that climbs the objective of a plugin may have none there.
        """
        if share is not None and share > MOST and not self.told:
            self.told = True
            owner, cause = run.company.owner("attack_objective"), ""
            if owner != CORE and run.company.attacks_from_x:
                cause = f"the objective of {owner} has none at x, where attack.init=zero begins; or "
            progress.warn(
                f"{share:.0%} of the attack's input gradients in epoch {epoch + 1} were zero, and those images are "
                f"trained on as they are: {cause}the model is so sure of them that gradients round to 0, or it lets "
                "no gradient through."
            )


def refuse_broken_net(trainer: Trainer, remedy: str) -> None:
    """NonFinite, with the remedy, where the net computes no logits any more after a run's last step."""
    model, feed = trainer.model, trainer.feed
    device, dtype = placement(model)
    most = min(ENOUGH, trainer.resolved.run.at_once(trainer.ranks.size))
    x = to_float(feed.train_set.images[feed.training[:most]].to(device), dtype)
    with mode(model, training=False), own_generator(device), products("highest"), torch.no_grad(), calling(x.shape):
        logits = model(x)
    if bool((logits.isnan() | logits.isposinf()).any()):
        raise NonFinite(
            "NaN or Inf in the logits of the model after the last step: its weights are finite, but too large to "
            f"compute with. {remedy}"
        )
