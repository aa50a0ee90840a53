"""What stands before a net's first convolution: the data's statistics, nothing, or numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import advkit
from advkit import registry
from advkit.cli.main import run
from advkit.config import runfile
from advkit.models.base import DataSpec
from advkit.options import validate
from advkit.storage.foreign_names import put_named

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
        ("date", "model.normalise = 'date' is neither a name nor means and then as many deviations, such"),
        ("0.5,0", "model.normalise = '0.5,0' has means beyond"),
        ("0.5,-0.25", r"deviations beyond \(0, 1\], which images in \[0, 1\] can not have; divide gray levels by 255."),
        ("123.675,58.395", r"has means beyond \[0, 1\]"),
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


def test_a_file_says_whose_net_it_is_and_how_it_normalises() -> None:
    """The nets of both codes have weights of the same shapes; those of either are refused as the other's."""

    def net(**options: Any) -> tuple[Any, nn.Module]:
        builder: Any = registry.load("model", "wide-resnet")
        given = validate(builder.Options, {"depth": 10, "width": 1, **options}, where="model")
        return builder(given), builder(given).build(DataSpec(1, 8, 8, 10, (0.3,), (0.3,))).eval()

    def loaded(weights: dict[str, Tensor], **options: Any) -> nn.Module:
        builder, model = net(**options)
        put_named(model, weights, "the file", builder.renamed, builder.options.normalise)
        return model

    trades, iseat = net(normalise="none")[1], net(normalise="none", variant="iseat")[1]
    theirs = {name.removeprefix("module."): value for name, value in official(trades).items()}
    own = {
        re.sub(r"block(\d).layer.(\d+)", r"layer\1.block\2", name.removeprefix("module."))
        .replace("convShortcut", "shortcut.0")
        .replace("fc.", "fc0."): value
        for name, value in official(iseat).items()
        if "sub_block1" not in name
    }
    with pytest.raises(advkit.CheckpointError, match=r"TRADES' code.* set model.variant=trades"):
        loaded(theirs, variant="iseat")
    with pytest.raises(advkit.CheckpointError, match=r"ISEAT's code.* set model.variant=iseat"):
        loaded(own)
    with pytest.raises(advkit.CheckpointError, match=r"no sub_block1.* leave model.dead_block out"):
        loaded({name: value for name, value in theirs.items() if "sub" not in name}, dead_block=True)
    x, mean, std = torch.rand(2, 1, 8, 8), torch.full((1, 1, 1, 1), 0.25), torch.full((1, 1, 1, 1), 0.5)
    with torch.no_grad():
        assert torch.equal(loaded(own, variant="iseat", normalise="none")(x), iseat(x))
        for head, first, second in (("", "mean", "std"), ("", "mu", "sigma"), ("normalize.", "mean", "std")):
            inner = {f"model.{name}" if head else name: value for name, value in theirs.items()}
            inside = inner | {head + first: mean.flatten() if head else mean, head + second: std}
            assert torch.equal(loaded(inside)(x), trades((x - 0.25) / 0.5))
            assert torch.equal(loaded(inside, normalise="0.25,0.5")(x), trades((x - 0.25) / 0.5))
            for other in ("none", "0.25,0.25"):
                with pytest.raises(advkit.CheckpointError, match=f"{head}{first} and .*leave model.normalise out"):
                    loaded(inside, normalise=other)
    with pytest.raises(
        advkit.CheckpointError, match=r"normalisation, mean and std \(63.75,127.5\), which is not for images"
    ):
        loaded(theirs | {"mean": mean * 255, "std": std * 255})


def test_a_run_of_before_normalise_is_the_same_run() -> None:
    before = '[model]\nname = "small-cnn"\nwidth = 4\n'
    assert runfile.difference(before, before + 'normalise = "data"\n') == []
    assert runfile.difference(before, before + 'normalise = "none"\n') == [
        "model.normalise: None in the run, 'none' now"
    ]
