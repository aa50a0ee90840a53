"""The guard against collapse: PGD on the epoch's first batch against a loop over samples, and how it ends a run."""

from __future__ import annotations

import contextlib
import io
import json
import os
from copy import deepcopy
from pathlib import Path

import methods
import pytest
import torch
from hypothesis import given, strategies as st
from methods import Method, run
from naive import Attack, boxed, ce_with, one_hot, perturbed, prediction

import advkit
from advkit import Plugin, Run, Splits, hookimpl
from advkit.cli.main import run as command
from advkit.rng import Draws, derive_key
from advkit.training.progress import Silent
from advkit_plugins.collapse_guard import collapsed

LONG = {"epochs": range(8), "lr": 1.0}
METHODS = {
    "collapse-guard": Method(
        neutral=[
            (run("collapse-guard", *others, options={"collapse-guard": {"drop": 1}}), run(*others))
            for others in ((), ("fgsm-rs",), ("ema",))
        ],
        changes=[(run("collapse-guard", **LONG), run(**LONG))],
        moving={"collapse-guard": {"drop": 1}},
    ),
}


class Spy(Plugin):
    """Keeps the weights and the first batch at the end of every epoch."""

    name = "spy"

    @hookimpl
    def setup(self, model, run: Run):
        self.model, self.nets, self.batches = model, [], []

    @hookimpl
    def observe_update(self, batch, run: Run):
        if run.step == 0:
            self.batches.append(batch)

    @hookimpl
    def epoch_end(self, batch):
        self.nets.append(deepcopy(self.model).eval())
        assert torch.equal(batch.x, self.batches[-1].x) and torch.equal(batch.index, self.batches[-1].index)


class Heard(Silent):
    """What is said while a run goes on."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, message: str) -> None:
        self.said.append(message)


def fell(out: Path | None = None, *more: object, progress: Silent | None = None, **settings: object):
    """A run of 16 images whose accuracy falls from 0.5 to 0.25 in its second epoch of eight."""
    toy = Splits(methods.pictures(), methods.pictures(), "none")
    known = {"attack.steps": 3, "attack.mode": "train", "optimizer.lr": 1.0, "validation.steps": 1}
    known |= {"validation.fraction": 0.25} | settings
    return advkit.train(
        methods.tiny_net(True, 0.3, torch.float32), toy, ["collapse-guard", *more], epochs=8, batch_size=4, eps=0.1,
        settings=known, out=out, progress=progress,
    )  # fmt: skip


def test_the_accuracy_is_that_of_pgd_on_the_first_batch() -> None:
    """From a random start, in eval mode, over three epochs of float64."""
    spy, steps = Spy(Plugin.Options()), 5
    toy = Splits(methods.pictures(), methods.pictures(), "none")
    result = advkit.train(
        methods.tiny_net(True, 0.0, torch.float64), toy, ["collapse-guard", spy], epochs=3, batch_size=8, eps=0.02,
        options={"collapse-guard": {"drop": 1, "step_size": 0.007}},
        settings={"attack.steps": 2, "validation.fraction": 0.25, "validation.steps": 1, "optimizer.lr": 0.05},
    )  # fmt: skip
    seen = []
    for epoch, (model, batch) in enumerate(zip(spy.nets, spy.batches, strict=True)):
        draws = Draws(derive_key(0, "collapse-guard", "probe", "probe", epoch), batch.index, batch.occurrence)
        noise = draws.uniform(*batch.x.shape[1:], low=-1, high=1, dtype=torch.float64)
        right = 0
        for i, target in enumerate(one_hot(batch.y, 3)):
            begin = boxed(batch.x[i], 0.02 * noise[i])
            x_adv = perturbed(model, batch.x[i], ce_with(target), 0.02, Attack(0.02, 0.007, steps), begin)
            right += prediction(model, x_adv) == int(batch.y[i])
        seen.append(result.history[epoch]["figures"]["collapse-guard/robust"])
        assert seen[-1] == right / len(batch.y)
    assert len(seen) == 3 and len({*seen}) > 1


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_inequality_of_the_code(before: float, now: float) -> None:
    assert collapsed(before, now, 0.2) == (now - before < -0.2) and not collapsed(before, now, 1.0)


SENTENCE = (
    "collapse-guard stopped the run after epoch 2: accuracy under PGD-5 on the 4 images of its first batch "
    "fell from 0.500 to 0.250; take its checkpoint best, of epoch 1"
)


@pytest.mark.parametrize("fraction", [0.25, 0.0])
def test_a_stopped_run_is_finished_and_names_what_to_take(tmp_path: Path, fraction: float) -> None:
    """Without validation the last epoch would be `best`; the epoch of the fall is not."""
    heard, folder = Heard(), tmp_path / "run"
    settings = {"validation.fraction": fraction} | ({} if fraction else {"data.limit": 0})
    result = fell(folder, progress=heard, **settings)
    if not fraction:
        assert result.stopped.startswith("collapse-guard stopped the run after epoch ")
        last = len(result.history) - 1
        assert result.best == {"epoch": last - 1, "selected": None, "split": None}
    else:
        assert result.stopped == SENTENCE and len(result.history) == 2 and result.best["epoch"] == 0
    assert heard.said[-1] == result.stopped
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["stopped"] == result.stopped and not rows[-1]["best"] and "stopped" not in rows[0]
    links = {name: os.readlink(folder / "checkpoints" / name) for name in ("last", "best")}
    steps = [row["steps"] for row in rows]
    assert links["last"] == f"step-{sum(steps):08d}" and links["best"] == f"step-{sum(steps[:-1]):08d}"


def test_it_is_not_resumed(tmp_path: Path) -> None:
    folder, heard = tmp_path / "run", Heard()
    ended = fell(folder)
    toy = Splits(methods.pictures(), methods.pictures(), "none")
    again = advkit.train(
        methods.tiny_net(True, 0.3, torch.float32), toy, ["collapse-guard"], epochs=8, batch_size=4, eps=0.1,
        settings={
            "attack.steps": 3, "attack.mode": "train", "optimizer.lr": 1.0, "validation.steps": 1,
            "validation.fraction": 0.25,
        },
        resume_from=folder, progress=heard,
    )  # fmt: skip
    assert heard.said == [f"The run in {folder} is finished ({SENTENCE}); nothing is left to do."]
    assert again.stopped == ended.stopped and again.best == ended.best and again.history == ended.history
    assert methods.same(again.model.state_dict(), ended.model.state_dict())


def test_on_the_command_line_it_is_done(tmp_path: Path) -> None:
    """Exit code 0, the sentence on stderr; and `evaluate` takes the best."""
    out, err, folder = io.StringIO(), io.StringIO(), tmp_path / "run"
    line = ["train", "--plugins", "collapse-guard", "--limit", "60", "--batch-size", "8", "--epochs", "9"]
    line += ["--set=model.width=4", "--set=attack.steps=1", "--set=optimizer.lr=0.6", "--set=validation.steps=1"]
    line += ["-o", "collapse-guard.drop=0.01", "--progress=plain", "--out", str(folder)]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert command(line) == 0
    stopped = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["stopped"]
    assert stopped in " ".join(err.getvalue().split())
    assert (folder / "checkpoints" / "best").exists()


class Quits(Plugin):
    """Ends the run after its first epoch, which may be the best."""

    name = "quits"

    @hookimpl
    def epoch_end(self, run: Run):
        run.stop("it is enough.")


def test_who_stops_first_is_told_and_may_keep_the_epoch() -> None:
    toy = Splits(methods.pictures(), methods.pictures(), "none")
    result = advkit.train(
        methods.tiny_net(True, 0.0, torch.float32), toy, [Quits], epochs=3, batch_size=4,
        settings={"attack.steps": 1, "validation.steps": 1, "validation.fraction": 0.25},
    )  # fmt: skip
    assert result.stopped == "quits stopped the run after epoch 1: it is enough; take its checkpoint best, of epoch 1"
    assert result.best["epoch"] == 0 and len(result.history) == 1


def test_a_probe_at_the_end_of_an_epoch_leaves_no_trace() -> None:
    """Neither in the passes of the epoch nor in its mode or generators: the other bits are in METHODS."""
    toy = Splits(methods.pictures(), methods.pictures(), "none")
    settings = {"attack.steps": 1, "validation.steps": 1, "validation.fraction": 0.25}
    before, rows = torch.get_rng_state(), []
    for plugins in (["collapse-guard"], []):
        net = methods.tiny_net(True, 0.3, torch.float32)
        result = advkit.train(net, toy, plugins, epochs=1, batch_size=4, settings=settings)
        rows.append((result.history[0]["passes"], net.training))
    assert rows[0] == rows[1] and torch.equal(before, torch.get_rng_state())
