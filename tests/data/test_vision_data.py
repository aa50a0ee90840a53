"""Fashion-MNIST, CIFAR and SVHN: tiny copies in the published formats, with torchvision's checksums set to theirs."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from advkit.cli.main import run
from advkit.data.prepare import MAX_BYTES, prepare
from advkit.data.vision import Cifar10, Cifar100, FashionMnist, Svhn, TorchvisionSource, default_root
from advkit.errors import DataError, OptionError

datasets = pytest.importorskip("torchvision.datasets")
savemat = pytest.importorskip("scipy.io").savemat

KINDS: dict[str, type[TorchvisionSource]] = {kind.name: kind for kind in (FashionMnist, Cifar10, Cifar100, Svhn)}
TRAIN, TEST = 30, 20


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def advkit(*arguments: object) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(each) for each in arguments])
    assert "Traceback" not in err.getvalue()
    return code, out.getvalue(), err.getvalue()


@dataclass
class Copy:
    """A tiny copy: the images (N, C, H, W) and labels of both splits, and the files that hold them, by path."""

    kind: type[TorchvisionSource]
    images: tuple[np.ndarray, np.ndarray]
    labels: tuple[np.ndarray, np.ndarray]
    files: dict[str, bytes]

    def write(self, root: Path) -> Path:
        for file, content in self.files.items():
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_bytes(content)
        return root

    def intact(self, root: Path) -> dict[str, bool]:
        """Of the files that are there: whether they are as they should be."""
        return {f: (root / f).read_bytes() == content for f, content in self.files.items() if (root / f).exists()}


def tiny(kind: type[TorchvisionSource]) -> Copy:
    """Random pixels, so that any transposition is seen; every label occurs, in disorder."""
    numbers = np.random.default_rng(0)
    images = tuple(numbers.integers(0, 256, (n, *kind.shape), dtype=np.uint8) for n in (TRAIN, TEST))
    labels = tuple(numbers.permutation(np.arange(n) % 10) for n in (TRAIN, TEST))
    files: dict[str, bytes] = {}
    if kind is FashionMnist:
        for split, x, y in zip(("train", "t10k"), images, labels, strict=True):
            header = b"".join(int(size).to_bytes(4, "big") for size in (2051, len(x), 28, 28))
            files[f"FashionMNIST/raw/{split}-images-idx3-ubyte"] = header + x.tobytes()
            header = b"".join(int(size).to_bytes(4, "big") for size in (2049, len(y)))
            files[f"FashionMNIST/raw/{split}-labels-idx1-ubyte"] = header + y.astype(np.uint8).tobytes()
    elif kind is Svhn:
        for split, x, y in zip(("train", "test"), images, labels, strict=True):
            stream = io.BytesIO()
            as_stored = {"X": x.transpose(2, 3, 1, 0), "y": np.where(y == 0, 10, y).astype(np.uint8)[:, None]}
            savemat(stream, as_stored, do_compression=True)
            files[f"{split}_32x32.mat"] = stream.getvalue()
    else:
        key, label_names = ("labels", "label_names") if kind is Cifar10 else ("fine_labels", "fine_label_names")
        names = [f"class {number}" for number in range(10)]
        *batches, meta = kind.files
        rows = [*np.split(np.arange(TRAIN), len(batches) - 1), np.arange(TEST)]
        for path, row in zip(batches, rows, strict=True):
            x, y = (part[path == batches[-1]][row] for part in (images, labels))
            content = {"data": x.reshape(len(x), -1), key: y.tolist()}
            files[path] = pickle.dumps(content, protocol=2)
        files[meta] = pickle.dumps({label_names: names}, protocol=2)
    return Copy(kind, images, labels, files)  # type: ignore[arg-type]


COPIES = {name: tiny(kind) for name, kind in KINDS.items()}


def trust(patch: pytest.MonkeyPatch, kind: type[TorchvisionSource], sums: Mapping[str, str]) -> None:
    """Let advkit and torchvision take these checksums for the published ones."""
    patch.setattr(kind, "files", dict(sums))
    if kind is Svhn:
        splits = {name.split("_")[0]: [f"http://a.invalid/{name}", name, s] for name, s in sums.items()}
        patch.setattr(datasets.SVHN, "split_list", splits)
    elif kind is not FashionMnist:
        pairs = [[Path(file).name, s] for file, s in sums.items()]
        reader = getattr(datasets, kind.reader)  # type: ignore[attr-defined]
        patch.setattr(reader, "train_list", pairs[:-2])
        patch.setattr(reader, "test_list", pairs[-2:-1])
        patch.setattr(reader, "meta", {**reader.meta, "md5": pairs[-1][1]})


@pytest.fixture(autouse=True)
def _trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ADVKIT_DATA", raising=False)
    monkeypatch.delenv("ADVKIT_TRACEBACK", raising=False)
    if "published" not in request.node.name:
        for name, kind in KINDS.items():
            trust(monkeypatch, kind, {file: md5(content) for file, content in COPIES[name].files.items()})


@pytest.fixture(params=KINDS)
def copy(request: pytest.FixtureRequest) -> Copy:
    return COPIES[request.param]


# --- loading


def test_the_published_checksums_are_those_of_torchvision() -> None:
    for kind, reader in ((Cifar10, datasets.CIFAR10), (Cifar100, datasets.CIFAR100)):
        pairs = [*reader.train_list, *reader.test_list, [reader.meta["filename"], reader.meta["md5"]]]
        assert kind.files == {f"{reader.base_folder}/{name}": s for name, s in pairs}
        assert (kind.archive, kind.origin) == (reader.filename, reader.url)
    assert Svhn.files == {name: s for _, name, s in list(datasets.SVHN.split_list.values())[:2]}
    gz = [f"{Path(file).name}.gz" for file in FashionMnist.files]
    assert gz == [name for name, _ in datasets.FashionMNIST.resources]


def test_each_is_loaded_as_it_was_written(copy: Copy, tmp_path: Path) -> None:
    splits = copy.kind().load(copy.write(tmp_path), None)
    for half, x, y in zip((splits.train, splits.test), copy.images, copy.labels, strict=True):
        assert torch.equal(half.images, torch.from_numpy(x)) and half.images.is_contiguous()
        assert torch.equal(half.labels, torch.from_numpy(y)) and half.index.tolist() == list(range(len(y)))
        assert half.shape == copy.kind.shape
    expected = {
        "fashion-mnist": tuple(datasets.FashionMNIST.classes),
        "svhn": tuple("0123456789"),
    }.get(copy.kind.name, tuple(f"class {number}" for number in range(10)))
    assert splits.train.classes == splits.test.classes == expected
    assert splits.transform == ("none" if copy.kind is Svhn else "crop-flip")


def test_a_limit_keeps_order_and_index(copy: Copy, tmp_path: Path) -> None:
    root = copy.write(tmp_path)
    whole, few = copy.kind().load(root, None), copy.kind().load(root, 13)
    for long, short in ((whole.train, few.train), (whole.test, few.test)):
        assert len(short) == 13
        assert short.index.tolist() == long.sample(13).index.sort().values.tolist()
        assert torch.equal(short.images, long.take(short.index).images)
        assert torch.equal(short.labels, long.labels[short.index])
    with pytest.raises(OptionError, match="A limit of 9 images is below the number of classes"):
        copy.kind().load(root, 9)


def test_what_each_data_set_suggests(tmp_path: Path) -> None:
    expected = {
        "fashion-mnist": (0.1, 0.025),
        "cifar10": (8 / 255, 2 / 255),
        "cifar100": (8 / 255, 2 / 255),
        "svhn": (8 / 255, 1 / 255),
    }
    for name, (eps, step) in expected.items():
        code, out, _ = advkit("plan", "--dataset", name, "--json")
        assert code == 0
        plan = json.loads(out)["settings"]
        found = {key: plan[key]["value"] for key in ("attack.eps", "attack.step_size", "run.batch_size")}
        assert found == pytest.approx({"attack.eps": eps, "attack.step_size": step, "run.batch_size": 128})


def test_the_default_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert default_root() == tmp_path / "cache/advkit"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the XDG specification: ignored
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_root() == tmp_path / "home/.cache/advkit"
    monkeypatch.setenv("ADVKIT_DATA", "~/data")
    assert default_root() == tmp_path / "home/data"
    COPIES["svhn"].write(tmp_path / "home/data")
    assert len(Svhn().load(None, None).train) == TRAIN
    code, _, err = advkit("train", "--dataset", "cifar10", "--dry-run")
    assert code == 4
    assert f"advkit data prepare cifar10 --data-root {tmp_path}/home/data" in err


def test_a_legacy_file_of_torchvision_is_not_read(tmp_path: Path) -> None:
    """Old releases left FashionMNIST/processed/*.pt, which torchvision's class prefers; nobody knows their MD5."""
    root = COPIES["fashion-mnist"].write(tmp_path)
    (root / "FashionMNIST/processed").mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(7, 28, 28, dtype=torch.uint8), torch.arange(7)), root / "FashionMNIST/processed" / name)
    assert len(datasets.FashionMNIST(str(root))) == 7  # as said
    assert len(FashionMnist().load(root, None).train) == TRAIN


# --- refusals


def refused(copy: Copy, root: Path) -> str:
    """What training on it says: one sentence, exit code 4, nothing on stdout."""
    code, out, err = advkit("train", "--dataset", copy.kind.name, "--data-root", root, "--dry-run")
    assert (code, out, err.count("\n")) == (4, "", 1)
    return err.removeprefix("Error: ").removesuffix("\n")


def test_absent_files_are_one_sentence(copy: Copy, tmp_path: Path) -> None:
    root = tmp_path / "my data"
    for file in reversed(copy.files):
        command = f"`advkit data prepare {copy.kind.name} --data-root '{root}'`"
        assert refused(copy, root) == f"{copy.kind.name} is not in {root}: {next(iter(copy.files))} is absent; " + (
            f"get it with {command}, from local copies with --from FOLDER."
        )
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(copy.files[file])
    assert copy.kind().load(root, None)


def change(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "a flipped bit": change,
    "half": lambda content: content[: len(content) // 2],
    "nothing": lambda content: b"",
    "a byte more": lambda content: content + b"\0",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_any_damaged_file_is_one_sentence(copy: Copy, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    root = copy.write(tmp_path)
    for file, content in copy.files.items():
        (root / file).write_bytes(damage(content))
        with pytest.raises(DataError) as error:
            copy.kind().load(root, None)
        assert str(error.value) == (
            f"{root / file} is damaged: its MD5 is not that of the published file; "
            f"replace it with `advkit data prepare {copy.kind.name} --data-root {root}`."
        )
        (root / file).write_bytes(content)
    (root / file).write_bytes(damage(content))
    assert refused(copy, root) == str(error.value)


def test_things_that_are_no_files_are_one_sentence(tmp_path: Path) -> None:
    copy = COPIES["svhn"]
    root = copy.write(tmp_path)
    (root / "train_32x32.mat").unlink()
    os.mkfifo(root / "train_32x32.mat")  # opening it would wait for ever
    sentence = "can not be read (it is no file); check its permissions, or remove it."
    assert refused(copy, root) == f"{root}/train_32x32.mat {sentence}"
    (root / "train_32x32.mat").unlink()
    (root / "train_32x32.mat").mkdir()
    assert refused(copy, root) == f"{root}/train_32x32.mat {sentence}"
    (root / "file").write_bytes(b"")
    assert "is absent; get it with" in refused(copy, root / "file")


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_no_file_is_unpickled_before_its_checksum_fits(name: str, tmp_path: Path) -> None:
    copy, mark = COPIES[name], tmp_path / "mark"
    bomb = pickle.dumps(Bomb(mark))
    for file, content in copy.files.items():
        root = copy.write(tmp_path / "data")
        (root / file).write_bytes(bomb)
        assert "is damaged" in refused(copy, root)
        given = shutil.copytree(root, tmp_path / "given")
        (root / file).unlink()
        assert "is damaged" in sentence(advkit("data", "prepare", name, "--data-root", root, "--from", given))
        shutil.rmtree(given)
        assert not mark.exists()
        (root / file).write_bytes(content)
    pickle.loads(bomb)
    assert mark.exists()  # the bomb works


def test_no_network_is_used_but_by_prepare(copy: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def offline(*arguments: object, **_: object) -> None:
        asked.append(arguments)
        raise OSError("Network is unreachable")

    monkeypatch.setattr("socket.getaddrinfo", offline)
    monkeypatch.setattr("socket.socket.connect", offline)
    assert "is absent" in refused(copy, tmp_path / "empty")
    assert copy.kind().load(copy.write(tmp_path / "full"), None)
    assert prepare(copy.kind(), tmp_path / "full") == []
    assert not asked
    found = sentence(advkit("data", "prepare", copy.kind.name, "--data-root", tmp_path / "empty"))
    assert asked
    assert found.startswith(f"{copy.kind.name} can not be downloaded (")
    assert "Network is unreachable" in found
    assert found.endswith(f"; try again, or get it from {copy.kind.origin} elsewhere and name it with --from FILE.")
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize("absent", ["torchvision", "torchvision.datasets", "scipy", "scipy.io"])
def test_without_the_extra_there_is_one_sentence(absent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = COPIES["svhn"]
    for name in [name for name in sys.modules if name.split(".")[0] == absent.split(".")[0]]:
        monkeypatch.setitem(sys.modules, name, None)  # import raises ImportError
    found = refused(copy, copy.write(tmp_path))
    assert found.startswith("This data set needs torchvision and scipy (")
    assert found.endswith("); pip install 'advkit[vision]'.")
    if absent.startswith("torchvision"):
        assert sentence(advkit("data", "prepare", "svhn", "--data-root", tmp_path / "new")) == found
        given = copy.write(tmp_path / "given")
        assert advkit("data", "prepare", "svhn", "--data-root", tmp_path / "new", "--from", given)[0] == 0


def test_a_torchvision_that_does_not_fit_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist\nat all")

    monkeypatch.setattr("advkit.data.vision.import_module", broken)
    found = refused(COPIES["cifar10"], COPIES["cifar10"].write(tmp_path))
    assert found == (
        "This data set needs torchvision and scipy (operator torchvision::nms does not exist at all); "
        "pip install 'advkit[vision]'."
    )


def test_nothing_of_torchvision_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys; from advkit.data.vision import Svhn; import advkit.data.prepare, advkit.cli.data\n"
        "from pathlib import Path; from advkit.errors import DataError\n"
        "try: Svhn().load(Path('/nowhere'), None)\n"
        "except DataError: print([name for name in sys.modules if name.split('.')[0] in ('torchvision', 'scipy')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


# --- prepare


def sentence(ran: tuple[int, str, str]) -> str:
    code, out, err = ran
    assert (code, out, err.count("\n")) == (4, "", 1)
    return err.removeprefix("Error: ").removesuffix("\n")


def tar(files: Mapping[str, bytes], path: Path, prefix: str = "") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for file, content in files.items():
            info = tarfile.TarInfo(prefix + file)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def zipped(files: Mapping[str, bytes], path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, content in files.items():
            archive.writestr(file, content)
    return path


def flat(copy: Copy, prefix: str = "") -> dict[str, bytes]:
    return {prefix + Path(file).name: content for file, content in copy.files.items()}


def gz(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{name}.gz": gzip.compress(content) for name, content in files.items()}


def folder(files: Mapping[str, bytes], path: Path) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def inner(copy: Copy, at: Path) -> dict[str, bytes]:
    """The published archive, as a file in something else."""
    name = copy.kind.archive or "whatever.zip"
    make = tar if copy.kind.archive else zipped
    return {f"sub/{name}": make(copy.files, at.with_name(name)).read_bytes()}


GIVEN: dict[str, Callable[[Copy, Path], Path]] = {
    "a folder as torchvision leaves it": lambda copy, at: copy.write(at),
    "a flat folder": lambda copy, at: folder(flat(copy), at),
    "a folder of gz": lambda copy, at: folder(gz(flat(copy)), at),
    "a tar.gz": lambda copy, at: tar(copy.files, at.with_suffix(".tar.gz")),
    "a tgz": lambda copy, at: tar(flat(copy), at.with_suffix(".TGZ"), "./"),
    "a zip": lambda copy, at: zipped(copy.files, at.with_suffix(".zip")),
    "a zip of gz": lambda copy, at: zipped(gz(flat(copy, "top/")), at.with_suffix(".zip")),
}


@pytest.mark.parametrize("give", GIVEN.values(), ids=GIVEN)
def test_prepare_takes_local_files(copy: Copy, give: Callable[[Copy, Path], Path], tmp_path: Path) -> None:
    root, given = tmp_path / "new/root", give(copy, tmp_path / "given")
    command = ("data", "prepare", copy.kind.name, "--data-root", root, "--from", given)
    following = f"Next: advkit train --dataset {copy.kind.name} --data-root {root}\n"
    assert advkit(*command) == (0, f"{copy.kind.name} is in {root}.\n{following}", "")
    assert copy.intact(root) == dict.fromkeys(copy.files, True)
    found = [path for path in root.rglob("*") if not path.is_dir()]
    assert len(found) == len(copy.files)
    stamps = {path: path.stat().st_mtime_ns for path in found}
    assert advkit(*command) == (0, f"{copy.kind.name} was already in {root}.\n{following}", "")
    assert stamps == {path: path.stat().st_mtime_ns for path in found}
    assert copy.kind().load(root, None)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_prepare_finds_the_archive_in_a_folder_or_zip(name: str, tmp_path: Path) -> None:
    copy = COPIES[name]
    files = inner(copy, tmp_path / "archive")
    for number, source in enumerate((folder(files, tmp_path / "given"), zipped(files, tmp_path / "given.zip"))):
        assert list(prepare(copy.kind(), tmp_path / str(number), source)) == list(copy.files)
        assert copy.intact(tmp_path / str(number)) == dict.fromkeys(copy.files, True)


def test_prepare_replaces_damaged_files_and_keeps_the_others(copy: Copy, tmp_path: Path) -> None:
    root = copy.write(tmp_path / "root")
    first, *others = copy.files
    (root / first).write_bytes(b"damaged")
    stamps = {file: (root / file).stat().st_mtime_ns for file in others}
    assert prepare(copy.kind(), root, folder(flat(copy), tmp_path / "given")) == [first]
    assert copy.intact(root) == dict.fromkeys(copy.files, True)
    assert stamps == {file: (root / file).stat().st_mtime_ns for file in others}


def test_files_may_be_given_one_after_the_other(tmp_path: Path) -> None:
    copy = COPIES["svhn"]
    given, root = copy.write(tmp_path / "given"), tmp_path / "root"
    command = ("data", "prepare", "svhn", "--data-root", root, "--from")
    assert sentence(advkit(*command, given / "test_32x32.mat")) == (
        f"{given}/test_32x32.mat has no train_32x32.mat; get it from {Svhn.origin} and name it with --from."
    )
    assert copy.intact(root) == {"test_32x32.mat": True}
    assert advkit(*command, given / "train_32x32.mat")[0] == 0
    assert copy.intact(root) == dict.fromkeys(copy.files, True)


def test_prepare_tells_a_damaged_file_from_an_absent_one(
    copy: Copy, tmp_path: Path, denied: Callable[[Path], None]
) -> None:
    files = flat(copy)
    last = list(files)[-1]
    files[last] = change(files[last])
    given, root = folder(files, tmp_path / "given"), tmp_path / "root"
    command = ("data", "prepare", copy.kind.name, "--data-root", root, "--from")
    advice = f"get it from {copy.kind.origin} and name it with --from."
    assert sentence(advkit(*command, given)) == (
        f"{last} in {given} is damaged: its MD5 is not that of the published file; {advice}"
    )
    (given / last).unlink()
    assert sentence(advkit(*command, given)) == f"{given} has no {last}; {advice}"
    assert sentence(advkit(*command, tmp_path / "nothing")) == (
        f"{tmp_path}/nothing is neither a file nor a folder; check --from."
    )
    intact = copy.intact(root)
    assert len(intact) == len(copy.files) - 1 and all(intact.values())
    denied(given)
    for words in (command, ("data", "prepare", "mapped", "--data-root", tmp_path / "new", "--from")):
        assert sentence(advkit(*words, given)) == (
            f"{given} can not be read (Permission denied); check its permissions."
        ), "which is neither absent nor damaged"


@pytest.mark.parametrize("give", [GIVEN["a tar.gz"], GIVEN["a zip of gz"], GIVEN["a folder of gz"]])
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1), kind=st.sampled_from(list(KINDS)), cut=st.booleans())
def test_of_any_damaged_archive_only_intact_files_are_taken(
    tmp_path: Path, give: Callable[[Copy, Path], Path], where: float, kind: str, cut: bool
) -> None:
    copy, work = COPIES[kind], Path(tempfile.mkdtemp(dir=tmp_path))
    given = give(copy, work / "given")
    victim = next(iter(sorted(given.iterdir()))) if given.is_dir() else given
    content = victim.read_bytes()
    at = int(where * (len(content) - 1))
    victim.write_bytes(content[:at] if cut else content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
    root, complaint = work / "root", ""
    try:
        prepare(copy.kind(), root, given)
    except DataError as error:
        complaint = str(error)
    intact = copy.intact(root)
    assert all(intact.values()) and "\n" not in complaint
    assert str(given) in complaint if complaint else len(intact) == len(copy.files)
    assert not list(root.glob(".advkit-*"))


def test_a_half_downloaded_archive_is_one_sentence(tmp_path: Path) -> None:
    copy = COPIES["cifar10"]
    whole = tar(copy.files, tmp_path / "cifar-10-python.tar.gz").read_bytes()
    for share in (0, 0.01, 0.3, 0.7, 0.97):
        half = tmp_path / "half.tar.gz"
        half.write_bytes(whole[: int(share * len(whole))])
        found = sentence(advkit("data", "prepare", "cifar10", "--data-root", tmp_path / "root", "--from", half))
        assert found.startswith(f"{half} can not be read (") and found.endswith("; replace it by an intact copy.")


def test_archives_can_not_write_elsewhere(tmp_path: Path) -> None:
    copy = COPIES["svhn"]
    secret = tmp_path / "secret"
    secret.write_text("x")
    path = tar({f"../../{name}": content for name, content in flat(copy).items()}, tmp_path / "given.tar.gz")
    with tarfile.open(tmp_path / "links.tar.gz", "w:gz") as archive:
        for name in flat(copy):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, str(secret)
            archive.addfile(link)
    before = set(tmp_path.rglob("*"))
    prepare(copy.kind(), tmp_path / "a/b/here", path)
    assert copy.intact(tmp_path / "a/b/here") == dict.fromkeys(copy.files, True)
    with pytest.raises(DataError, match="has no train_32x32"):
        prepare(copy.kind(), tmp_path / "a/b/other", tmp_path / "links.tar.gz")
    new = set(tmp_path.rglob("*")) - before
    assert {str(each.relative_to(tmp_path)) for each in new} == {"a", "a/b", "a/b/here", "a/b/other"} | {
        f"a/b/here/{name}" for name in copy.files
    }


def test_a_file_that_unpacks_to_no_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("advkit.data.prepare.MAX_BYTES", 5 << 20)
    assert MAX_BYTES > 500 << 20  # CIFAR-100's largest file has 155 MB
    endless = {"train_32x32.mat": b"\0" * (64 << 20), "test_32x32.mat": COPIES["svhn"].files["test_32x32.mat"]}
    written = []
    real = hashlib.md5

    class Counting:
        def __init__(self, **_: object) -> None:
            self.hash = real()

        def update(self, chunk: bytes) -> None:
            written.append(len(chunk))
            self.hash.update(chunk)

        def hexdigest(self) -> str:
            return self.hash.hexdigest()

    monkeypatch.setattr("advkit.data.prepare.hashlib.md5", Counting)
    with pytest.raises(DataError, match=r"train_32x32\.mat in .* is damaged"):
        prepare(Svhn(), tmp_path / "root", zipped(endless, tmp_path / "given.zip"))
    assert sum(written) < 8 << 20


def test_a_root_that_can_not_be_written_is_one_sentence(tmp_path: Path) -> None:
    copy = COPIES["svhn"]
    given = copy.write(tmp_path / "given")
    (tmp_path / "file").write_bytes(b"")
    for root in (tmp_path / "file", tmp_path / "file/below"):
        found = sentence(advkit("data", "prepare", "svhn", "--data-root", root, "--from", given))
        assert found.startswith(f"{root} can not be written (") and found.endswith("; choose another --data-root.")


# --- download, from a server on this machine


@pytest.fixture
def net(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address where it is served."""

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path / "net"))

        def log_message(self, *_: object) -> None: ...

        def copyfile(self, source: Any, outputfile: Any) -> None:
            content = source.read()
            outputfile.write(content[: len(content) // 2] if (tmp_path / "cut").exists() else content)

    (tmp_path / "net").mkdir()
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield tmp_path / "net", f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def published(patch: pytest.MonkeyPatch, copy: Copy, net: tuple[Path, str]) -> list[Path]:
    """Let torchvision download the copy from the server; the files to be fetched."""
    at, url = net
    if copy.kind is FashionMnist:
        files = gz(flat(copy))
        patch.setattr(datasets.FashionMNIST, "mirrors", [f"{url}/"])
        patch.setattr(datasets.FashionMNIST, "resources", [(name, md5(content)) for name, content in files.items()])
        folder(files, at)
    elif copy.kind is Svhn:
        copy.write(at)
        lists = {n.split("_")[0]: [f"{url}/{n}", n, s] for n, s in Svhn.files.items()}
        patch.setattr(datasets.SVHN, "split_list", lists)
    else:
        reader = getattr(datasets, copy.kind.reader)  # type: ignore[attr-defined]
        archive = tar(copy.files, at / reader.filename)
        patch.setattr(reader, "url", f"{url}/{archive.name}")
        patch.setattr(reader, "tgz_md5", md5(archive.read_bytes()))
    return sorted(at.iterdir())


def test_prepare_downloads(copy: Copy, net: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = published(monkeypatch, copy, net)
    root = tmp_path / "cache/advkit"
    code, out, _ = advkit("data", "prepare", copy.kind.name)
    following = f"Next: advkit train --dataset {copy.kind.name}\n"
    assert (code, out) == (0, f"{copy.kind.name} is in {root}.\n{following}")
    assert copy.intact(root) == dict.fromkeys(copy.files, True)
    assert copy.kind().load(None, None)
    assert not list(root.glob(".*"))
    for file in fetched:
        file.unlink()
    assert advkit("data", "prepare", copy.kind.name)[:2] == (
        0,
        f"{copy.kind.name} was already in {root}.\n{following}",
    )


@pytest.mark.parametrize("damage", [*DAMAGE.values(), None], ids=[*DAMAGE, "absent"])
def test_a_failing_download_leaves_nothing(
    copy: Copy,
    net: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[bytes], bytes] | None,
) -> None:
    for file in published(monkeypatch, copy, net):
        content = file.read_bytes()
        file.unlink()
        if damage:
            file.write_bytes(damage(content))
        with pytest.raises(DataError) as error:
            prepare(copy.kind(), tmp_path / "root")
        assert str(error.value).startswith(f"{copy.kind.name} can not be downloaded (")
        assert "\n" not in str(error.value)
        assert not list((tmp_path / "root").iterdir())
        file.write_bytes(content)
    assert prepare(copy.kind(), tmp_path / "root") == list(copy.files)


def test_a_download_that_breaks_off_leaves_nothing(
    copy: Copy, net: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(monkeypatch, copy, net)
    (tmp_path / "cut").touch()
    with pytest.raises(DataError, match=f"^{copy.kind.name} can not be downloaded"):
        prepare(copy.kind(), tmp_path / "root")
    assert not list((tmp_path / "root").iterdir())
    (tmp_path / "cut").unlink()
    assert prepare(copy.kind(), tmp_path / "root") == list(copy.files)


def test_an_interrupted_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: object, loader: object, into: Path) -> None:
        (into / "train_32x32.mat").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Svhn, "download", interrupted)
    assert advkit("data", "prepare", "svhn", "--data-root", tmp_path / "root") == (130, "", "\nInterrupted.\n")
    assert not list((tmp_path / "root").iterdir())


# --- the commands


def test_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = COPIES["svhn"].write(tmp_path / "root")
    (root / "cifar-100-python").mkdir()
    code, out, err = advkit("data", "list", "--data-root", root, "--json")
    assert (code, err) == (0, "")
    found = {each["name"]: each for each in json.loads(out)}
    assert list(found) == sorted(found) and found.keys() >= {"digits", "image-folder", *KINDS}
    assert found["svhn"] == {
        "name": "svhn",
        "distribution": "advkit",
        "version": "0.1.0",
        "summary": (Svhn.__doc__ or "").splitlines()[0],
        "classes": 10,
        "shape": [3, 32, 32],
        "images": [73257, 26032],
        "root": str(root),
        "present": True,
    }
    assert found["cifar100"]["present"] is False and found["cifar100"]["classes"] == 100
    monkeypatch.setenv("ADVKIT_DATA", str(root))
    (root / "test_32x32.mat").unlink()
    code, out, err = advkit("data", "list")
    assert (code, err) == (0, "")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "73,257 + 26,032  absent " in lines["svhn"]
    assert lines["digits"].endswith("no download.") or "no download." in lines["digits"]
    assert out.endswith(f"Files are looked for in {root}; `advkit data prepare NAME` gets those of a data set.\n")


def test_prepare_refuses_what_needs_no_files() -> None:
    for name in ("digits", "image-folder"):
        assert advkit("data", "prepare", name) == (
            2,
            "",
            f"Error: {name} has no files to prepare; `advkit data list` shows which data sets have.\n",
        )
    code, _, err = advkit("data", "prepare", "cifar")
    assert code == 2 and err.startswith("Error: Unknown data set cifar. Did you mean cifar10?")


def test_a_run_on_local_files(tmp_path: Path) -> None:
    root = COPIES["fashion-mnist"].write(tmp_path / "data")
    flags = ["--dataset", "fashion-mnist", "--epochs", 1, "--progress", "none"]
    flags += ["--set", "attack.steps=1", "--set", "model.width=2"]
    out = tmp_path / "run"
    assert advkit("train", *flags, "--data-root", root, "--out", out) == (0, "", "")
    code, table, _ = advkit("evaluate", out, "--json")
    assert code == 0 and json.loads(table)
    file = root / "FashionMNIST/raw/t10k-labels-idx1-ubyte"
    file.write_bytes(change(file.read_bytes()))
    code, _, err = advkit("evaluate", out)
    assert code == 4 and "is damaged" in err


@pytest.mark.data
def test_the_real_fashion_mnist_as_published(tmp_path: Path) -> None:
    folder = os.environ.get("ADVKIT_TEST_DATA")
    if not folder:
        pytest.skip("ADVKIT_TEST_DATA does not name a folder with fashion-mnist/*.gz")
    assert prepare(FashionMnist(), tmp_path, Path(folder) / "fashion-mnist") == list(FashionMnist.files)
    splits = FashionMnist().load(tmp_path, None)
    assert (len(splits.train), len(splits.test)) == (60_000, 10_000)
    assert splits.train.labels.bincount().tolist() == [6000] * 10
    mean, std = splits.train.statistics()
    assert (*mean, *std) == pytest.approx((0.2860, 0.3530), abs=1e-4)  # as everybody quotes them
