"""Wide residual nets and VGG: the function re-derived from the weights, parameters counted by hand, how they start."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import advkit
from advkit.errors import OptionError
from advkit.models.base import DataSpec, ModelBuilder
from advkit.models.vgg import Vgg16Bn
from advkit.models.wide_resnet import Dead, WideResNet, WideResNet2810, WideResNet3410
from advkit.options import validate

CIFAR = DataSpec(3, 32, 32, 10, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
SMALL = DataSpec(3, 12, 12, 5, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
FASHION = DataSpec(1, 28, 28, 10, (0.29,), (0.35,))
VARIANTS = ("trades", "iseat")


def built(kind: type[ModelBuilder], spec: DataSpec, seed: int = 0, **options: object) -> nn.Module:
    """A small one by default; weights from the seed."""
    sizes = {WideResNet: {"depth": 10, "width": 1}, Vgg16Bn: {"width": 4}}.get(kind, {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(validate(kind.Options, {**sizes, **options}, where="model")).build(spec)


def size(kind: type[ModelBuilder], spec: DataSpec = CIFAR, **options: object) -> int:
    """Number of parameters, without any memory for them."""
    with torch.device("meta"):
        model = kind(kind.Options(**options)).build(spec)
    return sum(parameter.numel() for parameter in model.parameters())


def shaken(model: nn.Module) -> nn.Module:
    """In float64 and eval mode, with BN that is not the identity, and weights that let 13 layers see the images."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                assert tensor is not None
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif isinstance(module, nn.Conv2d):
            module.weight.data.mul_(2.5)
    return model.double().eval()


def images(spec: DataSpec, count: int = 2) -> Tensor:
    shape = (count, spec.channels, spec.height, spec.width)
    return torch.rand(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


# --- parameters


def hand_count(depth: int, width: int, channels: int, classes: int) -> tuple[int, int]:
    """Of a wide net, and of its first stage: BN, 3x3, BN, 3x3 a block, and a 1x1 where the shape changes."""
    total, before, stages = 9 * channels * 16, 16, []
    for factor in (1, 2, 4):
        out, stage = 16 * width * factor, 0
        for _ in range((depth - 4) // 6):
            stage += 2 * before + 9 * before * out + 2 * out + 9 * out * out
            stage += before * out if before != out else 0
            before = out
        stages.append(stage)
    return total + sum(stages) + 2 * before + (before + 1) * classes, stages[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_of_the_published_wide_nets(variant: str) -> None:
    assert size(WideResNet3410, variant=variant) == hand_count(34, 10, 3, 10)[0] == 46_160_474
    assert size(WideResNet2810, variant=variant) == hand_count(28, 10, 3, 10)[0] == 36_479_194


def test_parameters_with_the_unused_block_of_trades() -> None:
    both = sum(hand_count(34, 10, 3, 10))
    assert size(WideResNet3410, dead_block=True) == both == 48_262_586


@pytest.mark.parametrize(("depth", "width"), [(10, 1), (16, 4), (22, 2)])
@pytest.mark.parametrize("spec", [CIFAR, FASHION], ids=["cifar", "fashion"])
def test_parameters_of_any_wide_net(spec: DataSpec, depth: int, width: int) -> None:
    expected = hand_count(depth, width, spec.channels, spec.classes)
    assert size(WideResNet, spec, depth=depth, width=width) == expected[0]
    assert size(WideResNet, spec, depth=depth, width=width, dead_block=True) == sum(expected)


def test_parameters_of_vgg16_bn() -> None:
    plan = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    total = sum(9 * before * out + 3 * out for before, out in zip([3, *plan], plan, strict=False))  # bias and BN
    assert size(Vgg16Bn) == total + 512 * 10 + 10 == 14_728_266
    assert size(Vgg16Bn, FASHION) == 14_728_266 - 2 * 9 * 64


def test_depths_that_make_no_whole_blocks_are_refused() -> None:
    with pytest.raises(OptionError) as error:
        built(WideResNet, CIFAR, depth=18)
    assert str(error.value) == "model.depth = 18 must be 6 n + 4, such as 10, 16, 22, 28 or 34."


# --- the function


def wide_by_hand(model: nn.Module, spec: DataSpec, variant: str, blocks: int, width: int, x: Tensor) -> Tensor:
    """From the weights in their order of use; nothing of the module's own forward."""
    weights = iter(dict(model.state_dict()).values())

    def bn(x: Tensor) -> Tensor:
        weight, bias, mean, var, _ = (next(weights) for _ in range(5))
        return F.batch_norm(x, mean, var, weight, bias)

    mean, std = next(weights), next(weights)
    x = F.conv2d((x - mean) / std, next(weights), padding=1)
    channels = 16
    for factor, first in ((1, 1), (2, 2), (4, 2)):
        for stride in [first] + [1] * (blocks - 1):
            out = 16 * width * factor
            active = F.relu(bn(x))
            one = next(weights)
            scale = tuple(next(weights) for _ in range(5))
            two = next(weights)
            inner, outer = (stride, 1) if variant == "trades" else (1, stride)
            y = F.conv2d(active, one, stride=inner, padding=1)
            y = F.relu(F.batch_norm(y, scale[2], scale[3], scale[0], scale[1]))
            y = F.conv2d(y, two, stride=outer, padding=1)
            if channels == out:
                x = x + y
            else:
                x = y + F.conv2d(active if variant == "trades" else x, next(weights), stride=stride)
            channels = out
    pooled = F.relu(bn(x)).mean((2, 3))
    logits = pooled @ next(weights).T + next(weights)
    assert next(weights, None) is None
    return logits


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("blocks", "width"), [(1, 1), (2, 2)])
def test_wide_nets_are_the_functions_of_the_official_codes(variant: str, blocks: int, width: int) -> None:
    model = shaken(built(WideResNet, SMALL, depth=6 * blocks + 4, width=width, variant=variant))
    x = images(SMALL)
    own = model(x)
    assert own.shape == (2, 5)
    torch.testing.assert_close(own, wide_by_hand(model, SMALL, variant, blocks, width, x))
    other = VARIANTS[1 - VARIANTS.index(variant)]
    assert not torch.allclose(own, wide_by_hand(model, SMALL, other, blocks, width, x), rtol=1e-3)


def test_the_unused_block_changes_nothing_and_gets_no_gradient() -> None:
    model, twin = (built(WideResNet, SMALL, depth=16, dead_block=dead).double().eval() for dead in (True, False))
    (unused,) = (module for module in model.modules() if isinstance(module, Dead))
    used = [name for name in model.state_dict() if not name.startswith(_prefix(model, unused))]
    twin.load_state_dict({k: model.state_dict()[n] for k, n in zip(twin.state_dict(), used, strict=True)})
    x = images(SMALL)
    assert torch.equal(model(x), twin(x))
    model(x).square().sum().backward()
    without = [p for p in model.parameters() if p.grad is None]
    assert {id(p) for p in without} == {id(p) for p in unused.parameters()}
    assert len(without) == 2 * 6


def _prefix(model: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted) + "."


@pytest.mark.filterwarnings("ignore:Parameters of the model get no gradient in the first step:UserWarning")
@pytest.mark.parametrize("plugins", [[], ["lsiw"]], ids=["pgd-at", "iseat"])
def test_a_step_with_the_unused_block_leaves_it_as_it_was(plugins: list[str]) -> None:
    model = built(WideResNet, SMALL, dead_block=True)
    (unused,) = (module for module in model.modules() if isinstance(module, Dead))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    settings = {"attack.steps": 1}
    step = advkit.Step(model, optimizer, plugins=plugins, num_samples=4, eps=8 / 255, seed=0, settings=settings)
    x, y = images(SMALL, 4).float(), torch.tensor([0, 1, 2, 3])
    report = step(x, y, torch.arange(4), epoch=0)
    assert torch.isfinite(report.loss)
    prefix = _prefix(model, unused)
    parameters = dict(model.named_parameters())
    moved = {name for name in parameters if not torch.equal(before[name], parameters[name])}
    assert moved == {name for name in parameters if not name.startswith(prefix)}


def test_vgg_is_the_function_it_says() -> None:
    model = shaken(built(Vgg16Bn, CIFAR))
    weights = iter(model.state_dict().values())
    x = images(CIFAR)
    y = (x - next(weights)) / next(weights)
    for convolutions in (2, 2, 3, 3, 3):
        for _ in range(convolutions):
            y = F.conv2d(y, next(weights), next(weights), padding=1)
            weight, bias, mean, var, _ = (next(weights) for _ in range(5))
            y = F.relu(F.batch_norm(y, mean, var, weight, bias))
        y = F.max_pool2d(y, 2)
    assert y.shape == (2, 32, 1, 1)
    expected = y.flatten(1) @ next(weights).T + next(weights)
    assert next(weights, None) is None
    torch.testing.assert_close(model(x), expected)
    assert not torch.allclose(expected[0], expected[1], rtol=0.1)


@pytest.mark.parametrize("side", [(8, 8), (28, 28), (17, 12), (33, 64)], ids=str)
@pytest.mark.parametrize(("kind", "options"), [(WideResNet, {}), (WideResNet, {"variant": "iseat"}), (Vgg16Bn, {})])
def test_images_of_any_size_have_logits_and_gradients(
    kind: type[ModelBuilder], options: dict[str, object], side: tuple[int, int]
) -> None:
    spec = DataSpec(1, *side, 7, (0.3,), (0.3,))
    model = built(kind, spec, **options)
    x = images(spec, 3).float().requires_grad_()
    logits = model(x)
    assert logits.shape == (3, 7)
    gradients = torch.autograd.grad(logits.square().sum(), [x, *model.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[0].flatten(1).abs().amax(1) > 0).all()
    # A convolution's bias before BN in train mode has gradient 0 but for rounding; all other parameters count.
    named = zip((name for name, _ in model.named_parameters()), gradients[1:], strict=True)
    counting = {name: gradient for name, gradient in named if gradient.dim() > 1}
    assert len(counting) >= 8 and all(gradient.any() for gradient in counting.values())


@pytest.mark.parametrize("kind", [WideResNet, Vgg16Bn])
def test_they_start_by_normalising(kind: type[ModelBuilder]) -> None:
    one, other = DataSpec(1, 8, 8, 10, (0.5,), (0.25,)), DataSpec(1, 8, 8, 10, (0.25,), (0.125,))
    x = images(one)
    first, second = (shaken(built(kind, spec)) for spec in (one, other))
    torch.testing.assert_close(first(x), second(x / 2))
    assert not torch.allclose(first(x), second(x), rtol=1e-2)


# --- how they start


def convolutions(model: nn.Module) -> Iterator[nn.Conv2d]:
    return (module for module in model.modules() if isinstance(module, nn.Conv2d))


def test_the_net_of_trades_starts_as_its_code_does() -> None:
    model = built(WideResNet, CIFAR, width=8, dead_block=True)
    for each in convolutions(model):
        side = each.kernel_size[0]
        spread = sqrt(2 / (side * side * each.out_channels))
        error = 5 * spread / sqrt(2 * each.weight.numel())  # five standard errors of a standard deviation
        assert each.weight.std().item() == pytest.approx(spread, abs=error)
        assert each.weight.abs().max() > 2 * spread  # normal, not uniform: that ends at 1.7
    linear = model[-1]
    assert isinstance(linear, nn.Linear) and not linear.bias.any() and linear.weight.any()


@pytest.mark.parametrize(("kind", "options"), [(WideResNet, {"variant": "iseat", "width": 8}), (Vgg16Bn, {})])
def test_the_others_start_as_torch_does(kind: type[ModelBuilder], options: dict[str, object]) -> None:
    model = built(kind, CIFAR, **options)
    for each in convolutions(model):
        bound = 1 / sqrt(each.weight[0].numel())  # uniform: He's rule with a = sqrt(5)
        assert each.weight.abs().max() <= bound
        assert each.weight.std().item() == pytest.approx(bound / sqrt(3), rel=0.1)
    linear = model[-1]
    assert isinstance(linear, nn.Linear) and linear.bias.any()


def test_weights_depend_on_the_seed_alone() -> None:
    for kind in (WideResNet, Vgg16Bn):
        first, again, other = (list(built(kind, SMALL, seed).state_dict().values()) for seed in (0, 0, 1))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
