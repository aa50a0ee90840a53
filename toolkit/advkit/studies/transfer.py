"""The black-box attack of CAT and ISEAT: examples made against the net of another run."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from ..config.request import registered
from ..errors import OptionError
from ..evaluation.attacks.base import EvaluationAttack, Typed, Victim, attacked
from ..evaluation.attacks.gradient import Pgd
from ..explained import calling
from ..fingerprint import fingerprint
from ..global_state import one_at_a_time
from ..judging import checked_logits, judged
from ..own_file import FLAGS, OwnFile
from ..storage.run_folder import RunFolder
from .subject import of_run

_CODE = re.compile(r"(.*?\.py(?:::?[^@:]*)?)(?:@|$)")
WHAT = {"model.name": "net", "data.name": "data"}


class Transfer(EvaluationAttack):
    """pgd-20 against the net of another run, shown to the one under test: the black box of both papers.

    That net is never asked for a gradient. A robust source makes weaker examples; CAT's were trained without an attack.
    Code of one's own that gave the other run its net, its data or both is named behind it: transfer:RUN@net.py:Net.
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
        notes: Sequence[str] = (),
    ) -> None:
        """`identity` tells the source from others, for the record; `shape` is that of its images, None: any.

        `notes` are said beside what it finds.
        """
        self.name, self.source, self.attack = name, source, attack
        self.identity, self.shape = dict(identity or {"net": fingerprint(source, strict=False)}), shape
        self.notes = tuple(notes)

    @classmethod
    @one_at_a_time
    def spelled(cls, typed: Typed) -> EvaluationAttack | None:
        head, colon, run = typed.text.partition(":")
        if head != cls.name or not colon:
            return None
        folder, code = _apart(run)
        source = of_run(folder, root=typed.root, files=_files(folder, code))
        notes = [f"of its source: {note}" for note in source.record.get("notes", ())]
        attack = Pgd("pgd-20", 20, pace=typed.pace)
        name, shape = f"{cls.name}:{folder}", source.splits.train.shape
        return cls(name, source.model, attack, source.identity(), shape, notes)

    def perturb(self, net: Victim, x: Tensor, y: Tensor, radius: Tensor, index: Tensor) -> Tensor:
        if self.shape not in (None, tuple(x.shape[1:])):
            raise OptionError(f"{self.name} takes images of shape {self.shape}, not {tuple(x.shape[1:])}.")
        with judged(self.source.to(x.device)):
            some = x[:1] if net.beside is None else net.beside()  # some nets take none alone
            with calling(some.shape, self.name):
                classes = checked_logits(self.source(some), len(some)).shape[1] if len(x) else net.classes
            if classes != net.classes:
                raise OptionError(f"{self.name} has {classes} classes, the net under test {net.classes}.")
            source = net.of(self.source)
            # Images that the source gets wrong are attacked too: their gradient is as good as any.
            x_adv = attacked(self.attack, source, x, y, radius, index)
        for note in self.notes:
            net.note(note)
        net.forwards += source.forwards
        net.backwards += source.backwards
        return x_adv

    def settings(self, eps: float | None) -> Mapping[str, object]:
        # Below a key of its own: this is no gradient attack on the net under test.
        return {"source": self.identity, "by": {"name": self.attack.name, **self.attack.settings(eps)}}


def _apart(typed: str) -> tuple[Path, list[str]]:
    """The folder and the code in RUN@FILE.py:NAME@FILE.py:NAME, all of which may have an @ in their names.

    OptionError where there is no RUN or no NAME.
    """
    parts = typed.split("@")
    first = count = len(parts)
    while first > 1 and _CODE.fullmatch(parts[first - 1]):
        first -= 1
    if first < count:
        first = next((place for place in range(count, 0, -1) if os.path.isdir("@".join(parts[:place]))), first)
    folder, code = "@".join(parts[:first]), _CODE.findall("@".join(parts[first:]))
    if not folder:
        raise OptionError(f"transfer:{typed} names no run; write transfer:RUN, the folder of the net that is attacked.")
    if files := [text for text in code if text.endswith((".py", ".py:"))]:
        name = files[0].rstrip(":")
        raise OptionError(
            f"transfer:{typed}: {name} is a file; say which class or function of it as FILE.py:NAME, {name}:NAME."
        )
    return Path(folder), code


def _files(run: Path, code: Sequence[str]) -> dict[str, OwnFile]:
    """By setting, the code that is typed for a run; it runs where it is typed, and never because the folder names it.

    OptionError where that is not one for each of net and data that is not installed.
    """
    given = RunFolder.open(run).file()
    own = {key: name for key in FLAGS if not registered(name := str(given.settings.get(key, "")))}
    if len(code) > len(own):
        raise OptionError(f"transfer:{run} has no net or data that {code[-1]} could give; leave @{code[-1]} out.")
    if len(code) < len(own):
        known = {key: f"{file.path}:{file.name}" for key, file in given.files.items()}
        words = "".join("@" + known.get(key, "FILE.py:NAME") for key in own)
        what = " and ".join(f"{WHAT[key]} ({name})" for key, name in own.items())
        raise OptionError(
            f"transfer:{run}: its {what} came from code that runs only where you name it: transfer:{run}{words}."
        )
    return {key: file for key, text in zip(own, code, strict=True) if (file := OwnFile.typed(key, text))}


def refuse_itself(attack: EvaluationAttack, identity: Mapping[str, object]) -> None:
    """OptionError where the source is the net under test: that would be no black box."""
    if isinstance(attack, Transfer) and attack.identity == identity:
        raise OptionError(f"{attack.name} is the net under test itself; name a run with other weights.")
