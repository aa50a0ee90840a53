"""What must not change a bit of a run: the order of plugins, neutral ones, progress, validation, who starts it."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import methods
import pytest
import torch

import advkit
from advkit.cli.main import run
from advkit.config import runfile
from advkit.config.layer import Layer
from advkit.config.resolve import resolve
from advkit.storage import checkpoint
from advkit.training.parts import build_model, data_of
from advkit.training.plan import plan

pytestmark = pytest.mark.slow

ALL = ("cat-eps", "dirichlet-ls", "lsiw", "awp", "av-rank")
SENTENCES = [ALL, ("trades", "awp"), ("mart", "awp", "eps-ramp")]
SETTINGS: dict[str, Any] = {"data.limit": 60, "model.width": 4, "run.batch_size": 32, "run.epochs": 1}

Bits = tuple[dict[str, Any], list[dict[str, Any]]]


def bits(folder: Path) -> Bits:
    """Every tensor of the last checkpoint as bytes, and the metrics without their seconds."""
    tensors, _ = checkpoint.load(checkpoint.resolve(folder / "checkpoints", "last"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["seconds"]
    return {name: (value.dtype, value.shape, value.numpy().tobytes()) for name, value in tensors.items()}, rows


Train = Callable[..., Bits]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Paths of folders that do not exist yet."""
    root, serial = tmp_path_factory.mktemp("order"), itertools.count()
    return lambda: root / f"run-{next(serial)}"


@pytest.fixture(scope="module")
def train(folders: Callable[[], Path]) -> Train:
    """`train("awp,lsiw", "-o", "awp.gamma=0")`: the bits of a small run of the command line."""

    def call(plugins: str = "", *more: str, epochs: int = 1, progress: str = "none") -> Bits:
        folder = folders()
        given = [f"--set={key}={value}" for key, value in (SETTINGS | {"run.epochs": epochs}).items()]
        with contextlib.redirect_stderr(io.StringIO()) as said:
            code = run(["train", "--plugins", plugins, *given, *more, "--progress", progress, "--out", str(folder)])
        assert code == 0, said.getvalue()
        return bits(folder)

    return call


@pytest.fixture(scope="module")
def everything(train: Train) -> Bits:
    """The run of all five plugins."""
    return train(",".join(ALL))


# ---------------------------------------------------------------------- the order of plugins


@pytest.mark.parametrize("sentence", SENTENCES, ids=",".join)
def test_every_permutation_is_one_plan(sentence: tuple[str, ...]) -> None:
    plans = set()
    for order in itertools.permutations(sentence):
        resolved = resolve(order, [Layer("test", SETTINGS)])
        plans.add(json.dumps(plan(resolved)) + runfile.dump(resolved))
    assert len(plans) == 1


@pytest.mark.parametrize("number", [23, 47, 71, 95, 119])
def test_permutations_train_to_the_same_bits(number: int, train: Train, everything: Bits) -> None:
    order = list(itertools.permutations(ALL))[number]
    assert order != ALL and train(",".join(order)) == everything


@pytest.mark.parametrize("sentence", methods.crowds(), ids=",".join)
def test_every_installed_plugin_and_all_that_fit_beside_it(sentence: tuple[str, ...]) -> None:
    """The other way round it is the same plan; that it is the same run, tests/training/test_methods.py shows."""
    one, other = (resolve(names, [Layer("test", SETTINGS)]) for names in (sentence, sentence[::-1]))
    assert plan(one) == plan(other) and runfile.dump(one) == runfile.dump(other)


def test_control_what_is_compared_can_differ(train: Train, everything: Bits) -> None:
    """Another seed, plugin or option is another run, in weights, momentum, per-sample state and metrics."""
    for other in (
        train(",".join(ALL), "--seed", "1"),
        train(",".join(ALL), "-o", "awp.gamma=0.02"),
        train("cat-eps,dirichlet-ls"),
    ):
        assert other[0].keys() == everything[0].keys()
        changed = {name.partition("/")[0] for name, value in other[0].items() if value != everything[0][name]}
        assert changed >= {"model", "optimizer"} and other[1] != everything[1]
    assert any(name.startswith("samples/cat-eps/") for name in everything[0])


def test_companions_named_or_added_are_the_same_run(train: Train) -> None:
    assert train("lsiw") == train("lsiw,awp,av-rank") == train("av-rank,lsiw")


def test_the_users_sentence_brings_its_companions(train: Train, everything: Bits) -> None:
    assert train("cat-eps,dirichlet-ls,lsiw") == everything


# ---------------------------------------------------------------------- neutral plugins


NO_COMPANIONS = ("--no-companion=weight_perturbation", "--no-companion=instance_weight:lsiw")


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_a_neutral_plugin_moves_nothing(norm: str, train: Train) -> None:
    fixed = f"--set=model.norm={norm}"
    plain = train("", fixed)
    assert train("awp", fixed, "-o", "awp.gamma=0") == plain
    assert train("lsiw", fixed, "-o", "lsiw.lam=0", *NO_COMPANIONS) == plain
    assert train("dirichlet-ls", fixed, "-o", "dirichlet-ls.c=0") == plain
    # lsiw is neutral, its companion awp is not: what is left is awp alone.
    awp = train("awp", fixed, "-o", "awp.gamma=0.007", "-o", "awp.loss=adv_ce")
    assert train("lsiw", fixed, "-o", "lsiw.lam=0", "--no-companion=instance_weight:lsiw") == awp != plain


def test_a_neutral_plugin_beside_others_moves_nothing(train: Train) -> None:
    assert train("cat-eps,dirichlet-ls,awp", "-o", "awp.gamma=0") == train("cat-eps,dirichlet-ls")


def test_a_schedule_that_has_not_begun_is_neutral(train: Train) -> None:
    late = train("lsiw", "-o", "lsiw.lam=[[0, 0.0], [1, 0.1]]", "-o", "awp.gamma=[[0, 0.0], [1, 0.007]]", epochs=2)
    plain = train(epochs=2)
    assert late[1][0] == plain[1][0] and late[1][1] != plain[1][1] and late[0] != plain[0]


# ---------------------------------------------------------------------- who looks on, and how often


def test_validation_and_checkpoints_do_not_touch_training(train: Train) -> None:
    """Weights, momentum and per-sample state; the metrics differ in what was validated."""
    once, *others = (
        train("cat-eps,dirichlet-ls,lsiw", *more, epochs=3)
        for more in (
            ("--set=validation.every_epochs=99",),
            ("--set=validation.every_epochs=1",),
            ("--set=validation.every_epochs=2", "--set=validation.steps=3"),
            ("--set=checkpoint.every_steps=1", "--set=checkpoint.keep=1"),
            ("--set=run.check_hooks=true",),
        )
    )
    assert [row["validation"] is None for row in once[1]] == [True, True, False]
    for other in others:
        assert other[0] == once[0]
        assert [row | {"validation": 0, "best": 0} for row in other[1]] == [
            row | {"validation": 0, "best": 0} for row in once[1]
        ]


@pytest.mark.parametrize("progress", ["plain", "rich", "auto"])
def test_progress_does_not_touch_training(progress: str, train: Train, everything: Bits) -> None:
    assert train(",".join(ALL), progress=progress) == everything


def test_the_run_file_of_a_finished_run_is_that_run(folders: Callable[[], Path], train: Train) -> None:
    one, two = folders(), folders()
    line = ["train", "--plugins", "lsiw,cat-eps", *(f"--set={k}={v}" for k, v in SETTINGS.items()), "--seed=5"]
    line += ["-o", "lsiw.lam=1/3", "--eps=0.1", "--no-companion=instance_weight:lsiw", "--progress=none"]
    assert run([*line, "--out", str(one)]) == 0
    assert run(["train", "--config", str(one / "run.toml"), "--progress=none", "--out", str(two)]) == 0
    assert (one / "run.toml").read_text() == (two / "run.toml").read_text()
    assert bits(one) == bits(two) != train("cat-eps,lsiw")


# ---------------------------------------------------------------------- from Python


def test_python_and_the_command_line_train_to_the_same_bits(folders: Callable[[], Path], everything: Bits) -> None:
    folder = folders()
    result = advkit.train("small-cnn", "digits", ["lsiw", "dirichlet-ls", "cat-eps"], settings=SETTINGS, out=folder)
    assert bits(folder) == everything
    assert result.folder == folder and len(result.history) == 1
    stored = {name: value[2] for name, value in everything[0].items()}
    assert all(stored[f"model/{n}"] == p.numpy().tobytes() for n, p in result.model.state_dict().items())


def test_objects_in_place_of_names_train_to_the_same_bits(folders: Callable[[], Path], everything: Bits) -> None:
    """A module, images and plugin classes of one's own; the global generator neither matters nor moves."""
    from advkit_plugins.cat_eps import CatEps
    from advkit_plugins.lsiw import Lsiw

    resolved = resolve([], [Layer("test", SETTINGS)])
    splits = data_of(resolved)
    model = build_model(resolved, splits.train)
    folder = folders()
    own = {k: v for k, v in SETTINGS.items() if not k.startswith(("data", "model"))} | {"attack.eps": 0.15}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1234)
        before = torch.get_rng_state()
        advkit.train(model, splits, [Lsiw, "dirichlet-ls", CatEps], settings=own, out=folder)
        assert torch.get_rng_state().equal(before)
    assert bits(folder) == everything
