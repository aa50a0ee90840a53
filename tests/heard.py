"""Who watches a run in tests."""

from __future__ import annotations

from advkit.errors import Stopped
from advkit.training.progress import Silent


class Heard(Silent):
    """Keeps what it is warned of."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, sentence: str) -> None:
        self.said.append(sentence)


class StopAfter(Heard):
    """Stops a run after so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def stop_requested(self) -> type[Stopped] | None:
        self.left -= 1
        return None if self.left else Stopped
