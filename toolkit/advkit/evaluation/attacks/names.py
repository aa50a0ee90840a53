"""From what is typed to attacks: all are found in the registry, advkit's own as anybody's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from ... import registry
from ...errors import OptionError, cut, did_you_mean, named, shown
from .base import CAT_PACE, EvaluationAttack, Typed


def parse_attack(name: str, pace: float = CAT_PACE, root: str | None = None) -> EvaluationAttack:
    """One attack as it is typed; `pace` is PGD's step as a share of eps, `root` where the data of a named run lies.

    `registry.spellings()` lists what there is. Registered names that the text is, or begins with, are asked in turn,
    the shortest first, whether they can read it.
    """
    for owner in registry.attacks_of(name):  # so nobody's pgd-20 stands in the place of pgd's
        kind = cast(type[EvaluationAttack], registry.load("attack", owner))
        kinds, typed = (EvaluationAttack, type(None)), Typed(name, pace, root)
        attack = registry.answer("attack", kind, kinds, kind.spelled, typed)
        if attack is not None:
            return attack
    known = registry.spellings()
    near = did_you_mean(name, [text.replace("-K", "-20").replace("xR", "x5") for text in known])
    raise OptionError(f"Unknown attack {cut(name)}.{near} Known: {', '.join(known)}.")


def parse_attacks(names: Sequence[str], pace: float = CAT_PACE, root: str | None = None) -> list[EvaluationAttack]:
    """One or more attacks, each once."""
    if not names or len(set(names)) != len(names):
        given = shown(",".join(names))
        raise OptionError(
            f"{named('--attacks')} {given} must name one or more attacks, each once, such as clean,pgd-20,cw-20."
        )
    attacks = [parse_attack(name, pace, root) for name in names]
    if len({attack.name for attack in attacks}) != len(attacks):
        raise OptionError("Name one or more attacks, each once.")
    return attacks
