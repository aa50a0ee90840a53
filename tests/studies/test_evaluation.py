"""Evaluations on disk and on the command line: what is kept, what a kill costs, and what is refused."""

from __future__ import annotations

import csv
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

import advkit
from advkit.cli.display import bar
from advkit.cli.evaluate import show
from advkit.cli.main import run as command
from advkit.data.base import Dataset
from advkit.errors import OptionError
from advkit.evaluation.attacks import EvaluationAttack, Square, Victim
from advkit.evaluation.results import BATCH, Verdicts, summary
from advkit.evaluation.statistics import wilson
from advkit.studies.inputs import listed
from advkit.studies.subject import of_run
from advkit.studies.verdict_store import Store

ATTACKS = "clean,pgd-3,pgd-3x3,square"
TINY = ["--epochs", "1", "--limit", "330", "--set", "model.width=2", "--set", "attack.steps=1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation") / "run"
    assert command(["train", *TINY, "--out", str(folder), "--progress", "none"]) == 0
    return folder


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert command(["evaluate", *map(str, arguments), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def without_times(found: dict[str, Any]) -> dict[str, Any]:
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in found["attacks"]]
    return {**found, "attacks": rows, "folder": None}


def test_the_result_and_its_files_say_the_same(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(capsys, trained, "--attacks", "clean,pgd-3,cw-3x2", "--n", 150, "--out", tmp_path)
    folder = Path(found["folder"])
    stored = json.loads((folder / "evaluation.json").read_text())
    assert stored == {key: value for key, value in found.items() if key != "folder"}
    with open(folder / "verdicts.csv") as stream:
        rows = list(csv.DictReader(stream))
    test = of_run(trained).splits.test
    index = [int(row["index"]) for row in rows]
    assert index == sorted(test.sample(150).index.tolist()) and found["images"].startswith("150 of ")
    assert [int(row["label"]) for row in rows] == advkit.load_data("digits").test.labels[index].tolist()
    for row in found["attacks"]:
        assert row["accuracy"] == sum(each[row["name"]] == "1" for each in rows) / 150
        assert row["interval"] == wilson(150 * row["accuracy"], 150)
    worst = sum(all(each[row["name"]] == "1" for row in found["attacks"]) for each in rows)
    assert found["worst_case"]["accuracy"] == worst / 150
    assert [row["restarts"] for row in found["attacks"][1:]] == [1, 2]
    assert {"advkit", "torch", "numpy"} <= found["versions"].keys()
    assert (found["checkpoint"], found["weights"], found["selected_on"]) == ("best", "raw", "validation")
    assert found["robustbench"]["clean_acc"] == f"{100 * found['attacks'][0]['accuracy']:.2f}"
    assert found["robustbench"]["autoattack_acc"] is None
    assert found["attacks"][1]["passes"]["input_backward"] <= 3


def test_known_verdicts_are_not_asked_again(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = evaluated(capsys, trained, "--attacks", "clean,pgd-3", "--n", 230, "--out", tmp_path)
    progress = Path(first["folder"]).parent / "progress.jsonl"
    lines = progress.read_bytes().count(b"\n")
    assert (
        lines == 2 * 3
        and evaluated(capsys, trained, "--attacks", "clean,pgd-3", "--n", 230, "--out", tmp_path) == first
    )
    more = evaluated(capsys, trained, "--attacks", "cw-3", "--n", 230, "--out", tmp_path)
    assert progress.read_bytes().count(b"\n") == lines + 3
    assert [row["name"] for row in more["attacks"]] == ["cw-3"]
    stored = json.loads((Path(first["folder"]) / "evaluation.json").read_text())
    assert [row["name"] for row in stored["attacks"]] == ["cw-3", "clean", "pgd-3"]
    fresh = evaluated(capsys, trained, "--attacks", "clean,pgd-3", "--n", 230, "--out", tmp_path, "--fresh")
    assert without_times(fresh) == without_times(first)
    assert progress.read_bytes().count(b"\n") == 2 * lines + 3  # nothing is thrown away
    assert evaluated(capsys, trained, "--attacks", "clean,pgd-3", "--n", 230, "--out", tmp_path) == fresh


def test_other_settings_get_other_verdicts(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = [trained, "--attacks", "pgd-3", "--n", 50, "--out", tmp_path]
    changes = ([], ["--eps", "0.01"], ["--checkpoint", "last"], ["--split", "train"], ["--seed", "1"])
    folders = {evaluated(capsys, *base, *change)["folder"] for change in changes}
    assert len(folders) == len(changes)
    slow = evaluated(capsys, *base, "--step", "eps/50")
    fast = evaluated(capsys, *base)
    assert slow["folder"] == fast["folder"] and slow["attacks"][0]["step_size"] < fast["attacks"][0]["step_size"]
    assert slow["attacks"][0]["accuracy"] > fast["attacks"][0]["accuracy"]
    stored = json.loads((Path(fast["folder"]) / "evaluation.json").read_text())["attacks"]
    assert [row["step_size"] for row in stored] == [row["attacks"][0]["step_size"] for row in (fast, slow)]
    with open(Path(fast["folder"]) / "verdicts.csv") as stream:
        rows = list(csv.DictReader(stream))
    for row in stored:
        assert row["column"] == f"pgd-3 step_size={row['step_size']}"
        assert row["accuracy"] == sum(each[row["column"]] == "1" for each in rows) / 50


def test_another_norm_does_not_forget_what_is_known(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = [trained, "--n", 50, "--out", tmp_path, "--attacks"]
    first = evaluated(capsys, *base, "pgd-3")
    both = evaluated(capsys, *base, "pgd-3,pgd-3-l2", "--eps-l2", 0.5)
    assert both["folder"] == first["folder"] and both["attacks"][0] == first["attacks"][0]
    other = evaluated(capsys, *base, "cw-3-l2", "--eps-l2", 0.25)
    stored = json.loads((Path(other["folder"]) / "evaluation.json").read_text())
    # A worst case over two balls of one norm would mean nothing: the ball asked for last is shown.
    assert [(row["name"], row["eps"]) for row in stored["attacks"]] == [("cw-3-l2", 0.25), ("pgd-3", first["eps"])]


def test_an_attack_whose_code_changed_is_asked_again(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """
from advkit import EvaluationAttack
class Corner(EvaluationAttack):
    name = "corner"
    def perturb(self, net, x, y, radius, index):
        return (x SIGN radius.view(-1, 1, 1, 1)).clamp(0, 1)
"""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    results = []
    for sign in "+-":
        (tmp_path / "corners.py").write_text(source.replace("SIGN", sign))
        monkeypatch.delitem(sys.modules, "corners", raising=False)
        importlib.invalidate_caches()
        attack = importlib.import_module("corners").Corner()
        results.append(advkit.evaluate(trained, attacks=[attack], n=50, out=tmp_path / "out"))
    plus, minus = (each["attacks"][0] for each in results)
    assert plus["code"] != minus["code"] and results[0]["folder"] == results[1]["folder"]
    stored = json.loads((Path(results[1]["folder"]) / "evaluation.json").read_text())
    assert [row["code"] for row in stored["attacks"]] == [minus["code"]]  # what the old code found is not shown


def by_key(value: Any) -> Any:
    """A result as one reads it who uses keys alone, down to its last field."""
    if hasattr(value, "keys"):
        return {key: by_key(value[key]) for key in value}
    return [by_key(part) for part in value] if isinstance(value, list | tuple) else value


@pytest.mark.usefixtures("quick_audit")
def test_python_evaluates_and_audits_as_the_commands_do(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [trained, "--attacks", "clean,pgd-3,cw-3x2", "--eps", "8/255", "--n", 50, "--out", tmp_path / "a"]
    printed = evaluated(capsys, *line)
    seen: list[tuple[int, int, str]] = []
    result = advkit.evaluate(
        trained,
        attacks="clean, pgd-3, cw-3x2",
        eps="8/255",
        n=50,
        out=tmp_path / "b",
        watch=lambda *told: seen.append(told),
    )
    assert without_times(result.as_dict()) == without_times(printed)
    assert [done for done, *_ in seen] == sorted(done for done, *_ in seen) and seen[-1][:2] == (150, 150)
    assert advkit.Evaluation.read(f"{result.folder}/evaluation.json").attacks == result.attacks
    assert result["attacks"][1]["accuracy"] == sum(result.robust["pgd-3"]) / 50 and len(result.index) == 50
    assert "robust" in dict(result) and "robust" not in result.as_dict()
    # the same images of the same net as a module: the same accuracies, with the short audit
    images = advkit.load_data("digits").test.take(torch.tensor(result.index))
    module = advkit.evaluate(of_run(trained).model, images, ["clean", "pgd-3", "cw-3x2"], eps=8 / 255)
    assert [row.accuracy for row in module.attacks] == [row.accuracy for row in result.attacks]
    assert [check.name for check in module.audit or ()] == [check.name for check in result.audit or ()] != []
    assert advkit.evaluate(of_run(trained).model, images, "clean", eps=0.1, audit=False).audit is None

    assert command(["audit", str(trained), "--n", "20", "--json"]) in (0, 3)
    audit = advkit.audit(trained, n=20)
    assert audit.as_dict() == by_key(audit) == json.loads(capsys.readouterr().out)
    assert "alarm" in audit.checks[0] and "images" not in audit["checks"][0]  # which is no field
    kept = by_key(result)
    assert {key: kept[key] for key in result.as_dict()} == result.as_dict() and kept["audit"]
    assert advkit.AuditRecord.read(trained / "audit.json").n == 20
    (trained / "audit.json").unlink()
    mine = advkit.audit(of_run(trained).model, images, eps="0.15")
    assert mine.n == 50 and mine.run is None and not (trained / "audit.json").exists()
    with pytest.raises(advkit.OptionError, match="split = 'tset' must be one of test, train, validation"):
        advkit.audit(trained, n=20, split="tset")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "A module has no eps of its own; give eps, such as eps=8/255."),
        ({"eps": "8/256/x"}, "eps 8/256/x must be a finite number >= 0, or a fraction such as 8/255."),
        ({"eps": 0.1, "checkpoint": "last"}, "checkpoint: a module is evaluated as it is; leave it out."),
        ({"eps": 0.1, "norm": "l1"}, "norm = 'l1' must be one of linf, l2."),
        ({"eps": 0.1, "n": -1}, "n -1 must be a whole number >= 0."),
        ({"eps": 0.1, "step": "0.2"}, "step 0.2 must be a share of eps, such as eps/5 or 0.2 eps."),
        ({"eps": 0.1, "split": "tset"}, "split = 'tset' must be test or train."),
        ({"eps": 0.1, "split": "train"}, "split: a module is evaluated as it is; leave it out."),
    ],
)
def test_a_module_with_odd_arguments(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(advkit.OptionError) as refusal:
        advkit.evaluate(torch.nn.Identity(), _digits(10), "clean", **arguments)
    assert str(refusal.value) == sentence


def test_a_bar_moves_within_an_attack() -> None:
    """By attack, part and images that are still attacked, not by hundreds of images alone."""
    pytest.importorskip("pyautoattack", reason="pip install 'advkit[autoattack]'")

    class Enough(Exception): ...

    def watch(done: int, total: int, what: str) -> None:
        seen.append(what)
        if "square" in what:  # its 5,000 queries say nothing new
            raise Enough

    seen: list[str] = []
    images, net = _digits(10), advkit.train(epochs=1, settings={"model.width": 2, "data.limit": 60}).model
    with pytest.raises(Enough):
        advkit.evaluate(net, images, "pgd-20,autoattack", eps=0.02, audit=False, watch=watch)
    assert sum(what.startswith("pgd-20 1-10, ") for what in seen) >= 20
    parts = [what.split(", ")[1] for what in seen if what.startswith("autoattack 1-10, ")]
    assert list(dict.fromkeys(part for part in parts if "attacked" not in part)) == [
        "apgd-ce",
        "apgd-t",
        "fab-t",
        "square",
    ]


def test_the_held_out_images_are_not_of_the_training_split(trained: Path, tmp_path: Path) -> None:
    train = advkit.evaluate(trained, attacks="clean", split="train", n=0, out=tmp_path)
    assert train.n == 297 and len(set(train.index)) == 297, "330 images, a tenth held out"
    held = set(of_run(trained).splits.train.index.tolist()) - set(train.index)
    assert set(of_run(trained).images("validation").index.tolist()) == held


def test_standard_training_is_judged_at_its_last_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is attacked in training, so no epoch is the best under attack."""
    settings = {"data.limit": 60, "model.width": 2, "attack.steps": 0, "validation.steps": 1}
    advkit.train(settings=settings, epochs=2, out=tmp_path / "run")
    judged = [advkit.evaluate(tmp_path / "run", attacks="clean", checkpoint=name) for name in (None, "best")]
    assert [result.checkpoint for result in judged] == ["last", "best"] and judged[0].epoch == 1
    capsys.readouterr()
    for line in (["vulnerability", "--n", "2", "--attack", "pgd-1"], ["landscape", "--n", "1", "--points", "3"]):
        assert command(["analyze", *line, str(tmp_path / "run"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["checkpoint"] == "last"


def damage(progress: Path, how: str) -> None:
    raw = progress.read_bytes()
    lines = raw.splitlines(keepends=True)
    if how == "torn":
        progress.write_bytes(raw[:-7])
    elif how == "flipped":
        lines[1] = lines[1].replace(b'"robust": "1', b'"robust": "0').replace(b'"robust": "0', b'"robust": "1', 1)
        progress.write_bytes(b"".join([lines[0], lines[1][:20] + b"x" + lines[1][21:], *lines[2:]]))
    else:
        progress.write_bytes(b"".join(lines[:-1]) + b"\0" * 64)


@pytest.mark.parametrize("how", ["torn", "flipped", "zeros"])
def test_a_damaged_line_is_asked_again(
    how: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (trained, "--attacks", "clean,pgd-3", "--n", 150, "--out", tmp_path)
    first = evaluated(capsys, *arguments)
    damage(Path(first["folder"]).parent / "progress.jsonl", how)
    lines = (Path(first["folder"]).parent / "progress.jsonl").read_bytes().count(b"\n")
    assert without_times(evaluated(capsys, *arguments)) == without_times(first)
    # One line is lost: what follows a damaged one has checksums of its own.
    after = (Path(first["folder"]).parent / "progress.jsonl").read_bytes().count(b"\n")
    assert after == lines + 1


def test_what_the_audit_found_outlives_a_later_evaluation(trained: Path, tmp_path: Path) -> None:
    """The attacks it is about stay in evaluation.json, so it does too."""
    kept = {}
    for attacks in ("pgd-10,cw-10", "clean"):
        result = advkit.evaluate(trained, attacks=attacks, n=100, out=tmp_path)
        kept[attacks] = json.loads((Path(result["folder"]) / "evaluation.json").read_text())["audit"]
    assert kept["clean"] == kept["pgd-10,cw-10"]
    assert [check["alarm"] is None for check in kept["clean"] if check["name"] == "loss-gap"] == [False]
    assert [check.alarm for check in result.audit or () if check.name == "loss-gap"] == [None]  # of what was asked


def test_only_the_test_split_is_told_to_robustbench(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = [trained, "--attacks", "clean", "--n", 50, "--out", tmp_path]
    assert evaluated(capsys, *base, "--split", "train")["robustbench"] is None
    found = evaluated(capsys, *base, "--eps", "8/255")
    assert (found["robustbench"]["eps"], found["robustbench"]["reported"], found["worst_case"]) == ("8/255", None, None)


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_gives_the_same_table(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One kill here, twenty in the long version below."""
    _kill_and_resume(1, trained, tmp_path, capsys)


@pytest.mark.soak
def test_killed_twenty_times(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _kill_and_resume(20, trained, tmp_path, capsys)


def _kill_and_resume(kills: int, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(trained), "--attacks", ATTACKS, "--n", "100"]
    straight = evaluated(capsys, *arguments, "--out", tmp_path / "straight")
    dice = random.Random(kills)
    killed = set()
    for attempt in range(kills):
        out = tmp_path / f"killed-{attempt}"
        line = [sys.executable, "-m", "advkit", "evaluate", *arguments, "--out", str(out), "--json"]
        for _ in range(dice.choice((1, 1, 2)) if kills > 2 else 1):
            process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            # From the moment that the first verdicts may be written.
            while process.poll() is None and not list(out.glob("*/progress.jsonl")):
                time.sleep(0.01)
            time.sleep(dice.uniform(0, 0.4))
            process.send_signal(signal.SIGKILL)
            if process.wait() != 0:
                killed.add(attempt)
        again = evaluated(capsys, *arguments, "--out", out)
        assert without_times(again) == without_times(straight)
        table = (Path(again["folder"]) / "verdicts.csv").read_bytes()
        assert table == (Path(straight["folder"]) / "verdicts.csv").read_bytes()
    assert len(killed) >= 0.9 * kills  # a fast machine may be done before


@pytest.mark.slow
def test_a_stop_keeps_the_verdicts_and_says_so(trained: Path, tmp_path: Path) -> None:
    # One chunk takes hours, and is not waited for.
    line = [sys.executable, "-m", "advkit", "evaluate", str(trained), "--attacks", "clean,pgd-9999x999", "--n", "0"]
    process = subprocess.Popen([*line, "--out", str(tmp_path)], stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("*/progress.jsonl")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 75 and "Give the same command again to go on." in said


def test_two_at_a_time_are_refused(trained: Path, tmp_path: Path) -> None:
    with Store(tmp_path / "store", {}), pytest.raises(advkit.AdvkitError, match="is in use by process"):
        Store(tmp_path / "store", {}).__enter__()


def test_gate(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["evaluate", str(trained), "--attacks", "clean,pgd-3", "--n", "50", "--out", str(tmp_path)]
    assert command([*line, "--min-robust", "0"]) == 0
    share = json.loads(next(tmp_path.glob("*/*/evaluation.json")).read_text())["worst_case"]["accuracy"]
    capsys.readouterr()
    assert command([*line, "--min-robust", "0.99"]) == 3
    said = capsys.readouterr()
    images = "test split, 50 of 330 images, chosen at random, seed 0, of data.limit=330, chosen at random, seed 0"
    assert said.err == f"Error: The robust accuracy {share:.3f} ({images}) is below --min-robust 0.99.\n"
    assert "pgd-3" in said.out and images in said.out
    assert command([*line, "--min-robust", str(share)]) == 0


REFUSED = [
    ("--min-robust 45", "--min-robust 45 must be a share from 0 to 1, such as 0.45."),
    ("--attacks clean --min-robust 0.4", "--min-robust needs an attack in linf; add one to --attacks"),
    ("--attacks clean,pgd-3-l2 --eps-l2 9 --min-robust 0.4", "--min-robust needs an attack in linf; add one"),
    ("--eps 8", "eps = 8 is above 1, but images lie in [0, 1]; a budget of 8 gray levels is 8/255."),
    ("--attacks pgd-3 --eps-linf 0.01", "is judged in linf, whose eps is --eps; leave --eps-linf out."),
    ("--attacks pgd-3-l2 --eps-l2 nan", "--eps-l2 nan must be a finite number >= 0, or a fraction such as 8/255."),
    ("--attacks clean,square --step eps/2", "No attack takes steps of a length that is said, so --step would change"),
    ("--data-root=", "--data-root is empty; name a file or folder, the current one by a dot."),
    ("--step 0.2", "--step 0.2 must be a share of eps, such as eps/5 or 0.2 eps."),
    ("--step eps/0", "--step eps/0 must be a share of eps, such as eps/5 or 0.2 eps."),
    ("--attacks transfer:", "transfer: names no run; write transfer:RUN, the folder of the net that is attacked."),
    ("--attacks transfer:@net.py:build", "transfer:@net.py:build names no run; write transfer:RUN, the folder"),
    (
        "--attacks transfer:x@net.py",
        "net.py is a file; say which class or function of it as FILE.py:NAME, net.py:NAME.",
    ),
    ("--attacks transfer:@RUN", "is the net under test itself; name a run with other weights."),
    ("--attacks pgd-3-l2", "pgd-3-l2 attacks in l2, but eps is in linf; give --eps-l2 E too"),
    ("--model small-cnn", "is a run: its own model and data are used; leave --model, --dataset and --set."),
]


def test_a_run_may_end_with_a_blank(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = f"{tmp_path}/my run "
    assert command(["evaluate", str(trained), "--attacks", f" clean , transfer:{run}"]) == 4
    assert capsys.readouterr().err.startswith(f"Error: {run} is not a run folder: it does not exist.")
    assert listed([" clean ", f"transfer:{run}"]) == ("clean", f"transfer:{run}")


@pytest.mark.parametrize(("typed", "sentence"), REFUSED)
def test_refusals(typed: str, sentence: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["evaluate", str(trained), *typed.replace("@RUN", str(trained)).split()]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert not (trained / "evaluations").exists()  # a refused command leaves nothing behind


@pytest.mark.parametrize("kind", ["safetensors", "torch", "wrapped"])
def test_weights_give_what_their_run_gives(
    kind: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_run = evaluated(capsys, trained, "--attacks", "clean,pgd-3", "--n", 60, "--out", tmp_path / "a")
    model = of_run(trained).model
    path = tmp_path / ("net.safetensors" if kind == "safetensors" else "net.pt")
    if kind == "safetensors":
        safetensors.torch.save_file(model.state_dict(), path)
    else:
        named = {f"module.{name}": value for name, value in model.state_dict().items()}
        torch.save({"state_dict": named, "epoch": 3} if kind == "wrapped" else model.state_dict(), path)
    options = ["--model", "small-cnn", "--dataset", "digits", "--eps", "0.15", "--set", "model.width=2"]
    of_file = evaluated(
        capsys,
        path,
        *options,
        "--attacks",
        "clean,pgd-3",
        "--n",
        60,
        "--set",
        "data.limit=330",
        "--out",
        tmp_path / "b",
    )
    assert without_times(of_file)["attacks"] == without_times(by_run)["attacks"]
    assert (of_file["checkpoint"], of_file["epoch"]) == (None, None)


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(Payload.where),)

    where = Path("unset")


def test_a_file_that_would_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Payload.where = tmp_path / "executed"
    torch.save({"a": Payload()}, tmp_path / "evil.pt")
    options = ["--model", "small-cnn", "--dataset", "digits"]
    assert command(["evaluate", str(tmp_path / "evil.pt"), *options]) == 4
    assert "can not be read as weights" in capsys.readouterr().err and not Payload.where.exists()
    for name, content in (("empty.pt", b""), ("text.safetensors", b"hello"), ("absent.pt", None)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        assert command(["evaluate", str(tmp_path / name), *options]) == 4
        assert capsys.readouterr().err.count("\n") == 1
    assert command(["evaluate", str(tmp_path / "absent.pt")]) == 4  # the file first
    assert command(["evaluate", str(tmp_path / "evil.pt")]) == 2  # says which options are missing
    assert not Payload.where.exists()


def test_a_checkpoint_is_no_file_of_weights(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = trained / "checkpoints" / "best" / "tensors.safetensors"
    assert command(["evaluate", str(path), "--model", "small-cnn", "--dataset", "digits"]) == 4
    assert "give the run's folder, or a file of weights" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["audit @RUN", "analyze vulnerability @RUN", "compare @RUN @OTHER"])
def test_gray_levels_are_refused_everywhere(
    line: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "other", symlinks=True)
    words = line.replace("@RUN", str(trained)).replace("@OTHER", str(tmp_path / "other")).split()
    assert command([*words, "--eps", "8"]) == 2
    assert "a budget of 8 gray levels is 8/255" in capsys.readouterr().err


def test_long_work_says_where_it_is_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 5.0, 11.0, 11.0, 20.0])
    monkeypatch.setattr("advkit.cli.display.time.monotonic", lambda: next(clock))
    with bar() as watch:
        for done in (100, 200, 300):
            watch(done, 300, "evaluating")
    assert capsys.readouterr().err == "evaluating: 200 of 300\n"


@pytest.mark.slow
def test_evaluating_leaves_training_alone(tmp_path: Path) -> None:
    """Every epoch or never: the same weights, bit for bit."""
    settings = {"model.width": 2, "attack.steps": 2, "attack.init": "uniform", "data.limit": 200}
    weights = []
    for every in (1, 50):
        found = advkit.train(settings=settings | {"validation.every_epochs": every}, epochs=3)
        before = torch.get_rng_state()
        advkit.evaluate(found.model, _digits(40), ("clean", "pgd-3x2", Square(queries=50)), eps=0.1)
        assert torch.equal(torch.get_rng_state(), before)
        weights.append(found.model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def _digits(n: int) -> Dataset:
    return advkit.load_data("digits", limit=n).test


def test_the_worst_case_is_of_one_norm() -> None:
    def verdict(name: str, norm: str, robust: list[bool]) -> Verdicts:
        return Verdicts({"name": name, "norm": norm, "eps": 0.1}, torch.tensor(robust))

    clean = verdict("clean", "linf", [True, True, True, False])
    linf = verdict("a", "linf", [True, True, False, False])
    l2 = verdict("b", "l2", [False, False, True, True])
    found = summary([clean, linf, l2], "linf")
    assert found["worst_case"]["accuracy"] == 0.5
    assert {norm: row["accuracy"] for norm, row in found["worst_case_by_norm"].items()} == {"linf": 0.5, "l2": 0.25}
    assert summary([clean, l2], "linf")["worst_case"] is None  # nobody attacked in linf
    assert summary([clean], "linf")["worst_case"] is None


def test_an_eps_of_another_norm_is_shown_with_that_norm(capsys: pytest.CaptureFixture[str]) -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    for own, other in (("l2", "linf"), ("linf", "l2")):
        eps = {own: 0.25, other: 0.125}
        show(advkit.evaluate(net, _digits(10), f"pgd-1,pgd-1-{other}", eps=eps, norm=own, audit=False))
        shown = capsys.readouterr().out
        assert f"0.125 {other} " in shown and f"0.25 {own}" not in shown and f"0.125 {own}" not in shown


class Faulty(EvaluationAttack):
    """A wrapper that finds nothing, and says of itself what PGD says."""

    def __init__(self, name: str) -> None:
        self.name = name

    def perturb(self, net: Victim, x: Tensor, y: Tensor, radius: Tensor, index: Tensor) -> Tensor:
        return x

    def settings(self, eps: float | None) -> dict[str, object]:
        return {"loss": "cross-entropy", "steps": 20, "step_size": 0.03, "restarts": 1, "parts": ["apgd-t"]}


def test_an_attack_of_somebody_else_is_no_other_by_its_name_nor_by_what_it_says(trained: Path, tmp_path: Path) -> None:
    home = shutil.copytree(trained, tmp_path / "run", symlinks=True)
    attacks: list[str | EvaluationAttack] = ["clean", "pgd-20", "cw-20", Faulty("autoattack"), Faulty("mine")]
    judged = advkit.evaluate(home, attacks=attacks, n=8)
    assert judged.robustbench is not None and judged.robustbench["autoattack_acc"] is None
    asked = {check.name: check.sentence for check in judged.audit or ()}
    assert "this evaluation has not all of pgd-K and apgd-t" in asked["apgd-t-gap"]
    fewer = [one for one in attacks if one != "pgd-20"]  # so that nothing else has the loss of the faulty ones
    assert advkit.evaluate(home, attacks=fewer, n=8).suspect is None
    record = advkit.export(home, tmp_path / "net", hub=True)
    assert record and "Not evaluated under AutoAttack yet" in (tmp_path / "net" / "README.md").read_text()
    for name in ("index", "label"):
        with pytest.raises(OptionError, match=f"^verdicts.csv has a column {name} of its own; give the attack another"):
            advkit.evaluate(home, attacks=["clean", Faulty(name)], n=8)
    with pytest.raises(OptionError, match=r"^Results have a worst case of their own, over all attacks; give the"):
        advkit.evaluate(home, attacks=["clean", Faulty("worst case")], n=8)


def test_suspect_compares_like_with_like() -> None:
    """One attack with 0.9, the other with 0.2: suspect only where nothing but the loss differs."""

    def verdict(name: str, loss: str, share: float, **more: object) -> Verdicts:
        settings = {"name": name, "norm": "linf", "eps": 0.1, "loss": loss, "steps": 10, "step_size": 0.02, **more}
        return Verdicts(settings, torch.arange(10) < 10 * share)

    pgd = verdict("pgd-10", "cross-entropy", 0.9)
    assert summary([pgd, verdict("cw-10", "margin", 0.2)], "linf")["suspect"] is True
    assert summary([pgd, verdict("cw-10", "margin", 0.9)], "linf")["suspect"] is False
    for other in ({"steps": 20}, {"norm": "l2"}, {"restarts": 5}, {"eps": 0.2}):
        assert summary([pgd, verdict("cw", "margin", 0.2, **other)], "linf")["suspect"] is None, other
    short = {"steps": 3}  # 0.6 of the way to the edge
    pair = [verdict("pgd-3", "cross-entropy", 0.9, **short), verdict("cw-3", "margin", 0.2, **short)]
    assert summary(pair, "linf")["suspect"] is None


def test_equal_weights_in_another_architecture_have_verdicts_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"model.depth": 10, "model.width": 1, "data.limit": 50, "attack.steps": 1}
    trained = advkit.train("wide-resnet", settings=settings, epochs=1)
    torch.save(trained.model.state_dict(), tmp_path / "net.pt")
    line = [tmp_path / "net.pt", "--model", "wide-resnet", "--dataset", "digits", "--eps", "0.1", "--out", tmp_path]
    line += ["--set", "model.depth=10", "--set", "model.width=1", "--set", "data.limit=50", "--attacks", "clean"]
    folders = {evaluated(capsys, *line, "--set", f"model.variant={each}")["folder"] for each in ("trades", "iseat")}
    assert len(folders) == 2


def test_a_chunk_is_the_most_that_is_lost() -> None:
    assert BATCH == 100
