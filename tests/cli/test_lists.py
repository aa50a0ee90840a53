"""What there is: runs, nets, attacks, and the names that people type for methods."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import advkit
from advkit import registry
from advkit.cli.main import run
from advkit.errors import PluginImport
from advkit.storage.run_folder import RunFolder

QUICK = {"attack.steps": 1, "validation.steps": 1, "data.limit": 40}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    for place in ("first", "ablation/runs/full"):
        advkit.train(plugins="cat-eps", eps=0.1, epochs=2, settings=QUICK | {"model.width": 2}, out=home / place)
    (home / "broken").mkdir()
    (home / "broken" / "run.toml").write_text("epochs = [")
    return home


def out(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert run([str(word) for word in words]) == 0
    return capsys.readouterr().out


def test_a_run_is_loaded_as_plain_data(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = advkit.load_run(runs / "first")
    lines = [json.loads(line) for line in (runs / "first" / "metrics.jsonl").read_text().splitlines()]
    assert loaded.history == lines and loaded.finished and loaded.epochs == 2
    assert loaded.best == max(lines, key=lambda line: (line["best"], line["epoch"]))
    assert loaded.settings["attack.eps"] == 0.1 and loaded.plugins == ("cat-eps",)
    assert {"attack.steps": 1, "attack.eps": 0.1}.items() <= loaded.given.items() and "run.device" not in loaded.given
    assert json.loads(out(capsys, "runs", "show", runs / "first", "--json"))["history"] == lines
    shutil.copy(runs / "first" / "run.toml", tmp_path)
    short = advkit.load_run(tmp_path)
    assert (short.history, short.best, short.finished, short.environment) == ([], None, False, {})
    with pytest.raises(advkit.CheckpointError, match="nowhere is not a run folder"):
        advkit.load_run(runs / "nowhere")


def test_runs_are_listed_with_their_best_and_what_is_damaged(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {Path(row["folder"]).name: row for row in json.loads(out(capsys, "runs", "list", runs, "--json"))}
    assert rows.keys() == {"first", "full", "broken"} and "damaged" in rows["broken"]
    assert rows["first"] | {"folder": ""} == rows["full"] | {"folder": ""}
    assert (rows["first"]["done"], rows["first"]["plugins"], rows["first"]["finished"]) == (2, ["cat-eps"], True)
    assert rows["first"]["selected_of"] == 4
    on = "Validation: 4 images, 0.1 of the training split, held out at random by run.seed."
    assert on in out(capsys, "runs", "show", runs / "first")
    shown = out(capsys, "runs", "list", runs)
    assert "2 of 2" in shown and "is not valid TOML" in shown
    assert run(["runs", "list", str(runs / "nowhere")]) == 4
    assert "advkit train" in out(capsys, "runs", "list", runs / "first" / "checkpoints")


def test_a_note_of_several_runs_is_said_once(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = [tmp_path / name for name in "abc"]
    for place, notes in zip(places, (["old", "both"], ["both", "old"], ["old"]), strict=True):
        environment = shutil.copytree(runs / "first", place, symlinks=True) / "environment.json"
        environment.write_text(json.dumps(json.loads(environment.read_text()) | {"notes": notes}))
    assert run(["runs", "list", str(tmp_path)]) == 0
    assert capsys.readouterr().err == f"All: old.\n{places[0]}, {places[1]}: both.\n"
    shutil.rmtree(places[0])
    assert run(["runs", "list", str(tmp_path)]) == 0
    assert capsys.readouterr().err == f"{places[1]}: both.\nAll: old.\n"


def test_what_may_not_be_looked_at_is_not_taken_for_absent(
    runs: Path, capsys: pytest.CaptureFixture[str], denied: Callable[[Path], None]
) -> None:
    denied(runs / "ablation" / "runs")
    rows = {row["folder"]: row for row in json.loads(out(capsys, "runs", "list", runs, "--json"))}
    assert "Permission denied" in rows[str(runs / "ablation" / "runs")]["damaged"] and str(runs / "first") in rows
    for part in ("evaluations", "analysis", "audit.json", "checkpoints"):
        denied(runs / "first" / part)
        assert run(["report", str(runs / "first"), "--out", str(runs / "a.html")]) == 4
        assert f"{part} can not be used (Permission denied)" in capsys.readouterr().err
    denied(runs / "first" / "environment.json")
    with pytest.raises(advkit.CheckpointError, match=r"environment.json .*Permission denied"):
        RunFolder(runs / "first").init_from()


def test_a_run_is_shown_with_every_epoch(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = out(capsys, "runs", "show", runs / "first")
    words = [line.split() for line in shown.splitlines() if line.strip()]
    assert "2 of 2 epochs, finished" in shown and ["attack.steps", "1"] in words
    assert [first.rstrip("*") for first, *_ in words if first.rstrip("*").isdecimal()] == ["1", "2"]


def test_a_run_whose_plugin_is_not_to_be_had_is_shown_as_far_as_it_goes(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = shutil.copytree(runs / "first", tmp_path / "run", symlinks=True) / "run.toml"
    right = file.read_text()
    file.write_text(right.replace("cat-eps", "cat-ips"))
    rows = json.loads(out(capsys, "runs", "list", tmp_path, "--json"))
    assert rows[0]["plugins"] == ["cat-ips"] and "cat-ips" in rows[0]["notes"][0] and rows[0]["done"] == 2
    file.write_text(right.replace("steps = 1", "steps = -1"))
    assert run(["runs", "show", str(file.parent)]) == 4, "that is damage"
    file.write_text(right)
    load = registry.load

    def lost(kind: str, name: str) -> object:
        if name == "cat-eps":
            raise PluginImport("Plugin cat-eps can not be imported.")
        return load(kind, name)

    monkeypatch.setattr(registry, "load", lost)
    capsys.readouterr()
    assert run(["runs", "show", str(file.parent)]) == 0
    shown, told = capsys.readouterr()
    assert "2 of 2 epochs, finished" in shown and "cat-eps" in shown and "small-cnn" in shown
    assert f"{file.parent}: Plugin cat-eps can not be imported.\n" in told


ODD = [{"lr": None}, {"loss": "low"}, {"loss": 10**400}, {"seconds": {}}, {"validation": 3}, {"validation": {"n": "x"}}]


@pytest.mark.parametrize(
    "odd",
    [*ODD, {"validation": {"selected": "x"}}, {"validation": {"selected": 10**400}}],
    ids=lambda odd: str(odd)[:30],
)
def test_a_line_of_an_epoch_that_somebody_has_changed_is_damage(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], odd: dict[str, object]
) -> None:
    for name in ("odd", "right"):
        shutil.copytree(runs / "first", tmp_path / name, symlinks=True)
    lines = map(json.loads, (tmp_path / "odd" / "metrics.jsonl").read_text().splitlines())
    (tmp_path / "odd" / "metrics.jsonl").write_text("".join(f"{json.dumps(line | odd)}\n" for line in lines))
    assert run(["runs", "show", str(tmp_path / "odd")]) == 4
    assert "metrics.jsonl is damaged in the line of epoch 1" in capsys.readouterr().err
    rows = {Path(row["folder"]).name: row for row in json.loads(out(capsys, "runs", "list", tmp_path, "--json"))}
    assert rows["right"]["done"] == 2 and ("damaged" in rows["odd"] or odd in ({"lr": None}, {"seconds": {}}))
    assert "2 of 2" in out(capsys, "runs", "list", tmp_path)


def test_nets_and_attacks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert "preact-resnet18" in out(capsys, "models", "list") and "FILE.py:NAME" in out(capsys, "models", "list")
    assert "model.width" in out(capsys, "models", "show", "small-cnn")
    shown = json.loads(out(capsys, "models", "show", "small-cnn", "--json"))
    assert shown["options"]["width"]["default"] == 24
    assert "advkit plan --model torchvision:resnet18" in out(capsys, "models", "show", "torchvision:resnet18")
    shown = json.loads(out(capsys, "models", "show", "torchvision:vgg16.IMAGENET1K_V1", "--json"))
    assert list(shown["published"]) == ["IMAGENET1K_V1", "IMAGENET1K_FEATURES"]
    numbers = shown["published"]["IMAGENET1K_V1"]
    assert numbers == "0.485,0.456,0.406,0.229,0.224,0.225" and numbers in out(
        capsys, "models", "show", "torchvision:resnet18"
    )
    assert run(["models", "show", "torchvision:resnet17"]) == 2
    assert "Did you mean resnet18?" in capsys.readouterr().err
    assert {"pgd-K", "autoattack"} <= {
        typed for row in json.loads(out(capsys, "attacks", "list", "--json")) for typed in row["typed"]
    }
    assert "pgd-K" in out(capsys, "attacks", "list")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--plugins TRADES", "Unknown plugin TRADES. Did you mean trades?"),
        ("--plugins cat_eps", "Unknown plugin cat_eps. Did you mean cat-eps?"),
        (
            "--plugins iseat",
            "iseat is no plugin but a recipe, which has plugins and settings: --recipe iseat-cifar10",
        ),
        ("--plugins CAT", "CAT is no plugin but a recipe, which has plugins and settings: --recipe cat."),
        ("--plugins at", "at is no plugin: training without any is PGD-AT; leave it out."),
        ("--plugins PGD-AT,lsiw", "PGD-AT is no plugin: training without any is PGD-AT; leave it out."),
        ("--recipe LSIW", "Unknown recipe LSIW. lsiw is a plugin: --plugins lsiw."),
        ("--recipe TRADES", "Unknown recipe TRADES. Did you mean trades?"),
        ("--model Small_CNN", "Unknown model Small_CNN. Did you mean small-cnn?"),
    ],
)
def test_names_that_people_type_lead_to_the_right_one(
    words: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["plan", *words.split()]) == 2
    assert capsys.readouterr().err.startswith(f"Error: {sentence}")
