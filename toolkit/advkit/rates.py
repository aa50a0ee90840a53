"""Learning rates: pure functions of where a run is, so that nothing is saved and nothing can drift from a resume."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, cos, pi
from typing import Literal

from pydantic import field_validator, model_validator

from .options import OptionModel, Real, option

FIRST, LAST = 1 / 25, 1 / 25e4
"""Of one-cycle, as shares of the highest rate: those of `torch.optim.lr_scheduler.OneCycleLR`."""

BY_STEP = ("linear", "one-cycle", "cyclic")
"""Schedules that change the rate after every step where nobody says otherwise."""

SHAPES = {
    "milestones": ("piecewise",),
    "decay": ("piecewise",),
    "points": ("linear",),
    "peak": ("one-cycle", "cyclic"),
    "cycles": ("cyclic",),
}
"""Whose shape a setting is of."""


class RateSettings(OptionModel):
    """The learning rate of every step. `lr` is its highest value, or its first where it only falls."""

    lr: Real = option(0.1, gt=0, help="learning rate: the first, or the highest where it also rises")
    schedule: Literal["piecewise", "linear", "cosine", "one-cycle", "cyclic", "constant"] = option(
        "piecewise",
        help="decayed at milestones; linear between points; lr (1 + cos(pi t)) / 2; up and down once by cosines, as "
        "torch's OneCycleLR without its momentum; up and down linearly; or lr",
    )
    per: Literal["schedule", "epoch", "step"] = option(
        "schedule",
        help="when the rate changes: after epochs, at t = epoch / epochs, or after steps, at t = (epoch + (step + 1) "
        "/ steps) / epochs; schedule: after steps for linear, one-cycle, cyclic and the warm-up, else after epochs",
    )
    milestones: list[int | float] = option(
        [0.5, 0.75],
        help="piecewise: when the learning rate is multiplied by `decay`, after shares of the run's epochs, or after "
        "whole epochs, such as [75, 90]",
    )
    decay: Real = option(0.1, gt=0, le=1, help="factor at every milestone")
    points: list[list[Real]] = option(
        [[0.0, 1.0], ["1/3", 1.0], ["2/3", 0.1], [1.0, 0.01]],
        help="linear: [share of the run, factor of lr], with linear rates between them; as Rice et al. (2020)",
    )
    peak: Real = option(0.3, gt=0, lt=1, help="one-cycle, cyclic: the share of a cycle in which the rate rises")
    cycles: int = option(1, ge=1, le=10_000, help="cyclic: how often the rate goes up and down in the run")
    warmup: Real = option(
        0.0,
        ge=0,
        le=10_000,
        help="epochs in which a factor on the rate rises linearly to 1, by step unless `per` is epoch; 0: none",
    )

    @field_validator("milestones", mode="before")
    @classmethod
    def _shares_or_epochs(cls, value: object) -> object:
        milestones = value if isinstance(value, list) else [None]
        shares = all(type(one) is float and 0 < one < 1 for one in milestones)
        epochs = all(type(one) is int and one >= 1 for one in milestones)
        if not (shares or epochs) or milestones != sorted(set(milestones)):
            raise ValueError(
                "must be rising shares of the run between 0 and 1, such as [0.5, 0.75], or rising epochs, such as "
                "[75, 90]"
            )
        return value

    @field_validator("points")
    @classmethod
    def _from_start_to_end(cls, value: list[list[float]]) -> list[list[float]]:
        pairs = all(len(point) == 2 and point[1] >= 0 for point in value)
        shares = [point[0] for point in value if point]
        if not pairs or len(value) < 2 or shares != sorted(set(shares)) or (shares[0], shares[-1]) != (0, 1):
            raise ValueError(
                "must be pairs of a share of the run, rising from 0 to 1, and a factor >= 0, such as [[0, 1], [1, 0]]"
            )
        return value

    @model_validator(mode="after")
    def _rises_within_epochs(self) -> RateSettings:
        if self.per == "epoch" and self.schedule in ("one-cycle", "cyclic"):
            raise ValueError(f"schedule = {self.schedule} changes the rate after every step; leave out per=epoch")
        return self

    def cautions(self, epochs: int | None = None) -> list[str]:
        """What was chosen of another schedule's shape, or for later than the `epochs` of the run, if they are known."""
        of_others = [key for key, schedules in SHAPES.items() if self.schedule not in schedules]
        if self.schedule in ("piecewise", "constant") and not self.warmup:
            of_others.append("per")
        standard = type(self)()
        chosen = [key for key in of_others if getattr(self, key) != getattr(standard, key)]
        said = [f"optimizer.{key} plays no part under optimizer.schedule={self.schedule}" for key in chosen]
        quarters = ((epoch, step) for epoch in range(epochs or 0) for step in range(4))
        if epochs and self.schedule == "linear" and not any(self.lr_at(at, epochs, step, 4) for at, step in quarters):
            said.append(f"optimizer.points have the learning rate 0 in all {epochs} epochs, so nothing is trained")
        if self.per == "epoch" and 0 < self.warmup <= 1:
            said.append(
                f"optimizer.warmup={self.warmup:g} plays no part under optimizer.per=epoch, by which the first epoch "
                "of a warm-up of n has 1/n of the rate; leave out per=epoch for one that rises step by step"
            )
        if epochs is None or self.schedule != "piecewise":
            return said
        late = [one for one in self.milestones if isinstance(one, int) and one >= epochs]
        if late and late == self.milestones:
            said.append(f"optimizer.milestones start at {late[0]}, so in {epochs} epochs nothing decays")
        elif late:
            said.append(f"optimizer.milestones {', '.join(map(str, late))} are beyond the {epochs} epochs of the run")
        return said

    def decays(self, epochs: int) -> tuple[int, ...]:
        """The first epoch (0-based) after each decay; none where the schedule has no stages."""
        if self.schedule != "piecewise":
            return ()
        # 1e-9 forgives 0.29 * 100 = 28.999...
        return tuple(m if isinstance(m, int) else ceil(m * epochs - 1e-9) for m in self.milestones)

    def lr_at(self, epoch: int, epochs: int, step: int = 0, steps: int = 1) -> float:
        """The learning rate of step `step` of `steps` of an epoch (both 0-based)."""
        after_step = epoch + (step + 1) / steps  # as the codes of Rice et al. and of AWP: their first rate is not 0
        if self.schedule == "one-cycle":
            lr = self.lr * self._one_cycle(epoch * steps + step, epochs * steps)
        else:
            lr = self._scheduled(epoch, epochs, after_step if self._by_step else float(epoch))
        if self.warmup:
            lr *= min(1.0, (epoch + 1 if self.per == "epoch" else after_step) / self.warmup)
        return lr

    @property
    def within_epochs(self) -> bool:
        """Whether the rate changes between the steps of an epoch."""
        bends = self.schedule in ("linear", "cosine", "one-cycle", "cyclic")
        return (bends and self._by_step) or (self.warmup > 0 and self.per != "epoch")

    @property
    def _by_step(self) -> bool:
        return self.per == "step" or (self.per == "schedule" and self.schedule in BY_STEP)

    @property
    def by_length(self) -> bool:
        """Whether the rate depends on how many epochs the run has."""
        if self.schedule == "piecewise":
            return any(isinstance(milestone, float) for milestone in self.milestones)
        return self.schedule != "constant"

    def _scheduled(self, epoch: int, epochs: int, at: float) -> float:
        lr: float = self.lr
        if self.schedule == "cosine":
            return lr * (1 + cos(pi * at / epochs)) / 2
        if self.schedule == "linear":
            return lr * _between(self.points, at / epochs)
        if self.schedule == "cyclic":
            return lr * _between(((0, 0), (self.peak, 1), (1, 0)), self.cycles * at / epochs % 1)
        for start in self.decays(epochs):  # whole epochs, which schedules of plugins are relative to
            if epoch >= start:
                lr *= self.decay
        return lr

    def _one_cycle(self, step: int, steps: int) -> float:
        """Of step `step` of the run's `steps`, as a share of the highest rate; torch's ends with the last step."""
        top, last = self.peak * steps - 1, steps - 1
        if step < top:
            return _eased(FIRST, 1, step / top)
        return _eased(1, LAST, (step - top) / (last - top))


def _between(points: Sequence[Sequence[float]], share: float) -> float:
    """The value at `share` of straight lines through `points`."""
    for (start, one), (end, other) in pairwise(points):
        if share <= end:
            return one + (other - one) * (share - start) / (end - start)
    return points[-1][1]


def _eased(start: float, end: float, share: float) -> float:
    """From `start` to `end` along half a cosine."""
    return end + (start - end) * (1 + cos(pi * share)) / 2
