"""A run that stays at chance says so before its last epoch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from advkit.cli.main import run
from advkit.training.chance import ENOUGH, PATIENCE, Chance
from advkit.training.progress import Silent

LABELS = torch.arange(100) % 10


class Heard(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def warn(self, sentence: str) -> None:
        self.sentences.append(sentence)


def heard(accuracies: Iterable[float], labels: Tensor) -> list[int]:
    """How many sentences there were after each validation."""
    chance, progress, counts = Chance(), Heard(), []
    for accuracy in accuracies:
        chance.tell(progress, accuracy, labels)
        counts.append(len(progress.sentences))
    assert all(sentence.startswith("Accuracy under no attack is 0.") for sentence in progress.sentences)
    return counts


def test_once_after_some_validations_in_a_row() -> None:
    assert heard((0.1, 0.1, 0.5, 0.12, 0.15, 0.09, 0.1, 0.1), LABELS) == [0] * 5 + [1] * 3
    assert heard((0.1, 0.1, 0.1, 0.5, 0.1, 0.1, 0.1), LABELS)[-1] == 2


def test_guessing_the_largest_class_is_chance() -> None:
    most = (torch.arange(100) > 69).long()  # 70 of one class
    assert heard([0.7] * PATIENCE, most)[-1] == 1
    assert heard([0.9] * PATIENCE, most)[-1] == 0


def test_few_images_say_nothing() -> None:
    assert heard([0.0] * PATIENCE, LABELS[:ENOUGH])[-1] == 1
    assert heard([0.0] * PATIENCE, LABELS[: ENOUGH - 1])[-1] == 0


@pytest.mark.parametrize(("lr", "stuck"), [("1e-9", True), ("0.05", False)])
def test_a_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str], lr: str, stuck: bool) -> None:
    """An untrained net guesses, which is told before the last epoch; the same run with a learning rate is silent."""
    line = ["train", "--epochs", "5", "--eps", "0", f"--set=optimizer.lr={lr}", "--set=model.width=4", "--seed", "0"]
    line += ["--set=run.threads=1", "--set=attack.steps=0", "--set=validation.steps=1", "--progress", "plain"]
    assert run([*line, "--out", str(tmp_path / "run")]) == 0
    lines = capsys.readouterr().err.splitlines()
    places = [place for place, text in enumerate(lines) if "no better than guessing" in text]
    last = next(place for place, text in enumerate(lines) if text.startswith("epoch 5/5"))
    assert [place < last for place in places] == ([True] if stuck else [])
