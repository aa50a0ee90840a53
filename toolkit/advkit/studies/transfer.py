"""The black box of both papers: examples made against the net of another run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from ..config.request import PASSED
from ..errors import NotTyped, OptionError
from ..evaluation.attacks.base import EvaluationAttack, Typed, Victim, attacked
from ..evaluation.attacks.gradient import Pgd
from ..fingerprint import fingerprint
from ..judging import checked_logits, judged
from ..storage.run_folder import RunFolder
from .subject import of_run


class Transfer(EvaluationAttack):
    """pgd-20 against the net of another run, shown to the one under test: the black box of both papers.

    That net is never asked for a gradient. A robust source makes weaker examples; CAT's were trained without an attack.
    """

    name = "transfer"
    access: ClassVar[str] = "transfer"
    spellings: ClassVar[tuple[str, ...]] = ("transfer:RUN",)
    place: ClassVar[int] = 65

    def __init__(
        self,
        name: str,
        source: nn.Module,
        attack: Pgd,
        identity: Mapping[str, object] | None = None,
        shape: tuple[int, int, int] | None = None,
    ) -> None:
        """`identity` tells the source from others, for the record; `shape` is that of its images, None: any."""
        self.name, self.source, self.attack = name, source, attack
        self.identity, self.shape = dict(identity or {"net": fingerprint(source, strict=False)}), shape

    @classmethod
    def spelled(cls, typed: Typed) -> EvaluationAttack | None:
        head, colon, run = typed.text.partition(":")
        if head != cls.name or not colon:
            return None
        if not run:
            raise OptionError("transfer: names no run; write transfer:RUN, the folder of the net that is attacked.")
        settings = RunFolder.open(Path(run)).file().settings
        if any(str(settings.get(key, "")).startswith(PASSED) for key in ("model.name", "data.name")):
            raise OptionError(f"{typed.text}: its net or data were passed from Python; name a run of installed ones.")
        try:
            source = of_run(Path(run), root=typed.root)
        except NotTyped:
            raise OptionError(
                f"{typed.text}: its net or data are code of a file; name a run of installed ones."
            ) from None
        attack = Pgd("pgd-20", 20, pace=typed.pace)
        return cls(typed.text, source.model, attack, source.identity(), source.splits.train.shape)

    def perturb(self, net: Victim, x: Tensor, y: Tensor, radius: Tensor, index: Tensor) -> Tensor:
        if self.shape not in (None, tuple(x.shape[1:])):
            raise OptionError(f"{self.name} takes images of shape {self.shape}, not {tuple(x.shape[1:])}.")
        with judged(self.source.to(x.device)):
            classes = checked_logits(self.source(x[:1]), 1).shape[1] if len(x) else net.classes
            if classes != net.classes:
                raise OptionError(f"{self.name} has {classes} classes, the net under test {net.classes}.")
            source = Victim(self.source, classes=classes, norm=net.norm, seed=net.seed, batch_size=net.batch_size)
            # Images that the source gets wrong are attacked too: their gradient is as good as any.
            x_adv = attacked(self.attack, source, x, y, radius, index)
        net.forwards += source.forwards
        net.backwards += source.backwards
        return x_adv

    def settings(self, eps: float | None) -> Mapping[str, object]:
        # Below a key of its own: this is no gradient attack on the net under test.
        return {"source": self.identity, "by": {"name": self.attack.name, **self.attack.settings(eps)}}


def refuse_itself(attack: EvaluationAttack, identity: Mapping[str, object]) -> None:
    """OptionError where the source is the net under test: that would be no black box."""
    if isinstance(attack, Transfer) and attack.identity == identity:
        raise OptionError(f"{attack.name} is the net under test itself; name a run with other weights.")
