"""The images of an audit by parts, which the processes of a team take in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor

from ...errors import HookContract, NonFinite, OptionError
from ..attacks.base import Victim
from ..results import BATCH
from ..team import Team

REFUSALS = (OptionError, HookContract, NonFinite)
"""What a part of the images can be refused with."""
Work = Callable[[Victim, Tensor], Sequence[Tensor]]
"""Asks a net, by a counter of passes, about some rows."""


class Turns:
    """`victim` makes a net with counters of its own, `seed` what it draws in eval mode; `total` has all passes."""

    def __init__(self, team: Team, victim: Callable[[], Victim], seed: Callable[[str], None], total: Victim) -> None:
        self.team, self.victim, self.seed, self.total = team, victim, seed, total

    def __call__(self, purpose: str, rows: Tensor, work: Work) -> list[Sequence[Tensor]]:
        """What `work` says of images or of their positions, BATCH at a time, in their order.

        The processes of a team take a part each in turn, and all have the answers of all in the end. A part draws the
        same whoever has it, and the first part that `work` refuses is refused by all.
        """
        shares = parts(rows)
        answers: list[Sequence[Tensor]] = []
        for turn in range(0, len(shares), self.team.size):
            cost, answer = None, cast(Sequence[Tensor], ())
            if (number := turn + self.team.rank) < len(shares):
                net, refused = self.victim(), None
                self.seed(f"{purpose}, part {number}" if number else purpose)
                try:
                    answer = work(net, shares[number])
                except REFUSALS as error:
                    refused = [next(kind.__name__ for kind in REFUSALS if isinstance(error, kind)), str(error)]
                cost = net.forwards, net.backwards, refused
            for told, tensors in self.team.shown(cost, answer):
                if told is None:
                    continue
                forwards, backwards, refused = told
                self.total.forwards += forwards
                self.total.backwards += backwards
                if refused:
                    raise {kind.__name__: kind for kind in REFUSALS}[refused[0]](refused[1])
                answers.append([tensor.to(rows.device) for tensor in tensors])
        return answers


def parts(rows: Tensor) -> list[Tensor]:
    """At most BATCH rows each; one part where there are none."""
    return [rows[first : first + BATCH] for first in range(0, max(1, len(rows)), BATCH)]
