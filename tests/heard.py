"""Who watches a run in tests."""

from __future__ import annotations

from advkit.training.progress import Silent


class Heard(Silent):
    """Keeps what it is warned of."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, sentence: str) -> None:
        self.said.append(sentence)
