"""Optimizers by name: the classes of torch.optim, their options by the constructor's signature, groups, clipping."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from advkit import OptionError
from advkit.config.layer import Layer
from advkit.config.request import Request
from advkit.config.resolve import Resolved, resolve
from advkit.config.runfile import dump, parse
from advkit.optimizers import FIT, UNFIT, Clip, OptimizerSettings, arguments_of, norms_and_biases
from advkit.options import validate
from advkit.storage.schema import NOT_NEGATIVE


def chosen(**values: object) -> OptimizerSettings:
    return validate(OptimizerSettings, values, where="optimizer")


def of_run(*plugins: str, **values: object) -> Resolved:
    return resolve(plugins, [Layer("test", {f"optimizer.{key}": value for key, value in values.items()})])


def small_net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 6), nn.LayerNorm((6,)),
            nn.Linear(6, 2, bias=False),
        )  # fmt: skip


def torchs_own(net: nn.Module, name: str, **arguments: Any) -> torch.optim.Optimizer:
    return FIT[name](net.parameters(), **arguments)


def stepped(net: nn.Module, optimizer: torch.optim.Optimizer, scale: float = 1.0) -> list[torch.Tensor]:
    for turn in range(3):
        optimizer.zero_grad()
        x = torch.linspace(-1, 1 + turn, 4 * 16).view(4, 1, 4, 4)
        (net(x).square().sum() * scale).backward()
        optimizer.step()
    return [p.detach() for p in net.parameters()]


def test_every_class_of_torch_is_offered_or_refused_with_a_reason() -> None:
    classes = {
        name.lower()
        for name, kind in vars(torch.optim).items()
        if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    }
    assert classes <= FIT.keys() | UNFIT.keys() and not FIT.keys() & UNFIT.keys()


@pytest.mark.parametrize("name", sorted(FIT.keys() - {"sgd"}))
def test_it_steps_as_torchs_own_with_its_defaults(name: str) -> None:
    one, other = small_net(), small_net()
    ours, theirs = stepped(one, chosen(name=name).build(one)), stepped(other, torchs_own(other, name))
    assert all(map(torch.equal, ours, theirs))


def test_sgd_has_the_values_of_the_papers() -> None:
    one, other = small_net(), small_net()
    ours = stepped(one, chosen().build(one), 1e-3)
    theirs = stepped(other, torchs_own(other, "sgd", lr=0.1, momentum=0.9, weight_decay=5e-4), 1e-3)
    assert all(map(torch.equal, ours, theirs))


def test_options_reach_the_constructor() -> None:
    built = chosen(name="AdamW", lr=2e-3, betas=[0.8, 0.9], eps="1/255", amsgrad=True).build(small_net())
    assert type(built) is torch.optim.AdamW
    kept = {key: built.defaults[key] for key in ("lr", "betas", "eps", "weight_decay", "amsgrad")}
    assert kept == {"lr": 2e-3, "betas": (0.8, 0.9), "eps": 1 / 255, "weight_decay": 0.01, "amsgrad": True}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"name": "lbfgs"},
            "optimizer.name = 'lbfgs' steps with a closure that evaluates the loss again, which a step of advkit has "
            "not; take one that steps on gradients, such as sgd or adamw.",
        ),
        (
            {"name": "SparseAdam"},
            "optimizer.name = 'sparseadam' takes sparse gradients, and those of a net are dense; take one that steps "
            "on gradients, such as sgd or adamw.",
        ),
        (
            {"name": "adamww"},
            f"optimizer.name = 'adamww' is unknown. Did you mean adamw? Known: {', '.join(FIT)}.",
        ),
        ({"name": 3}, "optimizer.name = 3 must be a valid string."),
        (
            {"name": "adamw", "momentum": 0.9},
            f"optimizer.momentum is no option of adamw. It has: {', '.join(arguments_of('adamw'))}.",
        ),
        ({"betas": [0.9, 0.9]}, f"optimizer.betas is no option of sgd. It has: {', '.join(arguments_of('sgd'))}."),
        ({"name": "adamw", "betas": [0.9]}, "optimizer.betas = [0.9] must be 2 numbers."),
        ({"name": "adamw", "amsgrad": "yes"}, "optimizer.amsgrad = 'yes' must be true or false."),
        ({"name": "adamw", "eps": True}, "optimizer.eps = True must be a finite number."),
        (
            {"name": "adamw", "betas": [1.5, 0.9]},
            "optimizer.name = 'adamw' can not have these options (Invalid beta parameter at index 0: 1.5); correct "
            "them.",
        ),
        (
            {"nesterov": True, "momentum": 0.0},
            "optimizer.name = 'sgd' can not have these options (Nesterov momentum requires a momentum and zero "
            "dampening); correct them.",
        ),
        (
            {"name": "adam", "decay_norms_and_biases": False},
            "optimizer.decay_norms_and_biases = False spares them a weight_decay that is none; leave it out.",
        ),
    ],
)
def test_refusals(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(OptionError) as refusal:
        chosen(**values)
    assert str(refusal.value) == sentence


@pytest.mark.parametrize("stray", ["bettas", "maximize", "differentiable", "clip"])
def test_what_no_optimizer_has_is_no_setting(stray: str) -> None:
    with pytest.raises(OptionError, match=f"Unknown setting optimizer.{stray}."):
        of_run(name="adamw", **{stray: 1})


def test_a_run_file_brings_the_same_optimizer_back() -> None:
    once = of_run(name="adamw", betas=[0.9, 0.95])
    table = tomllib.loads(dump(once))["optimizer"]
    assert table["betas"] == [0.9, 0.95] and table["eps"] == 1e-8 and "momentum" not in table
    again = Resolved.of(Request((parse(tomllib.loads(dump(once)), "run.toml"),)))
    assert dump(again) == dump(once)
    assert "amsgrad" not in tomllib.loads(dump(of_run()))["optimizer"]


def test_another_optimizer_drops_what_was_said_of_the_one_below() -> None:
    below = Layer("recipe", {"optimizer.lr": 0.1, "optimizer.momentum": 0.8, "optimizer.schedule": "cosine"})
    run = Resolved.of(Request((below, Layer("python", {"optimizer.name": "adamw"}))))
    assert run.optimizer.lr == 1e-3 and run.optimizer.schedule == "cosine"
    assert Resolved.of(Request((below, Layer("python", {"optimizer.name": "SGD"})))).optimizer.momentum == 0.8


def test_a_preferred_rate_is_that_of_the_optimizer_it_was_preferred_for() -> None:
    assert of_run("mart").optimizer.lr == 0.01 and of_run("mart", name="adamw").optimizer.lr == 1e-3
    assert "optimizer.lr" not in of_run("mart", name="adamw").origins


def test_norms_and_biases_can_be_spared_the_decay() -> None:
    net = small_net()
    assert norms_and_biases(net) == {"0.bias", "1.weight", "1.bias", "4.bias", "5.weight", "5.bias"}
    decayed, spared = chosen(decay_norms_and_biases=False).build(net).param_groups
    assert decayed["weight_decay"] == 5e-4 and spared["weight_decay"] == 0
    assert [tuple(p.shape) for p in decayed["params"]] == [(3, 1, 3, 3), (6, 12), (2, 6)]
    assert len(spared["params"]) == 6
    whole = chosen().build(net).param_groups
    assert len(whole) == 1 and all(a is b for a, b in zip(whole[0]["params"], net.parameters(), strict=True))


def test_what_does_not_train_is_in_no_group() -> None:
    net = small_net()
    net[0].requires_grad_(False)
    groups = chosen(decay_norms_and_biases=False).build(net).param_groups
    assert [len(group["params"]) for group in groups] == [2, 5]


def test_clipping_scales_the_whole_gradient_down_and_never_up() -> None:
    def norm_after_step(limit: float, scale: float) -> tuple[float, list[torch.Tensor]]:
        net = small_net()
        weights = stepped(net, chosen(clip_norm=limit, lr=1e-3).build(net), scale)
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        return float(nn.utils.get_total_norm(gradients)), weights

    free, weights = norm_after_step(0.0, 1.0)
    assert free > 1
    assert norm_after_step(0.25, 1.0)[0] == pytest.approx(0.25, rel=1e-5)
    far, same = norm_after_step(2 * free, 1.0)
    assert far == free and all(map(torch.equal, weights, same))


@pytest.mark.parametrize("limit", [0.25, 1e9])
def test_clipping_is_torchs_to_the_bit_and_keeps_the_direction_where_squares_overflow(limit: float) -> None:
    """torch's makes such a gradient 0, and nothing is trained."""

    def clipped(scale: float, how: Callable[[list[torch.Tensor]], object]) -> torch.Tensor:
        twins = [torch.zeros(shape) for shape in ((3, 4), (5,), (2,))]
        for twin, gradient in zip(
            twins, torch.randn(19, generator=torch.manual_seed(0)).split([12, 5, 2]), strict=True
        ):
            twin.grad = (gradient * scale).view(twin.shape) * bool(twin.numel() > 2)
        how(twins)
        return torch.cat([twin.grad.flatten() for twin in twins if twin.grad is not None])

    ours, theirs = Clip(limit).scale, partial(nn.utils.clip_grad_norm_, max_norm=limit)
    for scale in (0.0, 1e-30, 1.0, 1e12, 1e18):
        assert torch.equal(clipped(scale, ours), clipped(scale, theirs))
    for scale in (1e20, 1e38):
        assert not clipped(scale, theirs).any()
        torch.testing.assert_close(clipped(scale, ours), clipped(1e12, ours))


@pytest.mark.parametrize("name", sorted(FIT))
def test_what_an_optimizer_keeps_is_known_before_its_first_step(name: str) -> None:
    net = small_net()
    settings = chosen(name=name)
    expected = settings.keeps(dict(net.named_parameters()))
    optimizer = settings.build(net)
    stepped(net, optimizer, 1e-3)
    for key, parameter in net.named_parameters():
        kept = {k: v for k, v in optimizer.state[parameter].items() if isinstance(v, torch.Tensor)}
        forms = {k: (v.shape, v.dtype) for k, v in kept.items()}
        assert forms == {k: (v.shape, v.dtype) for k, v in expected[key].items()}
        assert not {*kept} - NOT_NEGATIVE - {"momentum_buffer", "exp_avg", "ax", "prev"}  # of any sign
        assert all(bool((value >= 0).all()) for key, value in kept.items() if key in NOT_NEGATIVE)
