"""Accuracy under attack, per sample: what validation chooses by, and what `advkit evaluate` prints."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from .attack import NORMS, pgd
from .data.base import Dataset
from .data.transforms import to_float
from .errors import NonFinite, OptionError, did_you_mean
from .network import checked_logits, mode, own_generator
from .rng import derive_seed
from .types import Objective

SUSPECT_GAP = 0.06
"""PGD and margin accuracies further apart than this are a sign of masked gradients."""

BATCH = 250


def cross_entropy(y: Tensor) -> Objective:
    """Cross-entropy with the hard labels y (B,)."""
    return lambda logits: F.cross_entropy(logits, y, reduction="none")


def margin(y: Tensor) -> Objective:
    """max_{j != y} Z_j - Z_y, unclipped: what both papers call C&W under PGD."""

    def objective(logits: Tensor) -> Tensor:
        own = F.one_hot(y, logits.shape[1]).bool()
        rival = logits.masked_fill(own, -torch.inf).amax(1)
        return rival - logits.gather(1, y[:, None]).squeeze(1)

    return objective


OBJECTIVES: dict[str, Callable[[Tensor], Objective]] = {"pgd": cross_entropy, "cw": margin, "fgsm": cross_entropy}


@dataclass(frozen=True)
class EvaluationAttack:
    """`clean`, `fgsm`, `pgd-K` or `cw-K`: K steps of PGD from x on cross-entropy or on the margin."""

    name: str
    loss: str
    steps: int
    pace: float
    """Step size as a share of eps."""

    @classmethod
    def parse(cls, name: str, pace: float = 0.2) -> EvaluationAttack:
        """From its name. CAT's step is eps/5; fgsm is one step of eps."""
        if name == "clean":
            return cls(name, "", 0, 0.0)
        if name == "fgsm":
            return cls(name, "fgsm", 1, 1.0)
        found = re.fullmatch(r"(pgd|cw)-([1-9][0-9]{0,3})", name)
        if not found:
            known = ("clean", "fgsm", "pgd-20", "cw-20")
            raise OptionError(f"Unknown attack {name}.{did_you_mean(name, known)} Known: clean, fgsm, pgd-K, cw-K.")
        return cls(name, found[1], int(found[2]), pace)

    def robust(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: str) -> Tensor:
        """(B,) bool: which samples are still classified as y at the final iterate. `model` is in eval mode.

        Raises NonFinite if an input gradient is not finite: such an attack would be none, and every net robust.
        """
        frozen = {name: parameter.detach() for name, parameter in model.named_parameters()}

        def forward(images: Tensor) -> Tensor:
            return checked_logits(functional_call(model, frozen, (images,)), len(images))

        if self.steps:
            radius = x.new_full((len(x),), eps)
            result = pgd(
                forward,
                NORMS[norm](x, radius),
                x.clone(),
                OBJECTIVES[self.loss](y),
                steps=self.steps,
                step_size=self.pace * radius,
            )
            if result.finite is not None and not bool(result.finite):
                raise NonFinite(
                    f"{self.name} met an input gradient that is NaN or Inf; its accuracy would mean nothing."
                )
            x = result.x_adv
        with torch.no_grad():
            return forward(x).argmax(1) == y


def parse_attacks(names: Sequence[str]) -> list[EvaluationAttack]:
    """One or more attacks, each once."""
    if not names or len(set(names)) != len(names):
        given = ",".join(names)
        raise OptionError(f"--attacks {given!r} must name one or more attacks, each once, such as clean,pgd-20,cw-20.")
    return [EvaluationAttack.parse(name) for name in names]


def verdicts(
    model: nn.Module,
    dataset: Dataset,
    attacks: Sequence[EvaluationAttack],
    *,
    eps: float,
    norm: str,
    tick: Callable[[int], None] = lambda done: None,
) -> dict[str, Tensor]:
    """For each attack (n,) bool on the CPU: which images of `dataset` withstand it. Changes nothing in the model.

    A model that draws in eval mode gets numbers of its own, the same at every evaluation.
    """
    parameter = next(model.parameters())
    found: dict[str, list[Tensor]] = {attack.name: [] for attack in attacks}
    with mode(model, training=False), own_generator(parameter.device) as seed:
        for first in range(0, len(dataset), BATCH):
            rows = slice(first, first + BATCH)
            x = to_float(dataset.images[rows].to(parameter.device), parameter.dtype)
            y = dataset.labels[rows].to(parameter.device)
            for attack in attacks:
                seed(derive_seed(0, "core", "evaluation", f"{attack.name} {first}"))
                found[attack.name].append(attack.robust(model, x, y, eps, norm).cpu())
                tick(len(y))
    return {name: torch.cat(parts) for name, parts in found.items()}


def wilson(correct: float, n: int) -> list[float]:
    """95 % score interval of a share (Wilson 1927)."""
    z = 1.959963984540054
    share, spread = correct / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return [max(0.0, centre - half), min(1.0, centre + half)]


def summary(kept: Mapping[str, Tensor], attacks: Sequence[EvaluationAttack], eps: float) -> dict[str, Any]:
    """Accuracies with intervals, the worst case per sample, and whether PGD and margin disagree."""
    rows = []
    for attack in attacks:
        correct, n = int(kept[attack.name].sum()), len(kept[attack.name])
        row: dict[str, Any] = {"name": attack.name, "eps": eps if attack.steps else 0}
        if attack.steps:
            row |= {"steps": attack.steps, "step_size": attack.pace * eps}
        rows.append(row | {"accuracy": correct / n, "interval": wilson(correct, n)})
    worst = torch.stack(list(kept.values())).all(0)
    by_loss: dict[str, float] = {}
    for attack, row in zip(attacks, rows, strict=True):
        if attack.loss in ("pgd", "cw"):
            by_loss[attack.loss] = min(by_loss.get(attack.loss, 1.0), row["accuracy"])
    gap = abs(by_loss["pgd"] - by_loss["cw"]) if len(by_loss) == 2 else None
    return {
        "attacks": rows,
        "worst_case": {"accuracy": int(worst.sum()) / len(worst), "interval": wilson(int(worst.sum()), len(worst))},
        "suspect": None if gap is None else gap > SUSPECT_GAP,
    }


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    attacks: Sequence[str] = ("clean", "pgd-20", "cw-20"),
    *,
    eps: float,
    norm: str = "linf",
) -> dict[str, Any]:
    """Accuracies of `model` on all of `dataset`: {"n", "attacks", "worst_case", "suspect"}.

    `suspect` is True where the accuracies under cross-entropy and margin PGD differ by more than 0.06, None where
    not both were run.
    """
    chosen = parse_attacks(attacks)
    if norm not in NORMS or not (isfinite(eps) and eps >= 0):
        raise OptionError(f"eps = {eps} must be finite and >= 0, norm = {norm!r} one of {', '.join(NORMS)}.")
    kept = verdicts(model, dataset, chosen, eps=eps, norm=norm)
    return {"n": len(dataset), **summary(kept, chosen, eps)}
