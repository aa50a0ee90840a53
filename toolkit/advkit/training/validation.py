"""How good a net is on images it is not trained on: what chooses the best epoch."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ..config.resolve import Resolved
from ..data.base import Dataset
from ..evaluation.attacks.names import parse_attacks
from ..evaluation.results import BATCH
from ..evaluation.verdicts import verdicts
from ..modules import replaced


def accuracies(
    model: nn.Module, weights: Mapping[str, Tensor], dataset: Dataset, resolved: Resolved
) -> dict[str, float]:
    """Accuracy under no attack and under two, by the names of the attacks, with `weights` in place of the model's."""
    attack, steps = resolved.attack, resolved.validation.steps
    attacks = parse_attacks(("clean", f"pgd-{steps}", f"cw-{steps}"), pace=0.25)
    with replaced(model, weights):
        size = min(BATCH, resolved.run.batch_size)
        kept = verdicts(model, dataset, attacks, eps=attack.eps, norm=attack.norm, chunk=size)
    return {name: float(judged.robust.double().mean()) for name, judged in kept.items()}
