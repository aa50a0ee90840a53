"""Checkpoints under damage, kills, full disks and rivals; controls show that each fault bites."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor

from advkit import holding
from advkit.errors import CheckpointError, OptionError
from advkit.storage import checkpoint as cp, files, naming, process
from advkit.storage.lock import RunLock

FILES = (cp.TENSORS, cp.STATE, cp.MANIFEST)
STATE: dict[str, Any] = {
    "step": 3,
    "loss": 0.1 + 0.2,
    "plugins": ["a"],
    "best": None,
    "nested": {"é": [True, -0.0]},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # children are forked below
    yield
    torch.set_num_threads(before)


def tensors(step: int, size: int = 8) -> dict[str, Tensor]:
    return {"w": torch.full((size,), float(step)), "n": torch.tensor(step)}


def save(folder: Path, step: int, size: int = 8) -> Path:
    return cp.save(folder, step, tensors(step, size), {"step": step})


def step_of(path: Path | None) -> int:
    """The step a checkpoint holds, after checking that all its parts belong together; 0 for none."""
    if path is None:
        return 0
    loaded, state = cp.load(path)
    assert path.name == f"step-{state['step']:08d}"
    assert loaded["n"] == state["step"]
    assert (loaded["w"] == state["step"]).all()
    return int(state["step"])


def hidden(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


def in_child(work: Callable[[], object]) -> int:
    """Fork, run `work`, never return from the child; the pid."""
    if pid := os.fork():
        return pid
    try:
        work()
    except BaseException:
        os._exit(99)
    os._exit(0)


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def seal(path: Path) -> None:
    """Give a forged checkpoint the manifest that fits it."""
    blobs = {name: (path / name).read_bytes() for name in (cp.TENSORS, cp.STATE)}
    files = {n: {"size": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in blobs.items()}
    manifest = {"format": 1, "step": int(path.name[5:]), "files": files}
    (path / cp.MANIFEST).write_text(json.dumps(manifest) + "\n")


# --- round trip


def test_round_trip_is_bit_exact(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 2, 2)
    nan = torch.tensor([0x7FC00001, -0x80000000, 0x7F800000, 1], dtype=torch.int32).view(torch.float32)
    given = {
        "f32": nan,  # a NaN with a payload, -0.0, inf, the smallest subnormal
        "f64": torch.tensor([0.1, -0.0], dtype=torch.float64),
        "i64": torch.tensor([2**63 - 1, -(2**63)]),
        "bool": torch.tensor([True, False]),
        "u8": torch.arange(5, dtype=torch.uint8),
        "bf16": torch.tensor([1.5, -2.0, 3e38], dtype=torch.bfloat16),
        "f16": torch.tensor([1.5], dtype=torch.float16),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "strided": base.permute(3, 1, 0, 2)[:, ::2],
        "channels_last": base.contiguous(memory_format=torch.channels_last),
        "expanded": torch.tensor([1.0]).expand(3),
        "view": base[0],
        "same": base,
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "conjugate": torch.tensor([1 + 2j], dtype=torch.complex64).conj(),
    }
    loaded, state = cp.load(cp.save(tmp_path / "made" / "here", 3, given, STATE))
    assert set(loaded) == set(given)
    for name, before in given.items():
        after = loaded[name]
        assert (after.dtype, after.shape, after.device.type) == (before.dtype, before.shape, "cpu"), name
        plain = before.detach().resolve_conj().contiguous().reshape(-1)
        assert torch.equal(after.reshape(-1).view(torch.uint8), plain.view(torch.uint8)), name
        assert after.is_contiguous()
        assert not after.requires_grad
    loaded["same"].zero_()  # writable, and nothing is shared
    assert loaded["view"].any()
    assert base.any()
    assert json.dumps(state) == json.dumps(STATE)


def test_nothing_to_store_is_fine(tmp_path: Path) -> None:
    assert cp.load(cp.save(tmp_path, 0, {}, {})) == ({}, {})


def test_the_default_device_does_not_matter(tmp_path: Path) -> None:
    given = {"a": torch.ones(2), "e": torch.empty(0)}
    with torch.device("meta"):
        loaded, _ = cp.load(cp.save(tmp_path, 1, given, {}))
    assert {t.device.type for t in loaded.values()} == {"cpu"}


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
trees = st.recursive(leaves, lambda t: st.lists(t, max_size=3) | st.dictionaries(st.text(), t, max_size=3))


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(state=st.dictionaries(st.text(), trees, max_size=4))
def test_any_strict_json_returns_unchanged(tmp_path: Path, state: dict[str, Any]) -> None:
    assert repr(cp.load(cp.save(tmp_path, 1, {}, state))[1]) == repr(state)  # repr: 1 is not 1.0 is not True


deep: list[Any] = []
for _ in range(100_000):
    deep = [deep]


@pytest.mark.parametrize(
    "state",
    [
        {"x": float("nan")},
        {"x": float("inf")},
        {"x": (1, 2)},
        {1: "x"},
        {"x": {1: 2}},
        {"x": torch.ones(1)},
        {"x": {1, 2}},
        {"x": b"1"},
        {"x": deep},
        {"x": 10**5000},
    ],
    ids=lambda state: str(type(next(iter(state.values()))).__name__),
)
def test_a_state_that_json_would_change_is_refused(tmp_path: Path, state: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="strict JSON"):
        cp.save(tmp_path, 1, {}, state)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "bad",
    [
        {"x": torch.eye(2).to_sparse()},
        {"x": torch.zeros(2, dtype=torch.complex128)},
        {"x": torch.zeros(2, device="meta")},
        {"__metadata__": torch.zeros(2)},
        {"x": 1.0},
        {"\ud800": torch.zeros(2)},
    ],
    ids=["sparse", "complex128", "meta", "reserved", "float", "surrogate"],
)
def test_tensors_that_can_not_be_stored_are_refused(tmp_path: Path, bad: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="dense tensors of common dtypes") as caught:
        cp.save(tmp_path, 1, bad, {})
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_state_over_the_cap_is_refused_when_saved_and_when_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cp.save(tmp_path, 1, {}, {"x": "y" * 100})
    monkeypatch.setattr(cp, "STATE_CAP", 50)
    with pytest.raises(CheckpointError, match=r"state\.json is damaged \(not a file of at most 50 bytes\)"):
        cp.load(path)
    with pytest.raises(CheckpointError, match="over 50 bytes"):
        cp.save(tmp_path, 2, {}, {"x": "y" * 100})


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_modes_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        path = save(tmp_path, 1)
        files.write_atomic(tmp_path / "run.toml", b"x")
    finally:
        os.umask(before)
    for file in (*(path / name for name in FILES), tmp_path / "run.toml"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE(path.stat().st_mode) == 0o777 & ~umask


# --- damage


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cp.save(tmp_path_factory.mktemp("intact"), 7, {"w": torch.arange(6.0), "b": torch.ones(3)}, STATE)


@pytest.mark.parametrize("name", FILES)
def test_every_single_bit_flip_is_found(intact: Path, name: str) -> None:
    good = (intact / name).read_bytes()
    with open(intact / name, "r+b", buffering=0) as file:  # in place: rewriting whole files is slow
        for byte, value in enumerate(good):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([value ^ 1 << bit]), byte)
                with pytest.raises(CheckpointError) as caught:
                    cp.load(intact)
                assert str(intact) in str(caught.value)
            os.pwrite(file.fileno(), bytes([value]), byte)
    assert cp.verified(intact)


def test_control_safetensors_alone_finds_few_flips(intact: Path) -> None:
    good = (intact / cp.TENSORS).read_bytes()
    silent = 0
    for byte in range(len(good) - 36, len(good)):  # the values
        bad = bytearray(good)
        bad[byte] ^= 1
        safetensors.torch.load(bytes(bad))
        silent += 1
    assert silent == 36


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    kind = draw(st.sampled_from(["truncate", "zero", "append", "insert", "delete", "swap", "noise", "double"]))
    where, length = draw(st.floats(0, 1)), draw(st.integers(1, 64))
    noise = draw(st.binary(min_size=1, max_size=64))

    def harm(data: bytes) -> bytes:
        at = int(where * (len(data) - 1))
        return {
            "truncate": data[:at],
            "zero": data[:at] + bytes(length) + data[at + length :],
            "append": data + noise,
            "insert": data[:at] + noise + data[at:],
            "delete": data[:at] + data[at + length :],
            "swap": data[at:] + data[:at],
            "noise": data[:at] + noise + data[at + len(noise) :],
            "double": data + data,
        }[kind]

    return harm


@pytest.mark.slow
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from(FILES), harm=damage())
def test_no_damage_loads_and_no_other_exception_escapes(intact: Path, name: str, harm: Any) -> None:
    file = intact / name
    good = file.read_bytes()
    bad = harm(good)
    try:
        file.write_bytes(bad)
        if bad == good:
            assert cp.verified(intact)
        else:
            with pytest.raises(CheckpointError):
                cp.load(intact)
    finally:
        file.write_bytes(good)


def swap_tensors(path: Path) -> None:
    other = cp.save(path.parent, 8, {"w": torch.zeros(8), "n": torch.tensor(7)}, {"step": 7})
    shutil.copy(other / cp.TENSORS, path / cp.TENSORS)
    shutil.rmtree(other)


def swap_two_files(path: Path) -> None:
    (path / cp.TENSORS).rename(path / "x")
    (path / cp.STATE).rename(path / cp.TENSORS)
    (path / "x").rename(path / cp.STATE)


def renumber(path: Path) -> None:
    save(path.parent, 8).rename(path.parent / "x")
    shutil.rmtree(path)
    (path.parent / "x").rename(path)


def forge(name: str, data: bytes, sealed: bool = True) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        (path / name).write_bytes(data)
        if sealed:
            seal(path)

    return apply


def make_fifo(path: Path) -> None:
    (path / cp.STATE).unlink()
    os.mkfifo(path / cp.STATE)


def make_folder(path: Path) -> None:
    (path / cp.TENSORS).unlink()
    (path / cp.TENSORS).mkdir()


def link_out(path: Path) -> None:
    (path / cp.STATE).rename(path.parent / "elsewhere")
    (path / cp.STATE).symlink_to(path.parent / "elsewhere")


def edit_manifest(**changes: Any) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        manifest = json.loads((path / cp.MANIFEST).read_text())
        (path / cp.MANIFEST).write_text(json.dumps(manifest | changes) + "\n")

    return apply


BOMB = json.dumps({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}).encode()
HARMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no tensors": (lambda p: (p / cp.TENSORS).unlink(), cp.TENSORS),
    "no state": (lambda p: (p / cp.STATE).unlink(), cp.STATE),
    "no manifest": (lambda p: (p / cp.MANIFEST).unlink(), cp.MANIFEST),
    "no folder": (shutil.rmtree, cp.MANIFEST),
    "a file": (lambda p: (shutil.rmtree(p), p.write_text("x")), cp.MANIFEST),
    "foreign tensors": (swap_tensors, cp.TENSORS),
    "files swapped": (swap_two_files, "step-00000007"),
    "another step": (renumber, cp.MANIFEST),
    "fifo": (make_fifo, cp.STATE),
    "folder for a file": (make_folder, cp.TENSORS),
    "link out": (link_out, cp.STATE),
    "huge manifest": (lambda p: (p / cp.MANIFEST).write_bytes(b"[" * 10**6), cp.MANIFEST),
    "sparse giant": (lambda p: os.truncate(p / cp.TENSORS, 2**42), cp.TENSORS),
    "state is a list": (forge(cp.STATE, b"[]\n"), cp.STATE),
    "state is a number": (forge(cp.STATE, b"1\n"), cp.STATE),
    "state is nothing": (forge(cp.STATE, b""), cp.STATE),
    "duplicate keys": (forge(cp.STATE, b'{"a": 1, "a": 2}\n'), cp.STATE),
    "NaN": (forge(cp.STATE, b'{"a": NaN}\n'), cp.STATE),
    "overflow": (forge(cp.STATE, b'{"a": 1e999}\n'), cp.STATE),
    "digits": (forge(cp.STATE, b'{"a": ' + b"9" * 5000 + b"}\n"), cp.STATE),
    "deep": (forge(cp.STATE, b'{"a": ' + b"[" * 10**6 + b"]" * 10**6 + b"}\n"), cp.STATE),
    "not utf-8": (forge(cp.STATE, b'{"a": "\xff"}\n'), cp.STATE),
    "tensors empty": (forge(cp.TENSORS, b""), cp.TENSORS),
    "tensors garbage": (forge(cp.TENSORS, b"\xff" * 100), cp.TENSORS),
    "tensors pickled": (forge(cp.TENSORS, b"\x80\x04cos\nsystem\n(S'true'\ntR."), cp.TENSORS),
    "tensors bomb": (forge(cp.TENSORS, len(BOMB).to_bytes(8, "little") + BOMB + bytes(4)), cp.TENSORS),
    "newer format": (edit_manifest(format=2), "not of format 1"),
    "format true": (edit_manifest(format=True), cp.MANIFEST),
    "files a list": (edit_manifest(files=[]), cp.MANIFEST),
    "files empty": (edit_manifest(files={}), cp.MANIFEST),
    "sizes text": (edit_manifest(files={n: {"size": "many"} for n in FILES}), cp.MANIFEST),
    "sizes only": (edit_manifest(files={n: {"size": 10**6} for n in FILES}), cp.TENSORS),
    "sizes negative": (edit_manifest(files={n: {"size": -1} for n in FILES}), cp.TENSORS),
    "step moved": (edit_manifest(step=8), cp.MANIFEST),
    "extra key": (edit_manifest(path="/etc/passwd"), cp.MANIFEST),
    "manifest list": (lambda p: (p / cp.MANIFEST).write_text("[]\n"), cp.MANIFEST),
    "manifest spaced": (
        lambda p: (p / cp.MANIFEST).write_text((p / cp.MANIFEST).read_text() + " "),
        cp.MANIFEST,
    ),
}


def test_line_ends_that_git_has_changed_are_no_damage(tmp_path: Path) -> None:
    """Nothing is to be removed: what is in git is whole."""
    step = save(tmp_path, 7)
    cp.point(tmp_path, "last", step)
    step.joinpath(cp.STATE).write_bytes(step.joinpath(cp.STATE).read_bytes().replace(b"\n", b"\r\n"))
    for file, read in ((step / cp.MANIFEST, cp.load), (tmp_path / cp.NAMES, lambda _: cp.resolve(tmp_path, "best"))):
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
        with pytest.raises(CheckpointError) as caught:
            read(step)
        assert str(caught.value) == (
            f"{file} has the line ends of Windows, as git with core.autocrlf writes files; restore the run's own: "
            "`git config core.autocrlf false`, then check its files out anew."
        )


@pytest.mark.parametrize(("harm", "named"), HARMS.values(), ids=HARMS)
def test_a_damaged_step_is_named_and_passed_over(tmp_path: Path, harm: Callable[[Path], object], named: str) -> None:
    older, path = save(tmp_path, 6), save(tmp_path, 7)
    assert cp.newest(tmp_path) == path
    harm(path)
    with pytest.raises(CheckpointError) as caught:
        cp.load(path)
    text = str(caught.value)
    assert named in text
    assert "\n" not in text
    assert re.search(r"; (remove step-00000007 to resume from an earlier one, or|check path, permissions)", text)
    assert not cp.verified(path)
    said: list[str] = []
    assert cp.newest(tmp_path, said.append) == older
    assert said == ([f"Skipped a checkpoint: {text}"] if path.is_dir() else [])
    assert step_of(save(tmp_path, 7)) == 7  # and it can be replaced
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("closed", ["", "step-00000002", "step-00000002/manifest.json", "step-00000002/state.json"])
def test_what_may_not_be_read_is_neither_absent_nor_damaged(
    tmp_path: Path, closed: str, denied: Callable[[Path], None]
) -> None:
    """It may be intact: it is not passed over for an older one, nor replaced, nor is the run taken for one without."""
    for step in (1, 2):
        cp.point(tmp_path, "last", save(tmp_path, step))
    before = (tmp_path / "step-00000002" / cp.STATE).read_bytes()
    denied(tmp_path / closed)
    said = f"{re.escape(str(tmp_path / closed))}.* \\(Permission denied\\)"
    again = functools.partial(cp.save, tmp_path, 2, tensors(3), {"step": 2})
    best = functools.partial(naming.found, tmp_path, "best")
    for use in (functools.partial(cp.newest, tmp_path), again, best):
        with pytest.raises(CheckpointError, match=said):
            use()
    with open(tmp_path / "step-00000002" / cp.STATE, "rb") as kept:
        assert kept.read() == before


def test_forging_works_at_all(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    forge(cp.STATE, b'{"a": 1}\n')(path)
    assert cp.load(path)[1] == {"a": 1}  # control: the forged files above fail for their content, not their seal


def test_a_renamed_copy_and_a_stray_file_are_fine(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    (path / ".nfs0001").write_text("left by a network file system")
    shutil.copytree(path, tmp_path / "keep-this")
    assert cp.load(tmp_path / "keep-this")[1] == {"step": 7}


def test_newest_of_nothing(tmp_path: Path) -> None:
    assert cp.newest(tmp_path) is None
    assert cp.newest(tmp_path / "absent") is None
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file can not be used"):
        cp.newest(tmp_path / "file")


def test_newest_counts_rather_than_sorts_text_and_ignores_strangers(tmp_path: Path) -> None:
    save(tmp_path, 99_999_999)
    path = save(tmp_path, 100_000_000)
    for name in ("step-7", "step-000000x9", "step-٠٠٠٠٠٠٠٩", "xstep-999999999", ".step-999999999"):
        shutil.copytree(path, tmp_path / name)
    (tmp_path / "step-999999999").symlink_to(path)
    assert cp.newest(tmp_path, pytest.fail) == path


# --- saving again


def test_the_same_content_is_kept_and_other_content_replaces(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    inode = path.stat().st_ino
    save(tmp_path, 5)
    assert path.stat().st_ino == inode
    cp.save(tmp_path, 5, tensors(5), {"step": 5, "finished": True})
    assert cp.load(path)[1]["finished"]
    assert path.stat().st_ino != inode
    assert hidden(tmp_path) == []


# --- links


def test_links_are_relative_and_followed(tmp_path: Path) -> None:
    first, second = save(tmp_path / "a", 1), save(tmp_path / "a", 2)
    cp.point(tmp_path / "a", "last", first)
    cp.point(tmp_path / "a", "last", second)
    cp.point(tmp_path / "a", "best", first)
    assert os.readlink(tmp_path / "a" / "last") == "step-00000002"
    (tmp_path / "a").rename(tmp_path / "b")
    assert step_of(cp.resolve(tmp_path / "b", "last")) == 2
    assert step_of(cp.resolve(tmp_path / "b", "best")) == 1
    assert cp.load(tmp_path / "b" / "best")[1] == {"step": 1}
    assert hidden(tmp_path / "b") == []


def test_a_folder_that_a_copy_has_made_of_a_link_gives_way(tmp_path: Path) -> None:
    """cp -rL, scp -r: it would stay the step that it was. A folder that holds anything else is somebody's."""
    cp.point(tmp_path / "a", "last", save(tmp_path / "a", 1))
    cp.point(tmp_path / "a", "best", tmp_path / "a" / "step-00000001")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "best" / "mine").touch()
    for name in ("last", "best"):
        cp.point(tmp_path / "b", name, save(tmp_path / "b", 2))
        assert step_of(cp.resolve(tmp_path / "b", name)) == 2
    assert os.readlink(tmp_path / "b" / "last") == "step-00000002"
    assert (tmp_path / "b" / "best" / "mine").exists() and hidden(tmp_path / "b") == []


@pytest.mark.parametrize(
    "to",
    ["../out/step-00000001", "/etc", "..", ".", "step-00000009", "best", "./step-00000001", "step-00000002"],
)
def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path, to: str) -> None:
    save(tmp_path / "out", 1)
    save(tmp_path / "in", 1)
    (tmp_path / "in" / "step-00000002").symlink_to(tmp_path / "out" / "step-00000001")
    (tmp_path / "in" / "best").symlink_to(to)
    if to == "./step-00000001":
        assert cp.resolve(tmp_path / "in", "best") == tmp_path / "in" / "step-00000001"
        return
    with pytest.raises(CheckpointError, match=r"does not name a step of .*; remove that link\."):
        cp.resolve(tmp_path / "in", "best")


OUT = ["../out/step-00000001", "/etc", "..", ".", "lock", f"step-{10**21}", "step-00000009"]


@pytest.mark.parametrize("to", OUT)
@pytest.mark.parametrize("name", ["best", "last"])
def test_the_record_counts_whichever_step_a_link_names(tmp_path: Path, name: str, to: str) -> None:
    """A run that is killed between the two leaves a link to a step that goes later. What is no step is refused."""
    first, out = save(tmp_path / "in", 1), save(tmp_path / "out", 1)
    for both in ("best", "last"):
        cp.point(tmp_path / "in", both, first)
    link = tmp_path / "in" / name
    for stray in (link, tmp_path / "in" / "kept"):
        stray.unlink(missing_ok=True)
        stray.symlink_to(to)
    cp.point(tmp_path / "in", "last" if name == "best" else "best", first)
    assert os.readlink(link) == to
    if to == "step-00000009":
        assert cp.resolve(tmp_path / "in", name) == first
    else:
        with pytest.raises(CheckpointError, match=r"does not name a step of .*; remove that link\."):
            cp.resolve(tmp_path / "in", name)
    (tmp_path / "in" / "names.json").unlink()  # the links alone
    with pytest.raises(CheckpointError, match=r"does not name a step of .*; remove that link\."):
        cp.resolve(tmp_path / "in", name)
    second = save(tmp_path / "in", 2)
    cp.point(tmp_path / "in", name, second)
    assert json.loads((tmp_path / "in" / "names.json").read_text())[name] == second.name
    assert os.readlink(link) == second.name and cp.resolve(tmp_path / "in", name) == second
    assert [step.name for step in out.parent.iterdir()] == [out.name]


def test_the_record_is_the_same_in_whichever_order_it_was_written(tmp_path: Path) -> None:
    """A file system lists the links in any order: one that is read back would be written anew."""
    records = []
    for order in (("last", "best"), ("best", "last"), ("last", "best", "last")):
        folder = tmp_path / "-".join(order)
        step = cp.save(folder, 1, {}, {})
        for name in order:
            cp.point(folder, name, step)
        records.append((folder / "names.json").read_bytes())
    assert len({*records}) == 1


@pytest.mark.parametrize("name", ["last", "step-00000001", "../in/best", ""])
def test_what_is_no_link_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    cp.point(tmp_path / "in", "best", save(tmp_path / "in", 1))
    with pytest.raises(CheckpointError):
        cp.resolve(tmp_path / "in", name)


def test_only_steps_of_the_folder_can_be_pointed_to(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    save(folder, 1)
    for target in (folder / "step-00000002", save(tmp_path / "out", 3), folder / "x"):
        with pytest.raises(CheckpointError, match="is not a step of"):
            cp.point(folder, "best", target)
    assert [p.name for p in folder.iterdir()] == ["step-00000001"]


def test_readers_never_miss_a_link_that_is_being_swapped(tmp_path: Path) -> None:
    paths = [save(tmp_path, 1), save(tmp_path, 2)]
    cp.point(tmp_path, "last", paths[0])

    def swap() -> None:
        while True:
            for path in paths:
                cp.point(tmp_path, "last", path)

    pid = in_child(swap)
    try:
        seen = {cp.resolve(tmp_path, "last") for _ in range(1500)}
    finally:
        os.kill(pid, signal.SIGKILL)
        exit_code(pid)
    assert seen == set(paths)


# --- pruning and sweeping


def names(folder: Path) -> list[int]:
    return sorted(int(p.name[5:]) for p in folder.glob("step-*"))


def test_prune_keeps_the_newest_and_what_is_linked(tmp_path: Path) -> None:
    paths = [save(tmp_path, step) for step in range(1, 8)]
    cp.point(tmp_path, "best", paths[1])
    cp.point(tmp_path, "last", paths[6])
    cp.prune(tmp_path, 3)
    assert names(tmp_path) == [2, 5, 6, 7]
    cp.prune(tmp_path, 0)
    assert names(tmp_path) == [2, 7]
    assert hidden(tmp_path) == []


def test_prune_does_not_count_damaged_steps(tmp_path: Path) -> None:
    paths = [save(tmp_path, step) for step in range(1, 5)]
    for path in paths[2:]:
        (path / cp.STATE).write_text("{}\n")
    cp.prune(tmp_path, 1)
    assert cp.newest(tmp_path) == paths[1]
    assert names(tmp_path) == [2, 3, 4]


@pytest.mark.parametrize("call", ["rename", "unlink", "rmdir", "scandir"])
def test_a_failing_delete_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    failed = 0

    def fail(*_: object, **__: object) -> None:
        nonlocal failed
        failed += 1
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        cp.prune(tmp_path, 1)
        files.sweep(tmp_path)
    assert failed
    assert step_of(cp.newest(tmp_path, pytest.fail)) == 3
    for name in hidden(tmp_path):  # half-deleted, and not called step-* any more
        assert name.startswith(".trash-step-")


def test_a_step_whose_folder_is_only_read_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be a hidden folder that nobody can delete."""
    kept, *_ = (save(tmp_path, step) for step in (1, 2, 3))
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != kept or mode != os.W_OK)
    cp.prune(tmp_path, 1)
    assert (names(tmp_path), hidden(tmp_path)) == ([1, 3], [])


def test_prune_and_sweep_of_no_folder(tmp_path: Path) -> None:
    cp.prune(tmp_path / "absent", 2)
    files.sweep(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []


def leave(folder: Path, owner: str, name: str = "step-00000009", kind: str = "tmp") -> Path:
    path = folder / f".{kind}-{name}@{owner}@0"
    path.mkdir()
    (path / cp.TENSORS).write_text("half")
    return path


def test_sweep_knows_the_dead_from_the_living(tmp_path: Path) -> None:
    dead = in_child(lambda: None)
    assert exit_code(dead) == 0
    living = in_child(functools.partial(time.sleep, 60))
    zombie = in_child(functools.partial(time.sleep, 60))
    zombie_birth = process.birth(zombie)
    os.kill(zombie, signal.SIGKILL)
    os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
    try:
        birth = process.birth(living)
        host = process.HOST
        stay = [
            leave(tmp_path, process.owner()),
            leave(tmp_path, f"{host}@{living}@{birth}", kind="trash"),
            leave(tmp_path, f"elsewhere@{dead}@{birth}"),
        ]
        (tmp_path / ".hidden-by-the-user").write_text("")
        gone = [
            leave(tmp_path, f"{host}@{dead}@{birth}"),
            leave(tmp_path, f"{host}@{dead}@{birth}", kind="trash"),
            leave(tmp_path, f"{host}@{zombie}@{zombie_birth}"),
            leave(tmp_path, f"{host}@999999999@{birth}"),
            leave(tmp_path, f"{host}@{living}@{birth[:-1]}"),  # the pid was used again
            leave(tmp_path, f"{host}@{living}@0{birth[1:]}", kind="trash"),  # before a reboot
        ]
        if birth[0] == "0":
            gone.pop()
        assert all(p.is_dir() for p in gone)
        files.sweep(tmp_path)
        assert all(p.is_dir() for p in stay)
        assert hidden(tmp_path) == sorted([*(p.name for p in stay), ".hidden-by-the-user"])
    finally:
        os.kill(living, signal.SIGKILL)
        exit_code(living)
        exit_code(zombie)


# --- faults and kills: every file operation in turn

CALLS = ("open", "mkdir", "fsync", "rename", "replace", "symlink", "unlink", "rmdir")


def strike_at(patch: pytest.MonkeyPatch, at: int, strike: Callable[[], None]) -> list[str]:
    """Make the `at`-th of all CALLS and writes strike before it happens; the list of calls so far."""
    calls: list[str] = []

    def struck(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) == at:
                strike()
            return real(*args, **kwargs)

        return call

    def write(file: Path, data: bytes, real: Callable[..., None] = files.write_new) -> None:
        calls.append("write")
        if len(calls) == at:
            file.write_bytes(data[: len(data) // 2])  # a short write
            strike()
        real(file, data)

    for name in CALLS:
        patch.setattr(os, name, struck(name, getattr(os, name)))
    patch.setattr(files, "write_new", write)
    return calls


def template(folder: Path, replacing: bool) -> Path:
    cp.point(folder, "last", save(folder, 1))
    files.write_atomic(folder / "run.toml", b"old")
    if replacing:
        cp.save(folder, 2, tensors(2), {"step": 2, "seconds": 1.0})
    return folder


def fresh(source: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder, symlinks=True)


def all_writes(folder: Path) -> None:
    cp.point(folder, "last", save(folder, 2))
    files.write_atomic(folder / "run.toml", b"new" * 100)
    cp.prune(folder, 1)


def check(folder: Path, replacing: bool) -> None:
    assert step_of(cp.newest(folder, pytest.fail)) in ((2,) if replacing else (1, 2))
    assert step_of(cp.resolve(folder, "last")) in (1, 2)
    assert (folder / "run.toml").read_bytes() in (b"old", b"new" * 100)


@pytest.mark.slow
@pytest.mark.parametrize("replacing", [False, True], ids=["new", "replacing"])
def test_a_kill_at_every_call_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replacing: bool) -> None:
    folder, source = tmp_path / "f", template(tmp_path / "source", replacing)
    struck = dirty = 0
    for at in range(1, 200):
        fresh(source, folder)

        def run(at: int = at) -> None:
            strike_at(monkeypatch, at, lambda: os._exit(7))
            all_writes(folder)

        code = exit_code(in_child(run))
        dirty += bool(hidden(folder))
        files.sweep(folder)
        check(folder, replacing)
        assert hidden(folder) == []
        if code == 0:
            break
        assert code == 7
        struck += 1
    assert step_of(cp.newest(folder)) == 2
    assert 25 < struck < 199
    assert dirty > 10  # control: kills did come in the middle


def test_a_rename_comes_after_every_fsync_but_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = strike_at(monkeypatch, -1, pytest.fail)
    written, durable = ["write", "fsync"], ["fsync"]  # for power cuts, which no test here can make
    path = save(tmp_path, 1)
    files.write_atomic(tmp_path / "run.toml", b"x")
    cp.point(tmp_path, "last", path)
    assert [name for name in calls if name not in ("open", "unlink")] == [
        *("mkdir", *written * 3, *durable, "rename", *durable),
        *(*written, "replace", *durable),
        *(*written, "replace", *durable),  # the record, then the link
        *("symlink", "replace", *durable),
    ]


FAMILIES = (errno.ENOSPC, errno.EACCES, errno.EIO, errno.EROFS, errno.EDQUOT)


@pytest.mark.parametrize("replacing", [False, True], ids=["new", "replacing"])
def test_a_fault_at_every_call_is_one_sentence_and_leaves_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replacing: bool
) -> None:
    folder, source = tmp_path / "f", template(tmp_path / "source", replacing)
    reported = 0
    for at in range(1, 200):
        fresh(source, folder)
        number = FAMILIES[at % len(FAMILIES)]

        def strike(number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            calls = strike_at(patch, at, strike)
            try:
                all_writes(folder)
            except CheckpointError as error:
                said = str(error)
                reported += 1
            else:
                said = ""  # it struck in `prune` or `verified`, which never raise, or not at all
        if said:
            assert f"({os.strerror(number)}); check path, permissions and free space" in said
            assert "\n" not in said
            assert hidden(folder) == []
        check(folder, replacing)
        if len(calls) < at:
            break
    assert step_of(cp.newest(folder)) == 2
    assert 20 < reported < 199


def test_a_real_file_size_limit(tmp_path: Path) -> None:
    save(tmp_path, 1)

    def run() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(
            CheckpointError, match=re.escape(f"{tmp_path}/step-00000002 can not be used (File too large)")
        ):
            save(tmp_path, 2, size=200_000)
        save(tmp_path, 3)

    assert exit_code(in_child(run)) == 0
    assert names(tmp_path) == [1, 3]
    assert hidden(tmp_path) == []


@pytest.mark.slow
def test_sigkill_at_random_moments(tmp_path: Path) -> None:
    dice = random.Random(0)
    best = dirty = 0
    for attempt in range(15):

        def run(start: int = best + 1) -> None:
            step = start
            if newest := cp.newest(tmp_path):  # as a resume does: the kill may have come before the pointing
                cp.point(tmp_path, "last", newest)
            while True:
                cp.point(tmp_path, "last", save(tmp_path, step, size=200_000))
                cp.prune(tmp_path, 2)
                step += 1

        pid = in_child(run)
        time.sleep(dice.uniform(0.03, 0.3))
        while attempt % 3 == 0:  # how often chance strikes a half-written file is the disk's: every third kill does
            os.kill(pid, signal.SIGSTOP)
            os.waitpid(pid, os.WUNTRACED)
            if hidden(tmp_path):
                break
            os.kill(pid, signal.SIGCONT)
            time.sleep(dice.uniform(0, 0.003))
        os.kill(pid, signal.SIGKILL)
        assert exit_code(pid) == -signal.SIGKILL
        dirty += bool(hidden(tmp_path))
        files.sweep(tmp_path)
        assert hidden(tmp_path) == []
        now = step_of(cp.newest(tmp_path, pytest.fail))
        assert now >= best
        best = now
        if best:
            assert step_of(cp.resolve(tmp_path, "last")) in (best, best - 1)
            assert len(names(tmp_path)) <= 4
    assert best > 15
    assert dirty >= 5  # control: kills did come in the middle


def test_write_atomic(tmp_path: Path) -> None:
    for data in (b"one", b"", b"three" * 1000):
        files.write_atomic(tmp_path / "run.toml", data)
        assert (tmp_path / "run.toml").read_bytes() == data
    with pytest.raises(CheckpointError, match=r"absent/run\.toml can not be used"):
        files.write_atomic(tmp_path / "absent" / "run.toml", b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["run.toml"]


# --- one writer


def hold(lock: Path, ready: int, seconds: float = 60) -> Callable[[], None]:
    def work() -> None:
        with RunLock(lock):
            os.write(ready, b"x")
            time.sleep(seconds)

    return work


def test_a_second_writer_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    lock = tmp_path / "run" / "lock"
    read, write = os.pipe()
    pid = in_child(hold(lock, write))
    os.read(read, 1)
    with pytest.raises(OptionError) as caught, RunLock(lock):
        pytest.fail("two writers")
    assert str(caught.value) == (
        f"{tmp_path / 'run'} is in use by process {pid} on host {process.HOST}; wait for it or stop it."
    )
    assert caught.value.exit_code == 2
    os.kill(pid, signal.SIGKILL)
    exit_code(pid)
    assert f"@{pid}@" in lock.read_text()  # the record of a dead process is no obstacle
    with RunLock(lock):
        assert f"@{os.getpid()}@" in lock.read_text()
        with pytest.raises(OptionError, match=f"process {os.getpid()} on"), RunLock(lock):
            pytest.fail("two writers in one process")
    assert lock.read_text() == ""


@pytest.mark.parametrize("text", ["", "garbage \x00\xff", "elsewhere@1@x", "h@99999999999999@", "[" * 5000])
def test_whatever_the_lock_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    lock = tmp_path / "lock"
    lock.write_text(text)
    with RunLock(lock):
        lock.write_text(text)
        with pytest.raises(OptionError, match=r"is in use by (another process|process 1 on host elsewhere);"):
            RunLock(lock).__enter__()


def test_the_holder_is_not_mistaken_for_a_dead_predecessor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "lock"
    with RunLock(lock):
        mine = lock.read_text()
        lock.write_text(f"{process.HOST}@999999999@0.1")  # as if the holder had not yet written its own
        monkeypatch.setattr(time, "sleep", lambda seconds: lock.write_text(mine))
        with pytest.raises(OptionError, match=f"process {os.getpid()} on"):
            RunLock(lock).__enter__()


@pytest.mark.slow
def test_of_simultaneous_starters_exactly_one_wins(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    for _ in range(20):
        pipes = gate, go, report, say, wait, end = (*os.pipe(), *os.pipe(), *os.pipe())

        def start(gate: int = gate, go: int = go, say: int = say, wait: int = wait, end: int = end) -> None:
            os.close(go)
            os.close(end)
            os.read(gate, 1)  # until the parent closes it
            try:
                with RunLock(lock):
                    os.write(say, f"won {os.getpid()};".encode())
                    os.read(wait, 1)  # likewise
            except OptionError as error:
                os.write(say, f"lost {re.findall('process ([0-9]+)', str(error))[0]};".encode())

        children = [in_child(start) for _ in range(2)]
        os.close(go)
        said = b""
        while said.count(b";") < 2:
            said += os.read(report, 100)
        os.close(end)
        assert [exit_code(pid) for pid in children] == [0, 0]
        for fd in {*pipes} - {go, end}:
            os.close(fd)
        lost, won = sorted(said.decode().split(";")[:2])
        assert won.split()[0] == "won"
        assert lost == won.replace("won", "lost")  # and the loser names the winner


def test_a_forked_worker_does_not_keep_the_lock_of_a_dead_parent(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    read, write = os.pipe()

    def parent() -> None:
        with RunLock(lock):
            worker = in_child(functools.partial(time.sleep, 60))
            os.write(write, worker.to_bytes(4, "big"))
            time.sleep(60)

    pid = in_child(parent)
    worker = int.from_bytes(os.read(read, 4), "big")
    try:
        with pytest.raises(OptionError), RunLock(lock):
            pytest.fail("two writers")
        os.kill(pid, signal.SIGKILL)
        exit_code(pid)
        os.kill(worker, 0)  # control: it lives
        with RunLock(lock):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_forked_child_that_leaves_the_block_does_not_release_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    held = RunLock(lock)
    with held:
        assert exit_code(in_child(held.__exit__)) == 0
        assert lock.read_text()
        with pytest.raises(OptionError), RunLock(lock):
            pytest.fail("two writers")


def test_a_lock_that_can_not_be_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "precious"
    target.write_text("text")
    (tmp_path / "lock").symlink_to(target)
    with pytest.raises(CheckpointError, match=r"lock can not be used .* is a link, and nothing"):
        RunLock(tmp_path / "lock").__enter__()
    assert target.read_text() == "text"

    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(holding.fcntl, "flock", unsupported)
    with pytest.raises(CheckpointError, match=r"its disk has no locks \(No locks available\); take"):
        RunLock(tmp_path / "other").__enter__()
