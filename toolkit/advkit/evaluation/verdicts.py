"""Accuracy under attack, per sample: what validation chooses by, and what `advkit evaluate` prints."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import inf
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..ascent import NORMS
from ..data.base import Dataset
from ..data.transforms import to_float
from ..errors import HookContract, OptionError, blamed, named
from ..explained import calling, explained
from ..fingerprint import Undescribed, fingerprint
from ..judging import judged
from ..modules import placement
from ..registry import by_advkit
from ..rng import derive_seed
from .attacks.base import EvaluationAttack, Victim, attacked, others
from .attacks.gradient import Clean
from .results import BATCH, FILLED, Verdicts, unfit
from .soundness import classified_as, refuse_unsound, sound, unsteady
from .team import Team

FARTHEST = 1e6
"""How far from an image, which lies in [0, 1], anything is looked for: float32 can still tell points apart."""

UNKNOWN = "unknown"
"""In place of the fingerprint of an attack whose fields hide their state: its verdicts are never kept."""

Radius = float | Tensor
"""One eps for all images, or (n,)."""


class Kept(Protocol):
    """Where verdicts of a killed evaluation come back from: by attack, first image, number of images."""

    def get(self, key: str, first: int, count: int) -> Verdicts | None: ...

    def put(self, first: int, part: Verdicts) -> None: ...


def verdicts(
    model: nn.Module,
    dataset: Dataset,
    attacks: Sequence[EvaluationAttack],
    *,
    eps: Radius | Mapping[str, Radius],
    norm: str,
    seed: int = 0,
    kept: Kept | None = None,
    batch_size: int | None = None,
    chunk: int = BATCH,
    team: Team | None = None,
    tick: Callable[[int], None] = lambda done: None,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Verdicts]:
    """Which images of `dataset` withstand each attack, by its name. Changes nothing in the model.

    `eps` of another norm than `norm` comes by name, {"linf": 0.03, "l2": 0.5}. An image that is misclassified as it
    is withstands nothing and is not attacked. A model that draws in eval mode gets numbers of its own, the same at
    every evaluation. `batch_size` images at most are computed at once, for nets that need much memory; see `Victim`;
    `chunk` are attacked together: numbers that a library draws depend on it, advkit's own do not.
    The processes of a `team` take a chunk each in turn; all have the verdicts of all in the end, those that one
    process alone would have. `tick` is told of images that are done, `tell` at every pass of what is attacked.
    """
    team = team or Team()
    if batch_size is not None and batch_size < 1:
        raise OptionError(f"batch_size = {batch_size} must be 1 or more.")
    radii = budgets(attacks, eps, norm, len(dataset))
    for attack in attacks:
        if attack.name == "clean" and not isinstance(attack, Clean):
            named = type(attack).__name__
            raise OptionError(f"clean is the name of the images as they are; give the attack {named} another.")
    with judged(model) as reseed, explained():
        described = [describe(attack, radii[attack.norm or norm], attack.norm or norm, seed) for attack in attacks]
        if len({*team.heard(json.dumps(described, sort_keys=True))}) > 1:
            raise OptionError(
                "The processes were started with different attacks, or an eps or seed of their own; give all of them "
                "the same."
            )
        joined = {
            attack.name: Verdicts(settings, torch.zeros(0, dtype=torch.bool), access=attack.access)
            for attack, settings in zip(attacks, described, strict=True)
        }
        firsts, beside = range(0, len(dataset), chunk), others(model, dataset)
        for turn in range(0, len(firsts), team.size):
            together = firsts[turn : turn + team.size]
            part = None
            if team.rank < len(together):
                own = together[team.rank]
                part = _Chunk(model, dataset.take(slice(own, own + chunk)), own, seed, batch_size, reseed, beside)
            for attack, settings in zip(attacks, described, strict=True):
                store = None if settings.get("code") == UNKNOWN else kept
                said, is_new = None, False
                if part:
                    said = store.get(json.dumps(settings, sort_keys=True), part.first, part.size) if store else None
                    is_new = said is None
                    radius = radii[attack.norm or norm][part.first : part.first + chunk]
                    said = said or part.judge(attack, attack.norm or norm, radius, settings, tell)
                for first, (one, to_keep) in zip(together, _of_all(team, said, is_new), strict=True):
                    if store and to_keep:
                        store.put(first, one)
                    joined[attack.name].append(one)
                    tick(len(one.robust))
    refuse_unsound(max((one.unsound for one in joined.values()), default=0), len(dataset))
    return joined


def _of_all(team: Team, said: Verdicts | None, is_new: bool) -> list[tuple[Verdicts, bool]]:
    """The verdicts of every process that has some on its chunk, and whether it has only found them now."""
    heard = team.heard(None if said is None else (said.as_dict(), is_new))
    return [(Verdicts.of_dict(one[0]), one[1]) for one in heard if one is not None]


class _Chunk:
    """Some images of a data set and who of them is classified correctly as it is; computed where it is asked for."""

    def __init__(
        self,
        model: nn.Module,
        part: Dataset,
        first: int,
        seed: int,
        batch_size: int | None,
        reseed: Callable[[int], None],
        beside: Callable[[], Tensor] | None,
    ) -> None:
        self.part, self.first, self.seed, self.reseed = part, first, seed, reseed
        self.model, self.size, self.batch_size, self.beside = model, len(self.part), batch_size, beside
        self._edges: list[str] = []
        self._clean: tuple[Tensor, Tensor, Tensor, int, list[str]] | None = None

    def judge(
        self,
        attack: EvaluationAttack,
        norm: str,
        radius: Tensor,
        settings: dict[str, Any],
        tell: Callable[[str], None] | None,
    ) -> Verdicts:
        began = time.perf_counter()
        x, y, known, unsound, notes = self._images()
        if attack.name == "clean":
            seconds = time.perf_counter() - began
            return Verdicts(settings, known.cpu(), self.size, 0, seconds, [*notes], attack.access, unsound)
        left = torch.nonzero(known).squeeze(1)
        net = self._victim(norm)
        if tell is not None:
            where = f"{attack.name} {self.first + 1}-{self.first + self.size}"
            net.tell = lambda rows: tell(", ".join(filter(None, (where, net.part, f"{rows} attacked"))))
        self._seed(attack.name)
        robust = known.clone()
        if len(left):
            x_adv = attacked(attack, net, x[left], y[left], radius.to(x)[left], self.part.index.to(x.device)[left])
            robust[left] = net.correct(x_adv, y[left])
        seconds = time.perf_counter() - began
        if len(left) and self.first == 0 and attack.access == "gradient":
            self._edges = self._edges or [net.look_at_edges(x[left], y[left])]
            notes = [*notes, *filter(None, self._edges)]
        notes = [*notes, *(note for note in net.notes if note not in notes)]
        return Verdicts(settings, robust.cpu(), net.forwards, net.backwards, seconds, notes, attack.access, unsound)

    def _victim(self, norm: str) -> Victim:
        return Victim(
            self.model,
            classes=len(self.part.classes),
            norm=norm,
            seed=self.seed,
            batch_size=self.batch_size,
            beside=self.beside,
        )

    def _images(self) -> tuple[Tensor, Tensor, Tensor, int, list[str]]:
        if self._clean is None:
            device, dtype = placement(self.model)
            x, y = to_float(self.part.images.to(device), dtype), self.part.labels.to(device)
            net = self._victim("linf")
            self._seed("clean")
            with torch.no_grad(), calling(x.shape):
                logits = net(x)
            broken = int((~sound(logits)).sum())
            if int((~logits.amax(1).isfinite()).sum()) > broken:
                net.note("all classes of some images are masked by logits of -Inf; those images count as broken")
            if self.first == 0 and (sentence := unsteady(self.model, net, self._victim("linf"), x, self._seed)):
                net.note(sentence)
            self._clean = x, y, classified_as(logits, y), broken, net.notes
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
    return {**head, **settings_of(attack, norm, shared), **_code(attack), **by_image, "seed": seed}


def _code(attack: EvaluationAttack) -> dict[str, str]:
    """{"code": fingerprint} of a third party's attack, its fields with it: it need not say in `settings` what it is."""
    if by_advkit(type(attack)):
        return {}
    try:
        return {"code": fingerprint(attack)}
    except Undescribed:
        return {"code": UNKNOWN}


def settings_of(attack: EvaluationAttack, norm: str, eps: float | None) -> dict[str, Any]:
    """What the attack says of itself beside name, `norm` and `eps`, as a file holds it; HookContract where none can."""
    with blamed(f"in settings of the attack {attack.name}"):
        said: object = attack.settings(eps)
        said = dict(said) if isinstance(said, Mapping) else said
    whose = f"The settings of the attack {attack.name}"
    if not isinstance(said, dict):
        raise HookContract(f"{whose} are a {type(said).__name__}; return a mapping.")
    try:
        if odd := [key for key in _keys(said) if not isinstance(key, str)]:
            raise TypeError(f"the key {odd[0]!r} is no text")
        text = json.dumps(said, allow_nan=False, ensure_ascii=False).encode()  # half a surrogate pair is no text
        kept: dict[str, Any] = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise HookContract(f"{whose} are no JSON values ({error}); return numbers, texts and lists.") from None
    head = {"name": attack.name, "norm": norm, "eps": eps}
    own = {key: value for key, value in kept.items() if key not in head or value != head[key]}
    if taken := FILLED & own.keys():
        raise HookContract(f"{whose} have {min(taken)}, which its row of results has already; name it otherwise.")
    if what := unfit(own):
        raise HookContract(f"{whose} have {what}; name it otherwise, or return that.")
    return own


def _keys(value: object) -> Iterator[object]:
    """Of all mappings in a value."""
    if isinstance(value, dict):
        yield from value
        value = [*value.values()]
    for part in value if isinstance(value, list | tuple) else ():
        yield from _keys(part)


def budgets(
    attacks: Iterable[EvaluationAttack], eps: Radius | Mapping[str, Radius], norm: str, n: int
) -> dict[str, Tensor]:
    """(n,) float64 for each norm that is needed; OptionError where one is missing or makes no sense."""
    given = dict(eps) if isinstance(eps, Mapping) else {norm: eps}
    if stray := [name for name in given if name not in NORMS]:
        raise OptionError(
            f"eps names the norm {stray[0]!r}; known are {', '.join(NORMS)}, such as eps={{'{norm}': E}}."
        )
    radii: dict[str, Tensor] = {}
    for attack in attacks:
        own = attack.norm or norm
        if own not in NORMS:
            raise OptionError(f"The attack {attack.name} is for the norm {own!r}; known are {', '.join(NORMS)}.")
        if own not in given:
            if attack.name == "clean":
                radii.setdefault(own, torch.zeros(n, dtype=torch.float64))
                continue
            if own == norm:
                has = f"has {', '.join(given)} alone" if given else "is empty"
                raise OptionError(
                    f"{attack.name} attacks in {own}, but eps {has}; give eps={{'{own}': E}}, or a number."
                )
            raise OptionError(
                f"{attack.name} attacks in {own}, but eps is in {norm}; give {named(f'--eps-{own}', 'E')} too "
                f"(RobustBench has 0.5 in l2 beside 8/255 in linf on CIFAR-10)."
            )
        radius = torch.as_tensor(given[own], dtype=torch.float64).cpu()
        if radius.numel():
            refuse_gray_levels(float(radius.max()), own)
        if radius.shape not in ((), (n,)) or not bool((radius.isfinite() & (radius >= 0)).all()):
            raise OptionError(f"eps must be a finite number >= 0, or one for each of the {n} images.")
        radii[own] = radius.expand(n)
    return radii


def ranges(radii: Mapping[str, Tensor]) -> list[str]:
    """Of (n,) by norm, those that differ by image, as sentences."""
    ends = {norm: (float(each.min()), float(each.max())) for norm, each in radii.items()}
    several = {norm: (low, high) for norm, (low, high) in ends.items() if low < high}
    return [f"eps in {norm} differs by image, {low:.4g} to {high:.4g}" for norm, (low, high) in several.items()]


def refuse_gray_levels(eps: float, norm: str) -> None:
    """OptionError for an eps that was meant in gray levels, or in whose steps float32 loses its way."""
    if FARTHEST < eps < inf:
        raise OptionError(f"eps = {eps:g} is above {FARTHEST:g}, but images lie in [0, 1]; give a smaller one.")
    if norm == "linf" and eps > 1:
        raise OptionError(f"eps = {eps:g} is above 1, but images lie in [0, 1]; a budget of 8 gray levels is 8/255.")
