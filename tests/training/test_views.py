"""`run.forward` and `run.input_gradient`: what they compute, where, and what is booked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import advkit
from advkit import HookContract, OptionError, Passes, Plugin, Step, hookimpl
from advkit.training import twice
from advkit.training.twice import refuse_once_differentiable

Net = Callable[..., nn.Sequential]
BatchOf = Callable[..., tuple[Tensor, Tensor, Tensor]]


def looking(look: Callable[..., Tensor], passes: Passes, hook: str = "extra_regularizer") -> type[Plugin]:
    """A plugin whose loss term is `look` of the run and the batch."""

    class Looking(Plugin):
        name = "looking"

        def passes(self, asked: str, costs: advkit.Costs) -> Passes:
            return passes

    def answer(self: Any, batch: advkit.Batch, run: advkit.Run) -> Tensor:
        return look(run, batch)

    setattr(Looking, hook, hookimpl(answer))
    answer.__name__ = hook
    return Looking


def step_of(net: nn.Module, *plugins: Any, **options: Any) -> Step:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    settings = {"attack.steps": 1, "run.check_hooks": True}
    return Step(net, optimizer, plugins, num_samples=8, eps=0.1, settings=settings, options=options)


def first(logits: Tensor) -> Tensor:
    return logits.softmax(1)[:, 0]


def test_what_they_see(tiny_net: Net, tiny_batch: BatchOf) -> None:
    """The net as it is in the update: in train mode, at theta."""
    net, (x, y, index) = tiny_net(), tiny_batch()
    seen: dict[str, Tensor] = {}

    def look(run: advkit.Run, batch: advkit.Batch) -> Tensor:
        seen["logits"] = run.forward(batch.x, gradient=False)
        seen["gradient"] = run.input_gradient(batch.x, first)
        return 0 * run.forward(batch.x).sum(1)

    step = step_of(net, looking(look, Passes(3, 1, 1)))
    report = step(x, y, index, epoch=0)
    assert report.passes["update"] == Passes(forward=4, input_backward=1, full_backward=2)
    assert report.demanded_by["update.input gradient of looking"] == ["looking"]
    assert not seen["logits"].requires_grad and not seen["gradient"].requires_grad
    leaf = x.clone().requires_grad_()
    logits = net.train()(leaf)
    (gradient,) = torch.autograd.grad(first(logits).sum(), leaf)
    assert torch.allclose(seen["logits"], logits.detach(), atol=1e-6)
    assert torch.allclose(seen["gradient"], gradient, atol=1e-6)


def test_they_are_at_the_moved_weights_and_in_the_cost_of_the_objective(tiny_net: Net, tiny_batch: BatchOf) -> None:
    """AWP's v of the whole objective: the term runs twice, first at theta, then at theta+v, and is in v."""
    heights = []

    def look(run: advkit.Run, batch: advkit.Batch) -> Tensor:
        values = run.forward(batch.x).square().sum(1)
        heights.append(float(values.detach().mean()))
        return values

    looker = looking(look, Passes(1, full_backward=1))
    step = step_of(tiny_net(), looker, "awp", awp={"loss": "objective", "gamma": 0.05})
    report = step(*tiny_batch(), epoch=0)
    assert report.passes["update"] == step.composition.at(0).passes["update"] == Passes(4, full_backward=4)
    assert len(heights) == 2 and heights[1] > heights[0] * 1.001


def test_the_gradient_of_a_gradient(tiny_net: Net, tiny_batch: BatchOf) -> None:
    """Through `create_graph` the weights learn to flatten the loss; the net has a kink nowhere."""
    net = nn.Sequential(*(nn.Softplus() if isinstance(layer, nn.ReLU) else layer for layer in tiny_net()))
    x, y, index = tiny_batch()

    def steep(run: advkit.Run, batch: advkit.Batch) -> Tensor:
        return run.input_gradient(batch.x, first, create_graph=True).flatten(1).square().sum(1)

    step = step_of(net, looking(steep, Passes(1, 1, 1)))
    report = step(x, y, index, epoch=0)
    assert report.passes["update"] == Passes(forward=2, input_backward=1, full_backward=2)


def attention(z: Tensor) -> Tensor:
    z = z.flatten(2)
    return F.scaled_dot_product_attention(z, z, z)


def sums(z: Tensor) -> Tensor:
    rows = torch.tensor([len(z)])
    return z + torch.segment_reduce(z, "sum", lengths=rows, axis=0)


ONCE = (
    r"^The plugin looking differentiates a gradient of the model again, and torch can differentiate _s\w+ only once\. "
)


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        (attention, ONCE + r"Call it within .*sdpa_kernel\(SDPBackend\.MATH\), .*, or leave the plugin looking out\.$"),
        (sums, ONCE + r"Use another operation, or leave the plugin looking out\.$"),
        (
            lambda z: torch.special.zeta(z + 2, z + 1),
            r"^The model computes with zeta, of which torch has no derivative; ",
        ),
    ],
)
def test_what_torch_can_not_differentiate_again_is_named(
    tiny_net: Net, tiny_batch: BatchOf, layer: Callable[[Tensor], Tensor], sentence: str
) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = tiny_net()

        def forward(self, x: Tensor) -> Any:
            return self.net(layer(x).view_as(x))

    def steep(run: advkit.Run, batch: advkit.Batch) -> Tensor:
        return run.input_gradient(batch.x, first, create_graph=True).flatten(1).square().sum(1)

    plugin = looking(steep, Passes(1, 1, 1))
    with pytest.raises(OptionError, match=sentence):
        step_of(Own(), plugin)(*tiny_batch(), epoch=0)
    if layer is attention:  # as the sentence says
        with sdpa_kernel(SDPBackend.MATH):
            step_of(Own(), plugin)(*tiny_batch(), epoch=0)


@pytest.mark.parametrize("hook", ["instance_weight", "target_label"])
def test_beside_the_loss_terms_nothing_is_booked(tiny_net: Net, tiny_batch: BatchOf, hook: str) -> None:
    looker = looking(lambda run, batch: run.forward(batch.x), Passes(), hook)
    looker.terms = ("base_loss",)  # type: ignore[assignment]
    with pytest.raises(HookContract) as refused:
        step_of(tiny_net(), looker)(*tiny_batch(), epoch=0)
    assert str(refused.value) == (
        "Plugin looking looks at the net where no view is booked; call run.forward and run.input_gradient in base_loss "
        "or extra_regularizer."
    )


@pytest.mark.parametrize(
    ("what", "asks", "sentence"),
    [
        ("run.forward", lambda run, x: run.forward("x"), "images (B, C, H, W) float32 are expected, not str"),
        (
            "run.forward",
            lambda run, x: run.forward(x.double()),
            "images (B, C, H, W) float32 are expected, not (4, 2, 4, 4) float64",
        ),
        (
            "run.input_gradient",
            lambda run, x: run.input_gradient(None, first),
            "images (B, C, H, W) float32 are expected, not NoneType",
        ),
        (
            "the loss of run.input_gradient",
            lambda run, x: run.input_gradient(x, lambda z: z.sum()),
            "it must return (4,), not () float32",
        ),
        (
            "the loss of run.input_gradient",
            lambda run, x: run.input_gradient(x, lambda z: first(z).detach()),
            "its values must depend on the logits, undetached",
        ),
        (
            "the loss of run.input_gradient",
            lambda run, x: run.input_gradient(x, "ce"),
            "a callable is expected, not str",
        ),
    ],
)
def test_what_they_can_not_be_asked(
    tiny_net: Net, tiny_batch: BatchOf, what: str, asks: Callable[..., Tensor], sentence: str
) -> None:
    looker = looking(lambda run, batch: asks(run, batch.x).flatten(1).sum(1), Passes(1, 1))
    with pytest.raises(HookContract) as refused:
        step_of(tiny_net(), looker)(*tiny_batch(), epoch=0)
    page = "See docs/writing-a-plugin.md."
    assert str(refused.value) == f"Plugin looking broke the contract of {what}: {sentence}. {page}"


def test_undeclared_passes_stop_the_step(tiny_net: Net, tiny_batch: BatchOf) -> None:
    looker = looking(lambda run, batch: run.forward(batch.x).sum(1), Passes())
    with pytest.raises(HookContract, match="ran other passes than declared"):
        step_of(tiny_net(), looker)(*tiny_batch(), epoch=0)


class Recomputes(nn.Module):
    """Computes its first layer again in the backward, or not. All its sizes are 8, so that no check of sizes helps."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.again = again
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def hidden(self, x: Tensor) -> Tensor:
        return self.first(x).tanh()

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.last(checkpoint(self.hidden, x, use_reentrant=False) if self.again else self.hidden(x))


@pytest.mark.parametrize("plugin", ["gradalign", "cure"])
def test_a_net_that_computes_again_in_the_backward_has_the_same_gradients(plugin: str) -> None:
    index = torch.arange(8)
    x, weights = torch.rand(8, 2, 2, 2, generator=torch.Generator().manual_seed(1)), []
    for again in (False, True):
        net = Recomputes(again)
        step = Step(net, torch.optim.SGD(net.parameters(), 0.1), plugin, num_samples=8, eps=0.1)
        step(x, index % 3, index, epoch=0)
        weights.append(net.first.weight.detach())
    assert torch.equal(*weights)


class Detached(torch.autograd.Function):
    """tanh, whose backward has the output as a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.y = x.tanh().detach()
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * (1 - ctx.y**2)


class Saved(Detached):
    """And as it is to be."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * (1 - ctx.saved_tensors[0] ** 2)


class Remade(Detached):
    """Its gradient is computed anew in the backward, as hand-written checkpointing does, and has none itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            return torch.autograd.grad(x.tanh(), x, gradient)[0]


class Rounds(torch.autograd.Function):
    """Straight through a rounding: no gradient of it is that of its values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (8 * x).round() / 8

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


class Bends(nn.Module):
    def __init__(self, bent: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.second, self.last = nn.Linear(36, 20), nn.Linear(20, 20), nn.Linear(20, 3)
        self.bent = bent

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.second(self.bent(self.first(x.flatten(1)))).tanh())
        return logits


SMALL = torch.rand(12, 1, 6, 6, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3, torch.arange(12)


def gradient_of(bent: Any, plugins: str) -> Tensor:
    net = Bends(bent)
    settings = {"attack.steps": 2, "run.check_hooks": True}
    Step(net, None, plugins, num_samples=12, eps=0.1, settings=settings).loss(*SMALL, epoch=0).backward()
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


@pytest.mark.parametrize("plugin", ["cure", "gradalign"])
def test_a_net_that_is_differentiable_once_is_refused_where_twice_is_needed(plugin: str) -> None:
    """The net is named, and not the plugin. The controls: nobody needs it, a right Function, straight through."""
    for bent in (Detached.apply, Remade.apply):
        with pytest.raises(OptionError, match=f"^The model is differentiable once only: .* the plugin {plugin} needs"):
            gradient_of(bent, plugin)
        assert torch.allclose(gradient_of(bent, ""), gradient_of(torch.tanh, ""), rtol=1e-4, atol=1e-7)
    assert torch.allclose(gradient_of(Saved.apply, plugin), gradient_of(torch.tanh, plugin), rtol=1e-4, atol=1e-7)
    gradient_of(Rounds.apply, plugin)


@pytest.mark.parametrize("bent", [nn.ReLU(), nn.GELU(), nn.ELU(), nn.Softplus(), nn.BatchNorm1d(20), nn.Dropout(0.3)])
def test_honest_nets_are_far_from_being_refused(bent: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """By more than a hundredth of what is tolerated, so that no rounding is taken for a fault."""
    monkeypatch.setattr(twice, "TOLERANCE", twice.TOLERANCE / 100)
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 36)
    )
    whole = nn.Sequential(net, Bends(bent))
    for training in (True, False):
        refuse_once_differentiable(whole.train(training), SMALL[0], "any")
