"""What stands before a net's first convolution: the data's statistics, nothing, or numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import advkit
from advkit import registry
from advkit.cli.main import run
from advkit.config import runfile
from advkit.models.base import DataSpec
from advkit.options import validate

SPEC = DataSpec(3, 16, 16, 4, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
SMALL = {"small-cnn": {"width": 2}, "preact-resnet18": {"width": 2}, "vgg16-bn": {"width": 2}}
NETS: dict[str, dict[str, Any]] = SMALL | {"wide-resnet": {"depth": 10, "width": 1}}


def built(name: str, **options: Any) -> nn.Module:
    builder: Any = registry.load("model", name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net: nn.Module = builder(validate(builder.Options, NETS[name] | options, where="model")).build(SPEC).eval()
    return net


@pytest.mark.parametrize("name", NETS)
def test_the_first_layer_is_as_it_is_told(name: str) -> None:
    x = torch.rand(2, 3, 16, 16)
    data, none = built(name), built(name, normalise="none")
    own, one = built(name, normalise="0.1,0.2,0.3,0.4,0.5,0.6"), built(name, normalise="1/2,0.25")
    with torch.no_grad():
        assert torch.equal(own(x), data(x))
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (SPEC.mean, SPEC.std))
        assert torch.equal(none((x - mean) / std), data(x))
        assert torch.equal(none((x - 0.5) / 0.25), one(x))
    assert data.state_dict().keys() - none.state_dict().keys() == {"0.mean", "0.std"}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("date", "model.normalise = 'date' is neither a name nor means and then as many deviations above 0"),
        ("0.5,0", "model.normalise = '0.5,0' is neither a name"),
        ("0.5,0.5,0.5", "model.normalise = '0.5,0.5,0.5' is neither a name"),
        ("0.5,0.5,1,1", "model.normalise has 2 means, and the images 3 channels; give as many."),
    ],
)
def test_other_statistics_are_refused(given: str, sentence: str) -> None:
    with pytest.raises(advkit.OptionError, match=sentence):
        built("small-cnn", normalise=given)


def official(net: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a wide net of depth 10 under the names of TRADES' code, with its block that no forward calls."""
    heads = {"1": "conv1", "2": "block1.layer.0", "3": "block2.layer.0", "4": "block3.layer.0", "5": "bn1", "9": "fc"}
    named = {}
    for name, value in net.state_dict().items():
        head, _, rest = name.partition(".")
        named[f"module.{heads[head]}.{rest.replace('shortcut', 'convShortcut')}"] = value
    dead = {name.replace("block1", "sub_block1"): value for name, value in named.items() if ".block1." in name}
    return named | dead


@pytest.mark.parametrize("how", ["none", "0.25,0.5", "data"])
def test_weights_of_the_official_code_compute_what_they_did(how: str, tmp_path: Path) -> None:
    builder: Any = registry.load("model", "wide-resnet")
    spec = DataSpec(1, 8, 8, 10, (0.3,), (0.3,))
    options = {"depth": 10, "width": 1}
    plain = builder(validate(builder.Options, options | {"normalise": "none"}, where="model")).build(spec)
    torch.save({"state_dict": official(plain)}, tmp_path / "trades.pt")
    words = ["evaluate", str(tmp_path / "trades.pt"), "--model", "wide-resnet", "--dataset", "digits", "--eps", "0.1"]
    words += ["--set", "model.depth=10", "--set", "model.width=1", "--set", f"model.normalise={how}", "--n", "4"]
    assert run([*words, "--attacks", "clean", "--out", str(tmp_path / "out")]) == 0
    [result] = (tmp_path / "out").rglob("evaluation.json")
    notes = " ".join(json.loads(result.read_text()).get("notes", []))
    assert ("trades.pt has no normalisation, so images enter its net as they are" in notes) == (how == "data")
    settings = {f"model.{key}": value for key, value in options.items()} | {"model.normalise": how}
    from advkit.studies.subject import subject_of

    with pytest.raises(advkit.CheckpointError, match="do not fit") as refused:
        subject_of(
            tmp_path / "trades.pt", model="wide-resnet", dataset="digits", settings=settings | {"model.width": 2}
        )
    first = "first difference: module.block1.layer.0.bn2.bias (16,) there, 2.bn2.bias (32,) here"
    assert first in str(refused.value), "each by its own name"
    net = subject_of(tmp_path / "trades.pt", model="wide-resnet", dataset="digits", settings=settings).model.eval()
    x = torch.rand(2, 1, 8, 8)
    mean, std = (0.25, 0.5) if how[0] == "0" else (0.0, 1.0)  # of no layer, and of one that the file has not
    with torch.no_grad():
        assert torch.equal(net(x), plain.eval()((x - mean) / std))


def test_a_run_of_before_normalise_is_the_same_run() -> None:
    before = '[model]\nname = "small-cnn"\nwidth = 4\n'
    assert runfile.difference(before, before + 'normalise = "data"\n') == []
    assert runfile.difference(before, before + 'normalise = "none"\n') == [
        "model.normalise: None in the run, 'none' now"
    ]
