"""What an evaluation is asked for, in the words of people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch

from ..ascent import NORMS
from ..config.resolve import Resolved
from ..data.base import Splits
from ..errors import OptionError, named, shown
from ..evaluation.attacks import EvaluationAttack, parse_attacks
from ..evaluation.attacks.base import CAT_PACE
from ..evaluation.attacks.gradient import Pgd
from ..evaluation.attacks.names import refuse_namesakes
from ..evaluation.results import BATCH
from ..evaluation.verdicts import Radius
from ..plain import plain
from ..training.parts import none_held_out
from .inputs import amount, at_once, listed, pace, whole
from .subject import Subject

ATTACKS = "clean,pgd-20,cw-20"
WORST = "worst case"
"""The row of all attacks together, in tables."""


@dataclass(frozen=True)
class EvaluationRequest:
    """What an evaluation is asked for, checked before any net is loaded."""

    attacks: Sequence[EvaluationAttack]
    eps: Radius | Mapping[str, Radius] | None = None
    by_norm: Mapping[str, float] = field(default_factory=dict)
    """Of attacks in another norm than the net's."""
    n: int | None = None
    split: str = "test"
    seed: int = 0
    batch_size: int | None = None
    """Images computed at once, 0: as many as an attack shows; None: what `at_once` says of the net."""
    fresh: bool = False

    @classmethod
    def of(
        cls,
        attacks: str | Sequence[str | EvaluationAttack] = ATTACKS,
        *,
        eps: Radius | str | Mapping[str, Radius] | None = None,
        by_norm: Mapping[str, float | str | None] | None = None,
        step: str = "eps/5",
        n: int | str | None = None,
        split: str = "test",
        seed: int | str = 0,
        batch_size: int | str | None = None,
        fresh: bool = False,
        data_root: str | Path | None = None,
    ) -> EvaluationRequest:
        """Of what people write."""
        eps = None if eps is None else _radius(eps)
        radii = {
            norm: amount(named(f"--eps-{norm}"), given) for norm, given in (by_norm or {}).items() if given is not None
        }
        share = pace("step", step)
        if split not in ("test", "train"):
            raise OptionError(f"split = {split!r} must be test or train.")
        chosen = _attacks(attacks, share, data_root)
        for attack in chosen:
            if attack.name.encode(errors="ignore").decode() != attack.name:
                raise OptionError(
                    f"The attack {attack.name!r} has a name that is no UTF-8, so no verdicts.csv can hold it; rename "
                    "the attack, or the folder in its name."
                )
        again = isinstance(attacks, str | list | tuple) and share != CAT_PACE
        if again and chosen == _attacks(attacks, CAT_PACE, data_root):
            raise OptionError(
                f"No attack takes steps of a length that is said, so {named('--step')} would change nothing; leave it "
                "out, or add one such as pgd-20."
            )
        return cls(
            chosen,
            eps,
            radii,
            None if n is None else whole("n", n),
            split,
            whole("seed", seed),
            None if batch_size is None else whole("batch_size", batch_size),
            fresh,
        )

    def bounded(self, own: int = BATCH) -> Self:
        """The same of a net that computed `own` images at once in its run: `batch_size` is no longer None."""
        return replace(self, batch_size=at_once(self.batch_size, own))

    @property
    def radius(self) -> float | None:
        """The one eps that was given, for a net that has none of its own."""
        return self.eps if isinstance(self.eps, float) else None

    def radii(self, net: Subject) -> dict[str, float]:
        """By norm, that of the net first."""
        norm = net.norm
        self._refuse_twins(norm)
        given = self.eps if isinstance(self.eps, Mapping) else {} if self.eps is None else {norm: self.eps}
        if any(isinstance(eps, torch.Tensor) for eps in given.values()):
            raise OptionError(f"{net.name} is judged at one eps; pass a module for one of each image.")
        if norm in self.by_norm:
            raise OptionError(
                f"{net.name} is judged in {norm}, whose eps is {named('--eps')}; leave {named(f'--eps-{norm}')} out."
            )
        return {norm: net.eps} | {own: float(eps) for own, eps in given.items()} | self._others(norm)

    def of_module(self, norm: str) -> dict[str, Radius]:
        """By norm, for a module that is judged in `norm`."""
        assert self.eps is not None
        self._refuse_twins(norm)
        return dict(self.eps if isinstance(self.eps, Mapping) else {norm: self.eps}) | self._others(norm)

    def _refuse_twins(self, norm: str) -> None:
        """OptionError for an attack that is named twice, as pgd-5 and as pgd-5-linf where the norm is linf."""
        known: dict[EvaluationAttack, str] = {}
        for attack in self.attacks:
            if isinstance(attack, Pgd):
                first = known.setdefault(replace(attack, name="", norm=attack.norm or norm), attack.name)
                if first != attack.name:
                    raise OptionError(f"{first} and {attack.name} are one attack in {norm}; leave one of them out.")

    def _others(self, norm: str) -> dict[str, float]:
        """`by_norm`; OptionError for a norm in which nothing is judged."""
        for own in self.by_norm:
            if own != norm and not any(attack.norm == own for attack in self.attacks):
                raise OptionError(
                    f"No attack is in {own}, so {named(f'--eps-{own}')} would change nothing; leave it out, or add one "
                    f"such as pgd-20-{own}."
                )
        return dict(self.by_norm)

    def refuse_unjudged(self, resolved: Resolved, splits: Splits) -> None:
        """OptionError for what a study can not judge such a run by: attacks in another norm, for it takes no other eps;
        images held out, where the share that is to be is none."""
        norm = resolved.attack.norm
        for attack in self.attacks:
            if attack.norm not in (None, norm):
                raise OptionError(
                    f"{attack.name} attacks in {attack.norm}, and here runs are judged in their own norm, {norm}; "
                    "leave it out, and evaluate the runs in the other norm afterwards."
                )
        if self.split == "validation" and (said := none_held_out(resolved, splits)):
            raise OptionError(f"{said[0].partition(':')[0]}, so there is nothing to choose on; raise it.")

    def refuse_without_attack(self, norm: str) -> None:
        """OptionError where nothing attacks in `norm`, so that there will be no worst case to hold a gate against."""
        if not any(attack.name != "clean" and attack.norm in (None, norm) for attack in self.attacks):
            raise OptionError(f"--min-robust needs an attack in {norm}; add one to --attacks, such as pgd-20,cw-20.")


def _radius(given: object) -> Radius | Mapping[str, Radius]:
    """One eps, one of each image, or either by norm."""
    if isinstance(given, Mapping):
        if stray := [norm for norm in given if norm not in NORMS]:
            raise OptionError(f"eps names the norm {stray[0]!r}; known are {', '.join(NORMS)}.")
        if not given:
            raise OptionError("eps is empty; give a number, or one by norm such as eps={'linf': 8/255}.")
        return {norm: one for norm, eps in given.items() if isinstance(one := _radius(eps), float | torch.Tensor)}
    if isinstance(given, torch.Tensor | np.ndarray | list | tuple) and np.ndim(given):
        try:
            radii = torch.as_tensor(plain(given), dtype=torch.float64)
            radii.sum().item()  # of a meta tensor there is none
            return radii
        except (TypeError, ValueError, OverflowError, RuntimeError):
            raise OptionError("eps must be a number, or one for each image: a tensor, an array or a list.") from None
    return amount("eps", given)  # type: ignore[arg-type]  # which refuses whatever else it is


def _attacks(
    given: str | Sequence[str | EvaluationAttack], share: float, data_root: str | Path | None
) -> list[EvaluationAttack]:
    root = None if data_root is None else str(data_root)
    try:
        named = listed(given) if isinstance(given, str) else tuple(given)
    except Exception:  # of what can not be iterated
        named = None
    if named is None or isinstance(given, bytes | Mapping):
        raise OptionError(
            f"attacks = {shown(given)} must be names such as 'clean,pgd-20', or a list of names and objects of "
            "EvaluationAttack."
        )
    if all(isinstance(each, str) for each in named):
        return parse_attacks(listed(named), share, root)  # type: ignore[arg-type]
    chosen = [parse_attacks([one], share, root)[0] if isinstance(one, str) else _attack(one) for one in named]
    refuse_namesakes(named, chosen)
    return chosen


def _attack(given: object) -> EvaluationAttack:
    if isinstance(given, EvaluationAttack) and isinstance(getattr(given, "name", None), str):
        if given.name in ("index", "label"):
            raise OptionError(f"verdicts.csv has a column {given.name} of its own; give the attack another name.")
        if given.name == WORST:
            raise OptionError(f"Results have a {WORST} of their own, over all attacks; give the attack another name.")
        return given
    name = given.__name__ if isinstance(given, type) else type(given).__name__
    raise OptionError(f"{name} is no attack; pass a name, or an object of an EvaluationAttack with a `name`.")
