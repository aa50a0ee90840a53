"""Labels that a run's net gives: recorded with whose they are, and what robust self-training trains on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from advkit import mapped_images, train
from advkit.cli.main import run
from advkit.data.mapped import manifest_of
from advkit.evaluation.results import BATCH
from advkit.storage.weights import digest
from advkit.studies.subject import of_run


@pytest.fixture(scope="module")
def standard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net of standard training."""
    folder = tmp_path_factory.mktemp("pseudo") / "standard"
    settings = {"attack.steps": 0, "model.width": 4, "data.limit": 200}
    train("small-cnn", "digits", epochs=1, settings=settings, out=folder)
    return folder


@pytest.fixture
def unlabelled(tmp_path: Path) -> Path:
    """More than one batch of images, all different."""
    images = np.random.default_rng(0).integers(0, 256, (BATCH + 20, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "plain.npz", image=images)
    return tmp_path / "plain.npz"


def test_the_labels_are_the_nets_and_say_so(
    standard: Path, unlabelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "extra"
    assert run(["data", "pseudo-label", str(unlabelled), "--with", str(standard), "--out", str(out)]) == 0
    images, net = mapped_images(out), of_run(standard).model.eval()
    assert torch.equal(images.labels, net(images.images / 255).argmax(1)) and len(images.labels.unique()) > 1
    assert torch.equal(images.images, torch.from_numpy(np.load(unlabelled)["image"]).permute(0, 3, 1, 2))
    record = json.loads((out / "manifest.json").read_text())["labelled_by"]
    weights = digest(net.state_dict())
    place = {"run": str(standard), "checkpoint": "last", "weights": "raw", "epoch": 0}
    assert record == {**place, "sha256_of_weights": weights}
    capsys.readouterr()
    assert run(["data", "check", str(out)]) == 0
    assert f"Their labels are those of {standard} (checkpoint last, weights {weights})" in capsys.readouterr().out
    again = tmp_path / "again"
    assert run(["data", "pseudo-label", str(out), "--with", str(standard), "--out", str(again)]) == 0
    assert mapped_images(again).fingerprint() == images.fingerprint()


def test_what_is_noted_of_the_run_goes_with_its_labels(
    standard: Path,
    unlabelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the folder's document, on the screen, and wherever the folder is looked at again."""
    code, doubted, out = "The code of the net is another", "so are the labels", tmp_path / "extra"
    monkeypatch.setattr("advkit.studies.subject.changes", lambda *_: {code: "model.name"})
    monkeypatch.setattr("advkit.studies.pseudo_labels.doubt", lambda *_: doubted)
    assert run(["data", "pseudo-label", str(unlabelled), "--with", str(standard), "--out", str(out)]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["labelled_by"]["notes"], manifest["labelled_by"]["doubt"]) == ([code], doubted)
    said = f". Note: {code}. Note: {doubted}.\n"
    assert said in capsys.readouterr().out
    monkeypatch.undo()
    assert run(["data", "check", str(out)]) == 0 and said in capsys.readouterr().out
    manifest["labelled_by"]["notes"] = 3
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert run(["data", "check", str(out)]) == 0 and f"). Note: {doubted}.\n" in capsys.readouterr().out


def test_images_that_judge_the_run_are_told_among_those_it_labels(
    standard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, net = tmp_path / "extra", of_run(standard)
    np.savez(tmp_path / "test.npz", image=net.images("test", 3).images.permute(0, 2, 3, 1).numpy())
    for data, said in (("digits", "20 of 20 held-out images"), (str(tmp_path / "test.npz"), "3 of 200 test images")):
        assert run(["data", "pseudo-label", data, "--with", str(standard), "--out", str(out)]) == 0
        assert f"As extra images beside those of {standard}: {said} are in {out}" in capsys.readouterr().out
        out = tmp_path / "more"


def test_robust_self_training_goes_on_from_there(standard: Path, tmp_path: Path) -> None:
    """TRADES with extra data, and logit stability as well."""
    out = tmp_path / "extra"
    assert run(["data", "pseudo-label", "digits", "--with", str(standard), "--out", str(out)]) == 0
    assert manifest_of(out).splits.keys() == {"train"}
    small = {"model.width": 4, "attack.steps": 1, "data.limit": 40}
    result = train(
        recipe="rst-mini", plugins=["trades", "extra-data", "lsiw"], options={"extra-data": {"root": str(out)}},
        settings=small, epochs=1,
    )  # fmt: skip
    assert result.history[0]["loss"] > 0


@pytest.mark.parametrize(
    ("data", "out", "code", "sentence"),
    [
        ("a b", "new", 2, "a b holds no arrays; make some of its pictures: advkit data prepare mapped --from 'a b' --"),
        ("colour.npz", "new", 4, "The images of colour.npz are (3, 8, 8), those of the run (1, 8, 8); resize them."),
        ("other.npz", "new", 4, "other.npz has x; an npz of images has the array `image`."),
        ("plain.npz", "a b", 2, "a b exists; name a new folder with --out, or remove it."),
        ("plain.npz", "plain.npz/new", 2, "plain.npz/new can not be written (File exists); choose another --out."),
        ("image-folder", "new", 2, "image-folder reads what a place holds; name the folder or zip itself, not image-"),
        ("none", "new", 4, "none is neither an npz, nor a folder or zip of class folders"),
    ],
)
def test_what_can_not_be_labelled_is_said(
    data: str, out: str, code: int, sentence: str, standard: Path, unlabelled: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b").mkdir()
    np.savez(tmp_path / "colour.npz", image=np.zeros((2, 8, 8, 3), np.uint8))
    np.savez(tmp_path / "other.npz", x=np.zeros(1))
    assert run(["data", "pseudo-label", data, "--with", str(standard), "--out", out]) == code
    assert sentence in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a b", "colour.npz", "other.npz", "plain.npz"]


def test_a_net_that_answers_nan_gives_no_labels(
    standard: Path,
    unlabelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("advkit.studies.pseudo_labels.checked_logits", lambda logits, *_: logits * torch.nan)
    assert run(["data", "pseudo-label", str(unlabelled), "--with", str(standard), "--out", str(tmp_path / "m")]) == 1
    assert "has logits of NaN or Inf on these images, so it gives no labels." in capsys.readouterr().err
    assert not (tmp_path / "m").exists()
