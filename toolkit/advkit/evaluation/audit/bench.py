"""What the checks share: one net, the images it gets right, and every attack on them run once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from math import sqrt

import torch
from torch import Tensor, nn

from ...ascent import NORMS, Ball
from ...data.base import Dataset
from ...data.transforms import to_float
from ...judging import judged
from ...modules import placement
from ...rng import derive_seed
from ..attacks.base import EvaluationAttack, Victim, attacked
from ..attacks.gradient import OBJECTIVES, climb
from ..figure import Figure, share
from ..results import BATCH, UNSOUND
from ..soundness import classified_as, refuse_unsound, sound
from ..statistics import Z

STEPS, PACE = 50, 0.2
"""PGD from the image itself, in steps of eps/5: what every other attack is held against."""
RUNGS = (5, 10, 20, STEPS)
"""Numbers of steps that are compared. Five of eps/5 are the fewest that reach the edge of the ball."""
SHORT = 20
"""Steps of PGD where it is run several times: restarts, and every eps."""
RESTARTS = 4
FEWEST = 10
"""Images that tell a net at chance."""
UNATTACKED = frozenset({"false-gradient", "grad-mode", "batch", "non-determinism", "probabilities"})
"""Checks that say something of a net at chance too."""
EARLY = 10
"""Steps of PGD that both forms of the audit look at; in the ball, and in the whole box."""


@dataclass(frozen=True)
class Trace:
    """An ascent with `steps` moves of m images, at every iterate: the whole of what the attack saw."""

    loss: Tensor
    """(steps + 1, m)"""
    right: Tensor
    """(steps + 1, m) bool: still classified as labelled."""
    blind: Tensor
    """(steps, m) bool: the input gradient was zero or not finite."""
    x_adv: Tensor
    """(m, C, H, W): the last iterate."""


class Bench:
    """A net in eval mode on the m of `n` images that it classifies correctly: x (m, C, H, W), y, index (m,)."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        *,
        eps: float,
        norm: str,
        seed: int,
        steps: int,
        batch_size: int | None,
        reseed: Callable[[int], None],
    ) -> None:
        device, dtype = placement(model)
        self.model = model
        self.stood: dict[str, int] = {}
        """How many images withstand each attack that broke some which those before it had not."""
        self._model, self._classes, self.norm = _Attached(model), len(dataset.classes), norm
        self._seed, self._batch_size = seed, batch_size
        self.net = self._victim()
        self.eps, self.n, self.steps, self._reseed = eps, len(dataset), steps, reseed
        self._by_eps: dict[float, Trace] = {}
        self.x = to_float(dataset.images.to(device), dtype)
        self.y = dataset.labels.to(device)
        self.index = dataset.index.to(device)
        logits = self.logits("clean", self.x)
        refuse_unsound(broken := int((~sound(logits)).sum()), self.n)
        self.notes = (UNSOUND.format(broken, self.n),) if broken else ()
        kept = classified_as(logits, self.y)
        self.x, self.y, self.index = self.x[kept], self.y[kept], self.index[kept]

    def answer(self, name: str, measure: Callable[[Bench], Figure | str]) -> Figure | str:
        """What `measure` says; the reason why there is nothing to attack, except for checks that attack nothing."""
        if self.hopeless and not (len(self.x) and name in UNATTACKED):
            return self.hopeless
        return measure(self)

    @cached_property
    def hopeless(self) -> str | None:
        """Why there is nothing to attack; None where there is."""
        right, chance = len(self.x), 1 / self._classes
        if not right:
            return "no image is classified correctly as it is"
        if self.n >= FEWEST and right / self.n <= chance + Z * sqrt(chance * (1 - chance) / self.n):
            return f"the net is at chance, {right} of {self.n} images right where there are {self._classes} classes"
        return None

    def withstood(self) -> dict[str, float]:
        """The share of all images that withstands each attack of this audit; the last ones saw only what was left."""
        counts = {
            f"pgd-{self.steps}": int(self.pgd.right[-1].sum()),
            f"cw-{self.steps}": int(self.margin.right[-1].sum()),
            f"pgd-{SHORT}x{RESTARTS + 1}": int(self.restarted.sum()),
        }
        return {name: count / self.n for name, count in (counts | self.stood).items()}

    def seed(self, purpose: str) -> None:
        """A net that draws in eval mode does not draw the same in every part of the audit, but in every audit."""
        self._reseed(derive_seed(self._seed, "core", "audit", purpose))

    def logits(self, purpose: str, x: Tensor) -> Tensor:
        """(B, K) without gradient."""
        self.seed(purpose)
        with torch.no_grad():
            return torch.cat([self.net(part) for part in parts(x)])

    def right(self, purpose: str, x: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """(B,) bool: which of x are classified as the images `rows` are labelled."""
        return classified_as(self.logits(purpose, x), self.y[rows]) if len(x) else self.y[:0] == 0

    def ball(self, radius: float, rows: Tensor | slice = slice(None)) -> Ball:
        """Around the images `rows`."""
        x = self.x[rows]
        return NORMS[self.norm](x, x.new_full((len(x),), radius))

    def ascend(
        self,
        purpose: str,
        *,
        steps: int,
        radius: float,
        loss: str = "cross-entropy",
        pace: float = PACE,
        start: int = 0,
        rows: Tensor | None = None,
    ) -> Trace:
        """PGD on the images `rows`, from themselves or, where `start` > 0, from that many-th random point."""
        self.seed(purpose)
        rows = torch.arange(len(self.x), device=self.x.device) if rows is None else rows
        traces = [self._ascend(part, steps, radius, loss, pace, start) for part in parts(rows)]
        return Trace(
            torch.cat([part.loss for part in traces], 1),
            torch.cat([part.right for part in traces], 1),
            torch.cat([part.blind for part in traces], 1),
            torch.cat([part.x_adv for part in traces]),
        )

    def _ascend(self, rows: Tensor, steps: int, radius: float, loss: str, pace: float, start: int) -> Trace:
        ball, y, seen = self.ball(radius, rows), self.y[rows], _Seen()
        seen.y = y
        begin = partial(ball.uniform, self.net.draws("audit", self.index[rows], start)) if start else None
        size = pace * ball.radius
        x_adv = climb(
            self.net,
            ball.x,
            y,
            ball.radius,
            norm=self.norm,
            steps=steps,
            step_size=size,
            loss=loss,
            begin=begin,
            observe=seen,
        ).x_adv
        with torch.no_grad():
            logits = self.net(x_adv)
        seen.note(logits, OBJECTIVES[loss](y)(logits))
        blind = torch.stack(seen.blind) if seen.blind else y.new_zeros(0, len(y), dtype=torch.bool)
        return Trace(torch.stack(seen.loss), torch.stack(seen.right), blind, x_adv)

    def stand(self, attack: EvaluationAttack, rows: Tensor) -> Tensor:
        """(B,) bool: which of the images `rows` withstand `attack`."""
        kept, net = [], self._victim()
        self.seed(attack.name)
        for part in parts(rows):
            radius = self.x.new_full((len(part),), self.eps)
            x_adv = attacked(attack, net, self.x[part], self.y[part], radius, self.index[part])
            kept.append(net.correct(x_adv, self.y[part]))
        self.net.forwards += net.forwards
        self.net.backwards += net.backwards
        return torch.cat(kept)

    def _victim(self) -> Victim:
        return Victim(self._model, classes=self._classes, norm=self.norm, seed=self._seed, batch_size=self._batch_size)

    @cached_property
    def pgd(self) -> Trace:
        return self.ascend("pgd", steps=self.steps, radius=self.eps)

    @cached_property
    def margin(self) -> Trace:
        return self.ascend("margin", steps=self.steps, radius=self.eps, loss="margin")

    @cached_property
    def restarted(self) -> Tensor:
        """(m,) bool: withstand PGD from the image and from RESTARTS random points, SHORT steps each."""
        stands = self.pgd.right[SHORT].clone()
        for start in range(1, RESTARTS + 1):
            left = torch.nonzero(stands).squeeze(1)
            if len(left):
                again = self.ascend(f"restart {start}", steps=SHORT, radius=self.eps, start=start, rows=left)
                stands[left] = again.right[-1]
        return stands

    @cached_property
    def unbroken(self) -> Tensor:
        """Positions of the images that withstand all gradient attacks of this audit, APGD-T aside."""
        return torch.nonzero(self.pgd.right[-1] & self.margin.right[-1] & self.restarted).squeeze(1)

    def over_eps(self, factors: Sequence[float]) -> list[Trace]:
        """SHORT steps of PGD at multiples of eps; run once."""
        for factor in factors:
            if factor not in self._by_eps:
                self._by_eps[factor] = self.ascend(f"eps {factor}", steps=SHORT, radius=factor * self.eps)
        return [self._by_eps[factor] for factor in factors]

    def newly_broken(self, attack: EvaluationAttack, rows: Tensor) -> Figure:
        """Images among `rows` that `attack` breaks, as a share of all."""
        return self.broken(attack.name, rows, int((~self.stand(attack, rows)).sum()) if len(rows) else 0)

    def broken(self, attack: str, rows: Tensor | slice, count: int) -> Figure:
        """`count` of the images `rows` as a share of all; how many are left is kept under the attack's name."""
        if count:
            self.stood[attack] = len(self.y[rows]) - count
        return share(count, self.n)

    def share(self, chosen: Tensor) -> Figure:
        """How many are true, as a share of all n images: the unit of accuracies."""
        return share(int(chosen.sum()), self.n)

    def pictures(self, examples: Dataset | None) -> Tensor:
        """Images to imitate the net on: `examples`, or those under audit."""
        if examples is None:
            return self.x
        device, dtype = placement(self.model)
        return to_float(examples.images.to(device), dtype)


@contextmanager
def bench(
    model: nn.Module,
    dataset: Dataset,
    *,
    eps: float,
    norm: str,
    seed: int,
    steps: int = STEPS,
    batch_size: int | None = None,
) -> Iterator[Bench]:
    """A bench for the scope, whose PGD has `steps` steps. Modes and global generators come back as they were."""
    with judged(model) as reseed:
        yield Bench(model, dataset, eps=eps, norm=norm, seed=seed, steps=steps, batch_size=batch_size, reseed=reseed)


def parts(rows: Tensor) -> list[Tensor]:
    """At most BATCH rows each; one part where there are none."""
    return [rows[first : first + BATCH] for first in range(0, max(1, len(rows)), BATCH)]


class _Seen:
    """Records every iterate."""

    y: Tensor

    def __init__(self) -> None:
        self.loss: list[Tensor] = []
        self.right: list[Tensor] = []
        self.blind: list[Tensor] = []

    def __call__(self, *, x_adv: Tensor, logits: Tensor, loss: Tensor, gradient: Tensor, step: int) -> Tensor:
        self.note(logits, loss)
        peak = gradient.flatten(1).abs().amax(1)
        self.blind.append((peak == 0) | ~peak.isfinite())
        return torch.ones_like(self.blind[-1])

    def note(self, logits: Tensor, loss: Tensor) -> None:
        self.loss.append(loss)
        self.right.append(classified_as(logits, self.y))


class _Attached(nn.Module):
    """The net with a gradient of zero where it has none at all, which is a finding and no failure."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        if torch.is_grad_enabled() and x.requires_grad and not logits.requires_grad:
            return logits + (0 * x).flatten(1).sum(1, keepdim=True)
        return logits
