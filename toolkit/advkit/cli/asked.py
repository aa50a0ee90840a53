"""What every `advkit analyze` does: read what was typed, open the run, write the files, print the figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OptionError
from .evaluate import number, pace, whole
from .main import print_json

if TYPE_CHECKING:
    from torch import Tensor

    from ..studies.analysis import Pgd
    from ..studies.subject import Subject


class Asked:
    """An analysis as it was typed: the run, its images, the attack, and where the files go."""

    def __init__(self, typed: Mapping[str, Any], place: int | None = None) -> None:
        self.typed = typed
        count = whole("--n", typed["count"]) if "count" in typed else 0
        eps = number("--eps", typed.get("eps"))
        share = pace(typed["step"]) if "step" in typed else 0.0
        from ..evaluation.verdicts import refuse_gray_levels
        from ..studies.analysis import Pgd
        from ..studies.subject import of_run

        if "attack" in typed:
            Pgd.parse(typed["attack"], eps=0.0)  # refused before anything is loaded
        self.subject: Subject = of_run(Path(typed["run"]), typed["which"], typed["data_root"])
        self.split: str = typed.get("split", "train")
        splits = self.subject.splits
        self.dataset = splits.test if self.split == "test" else splits.train
        self.index = self._images(count, place)
        if "attack" in typed:
            budget = self.subject.eps if eps is None else eps
            refuse_gray_levels(budget, self.subject.norm)
            self.attack: Pgd = Pgd.parse(typed["attack"], eps=budget, step_size=share * budget, norm=self.subject.norm)

    def _images(self, count: int, place: int | None) -> Tensor:
        """(n,) int64: places in the split."""
        import torch

        from ..training.feed import parted

        known = torch.arange(len(self.dataset))
        if self.split != "test":
            known = parted(self.subject.resolved, len(self.dataset))[self.split == "validation"]
        if not len(known):
            raise OptionError(f"--split {self.split} has no images: this run held none out (validation.fraction).")
        if place is None:
            return self.dataset.take(known).sample(count).index.sort().values
        if not bool((known == place).any()):
            raise OptionError(
                f"--index {place} is no image of --split {self.split}, which has {len(known)} images, from "
                f"{int(known[0])} to {int(known[-1])}; train and validation share one numbering."
            )
        return torch.tensor([place])

    def bar(self) -> AbstractContextManager[Callable[[int], None]]:
        """A progress bar over the images."""
        from .display import bar

        return bar(len(self.index), "analyzing")

    def finish(
        self,
        name: str,
        settings: Mapping[str, object],
        figures: Mapping[str, Any],
        arrays: Mapping[str, Tensor],
        draw: Callable[[], Any],
        rows: Sequence[tuple[str, str]],
    ) -> None:
        """Write the files and print the figures; `rows` are labels and values for people."""
        from ..studies.analysis.record import NO_PICTURE, write
        from ..studies.verdict_store import versions
        from .display import say

        subject, attack = self.subject, getattr(self, "attack", None)
        record = {
            "analysis": name,
            "run": subject.name,
            "dataset": subject.resolved.data.name,
            "model": subject.resolved.model_name,
            **subject.record,
            "split": self.split,
            "n": len(self.index),
            "norm": subject.norm,
            "eps": subject.eps if attack is None else attack.eps,
            **({} if attack is None else {"attack": attack.as_dict()}),
            **settings,
            "figures": dict(figures),
            "versions": versions(),
        }
        folder = Path(self.typed["out"]) if self.typed["out"] else Path(subject.name) / "analysis"
        drawn = write(folder, name, record, arrays, draw)
        if not drawn:
            say(NO_PICTURE)
        if self.typed["as_json"]:
            print_json(record | {"folder": str(folder)})
            return
        _show(record, rows, folder, drawn)


def _show(record: Mapping[str, Any], rows: Sequence[tuple[str, str]], folder: Path, drawn: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from .display import stdout

    console = stdout()
    attack = record.get("attack")
    by = f", {attack['name']} at eps {attack['eps']:.4g} ({attack['norm']})" if attack else ""
    console.print(
        Text(
            f"{record['run']}  {record['analysis']}, checkpoint {record['checkpoint']} (epoch {record['epoch'] + 1}), "
            f"{record['split']} split, n = {record['n']}{by}"
        )
    )
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for label, value in rows:
        table.add_row(Text(label), Text(value))
    console.print(table)
    suffixes = "json, npz, png, svg" if drawn else "json, npz"
    console.print(Text(f"{folder / record['analysis']}.{{{suffixes}}}"))
