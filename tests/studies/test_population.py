"""Which images a limit takes: said in plan and in every table, and the same for a run's whole life."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import advkit
from advkit import DataError, OptionError
from advkit.config.layer import Layer
from advkit.config.resolve import resolve
from advkit.storage.run_folder import RunFolder
from advkit.studies.subject import of_run
from advkit.training.parts import data_of

TINY = {"data.limit": 40, "attack.steps": 1, "validation.steps": 1, "model.width": 2, "run.threads": 1}


@pytest.mark.usefixtures("quick_audit")
def test_a_table_says_what_its_images_are(tmp_path: Path) -> None:
    for balance, said in ((False, "chosen at random, seed 0"), (True, "balanced over classes")):
        run = tmp_path / f"run-{balance}"
        advkit.train(settings=TINY | {"data.balance": balance}, epochs=1, out=run)
        evaluation = advkit.evaluate(run, attacks="clean,pgd-1", n=20, audit=False)
        assert evaluation.images == f"20 of 40 images, chosen at random, seed 0, of data.limit=40, {said}"
        assert advkit.evaluate(run, attacks="clean", audit=False).images == f"all 40 images, of data.limit=40, {said}"
        on_training = advkit.evaluate(run, attacks="clean", split="train", audit=False)
        by_class = of_run(run).images("train").labels.bincount().tolist()
        left = said if not balance else f"class by class, {min(by_class)} to {max(by_class)} of each"
        assert on_training.images == f"all 36 images, of data.limit=40, {left}", "what is held out is any"
        assert set(on_training.index) <= set(of_run(run).splits.train.index.tolist())
        assert advkit.audit(run, n=5).images == f"5 of 40 images, chosen at random, seed 0, of data.limit=40, {said}"


def test_plan_says_that_classes_are_made_even() -> None:
    assert not any("data.balance" in caution for caution in advkit.plan(settings=TINY)["cautions"])
    cautions = advkit.plan(settings=TINY | {"data.balance": True})["cautions"]
    assert any("accuracies on its images are of another population" in caution for caution in cautions)


def test_balance_without_a_limit_is_refused() -> None:
    with pytest.raises(OptionError, match=r"^data\.balance is about which images `limit` takes; set limit, or leave"):
        advkit.plan(settings={"data.balance": True})


def test_a_run_of_an_advkit_without_the_setting_keeps_its_images(tmp_path: Path) -> None:
    run = tmp_path / "run"
    advkit.train(settings=TINY | {"data.balance": True}, epochs=1, out=run)
    file = run / "run.toml"
    file.write_text(file.read_text().replace("balance = true\n", ""))
    assert "balance" not in file.read_text()
    assert RunFolder.open(run).file().settings["data.balance"] is True
    assert of_run(run).splits.train.index.tolist() == list(range(40)) and of_run(run).own_images


def test_training_images_of_another_order_are_not_told_from_those_held_out(tmp_path: Path) -> None:
    run = tmp_path / "run"
    advkit.train(settings=TINY, epochs=1, out=run)
    file = run / "run.toml"
    file.write_text(file.read_text().replace("balance = false\n", "balance = true\n"))
    with pytest.raises(DataError, match=r"are not those of .*run, or in another order, so split train would mix"):
        advkit.evaluate(run, attacks="clean", split="train")
    assert json.loads(advkit.evaluate(run, attacks="clean", audit=False).model_dump_json())["n"] == 40


def test_a_class_that_a_limit_leaves_out_is_said() -> None:
    splits = data_of(resolve((), [Layer("here", TINY | {"data.limit": 20})]))
    there = len(splits.train.labels.unique())
    assert there < 10
    assert splits.notes == (f"data.limit = 20 leaves {there} of 10 classes with training images; see data.balance",)
    assert data_of(resolve((), [Layer("here", TINY | {"data.limit": 20, "data.balance": True})])).notes == ()
