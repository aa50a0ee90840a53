"""An analysis of a run's net, kept with the run: `advkit analyze`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...data.base import Dataset
from ...errors import OptionError, named
from ...global_state import one_at_a_time
from ...reach import misfit
from ...storage.run_folder import RunFolder
from ..evaluate import Watch
from ..inputs import amount, at_once, pace, whole
from ..records import AnalysisRecord
from ..subject import Subject, subject_of
from ..verdict_store import versions
from .budget import sample_budgets
from .landscape import loss_landscape
from .margin import margins
from .perturb import BATCH, Ascent
from .record import tensors, write
from .vulnerability import adversarial_vulnerability

Drawing = Callable[[], Any]


@dataclass(frozen=True)
class Study:
    """Which run, which of its images, and what they are attacked with: checked before the run is opened.

    `split` is "train" (without the held-out images), "validation" or "test"; `n` the number of images, 0: all;
    `attack` a pgd-K from the image, `step` its step as a share of eps; `eps` the run's by default; `out` where the
    files go, RUN/analysis by default; `model`, `dataset` and `batch_size` are as those of `evaluate`. The
    four methods write NAME.json, NAME.npz and, with matplotlib, pictures.
    """

    run: str | Path
    split: str = "train"
    n: int | str | None = None
    attack: str = "pgd-50"
    eps: float | str | None = None
    step: str = "eps/4"
    checkpoint: str | None = None
    data_root: str | Path | None = None
    model: str | nn.Module | None = None
    dataset: Any = None
    batch_size: int | str | None = None
    out: str | Path | None = None
    watch: Watch | None = None

    def __post_init__(self) -> None:
        self._count(0)
        self._budget(0.0)
        at_once(self.batch_size)
        pace("step", self.step)
        Ascent.parse(self.attack, eps=0.0)

    @one_at_a_time
    def vulnerability(self) -> AnalysisRecord:
        """How much the attack raises each sample's loss: AV_i = CE(x_i + delta_i) - CE(x_i) (ISEAT, Eq. 3)."""
        index, said = self._images(0), list[str]()
        result = adversarial_vulnerability(
            self._net.model,
            self._dataset,
            self._pgd,
            index=index,
            batch_size=self._at_once,
            tick=self._tick(len(index)),
            tell=said.append,
        )

        def draw() -> Any:
            from .pictures import vulnerability_picture

            return vulnerability_picture(result)

        arrays = tensors(result) | {"av": result.av}
        return self._finish("vulnerability", index, {}, result.unevenness.as_dict(), arrays, draw, self._pgd, said)

    @one_at_a_time
    def margin(self, cap: float | str = 50, precision: float | str = 0.1, clip: bool = True) -> AnalysisRecord:
        """How far along the adversarial direction each prediction holds: the first flip mu (ISEAT, Eq. 7)."""
        end, pitch = amount("cap", cap), amount("precision", precision)
        index, said = self._images(1000), list[str]()
        result = margins(
            self._net.model,
            self._dataset,
            self._pgd,
            index=index,
            batch_size=self._at_once,
            cap=end,
            precision=pitch,
            clip=clip,
            tick=self._tick(len(index)),
            tell=said.append,
        )

        def draw() -> Any:
            from .pictures import margin_picture

            return margin_picture(result)

        settings = {"cap": end, "precision": pitch, "clip": clip}
        return self._finish("margin", index, settings, result.as_dict(), tensors(result), draw, self._pgd, said)

    @one_at_a_time
    def landscape(
        self,
        kind: Literal["cat", "iseat"] = "cat",
        index: int | str | None = None,
        points: int | str = 41,
        extent: float | str | None = None,
        clip: bool | None = None,
        seed: int | str = 0,
    ) -> AnalysisRecord:
        """The loss on a plane around one image, or its mean over some (CAT, Fig. 2; ISEAT, Fig. 3).

        "cat" is the gradient's sign x Rademacher and attacks nothing; "iseat" adversarial x random in L2.
        """
        size, start = whole("points", points), whole("seed", seed)
        far = None if extent is None else amount("extent", extent)
        place = None if index is None else whole("index", index)
        chosen, said = self._images(16) if place is None else self._image(place), list[str]()
        attack = self._pgd if kind == "iseat" else None
        result = loss_landscape(
            self._net.model,
            self._dataset,
            attack,
            kind=kind,
            index=chosen,
            batch_size=self._at_once,
            points=size,
            extent=far,
            clip=clip,
            seed=start,
            tick=self._tick(len(chosen)),
            tell=said.append,
        )

        def draw() -> Any:
            from .pictures import landscape_picture

            return landscape_picture(result, self._dataset.classes, self._dataset.labels[self._positions(result.index)])

        settings = {
            "kind": kind,
            "index": place,
            "points": size,
            "extent": float(result.first[-1]),
            "clip": result.clip,
            "seed": start,
        }
        name = f"landscape-{kind}" if place is None else f"landscape-{kind}-{place}"
        return self._finish(name, chosen, settings, result.as_dict(), tensors(result), draw, attack, said)

    @one_at_a_time
    def budget(self) -> AnalysisRecord:
        """The budgets eps_i of a run of cat-eps: over the epochs, by class, and the hardest samples (CAT)."""
        if self.split != "train":
            raise OptionError(f"split = {self.split!r} has no budgets: those are of images that a run trained on.")
        if self.checkpoint is None or self.n is not None:  # net and budgets of one checkpoint, of all images
            return replace(self, checkpoint=self.checkpoint or "last", n=None).budget()
        net, which, folder = self._net, self.checkpoint, RunFolder.open(Path(self.run))
        said = folder.doubts()  # its curve is of metrics.jsonl
        result = sample_budgets(folder, net.resolved, net.splits.train, net.model, which, self._at_once, said.append)

        def draw() -> Any:
            from .pictures import budget_picture

            return budget_picture(result, net.splits.train)

        settings: dict[str, Any] = {
            "state": result.state,
            "eps_max": result.eps_max,
            "largest_radius": result.largest_radius,
        }
        arrays = tensors(result)
        return self._finish("budget", self._images(0), settings, result.as_dict(), arrays, draw, None, said)

    # ------------------------------------------------------------------ parts

    @property
    def _net(self) -> Subject:
        """With the number of threads of its run, which only the first analysis has from opening it."""
        torch.set_num_threads(self._opened.resolved.run.threads)
        return self._opened

    @cached_property
    def _opened(self) -> Subject:
        RunFolder.open(Path(self.run))
        given = {"model": self.model, "dataset": self.dataset, "data_root": self.data_root}
        return subject_of(self.run, self.checkpoint, **given)

    @cached_property
    def _dataset(self) -> Dataset:
        return self._net.splits.test if self.split == "test" else self._net.splits.train

    @cached_property
    def _pgd(self) -> Ascent:
        net = self._net
        eps = self._budget(net.eps)
        return Ascent.parse(self.attack, eps=eps, step_size=pace("step", self.step) * eps, norm=net.norm)

    @property
    def _at_once(self) -> int:
        return at_once(self.batch_size, self._net.at_once) or BATCH

    def _count(self, usual: int) -> int:
        return usual if self.n is None else whole("n", self.n)

    def _budget(self, own: float) -> float:
        return own if self.eps is None else amount("eps", self.eps)

    def _images(self, usual: int) -> Tensor:
        """(n,) int64: rising positions in `_dataset`."""
        return self._positions(self._net.images(self.split, self._count(usual)).index.sort().values)

    def _positions(self, places: Tensor) -> Tensor:
        """Where the images at these places in the split are in `_dataset`, which may be limited."""
        return torch.searchsorted(self._dataset.index, places)

    def _image(self, place: int) -> Tensor:
        """The position in `_dataset` of the image at a place in the split, (1,) int64."""
        known = self._net.images(self.split).index
        if place > int(known[-1]) or not bool((known == place).any()):
            raise OptionError(
                f"{named('--index')} {place} is no image of {named('--split')} {self.split}, which has "
                f"{len(known)} images, from {int(known[0])} to {int(known[-1])}; train and "
                "validation share one numbering."
            )
        return self._positions(torch.tensor([place]))

    def _tick(self, total: int) -> Callable[[int], None]:
        done = 0

        def tick(count: int) -> None:
            nonlocal done
            done += count
            if self.watch is not None:
                self.watch(done, total, "analyzing")

        return tick

    def _finish(
        self,
        name: str,
        index: Tensor,
        settings: Mapping[str, object],
        figures: Mapping[str, Any],
        arrays: Mapping[str, Tensor],
        draw: Drawing,
        attack: Ascent | None,
        said: Sequence[str],
    ) -> AnalysisRecord:
        """Write the files."""
        net, n = self._net, len(index)
        if not self.out:
            net.refuse_another()
        short = "" if attack is None else misfit(attack.steps, pace("step", self.step), "step")
        folder = Path(self.out) if self.out else Path(net.name) / "analysis"
        own: dict[str, Any] = {**({} if attack is None else {"attack": attack.as_dict()}), **settings}
        if notes := [*dict.fromkeys(filter(None, [*net.record.get("notes", ()), short, *said]))]:
            own["notes"] = notes
        record = AnalysisRecord(
            analysis=name,
            run=net.name,
            dataset=net.resolved.data.name,
            model=net.resolved.net,
            split=self.split,
            n=n,
            images=net.described(self.split, n, own.get("index")),
            norm=net.norm,
            eps=net.eps if attack is None else attack.eps,
            **{**net.record, **own},
            figures=dict(figures),
            versions=versions(),
        )
        pictures = write(folder, name, record.as_dict(), arrays, draw, typed=bool(self.out))
        return record.model_copy(update={"folder": str(folder), "pictures": pictures})
