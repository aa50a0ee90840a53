"""Sweeps: every combination once, paired, judged on held-out images alone, resumed, and run by tasks of an array."""

from __future__ import annotations

import csv
import json
import sys
from math import log10
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch

import advkit as package
from advkit.cli.main import run
from advkit.cli.sweep import apart
from advkit.config.layer import Layer
from advkit.config.request import Request
from advkit.config.resolve import resolve
from advkit.errors import NonFinite
from advkit.evaluation.statistics import accuracy, image_interval, wilson
from advkit.studies import arms
from advkit.studies.arms import Arm, Outcome, changed
from advkit.studies.paired_records import AblationRow
from advkit.studies.paired_tables import SWEEP, markdown, table
from advkit.studies.search import Range
from advkit.studies.sweep import cells

TINY = ["--limit", "60", "--batch-size", "30", "--epochs", "1", "--set", "model.width=2", "--set", "attack.steps=1"]
TINY += ["--set", "validation.steps=1", "--set", "validation.fraction=0.3"]
OUT = "leave it out, or give it one value."
LINE = ["sweep", "--plugins", "cat-eps", "-o", "cat-eps.eta=0.01,0.02", *TINY, "--attacks", "clean,pgd-1"]


def advkit(capsys: pytest.CaptureFixture[str], *line: str) -> tuple[int, str, str]:
    code = run(list(line))
    out, err = capsys.readouterr()
    return code, out, err


def test_a_sweep_is_kept_and_its_tasks_are_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = [*LINE, "--seeds", "1,", "--out", "s"]
    code, out, err = advkit(capsys, *line, "--task", "2")
    assert (code, out) == (0, "") and err.splitlines()[-1].startswith("cat-eps.eta=0.02, seed 1: clean ")
    assert [path.name for path in Path("s/runs").iterdir()] == ["cat-eps.eta=0.02-seed-1"] and not Path(
        "s/table.md"
    ).exists()
    stored = Path("s/runs/cat-eps.eta=0.02-seed-1/checkpoints/last/tensors.safetensors").stat().st_mtime_ns
    code, out, _ = advkit(capsys, *line, "--json")
    rows = json.loads(out)
    assert code == 0 and [row["arm"] for row in rows] == ["cat-eps.eta=0.01", "cat-eps.eta=0.02"]
    assert Path("s/runs/cat-eps.eta=0.02-seed-1/checkpoints/last/tensors.safetensors").stat().st_mtime_ns == stored
    assert (
        rows[0]["difference"] == {} and rows[1]["difference"].keys() == {"clean", "pgd-1"} == rows[1]["accuracy"].keys()
    )
    assert rows[1]["worst_case"]["mean"] <= min(mean["mean"] for mean in rows[1]["accuracy"].values())
    # on the 18 images that each run held out, in the store that `report` and `compare` read; never on the test images
    evaluations = [json.loads(path.read_text()) for path in Path("s").rglob("evaluation.json")]
    assert {(one["split"], one["n"]) for one in evaluations} == {("validation", 18)} and len(evaluations) == 2
    assert advkit(capsys, *line, "--task", "3") == (2, "", "Error: There is no task 3: a sweep has the runs 1 to 2.\n")
    # the same from Python, of the runs that are there; images are told apart by their places in the training split
    asked: list[list[tuple[int, ...]]] = []
    monkeypatch.setattr(arms, "accuracy", lambda bits, images: asked.append(images) or accuracy(bits, images))
    settings = {
        "data.limit": 60,
        "model.width": 2,
        "attack.steps": 1,
        "validation.steps": 1,
        "validation.fraction": 0.3,
    }
    again = package.sweep(
        "cat-eps",
        grid={"cat-eps.eta": [0.01, 0.02]},
        out="s",
        seeds=[1],
        attacks="clean,pgd-1",
        settings=settings,
        batch_size=30,
        epochs=1,
    )
    assert [row.as_dict() for row in again] == rows
    with next(Path("s").rglob("verdicts.csv")).open() as stream:
        held_out = tuple(int(row["index"]) for row in csv.DictReader(stream))
    assert len(set(held_out)) == 18 and max(held_out) > 60 and asked == [[held_out]] * 6
    code, _, err = advkit(capsys, "ablate", "--plugins", "cat-eps", *TINY, "--seeds", "1", "--out", "s")
    assert code == 2 and "is there and is no table of an ablation; name another --out." in err


@pytest.mark.parametrize("name", ["runs", "runs/cat-eps.eta=0.01-seed-1"])
def test_nothing_is_trained_behind_a_link(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A study's folder may be somebody else's, too."""
    link, elsewhere = tmp_path / "s" / name, tmp_path / "mine"
    link.parent.mkdir(parents=True)
    elsewhere.mkdir()
    link.symlink_to(elsewhere)
    code, _, err = advkit(capsys, *LINE, "--seeds", "1,", "--out", str(tmp_path / "s"), "--task", "1")
    assert (code, [*elsewhere.iterdir()]) == (4, []) and err.startswith(f"Error: {link} is a link, and nothing is")


def test_a_run_that_ends_in_nan_is_a_line_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["sweep", *TINY, "--attacks", "clean", "--set", "optimizer.lr=1e9,0.05,0.1", "--seeds", "1", "--out", "s"]
    line += [
        "--plugins",
        "bilateral",
        "--set",
        "run.check_hooks=true",
    ]  # which says of no plugin that it has made the NaN
    last = "Error: NaN or Inf ended 1 of the runs: optimizer.lr=1000000000.0, seed 0. The table has no figures of "
    last += "them, and says where it was and what to change."
    for _ in range(2):  # again when the command is repeated
        code, out, err = advkit(capsys, *line, "--json")
        rows = json.loads(out)
        assert code == 1 and err.splitlines()[-1] == last
        assert rows == json.loads(Path("s/table.json").read_text())
        assert ["worst_case" in row for row in rows] == [False, True, True] and "accuracy" not in rows[0]
        assert rows[0]["failed"]["0"].startswith("NaN or Inf in ") and rows[0]["seeds"] == []
        assert "failed" not in rows[1] and rows[2]["difference"] == {}, "the first has no figures to subtract"
        page = Path("s/table.md").read_text()
        assert "| optimizer.lr=1000000000.0 | failed |  |" in page and "| best |" in page
        assert f"- optimizer.lr=1000000000.0, seed 0: {rows[0]['failed']['0']}" in page
    code, _, err = advkit(capsys, *line, "--task", "1")
    assert code == 1 and err.endswith(f"Error: optimizer.lr=1000000000.0, seed 0: {rows[0]['failed']['0']}\n")


def test_what_is_printed_while_runs_train_is_no_part_of_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def talkative(*_: object) -> list[AblationRow]:
        print("a tracker says hello")
        return [AblationRow(arm="a=1", plugins=[], refused=None)]

    monkeypatch.setattr("advkit.studies.sweep.sweep_request", talkative)
    monkeypatch.setattr("advkit.studies.ablation.ablate_request", talkative)
    for line in (LINE, ["ablate", "--plugins", "cat-eps"]):
        code, out, err = advkit(capsys, *line, "--json", "--out", str(tmp_path))
        assert code == 0 and json.loads(out)[0]["arm"] == "a=1" and err == "a tracker says hello\n"


def grid_of(request: Request, **grid: list[object]) -> list[Arm]:
    return cells(request, {name.replace("_", "."): values for name, values in grid.items()}, [0])


def test_arms_whose_sections_have_other_keys_are_held_against_each_other() -> None:
    """Those of two optimizers: the table of all that was trained hangs on it."""
    sgd, adamw = (resolve((), [Layer("python", {"optimizer.name": name})]) for name in ("sgd", "adamw"))
    there, back = changed(adamw, sgd), changed(sgd, adamw)
    assert there["optimizer.name"] == ("sgd", "adamw") and there["optimizer.momentum"] == (0.9, None)
    assert back == {key: (now, before) for key, (before, now) in there.items()}


def test_cells_are_all_combinations_in_the_order_given() -> None:
    request = Request.of(Layer("test", plugins=("lsiw",)))
    arms = grid_of(request, lsiw_lam=[0.1, 0.3], attack_steps=[2, 1])
    assert [arm.name for arm in arms] == [
        f"lsiw.lam={lam} attack.steps={steps}" for lam in (0.1, 0.3) for steps in (2, 1)
    ]
    values = arms[3].resolved[0].values()
    assert values["attack.steps"] == 1 and arms[3].folder(0) == "lsiw.lam=0.3-attack.steps=1-seed-0"
    assert Arm("a/b" * 50, ()).folder(3).endswith("-seed-3") and len(Arm("a/b" * 50, ()).folder(3)) < 110


def test_values_are_told_apart_by_commas_outside_of_lists_and_quotes() -> None:
    typed = ["a.b=1,2.5", "c.d=[1, 2]", 'e.f="x,y"', "g.h=4/255, 8/255", "i.j=[0,1],[2,3]", "k.l=0.1 after decay 1,0"]
    nested = ["m.n=[[0, 0.0], [10, 0.1]]", "o.p=[[0, 1], [2, 3]], []", 'q.r=["a]", "b"]']
    fixed, several = apart([*typed, *nested])
    assert fixed == ("c.d=[1, 2]", 'e.f="x,y"', nested[0], nested[2])
    assert several == {
        "a.b": [1, 2.5],
        "g.h": ["4/255", "8/255"],
        "i.j": [[0, 1], [2, 3]],
        "k.l": ["0.1 after decay 1", 0],
        "o.p": [[[0, 1], [2, 3]], []],
    }


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("-o cat-eps.eta=0.1", "There is nothing to sweep; give an option several values: lsiw.lam=0.03,0.1."),
        ("-o cat-eps.eta=0.1,0.10", "cat-eps.eta=0.1 and cat-eps.eta=0.1 are the same run; give each value once."),
        ("-o cat-eps.eta=0.1,", "'cat-eps.eta=0.1,' is not of the form plugin.key=value,value, each key once."),
        (
            "--set attack.eps=0.1,0.2",
            "attack.eps is no part of a sweep: cells would be judged at different budgets; " + OUT,
        ),
        (
            "--set data.limit=50,60",
            "data.limit is no part of a sweep: all cells of a sweep train on the same images; " + OUT,
        ),
        (
            "--epochs 9 --set run.epochs=1,2",
            "run.epochs is given twice, 9 and as values to sweep; give it once.",
        ),
        (
            "--set optimizer.lr=0.3 --set optimizer.lr=0.1,0.2",
            "optimizer.lr is given twice, 0.3 and as values to sweep; give it once.",
        ),
        (
            "-o cat-eps.eta=0.1 -o cat-eps.eta=0.1,0.2",
            "cat-eps.eta is given twice, 0.1 and as values to sweep; give it once.",
        ),
        ("-o run.epochs=1,2 --set run.epochs=3,4", "-o and --set both give run.epochs; give it once."),
        ("--set attack.steps=1,2 --seed 1", "A sweep takes its seeds from --seeds; leave --seed (run.seed) out."),
        (
            "--set attack.steps=1,2 --set validation.split=test",
            "A sweep chooses on images that its runs hold out; leave validation.split=test and "
            "validation.fraction=0 out.",
        ),
    ],
)
def test_refusals(words: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["sweep", "--plugins", "cat-eps", *words.split(), "--out", str(tmp_path / "s")]
    assert advkit(capsys, *line) == (2, "", f"Error: {sentence}\n") and not (tmp_path / "s").exists()


@pytest.mark.parametrize("how", [{}, {"task": 2}, {"trials": 2}], ids=str)
def test_a_share_that_holds_no_image_out_is_refused_before_anything_is_trained(
    how: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "trials" in how:
        pytest.importorskip("optuna", reason="optuna is not installed (advkit[sweep])")
    monkeypatch.setattr(arms, "measure", None)
    few = {"data.limit": 60, "validation.fraction": 0.001}
    sentence = r"^validation\.fraction = 0\.001 of 60 images is none, so there is nothing to choose on; raise it\.$"
    with pytest.raises(package.OptionError, match=sentence):
        package.sweep(grid={"optimizer.lr": [0.1, 0.2]}, settings=few, out=tmp_path / "s", **how)


def test_what_is_typed_holds_in_the_cells_of_every_optimizer_and_net() -> None:
    """Those of another net or optimizer are dropped of what lies below, as `train` drops them, and of nothing else."""
    typed = {"optimizer.lr": 0.02, "optimizer.weight_decay": 0.05, "model.width": 2}
    names = {"optimizer_name": ["sgd", "adamw"], "model_name": ["small-cnn", "wide-resnet"]}
    for arm in grid_of(Request.of(Layer("python", typed)), **names):
        assert typed.items() <= arm.resolved[0].values().items(), arm.name
    below = Request.of(Layer("python", {"optimizer.weight_decay": 0.05}), recipe="at-awp")
    rates = [arm.resolved[0].optimizer for arm in grid_of(below, optimizer_name=["sgd", "adamw"])]
    assert [(one.lr, one.weight_decay) for one in rates] == [(0.1, 0.05), (0.001, 0.05)]


@pytest.mark.parametrize("trials", [None, 2])
def test_what_one_optimizer_lacks_is_refused_first(trials: int | None, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="optuna is not installed (advkit[sweep])")
    grid, settings = {"optimizer.name": ["sgd", "adamw"]}, {"optimizer.momentum": 0.5}
    with pytest.raises(package.OptionError, match=r"^optimizer\.momentum is no option of adamw\."):
        package.sweep(grid=grid, settings=settings, trials=trials, out=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_cell_may_have_a_net_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("from torch import nn\n\nclass Net(nn.Identity):\n    pass\n")
    file = f"{tmp_path}/net.py:Net"
    first, own = grid_of(Request.of(Layer("python", {"model.width": 2})), model_name=["small-cnn", file])
    assert first.resolved[0].files == {} and own.resolved[0].files["model.name"].load().__name__ == "Net"
    assert own.name == f"model.name={file}" and own.resolved[0].values()["model.width"] == 2


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        ({"model.name": ["small-cnn", "FILE.py:Nett"]}, r"/net\.py has no Nett\. Did you mean Net\?"),
        ({"model.width": [2, 10**9]}, r"does not fit into memory with .*width=1000000000"),
        ({"run.device": ["cpu", "cuda:99"]}, r"^run\.device = 'cuda:99' can not be used here \("),
    ],
)
@pytest.mark.parametrize("trials", [None, 2])
def test_what_this_machine_can_not_train_is_refused_first(
    grid: dict[str, list[object]], sentence: str, trials: int | None, tmp_path: Path
) -> None:
    pytest.importorskip("optuna", reason="optuna is not installed (advkit[sweep])")
    (tmp_path / "net.py").write_text("from torch import nn\n\nclass Net(nn.Identity):\n    pass\n")
    there = {
        key: [text.replace("FILE", f"{tmp_path}/net") if isinstance(text, str) else text for text in values]
        for key, values in grid.items()
    }
    with pytest.raises(package.AdvkitError, match=sentence):
        package.sweep(grid=there, trials=trials, out=tmp_path / "s", settings={"data.limit": 40})
    assert not (tmp_path / "s").exists()


def test_values_may_be_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arms, "measure", lambda *_: Outcome({"pgd": "10"}, (0, 1), False))
    grid = {"trades.beta": np.linspace(1, 6, 2), "attack.steps": torch.tensor([1, 2]), "run.accumulate": [np.int64(1)]}
    rows = package.sweep("trades", grid=grid, out=tmp_path, seeds=1, settings={"data.limit": 60})
    names = [f"trades.beta={beta} attack.steps={steps} run.accumulate=1" for beta in (1.0, 6.0) for steps in (1, 2)]
    assert [row.arm for row in rows] == names


def test_an_image_that_two_seeds_hold_out_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(resolved: Any, *_: Any) -> Outcome:
        here = (2, 3, 4) if resolved.run.seed else (1, 2, 3)
        better = resolved.values()["trades.beta"] == 6
        return Outcome({"clean": "111", "pgd": "".join("01"[better and i in (2, 4)] for i in here)}, here, False)

    monkeypatch.setattr(arms, "measure", measure)
    _, row = package.sweep("trades", grid={"trades.beta": [1, 6]}, out=tmp_path, seeds=2, settings={"data.limit": 60})
    gap = row.difference["pgd"]
    assert row.worst_case == row.accuracy["pgd"] and list(row.accuracy["pgd"].interval) == wilson(0.5 * 3.6, 3.6)
    assert (gap.mean, list(gap.image_interval)) == (0.5, image_interval([0, 2, 0, 1], [1, 2, 2, 1]))


@pytest.mark.parametrize("values", [6, np.float64(6), np.array(6), torch.tensor(6), "6", [], np.array([]), {6: 6}])
def test_values_that_are_no_list_are_refused(values: object, tmp_path: Path) -> None:
    for trials in (None, 2):
        with pytest.raises(package.OptionError, match=r"^The values of trades\.beta are .*; give a list\.$"):
            package.sweep("trades", grid={"trades.beta": values}, out=tmp_path / "s", trials=trials)


@pytest.mark.parametrize("given", [{"epochs": 9}, {"settings": {"run.epochs": 9}}, {"options": {"run": {"epochs": 9}}}])
def test_from_python_no_value_is_dropped_for_those_of_the_grid(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(package.OptionError, match=r"^run\.epochs is given twice, 9 and "):
        package.sweep(grid={"run.epochs": [1, 2]}, out=tmp_path / "s", **given)


def test_the_best_is_the_one_whose_images_withstand_every_attack() -> None:
    assert Outcome({"clean": "1101", "pgd": "0111"}, (0, 1, 2, 3), False).worst_case == "0101"

    def row(arm: str, worst: float, suspect: list[int]) -> AblationRow:
        def share(mean: float) -> dict[str, Any]:
            return {"mean": mean, "seeds": [mean], "interval": [0.0, 1.0]}

        accuracy = {"clean": share(0.9), "pgd-1": share(0.5)}
        return AblationRow(
            arm=arm, plugins=[], refused=None, seeds=[0], suspect=suspect, accuracy=accuracy, worst_case=share(worst)
        )

    rows = [row("a=1", 0.3, []), row("a=2", 0.4, [0])]
    lines, notes = table(rows, SWEEP)
    assert [line[-1] for line in lines] == ["", "", "", "best, suspect (seed 0)", "", ""] and not notes
    assert lines[-1][:4] == ["", "worst case", "0.400", "0.000 to 1.000"]
    page = markdown(rows, SWEEP)
    assert page.startswith("| values | attack | accuracy | over images | minus first |") and "judge it anew" in page


# ---------------------------------------------------------------------- searches


@pytest.fixture
def imagined(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Runs that withstand more the nearer lam is to 0.002, by its logarithm; those beyond 0.5 end in NaN."""
    pytest.importorskip("optuna", reason="optuna is not installed (advkit[sweep])")
    tried: list[float] = []

    def measure(resolved: Any, *_: Any) -> Outcome:
        tried.append(lam := resolved.values()["lsiw.lam"])
        if lam > 0.5:
            raise NonFinite("The loss is NaN.")
        count = round(100 - 30 * abs(log10(lam / 0.002)))
        return Outcome({"pgd": "1" * count + "0" * (100 - count)}, tuple(range(100)), False)

    monkeypatch.setattr(arms, "measure", measure)
    return tried


def searched(out: Path, trials: int) -> list[AblationRow]:
    grid = {"lsiw.lam": "0.001..1 log"}
    return package.sweep("lsiw", grid=grid, out=out, seeds=2, trials=trials, settings={"data.limit": 60})


def test_a_search_gets_nearer_and_goes_on_where_it_was(tmp_path: Path, imagined: list[float]) -> None:
    rows = searched(tmp_path, 30)
    figures = [row.worst_case.mean for row in rows if row.worst_case]
    assert max(figures) > 0.98 and mean(figures[-10:]) > mean(figures[:10]) + 0.05
    assert len(imagined) == 2 * len(rows) and [*rows[0].seeds] == [0, 1], "each at both seeds"
    failed = [row for row in rows if row.failed]
    assert failed and all(float(row.arm.partition("=")[2]) > 0.5 for row in failed)
    before = [row.arm for row in searched(tmp_path, 12)]
    assert before == [row.arm for row in rows[:12]] and imagined[60:] == imagined[:24]
    assert [row["arm"] for row in json.loads((tmp_path / "table.json").read_text())] == before


def test_a_search_of_few_values_has_each_once(tmp_path: Path, imagined: list[float]) -> None:
    rows = package.sweep(
        "lsiw", grid={"lsiw.lam": [0.05, 0.1], "run.batch_size": "8..9"}, out=tmp_path, seeds=1, trials=25
    )
    assert len(rows) == len({row.arm for row in rows}) == len(imagined) == 4
    assert {row.arm.split()[1] for row in rows} == {"run.batch_size=8", "run.batch_size=9"}


def test_a_range_is_of_whole_numbers_where_the_option_is(tmp_path: Path, imagined: list[float]) -> None:
    package.sweep("lsiw", grid={"lsiw.lam": "1..2"}, out=tmp_path, seeds=1, trials=3)
    assert len(imagined) == 3 and all(1 < lam < 2 for lam in imagined)


def test_a_folder_is_no_range() -> None:
    assert [Range.written(text) for text in ("a/../b", "../1", "1/../2", "runs..2", '"1..2"')] == [None] * 5


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("lsiw.lam=0.01..0.3", "lsiw.lam has a range, 0.01..0.3; say how many are tried: --trials N."),
        ("lsiw.lam=0.3..0.01 --trials 3", "0.3..0.01 is no range; write the lower number first, above 0 if it is log"),
        ("lsiw.lam=0..inf --trials 3", "0..inf can not be read as a range; write two finite numbers, 0.01..0.3"),
        ("lsiw.lam=1/0..3", "1/0..3 can not be read as a range"),
        ("lsiw.lam=0.1..1e400,nan", "0.1..1e400,nan can not be read as a range"),
        ("lsiw.lam=nan..1", "nan..1 can not be read as a range"),
        ("lsiw.lam=0.1,-1,0.3 --trials 3", "lsiw.lam = -1"),
        ("lsiw.lam=0.1,0.2,0.10 --trials 3", "lsiw.lam=0.1 and lsiw.lam=0.1 are the same run; give each value once."),
        ("lsiw.lam=0.1..0.3 --trials 0", "--trials 0 tries nothing; give 1 or more."),
        ("lsiw.lam=0.1..0.3 --trials 3 --task 1", "so it has no tasks; leave --task out."),
        ("lsiw.lam=-1..0.3 --trials 3", "lsiw.lam = -1"),
        ("lsiw.lam=0.1..0.3 -o lsiw.lam=0.5 --trials 3", "lsiw.lam is given twice"),
        ("lsiw.lam=0.1,0.3 --set data.limit=10..20 --trials 3", "all cells of a sweep train on the same images"),
    ],
)
def test_searches_that_can_not_be_are_refused(
    line: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code, _, err = advkit(capsys, "sweep", "--plugins", "lsiw", "-o", *line.split(), "--out", str(out))
    assert code == 2 and sentence in err and not out.exists()


def test_without_optuna_a_search_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(package.OptionError, match=r"pip install 'advkit\[sweep\]'; or give lists"):
        searched(tmp_path, 3)
