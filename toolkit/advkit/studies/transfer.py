"""The black box of both papers: examples made against another net."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from ..errors import OptionError
from ..evaluation.attacks import names
from ..evaluation.attacks.base import EvaluationAttack, Victim
from ..evaluation.attacks.gradient import Pgd
from ..evaluation.attacks.names import CAT_PACE
from ..modules import frozen, mode
from .subject import of_run


@dataclass(frozen=True)
class Transfer(EvaluationAttack):
    """Attacks `source` and shows the result to the net under test, which is never asked for a gradient."""

    name: str
    source: nn.Module = field(repr=False)
    attack: Pgd
    identity: Mapping[str, object] = field(default_factory=dict)
    """What tells the source from others, for the record."""
    shape: tuple[int, int, int] | None = None
    """Of the images that the source takes; None: any."""

    def perturb(self, net: Victim, x: Tensor, y: Tensor, radius: Tensor, index: Tensor) -> Tensor:
        if self.shape not in (None, tuple(x.shape[1:])):
            raise OptionError(f"{self.name} takes images of shape {self.shape}, not {tuple(x.shape[1:])}.")
        with mode(self.source, training=False), frozen(self.source):
            other = Victim(self.source.to(x.device), classes=net.classes, norm=net.norm, seed=net.seed)
            classes = other(x[:1]).shape[1] if len(x) else net.classes
            if classes != net.classes:
                raise OptionError(f"{self.name} has {classes} classes, the net under test {net.classes}.")
            # Images that the source gets wrong are attacked too: their gradient is as good as any.
            found = self.attack.perturb(other, x, y, radius, index)
        net.forwards += other.forwards
        net.backwards += other.backwards
        return found

    def settings(self, eps: float | None) -> Mapping[str, object]:
        # Below a key of its own: this is no gradient attack on the net under test.
        return {"source": self.identity, "by": {"name": self.attack.name, **self.attack.settings(eps)}}


def parse_attack(name: str, pace: float = CAT_PACE, root: str | None = None) -> EvaluationAttack:
    """One attack by its name: `transfer:RUN`, or one that needs no run; `root` is where that run's data lies now."""
    head, colon, run = name.partition(":")
    if head != "transfer" or not colon:
        return names.parse_attack(name, pace)
    if not run:
        raise OptionError("transfer: names no run; write transfer:RUN, the folder of the net that is attacked.")
    source = of_run(Path(run), root=root)
    return Transfer(name, source.model, Pgd("pgd-20", 20, pace=pace), source.identity(), source.splits.train.shape)


def parse_attacks(typed: Sequence[str], pace: float = CAT_PACE, root: str | None = None) -> list[EvaluationAttack]:
    """One or more attacks, each once."""
    names.refuse_repeated(typed)
    return [parse_attack(name, pace, root) for name in typed]


def refuse_itself(attack: EvaluationAttack, identity: Mapping[str, object]) -> None:
    """OptionError where the source is the net under test: that would be no black box."""
    if isinstance(attack, Transfer) and attack.identity == identity:
        raise OptionError(f"{attack.name} is the net under test itself; name a run with other weights.")
