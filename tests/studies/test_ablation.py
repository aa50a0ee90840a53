"""Leave-one-out: which sets there are, that they are the runs `advkit train` makes, and the intervals."""

from __future__ import annotations

import json
import os
from functools import partial
from math import gamma, pi, sqrt
from pathlib import Path
from random import Random
from statistics import fmean, pvariance
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings, strategies as st

import advkit as package
from advkit import OptionError
from advkit.cli.main import run
from advkit.config.layer import Layer
from advkit.config.request import Request
from advkit.errors import PluginLoad
from advkit.evaluation import statistics
from advkit.storage.lock import RunLock
from advkit.studies import ablation, arms, paired_tables
from advkit.studies.inputs import seeds
from advkit.studies.paired_records import AblationRow
from advkit.studies.records import Evaluation
from advkit.training.notes import CHOSEN_ON_TEST

TINY = ["--limit", "60", "--batch-size", "30", "--epochs", "1", "--set", "model.width=2", "--set", "attack.steps=2"]
TINY += ["--set", "validation.steps=2"]
ASKED = ["--attacks", "clean,pgd-2,cw-2", "--n", "20"]


def advkit(capsys: pytest.CaptureFixture[str], *line: str) -> tuple[int, str, str]:
    code = run(list(line))
    out, err = capsys.readouterr()
    return code, out, err


def sets(*plugins: str, declined: tuple[str, ...] = (), **options: dict[str, object]) -> dict[str, arms.Arm]:
    by_plugin = {name.replace("_", "-"): given for name, given in options.items()}
    request = Request((Layer("test", {}, by_plugin, plugins, declined),))
    return {arm.name: arm for arm in ablation.arms(request, [0, 1])}


def members(arm: arms.Arm) -> list[str]:
    return [plugin.name for plugin in arm.resolved[0].composition.plugins]


def test_two_ablations_in_one_folder_are_one_too_many(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with RunLock(tmp_path / "lock"):
        code, _, err = advkit(capsys, "ablate", "--plugins", "awp", *TINY, *ASKED, "--out", str(tmp_path))
    assert code == 2 and f"Error: {tmp_path} is in use by process {os.getpid()}" in err
    assert not (tmp_path / "runs").exists()


# ---------------------------------------------------------------------- which sets


def test_the_sets_are_all_each_left_out_and_none() -> None:
    found = sets("lsiw", "cat-eps")
    assert list(found) == ["full", "without cat-eps", "without lsiw", "without av-rank", "without awp", "none"]
    assert members(found["full"]) == ["av-rank", "awp", "cat-eps", "lsiw"]
    assert members(found["without cat-eps"]) == ["av-rank", "awp", "lsiw"], "companions stay with who asks for them"
    assert members(found["without lsiw"]) == ["cat-eps"] and members(found["none"]) == []
    assert {arm.resolved[seed].run.seed == seed for arm in found.values() for seed in (0, 1)} == {True}
    assert list(sets("awp")) == ["full", "none"]


def test_companions_have_rows_of_their_own() -> None:
    by_name = sets("lsiw")
    assert list(by_name) == ["full", "without av-rank", "without awp", "none"]
    assert members(by_name["without av-rank"]) == ["awp", "lsiw"] and members(by_name["without awp"]) == [
        "av-rank",
        "lsiw",
    ]
    assert list(sets("lsiw", declined=("weight_perturbation",))) == ["full", "without av-rank", "none"]


def test_what_is_left_out_does_not_come_back_as_a_companion() -> None:
    found = sets("lsiw", "awp")
    assert members(found["without awp"]) == ["av-rank", "lsiw"]
    assert found["without awp"].declined == ("weight_perturbation",)
    assert members(found["without lsiw"]) == ["awp"] and not found["without lsiw"].declined


def test_a_declined_companion_is_declined_wherever_it_is_asked_for() -> None:
    found = sets("lsiw", "awp", declined=("instance_weight:lsiw",))
    assert members(found["full"]) == [*members(found["without lsiw"]), "lsiw"] == ["awp", "lsiw"]


def test_options_leave_with_their_plugin() -> None:
    found = sets("lsiw", "cat-eps", lsiw={"lam": 0.5}, cat_eps={"eta": 0.01}, awp={"gamma": 0.02})
    assert found["without cat-eps"].resolved[0].values()["awp.gamma"] == 0.02
    assert found["without lsiw"].resolved[0].values()["cat-eps.eta"] == 0.01


def test_attacks_in_another_norm_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    said = r"^pgd-1-l2 attacks in l2, and here runs are judged in their own norm, linf; leave it out, and evaluate the "
    with pytest.raises(OptionError, match=said):
        package.ablate("trades", out=tmp_path, epochs=1, attacks="clean,pgd-1-l2", settings={"data.limit": 20})
    with pytest.raises(OptionError, match=said):
        package.sweep("trades", grid={"trades.beta": [1, 6]}, out=tmp_path, epochs=1, attacks="clean,pgd-1-l2")
    assert not (tmp_path / "runs").exists()


def test_refused_sets_are_a_sentence_and_wrong_words_an_error() -> None:
    found = sets("lsiw", "av-rank")
    assert found["without lsiw"].refused == (
        "Plugin av-rank weighs the term lsiw, which no chosen plugin adds; the terms of this run are base_loss."
    )
    assert found["full"].refused is None and members(found["without av-rank"]) == ["awp", "lsiw"]
    with pytest.raises(PluginLoad, match="Unknown plugin zebra"):
        sets("lsiw", "zebra")
    with pytest.raises(OptionError, match=r"Unknown option lsiw\.lan"):
        sets("lsiw", "awp", lsiw={"lan": 1})
    with pytest.raises(OptionError, match="There is nothing to leave out; name plugins"):
        sets()


# ---------------------------------------------------------------------- runs


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_an_ablation_is_the_runs_of_train_and_is_kept(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = ["--no-companion", "weight_perturbation"]
    line = ["ablate", "--plugins", "av-rank,lsiw", *alone, "--seeds", "3,5", *TINY, *ASKED, "--out", "a"]
    code, out, err = advkit(capsys, *line)
    assert code == 0 and len([said for said in err.splitlines() if ", seed " in said]) == 6, "three sets, two seeds"
    assert err.count("validation: 2 steps of") == 1, "what a plan says of the settings, once"
    rows = json.loads((here / "a" / "table.json").read_text())
    assert [row["arm"] for row in rows] == ["full", "without av-rank", "without lsiw", "none"]
    assert rows[2]["refused"] and rows[2]["refused"] in out and rows[2]["refused"] in (here / "a/table.md").read_text()
    assert rows[0]["difference"] == {} and rows[1]["difference"].keys() == {"clean", "pgd-2", "cw-2"}
    for row in (rows[1], rows[3]):
        for attack, found in row["difference"].items():
            base = rows[0]["accuracy"][attack]["seeds"]
            own = row["accuracy"][attack]["seeds"]
            assert found["seeds"] == pytest.approx([one - other for one, other in zip(own, base, strict=True)])
    # the same bits as a run of its own, and the accuracies of `advkit evaluate`
    single = ["--plugins", "lsiw", *alone, "--no-companion", "instance_weight:lsiw", "--seed", "5"]
    assert advkit(capsys, "train", *single, *TINY, "--progress", "none", "--out", "b")[0] == 0
    stored = [
        safetensors.torch.load_file(here / folder / "checkpoints/last/tensors.safetensors")
        for folder in ("a/runs/without-av-rank-seed-5", "b")
    ]
    assert stored[0].keys() == stored[1].keys()
    assert [name for name, value in stored[0].items() if not value.equal(stored[1][name])] == []
    evaluated = json.loads(advkit(capsys, "evaluate", "b", *ASKED, "--json")[1])
    assert {each["name"]: each["accuracy"] for each in evaluated["attacks"]} == {
        name: found["seeds"][1] for name, found in rows[1]["accuracy"].items()
    }
    # what was evaluated is where `compare` looks for it: nothing is asked again
    progress = sorted(here.glob("a/runs/*/evaluations/best-*/progress.jsonl"))
    known = {path: path.read_bytes() for path in progress}
    pair = ["a/runs/full-seed-3", "a/runs/none-seed-3"]
    compared = json.loads(advkit(capsys, "compare", *pair, *ASKED, "--json")[1])
    assert {path: path.read_bytes() for path in progress} == known and len(known) == 6
    shares = {one["name"]: one["accuracy"] for one in compared["runs"][0]["attacks"]}
    assert shares == {name: mean["seeds"][0] for name, mean in rows[0]["accuracy"].items()}
    # again: nothing is trained, the table is the same; other attacks need no training either
    before = {path: path.read_bytes() for path in here.glob("a/runs/*/metrics.jsonl")}
    assert advkit(capsys, *line)[:2] == (code, out) and len(before) == 6
    other = [*line[: line.index("--attacks")], "--attacks", "clean", "--n", "10", "--out", "a", "--json"]
    again = json.loads(advkit(capsys, *other)[1])
    assert again[0]["accuracy"].keys() == {"clean"}
    assert {path: path.read_bytes() for path in here.glob("a/runs/*/metrics.jsonl")} == before
    # another run in its place is refused
    code, _, err = advkit(capsys, *line, "--eps", "0.05")
    assert code == 2 and "A run can not change its settings: " in err and "attack.eps" in err


def test_python_ablates_as_the_command_does(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--plugins", "ema", "--seeds", "3,", *TINY, *ASKED, "--set=validation.split=test"]
    code, out, _ = advkit(capsys, "ablate", *asked, "--out", "a", "--json")
    assert code == 0
    settings = {
        "validation.split": "test",
        "data.limit": 60,
        "model.width": 2,
        "attack.steps": 2,
        "validation.steps": 2,
    }
    heard: list[str] = []
    rows = package.ablate(
        "ema",
        out="b",
        seeds=[3],
        attacks="clean,pgd-2,cw-2",
        n=20,
        settings=settings,
        batch_size=30,
        epochs=1,
        tell=heard.append,
    )
    assert [row.as_dict() for row in rows] == json.loads(out) == json.loads((here / "b" / "table.json").read_text())
    on = "accuracies are on 20 of 60 images, chosen at random, seed 0, of data.limit=60, chosen at random, seed 0"
    judged = Evaluation.read(next(here.glob("b/runs/full-seed-3/evaluations/*/*/evaluation.json")))
    nothing = f"there is nothing to be robust: {judged.hopeless}"
    assert judged.hopeless and [row.notes for row in rows] == [[CHOSEN_ON_TEST, on, f"seed 3: {nothing}"]] * 2
    said = (here / "b/table.md").read_text()
    assert said == (here / "a/table.md").read_text()
    assert [row.averaged for row in rows] == [[3], []]
    assert said.endswith(f"\n- averaged weights are judged in full\n- {CHOSEN_ON_TEST}\n- {on}\n- seed 3: {nothing}\n")
    assert paired_tables.table([rows[0].model_copy(update={"notes": []}), rows[1]])[1][-3:] == [
        f"none: {CHOSEN_ON_TEST}",
        f"none: {on}",
        f"none: seed 3: {nothing}",
    ]
    assert len(heard) == 2 and heard[0].startswith("full, seed 3: clean ")
    assert heard[0].endswith(f"; {nothing}; {on}")
    assert rows[0]["accuracy"]["clean"]["seeds"] == rows[0].accuracy["clean"].seeds


def test_a_stopped_run_goes_on(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from advkit.cli.display import Quiet
    from advkit.errors import Stopped

    line = ["ablate", "--plugins", "awp", "--seeds", "1", *TINY, "--epochs", "2", *ASKED, "--out", "a"]
    for place in ("*/evaluations", "none-*/checkpoints/step-00000000"):  # while a run is judged, while the next trains
        with monkeypatch.context() as patched:
            asked = partial(here.glob, f"a/runs/{place}")
            patched.setattr(Quiet, "stop_requested", lambda self, asked=asked: Stopped if any(asked()) else None)
            code, out, err = advkit(capsys, *line)
        assert (code, out) == (75, "") and err.splitlines()[-1] == (
            "Stopped; everything is saved. Give the same command again to go on."
        )
        assert not list(here.glob("a/runs/*/evaluations/*/*/evaluation.json")) or place.startswith("none")
        assert not (here / "a/table.json").exists()
    assert advkit(capsys, *line)[0] == 0
    whole = ["ablate", *line[1:-1], "b"]
    assert advkit(capsys, *whole)[0] == 0
    assert (here / "a/table.json").read_text() == (here / "b/table.json").read_text()


@pytest.mark.parametrize("name", ["table.json", "table.md"])
def test_only_a_table_of_an_ablation_is_replaced(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "a").mkdir()
    (here / "a" / name).write_text("[1, 2]\n")
    line = ["ablate", "--plugins", "awp", "--seeds", "1", *TINY, *ASKED, "--out", "a"]
    said = f"Error: {Path('a', name)} is there and is no table of an ablation; name another --out.\n"
    assert advkit(capsys, *line) == (2, "", said)
    assert [file.name for file in (here / "a").iterdir()] == [name]


@pytest.mark.parametrize("more", [[], ["--task", "1"]])
def test_no_study_is_put_into_a_run(more: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "a" / "checkpoints").mkdir(parents=True)
    (here / "a" / "run.toml").touch()
    for what, line in (("an ablation", ["ablate"]), ("a sweep", ["sweep", "--set", "optimizer.lr=0.1,0.2"])):
        for out in ("a", str(Path("a", "checkpoints"))):
            said = f"Error: a is a run, no folder of {what}; name another --out.\n"
            asked = [*line, "--plugins", "awp", "--seeds", "1", *TINY, *ASKED, "--out", out, *more]
            assert advkit(capsys, *asked) == (2, "", said)
    assert {file.name for file in (here / "a").rglob("*")} == {"checkpoints", "run.toml"}


def test_a_preference_that_leaves_with_its_plugin_is_named() -> None:
    request = Request((Layer("test", {"attack.init": "zero"}, plugins=("cat-eps",)),))
    by_name = {arm.name: arm for arm in ablation.arms(request, [0])}
    assert arms.changed(by_name["none"].resolved[0], by_name["full"].resolved[0]) == {}
    changed = arms.changed(
        ablation.arms(Request((Layer("test", {"attack.mode": "train"}, plugins=("awp",)),)), [0])[0].resolved[0],
        by_name["full"].resolved[0],
    )
    assert changed == {"attack.mode": ("eval", "train")}


SEEDS = (
    "must be how many seeds (3: 0, 1 and 2; at most 100), or which, each once (0,2; of one alone 4, with the comma)."
)


@pytest.mark.parametrize(
    ("asked", "numbers"),
    [
        ("3", [0, 1, 2]),
        (2, [0, 1]),
        ("0,3", [0, 3]),
        ("4,", [4]),
        ([4], [4]),
        ((0, 2), [0, 2]),
        ("1", [0]),
        (torch.tensor(2), [0, 1]),
    ],
)
def test_seeds_are_how_many_or_which(asked: Any, numbers: list[int]) -> None:
    assert seeds("seeds", asked) == numbers


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--plugins awp --seed 1", "An ablation takes its seeds from --seeds; leave --seed (run.seed) out."),
        ("--plugins awp --set run.seed=1", "An ablation takes its seeds from --seeds; leave --seed (run.seed) out."),
        *((f"--plugins awp --seeds {given}", f"--seeds {given} {SEEDS}") for given in ("0,0", "x", ",", "0", "12345")),
        ("", "There is nothing to leave out; name plugins: --plugins cat-eps,lsiw."),
    ],
)
def test_refusals(line: str, sentence: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert advkit(capsys, "ablate", *line.split(), "--out", "a") == (2, "", f"Error: {sentence}\n")
    assert not (here / "a").exists()


# ---------------------------------------------------------------------- statistics


def test_student_is_the_quantile_of_its_density() -> None:
    for df in (1, 2, 3, 7, 10, 11, 15, 30, 100):
        scale = gamma((df + 1) / 2) / (sqrt(df * pi) * gamma(df / 2))
        steps, bound = 20_000, statistics.student(df)
        width = bound / steps
        density = [scale * (1 + (k * width) ** 2 / df) ** (-(df + 1) / 2) for k in range(steps + 1)]
        inside = width * (sum(density) - (density[0] + density[-1]) / 2)
        assert inside == pytest.approx(0.475, abs=2e-4), df


def test_the_interval_over_seeds() -> None:
    assert statistics.seed_interval([0.25]) is None
    low, high = statistics.seed_interval([0.01, 0.02, 0.06])  # type: ignore[misc]
    half = 4.303 * 0.0264575 / sqrt(3)
    assert (low, high) == (pytest.approx(0.03 - half, abs=1e-5), pytest.approx(0.03 + half, abs=1e-5))
    assert statistics.seed_interval([0.5, 0.5]) == [0.5, 0.5]


@settings(deadline=None, max_examples=60)
@given(b=st.integers(0, 40), c=st.integers(0, 40), same=st.integers(1, 60))
def test_the_interval_over_images_is_bonett_and_prices(b: int, c: int, same: int) -> None:
    """For one seed: p12 = (b + 1) / (n + 2), p21 = (c + 1) / (n + 2)."""
    n = b + c + same
    one, two = (b + 1) / (n + 2), (c + 1) / (n + 2)
    half = 1.959963984540054 * sqrt((one + two - (one - two) ** 2) / (n + 2))
    found = statistics.difference([("1" * b + "0" * c + "1" * same, "0" * b + "1" * c + "1" * same)], [range(n)])
    assert found["mean"] == pytest.approx((b - c) / n) and found["seed_interval"] is None
    assert found["image_interval"] == pytest.approx([max(-1, one - two - half), min(1, one - two + half)])


def test_the_interval_over_images_covers() -> None:
    """Nets that differ on a known share of images: the truth lies inside in about 95 of 100 draws of images."""
    draws, n = Random(0), 150
    inside = 0
    for _ in range(400):
        values = [draws.choices((1.0, 0.0, -1.0), (0.15, 0.79, 0.06))[0] for _ in range(n)]
        low, high = statistics.image_interval(values)
        inside += low <= 0.09 <= high
    assert 0.92 <= inside / 400 <= 0.98


def test_accuracy_counts_images_once() -> None:
    found = statistics.accuracy(["1100", "1110"], [range(4)] * 2)
    assert (found["mean"], found["seeds"]) == (0.625, [0.5, 0.75])
    low, high = found["interval"]
    assert low < 0.3 and high > 0.85, "four images, not eight"


def test_answers_of_seeds_are_worth_so_many_images() -> None:
    assert statistics.effective([range(7)] * 3) == 7 and statistics.effective([range(7), range(7, 14)]) == 14
    assert statistics.effective([[3, 1], [1, 2]]) == 16 / 6
    assert statistics.accuracy(["1100", "1110"], [range(4), range(4, 8)])["interval"] == statistics.wilson(5, 8)


ANSWERS = st.lists(st.tuples(*[st.sampled_from("01")] * 6), min_size=1, max_size=30)
"""Of three seeds' nets of two arms, an image a tuple."""


@settings(deadline=None, max_examples=60)
@given(rows=ANSWERS, turns=st.randoms(use_true_random=False))
def test_where_seeds_share_their_images_they_are_paired_by_place(rows: list[tuple[str, ...]], turns: Random) -> None:
    """Bonett and Price of each image's mean difference over seeds; in whatever order a seed has the images."""
    texts = ["".join(column) for column in zip(*rows, strict=True)]
    pairs, n = list(zip(texts[::2], texts[1::2], strict=True)), len(rows)
    found = statistics.difference(pairs, [range(n)] * 3)
    values = [*(sum(int(a) - int(b) for a, b in zip(row[::2], row[1::2], strict=True)) / 3 for row in rows), 1.0, -1.0]
    half = statistics.Z * sqrt(pvariance(values) / (n + 2))
    ends = [max(-1.0, fmean(values) - half), min(1.0, fmean(values) + half)]
    assert found["image_interval"] == pytest.approx(ends, rel=0, abs=1e-15)
    orders = [turns.sample(range(n), n) for _ in pairs]
    turned = [
        ("".join(one[i] for i in order), "".join(other[i] for i in order))
        for (one, other), order in zip(pairs, orders, strict=True)
    ]
    assert statistics.difference(turned, orders)["image_interval"] == found["image_interval"]


def test_intervals_over_images_cover_where_seeds_hold_out_some_of_the_same() -> None:
    """Half of 120 images at each of eight seeds, on which all nets of an arm answer alike: 0.04 and 0.7 lie inside."""
    draws, inside, shares = Random(0), 0, 0
    for _ in range(200):
        gaps = draws.choices((0, 1, -1), (80, 12, 8), k=120)
        easy = draws.choices("01", (30, 70), k=120)
        images = [draws.sample(range(120), 60) for _ in range(8)]
        pairs = [("".join("01"[gaps[i] >= 0] for i in one), "".join("01"[gaps[i] <= 0] for i in one)) for one in images]
        low, high = statistics.difference(pairs, images)["image_interval"]
        inside += low <= 0.04 <= high
        low, high = statistics.accuracy(["".join(easy[i] for i in one) for one in images], images)["interval"]
        shares += low <= 0.7 <= high
    assert 0.92 <= inside / 200 <= 0.98 and 0.92 <= shares / 200 <= 0.98, (inside, shares)


def test_the_table_says_what_is_suspect_declined_and_changed() -> None:
    share = {"pgd-20": {"mean": 0.5, "seeds": [0.5], "interval": [0.4, 0.6]}}
    gap = {"pgd-20": {"mean": -0.0001, "seeds": [0.0], "seed_interval": None, "image_interval": [-0.1, 0.1]}}
    common = {"plugins": [], "refused": None, "seeds": [0, 2], "accuracy": share}
    rows: list[dict[str, Any]] = [
        {"arm": "full", **common, "suspect": [], "declined": ["x"], "changed": {}, "difference": {}},
        {"arm": "mid", **common, "averaged": [2]},
        {"arm": "ends", **common, "averaged": [0, 2]},
        {"arm": "none", **common, "suspect": [0, 2], "declined": ["x"], "changed": {"a.b": [1, 2]}, "difference": gap},
    ]
    made = [AblationRow(**row) for row in rows]
    cells, notes = paired_tables.table(made)
    assert all(len(line) == len(paired_tables.ABLATION.header) for line in cells)
    assert cells[0] == ["full", "pgd-20", "0.500", "0.400 to 0.600", "", "", "", ""]
    assert cells[3][4:] == ["+0.000", "", "-0.100 to +0.100", "suspect (seed 0, 2)"]
    averaged = "averaged weights are judged in mid (seed 2), ends"
    assert notes == ["none: declined as companions: x", "none: a.b is 2, in the full set 1", averaged]
    assert paired_tables.markdown(made).startswith("| plugins | attack | accuracy |")
