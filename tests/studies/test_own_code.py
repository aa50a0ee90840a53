"""Nets and data of one's own: from a file that is named, and from objects that are passed, through every command."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

import advkit
from advkit import own_file
from advkit.cli.main import parse_value, run
from advkit.errors import NotTyped, OptionError
from advkit.net_arguments import arguments
from advkit.own_file import OwnFile
from advkit.studies.analysis import Study

NET = """
from torch import nn
from beside import body

class Net(nn.Module):
    def __init__(self, num_classes, channels=1, wide=2):
        super().__init__()
        self.body, self.head = body(channels, wide), nn.Linear(64 * wide, num_classes)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))

def failing():
    return 1 / 0

def number() -> int:
    return 3

def coloured():
    return Net(10, channels=3)

def narrow():
    return Net(3)

def needy(depth):
    return Net(depth)

made = Net(10)
"""
BESIDE = """
from torch import nn

def body(channels, wide):
    return nn.Sequential(nn.Conv2d(channels, wide, 3, padding=1), nn.ReLU())

def few():
    return 40
"""
DATA = """
import advkit
from beside import few

def some(root=None):
    splits = advkit.load_data("digits", limit=few())
    if root:
        (root / "seen").touch()
    return (splits.train.images, splits.train.labels), (splits.test.images, splits.test.labels)
"""
QUICK = ["--set", "attack.steps=1", "--set", "validation.steps=1", "--eps", "0.1", "--epochs", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("code")
    for name, text in (("net.py", NET), ("beside.py", BESIDE), ("mine.py", DATA)):
        (path / name).write_text(text)
    return path


@pytest.fixture(scope="module")
def named(folder: Path) -> list[str]:
    return ["--model", f"{folder}/net.py:Net", "--dataset", f"{folder}/mine.py:some"]


@pytest.fixture(scope="module")
def trained(folder: Path, named: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert run(["train", *named, "--set", "model.wide=3", *QUICK, "--out", str(out), "--progress", "none"]) == 0
    return out


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    path = list(sys.path)
    yield
    assert sys.path == path


def said(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    capsys.readouterr()
    code = run([str(word) for word in words])
    return code, capsys.readouterr().err


# ---------------------------------------------------------------------- files


def test_a_run_records_path_and_sha256_of_code(trained: Path, folder: Path) -> None:
    import hashlib
    import tomllib

    table = tomllib.loads((trained / "run.toml").read_text())
    assert table["model"] == {"name": "net.py:Net", "wide": 3} and table["data"]["name"] == "mine.py:some"
    sha = hashlib.sha256(NET.encode()).hexdigest()
    assert table["files"]["model"] == {"path": f"{folder}/net.py", "sha256": sha}
    code = json.loads((trained / "environment.json").read_text())["code"]
    assert {"model", "net.py:Net", "mine.py:some"} <= code.keys()


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "RUN"],
        ["audit", "RUN"],
        ["export", "RUN", "--out", "OUT"],
        ["analyze", "vulnerability", "RUN"],
        ["train", "--resume", "RUN"],
        ["train", "--config", "RUN/run.toml"],
        ["plan", "--config", "RUN/run.toml"],
    ],
    ids=" ".join,
)
def test_code_of_a_run_is_not_imported_unless_it_is_named(
    words: list[str],
    trained: Path,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(own_file.OwnFile, "_imported", lambda self: pytest.fail("imported"))
    monkeypatch.setattr(own_file, "_LOADED", {})
    words = [word.replace("RUN", str(trained)).replace("OUT", str(tmp_path / "out")) for word in words]
    add = f"--model {folder}/net.py:Net --dataset {folder}/mine.py:some"
    assert said(capsys, *words) == (
        2,
        f"Error: The code of net.py:Net and mine.py:some runs only where you name it: add {add}. "
        f"That is: advkit {' '.join(words)} {add}\n",
    )


def test_code_that_is_named_again_serves_every_command(
    trained: Path, named: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = said(capsys, "evaluate", trained, *named, "--n", "10", "--attacks", "clean,pgd-1")
    assert code == 0
    assert said(capsys, "audit", trained, *named, "--n", "4")[0] in (0, 3)
    assert said(capsys, "analyze", "budget", trained, *named)[0] == 2  # it has none; the net was built
    assert said(capsys, "export", trained, *named, "--out", tmp_path / "out")[0] == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "model.pt2" in names and "model-without-normalisation.pt" not in names
    assert "normalis" not in (tmp_path / "out" / "README.txt").read_text()
    code, error = said(capsys, "train", "--resume", trained, *named)
    assert code == 0 and "is finished" in error and f"Next: advkit evaluate {trained} {' '.join(named)}\n" in error
    record = advkit.evaluate(trained, named[3], "clean", model=named[1], n=10, audit=False)
    assert record.n == 10 and record["model"] == "net.py:Net"


def test_every_verb_takes_at_most_a_batch_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A net that refuses more than a batch and the sample that is merged into it, as where memory ends."""
    guarded = NET.replace("    def forward(self, x):", "    def forward(self, x):\n        assert len(x) <= 7, len(x)")
    (tmp_path / "net.py").write_text(guarded)
    (tmp_path / "beside.py").write_text(BESIDE)
    (tmp_path / "mine.py").write_text(DATA)
    net = ["--model", f"{tmp_path}/net.py:Net", "--dataset", f"{tmp_path}/mine.py:some"]
    numpy.savez(tmp_path / "some.npz", image=numpy.zeros((9, 8, 8, 1), numpy.uint8))
    out, small = tmp_path / "study", [*QUICK, "--batch-size", 6, "--seeds", 1, "--attacks", "clean,pgd-1", "--n", 9]
    code, error = said(capsys, "ablate", "--plugins", "cat-eps", *net, *small, "--out", out)
    assert code == 0, error
    trained = next(out.glob("**/run.toml")).parent
    for verb in (
        ["evaluate", trained, "--attacks", "clean,pgd-1", "--n", 9],
        ["analyze", "vulnerability", trained, "--attack", "pgd-1", "--n", 9],
        ["analyze", "margin", trained, "--attack", "pgd-1", "--n", 9, "--cap", 1],
        ["analyze", "landscape", trained, "--points", 3, "--n", 9],
        ["data", "pseudo-label", tmp_path / "some.npz", "--with", trained, "--out", tmp_path / "labels"],
    ):
        code, error = said(capsys, *verb, *net)
        assert code == 0, error
    code, error = said(capsys, *verb[:-1], tmp_path / "more", *net, "--batch-size", 8)
    assert code != 0 and "8" in error, "the control"


def test_a_changed_file_is_named(
    trained: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("beside.py", "mine.py"):
        shutil.copy(folder / name, tmp_path)
    (tmp_path / "net.py").write_text(NET + "# more\n")
    moved = ["--model", f"{tmp_path}/net.py:Net", "--dataset", f"{tmp_path}/mine.py:some"]
    sentence = f"{tmp_path}/net.py is another file than the run's, {folder}/net.py, and says something else"
    _, error = said(capsys, "train", "--resume", trained, *moved, "--progress", "plain")
    assert sentence in error and "mine.py is another" not in error
    record = advkit.evaluate(trained, moved[3], "clean", model=moved[1], n=4, audit=False)
    assert [note for note in record.notes or () if note.startswith(sentence)]
    other = "The code of the {}, is another than that the run was started with"
    net, data = other.format("net, Net"), other.format("data, mine.py:some")
    assert not {net, data} & {*(record.notes or ())}, "the control: a remark is no other code"
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "beside.py").write_text(BESIDE.replace("ReLU", "Sigmoid").replace("40", "int(40)"))
    (tmp_path / "mine.py").write_text(DATA + "# more\n")
    record = advkit.evaluate(trained, moved[3], "clean", model=moved[1], n=4, audit=False)
    notes = record.notes or []
    assert net in notes and data in notes and any("mine.py is another file" in note for note in notes)


@pytest.mark.parametrize(
    ("name", "code", "sentence"),
    [
        ("net.py", 2, "--model {0}/net.py is a file; say which class or function of it: {0}/net.py:NAME."),
        ("net.py::Net", 2, "--model {0}/net.py::Net has two colons, and FILE.py:NAME one: {0}/net.py:Net."),
        ("net.py:Nett", 2, "{0}/net.py has no Nett. Did you mean Net?"),
        ("nat.py:Net", 4, "{0}/nat.py can not be read (No such file or directory); --model takes FILE.py:NAME."),
        (
            "net.py:failing",
            4,
            "net.py:failing can not be called ({0}/net.py, line 14: ZeroDivisionError: division by zero)",
        ),
        (
            "net.py:coloured",
            2,
            "The model can not be called on images (2, 1, 8, 8): RuntimeError: Given groups=1",
        ),
        ("net.py:narrow", 2, "The model returns 3 logits"),
        ("net.py:number", 2, "net.py:number gives 3; let it give a torch Module."),
        (
            "net.py:needy",
            2,
            "net.py:needy needs depth; it is given classes, num_classes, channels, in_channels, spec where it names "
            "them, so give the others defaults.",
        ),
        (
            "net.py:made",
            2,
            "net.py:made is an object (Net); name a class, or a function that returns it, so that every run "
            "has its own.",
        ),
        ("bad.py:Net", 4, "bad.py:Net can not be imported ({0}/bad.py, line 2: SyntaxError: '(' was never closed)"),
        ("exits.py:Net", 4, "exits.py:Net can not be imported ({0}/exits.py, line 1: SystemExit: 3); mend the file."),
    ],
)
def test_what_is_wrong_with_a_file_is_a_sentence(
    name: str, code: int, sentence: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.py").write_text("import torch\nx = (\n")
    (folder / "exits.py").write_text("raise SystemExit(3)\n")
    ended, error = said(capsys, "train", "--model", f"{folder}/{name}", *QUICK, "--out", folder / "never")
    assert (ended, f"Error: {sentence.format(folder)}" in error) == (code, True), error
    assert not (folder / "never").exists()


def test_an_argument_that_nobody_takes_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model", f"{folder}/net.py:Net", "--set", "model.wode=3", "--out", folder / "never")
    assert said(capsys, "train", *words) == (2, "Error: net.py:Net takes no argument wode. Did you mean wide?\n")


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("flag=False", "model.flag = 'False' is a text to the net; write false."),
        ("flag=TRUE", "model.flag = 'TRUE' is a text to the net; write true."),
        ("word=None", "model.word = 'None' is a text to the net; leave it out, since no run file holds None."),
        ("word=(3, 4)", "model.word = '(3, 4)' is a text to the net; write [3, 4]."),
        ("flag=off", "model.flag = 'off' is a text, and net.py:Typed has True there; give true or false."),
    ],
)
def test_a_text_that_a_net_would_take_for_true_is_refused(tmp_path: Path, typed: str, sentence: str) -> None:
    with pytest.raises(OptionError) as refused:
        call_typed(tmp_path, typed)
    assert str(refused.value) == sentence


@pytest.mark.parametrize(
    "typed", ["word=none", "word=(x)", "word=4,8", "flag=false", "flag=imagenet", "wide=0.5", "wide=same"]
)
def test_other_arguments_of_a_net_are_taken(tmp_path: Path, typed: str) -> None:
    key, _, text = typed.partition("=")
    assert call_typed(tmp_path, typed) == {"flag": True, "wide": 2, "word": "a"} | {key: parse_value(text)}


def call_typed(folder: Path, typed: str) -> object:
    (folder / "net.py").write_text("def Typed(flag=True, wide=2, word='a'):\n    return dict(locals())\n")
    file = OwnFile.typed("model.name", f"{folder}/net.py:Typed")
    assert file is not None
    key, _, text = typed.partition("=")
    return file.made({}, arguments({key: parse_value(text)}))


def test_arguments_of_a_net_may_be_numbers_of_numpy_and_torch() -> None:
    given = {"wide": numpy.int64(3), "flag": numpy.bool_(False), "rate": torch.tensor(0.5), "many": [numpy.int64(2)]}
    assert arguments(given) == {"wide": 3, "flag": False, "rate": 0.5, "many": [2]}


def test_modules_beside_two_files_are_not_mixed_up(tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "helpers7.py").write_text(f"VALUE = {value}\n")
        (tmp_path / name / "net.py").write_text("from helpers7 import VALUE\ndef value(): return VALUE\n")
    files = [own_file.OwnFile.typed("model.name", f"{tmp_path}/{name}/net.py:value") for name in ("a", "b", "a")]
    assert [file.made({}, {}) for file in files if file] == [1, 2, 1]


def test_the_future_of_advkit_is_not_that_of_a_file(folder: Path) -> None:
    file = own_file.OwnFile.typed("model.name", f"{folder}/net.py:number")
    assert file is not None and file.load().__annotations__ == {"return": int}


def test_data_of_a_file_are_told_their_root_and_limited(folder: Path, tmp_path: Path) -> None:
    from advkit.data.own import OwnData

    file = own_file.OwnFile.typed("data.name", f"{folder}/mine.py:some")
    assert file is not None
    splits = OwnData(file).load(tmp_path, 20)
    assert (tmp_path / "seen").exists() and (len(splits.train), len(splits.test)) == (20, 20)
    assert splits.train.name == "mine.py:some"


def test_runs_of_a_file_are_compared_and_reported(
    trained: Path, named: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "copy", symlinks=True)
    both, judged = [trained, tmp_path / "copy"], ["--n", "4", "--attacks", "clean"]
    code, error = said(capsys, "compare", *both, *judged)
    assert code == 2 and error.endswith(f"compare {both[0]} {both[1]} {' '.join([*judged, *named])}\n")
    assert said(capsys, "compare", *both, *judged, *named)[0] == 0
    page = advkit.report(trained, model=named[1], dataset=named[3], samples=1).html
    assert "data:image/png" in page and f"--model {named[1]} --dataset {named[3]}" in page


def test_transfer_from_a_run_of_a_file_runs_code_that_is_typed_and_no_other(
    trained: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_file, "_LOADED", {})
    images, name = advkit.load_data("digits", limit=40).test, f"transfer:{trained}"
    typed = f"@{folder}/net.py:Net@{folder}/mine.py:some"

    def found(attack: str) -> advkit.Evaluation:
        torch.manual_seed(1)  # a net that is right of some images, so that there is something to attack
        return advkit.evaluate(module(), images, attack, eps=0.1, audit=False)

    with monkeypatch.context() as patched:
        patched.setattr(own_file.OwnFile, "_imported", lambda self: pytest.fail("imported"))
        for refused in (name, f"{name}@{folder}/net.py:Net"):
            with pytest.raises(advkit.OptionError, match="only where you name it: ") as error:
                found(refused)
            assert str(error.value).endswith(f"{name}{typed}.")
        with pytest.raises(advkit.OptionError, match=r"net is net\.py:Net, not net\.py:needy"):
            found(f"{name}@{folder}/net.py:needy@{folder}/mine.py:some")
        with pytest.raises(advkit.OptionError, match=r"that net\.py:Net could give; leave @net\.py"):
            found(f"{name}{typed}@net.py:Net")
    assert [*found(name + typed).robust] == [name] and not found(name + typed).attacks[0].notes
    for beside in ("beside.py", "mine.py"):
        shutil.copy(folder / beside, tmp_path)
    (tmp_path / "net.py").write_text(NET + "# more\n")
    (note,) = found(f"{name}@{tmp_path}/net.py:Net@{tmp_path}/mine.py:some").attacks[0].notes
    assert note.startswith(f"of its source: {tmp_path}/net.py is another file than the run's")
    other = f"{trained}@{tmp_path}/net.py:Net@{tmp_path}/mine.py:some"
    audit = advkit.audit(module(), images, n=2, eps=0.1, transfer=other)
    assert note in audit.notes and audit.source is not None and audit.source["name"] == name
    with pytest.raises(advkit.OptionError, match=r"are one attack, transfer:.*; leave one of them out\."):
        advkit.evaluate(module(), images, f"{name + typed},{name}@{folder}/net.py:Net@{folder}//mine.py:some", eps=0.1)


def test_names_of_other_things_are_refused(trained: Path, folder: Path) -> None:
    with pytest.raises(advkit.OptionError, match=r"The run's net is net\.py:Net, not net\.py:needy; name that"):
        advkit.evaluate(trained, f"{folder}/mine.py:some", model=f"{folder}/net.py:needy")
    with pytest.raises(NotTyped, match=r"The code of net\.py:Net runs only where you name it"):
        advkit.evaluate(trained, f"{folder}/mine.py:some")


# ---------------------------------------------------------------------- objects


def module(wide: int = 2) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, wide, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36 * wide, 10))


@pytest.fixture(scope="module")
def pair() -> Any:
    splits = advkit.load_data("digits", limit=40)
    return splits.train.images, splits.train.labels


OWN: dict[str, Any] = {"plugins": ["cat-eps"], "eps": 0.1, "settings": {"attack.steps": 1, "validation.steps": 1}}


def test_a_run_of_objects_takes_one_call_each(pair: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = module()
    advkit.train(net, pair, **OWN, epochs=1, out=tmp_path / "run")
    other = module()
    result = advkit.evaluate(tmp_path / "run", pair, "clean", model=other, n=4, audit=False)
    assert result.n == 4 and torch.equal(other[0].weight, net[0].weight)
    assert advkit.audit(tmp_path / "run", pair, model=module(), n=4).run == str(tmp_path / "run")
    assert advkit.export(tmp_path / "run", tmp_path / "out", model=module(), dataset=pair)["mean"] is None
    resumed = advkit.train(module(), pair, resume_from=tmp_path / "run")
    assert torch.equal(resumed.model[0].weight, net[0].weight)  # type: ignore[index]
    record = Study(tmp_path / "run", n=4, attack="pgd-1", model=module(), dataset=pair, out=tmp_path).vulnerability()
    assert record.n == 4
    for flag, what in (("dataset", "images"), ("model", "model")):
        given = {"images": {"model": module()}, "model": {"dataset": pair}}[what]
        with pytest.raises(advkit.AdvkitError, match=rf'passed from Python: pass .* with {flag}="FILE\.py:NAME"\.'):
            advkit.evaluate(tmp_path / "run", **given)
    assert said(capsys, "evaluate", tmp_path / "run")[0] == 4


def test_a_file_serves_a_run_of_objects(folder: Path, named: list[str], tmp_path: Path) -> None:
    file = own_file.OwnFile.typed("model.name", named[1])
    assert file is not None
    splits = advkit.load_data("digits", limit=40)
    advkit.train(file.load()(10), splits, **OWN, epochs=1, out=tmp_path / "run")
    assert run(["evaluate", str(tmp_path / "run"), *named, "--n", "4", "--attacks", "clean"]) == 0


def test_objects_of_an_installed_run_are_refused(tmp_path: Path, pair: Any) -> None:
    settings = {**OWN["settings"], "data.limit": 40, "model.width": 2}
    advkit.train(plugins=(), eps=0.1, settings=settings, epochs=1, out=tmp_path / "run")
    with pytest.raises(
        advkit.OptionError, match="is a run of the model small-cnn, which is built anew; leave model out"
    ):
        advkit.evaluate(tmp_path / "run", model=module())
    for judge in (advkit.evaluate, advkit.audit):
        with pytest.raises(
            advkit.OptionError, match=r"names its data and norm itself; pass a module to evaluate it on "
        ):
            judge(tmp_path / "run", pair)


@pytest.mark.parametrize("name", ["typo", "folder", "folder/below", "run.toml/x"])
def test_a_run_of_objects_that_is_not_there_is_said_to_be_absent(name: str, tmp_path: Path, pair: Any) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "run.toml").touch()
    path = tmp_path / name
    for judge in (advkit.evaluate, advkit.audit, partial(advkit.export, out=tmp_path / "out")):
        for given in ({}, {"model": module()}, {"dataset": pair}, {"model": module(), "dataset": pair}):
            with pytest.raises(advkit.CheckpointError, match=rf"^{path} is not a run folder: it "):
                judge(path, **given)  # type: ignore[operator]
    with pytest.raises(advkit.CheckpointError, match=rf"^{path} is not a run folder: it "):
        Study(path, model=module(), dataset=pair, out=tmp_path).vulnerability()
