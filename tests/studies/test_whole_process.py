"""What a process has once: calls put the number of threads back, and only one thread at a time is in them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import advkit
from advkit import OptionError
from advkit.storage.run_folder import RunFolder
from advkit.studies.analysis import (
    Ascent,
    Study,
    adversarial_vulnerability,
    loss_landscape,
    margins,
)

TINY = {"model.width": 2, "attack.steps": 1, "validation.steps": 1, "data.limit": 40, "run.epochs": 1}
OWN, OTHER = 1, 2
"""Threads of the tests' processes, and of the run."""

DATA = advkit.Dataset("toy", torch.arange(96, dtype=torch.uint8).view(6, 1, 4, 4), torch.arange(6) % 3, ("a", "b", "c"))


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


def judged(**arguments: Any) -> advkit.Evaluation:
    return advkit.evaluate(net(), DATA, "clean", eps=0.1, audit=False, **arguments)


@pytest.fixture(scope="module", autouse=True)
def _own_threads() -> Iterator[None]:
    """Whatever tests of other modules have set."""
    before = torch.get_num_threads()
    torch.set_num_threads(OWN)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "one"
    advkit.train(settings=TINY | {"run.threads": OTHER}, out=path)
    assert torch.get_num_threads() == OWN, "after a run that went well"
    return path


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda run, at: advkit.train(resume_from=run), id="resume"),
        pytest.param(lambda run, at: advkit.evaluate(run, attacks="clean", n=2, audit=False, out=at), id="evaluate"),
        pytest.param(lambda run, at: advkit.audit(run, n=2), id="audit"),
    ],
)
def test_the_number_of_threads_is_as_before(
    run: Path, tmp_path: Path, call: Callable[[Path, Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[int]()
    setting = torch.set_num_threads
    monkeypatch.setattr(torch, "set_num_threads", lambda number: (seen.append(number), setting(number)))
    call(run, tmp_path)
    assert torch.get_num_threads() == OWN and OTHER in seen


def test_every_analysis_of_a_study_has_the_threads_of_its_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("advkit.studies.analysis.of_run.write", lambda *given, **others: [])  # no pictures
    seen = list[int]()
    study = Study(run, n=2, attack="pgd-1", out=tmp_path, watch=lambda *_: seen.append(torch.get_num_threads()))
    for _ in range(2):
        study.vulnerability()
        seen.append(torch.get_num_threads())
    assert seen == [OTHER, OWN] * 2


def test_a_run_that_only_lends_its_net_sets_nothing(run: Path) -> None:
    assert advkit.load_run(run).settings["run.threads"] == OTHER
    images, other = advkit.load_data("digits", limit=10).test, nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    seen = set[int]()
    attacks, watch = f"clean,transfer:{run}", lambda *_: seen.add(torch.get_num_threads())
    advkit.evaluate(other, images, attacks, eps=0.1, audit=False, watch=watch)
    assert seen == {OWN}


def test_arms_have_no_threads_of_the_arm_before(tmp_path: Path) -> None:
    grid = {"run.threads": [OTHER, 0]}
    advkit.sweep("lsiw", grid=grid, out=tmp_path, seeds=[0], n=2, attacks="clean", settings=TINY)
    runs = sorted((tmp_path / "runs").iterdir())
    assert [advkit.load_run(one).settings["run.threads"] for one in runs] == [OWN, OTHER]
    assert torch.get_num_threads() == OWN


# ---------------------------------------------------------------------- two threads

REFUSED = "Another thread of this process is in a call of advkit"
CALLS: dict[str, Callable[[], object]] = {
    "train": advkit.train,
    "resume": partial(advkit.train, resume_from="nowhere"),
    "load_weights": partial(advkit.load_weights, net(), "nowhere"),
    "plan": advkit.plan,
    "evaluate": judged,
    "audit": partial(advkit.audit, "nowhere"),
    "compare": partial(advkit.compare, []),
    "ablate": partial(advkit.ablate, out="nowhere"),
    "sweep": partial(advkit.sweep, grid={}, out="nowhere"),
    "export": partial(advkit.export, "nowhere", "there"),
    "report": partial(advkit.report, "nowhere"),
    "vulnerability": Study("nowhere").vulnerability,
    "margin": Study("nowhere").margin,
    "landscape": Study("nowhere").landscape,
    "budget": Study("nowhere").budget,
    "adversarial_vulnerability": partial(adversarial_vulnerability, net(), DATA, Ascent(0.1)),
    "margins": partial(margins, net(), DATA, Ascent(0.1)),
    "loss_landscape": partial(loss_landscape, net(), DATA),
}


def failure(call: Callable[[], object]) -> BaseException | None:
    """How a call ends in another thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).exception()


def test_a_second_thread_is_refused_at_once_and_the_same_thread_is_not() -> None:
    found, within = dict[str, BaseException | None](), list[advkit.Evaluation]()

    def watch(*_: object) -> None:
        if not within:
            within.append(judged())
            found.update({name: failure(call) for name, call in CALLS.items()})

    outer = judged(watch=watch)
    assert within[0].n == outer.n
    for name in CALLS:
        assert isinstance(found[name], OptionError) and REFUSED in str(found[name]), (name, found[name])
    assert failure(judged) is None, "once nobody is in a call"


def test_a_run_of_the_command_line_refuses_others_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from advkit.cli.main import run as typed

    found = list[BaseException | None]()
    restored = RunFolder.describe
    monkeypatch.setattr(RunFolder, "describe", lambda *given: (found.append(failure(judged)), restored(*given))[1])
    sets = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    assert typed(["train", *sets, "--out", str(tmp_path / "run")]) == 0
    assert REFUSED in str(*found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_a_process_that_another_thread_forks_is_free() -> None:
    codes = list[int]()

    def forked() -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads
            child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        code = 9
        try:
            advkit.compare([])  # which is refused for another reason, and before anything is computed
        except OptionError as error:
            code = 5 if "two or more runs" in str(error) else 6
        finally:
            os._exit(code)

    def watch(*_: object) -> None:
        if not codes:
            with ThreadPoolExecutor(1) as pool:
                codes.append(pool.submit(forked).result())

    judged(watch=watch)
    assert codes == [5]
