"""Says that a run learns nothing, or not what was meant, while there is time to stop it."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn

from ..compose.composition import Composition
from ..data.base import Dataset
from ..data.transforms import to_float
from ..errors import NonFinite
from ..modules import mode, own_generator, placement
from ..plugin import CORE
from .progress import Progress

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

    def tell(self, progress: Progress, accuracy: float, labels: Tensor) -> None:
        """Warn after one more validation on images with these labels (n,); once for each time the run gets stuck.

        Guessing is the largest class for every image, and two standard deviations of its accuracy.
        """
        n = len(labels)
        guess = int(labels.bincount().max()) / n
        most = guess + 2 * sqrt(guess * (1 - guess) / n)
        at_chance = n >= ENOUGH and accuracy <= most
        self.in_a_row = self.in_a_row + 1 if at_chance else 0
        if self.in_a_row == PATIENCE:
            progress.warn(
                f"Accuracy under no attack is {accuracy:.3f} of {n} images, no better than guessing, which gets up to "
                f"{most:.3f} of so many, in {PATIENCE} validations in a row: the run learns nothing. Try a lower "
                "optimizer.lr or the plugin eps-ramp."
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
                f"{share:.0%} of the attack's input gradients in epoch {epoch + 1} were zero, and there images are "
                f"trained on as they are: {cause}the model is sure of them beyond its precision, or lets no gradient "
                "through."
            )


def refuse_broken_net(model: nn.Module, dataset: Dataset, index: Tensor, most: int) -> None:
    """NonFinite where the net computes no logits any more, asked of `most` images after a run's last step."""
    device, dtype = placement(model)
    x = to_float(dataset.images[index[: min(most, ENOUGH)]].to(device), dtype)
    with mode(model, training=False), own_generator(device), torch.no_grad():
        logits = model(x)
    if bool((logits.isnan() | logits.isposinf()).any()):
        raise NonFinite(
            "NaN or Inf in the logits of the model after the last step: its weights are finite, but too large to "
            "compute with. The epoch was not stored; lower optimizer.lr."
        )
