"""What holds for the hooks and their defaults, whatever the plugins, budgets, labels and weights."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from methods import both, run, same
from torch import Tensor, nn

from advkit import Budget, Budgets, Order, Passes, Plugin, PluginOptions, Step, hookimpl
from advkit.errors import NonFinite, OptionError
from advkit_plugins.av_rank import rank_weights, ranks
from advkit_plugins.awp import Awp
from advkit_plugins.cat_eps import next_eps
from advkit_plugins.cat_margin import margin
from advkit_plugins.dirichlet_ls import smooth

Net = Callable[..., nn.Sequential]
BatchOf = Callable[..., tuple[Tensor, Tensor, Tensor]]

N = 16
NORMS, INITS = ("linf", "l2"), ("zero", "uniform", "normal")
light = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 2**31)


def step_of(net: nn.Module, plugins: Iterable[Any] = (), *, lr: float = 0.1, **arguments: Any) -> Step:
    return Step(net, torch.optim.SGD(net.parameters(), lr, momentum=0.9), plugins, num_samples=N, **arguments)


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


class Given(Plugin):
    """Budgets by sample, from outside."""

    name = "given"

    def __init__(self, eps: Iterable[float]) -> None:
        super().__init__(PluginOptions())
        self.eps = torch.tensor(list(eps), dtype=torch.float64)

    def largest_budget(self, eps):
        largest = self.eps.max().item()
        return Budgets(attack=largest, label=largest)

    @hookimpl
    def perturbation_budget(self, batch):
        eps = self.eps[batch.index].to(batch.x.dtype)
        return Budget(attack=eps, label=eps)


class LabelSpy(Plugin):
    """Keeps the targets of both phases, and looks at the model when the attack is over."""

    name = "label-spy"
    order = {"target_label": Order(after=frozenset({"dirichlet-ls"}))}

    def __init__(self, look: Callable[[], Any] = lambda: None) -> None:
        super().__init__(PluginOptions())
        self.look, self.seen, self.after_attack = look, {}, None

    @hookimpl
    def target_label(self, target, phase):
        self.seen[phase] = target.clone()
        if phase == "train":
            self.after_attack = self.look()
        return target


class Breaks(Plugin):
    """Fails half way through an update, in epoch 1."""

    name = "breaks"

    @hookimpl
    def extra_regularizer(self, adv_logits, run):
        if run.epoch == 1:
            raise ZeroDivisionError
        return 0 * adv_logits.sum(1)


class Iterates(Plugin):
    """Keeps every iterate of the attack."""

    name = "iterates"

    def __init__(self) -> None:
        super().__init__(PluginOptions())
        self.seen: list[Tensor] = []

    @hookimpl
    def attack_step(self, x_adv):
        self.seen.append(x_adv.clone())
        return torch.ones(len(x_adv), dtype=torch.bool)


# --- perturbation_budget and the attack -----------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The attack moved 0 of:UserWarning")  # by steps of 0
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("norm", NORMS)
@settings(deadline=None, max_examples=12)
@given(
    eps=st.lists(st.just(0.0) | st.floats(0, 2, width=32), min_size=4, max_size=4),
    step_size=st.just(0.0) | st.floats(2**-16, 1, width=32),
    seed=seeds,
)
def test_examples_stay_in_ball_and_box(
    tiny_net: Net, tiny_batch: BatchOf, norm: str, init: str, eps: list[float], step_size: float, seed: int
) -> None:
    x, y, index = tiny_batch(seed=seed % 97)
    x[0, 0].round_()  # images touch the box
    arguments = {"attack.norm": norm, "attack.init": init, "attack.step_size": step_size, "attack.steps": 3}
    x_adv = step_of(tiny_net(), [Given(eps)], settings=arguments, seed=seed)(x, y, index, epoch=0).x_train
    radius, shift = torch.tensor(eps), (x_adv - x).flatten(1)
    length = shift.abs().amax(1) if norm == "linf" else shift.norm(dim=1)
    assert (length <= radius * (1 + 1e-6) + 2e-7).all()
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert torch.equal(x_adv[radius == 0], x[radius == 0])
    if step_size > 1e-3:
        assert (length > 0)[radius > 1e-3].all()  # a control: the attack does move


actions = st.sampled_from(["keep", "roll-back", "reset", "distance"])


@light
@given(
    rows=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.booleans()), min_size=1, max_size=8),
    eps_max=st.floats(1e-3, 1),
    eta=st.floats(1e-4, 0.5),
    on_success=actions,
    on_failure=actions,
)
def test_cat_budgets_stay_in_range(
    rows: list[tuple[float, float, bool]], eps_max: float, eta: float, on_success: str, on_failure: str
) -> None:
    share, way, success = (torch.tensor(column) for column in zip(*rows, strict=True))
    stored = share * eps_max
    attacked = stored + eta
    known = (attacked, way * attacked, success)
    eps = next_eps(*known, on_success=on_success, on_failure=on_failure, eta=eta, eps_max=eps_max)
    assert (eps >= 0).all()
    assert (eps <= eps_max).all()
    printed = next_eps(*known, eta=eta, eps_max=eps_max)
    assert torch.equal(printed, torch.where(success, 0, attacked.clamp(max=eps_max)))


@light
@given(rows=st.lists(st.integers(0, N - 1), min_size=1, max_size=6, unique=True), eta=st.floats(0.001, 0.2))
def test_only_the_state_of_the_batch_is_touched(
    tiny_net: Net, tiny_batch: BatchOf, rows: list[int], eta: float
) -> None:
    step = step_of(tiny_net(), ["cat-eps"], eps=0.1, options={"cat-eps": {"eta": eta}}, settings={"attack.steps": 2})
    eps = step.state.samples["cat-eps/eps"]
    eps.copy_(torch.linspace(0.01, 0.09, N))
    before, (x, y, _) = eps.clone(), tiny_batch(len(rows))
    step(x, y, torch.tensor(rows), epoch=0)
    touched = torch.zeros(N, dtype=torch.bool)
    touched[rows] = True
    assert torch.equal(eps[~touched], before[~touched])
    assert (eps[touched] != before[touched]).all()
    assert (eps >= 0).all() and (eps <= 0.1).all()


def linear(weight: Tensor, bias: Tensor) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(nn.Flatten(), nn.Linear(weight.shape[1], 2)).double()
    with torch.no_grad():
        net[1].weight.copy_(weight)
        net[1].bias.copy_(bias)
    return net


quarters = st.integers(-4, 4).map(lambda k: k / 4)


@pytest.mark.parametrize("norm", NORMS)
@light
@given(
    weight=st.lists(quarters, min_size=16, max_size=16),
    eps=st.lists(st.floats(0, 0.5), min_size=3, max_size=3),
    seed=st.integers(0, 1000),
)
def test_the_attack_reaches_the_optimum_of_a_linear_model(
    norm: str, weight: list[float], eps: list[float], seed: int
) -> None:
    """max over the ball of log(1 + exp(-margin)): x + eps sign(d), clipped to the box, or x + eps d / ||d||."""
    w, bias = torch.tensor(weight, dtype=torch.float64).view(2, 8), torch.tensor([0.1, -0.2], dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 2, 2, 2, generator=generator, dtype=torch.float64)
    x = 0.5 + 0.001 * x if norm == "l2" else x  # the closed form for l2 is for a box out of reach
    y, radius = torch.tensor([0, 1, 0]), torch.tensor(eps, dtype=torch.float64)
    net = linear(w, bias)
    step = step_of(net, [Given(eps)], lr=0.0, eps=0.5, settings={"attack.norm": norm})
    x_adv = step(x, y, torch.arange(3), epoch=0).x_train

    way = (w[1 - y] - w[y]).view_as(x)
    reach = radius.view(-1, 1, 1, 1)
    if norm == "linf":
        best = (x + reach * way.sign()).clamp(0, 1)
    else:
        best = x + reach * way / way.flatten(1).norm(dim=1).clamp(min=1e-9).view(-1, 1, 1, 1)
    assert torch.allclose(x_adv[way != 0], best[way != 0], rtol=0, atol=1e-9)

    def loss(images: Tensor) -> Tensor:
        return F.cross_entropy(net(images), y, reduction="none").detach()

    margin = (way * best).flatten(1).sum(1) + bias[1 - y] - bias[y]
    assert torch.allclose(loss(x_adv), F.softplus(margin), rtol=0, atol=1e-9)
    noise = torch.randn(3, 50, 2, 2, 2, generator=generator, dtype=torch.float64)
    scale = noise.flatten(2).abs().amax(2) if norm == "linf" else noise.flatten(2).norm(dim=2)
    for other in (noise / scale.view(3, 50, 1, 1, 1)).unbind(1):
        assert (loss((x + reach * other).clamp(0, 1)) <= loss(x_adv) + 1e-9).all()


# --- what the attack leaves alone -----------------------------------------------------------------


def global_generators() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - the global state is what this is about
    return torch.get_rng_state().tolist(), random.getstate(), name, keys.tolist(), *rest


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("mode", ["eval", "train", "train-frozen"])
def test_the_attack_leaves_everything_as_it_was(tiny_net: Net, tiny_batch: BatchOf, mode: str, init: str) -> None:
    net = tiny_net(True, dropout=0.5)
    next(module for module in net if isinstance(module, nn.Dropout)).eval()  # as its owner wants it, also in training
    net[5].bias.requires_grad_(False)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 5.0)

    def look() -> dict[str, Any]:
        return {
            "parameters": copies(dict(net.named_parameters())),
            "gradients": {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None},
            "buffers": copies(dict(net.named_buffers())),
            "trained": [p.requires_grad for p in net.parameters()],
        }

    def modes() -> list[bool]:
        return [module.training for module in net.modules()]

    spy = LabelSpy(look)
    step = step_of(net, ["cat-eps", "lsiw", spy], settings={"attack.mode": mode, "attack.init": init})
    before, modes_before, generators = look(), modes(), global_generators()
    step(*tiny_batch(), epoch=0)
    assert modes() == modes_before
    assert global_generators() == generators
    for kind in ("parameters", "gradients"):
        assert same(spy.after_attack[kind], before[kind])
    assert same(spy.after_attack["buffers"], before["buffers"]) == (mode != "train")
    assert spy.after_attack["trained"] == before["trained"] == look()["trained"]
    assert not same(look()["parameters"], before["parameters"])  # a control: the update did change the model


def test_global_generators_survive_a_failed_step(tiny_net: Net, tiny_batch: BatchOf) -> None:
    net = tiny_net(dropout=0.5)
    generators = global_generators()
    with pytest.raises(ZeroDivisionError):
        step_of(net, [Breaks])(*tiny_batch(), epoch=1)
    assert global_generators() == generators
    assert net.training


@pytest.mark.parametrize(
    ("mode", "plugins", "updates"),
    [
        ("eval", ["cat-eps"], 1),
        ("train-frozen", ["cat-eps"], 1),
        ("train", ["cat-eps"], 4 + 1),  # the iterates; not the success test
        ("eval", ["lsiw"], 1),  # neither the regularizer's forward nor the weight ascent's
    ],
)
def test_which_forwards_move_running_statistics(
    tiny_net: Net, tiny_batch: BatchOf, mode: str, plugins: list[str], updates: int
) -> None:
    net = tiny_net(True)
    step_of(net, plugins, settings={"attack.mode": mode, "attack.steps": 4})(*tiny_batch(), epoch=0)
    assert int(net[1].num_batches_tracked) == updates


def test_batch_norm_option(tiny_net: Net, tiny_batch: BatchOf) -> None:
    def statistics(views: str) -> tuple[int, Tensor]:
        net = tiny_net(True)
        step_of(net, ["lsiw"], settings={"update.batch_norm": views}, eps=0.2)(*tiny_batch(), epoch=0)
        return int(net[1].num_batches_tracked), net[1].running_mean

    (once, adversarial), (again, clean) = statistics("base_loss"), statistics("clean_logits_base")
    both, _ = statistics("adv_logits,clean_logits_base")
    assert (once, again, both) == (1, 1, 2)
    assert torch.equal(statistics("adv_logits")[1], adversarial)
    assert statistics("clean_logits_base,adv_logits,clean_logits_base")[0] == 3
    assert not torch.equal(clean, adversarial)
    first = tiny_net(True)[0](tiny_batch()[0])
    assert torch.allclose(clean, 0.1 * first.mean((0, 2, 3)), atol=1e-6)
    with pytest.raises(OptionError) as refused:
        step_of(tiny_net(True), settings={"update.batch_norm": "clean_logits"})
    assert str(refused.value) == (
        "update.batch_norm names clean_logits, a forward that this run never computes; it computes adv_logits."
    )


# --- inner_attack: samples are independent --------------------------------------------------------


def attacked(
    tiny_net: Net, data: tuple[Tensor, ...], parts: Iterable[Tensor], norm: str, init: str, seed: int
) -> tuple[Tensor, Tensor]:
    """x_adv of two epochs of CAT at constant weights, batch by batch, and the budgets that come out."""
    x, y, index = data
    step = step_of(
        tiny_net(dtype=x.dtype),
        ["cat-eps", "dirichlet-ls"],
        lr=0.0,
        eps=0.3,
        seed=seed,
        settings={"attack.norm": norm, "attack.init": init, "attack.steps": 5},
    )
    x_adv = x.new_empty(2, *x.shape)
    for epoch in range(2):
        for rows in parts:
            x_adv[epoch, rows] = step(x[rows], y[rows], index[rows], epoch=epoch).x_train
    return x_adv, step.state.samples["cat-eps/eps"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("norm", NORMS)
@settings(deadline=None, max_examples=12)
@given(order=st.permutations(range(7)), cut=st.integers(0, 6), init=st.sampled_from(INITS), seed=st.integers(0, 1000))
def test_permuting_and_splitting_a_batch_permutes_and_splits_the_examples(
    tiny_net: Net,
    tiny_batch: BatchOf,
    norm: str,
    dtype: torch.dtype,
    order: list[int],
    cut: int,
    init: str,
    seed: int,
) -> None:
    """Without batch statistics: bit for bit for linf in float64, where only signs count.

    Matrix products of other shapes round differently, which l2 steps show in the last place. In float32 that
    could also turn the sign of a gradient that is all rounding, a pixel among thousands; it did not in 10^5.
    """
    data, shuffled = tiny_batch(7, seed=seed, dtype=dtype), torch.tensor(order)
    parts = [part for part in (shuffled[:cut], shuffled[cut:]) if len(part)]
    whole, eps = attacked(tiny_net, data, [torch.arange(7)], norm, init, seed)
    split, split_eps = attacked(tiny_net, data, parts, norm, init, seed)
    if norm == "linf" and dtype == torch.float64:
        assert torch.equal(split, whole)
    else:
        close = torch.isclose(split, whole, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5)
        assert close.float().mean() > (0.995 if norm == "linf" else 0.9999)
    assert torch.equal(split_eps, eps)
    assert (whole != data[0]).flatten(2).any(2).all()  # a control: everything was attacked


# --- success is judged at the final iterate -------------------------------------------------------


class Landscape(nn.Module):
    """Logits (0, scale * height(x)) of one pixel: class 1 where the height is positive."""

    def __init__(self, height: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.height, self.scale = height, nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        height = self.scale * self.height(x.flatten(1).squeeze(1))
        return torch.stack((torch.zeros_like(height), height), dim=1)


@pytest.mark.parametrize(
    ("height", "flipped"),
    [
        (lambda x: x - 0.375, [False, False, False, False, True]),  # only by the last move
        (lambda x: 0.02**2 - (x - 0.36) ** 2, [False, False, False, True, False]),  # the last move goes past it
        (lambda x: 0.045**2 - (x - 0.4) ** 2, [False, False, False, False, True]),
        (lambda x: x - 0.5, [False, False, False, False, False]),
    ],
)
def test_success_is_judged_at_the_final_iterate(height: Callable[[Tensor], Tensor], flipped: list[bool]) -> None:
    """From 0.2 in four steps of 0.05; `flipped` is the truth at each of the five points."""
    path = 0.2 + 0.05 * torch.arange(5)
    assert (height(path) > 0).tolist() == flipped
    watch = Iterates()
    step = step_of(
        Landscape(height),
        ["cat-eps", watch],
        eps=0.2,
        options={"cat-eps": {"eta": 0.25, "eps_max": 0.3}},
        settings={"attack.steps": 4, "attack.step_size": 0.05},
    )
    report = step(torch.full((1, 1, 1, 1), 0.2), torch.tensor([0]), torch.tensor([3]), epoch=0)
    walked = torch.stack([*watch.seen, report.x_train]).flatten()
    assert torch.allclose(walked, path)
    assert int(report.success) == flipped[-1]
    assert step.state.samples["cat-eps/eps"][3] == (0.0 if flipped[-1] else torch.tensor(0.25))


# --- target_label ---------------------------------------------------------------------------------


@light
@given(
    share=st.lists(st.just(0.0) | st.floats(0, 1, width=32), min_size=4, max_size=4),
    c=st.floats(0, 2),
    seed=seeds,
)
def test_targets_lie_on_the_simplex(
    tiny_net: Net, tiny_batch: BatchOf, share: list[float], c: float, seed: int
) -> None:
    """For any budget up to the largest that the smoothing allows."""
    eps, spy = [value * 0.5 for value in share], LabelSpy()
    x, y, index = tiny_batch()
    arguments: dict[str, Any] = {"options": {"dirichlet-ls": {"c": c}}, "settings": {"attack.steps": 1}, "seed": seed}
    step_of(tiny_net(), [Given(eps), "dirichlet-ls", spy], **arguments)(x, y, index, epoch=0)
    alpha = c * torch.tensor(eps)
    for target in spy.seen.values():
        assert (target >= 0).all()
        assert torch.allclose(target.sum(1), torch.ones(4), rtol=0, atol=1e-6)
        assert (target[range(4), y] >= 1 - alpha - 1e-6).all()
        assert torch.equal(target[alpha == 0], F.one_hot(y, 3).float()[alpha == 0])
    noisy = alpha > 1e-3
    assert (spy.seen["attack"][noisy] != spy.seen["train"][noisy]).any(1).all()  # drawn afresh after the attack


def test_the_default_target_is_one_hot(tiny_net: Net, tiny_batch: BatchOf) -> None:
    spy, (x, y, index) = LabelSpy(), tiny_batch()
    step_of(tiny_net(), [spy])(x, y, index, epoch=0)
    assert spy.seen.keys() == {"attack", "train"}
    assert all(torch.equal(target, F.one_hot(y, 3).float()) for target in spy.seen.values())


@light
@given(alpha=st.floats(0, 1), mass=st.lists(st.floats(0.01, 1), min_size=5, max_size=5))
def test_smoothing_is_convex(alpha: float, mass: list[float]) -> None:
    target = torch.eye(5, dtype=torch.float64)
    noise = torch.tensor(mass, dtype=torch.float64)
    noise = (noise / noise.sum()).expand(5, 5)
    rows = smooth(target, noise, torch.full((5,), alpha, dtype=torch.float64))
    assert (rows >= 0).all()
    assert torch.allclose(rows.sum(1), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.allclose(rows, (1 - alpha) * target + alpha * noise)


# --- weight_perturbation --------------------------------------------------------------------------


class SeenAwp(Awp):
    """AWP that keeps its answer."""

    name = "awp"

    @hookimpl
    def weight_perturbation(self, params, gradient_at, run):
        self.seen = copies(super().weight_perturbation(params, gradient_at, run))
        return self.seen


@light
@given(gamma=st.floats(1e-4, 1), seed=st.integers(0, 1000))
def test_awp_moves_each_layer_uphill_by_gamma(tiny_net: Net, tiny_batch: BatchOf, gamma: float, seed: int) -> None:
    net, (x, y, index) = tiny_net(dtype=torch.float64), tiny_batch(seed=seed, dtype=torch.float64)
    step = step_of(net, [SeenAwp], lr=0.0, options={"awp": {"gamma": gamma}}, settings={"attack.steps": 2})
    before = copies(net.state_dict())
    x_train = step(x, y, index, epoch=0).x_train
    assert same(net.state_dict(), before)

    gradients = torch.autograd.grad(F.cross_entropy(net(x_train), y), list(net.parameters()))
    uphill = dict(zip(dict(net.named_parameters()), gradients, strict=True))
    shift = step.composition.plugins[0].seen
    assert shift.keys() == {"0.weight", "5.weight"}  # biases stay
    for name, v in shift.items():
        assert math.isclose(v.norm(), gamma * before[name].norm(), rel_tol=1e-9)
        assert torch.allclose(v / v.norm(), uphill[name] / uphill[name].norm(), rtol=0, atol=1e-9)


def test_an_exception_leaves_nothing_behind(tiny_net: Net, tiny_batch: BatchOf) -> None:
    """Half way through an update at theta+v: the model, gradients, optimizer and per-sample state are as before."""

    net = tiny_net(True, dropout=0.2)
    step = step_of(net, ["cat-eps", "lsiw", Breaks])
    step(*tiny_batch(), epoch=0)

    def look() -> list[Mapping[str, Tensor]]:
        moments = {str(k): s["momentum_buffer"] for k, s in step.optimizer.state_dict()["state"].items()}
        gradients = {name: p.grad for name, p in net.named_parameters()}
        return [copies(each) for each in (net.state_dict(), gradients, moments, step.state.samples)]

    before = look()
    with pytest.raises(ZeroDivisionError):
        step(*tiny_batch(), epoch=1)
    for now, was in zip(look(), before, strict=True):
        assert same(now, was)
    step(*tiny_batch(), epoch=2)
    assert not any(same(now, was) for now, was in zip(look(), before, strict=True))


@pytest.mark.parametrize("step_at", ["theta", "theta+v"])
def test_an_optimizer_that_fails_leaves_the_parameters(tiny_net: Net, tiny_batch: BatchOf, step_at: str) -> None:
    net = tiny_net()
    before, at_failure = copies(dict(net.named_parameters())), {}

    class Fails(torch.optim.SGD):
        def step(self, closure=None):
            at_failure.update(copies(dict(net.named_parameters())))
            raise ZeroDivisionError

    options = {"awp": {"gamma": 0.1, "step_at": step_at}}
    step = Step(net, Fails(net.parameters(), 0.1), ["awp"], num_samples=N, options=options)
    with pytest.raises(ZeroDivisionError):
        step(*tiny_batch(), epoch=0)
    assert same(dict(net.named_parameters()), before)
    assert same(at_failure, before) == (step_at == "theta")  # a control: theta+v really was in place


@pytest.mark.parametrize("loss", ["adv_ce", "objective"])
def test_gradient_at_touches_nothing(tiny_net: Net, tiny_batch: BatchOf, loss: str) -> None:
    net = tiny_net(True, dropout=0.5)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 5.0)
    looked = []

    class Looks(Plugin):
        name = "looks"

        def passes(self, hook, costs):
            return costs.objective * 3 if loss == "objective" else costs.adv_ce * 3

        @hookimpl
        def weight_perturbation(self, params, gradient_at):
            for shift in (None, None, {"0.weight": torch.ones_like(params["0.weight"])}):
                looked.append(gradient_at(shift, loss=loss))
            assert all((p.grad == 5).all() for p in net.parameters())
            assert int(net[1].num_batches_tracked) == 0
            return {}

    before = copies(dict(net.named_parameters()))
    step_of(net, [Looks], lr=0.0)(*tiny_batch(), epoch=0)
    assert same(dict(net.named_parameters()), before)
    assert looked[0].keys() == before.keys()
    first, again, moved = (gradient["5.weight"] for gradient in looked)
    assert not torch.equal(first, again)  # each call drops other units
    assert not torch.equal(moved, first)
    assert not torch.equal(moved, again)


@pytest.mark.parametrize(
    ("planned", "asked"),
    [
        (lambda costs: costs.adv_ce * 2 + costs.objective, lambda epoch: ("adv_ce", "objective", "adv_ce")),
        (
            lambda costs: costs.adv_ce if costs.epoch % 2 else costs.objective,
            lambda epoch: ("adv_ce" if epoch % 2 else "objective",),
        ),
    ],
)
def test_both_losses_of_gradient_at_cost_what_they_say(
    tiny_net: Net, tiny_batch: BatchOf, planned: Any, asked: Callable[[int], tuple[str, ...]]
) -> None:
    class Both(Plugin):
        name = "both"

        def passes(self, hook, costs):
            return planned(costs)

        @hookimpl
        def weight_perturbation(self, gradient_at, run):
            for loss in asked(run.epoch):
                gradient_at(loss=loss)
            return {}

    step = step_of(tiny_net(True), [Both, "trades"], lr=0.0)
    for epoch in range(2):
        forwards = 2 + sum(1 if loss == "adv_ce" else 2 for loss in asked(epoch))  # of trades' own loss two
        assert step(*tiny_batch(), epoch=epoch).passes["update"].forward == forwards
        assert step.composition.at(epoch).passes["update"].forward == forwards


# --- instance_weight ------------------------------------------------------------------------------

keys_and_ids = st.integers(1, 12).flatmap(
    lambda m: st.tuples(
        st.lists(st.sampled_from([-1.0, -0.0, 0.0, 0.5, 2.0]) | st.floats(-5, 5, width=32), min_size=m, max_size=m),
        st.lists(st.integers(0, 2**40), min_size=m, max_size=m, unique=True),
    )
)


@settings(deadline=None, max_examples=100)
@given(drawn=keys_and_ids, data=st.data())
def test_weights_are_the_ranks_with_ties_by_sample(drawn: tuple[list[float], list[int]], data: st.DataObject) -> None:
    values, index = drawn
    m = len(values)
    order = sorted(range(m), key=lambda i: (-values[i], index[i]))
    expected = [1 - order.index(i) / m for i in range(m)]

    def weights(rows: list[int]) -> list[float]:
        rank = ranks(torch.tensor([values[i] for i in rows]), torch.tensor([index[i] for i in rows]))
        return rank_weights(rank, "linear", 0.1, torch.float64).tolist()

    assert weights(list(range(m))) == expected
    assert np.allclose(sorted(expected), np.arange(1, m + 1) / m)
    shuffled = data.draw(st.permutations(range(m)))
    assert weights(shuffled) == [expected[i] for i in shuffled]


# --- randomness: nobody shifts anybody's draws ----------------------------------------------------


@pytest.mark.parametrize("company", [["awp"], ["lsiw"], ["cat-eps"]], ids=str)
def test_company_does_not_change_anybodys_draws(tiny_net: Net, tiny_batch: BatchOf, company: list[Any]) -> None:
    def first_step(others: list[Any], seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
        net, spy, watch, (x, _, index) = tiny_net(), LabelSpy(), Iterates(), tiny_batch(8)
        budget = [] if "cat-eps" in others else [Given([0.02] * N)]
        step = step_of(
            net,
            ["dirichlet-ls", spy, watch, *budget, *others],
            eps=0.02,
            seed=seed,
            options={"cat-eps": {"eta": 0.02}} if "cat-eps" in others else {},
            settings={"attack.init": "uniform"},
        )
        step(x, net(x).argmax(1), index, epoch=0)
        return spy.seen, watch.seen[0]

    alone, start = first_step([])
    targets, other_start = first_step(company)
    assert torch.equal(other_start, start)
    if "cat-eps" in company:  # whose label budget is 0 in the attack and after a success
        smoothed = targets["train"].amax(1) < 1
        assert smoothed.any()
        assert torch.equal(targets["train"][smoothed], alone["train"][smoothed])
    else:
        assert same(targets, alone)
    reseeded, reseeded_start = first_step(company, seed=1)
    assert not torch.equal(reseeded["train"], targets["train"])
    assert not torch.equal(reseeded_start, start)


class Idle(Plugin):
    """Runs the model for nothing: a gradient that is dropped, a shift of nothing, a term of zero."""

    name = "idle"

    def passes(self, hook, costs):
        return costs.adv_ce if hook == "weight_perturbation" else Passes()

    @hookimpl
    def weight_perturbation(self, gradient_at):
        gradient_at()
        return {}

    @hookimpl
    def extra_regularizer(self, clean_logits, adv_logits_base):
        return 0 * (clean_logits + adv_logits_base).sum(1)


def test_work_for_nothing_leaves_the_bits() -> None:
    """What the installed plugins leave alone is in test_methods.py."""
    assert both(run(Idle), run())


def test_a_saturated_hinge_changes_no_bit(tiny_net: Net, tiny_batch: BatchOf) -> None:
    """Constant over the ball, so without gradient. The hinge outside never saturates at a wrong class's lead."""
    x, _, index = tiny_batch(8)
    logits = tiny_net()(x)
    right, wrong = logits.argmax(1), logits.argmin(1)

    def run(plugins: list[str], y: Tensor, **values: Any) -> tuple[Tensor, dict[str, Tensor]]:
        net = tiny_net()
        step = step_of(net, plugins, eps=1e-3, options=dict.fromkeys(plugins, values))
        return step(x, y, index, epoch=0).x_train, copies(net.state_dict())

    for y, kappa, inner in ((right, 0.0, "literal"), (wrong, 0.0, "mirrored")):
        (x_train, plain), (hinged, weights) = run([], y), run(["cat-margin"], y, kappa=kappa, inner=inner)
        lead = margin(tiny_net()(x_train), y)
        assert (lead < 0).all() if inner == "literal" else (lead > 0).all()
        assert torch.equal(x_train, hinged)
        assert same(plain, weights) == (inner == "literal")
    assert not same(run([], right)[1], run(["cat-margin"], right, kappa=1e6)[1])


# --- models that draw -----------------------------------------------------------------------------


def test_dropout_is_repeatable_and_addressed(tiny_net: Net, tiny_batch: BatchOf) -> None:
    def run(plugins: list[str], seed: int = 0, global_seed: int = 0) -> tuple[list[Tensor], dict[str, Tensor]]:
        torch.manual_seed(global_seed)
        net = tiny_net(dropout=0.5)
        step = step_of(net, plugins, eps=0.2, seed=seed, settings={"attack.mode": "train-frozen"})
        return [step(*tiny_batch(), epoch=0).x_train for _ in range(2)], copies(net.state_dict())

    with torch.random.fork_rng():
        (plain, again), weights = run([])
        repeated, repeated_weights = run([], global_seed=99)
        assert torch.equal(repeated[0], plain) and torch.equal(repeated[1], again)
        assert same(repeated_weights, weights)
        with_awp, awp_weights = run(["awp"])
        assert torch.equal(with_awp[0], plain)  # the attack's masks are its own
        assert not same(awp_weights, weights)
        assert not torch.equal(run([], seed=1)[0][0], plain)


def test_every_step_drops_other_units(tiny_net: Net, tiny_batch: BatchOf) -> None:
    step = step_of(tiny_net(dropout=0.5), lr=0.0, settings={"attack.steps": 0})
    first, second = (float(step(*tiny_batch(), epoch=0).loss) for _ in range(2))
    later = float(step(*tiny_batch(), epoch=1).loss)
    assert len({first, second, later}) == 3


# --- NaN and Inf ----------------------------------------------------------------------------------


class Later(Plugin):
    """Base of plugins that break in epoch 1."""

    def active(self, hook, epoch):
        return epoch == 1


class NanLoss(Later):
    name = "nan-loss"

    @hookimpl
    def extra_regularizer(self, adv_logits):
        return adv_logits.sum(1) * math.nan


class NanWeightGradient(Later):
    """Zero, with a slope of infinity times zero."""

    name = "nan-weight-gradient"

    @hookimpl
    def extra_regularizer(self, adv_logits):
        return (adv_logits.sum(1) * 0).sqrt()


class NanInputGradient(Later):
    name = "nan-input-gradient"

    @hookimpl
    def attack_objective(self):
        return lambda logits: (logits.sum(1) * 0).sqrt()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("plugin", "what"),
    [
        (NanLoss, "the loss (term nan-loss)"),
        (NanWeightGradient, "a parameter gradient (0.weight)"),
        (NanInputGradient, "an input gradient of the attack"),
    ],
)
def test_a_step_that_is_not_finite_is_not_applied(
    tiny_net: Net, tiny_batch: BatchOf, plugin: type[Plugin], what: str, norm: str
) -> None:
    net = tiny_net(True)
    step = step_of(net, ["cat-eps", plugin], settings={"attack.norm": norm})
    step(*tiny_batch(), epoch=0)

    def look() -> list[Mapping[str, Tensor]]:
        moments = {str(k): s["momentum_buffer"] for k, s in step.optimizer.state_dict()["state"].items()}
        return [copies(each) for each in (net.state_dict(), moments, step.state.samples)]

    before = look()
    with pytest.raises(NonFinite) as refused:
        step(*tiny_batch(), epoch=1)
    owners = {
        NanInputGradient: " (objective of nan-input-gradient)",
        NanWeightGradient: " (gradient of extra_regularizer of nan-weight-gradient)",
    }
    assert str(refused.value) == (
        f"NaN or Inf in {what}{owners.get(plugin, '')} at epoch 1, step 0. The step was not applied; "
        "lower optimizer.lr or look at the options of the plugins in this run."
    )
    for now, was in zip(look(), before, strict=True):
        assert same(now, was)
    assert all(p.grad is None for p in net.parameters())
    step(*tiny_batch(), epoch=2)
    assert all(p.isfinite().all() for p in net.parameters())
