"""The attacks of an evaluation: advkit's own, those of other libraries, and third parties'.

Training has one attack, in `advkit.ascent`; these only judge. All are asked the same question, `perturb`, and
none is believed: the evaluation checks every answer against ball and box and asks the net itself.
"""

from __future__ import annotations

from .base import EvaluationAttack, Typed, Victim
from .gradient import Clean, Cw, Fgsm, Pgd
from .names import parse_attack, parse_attacks
from .square import Square

__all__ = [
    "Clean",
    "Cw",
    "EvaluationAttack",
    "Fgsm",
    "Pgd",
    "Square",
    "Typed",
    "Victim",
    "parse_attack",
    "parse_attacks",
]
