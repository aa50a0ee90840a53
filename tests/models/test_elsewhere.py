"""Nets of timm and torchvision: fitted, normalised inside, started from files, attacked and trained like any other."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import advkit
from advkit.config.layer import Layer
from advkit.config.resolve import resolve
from advkit.errors import OptionError
from advkit.models.base import DataSpec, ModelBuilder
from advkit.models.elsewhere import Statistics, Timm, Torchvision
from advkit.options import validate
from advkit.storage.foreign_names import fitted
from advkit.training.parts import builder_of
from advkit.training.short import cautions

timm = pytest.importorskip("timm", reason="pip install 'advkit[timm]'")
torchvision = pytest.importorskip("torchvision", reason="pip install 'advkit[vision]'")

COLOUR = DataSpec(3, 32, 32, 7, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
GRAY = DataSpec(1, 28, 28, 5, (0.3,), (0.4,))
TINY = {"validation.steps": 1, "attack.steps": 1, "data.limit": 40}


def built(kind: type[Timm | Torchvision], name: str, spec: DataSpec, **options: object) -> nn.Module:
    given = validate(kind.Options, {"architecture": name, **options}, where="model")
    torch.manual_seed(0)
    return kind(given).build(spec).eval()


@pytest.mark.parametrize("spec", [COLOUR, GRAY], ids=["colour", "gray"])
@pytest.mark.parametrize(("kind", "name"), [(Timm, "resnet18"), (Torchvision, "squeezenet1_1")])
def test_a_net_is_the_library_s_own_on_normalised_images(
    kind: type[Timm | Torchvision], name: str, spec: DataSpec
) -> None:
    net = built(kind, name, spec)
    torch.manual_seed(0)
    given = {"num_classes": spec.classes}
    own = timm.create_model(name, **given) if kind is Timm else torchvision.models.get_model(name, **given)
    x = torch.rand(2, spec.channels, spec.height, spec.width)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (spec.mean, spec.std))
    assert torch.equal(net(x), own.eval()(((x - mean) / std).expand(-1, 3, -1, -1)))
    assert {name.removeprefix("net.") for name in net.state_dict()} == own.state_dict().keys()


def test_what_the_published_weights_expect_can_be_subtracted_instead() -> None:
    x = torch.rand(2, 3, 32, 32)
    plain = built(Timm, "resnet18", COLOUR, normalise="none")
    theirs = built(Timm, "resnet18", COLOUR, normalise="weights")
    mean, std = (
        torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1),
        torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1),
    )
    assert torch.allclose(theirs(x), plain((x - mean) / std), atol=1e-5)


@pytest.mark.parametrize(
    ("net", "tag", "mean", "other"),
    [
        ("timm:mobilenetv3_small_050", "", 0.485, ""),  # a net of one tag
        ("timm:vit_small_patch16_224", "", 0.5, "dino"),
        ("timm:vit_small_patch16_224", "dino", 0.485, ""),
        ("timm:vit_small_patch16_224", "augreg_in1k", 0.5, ""),
        ("timm:tf_efficientnet_b0", "ap_in1k", 0.5, ""),
        ("torchvision:vgg16", "", 0.485, "IMAGENET1K_FEATURES"),
        ("torchvision:vgg16", "IMAGENET1K_FEATURES", 0.48235, ""),
    ],
)
def test_the_tag_says_what_the_published_weights_expect(net: str, tag: str, mean: float, other: str) -> None:
    name = f"{net}.{tag}" if tag else net
    layer = {"model.name": name, "model.normalise": "weights"}
    resolved = resolve((), [Layer("python", layer)])
    assert resolved.net == name, "so run.toml has it"
    builder = builder_of(resolved)
    assert isinstance(builder, Timm | Torchvision) and f"{builder.name}:{builder.architecture}" == net
    assert builder.expected()[0][0] == pytest.approx(mean)
    said = [sentence for sentence in cautions(resolved) if "model.normalise" in sentence]
    assert len(said) == bool(other)
    if other:
        assert f"expect another ({other})" in said[0] and f'model="{net}.{other}"' in said[0]
        assert f"takes the normalisation of {net}.{next(iter(builder.published()))}," in said[0]
    given = resolve((), [Layer("python", layer | {"model.normalise": "0.5,0.25"})])
    assert not [sentence for sentence in cautions(given) if "model.normalise" in sentence]


def test_a_net_with_a_tag_is_the_net_with_its_normalisation() -> None:
    x = torch.rand(2, 3, 32, 32)
    net, tagged = (built(Timm, f"test_resnet{tag}", COLOUR, normalise="weights") for tag in ("", ".r160_in1k"))
    assert torch.equal(net(x), tagged(x)) and net.state_dict().keys() == tagged.state_dict().keys()
    assert torch.allclose(tagged(x), built(Timm, "test_resnet", COLOUR, normalise="none")((x - 0.5) / 0.5), atol=1e-5)


def test_an_evaluation_of_published_weights_says_that_other_tags_expect_another_normalisation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def two(self: Timm, library: ModuleType, name: str) -> dict[str, Statistics]:
        return {"a_in1k": ((0.5,) * 3, (0.5,) * 3), "b_in1k": ((0.4,) * 3, (0.2,) * 3)}

    monkeypatch.setattr(Timm, "statistics", two)
    torch.save(timm.create_model("test_resnet", num_classes=10).state_dict(), tmp_path / "net.pth")
    notes = [
        advkit.evaluate(
            tmp_path / "net.pth",
            "digits",
            attacks="clean",
            model=f"timm:test_resnet{tag}",
            eps=0.1,
            n=2,
            settings={"data.limit": 10, "model.normalise": "weights"},
            audit=False,
        ).notes
        for tag in ("", ".b_in1k")
    ]
    assert [any("expect another (b_in1k)" in note for note in each) for each in notes] == [True, False]


@pytest.mark.parametrize(("kind", "name"), [(Timm, "vit_tiny_patch16_224"), (Torchvision, "vit_b_16")])
def test_a_transformer_is_built_for_the_images_or_they_for_it(kind: type[Timm | Torchvision], name: str) -> None:
    if kind is Timm:  # torchvision's smallest has 86 million parameters: only its refusal below
        assert built(kind, name, COLOUR)(torch.rand(2, 3, 32, 32)).shape == (2, 7)
        assert built(kind, name, GRAY, resize=224)(torch.rand(2, 1, 28, 28)).shape == (2, 5)
    with pytest.raises(OptionError, match=r"can not be built for images of 3 x 28 x 28 .* model.resize=224"):
        built(kind, name, GRAY)


def test_a_plan_builds_a_net_of_a_library_without_its_weights() -> None:
    """And says what a run would of images that it is not made for. The control: images that it takes."""
    with pytest.raises(OptionError, match=r"can not be built for images of 3 x 8 x 8 .* model.resize=224"):
        advkit.plan((), model="timm:vit_tiny_patch16_224", dataset="digits")
    advkit.plan((), model="timm:vit_tiny_patch16_224", dataset="digits", settings={"model.resize": 32})


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("timm:resnet81", r"'resnet81' is none of timm's \d+ nets. Did you mean resnet18"),
        ("timm:resnet81.a1_in1k", r"'resnet81.a1_in1k' is none of timm's \d+ nets. Did you mean resnet18"),
        ("timm:resnet18.a1_in2k", "timm knows no weights 'a1_in2k' of resnet18, only a1_in1k, .* Did you mean a1_in1k"),
        ("timm:resnet18.", "timm knows no weights '' of resnet18, only a1_in1k"),
        ("torchvision:resnet18.V1", "torchvision knows no weights 'V1' of resnet18, only IMAGENET1K_V1."),
        ("timm:hf-hub:somebody/net", "none of timm's"),  # would be downloaded
        ("torchvision:resnet", "none of torchvision's"),
        ("torchvision:fcn_resnet50", "none of torchvision's"),
        ("timm", "model.architecture = '' is none of timm's"),
        ("small-cnn:8", "model = small-cnn:8 names no net: small-cnn is one; leave :8 out"),
        ("no:thing", "Unknown model no:thing"),
    ],
)
def test_names_that_are_none(model: str, sentence: str) -> None:
    with pytest.raises(advkit.AdvkitError, match=sentence) as refusal:
        advkit.train(model, settings=TINY, epochs=1)
    assert refusal.value.exit_code == 2
    with pytest.raises(advkit.AdvkitError, match=sentence):
        advkit.plan(model=model)


def test_a_name_said_twice_is_one_name() -> None:
    with pytest.raises(OptionError, match=r"timm:resnet18 and model.architecture = 'resnet34' are two nets"):
        advkit.train("timm:resnet18", settings={**TINY, "model.architecture": "resnet34"})


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_published_weights_are_found_below_their_wrappers(name: str) -> None:
    kind, own = Timm(validate(Timm.Options, {"architecture": name}, where="model")), timm.create_model(name)
    net: ModelBuilder = kind
    names = net.build(DataSpec(3, 224, 224, 1000, (0.5,) * 3, (0.5,) * 3)).state_dict()
    wrapped = {f"module.{key}": value for key, value in own.state_dict().items()}
    assert fitted(wrapped, names, net.renamed).keys() == names.keys()


@pytest.mark.slow
def test_a_transformer_is_trained_judged_and_resumed(tmp_path: Path) -> None:
    settings = {**TINY, "model.resize": 16, "attack.eps": 0.1}
    result = advkit.train("timm:test_vit", plugins=["awp"], settings=settings, epochs=1, out=tmp_path / "run")
    judged = advkit.evaluate(tmp_path / "run", attacks="clean,pgd-2", n=10, audit=False)
    alone = advkit.evaluate(result.model, advkit.load_data("digits", limit=40).test.sample(10), "clean,pgd-2", eps=0.1)
    assert judged.robust["pgd-2"] == alone.robust["pgd-2"]
    save_file(dict(result.model.state_dict()), tmp_path / "net.safetensors")
    again = advkit.evaluate(
        tmp_path / "net.safetensors",
        "digits",
        attacks="clean",
        model="timm:test_vit",
        eps=0.1,
        n=10,
        settings={"model.resize": 16},
        audit=False,
    )
    assert again.n == 10
