"""Accuracy under attack, per sample: what validation chooses by, and what `advkit evaluate` prints."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..ascent import NORMS
from ..data.base import Dataset
from ..data.transforms import to_float
from ..errors import OptionError
from ..judging import judged
from ..modules import placement
from ..registry import code
from ..rng import derive_seed
from .attacks.base import EvaluationAttack, Victim, refuse_outside
from .attacks.names import parse_attacks
from .statistics import wilson

SUSPECT_GAP = 0.06
"""PGD and margin accuracies further apart than this are a sign of masked gradients."""

BATCH = 100
"""Images attacked together, and what a killed evaluation may have to do again."""

Radius = float | Tensor
"""One eps for all images, or (n,)."""


@dataclass
class Verdicts:
    """What one attack found: `robust` (n,) bool on the CPU, and what it cost, passes counted in images."""

    settings: dict[str, Any]
    """Name, norm, eps and whatever else tells this attack from others; JSON values."""
    robust: Tensor
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Equal for equal attacks."""
        return json.dumps(self.settings, sort_keys=True)

    def append(self, other: Verdicts) -> None:
        """Take the next images in."""
        self.robust = torch.cat([self.robust, other.robust])
        self.forwards += other.forwards
        self.backwards += other.backwards
        self.seconds += other.seconds
        self.notes += [note for note in other.notes if note not in self.notes]


class Kept(Protocol):
    """Where verdicts of a killed evaluation come back from: by attack, first image, number of images."""

    def get(self, key: str, first: int, count: int) -> Verdicts | None: ...

    def put(self, first: int, found: Verdicts) -> None: ...


def verdicts(
    model: nn.Module,
    dataset: Dataset,
    attacks: Sequence[EvaluationAttack],
    *,
    eps: Radius | Mapping[str, Radius],
    norm: str,
    seed: int = 0,
    kept: Kept | None = None,
    tick: Callable[[int], None] = lambda done: None,
) -> dict[str, Verdicts]:
    """Which images of `dataset` withstand each attack, by its name. Changes nothing in the model.

    `eps` of another norm than `norm` comes by name, {"linf": 0.03, "l2": 0.5}. An image that is misclassified as it
    is withstands nothing and is not attacked. A model that draws in eval mode gets numbers of its own, the same at
    every evaluation.
    """
    radii = budgets(attacks, eps, norm, len(dataset))
    rows = range(0, len(dataset), BATCH)
    found: dict[str, Verdicts] = {}
    with judged(model) as reseed:
        for first in rows:
            chunk = _Chunk(model, dataset, first, seed, reseed)
            for attack in attacks:
                own = attack.norm or norm
                radius = radii[own][first : first + BATCH]
                settings = describe(attack, radii[own], own, seed)
                part = kept.get(json.dumps(settings, sort_keys=True), first, chunk.size) if kept else None
                if part is None:
                    part = chunk.judge(attack, own, radius, settings)
                    if kept:
                        kept.put(first, part)
                if attack.name in found:
                    found[attack.name].append(part)
                else:
                    found[attack.name] = part
                tick(chunk.size)
    return found


class _Chunk:
    """Some images of a data set and who of them is classified correctly as it is; computed where it is asked for."""

    def __init__(
        self, model: nn.Module, dataset: Dataset, first: int, seed: int, reseed: Callable[[int], None]
    ) -> None:
        self.model, self.dataset, self.first, self.seed, self.reseed = model, dataset, first, seed, reseed
        self.size = min(BATCH, len(dataset) - first)
        self._clean: tuple[Tensor, Tensor, Tensor] | None = None

    def judge(self, attack: EvaluationAttack, norm: str, radius: Tensor, settings: dict[str, Any]) -> Verdicts:
        began = time.perf_counter()
        x, y, right = self._images()
        if attack.name == "clean":
            return Verdicts(settings, right.cpu(), self.size, 0, time.perf_counter() - began)
        left = torch.nonzero(right).squeeze(1)
        net = Victim(self.model, classes=len(self.dataset.classes), norm=norm, seed=self.seed)
        radius = radius.to(x)[left]
        self._seed(attack.name)
        robust = right.clone()
        if len(left):
            x_adv = attack.perturb(net, x[left], y[left], radius, self.first + left)
            x_adv = refuse_outside(attack.name, x[left], x_adv, radius, norm)
            robust[left] = net.correct(x_adv, y[left])
        seconds = time.perf_counter() - began
        return Verdicts(settings, robust.cpu(), net.forwards, net.backwards, seconds, net.notes)

    def _images(self) -> tuple[Tensor, Tensor, Tensor]:
        if self._clean is None:
            device, dtype = placement(self.model)
            rows = slice(self.first, self.first + self.size)
            x = to_float(self.dataset.images[rows].to(device), dtype)
            y = self.dataset.labels[rows].to(device)
            self._seed("clean")
            net = Victim(self.model, classes=len(self.dataset.classes), norm="linf")
            self._clean = x, y, net.correct(x, y)
        return self._clean

    def _seed(self, purpose: str) -> None:
        self.reseed(derive_seed(self.seed, "core", "evaluation", f"{purpose} {self.first}"))


def describe(attack: EvaluationAttack, radius: Tensor, norm: str, seed: int) -> dict[str, Any]:
    """What tells this attack's verdicts from others', in JSON values; eps is None where it differs by image."""
    if attack.name == "clean":
        return {"name": "clean", "norm": norm, "eps": 0.0}
    shared = float(radius[0]) if bool((radius == radius[0]).all()) else None
    by_image = {"eps_of_images": radius.tolist()} if shared is None else {}
    head = {"name": attack.name, "norm": norm, "eps": shared}
    own = {key: value for key, value in attack.settings(shared).items() if key not in head}
    return {**head, **own, **code(type(attack)), **by_image, "seed": seed}


def budgets(
    attacks: Iterable[EvaluationAttack], eps: Radius | Mapping[str, Radius], norm: str, n: int
) -> dict[str, Tensor]:
    """(n,) float64 for each norm that is needed; OptionError where one is missing or makes no sense."""
    given = dict(eps) if isinstance(eps, Mapping) else {norm: eps}
    found = {}
    for attack in attacks:
        own = attack.norm or norm
        if own not in NORMS:
            raise OptionError(f"The attack {attack.name} is for the norm {own!r}; known are {', '.join(NORMS)}.")
        if own not in given:
            if attack.name == "clean":
                given[own] = 0.0
            else:
                raise OptionError(
                    f"{attack.name} attacks in {own}, but eps is in {norm}; give --eps-{own} E too, from Python "
                    f"eps={{'{norm}': ..., '{own}': E}} (RobustBench has 0.5 in l2 beside 8/255 in linf on CIFAR-10)."
                )
        radius = torch.as_tensor(given[own], dtype=torch.float64).cpu()
        if radius.numel():
            refuse_gray_levels(float(radius.max()), own)
        if radius.shape not in ((), (n,)) or not bool((radius.isfinite() & (radius >= 0)).all()):
            raise OptionError(f"eps must be a finite number >= 0, or one for each of the {n} images.")
        found[own] = radius.expand(n)
    return found


def refuse_gray_levels(eps: float, norm: str) -> None:
    """OptionError for an eps that was meant in gray levels."""
    if norm == "linf" and eps > 1:
        raise OptionError(f"eps = {eps:g} is above 1, but images lie in [0, 1]; a budget of 8 gray levels is 8/255.")


def _accuracy(robust: Tensor) -> dict[str, Any]:
    correct, n = int(robust.sum()), len(robust)
    return {"accuracy": correct / n, "interval": wilson(correct, n)}


def summary(found: Sequence[Verdicts], norm: str) -> dict[str, Any]:
    """Accuracies with intervals and costs, the worst case per sample, and whether PGD and margin disagree.

    `worst_case` is over the attacks in `norm`, the evaluation's; None where there were none.
    """
    rows: list[dict[str, Any]] = []
    for each in found:
        n = len(each.robust)
        row = {key: value for key, value in each.settings.items() if key != "eps_of_images"} | _accuracy(each.robust)
        row["passes"] = {"forward": each.forwards / n, "input_backward": each.backwards / n}
        row |= {"seconds": each.seconds} | ({"notes": each.notes} if each.notes else {})
        rows.append(row)
    by_norm = {name: _accuracy(kept) for name, kept in worst_cases(found).items()}
    gap = loss_gap(found)
    return {
        "attacks": rows,
        "worst_case": by_norm.get(norm),
        **({"worst_case_by_norm": by_norm} if set(by_norm) - {norm} else {}),
        "suspect": None if gap is None else gap > SUSPECT_GAP,
    }


def worst_cases(found: Iterable[Verdicts]) -> dict[str, Tensor]:
    """By norm, (n,) bool: the images that withstand every attack in it, and are classified correctly as they are."""
    found = list(found)
    clean = [each.robust for each in found if each.settings["name"] == "clean"]
    worst: dict[str, Tensor] = {}
    for each in found:
        if each.settings["name"] != "clean":
            own = each.settings["norm"]
            worst[own] = worst[own] & each.robust if own in worst else torch.stack([each.robust, *clean]).all(0)
    return worst


def loss_gap(found: Iterable[Verdicts]) -> float | None:
    """The largest difference of accuracies between cross-entropy and margin, None where no two attacks match.

    They match where all but the loss is equal, and where their steps reach the edge of the ball.
    """
    pairs: dict[str, dict[str, float]] = {}
    for each in found:
        settings = each.settings
        if settings.get("loss") in ("cross-entropy", "margin") and reach(each) >= 1:
            alike = json.dumps({key: settings[key] for key in settings if key not in ("name", "loss")}, sort_keys=True)
            pairs.setdefault(alike, {})[settings["loss"]] = float(each.robust.double().mean())
    gaps = [abs(pair["cross-entropy"] - pair["margin"]) for pair in pairs.values() if len(pair) == 2]
    return max(gaps, default=None)


def reach(found: Verdicts) -> float:
    """How far an attack can walk, in eps: steps times step size; 0 for what takes no steps."""
    steps, size, eps = (found.settings.get(key) for key in ("steps", "step_size", "eps"))
    if not isinstance(steps, int) or size is None:
        return 0.0
    if isinstance(size, str):  # "0.2 eps", where eps differs by image
        return steps * float(size.removesuffix(" eps"))
    return steps * size / eps if eps else 0.0


def _attack(given: object) -> EvaluationAttack:
    if isinstance(given, str):
        return parse_attacks([given])[0]
    if isinstance(given, EvaluationAttack) and isinstance(getattr(given, "name", None), str):
        return given
    kind = given.__name__ if isinstance(given, type) else type(given).__name__
    raise OptionError(f"{kind} is no attack; pass a name, or an object of an EvaluationAttack with a `name`.")


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    attacks: Sequence[str | EvaluationAttack] = ("clean", "pgd-20", "cw-20"),
    *,
    eps: Radius | Mapping[str, Radius],
    norm: str = "linf",
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracies of `model` on all of `dataset`: {"n", "attacks", "worst_case", "suspect", "robust"}.

    Attacks are names or objects. `eps` is one number, (n,), or by norm {"linf": 0.03, "l2": 0.5}, for attacks in
    another norm than `norm`. `robust` is a list of bool an attack. `suspect` is True where the accuracies under
    cross-entropy and margin PGD of equal steps differ by more than 0.06, None where not both were run.
    """
    chosen = [_attack(each) for each in attacks]
    if not chosen or len({each.name for each in chosen}) != len(chosen):
        raise OptionError("Name one or more attacks, each once.")
    if norm not in NORMS:
        raise OptionError(f"norm = {norm!r} must be one of {', '.join(NORMS)}.")
    found = verdicts(model, dataset, chosen, eps=eps, norm=norm, seed=seed)
    robust = {name: each.robust.tolist() for name, each in found.items()}
    return {"n": len(dataset), **summary(list(found.values()), norm), "robust": robust}
