"""A run that begins with weights is told where the net that they are of computed something else with them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from heard import Heard
from torch import nn

import advkit
from advkit import AdvkitError, CheckpointError, DataError, Dataset, Splits
from advkit.config.layer import Layer
from advkit.config.resolve import resolve
from advkit.storage.weights import digest
from advkit.training.beginning import begin_from
from advkit.training.parts import build_model

TINY: dict[str, Any] = {"attack.steps": 0, "run.epochs": 1, "run.batch_size": 8, "run.threads": 1}
NETS: dict[str, dict[str, Any]] = {
    "small-cnn": {"model.width": 1},
    "wide-resnet": {"model.depth": 10, "model.width": 1},
    "timm:test_resnet": {},
    "timm:test_resnet.r160_in1k": {},
}


def images(scale: int = 1, classes: tuple[str, ...] = ("a", "b", "c")) -> Dataset:
    values = torch.arange(8 * 3 * 64, dtype=torch.int32).mul(97) % 256 // scale
    return Dataset("own", values.to(torch.uint8).view(8, 3, 8, 8), torch.arange(8) % 3, classes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a run of a net, made once."""
    made = dict[str, Path]()

    def run(name: str, **options: Any) -> Path:
        if name.startswith("timm"):
            pytest.importorskip("timm", reason="pip install 'advkit[timm]'")
        key = f"{name} {options}"
        if key not in made:
            folder = tmp_path_factory.mktemp("runs") / "run"
            settings = TINY | NETS[name] | {f"model.{option}": value for option, value in options.items()}
            advkit.train(name, Splits(images(), images(), "none"), settings=settings, out=folder)
            made[key] = folder
        return made[key]

    return run


def begun(path: Path, name: str, data: Dataset, **options: Any) -> str:
    """What is said where a run begins with the weights at `path`."""
    settings = {"model.name": name} | NETS[name] | {f"model.{option}": value for option, value in options.items()}
    resolved, told = resolve((), [Layer("python", settings)]), list[str]()
    begin_from(path, build_model(resolved, data), resolved, data, False, told.append)
    return " ".join(told)


def exported(run: Path, name: str, folder: Path, hub: bool = False, **options: Any) -> Path:
    """The weights of a run as `advkit export` leaves them, for the `hub` by timm's names, as far as they are read."""
    data = images()
    model = build_model(resolve((), [Layer("python", {"model.name": name, **NETS[name]})]), data)
    advkit.load_weights(model, run)
    mean, std = data.statistics()
    known = {"architecture": name.partition(":")[0], "architecture_options": options, "classes": list(data.classes)}
    known |= {"mean": list(mean), "std": list(std), "sha256_of_weights": digest(model.state_dict())}
    (folder / "export.json").write_text(json.dumps(known))
    named = {key.removeprefix("net.") if hub else key: value for key, value in model.state_dict().items()}
    torch.save(named, folder / "model.pt")
    return folder / "model.pt"


@pytest.mark.parametrize("export", [False, True])
def test_a_stored_normalisation_stays_that_of_the_weights(
    trained: Callable[..., Path], tmp_path: Path, export: bool
) -> None:
    path = trained("small-cnn")
    path = exported(path, "small-cnn", tmp_path) if export else path
    assert not begun(path, "small-cnn", images())
    assert re.search(r"its normalisation, .*, is taken, not the net's \(", begun(path, "small-cnn", images(4)))
    for how in ("0.5,0.25", "none"):
        with pytest.raises(CheckpointError, match=rf"and model\.normalise = {how} is another; set ") as no:
            begun(path, "small-cnn", images(4), normalise=how)
    assert not begun(path, "small-cnn", images(4), normalise=str(no.value).partition("set model.normalise=")[2][:-1])


@pytest.mark.parametrize("export", ["", "plain", "hub"])
def test_a_normalisation_that_no_weights_hold_is_not_lost(
    trained: Callable[..., Path], tmp_path: Path, export: str
) -> None:
    name = "timm:test_resnet"
    path = trained(name)
    path = exported(path, name, tmp_path, hub=export == "hub") if export else path
    numbers = ",".join(str(part) for both in images().statistics() for part in both)
    for fits in ("data", numbers):
        assert not begun(path, name, images(), normalise=fits)
        assert not begun(path, f"{name}.r160_in1k", images(), normalise=fits), "the tag makes it no other net"
    for other in ("none", "weights", "0.5,0.25"):
        with pytest.raises(CheckpointError, match=rf"model\.normalise = {other}.* is another; set model\.normalise="):
            begun(path, name, images(), normalise=other)
    with pytest.raises(CheckpointError, match=r"model\.normalise="):
        begun(path, name, images(4))
    with pytest.raises(DataError, match="is of the classes a, b, c, in that order"):
        begun(path, name, images(classes=("b", "a", "c")))
    said = begun(path, name, images(4), normalise=numbers)
    assert said == "" if export else re.search(r"on other images.* model\.normalise = .* is taken as it is", said)


def test_a_net_without_normalisation_gets_none(trained: Callable[..., Path]) -> None:
    path = trained("small-cnn", normalise="none")
    assert not begun(path, "small-cnn", images(4), normalise="none")
    with pytest.raises(CheckpointError, match=r"model\.normalise = data; set model\.normalise=none\."):
        begun(path, "small-cnn", images())


@pytest.mark.parametrize("export", [False, True])
def test_options_that_are_others_are_named(trained: Callable[..., Path], tmp_path: Path, export: bool) -> None:
    path = trained("wide-resnet")
    path = exported(path, "wide-resnet", tmp_path, variant="trades") if export else path
    assert not begun(path, "wide-resnet", images())
    said = begun(path, "wide-resnet", images(), variant="iseat")
    assert (
        said == f"{path} is of a net with model.variant trades (now iseat), so its weights may compute something "
        "else here"
    )


@pytest.mark.parametrize("export", [False, True])
def test_classes_in_another_order_are_refused(trained: Callable[..., Path], tmp_path: Path, export: bool) -> None:
    path = trained("small-cnn")
    path = exported(path, "small-cnn", tmp_path) if export else path
    with pytest.raises(DataError, match=r"is of the classes a, b, c, in that order, and .* another, b, a, c; bring"):
        begun(path, "small-cnn", images(classes=("b", "a", "c")))
    assert not begun(path, "small-cnn", images(classes=("x", "y", "z"))), "as of any transfer"


@pytest.mark.parametrize("broken", ["", "[]", "{", '{"sha256_of_weights": 1}', "[" * 100_000, "odd"])
def test_an_export_json_of_anybody_is_no_obstacle(trained: Callable[..., Path], tmp_path: Path, broken: str) -> None:
    path = exported(trained("small-cnn"), "small-cnn", tmp_path)
    record = tmp_path / "export.json"
    odd = json.loads(record.read_text()) | {"architecture_options": 3, "classes": "abc", "mean": [None], "std": ["1"]}
    record.write_text(json.dumps(odd) if broken == "odd" else broken)
    assert not begun(path, "small-cnn", images())


def test_an_evaluation_takes_what_the_export_knows(trained: Callable[..., Path], tmp_path: Path) -> None:
    from advkit.training.beginning import put_file

    path = exported(trained("timm:test_resnet"), "timm:test_resnet", tmp_path)
    resolved = resolve((), [Layer("python", {"model.name": "timm:test_resnet"})])
    model: Any = build_model(resolved, images(4))
    assert "is taken, not the net's" in put_file(model, path, resolved).said
    assert model.normalise.mean.flatten().tolist() == pytest.approx(images().statistics()[0], rel=1e-6)
    with pytest.raises(AdvkitError, match="bring them into that of the weights"):
        put_file(model, path, resolved, classes=("c", "b", "a"))


def test_a_passed_net_is_told_of_its_own_layer(trained: Callable[..., Path], tmp_path: Path) -> None:
    def net(mean: float) -> nn.Module:
        return nn.Sequential(advkit.Normalize((mean,) * 3, (0.5,) * 3), nn.Flatten(), nn.Linear(192, 3))

    splits, heard = Splits(images(), images(), "none"), Heard()
    advkit.train(net(0.5), splits, settings=TINY, out=tmp_path / "run")
    for mean in (0.5, 0.25):
        model = net(mean)
        advkit.train(model, splits, settings=TINY, init_from=tmp_path / "run", progress=heard)
        assert len([one for one in heard.said if "its normalisation, 0.mean and 0.std" in one]) == (mean == 0.25)
        assert model[0].mean.unique().item() == 0.5  # type: ignore[index]
