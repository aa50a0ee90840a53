"""What an attack of an evaluation is, and the net it attacks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...errors import HookContract, OptionError
from ...judging import checked_logits
from ...rng import Draws, derive_key

SLACK = 1e-5
"""How far beyond ball or box an answer may lie: float32 rounding of other libraries' projections."""


class Victim:
    """The net under attack: in eval mode, its parameters frozen by the caller, every pass counted.

    `forwards` and `backwards` count images, not calls: attacks drop images that are broken.
    """

    def __init__(self, model: nn.Module, *, classes: int, norm: str, seed: int = 0) -> None:
        self.model, self.classes, self.norm, self.seed = model, classes, norm, seed
        self.forwards = self.backwards = 0
        self.notes: list[str] = []
        """What an attack wants its reader to know, each once."""

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W); with a graph where x asks for a gradient."""
        rows = len(x)
        logits = checked_logits(self.model(x), rows)
        self.forwards += rows
        if x.requires_grad and not logits.requires_grad:
            raise OptionError(
                "The net has no gradient at its input, so attacks that follow it mean nothing; attack a copy that is "
                "differentiable, or use attacks without gradient: --attacks clean,square."
            )
        if logits.requires_grad:

            def count(_: Tensor) -> None:
                self.backwards += rows

            logits.register_hook(count)  # type: ignore[no-untyped-call]
        return logits

    def correct(self, x: Tensor, y: Tensor) -> Tensor:
        """(B,) bool: which images are classified as y (B,); none whose logits are NaN or Inf."""
        with torch.no_grad():
            logits = self(x)
            finite = logits.isfinite().all(1)
            if not bool(finite.all()):
                self.note("some logits are NaN or Inf; those images count as broken")
            return (logits.argmax(1) == y) & finite

    def draws(self, purpose: str, index: Tensor, part: int = 0) -> Draws:
        """Random numbers of `purpose`, a row for each image; the same whatever else is in the batch."""
        return Draws(derive_key(self.seed, "core", "evaluation", purpose, part), index)

    def note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)


class EvaluationAttack(ABC):
    """One attack of an evaluation.

    Third parties subclass it with a class attribute `name`, a constructor without arguments, and an entry point of
    that name in the group `advkit.attacks`; `advkit evaluate --attacks NAME` finds it.
    """

    name: str
    """As it is typed and printed."""
    norm: str | None = None
    """"linf" or "l2" where the attack knows only one; None: the evaluation's."""

    @abstractmethod
    def perturb(self, net: Victim, x: Tensor, y: Tensor, radius: Tensor, index: Tensor) -> Tensor:
        """The best adversarial examples found for images x (B, C, H, W), all classified as y (B,) when clean.

        They lie in [0, 1] and within `radius` (B,) of x in `net.norm`; return x itself where none was found.
        `index` (B,) is each image's position in the data set, for `net.draws`. Change neither x nor the net.
        """

    def settings(self, eps: float | None) -> Mapping[str, object]:
        """What the record says beside name, norm and eps; JSON values. `eps` is None where it differs by image."""
        return {}


def refuse_outside(attack: str, x: Tensor, x_adv: object, radius: Tensor, norm: str) -> Tensor:
    """`x_adv` if it is what `perturb` promises, up to rounding; HookContract otherwise."""
    if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape or x_adv.dtype != x.dtype:
        kind = f"{x_adv.dtype} {tuple(x_adv.shape)}" if isinstance(x_adv, Tensor) else type(x_adv).__name__
        raise HookContract(f"The attack {attack} returned {kind}; it must return images as it got: {tuple(x.shape)}.")
    if len(x) == 0:
        return x_adv
    if not bool(x_adv.isfinite().all()):
        raise HookContract(f"The attack {attack} returned NaN or Inf; its accuracy would mean nothing.")
    shift = (x_adv - x).flatten(1)
    size = shift.abs().amax(1) if norm == "linf" else shift.norm(dim=1)
    excess = float((size - radius).max())
    if excess > SLACK * max(1.0, float(radius.max())):
        raise HookContract(
            f"The attack {attack} left the {norm} ball by {excess:.2g}; its accuracy would mean nothing."
        )
    if float(x_adv.min()) < -SLACK or float(x_adv.max()) > 1 + SLACK:
        raise HookContract(f"The attack {attack} returned pixels outside [0, 1]; its accuracy would mean nothing.")
    return x_adv


def shared_radius(attack: str, radius: Tensor) -> float:
    """The one radius of all images, for libraries that know no other; HookContract where they differ."""
    if len(radius) and bool((radius != radius[0]).any()):
        raise HookContract(f"The attack {attack} takes one eps for all images; evaluate groups of equal eps apart.")
    return float(radius[0]) if len(radius) else 0.0
