"""Runs side by side, and weights that leave advkit."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import advkit
from advkit.cli.compare import show
from advkit.cli.main import run as command
from advkit.evaluation.results import Verdicts
from advkit.evaluation.soundness import BY_BATCH, BY_CALL
from advkit.evaluation.statistics import image_interval
from advkit.models.base import Normalize
from advkit.storage.files import write_atomic
from advkit.studies import compare
from advkit.studies.export import export_subject, without_normalisation
from advkit.studies.records import Evaluation
from advkit.studies.subject import Subject, of_run

TINY = ["--epochs", "2", "--limit", "200", "--set", "model.width=2", "--set", "attack.steps=1", "--progress", "none"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """Two runs on the same images, and one at another eps."""
    base = tmp_path_factory.mktemp("compare")
    names = tuple(str(base / name) for name in ("a", "b", "c"))
    for name, more in zip(names, ([], ["--seed", "1"], ["--eps", "0.05"]), strict=True):
        assert command(["train", *TINY, *more, "--out", name]) == 0
    return names


def test_compare_is_paired_and_agrees_with_the_verdicts(
    runs: tuple[str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert command(["compare", *runs[:2], "--attacks", "clean,pgd-3", "--n", "90", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["run"], row["checkpoint"]) for row in found["runs"]] == [
        (run, which) for run in runs[:2] for which in ("best", "last")
    ]
    robust, clean = {}, {}
    for row in found["runs"]:
        path = next(Path(row["run"]).glob(f"evaluations/{row['checkpoint']}-*/*/verdicts.csv"))
        with open(path) as stream:
            table = list(csv.DictReader(stream))
        robust[row["run"], row["checkpoint"]] = [int(each["pgd-3"]) for each in table]
        clean[row["run"], row["checkpoint"]] = [int(each["clean"]) for each in table]
    for row in found["runs"]:
        mine, base = robust[row["run"], row["checkpoint"]], robust[runs[0], row["checkpoint"]]
        pgd = row["attacks"][1]
        assert pgd["accuracy"] == sum(mine) / 90
        if row["run"] == runs[0]:
            assert "to_first" not in pgd
            continue
        values = [one - other for one, other in zip(mine, base, strict=True)]
        assert pgd["to_first"] == {"difference": sum(values) / 90, "interval": image_interval(values)}
        worst = [min(one, two) for one, two in zip(clean[row["run"], row["checkpoint"]], mine, strict=True)]
        least = [min(one, two) for one, two in zip(clean[runs[0], row["checkpoint"]], base, strict=True)]
        assert row["worst_case"]["to_first"]["difference"] == pytest.approx((sum(worst) - sum(least)) / 90)
    for row in found["best_minus_last"]:
        best, last = robust[row["run"], "best"], robust[row["run"], "last"]
        assert row["attacks"][1]["difference"] == pytest.approx((sum(best) - sum(last)) / 90)
    assert command(["compare", *runs[:2], "--attacks", "clean,pgd-3", "--n", "90"]) == 0
    shown = capsys.readouterr().out
    assert "minus the first run" in shown and "best minus last" in shown


def test_python_compares_and_exports_as_the_commands_do(
    runs: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert command(["compare", *runs[:2], "--attacks", "clean,pgd-3", "--n", "90", "--eps", "8/255", "--json"]) == 0
    comparison = advkit.compare(runs[:2], "clean,pgd-3", n=90, eps="8/255")
    assert comparison.as_dict() == json.loads(capsys.readouterr().out)
    first = comparison["runs"][0]
    assert first["attacks"][1]["name"] == "pgd-3" and comparison.runs[0].alarms is not None
    assert first["audit"][0]["name"] == comparison.runs[0].audit[0].name
    show(comparison)
    assert " pgd-3 " in (as_run := capsys.readouterr().out) and "linf)" not in as_run
    show(comparison.model_copy(update={"norm": "l2"}))  # as where its attacks are of another norm than the runs
    shown = capsys.readouterr().out
    assert "pgd-3 (0.03137 linf)" in shown and "worst case (" not in shown
    best = comparison.runs[0].model_copy(update={"epoch": 1})
    for epoch, shown in ((1, ["best = last"]), (2, ["best", "last"])):
        last = best.model_copy(update={"checkpoint": "last", "epoch": epoch})
        assert [row.checkpoint for row in comparison.model_copy(update={"runs": [best, last]}).rows()] == shown
    record = advkit.export(runs[0], tmp_path / "net")
    assert record.as_dict() == json.loads((tmp_path / "net" / "export.json").read_text())


def test_rows_say_which_weights_were_judged(
    runs: tuple[str, str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one run the average began after its best epoch."""
    real = compare.evaluate_subject

    def averaged(subject: Subject, *given: Any, **named: Any) -> tuple[Evaluation, dict[str, Verdicts]]:
        result, verdicts = real(subject, *given, **named)
        result = result.model_copy(update={"attacks": [result.attacks[0].model_copy(update={"notes": [BY_CALL, "x"]})]})
        of = {"weights": "averaged"} if (result.run, result.checkpoint) == (runs[1], "last") else {}
        return result.model_copy(update=of), verdicts

    monkeypatch.setattr(compare, "evaluate_subject", averaged)
    comparison = advkit.compare(runs[:2], "clean", n=90)
    assert [row["weights"] for row in comparison.as_dict()["runs"]] == ["raw", "raw", "raw", "averaged"]
    note = "best is judged by raw weights, last by averaged ones, so averaging is part of how they differ"
    assert [row.notes[-1:] == [note] for row in comparison.runs] == [False, False, False, True]
    assert all(BY_CALL in row.notes and "x" not in row.notes for row in comparison.runs)  # what is on the net
    capsys.readouterr()
    show(comparison)
    shown = capsys.readouterr().out
    assert shown.count(", averaged)") == 1 and f"{runs[1]}: {note}" in " ".join(shown.split())


def test_compare_refuses_what_is_not_comparable(
    runs: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = [*runs[:1], "--attacks", "clean", "--n", "20"]
    assert command(["compare", *base]) == 2
    assert "Name two or more runs to compare, each once." in capsys.readouterr().err
    assert command(["compare", runs[2], *base]) == 2
    assert "say at which both are judged: --eps E." in capsys.readouterr().err
    assert command(["compare", runs[2], *base, "--eps", "0.1"]) == 0
    for option, what in (("--model", "net"), ("--dataset", "data")):
        for given in ("small-cnn", "own.py:thing"):
            (tmp_path / "own.py").write_text("def thing(spec): ...")
            given = given.replace("own", str(tmp_path / "own"))
            for line in (["compare", runs[1], *base], ["report", runs[0], "--out", str(tmp_path / "page.html")]):
                capsys.readouterr()
                assert command([*line, option, given]) == 2
                said = f"The {what} of every run is installed, so {option} would change nothing; leave it out."
                assert said in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()
    (tmp_path / "loop").symlink_to("loop")
    capsys.readouterr()
    assert command(["compare", str(tmp_path / "loop"), *base]) == 4
    assert "loop is not a run folder: " in capsys.readouterr().err
    other = str(tmp_path / "other")
    assert command(["train", *TINY, "--limit", "100", "--out", other]) == 0
    capsys.readouterr()
    assert command(["compare", runs[0], other, "--attacks", "clean", "--n", "0"]) == 2
    assert "is judged on other images than" in capsys.readouterr().err
    absent = tmp_path / "absent"
    absent.mkdir()
    text = (Path(runs[0]) / "run.toml").read_text()
    (absent / "run.toml").write_text(text.replace('name = "digits"', 'name = "fashion-mnist"'))
    assert command(["compare", runs[0], str(absent)]) == 2
    assert f"{absent} is judged on fashion-mnist, {runs[0]} on digits; compare" in capsys.readouterr().err


WITHOUT_ADVKIT = """
import sys
sys.modules["advkit"] = None  # importing it fails
import json, torch
from torch import nn
from safetensors.torch import load_file
def net(first):
    layers, channels = [], 1
    for out, stride in ((2, 1), (4, 2), (8, 2)):
        layers += [nn.Conv2d(channels, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        channels = out
    return nn.Sequential(*first, *layers, nn.Flatten(), nn.Linear(8 * 2 * 2, 10)).eval()
class Standard(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 1, 1, 1)); self.register_buffer("std", torch.ones(1, 1, 1, 1))
    def forward(self, x):
        return (x - self.mean) / self.std
x, record = torch.load(sys.argv[1], weights_only=True), json.load(open("export.json"))
mean, std = (torch.tensor(record[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
for suffix in ("safetensors", "pt"):
    for name, made, images in (
        ("model", net([Standard()]), x), ("model-without-normalisation", net([]), (x - mean) / std),
    ):
        path = f"{name}.{suffix}"
        weights = load_file(path) if suffix == "safetensors" else torch.load(path, weights_only=True)
        made.load_state_dict(weights)
        print(json.dumps(made(images).tolist()))
graph = torch.export.load("model.pt2").module()
print(json.dumps(graph(x).tolist()))
example = load_file("example.safetensors")
assert torch.equal(example["images"], x[:4])
torch.testing.assert_close(graph(example["images"]), example["logits"])
images = x[:1].clone().requires_grad_()
graph(images).sum().backward()
assert images.grad.abs().sum() > 0
"""


@pytest.mark.slow
def test_an_export_gives_the_same_logits_without_advkit(
    runs: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "net"
    capsys.readouterr()
    assert command(["export", runs[0], "--out", str(out), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["architecture"], record["architecture_options"]["width"]) == ("small-cnn", 2)
    model = of_run(Path(runs[0])).model.eval()
    x = of_run(Path(runs[0])).splits.test.images[:30].float() / 255
    torch.save(x, tmp_path / "x.pt")
    line = [sys.executable, "-c", WITHOUT_ADVKIT, str(tmp_path / "x.pt")]
    ran = subprocess.run(line, cwd=out, check=True, text=True, stdout=subprocess.PIPE)
    logits = [torch.tensor(json.loads(text)) for text in ran.stdout.splitlines()]
    assert len(logits) == 5
    for found in logits:
        torch.testing.assert_close(found, model(x), rtol=1e-5, atol=1e-5)
    assert command(["export", runs[0], "--out", str(out)]) == 2
    assert "holds files already; choose another --out." in capsys.readouterr().err
    assert command(["export", str(tmp_path / "none"), "--out", str(tmp_path / "x")]) == 4


class Around(torch.nn.Module):
    """A run's net, and code of somebody's own."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net


def test_a_net_that_can_not_be_traced_is_exported_without_its_graph(
    runs: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Deciding(Around):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x) if x.sum() > 0 else self.net(-x)

    class Traced(Around):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(-x if torch.compiler.is_compiling() else x)

    subject = of_run(Path(runs[0]))
    with pytest.raises(advkit.OptionError, match=r"can not be called on images \(4, 1, 8, 8\): Runtime"):
        export_subject(replace(subject, model=torch.nn.Linear(3, 3)), tmp_path / "net")
    record = export_subject(replace(subject, model=Deciding(subject.model)), tmp_path / "net")
    assert record.without_graph
    assert not (tmp_path / "net" / "model.pt2").exists()
    assert "torch.export.load" not in (tmp_path / "net" / "README.txt").read_text()
    record = export_subject(replace(subject, model=Traced(subject.model)), tmp_path / "other")
    assert record.without_graph == "what it traces gives other logits" and not (tmp_path / "other/model.pt2").exists()


def test_an_export_says_what_its_examples_can_not_show(
    runs: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Centred(Around):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x) - self.net(x).mean(0)

    class Drawing(Around):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x + torch.rand_like(x))

    class Late(Around):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x**2)  # so that its normalisation is no first layer

    monkeypatch.setattr("advkit.studies.export._graph", lambda *_: (None, "none"))
    subject = of_run(Path(runs[0]))
    for number, (net, doubt, bare) in enumerate(
        ((Centred, BY_BATCH, True), (Drawing, BY_CALL, True), (Late, "", False), (torch.nn.Sequential, "", True))
    ):
        torch.manual_seed(number)
        before = torch.get_rng_state()
        record = export_subject(replace(subject, model=net(subject.model)), out := tmp_path / str(number))
        assert torch.equal(torch.get_rng_state(), before)
        assert record.notes == ([doubt.replace("verdicts", "logits of example.safetensors")] if doubt else [])
        assert all(note in " ".join((out / "README.txt").read_text().split()) for note in record.notes)
        assert (out / "model-without-normalisation.pt").exists() == bare
        export_subject(replace(subject, model=net(subject.model)), again := tmp_path / f"{number} again")
        assert (again / "example.safetensors").read_bytes() == (out / "example.safetensors").read_bytes()


def test_an_export_that_was_killed_can_be_repeated(
    runs: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each of its files; but a folder of somebody's own weights stays as it is."""
    from advkit.studies import export as module

    class Killed(BaseException):
        pass

    whole = tmp_path / "whole"
    monkeypatch.setattr(module, "_graph", lambda *_: (b"a graph", None))  # to trace one takes time
    advkit.export(runs[0], whole)
    files = sorted(path.name for path in whole.iterdir())
    assert module.UNFINISHED not in files
    for number in range(len(files)):
        out, steps = tmp_path / f"killed-{number}", iter([True] * number)

        def dying(path: Path, data: bytes, steps: Iterator[bool] = steps) -> None:
            if not next(steps, False):
                raise Killed
            write_atomic(path, data)

        with monkeypatch.context() as patched:
            patched.setattr(module, "write_atomic", dying)
            with pytest.raises(Killed):
                advkit.export(runs[0], out)
        advkit.export(runs[0], out)
        assert sorted(path.name for path in out.iterdir()) == files
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.pt").write_text("years of work")
    with pytest.raises(advkit.OptionError, match="holds files already"):
        advkit.export(runs[0], tmp_path / "mine")
    assert (tmp_path / "mine" / "model.pt").read_text() == "years of work"


def test_of_two_exports_into_a_folder_one_is_refused(
    runs: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that was killed leaves nothing beside what another net's export writes there."""
    from advkit.studies import export as module

    out, refused = tmp_path / "net", []

    def meanwhile(path: Path, data: bytes) -> None:
        write_atomic(path, data)
        with pytest.raises(advkit.OptionError, match="net is in use by process"):
            advkit.export(runs[1], out)
        refused.append(path.name)
        if path.name == "model.pt2":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_atomic", meanwhile)
        with pytest.raises(KeyboardInterrupt):
            advkit.export(runs[0], out)
    assert refused == [".unfinished", "example.safetensors", "model.pt2"] and (out / "model.pt2").exists()
    with monkeypatch.context() as patched:
        patched.setattr(module, "_graph", lambda *_: (None, "it can not be traced"))
        record = advkit.export(runs[1], out)
    assert not (out / "model.pt2").exists() and record.run == runs[1]
    assert not any(path.name.startswith(".") for path in out.iterdir())
    with pytest.raises(advkit.OptionError, match="holds files already"):
        advkit.export(runs[1], out)


def test_an_export_without_normalisation_is_recognised(
    runs: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["export", runs[0], "--out", str(tmp_path / "net")]) == 0
    given = ["--model", "small-cnn", "--dataset", "digits", "--eps", "0.1", "--set", "model.width=2"]
    assert command(["evaluate", str(tmp_path / "net/model-without-normalisation.pt"), *given]) == 4
    assert "if they are an export without normalisation, give the one with it." in capsys.readouterr().err
    (tmp_path / "bad.pt").write_text("no weights")
    assert command(["evaluate", str(tmp_path / "bad.pt"), *given]) == 4
    sentence = f"{tmp_path}/bad.pt can not be read as weights (its first bytes are not those of such a file); give "
    assert sentence in capsys.readouterr().err


def test_normalisation_inside_a_module_is_dropped_without_new_names() -> None:
    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = Normalize((0.5,), (0.2,)), torch.nn.Linear(2, 2)

    kept, shifted = without_normalisation(Wrapped())
    assert (sorted(kept), shifted) == (["head.bias", "head.weight"], False)
    kept, shifted = without_normalisation(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    assert (sorted(kept), shifted) == (["0.bias", "0.weight"], False)


def test_tied_weights_are_exported_twice() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Linear(2, 2)
            self.b = self.a

    kept, _ = without_normalisation(Tied())
    assert safetensors.torch.load(safetensors.torch.save(kept)).keys() == kept.keys() and len(kept) == 4
