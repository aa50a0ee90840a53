"""A run folder that was copied, damaged, or made by somebody else: what is lost is said, nothing outside changes."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import advkit
from advkit.cli.display import Quiet
from advkit.cli.main import run
from advkit.errors import CheckpointError, Stopped
from advkit.storage import checkpoint, files
from advkit.storage.run_folder import RunFolder
from advkit.studies.report import report
from advkit.studies.runs import load_run
from advkit.studies.subject import of_run
from advkit.training.loop import Trainer
from advkit.training.progress import Silent
from advkit.training.step_report import Report

LINE = ["train", "--plugins", "cat-eps,lsiw", "--limit", "60", "--batch-size", "20", "--epochs", "3", "--seed", "1"]
LINE += ["--set=model.width=2", "--set=attack.steps=1", "--set=validation.steps=1", "--set=run.threads=1"]
LINE += ["--set=checkpoint.every_steps=1", "--progress=none"]
STOP = 5
"""Steps; an epoch has three."""


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def advkit_(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def ran(*arguments: object) -> Ran:
        capsys.readouterr()
        return Ran(run([str(argument) for argument in arguments]), *capsys.readouterr())

    return ran


@pytest.fixture
def resume(advkit_: Callable[..., Ran]) -> Callable[[Path], Ran]:
    return lambda folder: advkit_("train", "--resume", folder, "--progress", "none")


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("short") / "run"
    assert run([*LINE, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def twin(short: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the same run.toml that began with other weights: same steps, same accuracies of the best epoch."""
    folder = tmp_path_factory.mktemp("twin") / "run"
    assert run([*LINE, "--init-from", str(short), "--out", str(folder)]) == 0
    assert (folder / "run.toml").read_text() == (short / "run.toml").read_text()
    return folder


@pytest.fixture(scope="module")
def halted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, stopped in its second epoch."""
    return halt(tmp_path_factory.mktemp("halted") / "run")


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose optimizer counts its updates."""
    return halt(tmp_path_factory.mktemp("counting") / "run", "--set=optimizer.name=adamw")


def halt(folder: Path, *more: str) -> Path:
    done = [0]

    def stepped(self: Quiet, trainer: Trainer, report: Report) -> None:
        done[0] = trainer.position.global_step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Quiet, "stepped", stepped)
        patch.setattr(Quiet, "stop_requested", lambda self: Stopped if done[0] == STOP else None)
        assert run([*LINE, *more, "--out", str(folder)]) == 75
    return folder


@pytest.fixture
def stopped(halted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(halted, tmp_path / "stopped", symlinks=True))


def everything_in(folder: Path) -> dict[str, object]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*")) if p.name != "lock"}


def ended(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, str]]:
    """Tensors of the last checkpoint, metrics without their seconds, and which steps have a name."""
    tensors, _ = RunFolder.open(folder).load("last")
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in RunFolder.open(folder).history()]
    named = json.loads((folder / "checkpoints" / "names.json").read_text())
    return {n: (v.dtype, v.shape, v.numpy().tobytes()) for n, v in tensors.items()}, rows, named


# ---------------------------------------------------------------------- copies


@pytest.mark.parametrize("how", ["links", "no links", "links made folders", "links and no record", "neither"])
def test_a_copy_by_any_tool_goes_on_to_the_same_end(
    stopped: Path, short: Path, tmp_path: Path, resume: Callable[[Path], Ran], how: str
) -> None:
    """`scp -r` and `cp -rL` make folders of links, Drive and Windows lose them; folders of before have no record."""
    copied = tmp_path / "copied"
    shutil.copytree(stopped, copied, symlinks=how != "links made folders")
    store = copied / "checkpoints"
    if how in ("links and no record", "neither", "links made folders"):
        (store / "names.json").unlink()
    if how in ("no links", "neither"):
        for name in ("last", "best"):
            (store / name).unlink(missing_ok=True)
    last = RunFolder.open(copied).load("last")[1]["position"]
    assert last == RunFolder.open(stopped).load("last")[1]["position"]
    assert RunFolder.open(copied).load("best")[1]["position"]["epoch"] == 1 and not RunFolder.open(copied).doubts()
    assert resume(copied).code == 0
    assert ended(copied) == ended(short)
    assert json.loads((store / "names.json").read_text()) == ended(short)[2]


def test_without_symbolic_links_a_run_is_the_same(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, advkit_: Callable[..., Ran]
) -> None:
    def unsupported(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "symlink", unsupported)
    assert advkit_(*LINE, "--out", tmp_path / "run").code == 0
    store = tmp_path / "run" / "checkpoints"
    assert not [path for path in store.iterdir() if path.is_symlink() or path.name.startswith(".")]
    assert json.loads((store / "names.json").read_text()) == ended(short)[2]


def test_a_best_checkpoint_that_is_lost_is_said(stopped: Path, resume: Callable[[Path], Ran]) -> None:
    best = checkpoint.resolve(stopped / "checkpoints", "best")
    (best / checkpoint.MANIFEST).unlink()
    sentence = (
        f"The best checkpoint of {stopped}, of epoch 1, is lost or damaged; until an epoch is better, take "
        "--checkpoint last"
    )
    assert sentence in resume(stopped).err


METRICS: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "deleted": (Path.unlink, 0, "is absent: what it said of 1 epochs is lost"),
    "shortened": (lambda path: path.write_bytes(b""), 4, "is not what the checkpoint was made with"),
    "another run's": (
        lambda path: path.write_text(path.read_text().replace('"samples": ', '"samples": 1')),
        4,
        "is not what the checkpoint was made with",
    ),
    "a list": (
        lambda path: path.write_text("[1]\n" * 500),
        4,
        "is damaged; restore it, or remove it to go on without.",
    ),
}


@pytest.mark.parametrize("harm", METRICS)
def test_metrics_are_those_the_checkpoint_was_made_with(
    stopped: Path, resume: Callable[[Path], Ran], harm: str
) -> None:
    edit, code, sentence = METRICS[harm]
    edit(stopped / "metrics.jsonl")
    ran = resume(stopped)
    assert ran.code == code and sentence in ran.err and ran.err.count("\n") == 1
    if code == 0:  # the run goes on, and again
        assert resume(stopped).code == 0


def _edited(text: str) -> str:
    return text.replace('"loss": ', '"loss": 1')


SHOWN: dict[str, tuple[Callable[[str], str], bool]] = {
    "untouched": (str, False),
    "killed after the line of an epoch": (lambda text: text + text.replace('"epoch": 0', '"epoch": 1'), False),
    "killed within a line": (lambda text: text + '{"epoch": 1, "be', False),
    "edited": (_edited, True),
    "shortened": (lambda text: "", False),
    "a line of another run behind": (lambda text: text + text.replace('"epoch": 0', '"epoch": 2'), True),
}


@pytest.mark.parametrize("harm", SHOWN)
def test_metrics_that_are_shown_are_those_the_newest_checkpoint_knows(stopped: Path, harm: str) -> None:
    edit, said = SHOWN[harm]
    metrics = stopped / "metrics.jsonl"
    metrics.write_text(edit(metrics.read_text()))
    sentence = f"{metrics} is not what the newest checkpoint was made with"
    loaded = load_run(stopped)
    assert [sentence in note for note in loaded.notes] == [True] * said + [False] * (harm == "shortened")
    assert loaded.best and loaded.best["epoch"] == 0  # not that of a line whose checkpoint was never there


def test_metrics_larger_than_any_are_one_sentence(stopped: Path, advkit_: Callable[..., Ran]) -> None:
    os.truncate(metrics := stopped / "metrics.jsonl", 6 << 30)  # of holes
    ran, told = advkit_("runs", "show", stopped), "it has more than 1073741824 bytes, and no run writes so many"
    assert (ran.code, ran.err) == (4, f"Error: {metrics} is damaged: {told}; restore it, or remove it.\n")


def test_every_command_says_what_the_newest_checkpoint_does_not_know(
    stopped: Path, advkit_: Callable[..., Ran]
) -> None:
    metrics, run_file = stopped / "metrics.jsonl", stopped / "run.toml"
    assert not report(stopped, samples=0).doubts
    metrics.write_text(_edited(metrics.read_text()))
    run_file.write_text(run_file.read_text().replace("seed = 1", "seed = 2"))
    for command, place in ((["show", stopped], 2), (["list", stopped.parent], 2), (["show", stopped, "--json"], 1)):
        said = advkit_("runs", *command)[place]
        assert f"{metrics} is not what the newest checkpoint was made with" in said and "run.seed: " in said
    page = report(stopped, samples=0)
    assert len(page.doubts) == 2 and all(sentence in unescape(page.html) for sentence in page.doubts)


NAMED: dict[str, tuple[dict[str, str], str]] = {
    "untouched": ({}, ""),
    "killed between a checkpoint and its names": ({"last": "step-00000008"}, ""),
    "another best": ({"best": "step-00000009"}, "calls step-00000009 best, but by the newest checkpoint, "),
    "a copy that is half done": ({"last": "step-00000003"}, "calls step-00000003 last, but by the newest checkpoint, "),
}


@pytest.mark.parametrize("case", NAMED)
def test_the_newest_checkpoint_says_which_is_best_and_it_is_the_last(
    short: Path, tmp_path: Path, advkit_: Callable[..., Ran], case: str
) -> None:
    names, sentence = NAMED[case]
    shutil.copytree(short, folder := tmp_path / "run")
    record = folder / "checkpoints" / "names.json"
    record.write_text(text := json.dumps(json.loads(record.read_text()) | names) + "\n")
    read = {name: RunFolder.open(folder).load(name)[1]["position"]["global_step"] for name in ("best", "last")}
    assert read == {"best": 3, "last": 9} and record.read_text() == text
    judged = json.loads(advkit_("evaluate", folder, "--attacks", "clean", "--n", "10", "--json").out)
    notes = judged.get("notes", [])
    assert (judged["epoch"], len(notes)) == (0, bool(sentence)) and sentence in "".join(notes)
    assert len(load_run(folder).notes) == bool(sentence)


def test_a_best_checkpoint_that_is_lost_is_no_other(short: Path, tmp_path: Path) -> None:
    shutil.copytree(short, folder := tmp_path / "run")
    (folder / "checkpoints" / "names.json").write_text('{"best": "step-00000009", "last": "step-00000009"}\n')
    shutil.rmtree(folder / "checkpoints" / "step-00000003")
    with pytest.raises(CheckpointError, match=r"the best checkpoint, of epoch 1, is lost or damaged; restore it"):
        RunFolder.open(folder).load("best")


def merged(short: Path, other: Path, step: int, folder: Path) -> Path:
    """A copy of a run, into which a checkpoint of another was synchronised."""
    shutil.copytree(short, folder, symlinks=True)
    (store := folder / "checkpoints").joinpath(name := f"step-{step:08d}").rename(folder.parent / "own")
    shutil.copytree(other / "checkpoints" / name, store / name)
    assert checkpoint.verified(store / name)
    return folder


CLEAN = ["--attacks", "clean", "--n", "10"]


def test_a_best_checkpoint_of_another_run_is_refused(
    short: Path, twin: Path, tmp_path: Path, advkit_: Callable[..., Ran], resume: Callable[[Path], Ran]
) -> None:
    folder, new = merged(short, twin, 3, tmp_path / "run"), tmp_path / "new"
    told = f"{folder}/checkpoints: the best checkpoint, of epoch 1, is of another run than the newest; restore it, or "
    told += "read another: --checkpoint last."
    for command in (
        ["evaluate", folder, *CLEAN],
        ["compare", short, folder, *CLEAN],
        ["export", folder, "--out", new],
        [*LINE, "--init-from", folder, "--out", new],
        ["train", *LINE[3:], "--plugins", "rslad", "-o", f"rslad.teacher={folder}", "--out", new],
    ):
        ran = advkit_(*command)
        assert (ran.code, ran.err.splitlines()[-1]) == (4, f"Error: {told}"), command
    judged = json.loads(advkit_("evaluate", folder, *CLEAN, "--checkpoint", "last", "--json").out)
    assert (judged["epoch"], judged.get("notes", [])) == (2, [])
    shown = advkit_("runs", "show", folder)
    assert (shown.code, shown.err) == (0, f"{folder}: {told}\n")
    assert not load_run(short).notes
    said = f"The best checkpoint of {folder}, of epoch 1, is of another run than the newest; until an epoch is better, "
    assert (ran := resume(folder)).code == 0 and ran.err.splitlines()[0] == f"{said}take --checkpoint last"
    (folder / "checkpoints" / "names.json").unlink()  # and the links, as some copies do
    (folder / "checkpoints" / "best").unlink()
    assert advkit_("evaluate", folder, *CLEAN).err == f"Error: {told}\n"


@pytest.mark.parametrize("step", [9, 10])
def test_a_checkpoint_that_training_replaces_or_removes_meanwhile_is_read_anew(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    shutil.copytree(short, folder := tmp_path / "run", symlinks=True)
    tensors, state = checkpoint.load(store := folder / "checkpoints" / "step-00000009")
    newer = {name: tensor.neg() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    reads, read = list[Path](), checkpoint._read

    def as_it_trains(path: Path, most: int) -> bytes:
        reads.append(path)
        if path.name == "tensors.safetensors" and reads.count(path) == 1 and path.parent == store:
            with monkeypatch.context() as alone:
                alone.setattr(checkpoint, "_read", read)
                checkpoint.point(store.parent, "last", checkpoint.save(store.parent, step, newer, state))
                checkpoint.prune(store.parent, 1)
        return read(path, most)

    monkeypatch.setattr(checkpoint, "_read", as_it_trains)
    found = RunFolder.open(folder).load("last")[0]
    assert all(torch.equal(found[name], newer[name]) for name in newer)


def test_one_with_another_accuracy_is_of_another_run_whatever_the_metrics_say(short: Path, tmp_path: Path) -> None:
    shutil.copytree(short, folder := tmp_path / "run", symlinks=True)
    tensors, state = checkpoint.load(folder / "checkpoints" / "step-00000003")
    state["position"]["best"]["selected"] += 0.25
    checkpoint.save(folder / "checkpoints", 3, tensors, state)
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError, match="of epoch 1, is of another run than the newest"):
        RunFolder.open(folder).load("best")


def test_a_newest_checkpoint_of_another_run_is_said(
    short: Path, twin: Path, tmp_path: Path, advkit_: Callable[..., Ran], resume: Callable[[Path], Ran]
) -> None:
    folder, new = merged(short, twin, 9, tmp_path / "run"), tmp_path / "new"
    told = (
        f"{folder}/metrics.jsonl is not what the newest checkpoint was made with: it is edited or cut short, or one of "
        "them is another run's; restore that one, or remove metrics.jsonl to go on without"
    )
    for which in ("best", "last"):
        judged = json.loads(advkit_("evaluate", folder, *CLEAN, "--checkpoint", which, "--json").out)
        assert judged["notes"] == [told]
    rows = json.loads(advkit_("compare", short, folder, *CLEAN, "--json").out)["runs"]
    assert [told in row["notes"] for row in rows] == [False, False, True, True]
    assert advkit_("export", folder, "--out", new / "export").code == 0
    assert json.loads((new / "export" / "export.json").read_text())["notes"] == [told]
    attacked = json.loads(advkit_("evaluate", twin, "--attacks", f"transfer:{folder}", "--n", "10", "--json").out)
    assert f"of its source: {told}" in attacked["attacks"][-1]["notes"]
    with pytest.warns(UserWarning, match="is not what the newest checkpoint was made with"):
        advkit.load_weights(of_run(twin).model, folder)
    once = ["train", *LINE[3:7], "--epochs", "1", *LINE[9:], "--out"]
    begun = advkit_(*once, new / "begun", "--init-from", folder)
    taught = advkit_(*once, new / "taught", "--plugins", "rslad", "-o", f"rslad.teacher={folder}")
    assert begun.code == taught.code == 0 and begun.err.count(told) == taught.err.count(told) == 1
    assert all(told in "".join(load_run(new / name).notes) for name in ("begun", "taught"))
    assert told in advkit_("runs", "show", folder).err
    assert resume(folder).code == 4


OWN: dict[str, tuple[Callable[[str], str | None], list[str]]] = {
    "written further": (lambda text: text + text.splitlines(True)[-1].replace('"epoch": 2', '"epoch": 3'), []),
    "within a line": (lambda text: text + '{"epoch": 3, "be', []),
    "removed": (lambda text: None, []),
    "edited": (_edited, ["is not what the newest checkpoint was made with"]),
    "cut by a full disk": (lambda text: text[:-500], ["is not what the newest checkpoint was made with"]),
    "damaged": (lambda text: "[1]\n", ["is damaged; restore it, or remove it to go on without"]),
}


@pytest.mark.parametrize("harm", OWN)
def test_a_run_is_judged_whatever_its_metrics_are(
    short: Path, tmp_path: Path, advkit_: Callable[..., Ran], harm: str
) -> None:
    shutil.copytree(short, folder := tmp_path / "run", symlinks=True)
    edit, said = OWN[harm]
    (metrics := folder / "metrics.jsonl").unlink()
    if (text := edit((short / "metrics.jsonl").read_text())) is not None:
        metrics.write_text(text)
    judged = json.loads(advkit_("evaluate", folder, *CLEAN, "--json").out)
    assert judged["epoch"] == 0 and len(judged.get("notes", [])) == len(said)
    assert all(part in note for part, note in zip(said, judged.get("notes", []), strict=True))


def test_the_best_of_before_its_metrics_were_lost_is_of_the_run(stopped: Path, resume: Callable[[Path], Ran]) -> None:
    (stopped / "metrics.jsonl").unlink()
    assert resume(stopped).code == 0 and [row["epoch"] for row in RunFolder.open(stopped).history()] == [1, 2]
    assert RunFolder.open(stopped).load("best")[1]["position"]["epoch"] == 1
    assert "best checkpoint" not in resume(stopped).err


def test_a_best_checkpoint_of_before_has_no_checksum_of_the_metrics(short: Path, tmp_path: Path) -> None:
    shutil.copytree(short, folder := tmp_path / "run", symlinks=True)
    tensors, state = checkpoint.load(folder / "checkpoints" / "step-00000003")
    del state["position"]["metrics_crc"], state["position"]["stopped"]
    checkpoint.save(folder / "checkpoints", 3, tensors, state)
    assert RunFolder.open(folder).load("best")[1] == state and not load_run(folder).notes


@pytest.mark.parametrize("text", ["[]", "3", "null", "{", '{"torch": [1], "advkit": null}', "[" * 100_000])
def test_an_environment_of_any_shape(stopped: Path, resume: Callable[[Path], Ran], text: str) -> None:
    (stopped / "environment.json").write_text(text)
    ran = resume(stopped)
    assert ran.code == 0 and "environment.json" in ran.err


def test_a_checkpoint_of_before_has_no_checksum_of_the_metrics(
    stopped: Path, short: Path, resume: Callable[[Path], Ran]
) -> None:
    newest = checkpoint.newest(stopped / "checkpoints")
    assert newest is not None
    tensors, state = checkpoint.load(newest)
    del state["position"]["metrics_crc"], state["position"]["stopped"]
    checkpoint.save(newest.parent, int(newest.name[5:]), tensors, state)
    ran = resume(stopped)
    assert ran.code == 0 and "is taken as it is" in ran.err
    assert ended(stopped) == ended(short)


def test_a_copy_by_hard_links_leaves_the_original_as_it_was(
    stopped: Path, short: Path, tmp_path: Path, advkit_: Callable[..., Ran], resume: Callable[[Path], Ran]
) -> None:
    """cp -al: every file has a second name in the original, which is trained and judged beside it."""
    shutil.copytree(stopped, linked := tmp_path / "linked", copy_function=os.link, symlinks=True)
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    assert resume(linked).code == 0
    judged = ["--checkpoint", "last", "--n", "10", "--attacks"]
    assert advkit_("evaluate", linked, *judged, "clean").code == 0
    shutil.copytree(linked / "evaluations", stopped / "evaluations", copy_function=os.link)
    progress = next(stopped.glob("evaluations/*/progress.jsonl"))
    said = progress.read_bytes()
    assert advkit_("evaluate", linked, *judged, "clean,pgd-1").code == 0
    assert progress.read_bytes() == said
    assert {path: path.read_bytes() for path in before} == before
    assert len(RunFolder.open(linked).history()) == len(RunFolder.open(short).history()) == 3


ODD: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "zeros": lambda path: path.symlink_to("/dev/zero"),
    "folder": Path.mkdir,
    "sparse": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 3 << 30),
}
FILES = ("run.toml", "metrics.jsonl", "checkpoints/names.json", "environment.json", "lock")


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_neither_hangs_nor_fills_the_memory(
    stopped: Path, resume: Callable[[Path], Ran], name: str, odd: str
) -> None:
    (stopped / name).unlink(missing_ok=True)
    ODD[odd](stopped / name)
    code, _, err = resume(stopped)
    replaced = name == "checkpoints/names.json" and odd != "folder"
    assert code == (0 if name == "environment.json" or replaced or (name, odd) == ("lock", "sparse") else 4), err
    assert code == 0 or err.count("\n") == 1


@pytest.mark.parametrize("odd", ODD)
def test_a_run_file_that_is_none(tmp_path: Path, advkit_: Callable[..., Ran], odd: str) -> None:
    ODD[odd](tmp_path / "a.toml")
    code, _, err = advkit_("plan", "--config", tmp_path / "a.toml")
    assert code == 2 and err.startswith(f"Error: {tmp_path}/a.toml ") and err.count("\n") == 1


@pytest.mark.parametrize("behind", ["nothing", "an empty folder", "a file"])
def test_nothing_is_changed_before_checkpoints_behind_a_link_are_refused(
    stopped: Path, tmp_path: Path, resume: Callable[[Path], Ran], behind: str
) -> None:
    shutil.rmtree(place := stopped / "checkpoints")
    {"nothing": Path, "an empty folder": Path.mkdir, "a file": Path.touch}[behind](outside := tmp_path / "outside")
    place.symlink_to(outside)
    assert (before := everything_in(stopped))[str(stopped / "metrics.jsonl")]
    ran = resume(stopped)
    assert (ran.code, ran.err.count("\n"), everything_in(stopped)) == (4, 1, before) and str(place) in ran.err


def test_what_a_checkpoint_does_not_know_of_goes_with_the_next_line(stopped: Path, short: Path) -> None:
    """What may still be refused then has changed nothing."""
    folder = RunFolder.open(stopped)
    line = (metrics := folder.metrics).read_bytes()
    metrics.write_bytes(line + (behind := b'{"epoch": 1, "loss": 7}\n{"epo'))
    mark = folder.mark(len(line))
    assert [row["epoch"] for row in folder.history_to(mark)] == [0]
    folder.refuse_unwritable_metrics()
    assert metrics.read_bytes() == line + behind
    after = folder.append_metrics({"epoch": 1}, mark)
    assert metrics.read_bytes() == line + b'{"epoch": 1}\n' and folder.mark(after.size) == after


def test_a_finished_run_writes_no_metrics(
    short: Path, stopped: Path, tmp_path: Path, resume: Callable[[Path], Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be on a disk, or of a mode, that is only read."""

    def denied(path: Path, *_: object) -> int:
        raise CheckpointError(f"{path} is only read.")

    monkeypatch.setattr(files, "append", denied)
    monkeypatch.setattr(files, "truncate", denied)
    done = Path(shutil.copytree(short, tmp_path / "done", symlinks=True))
    assert resume(done) == (0, "", f"The run in {done} is finished; nothing is left to do.\n")
    ran = resume(stopped)  # one that goes on is refused before a step
    assert (ran.code, ran.err) == (4, f"Error: {stopped}/metrics.jsonl is only read.\n")


@pytest.mark.parametrize("lost", ["all", "the model"])
def test_a_run_file_that_is_cut_short_is_damage(stopped: Path, advkit_: Callable[..., Ran], lost: str) -> None:
    text = (file := stopped / "run.toml").read_text()
    file.write_text("" if lost == "all" else text[: text.index("[model]")])
    sentence = f"Error: {file} is cut short: it has no {'plugins' if lost == 'all' else 'model'}. Restore it, or start"
    for line in (["train", "--resume"], ["train", "--plugins", "lsiw", "--resume"], ["evaluate"], ["report"]):
        ran = advkit_(*line, stopped)
        assert ran.code == 4 and ran.err.startswith(sentence)
    file.unlink()
    ran = advkit_(*LINE, "--out", stopped)
    assert ran.code == 4 and ran.err.startswith(f"Error: {stopped} is a run whose run.toml is gone; restore that")


@pytest.mark.parametrize("part", ["checkpoints", "metrics.jsonl", "lock"])
def test_nothing_is_written_through_a_link(
    stopped: Path, tmp_path: Path, resume: Callable[[Path], Ran], part: str
) -> None:
    outside = tmp_path / "outside"
    os.rename(stopped / part, outside)
    (stopped / part).symlink_to(outside)
    before = everything_in(outside) if outside.is_dir() else outside.read_bytes()
    ran = resume(stopped)
    assert ran.code == 4 and str(stopped / part) in ran.err and ran.err.count("\n") == 1
    assert before == (everything_in(outside) if outside.is_dir() else outside.read_bytes())


# ---------------------------------------------------------------------- contents that their hashes fit


Edit = Callable[[dict[str, Tensor], dict[str, Any]], object]


def _of(name: str, change: Callable[[Tensor], Tensor]) -> Edit:
    return lambda tensors, state: tensors.update({name: change(tensors[name])})


def _count(key: str, value: int) -> Edit:
    return lambda tensors, state: state["meter"]["counts"].update({key: value})


def _position(key: str, value: object) -> Edit:
    return lambda tensors, state: state["position"].update({key: value})


def _averaged(state: dict[str, Any]) -> None:
    state["evaluated"] = ["1.weight"]


MOMENTUM = "optimizer/1.weight/momentum_buffer"
FORGED: dict[str, tuple[Edit, str]] = {
    "no momentum": (lambda tensors, state: tensors.pop(MOMENTUM), f"{MOMENTUM} is missing"),
    "no optimizer at all": (
        lambda tensors, state: [tensors.pop(n) for n in list(tensors) if n.startswith("optimizer/")],
        "momentum_buffer is missing",
    ),
    "momentum of one value": (_of(MOMENTUM, lambda value: torch.zeros(1)), f"{MOMENTUM} is float32 (1,)"),
    "a weight of one value": (_of("model/1.weight", lambda value: torch.zeros(1)), "model/1.weight is float32 (1,)"),
    "a weight of integers": (_of("model/1.weight", lambda value: value.long()), "model/1.weight is int64"),
    "a weight that is NaN": (_of("model/1.weight", lambda value: value / 0 * 0), "model/1.weight holds NaN or Inf"),
    "a weight gone": (lambda tensors, state: tensors.pop("model/1.weight"), "model/1.weight is missing"),
    "a stranger": (lambda tensors, state: tensors.update(x=torch.zeros(3)), "x is nothing that this run stores"),
    "a net of nobody's": (
        lambda tensors, state: tensors.update({"tensors/ema/x.sha256": torch.zeros(3)}),
        "tensors/ema/x.sha256 is nothing that this run stores",
    ),
    "state of a stranger": (
        lambda tensors, state: tensors.update({"samples/x/y": torch.zeros(3)}),
        "samples/x/y is nothing that this run stores",
    ),
    "per-sample state too short": (
        _of("samples/cat-eps/eps", lambda value: value[:1]),
        "samples/cat-eps/eps is float32 (1,), and the run's is float32 (60,)",
    ),
    "averages of nothing": (
        lambda tensors, state: tensors.update({"evaluated/1.weight": torch.zeros(3)}),
        "evaluated/1.weight is no weight that its run averaged",
    ),
    "averages of another shape": (
        lambda tensors, state: (tensors.update({"evaluated/1.weight": torch.zeros(3)}), _averaged(state)),
        "evaluated/1.weight is float32 (3,)",
    ),
    "averages that are gone": (lambda tensors, state: _averaged(state), "evaluated/1.weight is missing"),
    "numbers of an optimizer that keeps none": (
        lambda tensors, state: state["optimizer"].update({"1.weight": {"lr": 1e9}}),
        "its optimizer has lr of 1.weight, which is nothing that this run's keeps",
    ),
    "classes in another order": (
        lambda tensors, state: state["classes"].reverse(),
        "its classes are ['9', '8', ",
    ),
    "a variance below 0": (_of("model/2.running_var", torch.neg), "2.running_var is below 0, which no training gives"),
    "batches below 0": (
        _of("model/2.num_batches_tracked", torch.neg),
        "2.num_batches_tracked is below 0, which no training gives",
    ),
    "images divided by 0": (_of("model/0.std", torch.zeros_like), "0.std is 0 or below, which no training gives"),
    "a budget below 0": (
        _of("samples/cat-eps/eps", lambda value: value - 1),
        "samples/cat-eps/eps has a value outside of 0 to 0.15",
    ),
    "a budget above all": (_of("samples/cat-eps/eps", lambda value: value + 1), "has a value outside of 0 to 0.15"),
    "a sum gone": (lambda tensors, state: tensors.pop("meter/loss"), "its meter has no sum of loss"),
    "a sum of another type": (_of("meter/loss", lambda value: value.float()), "meter/loss is float32 ()"),
    "more images right than there were": (_of("meter/adv_correct", lambda value: value + 99), "meter/adv_correct is "),
    "a radius below 0": (_of("meter/radius", torch.neg), "meter/radius is negative"),
    "an epoch ahead": (_position("epoch", 2), "its position is epoch 2, step 2 (5 in all) of 3 epochs of 3 steps"),
    "epoch far off": (_position("epoch", 10**9), "its position is epoch 1000000000"),
    "epoch below 0": (_position("epoch", -1), "position.epoch of its state is -1"),
    "epoch as text": (_position("epoch", "1"), "position.epoch of its state is '1'"),
    "epoch as truth": (_position("epoch", True), "position.epoch of its state is True"),
    "another step": (_position("global_step", 4), "its position is step 4, its name step-00000005"),
    "samples of another epoch": (_count("samples", 10**9), "its meter has counts that can not be"),
    "more right than there are": (_count("n adv_correct", 10**9), "its meter has counts that can not be"),
    "a radius of some": (_count("n radius", 1), "its meter has counts that can not be"),
    "a radius of none": (_count("n radius", 0), "its meter has counts that can not be"),
    "passes of a day": (_count("passes attack forward", 10**12), "its meter has counts that can not be"),
    "passes of no kind": (_count("passes attack bogus", 3), "its meter has counts that can not be"),
    "steps that were not counted": (_count("steps", 1), "its meter counts 1 steps of an epoch, its position 2"),
    "metrics of another size": (_position("metrics_size", 10**9), "is not what the checkpoint was made with"),
    "best to come": (
        _position("best", {"epoch": 2, "selected": 0.5, "split": "validation"}),
        "its best epoch is 2",
    ),
    "best above all": (
        _position("best", {"epoch": 0, "selected": 5.0, "split": "validation"}),
        "position.best.selected of its state is 5",
    ),
    "best by another accuracy": (
        _position("best", {"epoch": 0, "selected": 1.0, "split": "validation"}),
        "disagree about epochs, the best or the end",
    ),
    "an end that nobody called": (_position("stopped", "enough"), "disagree about epochs, the best or the end"),
    "no word of an end": (lambda tensors, state: state["position"].pop("stopped"), "its position lacks stopped"),
    "best on no split": (_position("best", {"epoch": 0, "selected": None, "split": None}), "its best epoch is 0"),
    "no best": (_position("best", None), "disagree about epochs"),
    "no position": (lambda tensors, state: state.pop("position"), "of another version of advkit"),
    "a list for a meter": (lambda tensors, state: state.update(meter=[]), "meter of its state is []"),
    "counts as text": (
        lambda tensors, state: state["meter"].update(counts={"steps": "x"}),
        "meter.counts.steps of its state is 'x'",
    ),
    "an optimizer's number as text": (
        lambda tensors, state: state["optimizer"].update({"1.weight": {"momentum_buffer": "x"}}),
        "optimizer.1.weight.momentum_buffer",
    ),
    "settings that are none": (lambda tensors, state: state.update(run="= ="), "what is stored is no run file"),
}


def forge(folder: Path, edit: Edit) -> None:
    newest = checkpoint.newest(folder / "checkpoints")
    assert newest is not None
    tensors, state = checkpoint.load(newest)
    edit(tensors, state)
    checkpoint.save(newest.parent, STOP, tensors, state)


@pytest.mark.parametrize(
    ("step", "said"), [(1e30, "counts 1e+30 updates, and the run has made 5"), (-1.0, "is negative")]
)
def test_an_optimizer_that_counts_other_updates_is_refused(
    counting: Path, tmp_path: Path, resume: Callable[[Path], Ran], step: float, said: str
) -> None:
    folder = Path(shutil.copytree(counting, tmp_path / "run", symlinks=True))
    forge(folder, _of("optimizer/1.weight/step", lambda value: torch.full_like(value, step)))
    ran = resume(folder)
    assert ran.code == 4 and f"optimizer/1.weight/step {said}" in ran.err and ran.err.count("\n") == 1, ran


@pytest.mark.parametrize("how", FORGED)
def test_a_checkpoint_whose_hashes_fit_is_judged_by_its_contents(
    stopped: Path, resume: Callable[[Path], Ran], how: str
) -> None:
    edit, sentence = FORGED[how]
    forge(stopped, edit)
    before = everything_in(stopped)
    ran = resume(stopped)
    assert ran.code == (2 if how == "settings that are none" else 4), ran
    assert sentence in ran.err and ran.err.count("\n") == 1, ran
    assert everything_in(stopped) == before


class LogVariance(nn.Module):
    """A norm of somebody's own, whose names are those of torch's and whose values are not."""

    def __init__(self) -> None:
        super().__init__()
        self.core = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        self.register_buffer("running_var", torch.full((), -1.0))
        self.register_buffer("num_batches_tracked", torch.tensor(-1))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.core(x) * (-self.running_var / 2).exp()
        return logits


def test_a_norm_of_ones_own_is_not_judged_by_its_names(tmp_path: Path) -> None:
    class Stops(Silent):
        begun = 0

        def stepped(self, trainer: Trainer, report: Report) -> None:
            self.begun += 1

        def stop_requested(self) -> type[Stopped] | None:
            return Stopped if self.begun else None

    given = {"epochs": 1, "settings": {"data.limit": 60, "attack.steps": 1, "validation.steps": 1}}
    with pytest.raises(Stopped):
        advkit.train(LogVariance(), "digits", (), batch_size=20, out=tmp_path / "run", progress=Stops(), **given)
    assert len(advkit.train(LogVariance(), "digits", resume_from=tmp_path / "run").history) == 1
