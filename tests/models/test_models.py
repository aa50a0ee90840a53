from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advkit.data.base import Dataset
from advkit.data.digits import Digits
from advkit.data.transforms import to_float
from advkit.errors import OptionError
from advkit.models.base import DataSpec, ModelBuilder, Normalize
from advkit.models.preact_resnet import PreActResNet18
from advkit.models.small_cnn import SmallCnn
from advkit.options import validate

CIFAR = DataSpec(3, 32, 32, 10, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
DIGITS = DataSpec(1, 8, 8, 10, (0.3,), (0.4,))


def small(spec: DataSpec, **options: object) -> nn.Module:
    return SmallCnn(validate(SmallCnn.Options, options, where="model")).build(spec)


def resnet(spec: DataSpec, **options: object) -> nn.Module:
    return PreActResNet18(validate(PreActResNet18.Options, options, where="model")).build(spec)


BUILDS: dict[str, Callable[[DataSpec], nn.Module]] = {
    "small-cnn": small,
    "small-cnn without norm": lambda spec: small(spec, norm="none"),
    "preact-resnet18": lambda spec: resnet(spec, width=4),
}


def sized(spec: DataSpec, height: int, width: int) -> DataSpec:
    return DataSpec(spec.channels, height, width, spec.classes, spec.mean, spec.std)


def images(spec: DataSpec, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, spec.channels, spec.height, spec.width, generator=generator)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_spec_of_a_data_set() -> None:
    pixels = torch.tensor([[[[0, 255]], [[51, 51]]]], dtype=torch.uint8)
    spec = DataSpec.of(Dataset("toy", pixels, torch.tensor([0]), ("a", "b", "c")))
    assert spec == DataSpec(2, 1, 2, 3, (0.5, 0.2), (0.5, 1 / 255))


def test_normalize_is_per_channel_and_is_saved_with_the_model() -> None:
    normalize = Normalize((0.5, 0.25), (0.5, 0.2))
    x = torch.tensor([1.0, 0.25]).view(1, 2, 1, 1).expand(1, 2, 3, 3)
    assert torch.equal(normalize(x)[0, :, 1, 1], torch.tensor([1.0, 0.0]))
    assert {name: tuple(tensor.shape) for name, tensor in normalize.state_dict().items()} == {
        "mean": (1, 2, 1, 1),
        "std": (1, 2, 1, 1),
    }
    assert not list(normalize.parameters())


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, iter])
def test_normalize_takes_what_holds_numbers(kind: Callable[[list[float]], Any]) -> None:
    layer, same = Normalize(kind([0.5, 0.25]), kind([0.5, 0.125])), Normalize((0.5, 0.25), (0.5, 0.125))
    assert torch.equal(layer.mean, same.mean) and torch.equal(layer.std, same.std)


@pytest.mark.parametrize(
    ("mean", "std", "sentence"),
    [
        ((0.5,), (0.0,), "has means beyond"),
        ((0.5,), (-0.25,), "has means beyond"),
        ((127.5,), (64.0,), "divide gray levels by 255"),
        ((float("nan"),), (0.5,), "has means beyond"),
        ((0.5, 0.5), (0.25,), "has 2 means and 1 deviations"),
        ((), (), "needs one of each"),
        (0.5, 0.25, "mean must be a list, each a number, not 0.5"),
        ("0.5", "0.5", "mean must be a list"),
    ],
)
def test_a_normalisation_that_images_can_not_have_is_refused(mean: Any, std: Any, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        Normalize(mean, std)


def test_a_builder_without_build_can_not_be_made() -> None:
    with pytest.raises(TypeError, match="build"):
        type("Half", (ModelBuilder,), {"name": "half"})(ModelBuilder.Options())


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
@pytest.mark.parametrize("spec", [CIFAR, DIGITS], ids=["cifar", "digits"])
@pytest.mark.parametrize("size", [(8, 8), (17, 12), (28, 28), (32, 32), (64, 64)], ids=str)
def test_logits_of_any_size_have_finite_gradients(
    build: Callable[[DataSpec], nn.Module], spec: DataSpec, size: tuple[int, int]
) -> None:
    spec = sized(spec, *size)
    x = images(spec).requires_grad_()
    logits = build(spec)(x)
    assert logits.shape == (3, spec.classes)
    (gradient,) = torch.autograd.grad(logits.square().sum(), x)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).abs().amax(1) > 0).all()


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_models_start_by_normalising(build: Callable[[DataSpec], nn.Module]) -> None:
    """Data with other statistics gives the same logits once those are in the spec."""
    spec = DataSpec(1, 8, 8, 10, (0.5,), (0.25,))
    shifted = DataSpec(1, 8, 8, 10, (0.25,), (0.125,))
    models = []
    for one in (spec, shifted):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            models.append(build(one).eval())
    x = images(spec)
    assert torch.allclose(models[0](x), models[1](x / 2), atol=1e-6)
    assert not torch.allclose(models[0](x), models[1](x), atol=1e-3)


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_weights_depend_on_the_seed_alone(build: Callable[[DataSpec], nn.Module]) -> None:
    def weights(seed: int) -> list[Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return list(build(DIGITS).state_dict().values())

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def hand_count(width: int, channels: int, classes: int) -> int:
    """Stem; per block two BN and two 3x3, and a 1x1 where the shape changes; final BN; linear."""
    total, before = 9 * channels * width, width
    for stage in range(4):
        out = width << stage
        total += 2 * before + 9 * before * out + 2 * out + 9 * out * out  # first block
        total += before * out if before != out else 0
        total += 2 * (2 * out + 9 * out * out)  # second block
        before = out
    return total + 2 * before + before * classes + classes


def test_parameters_of_preact_resnet18() -> None:
    full = parameters(resnet(CIFAR))
    assert full == hand_count(64, 3, 10) == 11_172_170
    assert full - 2 * 512 == 11_171_146  # ports without the final BN
    assert parameters(resnet(DIGITS, width=16)) == hand_count(16, 1, 10)


@pytest.mark.parametrize("spec", [CIFAR, DIGITS], ids=["cifar", "digits"])
def test_parameters_of_small_cnn(spec: DataSpec) -> None:
    width, final = 24, spec.height // 4 * (spec.width // 4)
    convolutions = 9 * (spec.channels * width + width * 2 * width + 2 * width * 4 * width)
    linear = (4 * width * final + 1) * spec.classes
    assert parameters(small(spec)) == convolutions + 2 * 7 * width + linear
    assert parameters(small(spec, norm="none")) == convolutions + 7 * width + linear
    assert not [name for name, _ in small(spec, norm="none").named_buffers() if "running" in name]


def test_preact_resnet18_is_the_function_of_the_paper() -> None:
    """Re-derived from the weights in their order: stem, 8 blocks, then BN, ReLU, mean and linear."""
    spec = sized(CIFAR, 16, 16)
    model = resnet(spec, width=4).double()
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.named_buffers():  # statistics that are not 0 and 1
        if "running" in name:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    state = iter([tensor for name, tensor in model.eval().state_dict().items() if "tracked" not in name])

    def bn_relu(x: Tensor) -> Tensor:
        weight, bias, mean, var = (next(state).view(-1, 1, 1) for _ in range(4))
        return ((x - mean) / (var + 1e-5).sqrt() * weight + bias).clamp(min=0)

    x = images(spec).double()
    h = F.conv2d((x - next(state)) / next(state), next(state), padding=1)
    for block in range(8):
        stride = 2 if block in (2, 4, 6) else 1
        active = bn_relu(h)
        residual = F.conv2d(active, next(state), stride=stride, padding=1)
        residual = F.conv2d(bn_relu(residual), next(state), padding=1)
        h = residual + (F.conv2d(active, next(state), stride=2) if stride == 2 else h)
    logits = bn_relu(h).mean((2, 3)) @ next(state).T + next(state)
    assert next(state, None) is None
    assert torch.allclose(model(x), logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_models_work_functionally(build: Callable[[DataSpec], nn.Module]) -> None:
    """Weight perturbations evaluate them at other weights without a trace."""
    model, x = build(DIGITS).eval(), images(DIGITS)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    shifted = {name: parameter + 0.1 for name, parameter in model.named_parameters()}
    assert not torch.allclose(torch.func.functional_call(model, shifted, (x,)), model(x))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"wdith": 8}, "Unknown option model.wdith. Did you mean width? Known: normalise, width, norm."),
        ({"width": 0}, "model.width = 0 must be greater than or equal to 1."),
        ({"norm": "layer"}, "model.norm = 'layer' must be 'batch' or 'none'."),
    ],
)
def test_options_are_checked(options: dict[str, object], text: str) -> None:
    with pytest.raises(OptionError) as error:
        small(DIGITS, **options)
    assert str(error.value) == text


def test_small_cnn_learns_digits_in_a_few_epochs() -> None:
    splits = Digits().load(None, None)
    x, y = to_float(splits.train.images), splits.train.labels
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = small(DataSpec.of(splits.train))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)

    def accuracy() -> float:
        model.eval()
        with torch.no_grad():
            logits = model(to_float(splits.test.images))
        return (logits.argmax(1) == splits.test.labels).double().mean().item()

    assert accuracy() < 0.5
    for epoch in range(4):
        model.train()
        for batch in torch.randperm(len(y), generator=torch.Generator().manual_seed(epoch)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    assert accuracy() > 0.95
