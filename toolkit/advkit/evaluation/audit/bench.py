"""What the checks share: one net, the images it gets right, and every attack on them run once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from ...ascent import NORMS, Ball
from ...data.base import Dataset
from ...data.transforms import to_float
from ...explained import calling, explained
from ...judging import judged
from ...modules import placement
from ...rng import derive_seed
from ..attacks.base import EvaluationAttack, Victim, attacked, others
from ..attacks.gradient import OBJECTIVES, climb
from ..figure import Figure, share
from ..results import UNSOUND
from ..soundness import classified_as, refuse_unsound, sound
from ..statistics import guessing, worse_than_guessing
from ..team import Team
from .trace import Seen, Trace
from .turns import Turns

STEPS, PACE = 50, 0.2
"""PGD from the image itself, in steps of eps/5: what every other attack is held against."""
RUNGS = (5, 10, 20, STEPS)
"""Numbers of steps that are compared. Five of eps/5 are the fewest that reach the edge of the ball."""
SHORT = 20
"""Steps of PGD where it is run several times: restarts, and every eps."""
RESTARTS = 4
FEWEST = 10
"""Images that tell a net at chance, or one that answers one class alone."""
UNATTACKED = frozenset({"false-gradient", "grad-mode", "batch", "non-determinism", "probabilities"})
"""Checks that say something of a net at chance too."""
EARLY = 10
"""Steps of PGD that both forms of the audit look at; in the ball, and in the whole box."""


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
        team: Team | None = None,
    ) -> None:
        device, dtype = placement(model)
        self.model = model
        self.stood: dict[str, int] = {}
        """How many images withstand each attack that broke some which those before it had not."""
        self._model, self._classes, self.norm = Attached(model), len(dataset.classes), norm
        self._seed, self._batch_size, self._beside = seed, batch_size, others(model, dataset)
        self.net = self._victim()
        self.eps, self.n, self.steps, self._reseed = eps, len(dataset), steps, reseed
        self.over, self.team = Turns(team or Team(), self._victim, self.seed, self.net), team or Team()
        self._by_eps: dict[float, Trace] = {}
        self.x = to_float(dataset.images.to(device), dtype)
        self.y = dataset.labels.to(device)
        self.index = dataset.index.to(device)
        logits = self.logits("clean", self.x)
        refuse_unsound(broken := int((~sound(logits)).sum()), self.n)
        self.notes = (UNSOUND.format(broken, self.n),) if broken else ()
        kept = classified_as(logits, self.y)
        self.answers = [dataset.classes[place] for place in sorted({*logits[sound(logits)].argmax(1).tolist()})]
        """The classes that the net answers to the images as they are."""
        self.hopeless = self._hopeless(kept, logits.shape[1])
        """Why there is nothing to attack; None where there is."""
        self.x, self.y, self.index = self.x[kept], self.y[kept], self.index[kept]

    def answer(self, name: str, measure: Callable[[Bench], Figure | str]) -> Figure | str:
        """What `measure` says; the reason why there is nothing to attack, except for checks that attack nothing."""
        if self.hopeless and not (len(self.x) and name in UNATTACKED):
            return self.hopeless
        with explained():
            return measure(self)

    def _hopeless(self, right: Tensor, outputs: int) -> str | None:
        """Of the images (n,) that the net gets right; images of one class do not tell what it knows of the others."""
        count = int(right.sum())
        found = guessing(right, self.y) if self.n >= FEWEST else None
        if found and len(self.answers) == 1:
            return f"the net answers {self.answers[0]!r} to all {self.n} images, right for {count} of them"
        if found and worse_than_guessing(right, self.y, outputs):
            return (
                f"the net is worse than guessing, {count} of {self.n} images right, {found[0]:.3f} on average by class "
                f"where guessing gets {1 / outputs:.3f}, as where the labels or the order of the classes are shifted"
            )
        if not count:
            return "no image is classified correctly as it is"
        if found:
            by_class = f"{found[0]:.3f} on average by class where guessing gets up to {found[1]:.3f}"
            return f"the net is at chance, {count} of {self.n} images right, {by_class}"
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

        def forward(net: Victim, part: Tensor) -> list[Tensor]:
            with torch.no_grad():
                return [net(part)]

        return torch.cat([logits for (logits,) in self.over(purpose, x, forward)])

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
        rows = torch.arange(len(self.x), device=self.x.device) if rows is None else rows

        def climbed(net: Victim, part: Tensor) -> list[Tensor]:
            return self._ascend(net, part, steps, radius, loss, pace, start)

        losses, right, blind, ends = zip(*self.over(purpose, rows, climbed), strict=True)
        return Trace(torch.cat(losses, 1), torch.cat(right, 1), torch.cat(blind, 1), torch.cat(ends))

    def _ascend(
        self, net: Victim, rows: Tensor, steps: int, radius: float, loss: str, pace: float, start: int
    ) -> list[Tensor]:
        """The fields of a Trace."""
        ball, y, seen = self.ball(radius, rows), self.y[rows], Seen()
        seen.y = y
        begin = partial(ball.uniform, net.draws("audit", self.index[rows], start)) if start else None
        size = pace * ball.radius
        x_adv = climb(
            net,
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
            logits = net(x_adv)
        seen.note(logits, OBJECTIVES[loss](y)(logits))
        blind = torch.stack(seen.blind) if seen.blind else y.new_zeros(0, len(y), dtype=torch.bool)
        return [torch.stack(seen.loss), torch.stack(seen.right), blind, x_adv]

    def stand(self, attack: EvaluationAttack, rows: Tensor) -> Tensor:
        """(B,) bool: which of the images `rows` withstand `attack`."""

        def judge(net: Victim, part: Tensor) -> list[Tensor]:
            radius = self.x.new_full((len(part),), self.eps)
            x_adv = attacked(attack, net, self.x[part], self.y[part], radius, self.index[part])
            return [net.correct(x_adv, self.y[part])]

        return torch.cat([standing for (standing,) in self.over(attack.name, rows, judge)])

    def _victim(self) -> Victim:
        return Victim(
            self._model,
            classes=self._classes,
            norm=self.norm,
            seed=self._seed,
            batch_size=self._batch_size,
            beside=self._beside,
        )

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
    team: Team | None = None,
) -> Iterator[Bench]:
    """A bench for the scope, whose PGD has `steps` steps. Modes and global generators come back as they were."""
    with judged(model) as reseed:
        yield Bench(
            model,
            dataset,
            eps=eps,
            norm=norm,
            seed=seed,
            steps=steps,
            batch_size=batch_size,
            reseed=reseed,
            team=team,
        )


class Attached(nn.Module):
    """The net with a gradient of zero where it has none at all, which is a finding and no failure."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with calling(x.shape):
            logits: Tensor = self.model(x)
        if torch.is_grad_enabled() and x.requires_grad:  # a graph of logits need not lead to x
            return logits + (0 * x).flatten(1).sum(1, keepdim=True)
        return logits
