"""Exports for the Hugging Face Hub: the card says what is known of these weights and no more; timm loads its nets."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

import advkit
from advkit.cli.main import run
from advkit.models.base import Normalize
from advkit.studies import export

TRAINED = "advkit train --config run.toml"
QUICK = {"data.limit": 40, "model.width": 2, "attack.steps": 1, "validation.steps": 1}


def test_a_card_of_standard_training_names_no_attack(tmp_path: Path) -> None:
    home = tmp_path / "run"
    advkit.train(epochs=1, settings=QUICK | {"attack.steps": 0}, out=home)
    advkit.evaluate(home, attacks="pgd-1", n=4, eps=1e-3, audit=False)
    known = json.loads((home / "environment.json").read_text())
    (home / "environment.json").write_text(json.dumps(known | {"notes": ["\x1b[2Jhi\n# Robust\n<b>"]}))
    home = home.rename(tmp_path / "run\x1b[2J\n# Robust")
    advkit.export(home, tmp_path / "plain")
    advkit.export(home, tmp_path / "net", hub=True)
    card, readme = ((tmp_path / name).read_text() for name in ("net/README.md", "plain/README.txt"))
    for text in (card, readme):
        assert "\x1b" not in text and "\n# Robust" not in text and "\n- \\x1b[2Jhi\\n# Robust\\n" in text
    assert "<b>" not in card and "\n# run\\x1b[2J\\n# Robust\n" in card
    assert "(standard training) on images that\nnothing attacked.\nIt takes images in [0, 1]" in card
    assert "PGD-AT" not in card and "rained against" not in card
    typed = f"'{tmp_path}/run\\x1b[2J\\n# Robust'"
    assert f"`advkit evaluate {typed} --attacks" in card and f"`advkit audit {typed}`" in card


@pytest.mark.usefixtures("quick_audit")
def test_a_card_says_what_is_known_of_these_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "run"
    advkit.train(plugins="cat-eps", eps="8/255", epochs=1, settings=QUICK, out=home)
    assert run(["export", str(home), "--out", str(tmp_path / "empty"), "--hub"]) == 0
    names = ["README.md", "config.json", "example.safetensors", "export.json", "model.pt2", "model.safetensors"]
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == names
    card = (tmp_path / "empty" / "README.md").read_text()
    assert f"Nothing is known of these weights: `advkit evaluate {home} --attacks clean,autoattack`" in card
    assert "Not audited for masked gradients yet" in card and "in\nlinf of 8/255" in card
    odd = home.rename(os.fsdecode(os.fsencode(home) + b"\xff"))  # a name that is no UTF-8
    advkit.export(odd, tmp_path / "odd", hub=True)
    assert "run\\udcff" in (tmp_path / "odd" / "README.md").read_text()
    odd.rename(home)
    advkit.evaluate(home, attacks="clean,pgd-1", n=20, eps=1e-3, audit=False)
    (small,) = home.glob("evaluations/*")
    advkit.export(home, tmp_path / "small", hub=True)
    assert "Trained against linf 8/255, where nothing is known of it yet" in (tmp_path / "small/README.md").read_text()
    both = advkit.evaluate(home, attacks="clean,pgd-1,pgd-1-l2", n=10, eps=2e-3, eps_l2=0.3, audit=False)
    judged = advkit.evaluate(home, attacks="clean,pgd-1", n=20)  # of the run's threat, which counts before others
    audit = advkit.audit(home, n=20)
    record = advkit.export(home, tmp_path / "net", hub=True)
    card = (tmp_path / "net" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: pytorch\n") and "\n- cat-eps\n---\n" in card
    for attack in judged.attacks:
        assert f"| {attack.accuracy:.4f} | {attack.interval[0]:.4f} to {attack.interval[1]:.4f} |" in card
    fields = json.loads(card.partition("```json\n")[2].partition("```")[0])
    assert fields["autoattack_acc"] is None and fields["clean_acc"] == f"{100 * judged.attacks[0].accuracy:.2f}"
    on = "test split, 20 of 40 images, chosen at random, seed 0, of data.limit=40, chosen at random, seed 0"
    assert card.count(f"On the {on}:") == 2 and f"Also evaluated: {on}, worst case" in card, "figures and audit"
    assert "at linf 0.001 under pgd-1." in card and "Trained against" not in card
    assert "at linf 0.002 under pgd-1." in card and "at l2 0.3 under pgd-1-l2." in card
    assert "Not evaluated under AutoAttack yet" in card and all(f"| {check.name} |" in card for check in audit.checks)
    assert all(f" | {check.images} | " in card for check in audit.checks) and any(check.of for check in audit.checks)
    assert audit.hopeless and f"Nothing was attacked: {audit.hopeless}." in card  # a net of no training
    assert judged.hopeless and f"There is nothing to be robust: {judged.hopeless}." in card
    assert (home / "run.toml").read_text().strip() in card
    config = json.loads((tmp_path / "net" / "config.json").read_text())
    assert config["architecture"] == "small-cnn" and config["num_classes"] == 10 and config["mean"] == record.mean
    # figures that their verdicts do not bear out are not published, which is said
    shutil.rmtree(small)
    shutil.rmtree(str(both.folder))
    (kept,) = home.glob("evaluations/*/*/evaluation.json")
    told = json.loads(kept.read_text())
    kept.write_text(json.dumps(told | {"worst_case": {"accuracy": 0.96, "interval": [0.9, 0.98]}}))
    note = f"What can not be believed is left out: {kept.parent}/verdicts.csv does not fit its evaluation.json"
    assert not record.notes and note in advkit.export(home, tmp_path / "forged", hub=True).notes[0]
    card = (tmp_path / "forged" / "README.md").read_text()
    assert "0.9600" not in card and note in card and "Nothing is known of these weights" in card
    # of the last weights, which nobody has judged, nothing is said of the best
    kept.write_text(json.dumps(told | {"sha256_of_weights": "0" * 64}))
    advkit.export(home, tmp_path / "other", hub=True)
    assert "Nothing is known of these weights" in (tmp_path / "other" / "README.md").read_text()
    # whose weights it began with belongs to how it was trained
    environment = json.loads((home / "environment.json").read_text())
    (home / "environment.json").write_text(json.dumps(environment | {"init_from": "runs/of AT"}))
    advkit.export(home, tmp_path / "begun", hub=True)
    assert f"`{TRAINED} --init-from 'runs/of AT'` with" in (tmp_path / "begun" / "README.md").read_text()
    assert f"`{TRAINED}` with" in card
    capsys.readouterr()
    assert run(["runs", "show", str(home)]) == 0 and re.search(r"--init-from +runs/of AT", capsys.readouterr().out)


@pytest.mark.parametrize("how", [{}, {"model.normalise": "none"}, {"model.resize": 16}], ids=str)
def test_timm_loads_its_own_nets(
    tmp_path: Path, how: dict[str, object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if how:
        monkeypatch.setattr(export, "_graph", lambda *_: (None, "not asked for"))  # which takes seconds
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        data = (torch.rand(12, 3, 16, 16) * 255).byte(), torch.arange(12) % 3
    settings = {"attack.steps": 1, "validation.fraction": 0, "attack.eps": 0.1, **how}
    name = "timm:test_resnet" + ("" if how else ".r160_in1k")  # whose weights these are no longer
    advkit.train(name, data, epochs=1, batch_size=6, settings=settings, out=tmp_path / "run")
    record = advkit.export(tmp_path / "run", tmp_path / "net", dataset=data, hub=True)
    apart = [note for note in record.notes or () if note.startswith("timm does not load it, for it resizes images")]
    assert bool(apart) is ("model.resize" in how)
    if apart:
        card = (tmp_path / "net" / "README.md").read_text()
        assert "library_name: pytorch" in card and "timm:test_resnet" in card
        return
    assert json.loads((tmp_path / "net" / "config.json").read_text())["architecture"] == "test_resnet"
    net = timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True).eval()
    example = safetensors.torch.load_file(tmp_path / "net" / "example.safetensors")
    normalise = Normalize(*(tuple(net.pretrained_cfg[name]) for name in ("mean", "std")))
    with torch.no_grad():
        assert torch.allclose(net(normalise(example["images"])), example["logits"], atol=1e-5)
    judged = advkit.evaluate(tmp_path / "run", dataset=data, attacks="clean", n=3, audit=False)
    assert judged.model == name and (judged.robustbench or {})["architecture"] == judged.model
    capsys.readouterr()
    assert run(["runs", "list", str(tmp_path), "--json"]) == 0
    assert [row["model"] for row in json.loads(capsys.readouterr().out)] == [name]
    card = (tmp_path / "net" / "README.md").read_text()
    assert "library_name: timm" in card and 'timm.create_model("hf-hub:USER/NAME"' in card
