"""Where a run is."""

from __future__ import annotations


class Place:
    """An epoch, a step within it, from 0, and how many steps it has. Written by `TrainingStep.seek` alone."""

    first = 0
    """What people call the first of each: 1 in a run, as its screen does; 0 in a `Step`, as its caller."""

    def __init__(self) -> None:
        self.epoch = self.step = self.epoch_steps = 0

    @property
    def place(self) -> str:
        """For people."""
        return f"epoch {self.epoch + self.first}, step {self.step + self.first}"
