"""What every writer goes through: nothing through a link, one sentence for whatever the disk says, no fcntl needed."""

from __future__ import annotations

import errno
import importlib
import os
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from advkit import holding
from advkit.cli.main import run as command
from advkit.errors import AdvkitError, CheckpointError, OptionError
from advkit.storage import checkpoint, files, lock, process
from advkit.storage.run_folder import RunFolder, fresh
from advkit.studies.export import _refuse_content
from advkit.studies.report.page import Page, written
from advkit.studies.verdict_store import Store


def held(path: Path) -> None:
    with lock.RunLock(path):
        pass


WRITERS: dict[str, Callable[[Path], object]] = {
    "write_atomic": lambda folder: files.write_atomic(folder / "a.json", b"new"),
    "append": lambda folder: files.append(folder / "a.jsonl", b"new"),
    "truncate": lambda folder: files.truncate(folder / "a.jsonl", 0),
    "make_folder": lambda folder: files.make_folder(folder / "n-20"),
    "a lock": lambda folder: held(folder / "lock"),
    "a checkpoint": lambda folder: checkpoint.save(folder, 2, {}, {}),
    "a name": lambda folder: checkpoint.point(folder, "last", folder / "step-00000001"),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder reached by a link, with a folder in it that is a link, too."""
    real, outside = tmp_path / "real", tmp_path / "outside"
    for folder in (real, outside):
        folder.mkdir()
    checkpoint.save(outside, 1, {}, {})
    (outside / "a.jsonl").write_text("old")
    for name in ("run.toml", "environment.json"):
        (real / name).touch()
    (real / "inner").symlink_to(outside)
    (tmp_path / "run").symlink_to(real)
    return tmp_path / "run"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("writer", WRITERS)
def test_no_writer_follows_a_link_in_a_run_folder(run: Path, writer: str) -> None:
    before = content(run.parent / "outside")
    with pytest.raises(CheckpointError, match="inner is a link, and nothing is written through one"):
        WRITERS[writer](run / "inner")
    files.sweep(run / "inner")
    checkpoint.prune(run / "inner", 1)
    assert content(run.parent / "outside") == before


@pytest.mark.parametrize("writer", ["write_atomic", "append", "make_folder", "a lock", "a checkpoint"])
def test_links_on_the_way_to_a_run_are_the_user_s(run: Path, writer: str) -> None:
    (run / "own").mkdir()
    for folder in (run / "own", run):
        before = {*folder.iterdir()}
        WRITERS[writer](folder)
        assert {*folder.iterdir()} > before


@pytest.mark.parametrize("operation", ["append", "truncate", "read"])
@pytest.mark.parametrize("what", ["link", "pipe", "folder", "device"])
def test_what_is_no_file_is_not_opened(tmp_path: Path, operation: str, what: str) -> None:
    path = tmp_path / "a.jsonl"
    (tmp_path / "precious").write_text("text")
    {
        "link": lambda: path.symlink_to(tmp_path / "precious"),
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "device": lambda: path.symlink_to("/dev/zero"),
    }[what]()
    with pytest.raises(CheckpointError, match="can not be used"):
        {"append": files.append, "truncate": files.truncate, "read": files.read}[operation](
            path,
            b"x" if operation == "append" else 1,  # type: ignore[arg-type]
        )
    assert (tmp_path / "precious").read_text() == "text"


@pytest.mark.parametrize("operation", ["append", "truncate"])
def test_a_file_with_a_second_name_is_copied_first(tmp_path: Path, operation: str) -> None:
    """As in a run folder that was copied by cp -al."""
    kept, path = tmp_path / "kept", tmp_path / "a.jsonl"
    kept.write_bytes(b"old")
    os.link(kept, path)
    if operation == "append":
        assert files.append(path, b"new") == 6
        files.append(path, b"er")
    else:
        files.truncate(path, 1)
    assert kept.read_bytes() == b"old"
    assert path.read_bytes() == (b"oldnewer" if operation == "append" else b"o")
    assert {file.name for file in tmp_path.iterdir()} == {"kept", "a.jsonl"}


def test_a_lock_with_a_second_name_says_nothing(tmp_path: Path) -> None:
    """A copy by `cp -al` has a lock of its own, also while the run that it is a copy of is trained."""
    (tmp_path / "precious").write_text("text")
    for run in ("one", "two", "three"):
        (tmp_path / run).mkdir()
    os.link(tmp_path / "precious", tmp_path / "one" / "lock")
    with lock.RunLock(tmp_path / "one" / "lock"):
        os.link(tmp_path / "one" / "lock", tmp_path / "two" / "lock")
        with pytest.raises(OptionError, match="is in use by"):
            lock.RunLock(tmp_path / "one" / "lock").__enter__()
        with lock.RunLock(tmp_path / "two" / "lock"), pytest.raises(OptionError, match="is in use by"):
            lock.RunLock(tmp_path / "two" / "lock").__enter__()
        os.link(tmp_path / "one" / "lock", tmp_path / "three" / "lock")
        files.write_atomic(tmp_path / "one" / "a", b"still the same")
    with lock.RunLock(tmp_path / "three" / "lock"), lock.RunLock(tmp_path / "one" / "lock"):
        pass
    assert (tmp_path / "precious").read_text() == "text"


@pytest.mark.parametrize("writer", ["write_atomic", "append", "make_folder", "a checkpoint"])
@pytest.mark.parametrize("what", ["moved", "replaced", "removed"])
def test_nothing_is_written_where_a_locked_folder_was(tmp_path: Path, writer: str, what: str) -> None:
    """What is there now may be another run."""
    with lock.RunLock(tmp_path / "run" / "lock"):
        WRITERS[writer](tmp_path / "run")
        os.rename(tmp_path / "run", tmp_path / "moved")
        if what == "replaced":
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "lock").touch()
        if what == "removed":
            shutil.rmtree(tmp_path / "moved")
        with pytest.raises(CheckpointError, match="was moved, removed or replaced while it was in use"):
            WRITERS[writer](tmp_path / "run")
        there = [path.name for path in (tmp_path / "run").rglob("*")] if (tmp_path / "run").exists() else None
        assert there == (["lock"] if what == "replaced" else None)
    assert not files.locked


@pytest.mark.parametrize("left", ["environment.json", "lock", "metrics.jsonl", "checkpoints"])
def test_a_run_that_lacks_most_is_one(tmp_path: Path, left: str) -> None:
    outside, real = tmp_path / "outside", tmp_path / "run"
    for folder in (outside, real):
        folder.mkdir()
    (real / "run.toml").touch()
    (real / left).touch()
    (real / "inner").symlink_to(outside)
    with pytest.raises(CheckpointError, match="nothing is written through one"):
        files.write_atomic(real / "inner" / "a", b"new")


def test_a_folder_with_a_run_file_alone_is_its_owners(tmp_path: Path) -> None:
    """Of a project, say, whose results lie on another disk."""
    (tmp_path / "run.toml").touch()
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    files.write_atomic(tmp_path / "out" / "a", b"new")
    assert (tmp_path / "disk" / "a").read_bytes() == b"new"


def test_a_large_file_is_judged_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="it has more than 100 bytes"):
        files.read(tmp_path / "sparse", 100)


def test_a_full_disk_while_appending_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device") as refused:
        files.append(tmp_path / "a", b"x")
    assert refused.value.exit_code == 4


def test_a_python_without_any_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what needs one says so."""
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "fcntl", None)
        patch.delattr(holding, "fcntl")
        importlib.reload(holding)
        with (tmp_path / "lock").open("w+b") as file, pytest.raises(CheckpointError, match="this Python has no fcntl"):
            holding.take(file)
    importlib.reload(holding)
    with (tmp_path / "lock").open("w+b") as file:
        holding.take(file)


def test_a_lock_without_fcntl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows: msvcrt locks a byte of the file, and neither O_NOFOLLOW nor register_at_fork is there."""
    taken: set[int] = set()
    msvcrt = types.ModuleType("msvcrt")

    def locking(descriptor: int, mode: int, count: int) -> None:
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 1 << 30 and (mode, count) == (2, 1)
        node = os.fstat(descriptor).st_ino
        if node in taken:
            raise OSError(errno.EACCES, "Permission denied")
        taken.add(node)

    msvcrt.locking, msvcrt.LK_NBLCK = locking, 2  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "msvcrt", msvcrt)
        patch.setitem(sys.modules, "fcntl", None)
        patch.setattr(sys, "platform", "win32")
        for name in ("O_NOFOLLOW", "O_NONBLOCK", "register_at_fork"):
            patch.delattr(os, name)
        try:
            importlib.reload(holding)
            importlib.reload(lock)
            used = f"is in use by process {os.getpid()} on host"
            with lock.RunLock(tmp_path / "lock"), pytest.raises(OptionError, match=used):
                lock.RunLock(tmp_path / "lock").__enter__()
            assert len(taken) == 1, "by msvcrt"
            assert (tmp_path / "lock").read_bytes() == b""
        finally:
            patch.undo()
            importlib.reload(holding)
            importlib.reload(lock)
    with lock.RunLock(tmp_path / "other"):
        pass


@pytest.mark.parametrize(
    ("disk", "exit_code", "advice"),
    [
        ("ENOSPC", 4, "free some space"),
        ("EDQUOT", 4, "free some space"),
        ("EROFS", 4, "choose"),
        ("EACCES", 2, "choose"),
    ],
)
def test_a_new_folder_on_a_disk_that_takes_none(
    tmp_path: Path, disk: str, exit_code: int, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the disk is to blame for is no fault of what was typed."""

    def full(*_: object, **__: object) -> None:
        raise OSError(getattr(errno, disk), "It is so")

    monkeypatch.setattr(Path, "mkdir", full)
    for start, code in ((RunFolder.create, exit_code), (lambda path: fresh(path, ()), 4), (_refuse_content, exit_code)):
        with pytest.raises(AdvkitError, match=f"(used|created) \\(It is so\\); {advice}") as refused:
            start(tmp_path / "new")
        assert refused.value.exit_code == code


def test_a_place_that_nobody_typed_is_no_fault_of_what_was_typed() -> None:
    denied = PermissionError(errno.EACCES, "Permission denied")
    codes = [files.unwritable("a", denied, "choose", typed=typed).exit_code for typed in (True, False)]
    assert codes == [2, 4]


def test_a_default_place_that_can_not_be_written_is_no_fault_of_what_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_run() -> Page:
        return Page("", ())

    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").touch()
    (tmp_path / "report.html").mkdir()
    assert command(["train", "--epochs", "1"]) == 4
    assert "runs/pgd-at-1 can not be created" in capsys.readouterr().err
    for place, code in (("report.html", 4), ("absent/report.html", 4)):
        with pytest.raises(AdvkitError, match=f"^{place} can not be written") as refused:
            written(Path(place), no_run, typed=False)
        assert refused.value.exit_code == code
    with pytest.raises(OptionError, match=r"^out report\.html can not be written"):
        written(Path("report.html"), no_run)
    denied = PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(os, "mkdir", Mock(side_effect=denied))
    assert command(["plugins", "new", "acme-here"]) == 4
    assert command(["plugins", "new", "acme-here", "--in", "."]) == 2
    assert "acme-here can not be written (Permission denied)" in capsys.readouterr().err


def test_what_a_killed_process_had_begun_goes_with_the_next(tmp_path: Path) -> None:
    dead = f"{process.HOST}@999999999@0.1@0"
    for name in (f".tmp-a.json@{dead}", f".tmp-b.json@{dead}", f".tmp-a.json@{process.owner()}@7777777"):
        (tmp_path / name).touch()
    files.write_atomic(tmp_path / "a.json", b"new")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"a.json", f".tmp-b.json@{dead}", f".tmp-a.json@{process.owner()}@7777777"}


@pytest.mark.parametrize("what", ["file", "dangling", "loop", "long"])
def test_a_named_place_that_is_no_folder_is_a_fault_of_what_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    place = Path("o" * 300 if what == "long" else "o")
    if what == "file":
        place.touch()
    elif what != "long":
        place.symlink_to("absent" if what == "dangling" else "o")
    assert not files.there(place / "tracking.json")
    with pytest.raises(OptionError, match=r"^o+ can not be used \(.*\); choose another out\.$"):
        Store(place / "best", {}, typed=True)
    with pytest.raises(CheckpointError, match="can not be used"):  # in a run's folder, which nobody has named for it
        Store(place / "best", {}).__enter__()
    tiny = ["--set", "model.width=2", "--epochs", "1", "--out", str(place)]
    for line in (["train", *tiny], ["ablate", "--plugins", "dirichlet-ls", *tiny]):
        code, said = command(line), capsys.readouterr().err
        assert code == 2 and said.count("Error: ") == 1 and str(place) in said and "another --out" in said, line
