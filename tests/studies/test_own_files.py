"""Files of one's own that print, go elsewhere or set what is the whole program's; two files of one name."""

from __future__ import annotations

import json
import os
import random
import re
import tomllib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import advkit
from advkit import OptionError, own_file, registry
from advkit.cli.main import run
from advkit.config.layer import Layer, with_files
from advkit.config.resolve import resolve
from advkit.errors import Stopped
from advkit.models.base import DataSpec, ModelBuilder
from advkit.own_file import OwnFile
from advkit.studies import arms, export as exporting
from advkit.studies.report import report
from advkit.training.loop import Trainer
from advkit.training.parts import build_model, prepared
from advkit.training.plan import own_net

NET = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(64, {wide}), nn.{moves}(), nn.Linear({wide}, num_classes))

    def forward(self, x):
        print("asked")
        return super().forward(x)
"""
DATA = """
import advkit

def some():
    splits = advkit.load_data("digits", limit=30)
    print("loaded")
    return (splits.train.images // {by}, splits.train.labels), (splits.test.images // {by}, splits.test.labels)
"""
QUICK = [
    "--set",
    "attack.steps=1",
    "--set",
    "validation.steps=1",
    "--eps",
    "0.1",
    "--epochs",
    "1",
    "--progress",
    "none",
]


def written(folder: Path, wide: int = 4, moves: str = "ReLU", by: int = 1, before: str = "") -> list[str]:
    """What names a net and data in `folder`."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "net.py").write_text(before + NET.format(wide=wide, moves=moves))
    (folder / "mine.py").write_text(DATA.format(by=by))
    return ["--model", f"{folder}/net.py:Net", "--dataset", f"{folder}/mine.py:some"]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Runs of files that are called alike."""
    base = tmp_path_factory.mktemp("two")
    for name, wide, by in (("a", 4, 1), ("b", 5, 2)):
        words = written(base / name, wide=wide, by=by)
        assert run(["train", *words, *QUICK, "--out", str(base / f"run-{name}")]) == 0
        assert run(["evaluate", str(base / f"run-{name}"), *words, "--attacks", "clean"]) == 0
    return [base / "run-a", base / "run-b"]


def test_a_card_names_the_files_that_its_commands_want(two: list[Path], tmp_path: Path) -> None:
    words = ["--model", f"{two[0].parent}/a/net.py:Net", "--dataset", f"{two[0].parent}/a/mine.py:some"]
    assert run(["export", str(two[0]), *words, "--out", str(tmp_path / "net"), "--hub"]) == 0
    card = (tmp_path / "net" / "README.md").read_text()
    for command in (
        f"`advkit evaluate {two[0]} {' '.join(words)} --attacks",
        f"`advkit audit {two[0]} {' '.join(words)}`",
    ):
        assert command in card


def test_two_files_of_one_name_are_two(two: list[Path]) -> None:
    page = report(two, samples=0).html
    assert "The runs differ in their data (run 1: mine.py:some, SHA-256 " in page
    assert "SHA-256 of the net&#x27;s file" in page or "SHA-256 of the net's file" in page
    assert "Every setting that the runs share is equal" not in page and "advkit compare" not in page
    assert "No two runs have been evaluated on the same number of test images" in page


def test_an_evaluation_of_before_is_told_apart_by_what_lies_beside(two: list[Path]) -> None:
    def captions() -> int:
        return report(two, samples=0).html.count(", images ")

    before, files = captions(), [next(path.glob("evaluations/*/*/evaluation.json")) for path in two]
    for file in files:
        stored = json.loads(file.read_text())
        assert len(stored.pop("sha256_of_split")) == 64
        file.write_text(json.dumps(stored))
    assert captions() == before > 0


def test_what_is_exported_and_analyzed_says_that_the_code_has_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = written(tmp_path)
    assert run(["train", *words, *QUICK, "--out", str(tmp_path / "run")]) == 0
    written(tmp_path, moves="Sigmoid")
    capsys.readouterr()
    assert run(["export", str(tmp_path / "run"), *words, "--out", str(tmp_path / "out"), "--json"]) == 0
    assert "has changed" in json.loads(capsys.readouterr().out)["notes"][0]
    assert "has changed since the run was started" in (tmp_path / "out" / "README.txt").read_text()
    assert run(["analyze", "margin", str(tmp_path / "run"), *words, "--attack", "pgd-1", "--n", "4", "--cap", "1"]) == 0
    assert "has changed since" in " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("quick_audit")
def test_a_card_leaves_out_what_was_measured_in_another_net_or_on_other_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_graph", lambda *_: (None, "not asked for"))  # which takes seconds
    home, words = tmp_path / "run", written(tmp_path)
    own: dict[str, Any] = {"model": words[1], "dataset": words[3]}
    assert run(["train", *words, *QUICK, "--out", str(home)]) == 0

    def judged(n: int, checkpoint: str = "best", **how: Any) -> list[str]:
        """By a state of the files, which are restored; in what the net was another."""
        written(tmp_path, **how)
        said = advkit.evaluate(home, attacks="fgsm", n=n, checkpoint=checkpoint, audit=False, **own).another_net
        written(tmp_path)
        return list(said)

    def card(name: str, **how: Any) -> str:
        written(tmp_path, **how)
        advkit.export(home, tmp_path / name, hub=True, **own)
        written(tmp_path)
        return (tmp_path / name / "README.md").read_text()

    file, code = judged(8, moves="Sigmoid")
    assert "has changed since the run was started" in file and code.startswith("The code of the net, Net, is another")
    written(tmp_path, moves="Sigmoid")
    audit = advkit.audit(home, n=4, **own)
    out = f"is left out, for it is of these weights in another net: {file}; {code}."
    first = card("first")
    assert f"- audit.json {out}" in first and f"/n-8 {out}" in first and first.count("left out") == 2
    assert "Nothing is known of these weights" in first and "Not audited for masked gradients yet" in first
    edited = card("edited", moves="Sigmoid")
    assert "On the test split, 8 of 30 images" in edited and "left out" not in edited, "the control: of the net it is"
    assert "Not audited" not in edited and f"- {file}.\n- {code}." in edited
    assert judged(6) == judged(10, by=2) == []  # the images are others, the net is the run's
    assert judged(5, before="# nothing else\n") == []
    (home / "audit.json").write_text(json.dumps(audit.as_dict() | {"another_net": [], "sha256_of_split": "0" * 64}))
    for n in (6, 7):
        judged(n, "last")
    judged(7)
    last = card("last")
    assert "On the test split, 7 of 30 images" in last and f"/n-8 {out}" in last
    assert last.count("Also evaluated: test split, 6 of 30 images") == 1, "best and last are one"
    assert "Also evaluated: test split, 7 of 30 images" not in last
    also = r"Also evaluated: test split, 10 of 30 images, [^\n]*, of other images \([0-9a-f]{8}\), worst case "
    assert len(re.findall(also, last)) == 1
    assert "- audit.json is left out, for it is of these weights on other test images." in last


def stopped(*_: object) -> None:
    raise Stopped("at once")


def test_a_run_that_was_resumed_with_edited_code_says_so_for_good(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, out = written(tmp_path), str(tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "one_step", stopped)
        assert run(["train", *words, *QUICK, "--out", out]) == 75
        written(tmp_path, moves="Sigmoid")
        assert run(["train", "--resume", out, *words]) == 75
    assert run(["train", "--resume", out, *words]) == 0
    written(tmp_path)
    capsys.readouterr()
    assert run(["evaluate", out, *words, "--attacks", "clean", "--n", "4", "--json"]) == 0
    file, net = json.loads(capsys.readouterr().out)["notes"]
    assert file.startswith("Resumed with other code: ") and "has changed since the run was started" in file
    assert net == "Resumed with other code: The code of the net, Net, is another than that the run was started with"


def test_what_a_file_prints_is_not_what_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = written(tmp_path, before="print('imported')\n")
    assert run(["plan", *words, "--json"]) == 0
    printed = capsys.readouterr()
    json.loads(printed.out)
    assert "imported" in printed.err or "loaded" in printed.err
    assert run(["train", *words, *QUICK, "--print-config"]) == 0
    tomllib.loads(capsys.readouterr().out)
    out, page = str(tmp_path / "run"), str(tmp_path / "page.html")
    assert run(["train", *words, *QUICK, "--out", out]) == 0
    printed = capsys.readouterr()
    assert printed.out == "" and "asked" in printed.err
    assert run(["report", out, *words, "--json", "--out", page]) == 0
    printed = capsys.readouterr()
    json.loads(printed.out)
    assert "asked" in printed.err


def test_what_a_file_sets_of_the_program_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sets = "import os, torch\nos.chdir(os.path.dirname(__file__))\n"
    sets += "torch.set_default_device('meta'), torch.set_num_threads(2), torch.set_grad_enabled(False)\n"
    end = "\ndef here():\n    return os.getcwd()\n"
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "net.py").write_text(sets + end)
    before = torch.get_num_threads()
    file = OwnFile.typed("model.name", "code/net.py:here")
    assert file is not None
    assert file.made({}, {}) == str(tmp_path / "code")  # its own relative paths hold on
    assert os.getcwd() == str(tmp_path) and torch.get_default_device().type == "cpu"
    assert torch.get_num_threads() == before and torch.is_grad_enabled()


def test_another_default_type_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import torch\ntorch.set_default_dtype(torch.float64)\ndef net():\n    return 1\n")
    file = OwnFile.typed("model.name", f"{tmp_path}/net.py:net")
    assert file is not None
    said = r"net\.py:net sets torch's default type for the whole program \(torch\.float64\)"
    with pytest.raises(OptionError, match=said):
        file.load()
    assert torch.get_default_dtype() == torch.float32


def test_a_path_that_no_run_file_can_hold_is_refused_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    try:
        words = written(folder)
    except OSError:
        pytest.skip("this file system takes no such name")
    assert run(["train", *words, *QUICK, "--out", str(tmp_path / "run")]) == 4
    assert "is no UTF-8, so no run file can hold it; rename" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", [["evaluate"], ["audit"], ["export", "--out", "out"], ["analyze", "margin"]])
def test_a_run_that_is_not_there_is_said_to_be_absent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([*command, "nope", *written(tmp_path)[:2]]) == 4
    assert "does not exist" in capsys.readouterr().err


def test_the_folder_of_data_is_refused_where_nothing_takes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = written(tmp_path)
    assert run(["train", *words, *QUICK, "--data-root", str(tmp_path), "--out", str(tmp_path / "run")]) == 2
    assert "mine.py:some takes no argument root, so --data-root" in capsys.readouterr().err


def test_runs_of_two_files_are_not_compared_by_one(two: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    base = two[0].parent
    words = ["--model", f"{base}/a/net.py:Net", "--dataset", f"{base}/a/mine.py:some"]
    assert run(["compare", *map(str, two), *words, "--attacks", "clean"]) == 2
    assert "is for all runs; judge each with `advkit evaluate`" in " ".join(capsys.readouterr().err.split())


def test_another_file_is_not_said_to_have_changed(two: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    """A net that has been moved and is as it was is the run's own."""
    base = two[0].parent
    data = ["--dataset", f"{base}/a/mine.py:some"]
    (base / "other.py").write_text((base / "a" / "net.py").read_text() + "\n")
    (base / "moved.py").write_text((base / "a" / "net.py").read_text())
    for name, said in (("other", f"{base}/other.py is another file than the run's, {base}/a/net.py"), ("moved", "")):
        words = ["--model", f"{base}/{name}.py:Net", *data]
        assert run(["evaluate", str(two[0]), *words, "--attacks", "clean", "--json"]) == 0
        notes = json.loads(capsys.readouterr().out).get("notes", [])
        assert [note[: len(said)] for note in notes] == ([said] if said else [])


def test_one_set_for_both_splits_is_said_where_it_is_judged(tmp_path: Path) -> None:
    images = advkit.load_data("digits", limit=40)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    settings = {"attack.steps": 1, "validation.steps": 1}
    advkit.train(net, images.train, epochs=1, eps=0.1, settings=settings, out=tmp_path / "run")

    def notes(judged: advkit.Dataset) -> list[str]:
        return list(advkit.evaluate(tmp_path / "run", judged, "clean", model=net, audit=False).notes or ())

    assert "is one set for both splits, so accuracies are on images that" in notes(images.train)[0]
    assert "one set" not in " ".join(notes(images.test))


def test_a_net_that_was_passed_is_a_source_of_transfer_once_code_is_named(tmp_path: Path) -> None:
    some = advkit.load_data("digits", limit=30).train
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    settings = {"attack.steps": 1, "validation.steps": 1}
    advkit.train(net, some, epochs=1, eps=0.1, settings=settings, out=tmp_path / "run")
    (tmp_path / "co@de.py").write_text(
        "import torch, advkit\n"
        "def net(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
        "def data(): return advkit.load_data('digits', limit=30).train\n"
    )
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    name, code = f"transfer:{tmp_path}/run", f"@{tmp_path}/co@de.py:net@{tmp_path}/co@de.py:data"
    with pytest.raises(OptionError, match=r"only where you name it: transfer:.*/run@FILE\.py:NAME@FILE\.py:NAME\.$"):
        advkit.evaluate(other, some, name, eps=0.1)
    with pytest.raises(OptionError, match=r"co@de\.py::net has two colons, and FILE\.py:NAME one: .*co@de\.py:net\.$"):
        advkit.evaluate(other, some, name + code.replace(".py:", ".py::"), eps=0.1)
    assert [*advkit.evaluate(other, some, name + code, eps=0.1, audit=False).robust] == [name]


DRAWS = """
import random
import numpy as np
import torch
from torch import nn

AT_IMPORT = float(np.random.rand() + random.random() + torch.rand(()))

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        drawn = np.random.randn(64, classes) + random.random() + AT_IMPORT
        self.w = nn.Parameter(torch.tensor(drawn).float() + torch.rand(64, classes))

    def forward(self, x):
        return x.flatten(1) @ self.w

def data():
    images = torch.from_numpy(np.random.randint(0, 256, (20, 1, 8, 8), dtype=np.uint8))
    return images, torch.tensor([random.randrange(3) for _ in range(20)])
"""


def test_what_a_file_draws_from_any_global_generator_is_the_same_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(DRAWS)

    def drawn(seed: int) -> tuple[torch.Tensor, str]:
        monkeypatch.setattr(own_file, "_LOADED", {})  # as in another process
        named = {"model.name": f"{tmp_path}/mine.py:Net", "data.name": f"{tmp_path}/mine.py:data", "run.seed": seed}
        before = random.getstate(), np.random.get_state(legacy=True)[1].tolist(), torch.get_rng_state()  # noqa: NPY002
        splits, net = prepared(resolve((), [with_files(Layer("command line", named))]))
        now = random.getstate(), np.random.get_state(legacy=True)[1].tolist(), torch.get_rng_state()  # noqa: NPY002
        assert before[:2] == now[:2] and torch.equal(before[2], now[2])
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        return next(net.parameters()).detach(), splits.train.fingerprint()

    (first, data), (again, same), (other, still) = drawn(1), drawn(1), drawn(2)
    assert torch.equal(first, again) and data == same == still
    assert not torch.equal(first - first.mean(), other - other.mean())


AGAIN = """
import copy
import functools
import torch
from torch import nn

BODY, NORM, TIED = nn.Linear(64, 3), nn.BatchNorm1d(64, affine=False), torch.rand(3, 64)
HELD, STILL = nn.Linear(64, 3).requires_grad_(False), nn.BatchNorm1d(64).requires_grad_(False).eval()
MEAN, WEIGHT = torch.zeros(64), nn.Parameter(torch.rand(3, 64))

class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", MEAN[:])

    def forward(self, x):
        if self.training:
            self.mean.lerp_(x.detach().mean(0), 0.1)
        return x - self.mean

CENTRE = Centred()

def on(*layers):
    return nn.Sequential(nn.Flatten(), *layers)

def outside():
    return on(BODY)

@functools.cache
def cached():
    return on(nn.Linear(64, 3))

@functools.cache
def cached_and_frozen():
    return cached().requires_grad_(False)

def default(body=nn.Linear(64, 3)):
    return on(body)

class Kept(nn.Sequential):
    body = on(nn.Linear(64, 3))

    def __init__(self):
        super().__init__(self.body)

def memory():
    layer = nn.Linear(64, 3)
    layer.weight = nn.Parameter(TIED)
    return on(layer)

def retied():
    layer = nn.Linear(64, 3)
    layer.weight = WEIGHT
    return on(layer)

def statistics():
    return on(NORM, nn.Linear(64, 3))

def own_statistics():
    return on(CENTRE, nn.Linear(64, 3))

def constant():
    return on(Centred(), nn.Linear(64, 3))

def weight_of_a_constant():
    layer = nn.Linear(64, 3, bias=False)
    layer.weight = nn.Parameter(MEAN.expand(3, 64))
    return on(Centred(), layer)

def fresh():
    layer = nn.Linear(64, 64)
    return on(layer, layer, nn.BatchNorm1d(64), nn.Linear(64, 3))

def copied():
    return on(copy.deepcopy(BODY))

def frozen():
    return on(HELD, nn.Linear(3, 3))

def still():
    return on(STILL, nn.Linear(64, 3))

def lazy():
    return on(nn.LazyLinear(3))
"""


@pytest.mark.parametrize(
    ("name", "own", "meanwhile"),
    [
        *((name, False, "kept") for name in ("outside", "cached", "cached_and_frozen", "default", "Kept")),
        *((name, False, "kept") for name in ("statistics", "own_statistics", "weight_of_a_constant")),
        *(("outside", False, meanwhile) for meanwhile in ("gone", "moved", "judged")),
        *((name, False, meanwhile) for name in ("memory", "frozen", "still") for meanwhile in ("kept", "gone")),
        *((name, False, "moved") for name in ("retied", "own_statistics", "still")),
        ("frozen", False, "thawed"),
        *(("constant", False, meanwhile) for meanwhile in ("trained", "trained and gone")),
        *(("constant", True, meanwhile) for meanwhile in ("kept", "gone", "moved", "judged")),
        *((name, True, "kept") for name in ("fresh", "copied", "lazy")),
        *(("fresh", True, meanwhile) for meanwhile in ("gone", "judged", "trained")),
    ],
)
def test_what_a_file_gives_again_is_refused_where_a_run_may_change_it(
    name: str, own: bool, meanwhile: str, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(AGAIN)
    named = resolve((), [with_files(Layer("command line", {"model.name": f"{tmp_path}/net.py:{name}"}))])
    spec = DataSpec(1, 8, 8, 3, (0.5,), (0.5,))
    assert own_net(named) and own_net(named), "plans change nothing"
    first: Any = build_model(named, spec)
    if meanwhile.startswith("trained"):
        first(torch.ones(2, 1, 8, 8))
    if meanwhile.endswith("gone"):
        first = None
    elif meanwhile == "moved":  # to other memory
        first.double()
    elif meanwhile in ("judged", "thawed"):
        first.requires_grad_(meanwhile == "thawed")
    again = r"^net\.py:\w+ gives weights or buffers that it has given to another net of this process; build all "
    with nullcontext() if own else pytest.raises(OptionError, match=again):
        assert build_model(named, spec) is not first


def test_a_net_with_a_buffer_of_no_memory_is_given_for_others_to_refuse(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\ndef net():\n    return nn.BatchNorm2d(1, device='meta')\n"
    )
    named = resolve((), [with_files(Layer("command line", {"model.name": f"{tmp_path}/net.py:net"}))])
    assert build_model(named, DataSpec(1, 8, 8, 1, (0.5,), (0.5,)))


@pytest.fixture
def kept_net(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registered net that is the same at every call."""
    kept, load = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), registry.load
    kind = type("Kept", (ModelBuilder,), {"name": "kept-net", "build": lambda self, spec: kept})
    monkeypatch.setattr(registry, "load", lambda group, name: kind if name == "kept-net" else load(group, name))


@pytest.mark.parametrize("name", ["kept-net", "small-cnn", "torchvision:resnet18"])
def test_of_registered_nets_those_that_are_given_again_are_refused(name: str, kept_net: None) -> None:
    named, spec = resolve((), [Layer("command line", {"model.name": name})]), DataSpec(1, 8, 8, 10, (0.5,), (0.5,))
    build_model(named, spec)
    again = r"^kept-net gives weights or buffers that it has given to another net of this process; build all "
    with pytest.raises(OptionError, match=again) if name == "kept-net" else nullcontext():
        build_model(named, spec)


@pytest.mark.parametrize(
    ("name", "trains"), [("outside", False), ("frozen", False), ("constant", True), ("kept-net", False)]
)
def test_a_study_refuses_weights_that_its_runs_would_share_before_it_trains(
    name: str,
    trains: bool,
    kept_net: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "net.py").write_text(AGAIN)
    begun = []

    def start(*_: object, **__: object) -> None:
        begun.append(name)
        raise OptionError("It trains.")

    monkeypatch.setattr(arms, "start", start)
    net = name if name == "kept-net" else f"{tmp_path}/net.py:{name}"
    line = ["--model", net, "--out", str(tmp_path / "out"), "--seeds", "0,", "--epochs", "1"]
    assert run(["ablate", "--plugins", "awp", *line, "--limit", "40", "--attacks", "clean", "--n", "4"]) == 2
    assert ("that it has given to another net" not in capsys.readouterr().err) == bool(begun) == trains
