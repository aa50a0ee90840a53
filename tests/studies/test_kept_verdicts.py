"""Verdicts on disk belong to one net, one set of images and one attack: no other evaluation takes them for its own."""

from __future__ import annotations

import errno
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import advkit
from advkit import EvaluationAttack, Victim
from advkit.evaluation import results, verdicts
from advkit.storage import lock
from advkit.studies.transfer import Transfer

SMALL = {"data.limit": 60, "model.width": 4, "attack.steps": 2, "validation.steps": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two nets of one kind, trained on the same images."""
    base = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        advkit.train(epochs=1, batch_size=20, settings={**SMALL, "run.seed": seed}, out=base / str(seed))
    return base / "0", base / "1"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The attacks that were really run, by name."""
    names: list[str] = []
    attacked = verdicts.attacked

    def counted(attack: EvaluationAttack, *given: Any) -> Tensor:
        names.append(attack.name)
        return attacked(attack, *given)

    monkeypatch.setattr(verdicts, "attacked", counted)
    return names


@dataclass(frozen=True)
class Mine(EvaluationAttack):
    """PGD by hand, which does not say how many steps it takes."""

    name: str = "mine"
    steps: int = 1
    held: object = None
    said: object = ()

    def settings(self, eps: float | None) -> Any:
        return dict(self.said)  # type: ignore[call-overload]

    def perturb(self, net: Victim, x: Tensor, y: Tensor, radius: Tensor, index: Tensor) -> Tensor:
        size, x_adv = radius.view(-1, 1, 1, 1), x.clone()
        for _ in range(self.steps):
            x_adv.requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(net(x_adv), y), x_adv)
            x_adv = x_adv.detach() + 0.2 * size * gradient.sign()
            x_adv = torch.minimum(torch.maximum(x_adv, x - size), x + size).clamp(0, 1)
        return x_adv.detach()


def accuracy(run: Path, out: Path, attack: EvaluationAttack | str) -> float:
    result = advkit.evaluate(run, attacks=["clean", attack], eps=0.3, n=50, out=out, audit=False)
    return result.attacks[1].accuracy


def test_an_attack_of_other_fields_is_another(runs: tuple[Path, Path], tmp_path: Path, asked: list[str]) -> None:
    one, many = (accuracy(runs[0], tmp_path, Mine(steps=steps)) for steps in (1, 20))
    assert one > many and asked == ["mine", "mine"]
    assert accuracy(runs[0], tmp_path, Mine(steps=20)) == many and len(asked) == 2
    assert accuracy(runs[0], tmp_path, Mine(steps=20, held=torch.zeros(3))) == many and len(asked) == 3


def test_what_hides_its_state_is_asked_every_time(runs: tuple[Path, Path], tmp_path: Path, asked: list[str]) -> None:
    for _ in range(2):
        accuracy(runs[0], tmp_path, Mine(held=threading.Lock()))
    assert asked == ["mine", "mine"]
    assert b"mine" not in next(tmp_path.glob("*/progress.jsonl")).read_bytes()


def test_settings_that_no_row_can_have_leave_what_is_kept_as_it_was(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that an earlier advkit has kept are asked again."""
    with pytest.raises(advkit.HookContract, match=r"have steps = 0.5, which must be a whole number"):
        accuracy(runs[0], tmp_path, Mine(said=(("steps", 0.5),)))
    assert not [*tmp_path.iterdir()]
    with monkeypatch.context() as before:
        for place in (verdicts, results):
            before.setattr(place, "unfit", lambda settings: "")
        with pytest.raises(ValueError, match="steps"):
            accuracy(runs[0], tmp_path, Mine(said=(("steps", 0.5),)))
    assert b'"steps": 0.5' in next(tmp_path.glob("*/progress.jsonl")).read_bytes()
    assert accuracy(runs[0], tmp_path, "fgsm") <= 1


def test_verdicts_of_another_net_are_not_taken(runs: tuple[Path, Path], tmp_path: Path, asked: list[str]) -> None:
    truths = [accuracy(run, tmp_path / str(place), "pgd-3") for place, run in enumerate(runs)]
    one, other = (next((tmp_path / str(place)).glob("*/progress.jsonl")) for place in (0, 1))
    shutil.copy(other, one)
    assert accuracy(runs[0], tmp_path / "0", "pgd-3") == truths[0] and len(asked) == 3
    shutil.rmtree(one.parent)
    shutil.copytree(other.parent, one.parent)
    assert accuracy(runs[0], tmp_path / "0", "pgd-3") == truths[0] and len(asked) == 4


def test_an_evaluation_that_fails_to_begin_gives_its_folder_back(
    runs: tuple[Path, Path], tmp_path: Path, asked: list[str]
) -> None:
    before = accuracy(runs[0], tmp_path, "pgd-1")
    progress = next(tmp_path.glob("*/progress.jsonl"))
    away = progress.rename(tmp_path / "away")
    progress.symlink_to(away)
    with pytest.raises(advkit.CheckpointError, match="can not be used"):
        accuracy(runs[0], tmp_path, "pgd-1")
    away.rename(progress)
    assert accuracy(runs[0], tmp_path, "pgd-1") == before


def test_a_run_that_can_only_be_read_shows_what_it_knows(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(file: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    def contents() -> dict[Path, bytes]:
        return {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    known, before = accuracy(runs[0], tmp_path, "pgd-1"), contents()
    monkeypatch.setattr(lock, "take", refused)
    assert accuracy(runs[0], tmp_path, "pgd-1") == known and contents() == before
    with pytest.raises(advkit.CheckpointError) as caught:
        accuracy(runs[0], tmp_path, "pgd-2")
    said = "can not be written (Read-only file system), and not all verdicts asked for are in it; choose a place that"
    assert said in str(caught.value) and contents() == before


def test_a_source_of_transfer_that_nobody_named_is_told_by_its_weights() -> None:
    sources = [nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) for _ in range(2)]
    pgd = advkit.evaluation.attacks.parse_attack("pgd-20")
    one, again, other = (Transfer("transfer:x", source, pgd).settings(0.1) for source in (*sources[:1] * 2, sources[1]))
    assert one == again != other


def test_a_refused_evaluation_leaves_no_folder(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """Of one that failed later the verdicts stay, as does a folder that was there."""

    class Refused(EvaluationAttack):
        name = "refused"

        def perturb(self, net: Victim, x: Tensor, y: Tensor, radius: Tensor, index: Tensor) -> Tensor:
            raise ZeroDivisionError

    for attacks, left in (([Refused()], []), (["clean", Refused()], ["progress.jsonl"])):
        with pytest.raises(ZeroDivisionError):
            advkit.evaluate(runs[0], attacks=attacks, n=10, out=tmp_path / "a/b", audit=False)
        assert [path.name for path in tmp_path.rglob("progress.jsonl")] == left
        assert (tmp_path / "a").exists() is bool(left)
    with pytest.raises(ZeroDivisionError):
        advkit.evaluate(runs[1], attacks=[Refused()], n=10, out=tmp_path / "a/b", audit=False)
    assert len([*(tmp_path / "a/b").iterdir()]) == 1
