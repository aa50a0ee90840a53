"""A call that is refused changes nothing of its caller's: weights, plugin objects, files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from heard import Heard
from own_steps import OwnSteps
from torch import nn

import advkit
from advkit import AdvkitError, CheckpointError, OptionError
from advkit.config.layer import Layer
from advkit.config.resolve import resolve
from advkit.storage.run_folder import RunFolder
from advkit.training.notes import CHOSEN_ON_TEST
from advkit_plugins.awp import Awp
from advkit_plugins.lsiw import Lsiw

TINY = {"data.limit": 40, "attack.steps": 1, "validation.steps": 1, "run.threads": 1, "run.epochs": 1}


def own_net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of such a net."""
    path = tmp_path_factory.mktemp("runs") / "one"
    advkit.train(own_net(), settings=TINY, out=path)
    return path


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"out": "full"}, "holds files already"),
        ({"out": "file"}, "can not be used (it is no folder)"),
        ({"settings": {"validation.fraction": 0.99}}, "validation.fraction leaves nothing to train on"),
    ],
)
def test_weights_and_plugins_stay_their_owners(
    run: Path, tmp_path: Path, arguments: dict[str, object], sentence: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    settings = TINY | dict(arguments.pop("settings", {}))  # type: ignore[call-overload]
    if "out" in arguments:
        arguments["out"] = tmp_path / str(arguments["out"])
    net, plugin = own_net(), Lsiw(Lsiw.Options())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(OptionError) as refused:
        advkit.train(net, plugins=[plugin], settings=settings, init_from=run, **arguments)  # type: ignore[arg-type]
    assert sentence in str(refused.value)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.txt", "file", "full"]
    assert len(advkit.train(net, plugins=[plugin], settings=TINY).history) == 1  # the object is free


def test_a_plugin_is_free_while_another_is_not() -> None:
    first, second = Lsiw(Lsiw.Options()), Awp(Awp.Options())
    advkit.train(own_net(), plugins=[second], settings=TINY)
    with pytest.raises(OptionError, match="plugin object awp is in another run already"):
        advkit.train(own_net(), plugins=[first, second], settings=TINY)
    assert not first.taken and second.taken


def test_a_resume_that_is_refused_leaves_the_net(run: Path) -> None:
    metrics = RunFolder.open(run).metrics
    lines = metrics.read_bytes()
    metrics.write_bytes(b"{}\n" + lines)  # found out after the weights are put into the net
    net = own_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    try:
        with pytest.raises(AdvkitError) as refused:
            advkit.train(net, settings=TINY, resume_from=run)
    finally:
        metrics.write_bytes(lines)
    assert isinstance(refused.value, CheckpointError) and "metrics.jsonl" in str(refused.value)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_images_held_out_now_that_the_first_run_was_trained_on_are_said(run: Path) -> None:
    for changes, said in (
        ({}, False),
        ({"run.seed": 7}, True),
        ({"validation.fraction": 0.3}, True),
        ({"run.seed": 7, "validation.fraction": 0.0}, False),
        ({"run.seed": 7, "validation.split": "test"}, True),
        ({"run.seed": 7, "data.limit": 41}, False),
    ):
        heard = Heard()
        advkit.train(own_net(), settings=TINY | changes, init_from=run, progress=heard)
        assert any("images that are held out with" in sentence for sentence in heard.said) == said, changes
    heard = Heard()
    advkit.train(own_net(), settings=TINY | {"run.seed": 7}, init_from=run, progress=heard)
    assert heard.said[0].startswith(f"{run} was trained with run.seed 0 and validation.fraction 0.1 on ")
    assert "of the 4 images that are held out with 7 and 0.1: validation is optimistic" in heard.said[0]


def notes_of(run: Path) -> list[str]:
    return advkit.evaluate(run, attacks="clean", n=2, model=own_net(), audit=False).notes


def test_what_the_results_of_a_run_say_is_said_of_those_that_begin_with_it(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    advkit.train(own_net(), settings=TINY | {"validation.split": "test"}, out=first)
    advkit.train(own_net(), settings=TINY | {"run.seed": 7}, init_from=first, out=second)
    kept = json.loads((second / "environment.json").read_text())["ancestors"]
    assert kept == [{"data": advkit.load_data("digits", limit=40).train.fingerprint(), "seed": 0, "fraction": 0.1}]
    first.rename(tmp_path / "moved")
    advkit.train(own_net(), settings=TINY | {"run.seed": 7, "validation.fraction": 0.0}, out=first)  # a stranger
    advkit.train(own_net(), settings=TINY | {"run.seed": 7}, init_from=second, out=third)
    held_out = f"{first} was trained with run.seed 0 and validation.fraction 0.1 on "
    chosen, seen = notes_of(second)
    assert chosen == f"of {first}, whose weights are the start: {CHOSEN_ON_TEST}" and seen.startswith(held_out)
    of_second = f"of {second}, whose weights are the start: "
    earlier = f"{second} and the runs that it began with were trained on {seen.partition(' on ')[2]}"
    assert notes_of(third) == [of_second + chosen, of_second + seen, earlier]
    assert advkit.load_run(third).notes == (of_second + chosen, of_second + seen, earlier)


@pytest.mark.parametrize("told", [None, {}, [1], [{"data": "x", "seed": -1, "fraction": 0.1}]])
def test_a_run_whose_earlier_weights_nobody_knows_says_so(run: Path, tmp_path: Path, told: object) -> None:
    shutil.copytree(run, begun := tmp_path / "begun", symlinks=True)
    environment = json.loads((begun / "environment.json").read_text()) | {"init_from": "gone", "ancestors": told}
    (begun / "environment.json").write_text(json.dumps(environment))
    heard = Heard()
    advkit.train(own_net(), settings=TINY, init_from=begun, progress=heard)
    assert (
        f"The images that weights before those of {begun} were trained on are not known here; if held-out or test "
        "images were among those, accuracies on them are optimistic" in heard.said
    )


def test_weights_that_other_images_trained_may_have_seen_these(run: Path, tmp_path: Path) -> None:
    torch.save(own_net().state_dict(), tmp_path / "net.pt")
    unless = "if held-out or test images were among those, accuracies on them are optimistic"
    for begin, limit, said in (
        (tmp_path / "net.pt", 40, f"The images that {tmp_path / 'net.pt'} was trained on are not known here; {unless}"),
        (run, 41, f"The images of digits are not those that {run} was trained on; {unless}"),
    ):
        out = tmp_path / str(limit)
        advkit.train(own_net(), settings=TINY | {"data.limit": limit}, init_from=begin, out=out, progress=Heard())
        assert notes_of(out) == [said]


def test_an_exports_notes_go_with_its_weights(tmp_path: Path) -> None:
    advkit.train("small-cnn", settings=TINY | {"validation.split": "test", "model.width": 2}, out=tmp_path / "run")
    advkit.export(tmp_path / "run", tmp_path / "net")
    file, width = tmp_path / "net" / "model.safetensors", {"model.width": 2}
    named = {"model": "small-cnn", "dataset": "digits", "settings": width}
    judged = advkit.evaluate(file, attacks="clean", n=2, eps=0.1, audit=False, **named)
    assert CHOSEN_ON_TEST in judged.notes
    heard = Heard()
    advkit.train("small-cnn", settings=TINY | width, init_from=file, progress=heard)
    assert f"of {file}, whose weights are the start: {CHOSEN_ON_TEST}" in heard.said


def test_standard_training_gives_its_last_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TINY | {"run.epochs": 2, "attack.steps": 0}
    advkit.train(own_net(), plugins="cutmix", settings=settings, out=tmp_path / "run")
    weights = {}
    for name in (None, "last", "best"):
        net = own_net()
        advkit.load_weights(net, tmp_path / "run", name)
        weights[name] = net.state_dict()["1.weight"]
    assert torch.equal(weights[None], weights["last"])
    owned = resolve((OwnSteps,), [Layer("test", {"attack.steps": 0})])
    monkeypatch.setattr("advkit.training.parts.resolve_folder", lambda folder: owned)
    advkit.load_weights(net := own_net(), tmp_path / "run")
    assert torch.equal(net.state_dict()["1.weight"], weights["best"]), "under an attack with steps of its own"
    assert not torch.equal(weights["best"], weights["last"])


def test_threads_are_the_callers_where_a_run_is_refused() -> None:
    before = torch.get_num_threads()
    with pytest.raises(OptionError, match="leaves nothing to train on"):
        advkit.train(settings=TINY | {"run.threads": before + 1, "validation.fraction": 0.99})
    assert torch.get_num_threads() == before
