"""`advkit analyze`: figures, files and pictures of real runs, and every refusal in one sentence."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import advkit
from advkit.cli.main import run
from advkit.data.convert import convert
from advkit.errors import OptionError
from advkit.studies.analysis import Study, record
from advkit.training.feed import parted
from advkit.training.same_run import resolve_folder

pytestmark = pytest.mark.slow

KINDS = ("vulnerability", "margin", "landscape", "budget")
FILES = {kind: kind for kind in KINDS} | {"landscape": "landscape-cat"}
QUICK = {
    "vulnerability": ["--attack", "pgd-2"],
    "margin": ["--attack", "pgd-2", "--n", "12", "--cap", "5"],
    "landscape": ["--n", "3", "--points", "5"],
    "budget": [],
}


class Ran(NamedTuple):
    code: int
    out: str
    err: str


def analyze(*arguments: object) -> Ran:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(["analyze", *map(str, arguments)])
    return Ran(code, out.getvalue(), err.getvalue())


def stored(file: Path | io.BytesIO) -> dict[str, Any]:
    with np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run of cat-eps on the digits."""
    path = tmp_path_factory.mktemp("runs") / "cat"
    settings = {
        "data.limit": 60,
        "attack.steps": 1,
        "validation.steps": 1,
        "validation.fraction": 0.2,
        "model.width": 2,
        "run.threads": 1,
    }
    advkit.train(plugins=["cat-eps"], epochs=3, settings=settings, out=path)
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PGD-AT with nothing held out."""
    path = tmp_path_factory.mktemp("runs") / "plain"
    settings = {"data.limit": 20, "attack.steps": 1, "validation.fraction": 0.0, "model.width": 2, "run.threads": 1}
    advkit.train(epochs=1, settings=settings, out=path)
    return path


def trained_on(folder: Path) -> torch.Tensor:
    from advkit.storage.run_folder import RunFolder

    return places("train")[parted(resolve_folder(RunFolder.open(folder)), 60)[0]]


def places(split: str) -> torch.Tensor:
    """Which images of the digits a limit of 60 takes."""
    return getattr(advkit.load_data("digits", limit=60), split).index  # type: ignore[no-any-return]


# ---------------------------------------------------------------------- files


@pytest.mark.parametrize("kind", KINDS)
def test_figures_arrays_and_pictures(folder: Path, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'advkit[plot]'")
    ran = analyze(kind, folder, *QUICK[kind], "--json", "--out", tmp_path / "to" / "here")
    assert (ran.code, ran.err) == (0, "")
    printed = json.loads(ran.out)
    written = {path.name: path.read_bytes() for path in (tmp_path / "to" / "here").iterdir()}
    name = FILES[kind]
    assert written.keys() == {f"{name}.{suffix}" for suffix in ("json", "npz", "png", "svg")}
    assert printed.pop("folder") == str(tmp_path / "to" / "here")
    assert json.loads(written[f"{name}.json"]) == printed
    assert {"analysis", "run", "dataset", "checkpoint", "epoch", "split", "n", "eps", "figures", "versions"} <= set(
        printed
    )
    assert written[f"{name}.png"].startswith(b"\x89PNG") and b"<svg" in written[f"{name}.svg"]
    kinds = ("png", "svg")
    assert printed["pictures"] == {kind: hashlib.sha256(written[f"{name}.{kind}"]).hexdigest() for kind in kinds}
    arrays = stored(io.BytesIO(written[f"{name}.npz"]))
    assert set(arrays["index"].tolist()) <= set(trained_on(folder).tolist())
    again = analyze(kind, folder, *QUICK[kind], "--json", "--out", tmp_path / "again")
    assert again.code == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == written


@pytest.mark.parametrize("kind", KINDS)
def test_without_matplotlib_figures_and_arrays_are_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in ("pictures", "plotting"):
        monkeypatch.delitem(sys.modules, f"advkit.studies.analysis.{name}", raising=False)
    (tmp_path / f"{FILES[kind]}.png").write_bytes(b"of an earlier analysis")
    ran = analyze(kind, folder, *QUICK[kind], "--out", tmp_path)
    assert ran.code == 0
    assert ran.err == "No picture: pip install 'advkit[plot]' draws the pictures; figures and arrays are written.\n"
    assert {path.name for path in tmp_path.iterdir()} == {f"{FILES[kind]}.json", f"{FILES[kind]}.npz"}


def test_an_earlier_analysis_stays_until_the_new_one_is_made(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'advkit[plot]'")
    for suffix in ("json", "npz", "png"):
        (tmp_path / f"margin.{suffix}").write_text("of an earlier analysis")

    def interrupted() -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record.write(tmp_path, "margin", {}, {}, interrupted)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["of an earlier analysis"] * 3


def test_a_backend_for_windows_plays_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """matplotlib reads MPLBACKEND while it is imported, and fails at that of a notebook which is not installed here."""
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "advkit.studies.analysis.plotting", raising=False)
    sees = "import os\nraise RuntimeError(os.environ.get('MPLBACKEND', 'none'))\n"
    (tmp_path / "matplotlib.py").write_text(sees, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "module://of.a.notebook")
    with pytest.raises(RuntimeError, match="none"):
        record.write(tmp_path / "to", "margin", {}, {}, lambda: pytest.fail("drawn"))
    assert os.environ["MPLBACKEND"] == "module://of.a.notebook"
    drawn = ModuleType("plotting")
    drawn.rendered = lambda draw: {"png": b"drawn"}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "advkit.studies.analysis.plotting", drawn)
    late = tmp_path / "late"
    late.mkdir()
    (late / "matplotlib.py").write_text("rcParams = {}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(late)
    assert record.write(tmp_path / "to", "margin", {}, {}, lambda: pytest.fail("drawn"))
    assert sys.modules.pop("matplotlib").rcParams == {"backend": "module://of.a.notebook"}, (
        "for who draws windows later"
    )


def test_an_error_in_a_picture_is_not_taken_for_an_absent_library(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = pytest.importorskip("advkit.studies.analysis.pictures", reason="pip install 'advkit[plot]'")

    def broken(found: Any) -> Any:
        raise ImportError("no module named colours", name="colours")

    monkeypatch.setattr(pictures, "vulnerability_picture", broken)
    ran = analyze("vulnerability", folder, *QUICK["vulnerability"], "--out", tmp_path)
    assert ran.code == 1 and "no module named colours" in ran.err


def test_drawing_leaves_the_callers_settings_alone(folder: Path, tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="pip install 'advkit[plot]'")
    with matplotlib.rc_context({"font.size": 31.0, "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        assert analyze("vulnerability", folder, *QUICK["vulnerability"], "--out", tmp_path / "odd").code == 0
        assert dict(matplotlib.rcParams) == before
    assert analyze("vulnerability", folder, *QUICK["vulnerability"], "--out", tmp_path / "usual").code == 0
    odd, usual = ((tmp_path / name / "vulnerability.png").read_bytes() for name in ("odd", "usual"))
    assert odd == usual


def test_they_lie_in_the_run_unless_told_otherwise(plain: Path) -> None:
    ran = analyze("vulnerability", plain, "--attack", "pgd-1")
    assert ran.code == 0 and (plain / "analysis" / "vulnerability.json").is_file()
    assert f"{plain}/analysis/vulnerability.{{json, npz" in ran.out
    assert {path.name for path in plain.iterdir()} >= {"run.toml", "metrics.jsonl", "analysis"}


# ---------------------------------------------------------------------- figures


def test_vulnerability_is_that_of_the_samples_trained_on(folder: Path, tmp_path: Path) -> None:
    printed = json.loads(analyze("vulnerability", folder, "--attack", "pgd-3", "--json", "--out", tmp_path).out)
    arrays = stored(tmp_path / "vulnerability.npz")
    assert arrays["index"].tolist() == trained_on(folder).tolist() and printed["n"] == 48
    av = np.sort(arrays["adversarial_loss"] - arrays["clean_loss"])
    assert printed["figures"] == {
        "n": 48,
        "mean": pytest.approx(av.mean()),
        "sd": pytest.approx(av.std()),
        "top_10": pytest.approx(av[-4:].mean()),
        "bottom_10": pytest.approx(av[:4].mean()),
        "at_least_1": pytest.approx((av >= 1).mean()),
        "at_most_0": pytest.approx((av <= 0).mean()),
    }
    assert printed["attack"] == {
        "name": "pgd-3", "norm": "linf", "eps": 0.15, "steps": 3, "step_size": 0.0375, "start": "zero",
    }  # fmt: skip


def test_the_splits_part_the_images(folder: Path, tmp_path: Path) -> None:
    seen = {}
    for split in ("train", "validation", "test"):
        ran = analyze("vulnerability", folder, "--attack", "pgd-1", "--split", split, "--out", tmp_path / split)
        assert ran.code == 0
        seen[split] = set(stored(tmp_path / split / "vulnerability.npz")["index"].tolist())
    assert (
        seen["train"] | seen["validation"] == set(places("train").tolist()) and not seen["train"] & seen["validation"]
    )
    assert seen["test"] == set(places("test").tolist())


def test_the_figures_of_a_budget_are_those_of_the_run(folder: Path, tmp_path: Path) -> None:
    printed = json.loads(analyze("budget", folder, "--json", "--out", tmp_path).out)
    figures, arrays = printed["figures"], stored(tmp_path / "budget.npz")
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    recorded = last["state"]["cat-eps/eps"]
    assert {key: figures[key] for key in recorded} == recorded and printed["state"] == "cat-eps/eps"
    assert [row["epoch"] for row in figures["epochs"]] == [0, 1, 2]
    assert figures["epochs"][-1] == {"epoch": 2, **recorded, "mean_radius": last["mean_radius"]}
    assert 0 < figures["at_0"] < 1, "some attacks succeeded, some did not"
    hardest = [(row["eps"], -row["loss"]) for row in figures["hardest"]]
    assert len(hardest) == 16 and hardest == sorted(hardest)
    assert sum(row["n"] for row in figures["classes"]) == 48
    assert [row["mean"] for row in figures["classes"]] == sorted(row["mean"] for row in figures["classes"])
    eight = next(row for row in figures["classes"] if row["class"] == "8")
    assert eight["mean"] == pytest.approx(arrays["eps"][arrays["label"] == 8].mean())
    from_python = Study(folder, out=tmp_path).budget()
    of_few = Study(folder, out=tmp_path, n=10).budget()
    assert of_few.as_dict() == from_python.as_dict() and of_few.n == len(arrays["eps"]), "budgets are of all"
    with pytest.raises(OptionError, match=r"^split = 'test' has no budgets: those are of images that a run trained on"):
        Study(folder, out=tmp_path, split="test").budget()
    assert from_python.checkpoint == "last" and from_python.figures == figures, "net and budgets of one checkpoint"


def test_a_budget_says_where_plugins_added_images(tmp_path: Path) -> None:
    settings = {"data.limit": 20, "attack.steps": 1, "validation.fraction": 0.0, "model.width": 2}
    convert("digits", tmp_path / "more")
    more = {"extra-data": {"root": str(tmp_path / "more"), "share": 0.5}}
    advkit.train(plugins="cat-eps,extra-data", options=more, epochs=1, eps=0.1, settings=settings, out=tmp_path / "run")
    notes = Study(tmp_path / "run", out=tmp_path).budget().notes
    added = len(advkit.load_data("digits").train)
    said = f"Quantiles over the epochs are of {added:,} samples that plugins added, too; all else is of the 20 of the "
    assert [note for note in notes if note.startswith(said)]


def test_a_landscape_of_one_image(folder: Path, tmp_path: Path) -> None:
    place = int(trained_on(folder)[5])
    arguments = ["landscape", folder, "--kind", "iseat", "--points", "3", "--attack", "pgd-2", "--json"]
    printed = json.loads(analyze(*arguments, "--index", place, "--out", tmp_path).out)
    assert (printed["index"], printed["n"], printed["clip"], printed["kind"]) == (place, 1, True, "iseat")
    assert printed["extent"] == pytest.approx(2 * 0.15 * 8)
    assert stored(tmp_path / f"landscape-iseat-{place}.npz")["index"].tolist() == [place]
    other = json.loads(analyze(*arguments, "--index", place, "--seed", 1, "--out", tmp_path).out)
    assert other["figures"]["loss_at_x"] == printed["figures"]["loss_at_x"] and other["figures"] != printed["figures"]


def test_a_landscape_leaves_the_others(folder: Path, tmp_path: Path) -> None:
    one, two = trained_on(folder)[:2].tolist()
    for arguments in (
        ["--n", 2],
        ["--index", one],
        ["--index", two],
        ["--kind", "iseat", "--index", one, "--attack", "pgd-2"],
    ):
        ran = analyze("landscape", folder, "--points", 3, *arguments, "--out", tmp_path)
        assert ran.code == 0
    names = ("landscape-cat", f"landscape-cat-{one}", f"landscape-cat-{two}", f"landscape-iseat-{one}")
    assert {path.stem for path in tmp_path.iterdir()} == set(names)
    for name in names:
        record = json.loads((tmp_path / f"{name}.json").read_text())
        assert (
            record["analysis"] == name == f"landscape-{record['kind']}" + (f"-{record['index']}" * (record["n"] == 1))
        )


def test_only_a_landscape_that_attacks_names_an_attack(folder: Path, tmp_path: Path) -> None:
    place = int(trained_on(folder)[5])
    cat = analyze("landscape", folder, "--points", 3, "--n", 2, "--out", tmp_path)
    assert "attack" not in json.loads((tmp_path / "landscape-cat.json").read_text())
    assert "pgd" not in cat.out and cat.out.splitlines()[0].endswith(
        "train split, 2 of 48 images, chosen at random, seed 0, of data.limit=60, chosen at random, seed 0"
    )
    iseat = analyze("landscape", folder, "--kind", "iseat", "--points", 3, "--index", place, "--out", tmp_path)
    assert "pgd-50 at eps 0.15 (linf)" in iseat.out
    record = json.loads((tmp_path / f"landscape-iseat-{place}.json").read_text())
    assert record["attack"]["name"] == "pgd-50"
    assert record["images"].startswith(f"1 of 48 images, that at place {place}, of data.limit=60"), "no random choice"

    def table(ran: Ran) -> dict[str, str]:
        rows = [line.partition("  ") for line in ran.out.splitlines()]
        return {label: value.strip() for label, _, value in rows}

    assert table(cat)["kind"].startswith("cat: x + a sign(grad CE) + b r") and "image" not in table(cat)
    assert table(cat)["extent"] == "-0.1 to 0.1, pixels in [0, 1]" and table(cat)["clipped to [0, 1]"] == "no"
    assert table(iseat)["kind"].startswith("iseat: x + alpha") and table(iseat)["image"] == str(place)
    assert table(iseat)["extent"] == "-2.4 to 2.4, L2" and table(iseat)["clipped to [0, 1]"] == "yes"


def test_the_report_finds_every_landscape(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'advkit[plot]'")
    run_folder = tmp_path / "run"
    shutil.copytree(folder, run_folder, symlinks=True)
    for arguments in (["--n", 2], ["--kind", "iseat", "--index", int(trained_on(folder)[0]), "--attack", "pgd-2"]):
        assert analyze("landscape", run_folder, "--points", 3, *arguments).code == 0
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert run(["report", str(run_folder), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count('alt="Picture of the analysis') == 2
    assert "analyze vulnerability" in page and "analyze landscape" not in page, "what is made is not asked for"


def test_a_budget_tells_the_largest_there_is_from_the_largest_possible(folder: Path, tmp_path: Path) -> None:
    ran = analyze("budget", folder, "--out", tmp_path)
    record = json.loads((tmp_path / "budget.json").read_text())
    figures, eps = record["figures"], stored(tmp_path / "budget.npz")["eps"]
    assert record["eps_max"] == 0.15 and record["largest_radius"] == pytest.approx(1.159375 * 0.15)
    assert figures["at_q100"] == (eps == eps.max()).mean() and eps.max() == figures["q100"] < record["eps_max"]
    assert f"{100 * figures['at_q100']:.2f} % (eps_i = {figures['q100']:.4f})" in ran.out
    assert "largest possible radius         0.1739" in ran.out and "cap of eps_i (eps_max)          0.1500" in ran.out
    first = figures["hardest"][0]
    assert f"hardest samples, index (class)  {first['index']} ({first['class']})" in ran.out


def test_people_get_a_table(folder: Path, tmp_path: Path) -> None:
    ran = analyze("margin", folder, *QUICK["margin"], "--out", tmp_path)
    assert ran.code == 0
    assert ran.out.splitlines()[0].startswith(f"{folder}  margin, checkpoint best (epoch ")
    assert "train split, 12 of 48 images, chosen at random, seed 0, of data.limit=60, chosen" in ran.out
    assert "seed 0, pgd-2 at eps 0.15 (linf)" in ran.out
    figures = json.loads((tmp_path / "margin.json").read_text())["figures"]
    assert f"mu mean                     {figures['mean']:.3f}" in ran.out
    assert f"never up to 5 (disordered)  {100 * figures['disordered']:.2f} %" in ran.out


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("vulnerability --attack cw-20", "Unknown attack cw-20; an analysis takes pgd-K, K steps from the image"),
        ("vulnerability --n many", "--n many must be a whole number >= 0."),
        ("vulnerability --eps -1", "--eps -1 must be a finite number >= 0"),
        ("vulnerability --step 0.1", "--step 0.1 must be a share of eps"),
        ("margin --cap 1 --precision 0.3", "the cap must be a positive multiple of it"),
        ("margin --cap 0", "the cap must be a positive multiple of it"),
        ("landscape --points 4", "points = 4 must be odd and at least 3"),
        ("landscape --extent 0", "extent = 0.0 must be a finite number > 0"),
        (f"landscape --index {10**30}", f"--index {10**30} is no image of --split train, which has 48 images"),
        ("vulnerability --step 1e300eps", "must be a finite number >= 0, and at most 3.4e38."),
        ("landscape --index 60", "--index 60 is no image of --split train, which has 48 images"),
        ("landscape --kind iseat --eps 0 --n 2 --extent 1", "The attack moves none of these images"),
        ("landscape --eps 0.1 --step eps/4", "--eps, --step: --kind cat attacks nothing"),
        ("landscape --index 0 --n 7", "--n: --index is of one image; leave one of the two out."),
        ("landscape --kind cut", "Invalid value for '--kind'"),
    ],
)
def test_refusals(folder: Path, tmp_path: Path, arguments: str, sentence: str) -> None:
    kind, *rest = arguments.split()
    ran = analyze(kind, folder, *rest, "--out", tmp_path / "none")
    assert ran.code == 2 and sentence in ran.err and len(ran.err.splitlines()) == 1
    assert not (tmp_path / "none").exists() and ran.out == ""


def test_a_held_out_image_is_found_where_it_is(folder: Path, tmp_path: Path) -> None:
    place = (set(places("train").tolist()) - set(trained_on(folder).tolist())).pop()
    wrong = analyze("landscape", folder, "--index", place, "--points", 3, "--out", tmp_path)
    assert wrong.code == 2 and "train and validation share one numbering" in wrong.err
    right = analyze("landscape", folder, "--index", place, "--points", 3, "--split", "validation", "--out", tmp_path)
    assert right.code == 0


def test_a_run_without_budgets_or_held_out_images(plain: Path) -> None:
    ran = analyze("budget", plain)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        "Error: This run has no budgets per sample: none of its plugins sets any, so every eps_i is attack.eps = 0.15; "
        "analyze a run of cat-eps.\n"
    )
    ran = analyze("vulnerability", plain, "--split", "validation")
    assert ran.code == 2 and "--split validation has no images" in ran.err


def test_no_run_and_no_place(folder: Path, tmp_path: Path) -> None:
    ran = analyze("vulnerability", tmp_path)
    assert ran.code == 4 and "is not a run folder" in ran.err
    (tmp_path / "file").write_text("")
    ran = analyze("vulnerability", folder, *QUICK["vulnerability"], "--out", tmp_path / "file")
    assert ran.code == 2 and "can not be written" in ran.err and "choose another --out" in ran.err
    (taken := tmp_path / "taken" / "vulnerability.npz").mkdir(parents=True)
    ran = analyze("vulnerability", folder, *QUICK["vulnerability"], "--out", taken.parent)
    assert ran.err.splitlines()[-1] == f"Error: {taken} can not be written (Is a directory); choose another --out."
