"""From what is typed to attacks: all are found in the registry, advkit's own as anybody's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from ... import registry
from ...errors import OptionError, cut, did_you_mean, named, shown
from ...registry import by_advkit
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
    refuse_namesakes(names, attacks)
    return attacks


def refuse_namesakes(given: Sequence[object], attacks: Sequence[EvaluationAttack]) -> None:
    """OptionError where two of the attacks, which were `given` as they were typed or as objects, have one name."""
    first = dict[str, int]()
    for place, attack in enumerate(attacks):
        if (before := first.setdefault(attack.name, place)) == place:
            continue
        one, other = (
            cut(each) if isinstance(each, str) else f"attack {at + 1} ({type(each).__name__})"
            for at, each in ((before, given[before]), (place, given[place]))
        )
        if isinstance(given[place], str) and by_advkit(type(attack)):
            raise OptionError(f"{one} and {other} are one attack, {attack.name}; leave one of them out.")
        own = (
            "`spelled` has to give each its own, such as typed.text"
            if isinstance(given[place], str)
            else "give each its own"
        )
        raise OptionError(
            f"{one} and {other} are both named {attack.name!r}, and results tell attacks apart by name; {own}."
        )
