"""From what is typed to attacks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import cast

from ... import registry
from ...errors import OptionError, did_you_mean
from .base import EvaluationAttack
from .gradient import Clean, Pgd

CAT_PACE = 0.2
"""CAT's step as a share of eps: 1/5."""

_PGD = re.compile(r"(pgd|cw)-([1-9][0-9]{0,3})(?:x([1-9][0-9]{0,2}))?(?:-(linf|l2))?")
_OWN = ("clean", "fgsm", "pgd-20", "pgd-20x5", "pgd-20-l2", "cw-20")


def parse_attack(name: str, pace: float = CAT_PACE) -> EvaluationAttack:
    """One attack by its name; `pace` is the step of PGD as a share of eps.

    `clean`; `fgsm`, one step of eps; `pgd-K` and `cw-K`, K steps on cross-entropy or on the margin, from x;
    `pgd-KxR` with R - 1 more starts; `pgd-K-l2` in L2; or one that is registered.
    """
    if name == "clean":
        return Clean()
    if name == "fgsm":
        return Pgd(name, 1, pace=1.0)
    if found := _PGD.fullmatch(name):
        loss, steps, restarts, norm = found.groups()
        return Pgd(
            name,
            int(steps),
            loss="margin" if loss == "cw" else "cross-entropy",
            pace=pace,
            restarts=int(restarts or 1),
            norm=norm,
        )
    registered = registry.names("attack")
    if name not in registered:
        known = f"clean, fgsm, pgd-K, pgd-KxR, cw-K, pgd-K-l2, transfer:RUN, {', '.join(registered)}"
        raise OptionError(f"Unknown attack {name}.{did_you_mean(name, (*_OWN, *registered))} Known: {known}.")
    return cast(type[EvaluationAttack], registry.load("attack", name))()


def parse_attacks(names: Sequence[str], pace: float = CAT_PACE) -> list[EvaluationAttack]:
    """One or more attacks, each once."""
    refuse_repeated(names)
    return [parse_attack(name, pace) for name in names]


def refuse_repeated(names: Sequence[str]) -> None:
    """OptionError unless one or more attacks are named, each once."""
    if not names or len(set(names)) != len(names):
        given = ",".join(names)
        raise OptionError(f"--attacks {given!r} must name one or more attacks, each once, such as clean,pgd-20,cw-20.")
