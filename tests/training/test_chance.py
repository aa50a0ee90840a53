"""A run that stays at chance says so before its last epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
import torch
from heard import Heard
from methods import pictures
from torch import Tensor, nn

import advkit
from advkit.cli.main import run
from advkit.evaluation.statistics import guessing
from advkit.training.chance import ENOUGH, PATIENCE, Chance

LABELS = torch.arange(100) % 10


def heard(accuracies: Iterable[float], labels: Tensor) -> list[int]:
    """How many sentences there were after each validation, in which the first images are right."""
    chance, progress, counts = Chance(), Heard(), []
    for accuracy in accuracies:
        chance.tell(progress, torch.arange(len(labels)) < round(accuracy * len(labels)), labels)
        counts.append(len(progress.said))
    assert all(sentence.startswith("Accuracy under no attack is 0.") for sentence in progress.said)
    return counts


def test_once_after_some_validations_in_a_row() -> None:
    assert heard((0.1, 0.1, 0.5, 0.12, 0.15, 0.09, 0.1, 0.1), LABELS) == [0] * 5 + [1] * 3
    assert heard((0.1, 0.1, 0.1, 0.5, 0.1, 0.1, 0.1), LABELS)[-1] == 2


def test_guessing_the_largest_class_is_chance() -> None:
    most = (torch.arange(100) > 69).long()  # 70 of one class
    assert heard([0.7] * PATIENCE, most)[-1] == 1
    assert heard([0.9] * PATIENCE, most)[-1] == 0


def test_chance_is_what_answers_give_that_do_not_depend_on_the_image() -> None:
    """Of classes of any size; a net that knows the small class is none, though the largest alone has more right."""
    labels = (torch.arange(200) >= 180).long()  # 180 of one class, 20 of another
    draw = torch.Generator().manual_seed(0)
    for answers in (torch.zeros(200), torch.ones(200), torch.arange(200) % 2, torch.rand(200, generator=draw) < 0.9):
        found = guessing(answers.long() == labels, labels)
        assert found and found[0] == pytest.approx(0.5, abs=0.1) and found[0] <= found[1] < 0.65
    knowing = torch.where(torch.arange(200) % 5 == 0, 1 - labels, labels)  # 0.8 of either class, 0.9 by the largest
    assert guessing(knowing == labels, labels) is None
    assert guessing(torch.zeros(200).bool(), labels) == (0, 0.5)
    even, most = torch.arange(100) % 10, 0.1 + NormalDist().inv_cdf(0.975) * math.sqrt(0.09 / 100)
    assert guessing(torch.arange(100) < 10, even) == pytest.approx(
        (0.1, most)
    )  # as of the accuracy, where all are even
    assert guessing(torch.ones(9).bool(), torch.ones(9).long()) is None  # images of one class


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
    images = "126 images, 0.1 of the training split, held out at random by run.seed."
    assert f"Validation: {images}" in lines
    assert any(line.startswith("Best epoch ") and line.endswith(f" under attack, of {images}") for line in lines)


@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_weights_that_overflow_in_the_last_step_end_the_run(
    tiny_net: Callable[..., nn.Module], fraction: float, tmp_path: Path
) -> None:
    """They are finite, so the step itself sees nothing."""
    drawn = torch.randint(0, 256, (16, 2, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    toy = advkit.Splits(*[advkit.Dataset("toy", drawn, torch.arange(16) % 3, ("a", "b", "c"))] * 2, "none")
    settings = {"optimizer.lr": "1e30", "validation.fraction": fraction, "attack.steps": 1}
    told = "NaN or Inf in the logits of the model after the last step: .* lower optimizer.lr .* a resume .* again"
    with pytest.raises(advkit.NonFinite, match=told):
        advkit.train(tiny_net(True), toy, (), settings=settings, epochs=1, batch_size=16, out=tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


class Fading(nn.Module):
    """A net that computes nothing in eval mode after more than `bound` forwards in train mode, as if weights grew."""

    def __init__(self, core: nn.Module, bound: float) -> None:
        super().__init__()
        self.core, self.bound = core, bound
        self.register_buffer("grown", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.grown += 1
        logits: Tensor = self.core(x)
        return logits if self.training or self.grown <= self.bound else logits * torch.nan


@pytest.mark.parametrize("done", [0, 1])
def test_a_validation_of_no_numbers_is_told_as_training_is(
    tiny_net: Callable[..., nn.Module], done: int, tmp_path: Path
) -> None:
    """With the epoch, and that a resume meets it again."""
    toy, out = advkit.Splits(pictures(12), pictures(12), "none"), tmp_path / "run"
    settings = {"validation.split": "test", "validation.steps": 1, "attack.steps": 0, "run.check_hooks": False}
    given: dict[str, Any] = {"settings": settings, "epochs": 3, "batch_size": 12}

    def net() -> Fading:
        return Fading(tiny_net(), done)

    told = rf"^Validation of epoch {done + 1}: the net can not be judged: its logits are NaN or Inf on all 12 images .*"
    told += r"The epoch was not stored; lower optimizer\.lr"
    start = rf", or from the weights of epoch 1, the best, with init_from=\"{out}\"" if done else ""
    with pytest.raises(advkit.NonFinite, match=rf"{told} or .* and start anew{start}: a resume .* the same again\.$"):
        advkit.train(net(), toy, (), out=out, **given)
    with pytest.raises(advkit.NonFinite, match=told):
        advkit.train(net(), toy, resume_from=out)
    with pytest.raises(advkit.NonFinite, match=rf"{told} .* and start anew\.$"):
        advkit.train(net(), toy, (), **given)


class Overflowing(nn.Module):
    """Of images that begin in white it computes nothing in eval mode."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core = core

    def forward(self, x: Tensor) -> Tensor:
        white = (x[:, :1, 0, 0] == 1) & (not self.training)
        return torch.where(white, torch.nan, self.core(x))


def test_images_whose_logits_are_no_numbers_are_told(tiny_net: Callable[..., nn.Module]) -> None:
    drawn = torch.randint(0, 255, (24, 2, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    white = drawn[12:].clone()
    white[:2, 0, 0, 0] = 255
    labels, progress = torch.arange(12) % 3, Heard()
    train, test = (advkit.Dataset("toy", images, labels, ("a", "b", "c")) for images in (drawn[:12], white))
    settings = {"validation.split": "test", "attack.steps": 1, "validation.steps": 1}
    advkit.train(
        Overflowing(tiny_net()), advkit.Splits(train, test, "none"), (), settings=settings, epochs=1, batch_size=12,
        progress=progress,
    )  # fmt: skip
    sentence = "without an attack, the logits of 2 of 12 images are NaN or Inf; these count as misclassified."
    assert f"Validation of epoch 1: {sentence}" in progress.said
