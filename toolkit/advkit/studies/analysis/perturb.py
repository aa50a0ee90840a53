"""What the analyses attack with: PGD from x itself, on a model that stays as it is."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...arguments import a_number, a_whole_number
from ...ascent import NORMS, per_sample
from ...data.base import Dataset
from ...data.transforms import to_float
from ...errors import Caution, NonFinite, OptionError, cut, shown
from ...evaluation.attacks.gradient import climb
from ...evaluation.edges import stuck_at_edges
from ...evaluation.soundness import doubt
from ...evaluation.verdicts import refuse_gray_levels
from ...explained import calling, explained
from ...judging import checked_logits, judged, untouched
from ...modules import placement
from ...options import LARGEST
from ...rng import derive_seed

BATCH = 250
"""Images a forward at most; every analysis is per sample, so this decides about memory and time alone."""

MOST = 2**31
"""Steps of an attack, and images at once, that a program may ask for."""

Forward = Callable[[Tensor], Tensor]
"""From images (B, C, H, W) to logits (B, K)."""


@dataclass(frozen=True)
class Ascent:
    """K steps of PGD on the cross-entropy with the labels, from x itself: no random start, so there is one answer.

    `eps` and `step_size` in the unit of `norm` ("linf", "l2") on images in [0, 1]. The default is the attack of
    ISEAT's section 3, PGD50 with step eps/4 (2/255 at 8/255).
    """

    eps: float
    steps: int = 50
    step_size: float | None = None
    """None: eps/4."""
    norm: str = "linf"

    def __post_init__(self) -> None:
        if self.norm not in [*NORMS]:
            raise OptionError(f"norm = {self.norm!r} must be one of {', '.join(NORMS)}.")
        object.__setattr__(self, "steps", a_whole_number("steps", self.steps, 1, MOST))  # of a frozen one
        for name in ("eps", "step_size"):
            if (given := getattr(self, name)) is not None or name == "eps":
                value = a_number(name, given)
                if not 0 <= value <= LARGEST:
                    raise OptionError(f"{name} = {given} must be a finite number >= 0, and at most 3.4e38.")
                object.__setattr__(self, name, value)
        refuse_gray_levels(self.eps, self.norm)

    @property
    def pace(self) -> float:
        """The step size in force."""
        return self.eps / 4 if self.step_size is None else self.step_size

    @classmethod
    def parse(cls, name: str, *, eps: float, step_size: float | None = None, norm: str = "linf") -> Ascent:
        """From `pgd-K`, K from 1 to 9999. Raises OptionError."""
        typed = re.fullmatch(r"pgd-([1-9][0-9]{0,3})", str(name))
        if not typed:
            raise OptionError(
                f"Unknown attack {cut(str(name))}; an analysis takes pgd-K, K steps from the image, such as pgd-50."
            )
        return cls(eps, int(typed[1]), step_size, norm)

    def as_dict(self) -> dict[str, object]:
        """The settings, for a record."""
        return {
            "name": f"pgd-{self.steps}",
            "norm": self.norm,
            "eps": self.eps,
            "steps": self.steps,
            "step_size": self.pace,
            "start": "zero",
        }

    def __call__(self, forward: Forward, x: Tensor, y: Tensor) -> Tensor:
        """x_adv of images x (B, C, H, W) in [0, 1] with labels y (B,), for the `forward` of `still`.

        Raises NonFinite if an input gradient is not finite: its sign would be no direction at all.
        """
        radius = x.new_full((len(x),), self.eps)
        size = torch.full_like(radius, self.pace)
        result = climb(forward, x, y, radius, norm=self.norm, steps=self.steps, step_size=size)
        if result.finite is not None and not bool(result.finite):
            raise NonFinite("The attack met an input gradient that is NaN or Inf; the analysis would mean nothing.")
        return result.x_adv


@contextmanager
def still(model: nn.Module, classes: int | None = None) -> Iterator[Forward]:
    """The model as a function from images to logits: eval mode, frozen, drawing from a generator of its own.

    Nothing of it is changed afterwards. Logits of another width than `classes`, where they are known, are refused.
    """
    with judged(model) as seed, explained():
        seed(derive_seed(0, "core", "analysis"))

        def forward(x: Tensor) -> Tensor:
            with untouched(x, by_value=True), calling(x.shape):
                return checked_logits(model(x), len(x), classes)

        yield forward


def device_of(model: nn.Module) -> torch.device:
    """Where the model computes."""
    return placement(model)[0]


def asked(dataset: Dataset, index: Tensor | None, batch_size: int) -> tuple[Tensor, int]:
    """`index` (n,) int64, all by default, and `batch_size`. OptionError where the data have no such images, or none."""
    at_once, every = a_whole_number("batch_size", batch_size, 1, MOST), torch.arange(len(dataset))
    if index is None:
        return every, at_once
    fine = index.dtype == torch.int64 and index.dim() == 1 and len(index)
    if not fine or not 0 <= int(index.min()) <= int(index.max()) < len(every):
        raise OptionError(
            f"index = {shown(index.tolist())} must be a tensor of places of these {len(every)} images, whole numbers "
            f"from 0 to {len(every) - 1}: torch.tensor([0]), say."
        )
    return index, at_once


def batches(model: nn.Module, dataset: Dataset, index: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """x (B, C, H, W) in [0, 1] and y (B,) where the model is, of the images at `index` (n,)."""
    device, dtype = placement(model)
    for part in torch.split(index, batch_size):
        x = to_float(dataset.images[part].to(device), dtype)
        yield x, dataset.labels[part].to(device)


def caution(sentence: str) -> None:
    """What is to be known of the figures, to whoever calls an analysis from Python."""
    warnings.warn(sentence, Caution, stacklevel=6)


def tell_doubt(
    model: nn.Module,
    dataset: Dataset,
    index: Tensor,
    batch_size: int,
    tell: Callable[[str], None],
    *,
    follows: bool = True,
) -> None:
    """`tell` where the logits of the images at `index` (n,) depend on more than their image.

    A lone one, which is no batch, is asked among all of the data set. `follows`: the figures follow the input gradient,
    so that it is told where the net clips its images, too.
    """
    among = index if len(index) > 1 else torch.arange(len(dataset))
    x, _ = next(batches(model, dataset, among, batch_size))
    if sentence := doubt(model, x, "figures"):
        tell(sentence)
    if not follows:
        return
    x, y = next(batches(model, dataset, index, batch_size))
    with still(model) as forward:
        sentence = stuck_at_edges(model, forward, x, y)
    if sentence:
        tell(sentence.rstrip("."))


def cross_entropies(logits: Tensor, y: Tensor) -> Tensor:
    """CE with hard labels, (B,) float64: small differences of large losses are what an analysis is about."""
    return F.cross_entropy(logits.double(), y, reduction="none")


def lengths(way: Tensor) -> Tensor:
    """||way||_2 of each of (B, C, H, W): (B,) float64."""
    found: Tensor = torch.linalg.vector_norm(way.flatten(1).double(), dim=1)
    return found


def unit(way: Tensor) -> Tensor:
    """way / ||way||_2 of each of (B, C, H, W); 0 stays 0."""
    length = lengths(way)
    return (way.double() / per_sample(torch.where(length > 0, length, 1.0), way)).to(way.dtype)
