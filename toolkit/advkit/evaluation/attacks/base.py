"""What an attack of an evaluation is, and the net it attacks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from ...ascent import NORMS
from ...data.base import Dataset
from ...data.transforms import to_float
from ...errors import HookContract, NonFinite, OptionError
from ...explained import attack_another, calling, explained, wants_several
from ...judging import GradientWatch, checked_logits, untouched
from ...modules import hook_before, placement
from ...registry import by_advkit
from ...rng import Draws, derive_key
from ...torch_func import at_once
from ..edges import stuck_at_edges
from ..soundness import UNMOVED, classified_as
from .lent import FEW, lent

SLACK = 1e-5
"""How far beyond ball or box an answer may lie: float32 rounding of other libraries' projections."""

CAT_PACE = 0.2
"""CAT's step as a share of eps: 1/5."""

STILL = 0.02
"""The share of input gradients that may be zero before it is said."""

BESIDE = "the net needs statistics of a batch, and one image has none: an image left over is shown beside two others"


class Victim:
    """The net under attack: in eval mode, its parameters frozen by the caller, every pass counted.

    `forwards` and `backwards` count the images that an attack shows, not calls: attacks drop images that are broken.
    `batch_size` images at most are computed at once, whatever the attack shows: those of a larger batch one part after
    the other, and where a gradient is asked for, each part once more, but not where torch.func takes it. So memory is
    bounded, and the verdicts are the same up to the rounding of batches of different size.
    Attacks drop images until one is left, of which some nets take no statistics: it is shown with those `beside` it.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        classes: int,
        norm: str,
        seed: int = 0,
        batch_size: int | None = None,
        beside: Callable[[], Tensor] | None = None,
    ) -> None:
        self.model, self.classes, self.norm, self.seed, self.batch_size = model, classes, norm, seed, batch_size
        self.forwards = self.backwards = 0
        self.notes: list[str] = []
        """What an attack wants its reader to know, each once."""
        self.beside = beside
        """Images of the same set."""
        self.shape: tuple[int, ...] | None = None
        """Of the images under attack, (C, H, W): what the net raises on others is not its fault."""
        self.part = ""
        """Which part of an attack of several is running."""
        self.tell: Callable[[int], None] | None = None
        """Told of every pass, how many images are shown."""
        self._watch = GradientWatch()
        self._passing = False

    def of(self, model: nn.Module) -> Victim:
        """Another net of the same classes, with counters of its own."""
        return Victim(
            model, classes=self.classes, norm=self.norm, seed=self.seed, batch_size=self.batch_size, beside=self.beside
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W); with a graph where x asks for a gradient."""
        rows, followed = len(x), x.requires_grad and torch.is_grad_enabled()
        logits = self._forward(self._watch(x), followed)
        self.forwards += rows
        if self.tell is not None:
            self.tell(rows)
        if followed and not logits.requires_grad:
            raise OptionError(attack_another())
        if logits.requires_grad:

            def count(gradient: Tensor | None) -> None:
                self.backwards += rows * at_once(gradient)

            logits.register_hook(count)  # type: ignore[no-untyped-call]
        return logits

    def _forward(self, x: Tensor, followed: bool) -> Tensor:
        size = self.batch_size or len(x)
        with untouched(x, by_value=not self.forwards):
            if len(x) <= size:
                return self._passed(x)
            return torch.cat([self._part(part, followed) for part in torch.split(x, size)])

    def _part(self, x: Tensor, followed: bool) -> Tensor:
        if not followed:
            return self._passed(x)
        try:
            with set_checkpoint_early_stop(False):  # by an error in the forward, as TorchScript can not
                return checkpoint(self._passed, x, use_reentrant=False)
        except RuntimeError:  # torch.func, around the net or in it, lets nothing be computed again; others raise again
            return self._passed(x)

    def _passed(self, x: Tensor) -> Tensor:
        self._passing = True
        try:
            return self._logits(x)
        finally:
            self._passing = False

    def _logits(self, x: Tensor) -> Tensor:
        try:
            with calling(x.shape) if self.shape in (None, x.shape[1:]) else nullcontext():
                logits = self.model(x)
            return checked_logits(logits, len(x), self.classes)
        except (RuntimeError, ValueError) as error:
            if len(x) != 1 or self.beside is None or not wants_several(error):
                raise
        shown = torch.cat([x, self.beside()])
        self.note(BESIDE)
        with calling(shown.shape):
            logits = self.model(shown)
        return checked_logits(logits, len(shown), self.classes)[:1]

    def watch_others(self, _: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """A forward pre-hook of the net: the gradients of those who call it past this Victim are seen too."""
        if self._passing:
            return given
        return tuple(self._watch(one) if isinstance(one, Tensor) else one for one in given)

    def refuse_broken_gradients(self, attack: str) -> None:
        """NonFinite where an input gradient that `attack` asked for is NaN or Inf; a note where many are zero."""
        if self._watch.finite is None or self._watch.still is None:
            return
        if not bool(self._watch.finite):
            raise NonFinite(f"{attack} met an input gradient that is NaN or Inf; its accuracy would mean nothing.")
        if int(self._watch.still) > STILL * self.backwards:
            self.note(UNMOVED)

    def ask_gradients(self, images: Iterable[Tensor], y: Tensor) -> None:
        """Of the cross-entropy, where an attack has followed none that was seen, such as those of a copy of the net.

        Not where its answers have none at all: that is said where somebody asks `Victim` for one.
        """
        if self._watch.finite is not None:
            return
        with torch.enable_grad():
            for x in images:
                few = min(FEW, self.batch_size or FEW)
                for part, labels in zip(torch.split(x, few), torch.split(y, few), strict=True):
                    point = part.detach().clone().requires_grad_()
                    logits = self._logits(point)
                    if logits.requires_grad:
                        torch.autograd.grad(torch.nn.functional.cross_entropy(logits, labels), point)

    def look_at_edges(self, x: Tensor, y: Tensor) -> str:
        """What `stuck_at_edges` says of these images, no passes of an attack; "" of a net without gradient."""
        return stuck_at_edges(self.model, self._logits, x[: self.batch_size], y[: self.batch_size]).rstrip(".")

    def correct(self, x: Tensor, y: Tensor) -> Tensor:
        """(B,) bool: which images are classified as y (B,); none whose logits are NaN or Inf, but -Inf for others."""
        with torch.no_grad():
            logits = self(x)
            if not bool(logits.amax(1).isfinite().all()):  # NaN where there is any
                self.note("some logits are NaN or Inf; those images count as broken")
            return classified_as(logits, y)

    def draws(self, purpose: str, index: Tensor, part: int = 0) -> Draws:
        """Random numbers of `purpose`, a row for each image; the same whatever else is in the batch."""
        return Draws(derive_key(self.seed, "core", "evaluation", purpose, part), index)

    def note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)


def others(model: nn.Module, dataset: Dataset) -> Callable[[], Tensor] | None:
    """Two images of a data set, as the model takes them, for `Victim`; None where there is one alone."""

    def first() -> Tensor:
        device, dtype = placement(model)
        return to_float(dataset.take(slice(2)).images.to(device), dtype)

    return first if len(dataset) > 1 else None


@dataclass(frozen=True)
class Typed:
    """An attack as it was typed, and what was typed beside it."""

    text: str
    pace: float = CAT_PACE
    """The step of PGD as a share of eps."""
    root: str | None = None
    """Where data lies now, for attacks that load a run."""


class EvaluationAttack(ABC):
    """One attack of an evaluation.

    Third parties subclass it with a class attribute `name`, a constructor without arguments, and an entry point of
    that name in the group `advkit.attacks`; `advkit evaluate --attacks NAME` finds it. An attack with numbers in its
    name says so in `spellings` and reads them in `spelled`. The first line of the docstring is its summary.
    """

    name: str
    """As it is typed and printed."""
    norm: str | None = None
    """"linf" or "l2" where the attack knows only one; None: the evaluation's."""
    access: ClassVar[str] = "gradient"
    """What it is shown: "gradient", "scores" (outputs alone) or "transfer" (another net's gradient)."""
    spellings: ClassVar[tuple[str, ...]] = ()
    """How it is typed, such as ("pgd-K", "pgd-KxR"), a literal; all begin with its name. None: by its name alone."""
    place: ClassVar[int] = 50
    """Where it stands in tables and help, a literal: clean 0, gradient attacks from 10, black boxes from 60."""

    @classmethod
    def spelled(cls, typed: Typed) -> EvaluationAttack | None:
        """The attack that `typed.text` spells, which is to set its `name` to that; None where it spells none."""
        return cls() if typed.text == cls.name else None

    @abstractmethod
    def perturb(self, net: Victim, x: Tensor, y: Tensor, radius: Tensor, index: Tensor) -> Tensor:
        """The best adversarial examples found for images x (B, C, H, W), all classified as y (B,) when clean.

        They lie in [0, 1] and within `radius` (B,) of x in `net.norm`; return x itself where none was found.
        `index` (B,) is each image's position in the data set, for `net.draws`. Change neither x nor the net.
        """

    def settings(self, eps: float | None) -> Mapping[str, object]:
        """What the record says beside name, norm and eps; JSON values. `eps` is None where it differs by image."""
        return {}


def attacked(attack: EvaluationAttack, net: Victim, x: Tensor, y: Tensor, radius: Tensor, index: Tensor) -> Tensor:
    """What `attack.perturb` returns, once it is known to be what it promises: in ball and box, by sound gradients."""
    norm, borrowed = net.norm, {"x": x, "y": y, "radius": radius, "index": index}
    strange = not by_advkit(type(attack))
    net.shape, hook = x.shape[1:], hook_before(net.model, net.watch_others)
    try:
        with explained(), lent(attack.name, net, borrowed, strange):
            answer = attack.perturb(net, x, y, radius, index)
        x_adv = refuse_outside(attack.name, x, answer, radius, norm)
        if strange and attack.access == "gradient":
            with torch.no_grad():
                between = NORMS[norm](x, radius).uniform(net.draws("gradients", index))
            net.ask_gradients((x, x_adv, between), y)  # it may have been where one breaks, and gone back
    finally:
        hook.remove()
    net.refuse_broken_gradients(attack.name)
    return x_adv


def refuse_outside(attack: str, x: Tensor, x_adv: object, radius: Tensor, norm: str) -> Tensor:
    """`x_adv` if it is what `perturb` promises, up to rounding; HookContract otherwise."""
    if not isinstance(x_adv, Tensor) or x_adv.is_nested or _form(x_adv) != _form(x):
        given = type(x_adv).__name__
        if isinstance(x_adv, Tensor):
            there = f" on {x_adv.device}" if x_adv.device != x.device else ""
            kind = "a nested tensor" if x_adv.is_nested else f"{x_adv.dtype} {tuple(x_adv.shape)}"
            given = f"{kind}{there}" + (f", {x_adv.layout}" if x_adv.layout != x.layout else "")
        raise HookContract(f"The attack {attack} returned {given}; it must return images as it got: {tuple(x.shape)}.")
    x, x_adv = x.detach(), x_adv.detach()
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


def _form(images: Tensor) -> tuple[object, ...]:
    return images.shape, images.dtype, images.device, images.layout


def shared_radius(attack: str, radius: Tensor) -> float:
    """The one radius of all images, for libraries that know no other; OptionError where they differ."""
    if len(radius) and bool((radius != radius[0]).any()):
        raise OptionError(f"The attack {attack} takes one eps for all images; evaluate groups of equal eps apart.")
    return float(radius[0]) if len(radius) else 0.0
