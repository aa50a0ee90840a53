"""Recipes: the papers' numbers, what lies over them on the command line, and files that are damaged."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from math import isclose, isfinite
from pathlib import Path

import pytest
import tomli_w

from advkit import Schedule
from advkit.cli.main import run
from advkit.config import recipes
from advkit.config.layer import Layer
from advkit.config.request import Request
from advkit.config.resolve import Resolved, resolve
from advkit.data.convert import convert
from advkit.errors import PluginImport, PluginLoad
from advkit.storage import checkpoint
from advkit.training.plan import at_epochs

ALL = [
    *("pgd-at-madry", "pgd-at-rice", "trades", "mart", "at-awp", "at-rwp", "trades-awp"),
    *("cat", "cat-feb2020", "cat-jun2020-v1", "cat-jun2020-v2"),
    *("iseat-cifar10", "iseat-cifar100", "iseat-svhn", "iseat-swa", "mart-awp"),
    *("cat-adv-train", "cat-trades", "cat-adv-ls", "cat-adp-adv"),
    *("dynamic-at", "bilateral", "mma", "iaat", "gairat", "fat", "hat"),
    *("idbh", "iseat-idbh", "pgd-at-cifar100", "pgd-at-svhn", "at-seat", "ikl"),
    *("iseat-ft-both", "iseat-ft-input", "iseat-ft-weights", "iseat-ft-kl", "iseat-ft-unweighted", "iseat-ft-top10"),
    *("iseat-ft-lsi", "iseat-ft-trade-awp", "las-at", "las-awp"),
]
UNFIGURED = {"at-seat"}
"""Whose figures were not at hand."""
EXTRA = ["dm-improves-at", "hat-ema", "iseat-rst", "rst", "rst-awp", "rst-mart"]
"""Those that want a folder of extra images."""
HOME = Path(__file__).parents[2] / "plugins" / "advkit_plugins" / "recipes"


DATA_DECIDE = {"dynamic-at", "fat"}
"""Whose attack ends where every sample has stopped: the plan counts the most passes there can be."""


def within(passes: dict[str, dict[str, int]], most: dict[str, dict[str, int]]) -> bool:
    """Whether no phase spends more than was planned, and the update just that."""
    return passes["update"] == most["update"] and all(
        passes["attack"][way] <= count for way, count in most["attack"].items()
    )


def resolved(name: str) -> Resolved:
    return Resolved.of(Request.of(Layer("test"), recipe=name))


def advkit(capsys: pytest.CaptureFixture[str], *line: str) -> tuple[int, str, str]:
    code = run(list(line))
    out, err = capsys.readouterr()
    return code, out, err


# ---------------------------------------------------------------------- what is shipped


def test_every_recipe_and_its_twin_are_there() -> None:
    assert recipes.names() == [name for each in sorted(ALL + EXTRA) for name in (each, f"{each}-mini")]


SHARED = {"run.batch_size": 128, "attack.steps": 10, "optimizer.momentum": 0.9}
VGG = {"model.name": "vgg16-bn", "optimizer.lr": 0.01, "optimizer.milestones": [80, 140, 180], "attack.eps": 8 / 255}
"""Of all VGG-16 of CAT's paper."""
TUNED = {"run.epochs": 40, "optimizer.lr": 0.01, "optimizer.milestones": [0.5], "model.variant": "iseat"}
"""Of all that ISEAT's ablation fine-tunes."""
PUBLISHED = {
    "pgd-at-madry": {"attack.init": "uniform", "optimizer.weight_decay": 2e-4, "optimizer.milestones": [102, 154]},
    "pgd-at-rice": {"model.name": "preact-resnet18", "attack.init": "uniform", "attack.mode": "train"},
    "trades": {"attack.eps": 0.031, "attack.step_size": 0.007, "optimizer.weight_decay": 2e-4, "run.epochs": 76}
    | {"attack.init": "normal", "attack.mode": "eval", "trades.beta": 6.0, "optimizer.milestones": [74, 89, 99]},
    "mart": {"attack.eps": 0.031, "optimizer.weight_decay": 7e-4, "run.epochs": 90, "mart.lam": 6.0},
    "at-awp": {"awp.gamma": 0.01, "awp.loss": "adv_ce", "awp.step_at": "theta+v", "attack.mode": "train"},
    "at-rwp": {"rwp.gamma": 0.01, "rwp.threshold": 1.7, "rwp.steps": 10, "rwp.step_at": "theta+v"}
    | {"attack.mode": "train", "attack.init": "uniform", "model.name": "wide-resnet-34-10"},
    "trades-awp": {"awp.gamma": [[0, 0.0], [9, 0.005]], "awp.loss": "objective", "optimizer.weight_decay": 5e-4}
    | {"attack.step_size": 2 / 255, "run.epochs": 200, "optimizer.milestones": [99, 149]},
    "cat": {"cat-eps.eta": 0.005, "cat-eps.eps_max": 8 / 255, "dirichlet-ls.c": 10.0, "cat-margin.kappa": 10.0}
    | {"optimizer.lr": 0.01, "optimizer.milestones": [80, 140, 180], "model.name": "vgg16-bn"}
    | {"cat-eps.cap": "after", "cat-eps.on_success": "reset", "cat-eps.on_failure": "keep"},
    "cat-feb2020": {"cat-eps.eta": 0.0025, "cat-eps.eps_max": 0.03, "cat-margin.kappa": 50.0, "run.epochs": 200}
    | {"cat-eps.on_success": "reset", "cat-eps.on_failure": "distance", "cat-eps.clean_on": "success"}
    | {"attack.step_size": 0.002, "cat-eps.attack_label": "old", "cat-eps.cap": "before"},
    "cat-jun2020-v1": {"cat-eps.eta": 0.03, "cat-eps.eps_max": 0.06, "cat-margin.kappa": 10.0, "run.epochs": 80}
    | {"cat-eps.on_success": "distance", "cat-eps.on_failure": "reset", "cat-eps.clean_on": "failure"}
    | {"attack.step_size": 0.007, "cat-eps.attack_label": "old", "cat-eps.cap": "before"},
    "cat-jun2020-v2": {"cat-eps.eta": 0.0025, "cat-eps.eps_max": 0.035, "cat-margin.kappa": 10.0, "run.epochs": 80}
    | {"cat-eps.on_success": "keep", "cat-eps.on_failure": "roll-back", "cat-eps.clean_on": "none"}
    | {"attack.step_size": 0.007, "cat-eps.attack_label": "new", "cat-eps.cap": "before"},
    "iseat-cifar10": {"lsiw.lam": [[0, 0.0], [100, 0.1]], "awp.gamma": 0.007, "model.variant": "iseat"},
    "iseat-cifar100": {"lsiw.lam": [[0, 0.0], [100, 0.1]], "awp.gamma": 0.005, "model.name": "preact-resnet18"},
    "iseat-svhn": {"lsiw.lam": [[0, 0.0], [5, 0.1]], "awp.gamma": [[0, 0.0], [5, 0.009]], "optimizer.lr": 0.01}
    | {"attack.step_size": 1 / 255, "eps-ramp.epochs": 5, "eps-ramp.step_size": True},
    "iseat-swa": {"lsiw.lam": [[0, 0.0], [100, 0.1]], "awp.gamma": 0.007, "swa.start": 0.75, "attack.mode": "train"},
    "mart-awp": {"mart.lam": 6.0, "awp.gamma": [[0, 0.0], [9, 0.005]], "optimizer.milestones": [99, 149]}
    | {"awp.loss": "objective", "optimizer.lr": 0.1},
    "idbh": {"idbh.variant": "weak", "model.variant": "iseat", "run.epochs": 200, "attack.init": "zero"},
    "iseat-idbh": {"lsiw.lam": [[0, 0.0], [200, 0.1]], "awp.gamma": 0.005, "run.epochs": 400, "idbh.variant": "weak"},
    "pgd-at-cifar100": {"data.name": "cifar100", "model.name": "preact-resnet18", "optimizer.lr": 0.1},
    "pgd-at-svhn": {"data.name": "svhn", "attack.step_size": 1 / 255, "optimizer.lr": 0.01, "eps-ramp.epochs": 5},
    "at-seat": {"attack.eps": 0.031, "optimizer.lr": 0.01, "optimizer.weight_decay": 3.5e-3, "run.epochs": 120}
    | {"ema.decay": 0.999, "ema.ramp": True, "ema.buffers": "averaged", "attack.mode": "eval"},
    "ikl": {"ikl.alpha": 4.0, "ikl.beta": 20.0, "ikl.gamma": 1.0, "ikl.temperature": 4.0, "attack.steps": 5}
    | {"awp.gamma": [[0, 0.0], [9, 0.005]], "awp.loss": "objective", "ema.decay": 0.9996, "eps-ramp.epochs": 200}
    | {"ema.buffers": "averaged"}
    | {"attack.step_size": 4 / 255, "optimizer.lr": 0.2, "optimizer.schedule": "cosine"},
    "iseat-ft-both": TUNED | {"lsiw.lam": 0.1, "awp.gamma": 0.007},
    "iseat-ft-input": TUNED | {"lsiw.lam": 0.1, "awp.gamma": 0.0},
    "iseat-ft-weights": TUNED | {"awp.gamma": 0.007, "awp.loss": "adv_ce"},
    "iseat-ft-kl": TUNED | {"lsiw.distance": "kl", "av-rank.scheme": "uniform"},
    "iseat-ft-unweighted": TUNED | {"lsiw.distance": "l2", "av-rank.scheme": "uniform"},
    "iseat-ft-top10": TUNED | {"lsiw.distance": "l2", "av-rank.scheme": "top-k", "av-rank.share": 0.1},
    "iseat-ft-lsi": TUNED | {"lsiw.adv_at": "theta", "lsiw.clean_at": "theta", "awp.gamma": 0.007},
    "iseat-ft-trade-awp": TUNED | {"lsiw.adv_at": "theta+v", "lsiw.clean_at": "theta+v", "awp.gamma": 0.007},
    "las-at": {"attack.steps": 14, "las-at.eps_min": 3 / 255, "las-at.eps_max": 15 / 255, "las-at.steps_min": 3}
    | {"las-at.step_min": 1 / 255, "las-at.step_max": 5 / 255, "las-at.every": 20, "las-at.robust": 4.0}
    | {"las-at.clean": 2.0, "label-smoothing.alpha": 0.3, "run.epochs": 110, "optimizer.milestones": [99, 104]},
    "las-awp": {"attack.steps": 16, "las-at.eps_min": 7 / 255, "las-at.eps_count": 9, "las-at.train_eps": 8 / 255}
    | {"las-at.step_count": 4, "las-at.every": 1, "las-at.clean": 1.0, "awp.gamma": 0.01, "awp.loss": "adv_ce"},
    "cat-adv-train": VGG,
    "cat-trades": VGG
    | {"trades.beta": 6.0, "attack.init": "normal", "update.batch_norm": "clean_logits,adv_logits,clean_logits"},
    "cat-adv-ls": VGG | {"dirichlet-ls.c": 10.0},
    "cat-adp-adv": VGG | {"cat-eps.eta": 0.005, "cat-eps.eps_max": 8 / 255, "cat-eps.cap": "after"},
    "dynamic-at": {"fosc.c_max": 0.5, "fosc.until": 5 / 6, "attack.eps": 0.031, "attack.step_size": 0.031 / 4}
    | {"run.epochs": 120, "optimizer.lr": 0.01, "optimizer.milestones": [59, 99]},
    "bilateral": {"attack.steps": 1, "attack.step_size": 8 / 255, "bilateral.factor": 9.0, "bilateral.gamma": 0.01}
    | {"attack.mode": "eval", "optimizer.weight_decay": 2e-4, "optimizer.milestones": [100, 150]},
    "mma": {"mma.d_max": 32 / 255, "mma.lam": 1 / 3, "mma.eps_min": 0.005, "mma.cap": 1.05, "run.epochs": 142}
    | {"model.depth": 28, "model.width": 4, "optimizer.lr": 0.3, "optimizer.decay": 0.3, "attack.mode": "eval"},
    "iaat": {"run.batch_size": 256, "iaat.gamma": 1.9 / 255, "iaat.beta": 0.1, "iaat.warm_up": 10, "iaat.cap": 0.0}
    | {"attack.mode": "train", "optimizer.decay": 0.2, "optimizer.milestones": [70, 90, 100], "run.epochs": 110},
    "gairat": {"gairat.lam": -1.0, "gairat.burn_in": 0.5, "gairat.form": "tanh", "attack.eps": 0.031}
    | {"optimizer.weight_decay": 2e-4, "optimizer.milestones": [59, 89], "run.epochs": 120, "attack.mode": "eval"},
    "hat": {"hat.beta": 2.5, "hat.gamma": 0.5, "hat.s": 2.0, "hat.robust": "kl", "optimizer.lr": 0.21}
    | {"optimizer.nesterov": True, "optimizer.peak": 0.25, "run.epochs": 50, "attack.step_size": 2 / 255}
    | {"update.batch_norm": "clean_logits,adv_logits", "attack.mode": "eval", "attack.init": "normal"},
    "fat": {"fat.tau": [[0, 0.0], [50, 1.0], [90, 2.0]], "fat.noise": 0.001, "attack.eps": 0.031}
    | {"optimizer.weight_decay": 2e-4, "optimizer.milestones": [59, 89], "run.epochs": 120, "attack.mode": "eval"},
}
"""What the papers and codes say, beside what most share."""


EXTRAS = {
    "rst": {"run.batch_size": 256, "extra-data.share": 0.5, "attack.eps": 0.031, "optimizer.schedule": "cosine"},
    "dm-improves-at": {"run.batch_size": 512, "extra-data.share": 0.7, "trades.beta": 5.0, "ema.decay": 0.995}
    | {"optimizer.peak": 0.025, "label-smoothing.alpha": 0.1, "optimizer.decay_norms_and_biases": False},
    "hat-ema": {"run.batch_size": 1024, "extra-data.share": 0.7, "hat.beta": 3.5, "hat.gamma": 0.5, "ema.decay": 0.995}
    | {"label-smoothing.alpha": 0.1, "optimizer.lr": 0.4, "run.epochs": 400, "optimizer.schedule": "one-cycle"}
    | {"optimizer.peak": 0.25, "optimizer.decay_norms_and_biases": False, "attack.mode": "train-frozen"}
    | {"attack.init": "uniform", "validation.steps": 40},
    "iseat-rst": {"run.batch_size": 256, "extra-data.share": 0.5, "awp.gamma": 0.005}
    | {"lsiw.lam": [[0, 0.0], [200, 0.01]], "run.epochs": 400},
    "rst-awp": {"run.batch_size": 256, "extra-data.share": 0.5, "awp.gamma": [[0, 0.0], [9, 0.005]]}
    | {"trades.beta": 6.0},
    "rst-mart": {"run.batch_size": 256, "extra-data.share": 0.5, "mart.lam": 6.0, "attack.eps": 0.031},
}


@pytest.mark.parametrize("name", EXTRA)
def test_a_recipe_with_extra_images_and_its_twin(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, mini = resolved(name), resolved(f"{name}-mini")
    values = {key: value.plain() if isinstance(value, Schedule) else value for key, value in whole.values().items()}
    assert {key: values[key] for key in EXTRAS[name]} == EXTRAS[name]
    assert recipes.load(name).at_epochs == at_epochs(whole)
    assert recipes.load(name).published and [p.name for p in mini.composition.plugins] == [
        p.name for p in whole.composition.plugins
    ]
    line = ["train", "--recipe", f"{name}-mini", "--set=model.width=2", "--epochs=2", "--set=attack.steps=1"]
    line += ["--set=validation.steps=1", "--progress=none", "--out", str(tmp_path / "run")]
    assert advkit(capsys, *line)[2].startswith("Error: extra-data reads a folder of mapped images; make one with")
    convert("digits", tmp_path / "m")
    code, out, err = advkit(capsys, *line, "-o", f"extra-data.root={tmp_path / 'm'}")
    assert (code, out) == (0, "") and err.startswith("20 of 20 held-out images are among") and err.count("\n") == 1
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["steps"] for row in rows] == [3, 3] and all(row["samples"] == 3 * 64 for row in rows)


@pytest.mark.parametrize("name", ALL)
def test_a_recipe_resolves_to_the_published_settings(name: str) -> None:
    found = resolved(name)
    values = found.values() | {key: value.plain() for key, value in found.values().items() if hasattr(value, "plain")}
    for key, value in {**SHARED, **PUBLISHED[name]}.items():
        assert values[key] == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value), key
        assert found.origins.get(key, "default") in (f"recipe {name}", "default")
    about = recipes.load(name)
    assert bool(about.published) != (name in UNFIGURED) and about.notes and about.paper
    share = found.validation.fraction
    assert [note for note in about.notes if "of the training images out, which choose the checkpoint" in note] == (
        [recipes.HELD_OUT.format(share=share)] if about.published and share else []
    )
    assert about.at_epochs == at_epochs(found), "what the plan says"
    for figure in about.published:
        assert 1 < figure["robust"] < figure.get("clean", 99.0) < 100


@pytest.mark.parametrize("name", ALL)
def test_the_twin_is_the_same_method_on_the_digits(name: str) -> None:
    whole, mini = resolved(name), resolved(f"{name}-mini")
    assert (mini.data.name, mini.model_name, mini.run.epochs, mini.attack.eps) == ("digits", "small-cnn", 20, 0.15)
    assert [p.name for p in mini.composition.plugins] == [p.name for p in whole.composition.plugins]
    assert (mini.attack.init, mini.attack.mode, mini.attack.steps) == (
        whole.attack.init, whole.attack.mode, whole.attack.steps,
    )  # fmt: skip
    shapes = [[stage.passes for _, stage in each.composition.stages()] for each in (whole, mini)]
    assert shapes[0] == shapes[1], "the stages are kept"
    rates = mini.optimizer
    early = rates.schedule != "piecewise" or rates.decays(20)[0] < 20
    assert rates.lr_at(19, 20) < rates.lr and early, "the learning rate decays within the run"
    for unit in ("cat-eps.eta", "cat-eps.eps_max", "mma.d_max", "mma.eps_min", "iaat.gamma"):  # in units of eps
        if unit in whole.values():
            ratios = [each.values()[unit] / each.attack.eps for each in (whole, mini)]  # type: ignore[operator]
            assert isclose(*ratios, rel_tol=1e-9)
    if whole.values().get("cat-margin.weight") == "eps-sum":  # batch size times eps_i
        weights = [each.run.batch_size * each.attack.eps for each in (whole, mini)]
        assert isclose(*weights, rel_tol=0.03)
    if "dirichlet-ls.c" in whole.values():
        levels = [each.values()["dirichlet-ls.c"] * each.attack.eps for each in (whole, mini)]  # type: ignore[operator]
        assert isclose(*levels, rel_tol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_the_twin_trains_to_its_end(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through all its stages, and all its epochs where there are several, on a few images, with a thin net."""
    line = ["--recipe", f"{name}-mini", "--limit", "24", "--set=data.balance=true", "--set=model.width=2"]
    line += ["--set=run.threads=1"]
    line += ["--set=validation.every_epochs=99", "--set=validation.steps=1", "--set=attack.steps=2"]
    epochs = 20 if len(resolved(f"{name}-mini").composition.stages()) > 1 else 11
    line += ["--epochs", str(epochs)]
    plan = json.loads(advkit(capsys, "plan", *line, "--json")[1])
    folder = tmp_path / "run"
    assert advkit(capsys, "train", *line, "--progress=none", "--out", str(folder)) == (0, "", "")
    rows = [json.loads(each) for each in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(epochs)) and all(row["steps"] == 1 for row in rows)
    assert all(isfinite(row["loss"]) for row in rows) and rows[-1]["lr"] < rows[0]["lr"]
    planned = {each["from_epoch"]: each["passes"] for each in plan["stages"]}
    expected = [planned[max(epoch for epoch in planned if epoch <= row["epoch"])] for row in rows]
    if name in DATA_DECIDE:  # how many passes: the plan is the most there can be
        assert all(within(row["passes"], most) for row, most in zip(rows, expected, strict=True))
    else:
        assert [row["passes"] for row in rows] == expected
    tensors = [checkpoint.load(step)[0] for step in checkpoint.steps(folder / "checkpoints")[:2]]
    trained = [name for name in tensors[0] if name.startswith("model/") and name.endswith("weight")]
    assert trained and all(not tensors[0][name].equal(tensors[1][name]) for name in trained)


def test_the_files_are_in_the_wheel_and_read_as_any_third_partys() -> None:
    assert {path.stem for path in HOME.glob("*.toml")} == {*ALL, *EXTRA}
    assert {path.resolve() for path, _ in recipes._files().values()} == {path.resolve() for path in HOME.glob("*.toml")}
    assert {recipes.load(name).distribution for name in ALL} == {"advkit"}


# ---------------------------------------------------------------------- the command line


def test_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = advkit(capsys, "recipes", "list")
    assert (code, err) == (0, "") and all(f"{name}-mini" in out for name in ALL)
    assert all(figure in " ".join(out.split()) for figure in ("75.54", "56.54", "57.50"))
    listed = json.loads(advkit(capsys, "recipes", "list", "--json")[1])
    twins = {f"{name}-mini" for name in ALL + EXTRA}
    assert {each["name"] for each in listed if not each["published"]} == twins | UNFIGURED
    assert {each["name"] for each in listed if each["at_epochs"] is None} == twins
    assert [each["name"] for each in listed] == recipes.names()
    code, out, err = advkit(capsys, "recipes", "show", "iseat-svhn")
    assert (code, err) == (0, "")
    for part in ("54.04", "ISEAT, Table 3", "lam = ", "advkit train --recipe iseat-svhn", "- The code's ramp"):
        assert part in out
    shown = json.loads(advkit(capsys, "recipes", "show", "trades", "--json")[1])
    assert shown["table"]["options"] == {"trades": {"beta": 6.0}} and shown["published"][1]["robust"] == 53.08
    assert json.loads(advkit(capsys, "recipes", "show", "trades-mini", "--json")[1])["published"] == []
    assert advkit(capsys, "recipes", "show", "iseat") == (
        2,
        "",
        "Error: Unknown recipe iseat. Did you mean iseat-swa? `advkit recipes list` shows them all.\n",
    )


def test_recipe_below_file_below_command_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.toml").write_text("[run]\nepochs = 40\nseed = 3\n[options.awp]\ngamma = 0.02\n")
    line = ["plan", "--recipe", "iseat-cifar10", "--config", "a.toml", "--seed", "4", "--json"]
    settings = json.loads(advkit(capsys, *line)[1])["settings"]
    assert settings["run.seed"] == {"value": 4, "from": "command line"}
    assert settings["run.epochs"] == {"value": 40, "from": "file a.toml"}
    assert settings["awp.gamma"] == {"value": 0.02, "from": "file a.toml"}
    assert settings["lsiw.lam"] == {"value": [[0, 0.0], [20, 0.1]], "from": "recipe iseat-cifar10"}
    assert settings["attack.mode"] == {"value": "train", "from": "recipe iseat-cifar10"}


def test_plugins_of_the_command_line_or_file_replace_the_recipes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.toml").write_text('plugins = ["awp"]\n')
    for above in (["--plugins", "awp"], ["--config", "a.toml"]):
        plan = json.loads(advkit(capsys, "plan", "--recipe", "iseat-svhn", *above, "--json")[1])
        assert plan["plugins"] == ["awp"] and plan["settings"]["data.name"]["value"] == "svhn"
        assert plan["settings"]["awp.gamma"]["value"] == [[0, 0.0], [5, 0.009]]
        assert not any(key.startswith(("lsiw.", "eps-ramp.")) for key in plan["settings"])
    declined = ["--no-companion", "instance_weight:lsiw"]
    plan = json.loads(advkit(capsys, "plan", "--recipe", "iseat-svhn", *declined, "--json")[1])
    assert plan["plugins"] == ["awp", "eps-ramp", "lsiw"]


def test_another_model_takes_the_place_of_the_recipes_and_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["plan", "--recipe", "iseat-cifar10", "--model", "small-cnn", "--set", "model.width=2", "--json"]
    settings = json.loads(advkit(capsys, *line)[1])["settings"]
    assert {key for key in settings if key.startswith("model.")} == {
        *("model.name", "model.width", "model.norm", "model.normalise")
    }
    same = ["plan", "--recipe", "iseat-cifar10", "--model", "wide-resnet-34-10", "--json"]
    assert json.loads(advkit(capsys, *same)[1])["settings"]["model.variant"]["value"] == "iseat"


def test_options_of_a_model_stay_where_no_layer_names_another() -> None:
    def model(*layers: dict[str, object]) -> dict[str, object]:
        found = resolve((), [Layer(f"{number}", settings) for number, settings in enumerate(layers)])
        return {"name": found.model_name, **found.model_options}

    assert model({"model.width": 3}, {"run.seed": 1}, {"model.name": "small-cnn"})["width"] == 3
    bn = {"name": "vgg16-bn", "width": 64, "normalise": "data"}
    assert model({"model.width": 3}, {"model.name": "vgg16-bn"}) == bn
    again = model({"model.name": "vgg16-bn", "model.width": 3}, {"model.name": "small-cnn"}, {"model.norm": "none"})
    assert again == {"name": "small-cnn", "width": 24, "norm": "none", "normalise": "data"}


def test_what_is_printed_is_the_whole_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, text, _ = advkit(capsys, "train", "--recipe", "iseat-svhn-mini", "--print-config")
    Path("run.toml").write_text(text)
    assert (code, text, "") == advkit(capsys, "train", "--config", "run.toml", "--print-config")


def test_a_resumed_run_takes_no_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert advkit(capsys, "train", "--resume", "run", "--recipe", "cat") == (
        2,
        "",
        "Error: --resume takes its settings from the run; leave --config, --recipe and --no-companion out.\n",
    )


# ---------------------------------------------------------------------- third parties, and damage

ABOUT = {"summary": "a", "paper": "b"}
Ship = Callable[..., Path]


@pytest.fixture
def ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ship:
    """`ship({"name": table or text})`: an installed distribution acme with these recipes."""

    def make(files: dict[str, object], owner: str = "acme") -> Path:
        site = tmp_path / f"site-{owner}"
        home = site / f"{owner}_recipes"
        home.mkdir(parents=True)
        (home / "__init__.py").write_text("raise RuntimeError('recipes are data; nothing is imported')\n")
        for name, value in files.items():
            (home / f"{name}.toml").write_text(value if isinstance(value, str) else tomli_w.dumps(value))  # type: ignore[arg-type]
        info = site / f"{owner}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {owner}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[advkit.recipes]\n{owner} = {owner}_recipes\n")
        monkeypatch.syspath_prepend(site)
        return home

    return make


def test_a_third_partys_recipe(ship: Ship, capsys: pytest.CaptureFixture[str]) -> None:
    ship({"mine": {"plugins": ["awp"], "recipe": ABOUT, "options": {"awp": {"gamma": 0.5}}}})
    assert "mine" in recipes.names() and "mine-mini" not in recipes.names()
    plan = json.loads(advkit(capsys, "plan", "--recipe", "mine", "--json")[1])
    assert plan["settings"]["awp.gamma"] == {"value": 0.5, "from": "recipe mine"}
    assert recipes.load("mine").distribution == "acme" and "acme_recipes" not in sys.modules
    with pytest.raises(PluginLoad, match="Unknown recipe mine-mini"):
        recipes.load("mine-mini")


def test_two_of_one_name_are_refused(ship: Ship) -> None:
    ship({"cat": {"recipe": ABOUT}})
    with pytest.raises(PluginLoad) as refusal:
        recipes.names()
    assert {"advkit", "acme"} <= set(str(refusal.value).replace(";", "").split())
    assert str(refusal.value).startswith("The recipe name cat is registered by ")


FIGURE = {"net": "n", "clean": 90.0, "attack": "a", "robust": 50.0, "eps": "8/255", "source": "s"}
NEEDS = "a published figure needs net, clean, attack, robust, eps, source, shares in percent such as 54.04"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("plugins = [", "Invalid value (at end of document)"),
        ("plugins = []\n", "[recipe] needs a summary and a paper"),
        ("recipe = 3\n", "[recipe] needs a summary and a paper"),
        ({"recipe": ABOUT | {"notess": []}}, "[recipe] has an unknown notess"),
        ({"recipe": ABOUT | {"notes": [1]}}, "notes must be a list of texts"),
        ({"recipe": ABOUT | {"published": [FIGURE | {"robust": 50}]}}, NEEDS),
        ({"recipe": ABOUT | {"published": [FIGURE | {"more": "x"}]}}, NEEDS),
        ({"recipe": ABOUT | {"published": [{k: v for k, v in FIGURE.items() if k != "source"}]}}, NEEDS),
        ({"recipe": ABOUT | {"published": ["x"]}}, NEEDS),
    ],
)
def test_damaged_files(ship: Ship, content: object, reason: str) -> None:
    home = ship({"odd": content})
    with pytest.raises(PluginImport) as refusal:
        recipes.load("odd")
    path = home / "odd.toml"
    assert str(refusal.value) == f"The recipe odd can not be read ({reason}); reinstall or repair {path}."
    assert refusal.value.exit_code == 4


def test_a_figure_without_clean_accuracy_is_fine(ship: Ship) -> None:
    ship({"odd": {"recipe": ABOUT | {"published": [{k: v for k, v in FIGURE.items() if k != "clean"}]}}})
    assert recipes.load("odd").published[0]["robust"] == 50.0


def test_a_recipe_that_is_no_run_names_itself(ship: Ship, capsys: pytest.CaptureFixture[str]) -> None:
    ship({"odd": {"recipe": ABOUT, "attak": {}}})
    assert advkit(capsys, "plan", "--recipe", "odd") == (
        2,
        "",
        "Error: recipe odd: unknown section attak. Did you mean attack?\n",
    )
