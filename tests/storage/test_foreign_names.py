"""What stands beside a net in other people's files: its normalisation, and a second copy for its attacks."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import advkit
from advkit import CheckpointError, DataSpec, Normalize, registry
from advkit.options import validate
from advkit.storage.foreign_names import put_named

MEAN, STD = torch.tensor([0.49, 0.48, 0.45]), torch.tensor([0.25, 0.24, 0.26])
SPEC = DataSpec(3, 32, 32, 4, (0.5,) * 3, (0.3,) * 3)
Weights = dict[str, Tensor]


def below(head: str, weights: Weights) -> Weights:
    return {f"{head}{name}": value for name, value in weights.items()}


def madry(net: Weights) -> Weights:
    """As robustness has it: `DataParallel(AttackerModel)`, whose attacker has the net and the normaliser once more."""
    pair = {"new_mean": MEAN.view(3, 1, 1), "new_std": STD.view(3, 1, 1)}
    attacker = below("attacker.", below("normalize.", pair) | below("model.", net))
    return below("module.", below("normalizer.", pair) | below("model.", net) | attacker)


PAIR = {"mean": MEAN.view(1, 3, 1, 1), "std": STD.view(1, 3, 1, 1)}
FORMS: dict[str, Callable[[Weights], Weights]] = {
    "RobustBench": lambda net: below("normalize.", PAIR) | below("model.", net),
    "MadryLab": madry,
    "Sequential": lambda net: below("0.", PAIR) | below("1.", net),
    "parallel": lambda net: below("module.0.", PAIR) | below("module.1.", net),
    "beside": lambda net: net | {"mu": MEAN, "sigma": STD.view(3, 1, 1)},
}


def builder(name: str, **options: Any) -> Any:
    kind: Any = registry.load("model", name)
    small = {"small-cnn": {"width": 2}, "torchvision": {"architecture": "squeezenet1_1"}}
    return kind(validate(kind.Options, small.get(name, {"architecture": "test_resnet"}) | options, where="model"))


@pytest.mark.parametrize("name", ["small-cnn", "torchvision", "timm"])
def test_a_file_s_normalisation_goes_to_the_net_s_layer(name: str) -> None:
    if name != "small-cnn":
        pytest.importorskip(name, reason="pip install 'advkit[timm,vision]'")
    plain = builder(name, normalise="none").build(SPEC).double().eval()
    net = {key.removeprefix("net."): value.clone() for key, value in plain.state_dict().items()}
    x, own = torch.rand(2, 3, 32, 32).double(), builder(name)
    with torch.no_grad():
        right = plain((x - MEAN.double().view(1, 3, 1, 1)) / STD.double().view(1, 3, 1, 1))
        for form, wrapped in FORMS.items():
            model = own.build(SPEC).double().eval()
            assert (model(x) - right).abs().max() > 1e-3, "the control: other weights"
            said = put_named(model, wrapped(net), "the file", own.renamed, "data").said
            assert (model(x) - right).abs().max() < 1e-12, form
            assert re.fullmatch(
                r"the file: its normalisation, \S+ and \S+ \(0\.49,0\.48,0\.45,0\.25,0\.24,0\.26\), is taken, not the "
                r"net's \(0\.5,0\.5,0\.5,0\.3\d*,0\.3\d*,0\.3\d*\)",
                said,
            )
    given = "0.49,0.48,0.45,0.25,0.24,0.26"
    same = builder(name, normalise=given)
    assert not put_named(same.build(SPEC).double(), FORMS["MadryLab"](net), "f", same.renamed, given, anew=True).said
    for how in ("none", "0.5,0.25"):
        other = builder(name, normalise=how)
        sentence = (
            rf"^f: it holds .* \({given}\), and model\.normalise = {how} is another; leave model\.normalise out\.$"
        )
        with pytest.raises(CheckpointError, match=sentence):
            put_named(other.build(SPEC), FORMS["RobustBench"](net), "f", other.renamed, how)


def test_a_second_copy_that_differs_and_a_second_normalisation_are_refused() -> None:
    own = builder("small-cnn")
    net = {name: value for name, value in own.build(SPEC).state_dict().items() if not name.startswith("0.")}
    cases = {
        "it holds a net twice, and attacker.model.1.weight has no equal outside attacker.": {
            "module.attacker.model.1.weight": net["1.weight"] + 1
        },
        "it holds a net twice, and attacker.normalize.new_mean has no equal outside attacker.": {
            "module.attacker.normalize.new_mean": MEAN.view(3, 1, 1) / 2
        },
        "it holds two normalisations, module.normalizer.new_mean and": {"module.mu": MEAN, "module.sigma": STD},
    }
    put_named(own.build(SPEC), madry(net), "f", own.renamed)
    for sentence, changed in cases.items():
        with pytest.raises(CheckpointError, match=f"^f: {sentence}.*; save alone what is meant"):
            put_named(own.build(SPEC), madry(net) | changed, "f", own.renamed)


@pytest.mark.parametrize("form", ["p{}", "p{}.w", "a.p{}.w", "p{}.p{}"])
def test_a_file_of_many_tensors_is_judged_in_linear_time(form: str) -> None:
    """By the number of calls: one for each pair of names would be nine times as many."""
    own, calls = builder("small-cnn"), [0, 0]
    for case, many in enumerate((100, 300)):
        net, weights = own.build(SPEC), {form.format(k, k): torch.zeros(1) for k in range(many)}

        def count(frame: object, event: str, called: object, case: int = case) -> None:
            calls[case] += event in ("call", "c_call")

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            with pytest.raises(CheckpointError):
                put_named(net, weights, "f", own.renamed)
        finally:
            sys.setprofile(before)
    assert calls[1] < 4 * calls[0]


class Own(nn.Module):
    """A net of one's own, whose normaliser is nobody's package."""

    def __init__(self) -> None:
        super().__init__()
        self.normalizer, self.model = nn.Module(), nn.Linear(3, 2)
        self.normalizer.register_buffer("new_mean", torch.zeros(3, 1, 1))
        self.normalizer.register_buffer("new_std", torch.ones(3, 1, 1))


def test_a_net_of_one_s_own_takes_its_own_names() -> None:
    theirs, net = nn.Linear(3, 2).state_dict(), Own()
    assert not put_named(net, madry(theirs), "f").said
    assert torch.equal(net.normalizer.new_std.flatten(), STD) and torch.equal(net.model.weight, theirs["weight"])
    layer = nn.Sequential(Normalize((0.5,), (0.5,)), nn.Linear(3, 2))
    stored = layer.state_dict() | {"0.mean": torch.full((1, 1, 1, 1), 0.25)}
    assert not put_named(layer, stored, "f").said and layer[0].mean.item() == 0.25
    with pytest.raises(
        CheckpointError, match=r"f: .* 0\.mean and 0\.std \(0\.75,0\.5\), and model\.normalise = 0\.25,"
    ):
        put_named(layer, stored | {"0.mean": torch.full((1, 1, 1, 1), 0.75)}, "f", how="0.25,0.5")
    with pytest.raises(CheckpointError, match=r"and the net has no advkit\.Normalize; give it one, of those numbers"):
        put_named(nn.Linear(3, 2), FORMS["RobustBench"](theirs), "f")


def test_a_run_begins_from_what_its_settings_bring_back(tmp_path: Path) -> None:
    """A library's net is built anew from them, so that its layer can not be a file's."""
    timm = pytest.importorskip("timm", reason="pip install 'advkit[timm]'")
    file, net = tmp_path / "net.pt", timm.create_model("test_resnet", num_classes=10).state_dict()
    torch.save(FORMS["RobustBench"](net), file)
    with pytest.raises(
        CheckpointError, match=r"and no run stores that of this net, which has .*; set model\.norm"
    ) as no:
        advkit.train("timm:test_resnet", settings={"data.limit": 20}, epochs=1, init_from=file)
    (given,) = re.findall(r"set model\.normalise=([\d.,]+)\.$", str(no.value))
    own = builder("timm", normalise=given)
    model = own.build(DataSpec(1, 8, 8, 10, (0.5,), (0.3,)))
    assert not put_named(model, FORMS["RobustBench"](net), "f", own.renamed, given, anew=True).said
    assert torch.equal(model.normalise.mean.flatten(), MEAN) and torch.equal(model.normalise.std.flatten(), STD)
