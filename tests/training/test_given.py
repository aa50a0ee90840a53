"""Models, optimizers and batches that would silently train something else."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import advkit
from advkit import Dataset, NonFinite, OptionError, Plugin, Splits, Step, hookimpl
from advkit.config.layer import Layer
from advkit.config.resolve import resolve
from advkit.training.plan import plan

BatchOf = Callable[..., tuple[Tensor, Tensor, Tensor]]
FEATURES = 2 * 4 * 4


def step_of(net: nn.Module, plugins: Any = (), *, optimizer: Any = None, **arguments: Any) -> Step:
    settings = {"attack.steps": 2, **arguments.pop("settings", {})}
    optimizer = optimizer or torch.optim.SGD(net.parameters(), 0.1)
    return Step(net, optimizer, plugins, num_samples=16, eps=0.1, settings=settings, **arguments)


def net(*inner: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*inner, nn.Flatten(), nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, 3))


class Around(nn.Module):
    """A net around a core."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core = core

    def forward(self, x: Tensor) -> Tensor:
        return self.core(x)


class Recomputes(Around):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.core, x, use_reentrant=False)


class OwnReference(Around):
    """Reads a weight past whatever is put in its place."""

    def __init__(self, core: nn.Sequential) -> None:
        super().__init__(core)
        self.references = [core[-1].weight]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.core[:-1](x), self.references[0], self.core[-1].bias)


class Captured(Around):
    """Its last layer is a function that has captured the weights."""

    def __init__(self, core: nn.Sequential) -> None:
        super().__init__(core)
        weight, bias = core[-1].weight, core[-1].bias
        self.head = lambda features: F.linear(features, weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.core[:-1](x))


class Keeps(Around):
    """Keeps what it computed of a weight until torch counts another version, as every tensor of its own begins at 0."""

    kept: Any = (None, None)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.core[-1].weight
        if self.kept[0] != weight._version:
            self.kept = weight._version, weight * 1
        return F.linear(self.core[:-1](x), self.kept[1], self.core[-1].bias)


class InPlace(Around):
    def forward(self, x: Tensor) -> Tensor:
        return self.core(x.sub_(0.5).div_(0.25))


@pytest.mark.parametrize("kind", [Recomputes, OwnReference, Captured, Keeps])
@pytest.mark.parametrize("plugins", ["awp", "lsiw", "trades,awp"])
def test_a_gradient_past_the_perturbation_is_refused(tiny_batch: BatchOf, kind: type[Around], plugins: str) -> None:
    model = kind(net())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(OptionError, match="gradient at perturbed weights is off by"):
        step_of(model, plugins, options={"awp": {"gamma": 0.05}})(*tiny_batch(), epoch=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Residual(Around):
    """Its branch is recomputed, and behind a layer of zeros, as many nets begin."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__(core)
        self.branch = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.GroupNorm(1, 2))
        nn.init.zeros_(self.branch[1].weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.core(x + checkpoint(self.branch, x, use_reentrant=False))


class Hooked(Around):
    """A hook of its own computes with a weight that it refers to."""

    def __init__(self, core: nn.Sequential) -> None:
        super().__init__(core)
        self.scale = nn.Linear(8, 8, bias=False)
        weight = self.scale.weight
        core[-3].register_forward_hook(lambda module, given, output: output @ weight)


def of_a_zero_head() -> Around:
    model = Recomputes(net())
    nn.init.zeros_(model.core[-1].weight)
    return model


@pytest.mark.filterwarnings("ignore:The attack moved 0 of 4 images")
@pytest.mark.parametrize("build", [of_a_zero_head, lambda: Residual(net()), lambda: Hooked(net())])
@pytest.mark.parametrize("plugins", ["awp", "lsiw"])
def test_zeros_and_hooks_hide_nothing_from_the_probe(tiny_batch: BatchOf, build: Any, plugins: str) -> None:
    """v is 0 in front of a layer of zeros at the first step, and from the second on it is not."""
    with pytest.raises(OptionError, match="gradient at perturbed weights is off by"):
        step_of(build(), plugins)(*tiny_batch(), epoch=0)


class Draws(Around):
    """Draws from a generator of its own, which `where` keeps."""

    def __init__(self, core: nn.Module, where: Callable[[torch.Generator], Any]) -> None:
        super().__init__(core)
        self.kept = where(torch.Generator().manual_seed(1))

    def forward(self, x: Tensor) -> Tensor:
        kept = self.kept
        generator = kept() if callable(kept) else kept["it"][0] if isinstance(kept, dict) else kept
        return self.core(x + 0.1 * torch.rand(x.shape, generator=generator))


@pytest.mark.filterwarnings("ignore:The model's logits depend on what it has seen")
@pytest.mark.parametrize("where", [lambda it: it, lambda it: {"it": [it]}, lambda it: lambda: it])
def test_a_generator_of_its_own_is_not_taken_for_recomputing(tiny_batch: BatchOf, where: Any) -> None:
    step = step_of(Draws(net(), where), "lsiw")
    assert step(*tiny_batch(), epoch=0).shift_ratio > 0


def test_what_can_not_be_probed_is_told_as_what_it_is(tiny_batch: BatchOf) -> None:
    hidden = iter(range(10**6))  # no copy of it can be put back
    model = Draws(net(), lambda _: lambda: torch.Generator().manual_seed(next(hidden)))
    with pytest.raises(OptionError, match="answers differently from one call to the next, with its random numbers"):
        step_of(model, "lsiw")(*tiny_batch(), epoch=0)


def test_a_hook_may_make_the_weights_of_another_module(tiny_batch: BatchOf) -> None:
    """As weight norm by hand, which returns nothing."""
    model = net()
    model.register_parameter("direction", nn.Parameter(model[1].weight.detach().clone()))
    del model[1]._parameters["weight"]
    model[1].weight = model.direction / model.direction.norm(dim=1, keepdim=True)

    def makes(module: nn.Module, given: Any) -> None:
        module[1].weight = module.direction / module.direction.norm(dim=1, keepdim=True)

    model.register_forward_pre_hook(makes)
    step = step_of(model, "awp")
    for _ in range(2):
        assert step(*tiny_batch(), epoch=0).shift_ratio > 0


def test_hooks_are_the_users_own_afterwards(tiny_batch: BatchOf) -> None:
    model, seen = net(), []
    handle = model[1].register_forward_hook(lambda *_: seen.append(1))
    doubled = model[1].register_forward_hook(lambda module, given, output: 2 * output)
    kept = dict(model[1]._forward_hooks)
    step = step_of(model, "awp")
    step(*tiny_batch(), epoch=0)
    assert dict(model[1]._forward_hooks) == kept and seen
    handle.remove()
    doubled.remove()
    assert not model[1]._forward_hooks
    step(*tiny_batch(), epoch=0)


@pytest.mark.parametrize("plugins", ["", "trades"])
def test_recomputing_is_fine_where_nothing_perturbs(tiny_batch: BatchOf, plugins: str) -> None:
    gradients = []
    for kind in (Recomputes, Around):
        model = kind(net())
        step_of(model, [name for name in [plugins] if name])(*tiny_batch(), epoch=0)
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("plugins", "settings"),
    [("", {}), ("trades", {}), ("mart", {}), ("mart", {"update.batch_norm": "adv_logits"}), ("awp", {}), ("lsiw", {})],
)
def test_recomputing_does_not_move_batch_norm_unseen(tiny_batch: BatchOf, plugins: str, settings: Any) -> None:
    """Whether its statistics may move in the forward or not: in the backward they count images twice."""
    model = Recomputes(net(nn.BatchNorm2d(2)))
    with pytest.raises(OptionError, match=r"running_mean moved in the backward, where nothing may"):
        step_of(model, plugins, settings=settings)(*tiny_batch(), epoch=0)
    if plugins not in ("awp", "lsiw"):
        model.core[0].eval()
        step_of(model, plugins, settings=settings)(*tiny_batch(), epoch=0)  # statistics that are kept nobody counts


class RecomputesIn(Around):
    """Recomputes where `when` says so."""

    def __init__(self, core: nn.Module, when: Callable[[nn.Module, Tensor], bool]) -> None:
        super().__init__(core)
        self.when = when

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.core, x, use_reentrant=False) if self.when(self, x) else self.core(x)


@pytest.mark.parametrize("when", [lambda net, x: net.training, lambda net, x: len(x) > 2])
def test_the_probe_sees_the_net_as_the_update_does(tiny_batch: BatchOf, when: Any) -> None:
    model = RecomputesIn(net(), when).eval()
    with pytest.raises(OptionError, match="gradient at perturbed weights is off by"):
        step_of(model, ["awp"], options={"awp": {"gamma": 0.05}})(*tiny_batch(), epoch=0)


class Ahead(Plugin):
    """Attacks at the weights one step ahead."""

    name = "ahead"

    def passes(self, hook: str, costs: advkit.Costs) -> advkit.Passes:
        return advkit.Passes(forward=2, input_backward=1) if hook == "observe_update" else advkit.Passes()

    @hookimpl
    def observe_update(self, batch: advkit.Batch, radius: Tensor, run: advkit.Run) -> None:
        with run.ahead():
            self.seen = run.logits(run.probe(batch, radius, steps=1, init="zero").x_adv)


def test_what_is_seen_one_step_ahead_is_of_these_weights(tiny_batch: BatchOf) -> None:
    """A net that reads or recomputes past them is refused; one that recomputes in train mode alone is right in eval."""

    def trains(net: nn.Module, x: Tensor) -> bool:
        return net.training

    sentence = "gradient at perturbed weights is off by .* leave out the plugin ahead, which looks a step ahead"
    for refused in (Recomputes, OwnReference):
        with pytest.raises(OptionError, match=sentence):
            step_of(refused(net()), [Ahead])(*tiny_batch(), epoch=0)
    with pytest.raises(OptionError, match=sentence):
        step_of(RecomputesIn(net(), trains), [Ahead], settings={"attack.mode": "train"})(*tiny_batch(), epoch=0)
    seen = []
    for model in (net(), RecomputesIn(net(), trains)):
        plugin = Ahead(Ahead.Options())
        step_of(model, [plugin], settings={"attack.mode": "eval"})(*tiny_batch(), epoch=0)
        seen.append(plugin.seen)
    assert torch.equal(*seen)


class Asks(Plugin):
    """Asks for a gradient elsewhere, from a step on, and trains at theta."""

    name = "asks"

    def __init__(self, since: int) -> None:
        super().__init__(self.Options())
        self.since = since

    def passes(self, hook: str, costs: advkit.Costs) -> advkit.Passes:
        return costs.adv_ce if hook == "weight_perturbation" else advkit.Passes()

    @hookimpl
    def weight_perturbation(
        self, params: Mapping[str, Tensor], gradient_at: Callable[..., Mapping[str, Tensor]], run: advkit.Run
    ) -> Mapping[str, Tensor]:
        gradient_at({name: value / 10 for name, value in params.items() if run.step >= self.since})
        return {}


@pytest.mark.parametrize("since", [0, 1])
def test_a_gradient_elsewhere_is_right_where_the_loss_is_taken_at_theta(tiny_batch: BatchOf, since: int) -> None:
    """Whichever step asks first. The control: a net that computes nothing again."""
    step = step_of(net(), [Asks(since)])
    for _ in range(since + 1):
        step(*tiny_batch(), epoch=0)
    step = step_of(Recomputes(net()), [Asks(since)])
    for _ in range(since):
        step(*tiny_batch(), epoch=0)
    with pytest.raises(OptionError, match="gradient at perturbed weights is off by"):
        step(*tiny_batch(), epoch=0)


class StartsFor(Plugin):
    """Starts attacks beside x, for thirty epochs."""

    name = "starts-for"

    def active(self, hook: str, epoch: int) -> bool:
        return epoch < 30

    @hookimpl
    def attack_start(self, batch: advkit.Batch) -> Tensor:
        return batch.x


def test_a_loop_of_unknown_length_is_looked_at_beyond_the_default() -> None:
    """score has no gradient at x, and is refused where attacks begin there; the control: a run of twenty epochs."""
    settings = {"attack.init": "zero"}
    step_of(net(), ["score", StartsFor], settings=settings | {"run.epochs": 20})
    with pytest.raises(OptionError, match=r"attack\.init is zero, where the squared error of score has no gradient"):
        step_of(net(), ["score", StartsFor], settings=settings)


def test_the_probe_is_nobodys_pass(tiny_batch: BatchOf) -> None:
    """It runs without hooks, so counts and plan agree."""
    model, calls = net(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    step = step_of(model, "awp")
    reports = [step(*tiny_batch(), epoch=0) for _ in range(2)]
    forwards = sum(passes.forward for report in reports for passes in report.passes.values())
    assert len(calls) == forwards + 1  # the width of the logits, before the first step


class Keeps(Around):
    """Keeps what it computed, as many nets do: no copy can be made of it."""

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.core[:-1](x)
        return self.core[-1](self.features)


class Counts(Around):
    """Counts its own forwards."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.core(x)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_the_probe_takes_nets_that_can_not_be_copied(tiny_batch: BatchOf) -> None:
    plain, kept, normed = net(), net(), net()
    torch.nn.utils.weight_norm(normed[-1])
    for model in (plain, Keeps(kept), normed):
        step = step_of(model, ["awp"], options={"awp": {"gamma": 0.05}})
        for epoch in range(2):
            assert step(*tiny_batch(), epoch=epoch).shift_ratio > 0
    for name, value in plain.state_dict().items():
        assert torch.equal(value, kept.state_dict()[name]), "and they train as others do"


def test_the_probe_leaves_nothing_behind(tiny_batch: BatchOf) -> None:
    """Not even in a net that counts its forwards: those are the plan's."""
    model = Counts(net(nn.BatchNorm2d(2)))
    report = step_of(model, ["awp"], options={"awp": {"gamma": 0.05}})(*tiny_batch(), epoch=0)
    assert model.calls == sum(passes.forward for passes in report.passes.values())
    assert model.core[0].num_batches_tracked == 1


def test_a_model_that_writes_into_its_images_is_refused(tiny_batch: BatchOf) -> None:
    x, y, index = tiny_batch()
    kept = x.clone()
    with pytest.raises(OptionError, match="changes its input in place"):
        step_of(InPlace(net()))(x, y, index, epoch=0)
    assert torch.equal(x, kept)


class WantsClosure(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        assert closure is not None, "no closure was given"


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, WantsClosure])
def test_closures_are_refused(tiny_batch: BatchOf, kind: Any) -> None:
    model = net()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(OptionError, match=f"The optimizer {kind.__name__} steps with a closure"):
        step_of(model, optimizer=kind(model.parameters()))(*tiny_batch(), epoch=0)
    assert all(torch.equal(p, was) for p, was in zip(model.parameters(), before, strict=True))


class OfSecondOrder(torch.optim.SGD):
    """As AdaHessian and SophiaH."""

    def step(self, closure: Any = None) -> None:
        p = self.param_groups[0]["params"][0]
        torch.autograd.grad(p.grad.sum(), p)


def test_an_optimizer_that_differentiates_again_is_named(tiny_batch: BatchOf) -> None:
    model = net()
    with pytest.raises(
        OptionError, match=r"^The optimizer OfSecondOrder differentiates the gradients again in its step"
    ):
        step_of(model, optimizer=OfSecondOrder(model.parameters(), 0.1))(*tiny_batch(), epoch=0)


def test_an_optimizer_of_parameters_that_are_computed_is_named() -> None:
    model = net()
    with pytest.raises(OptionError, match=r"^The optimizer Adam has differentiable=True, .*; build it without\.$"):
        step_of(model, optimizer=torch.optim.Adam(model.parameters(), differentiable=True))


class Waits(torch.optim.SGD):
    asked = 0

    def step(self, closure: Any = None) -> None:
        self.asked += 1
        if self.asked > 1:
            super().step()


def test_an_optimizer_that_changes_nothing_is_told(tiny_batch: BatchOf) -> None:
    model = net()
    step = step_of(model, optimizer=Waits(model.parameters(), 0.1))
    with pytest.warns(UserWarning, match=r"The optimizer Waits changed no weight .* right if it waits"):
        step(*tiny_batch(), epoch=0)
    step(*tiny_batch(), epoch=1)  # warnings are errors in these tests
    for rate in (0.0, 1e-30):  # the beginning of a warm-up, and what rounding leaves
        slow = net()
        step_of(slow, optimizer=torch.optim.SGD(slow.parameters(), rate))(*tiny_batch(), epoch=0)
    dark = net()
    dark.register_forward_hook(lambda module, images, logits: 0 * logits)
    with pytest.warns(UserWarning, match="The attack moved 0 of 4 images") as heard:
        step_of(dark, optimizer=Waits(dark.parameters(), 0.1))(*tiny_batch(), epoch=0)
    assert len(heard) == 1, "nothing is to be learnt"


def test_a_wrapper_inside_is_refused() -> None:
    with pytest.raises(OptionError, match="DataParallel is not supported"):
        step_of(nn.Sequential(nn.DataParallel(net())))


# ---------------------------------------------------------------------- the state after an update


class Overflows(torch.optim.SGD):
    now = False

    def step(self, closure: Any = None) -> None:
        super().step()
        for values in self.state.values():  # as SOAP keeps lists
            values.setdefault("deep", [{"steps": torch.zeros(())}])[0]["steps"].add_(1)
        self.param_groups[0]["steps"] = self.param_groups[0].get("steps", 0) + 1
        for beside in self.param_groups[0]["params"]:
            if not isinstance(beside, nn.Parameter):
                beside.data.sub_(0.1)
        if type(self).now:
            self.param_groups[0]["params"][0].data[0, 0] = math.inf


def test_an_update_that_overflows_does_not_happen(tiny_batch: BatchOf) -> None:
    model, beside = net(), torch.ones(1, requires_grad=True)
    optimizer = Overflows([*model.parameters(), beside], 0.1, momentum=0.9)
    step = step_of(model, optimizer=optimizer)
    step(*tiny_batch(), epoch=0)
    known = beside.detach().clone()
    before = [tensor.clone() for tensor in model.state_dict().values()]
    moments = [state["momentum_buffer"].clone() for state in optimizer.state.values()]
    Overflows.now = True
    try:
        with pytest.raises(NonFinite, match=r"after the update of epoch 0, step 1. The step was not applied"):
            step(*tiny_batch(), epoch=0)
    finally:
        Overflows.now = False
    assert step.state.step == 1
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before, strict=True))
    now = [state["momentum_buffer"] for state in optimizer.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(now, moments, strict=True))
    assert {float(state["deep"][0]["steps"]) for state in optimizer.state.values()} == {1}
    assert optimizer.param_groups[0]["steps"] == 1
    assert torch.equal(beside, known) and known < 1 and optimizer.param_groups[0]["params"][-1] is beside


class Rebinds(Around):
    """A mean of what it saw, bound anew at every forward in train mode."""

    def __init__(self, core: nn.Module, grows: float = 0.1) -> None:
        super().__init__(core)
        self.grows = grows
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = self.mean + self.grows * x.detach().mean()
        return self.core(x)


def test_a_buffer_that_is_bound_anew_is_put_back_and_watched(tiny_batch: BatchOf) -> None:
    model = Rebinds(net())
    step = step_of(model, optimizer=Overflows(model.parameters(), 0.1))
    step(*tiny_batch(), epoch=0)
    bound, value = model.mean, model.mean.clone()
    Overflows.now = True
    try:
        with pytest.raises(NonFinite):
            step(*tiny_batch(), epoch=0)
    finally:
        Overflows.now = False
    assert model.mean is bound and torch.equal(bound, value) and value > 0
    with pytest.raises(NonFinite, match="NaN or Inf in mean after the update"):
        step_of(Rebinds(net(), grows=math.inf))(*tiny_batch(), epoch=0)


class Absent(Plugin):
    """State that says NaN where nothing was seen, and Inf where told to."""

    name = "absent"
    value = 0.0

    @hookimpl
    def setup(self, run: advkit.Run) -> None:
        self.seen = run.sample_state("seen", fill=math.nan)

    @hookimpl
    def observe_update(self, batch: advkit.Batch) -> None:
        self.seen[batch.index[:2]] = type(self).value


def test_state_may_say_absent_and_never_becomes_infinite(tiny_batch: BatchOf) -> None:
    step = step_of(net(), [Absent])
    step(*tiny_batch(), epoch=0)
    Absent.value = math.inf
    try:
        with pytest.raises(NonFinite, match="the per-sample state absent/seen"):
            step(*tiny_batch(), epoch=0)
    finally:
        Absent.value = 0.0
    assert step.state.samples["absent/seen"][:2].tolist() == [0.0, 0.0]


# ---------------------------------------------------------------------- indices, epochs, batches


def test_an_index_that_comes_again(tiny_batch: BatchOf) -> None:
    """Places in the batch taken for places in the training set: state of four samples for all."""
    x, y, _ = tiny_batch()
    careful = step_of(net(), ["cat-eps"], settings={"run.check_hooks": True})
    careful(x, y, torch.arange(4), epoch=0)
    with pytest.raises(OptionError, match="The index names samples that came before in this epoch"):
        careful(x, y, torch.arange(4), epoch=0)
    careful(x, y, torch.arange(4), epoch=0, occurrence=torch.ones(4, dtype=torch.int64))
    step = step_of(net(), ["cat-eps"])
    for _ in range(2):
        step(x, y, torch.arange(4), epoch=0)
    with pytest.warns(UserWarning, match="In epoch 0, the index names samples that came before"):
        step(x, y, torch.arange(4), epoch=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step_of(net())(x, y, torch.arange(4), epoch=0)


def test_a_schedule_that_a_loop_of_ones_own_does_not_tell() -> None:
    options = {"lsiw": {"lam": "0.1 after decay 1"}}
    with pytest.raises(OptionError, match=r"let a Step know them by its settings run.epochs and optimizer.milestones"):
        step_of(net(), ["lsiw"], options=options)
    told = {"run.epochs": 8, "optimizer.milestones": [3, 6]}
    step = step_of(net(), ["lsiw"], options=options, settings=told)
    lam = next(p for p in step.composition.plugins if p.name == "lsiw").options.lam
    assert [lam.at(epoch) for epoch in (0, 2, 3)] == [0.0, 0.0, 0.1]
    for unused in ({"optimizer.milestones": [3]}, {"optimizer.schedule": "cosine"}, told):
        with pytest.raises(
            OptionError, match=r"waits for a decay of the learning rate, so optimizer\.\w+ would change"
        ):
            step_of(net(), ["lsiw"], settings=unused)


@pytest.mark.parametrize(("choice", "sizes"), [("merge", [4, 5]), ("drop", [4, 4]), ("keep", [4, 4, 1])])
def test_a_last_batch_of_one(choice: str, sizes: list[int]) -> None:
    shown = []

    class Watch(Plugin):
        name = "watch"

        @hookimpl
        def observe_update(self, batch: advkit.Batch) -> None:
            shown.append(len(batch.y))

    drawn = torch.randint(0, 256, (9, 2, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    toy = Dataset("toy", drawn, torch.arange(9) % 3, ("a", "b", "c"))
    settings = {"run.lone_image": choice, "validation.fraction": 0.0, "attack.steps": 1}
    advkit.train(net(), Splits(toy, toy, "none"), [Watch], settings=settings, epochs=1, batch_size=4)
    assert shown == sizes


def test_the_plan_says_that_the_last_batch_is_one() -> None:
    def cautions(size: int) -> list[str]:
        layer = Layer("test", {"run.batch_size": size, "data.limit": 100})
        return [text for text in plan(resolve((), [layer]))["cautions"] if "lone_image" in text]

    assert cautions(89) == [
        "the last batch of an epoch has one image of 90, which joins the batch before it (run.lone_image); "
        "another run.batch_size avoids it"
    ]
    assert cautions(64) == []


def test_one_image_of_which_batch_norm_takes_no_statistics() -> None:
    """Where it has one value a channel; torch's own sentence would name neither setting."""
    flat = nn.Sequential(nn.Flatten(), nn.Linear(32, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    step = step_of(flat, settings={"attack.steps": 0})
    with pytest.raises(OptionError, match=r"^BatchNorm of the model has one value a channel.*two images at least"):
        step(torch.rand(1, 2, 4, 4), torch.tensor([1]), torch.tensor([0]), epoch=0)


# ---------------------------------------------------------------------- whom the optimizer has


def heads_apart(model: nn.Sequential) -> None:
    model[-1] = nn.Linear(8, 3)


def thaws(model: nn.Sequential) -> None:
    model[1].requires_grad_(True)


def grows(model: nn.Sequential) -> None:
    model.append(nn.Linear(3, 3))


@pytest.mark.parametrize(("changes", "name"), [(heads_apart, "3.weight"), (thaws, "1.weight"), (grows, "4.weight")])
@pytest.mark.parametrize("steps", [0, 1])
def test_what_the_optimizer_does_not_have_never_trains(
    tiny_batch: BatchOf, changes: Callable[[nn.Sequential], None], name: str, steps: int
) -> None:
    model = net()
    model[1].requires_grad_(False)
    step = step_of(model, optimizer=torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1))
    for _ in range(steps):
        step(*tiny_batch(), epoch=0)
    changes(model)
    with pytest.raises(OptionError, match=f"The optimizer does not have {name} of the model, which has come or become"):
        step(*tiny_batch(), epoch=0)


def test_an_optimizer_may_be_given_more(tiny_batch: BatchOf) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    step = step_of(model, optimizer=optimizer)
    grows(model)
    optimizer.add_param_group({"params": model[-1].parameters()})
    before = model[-1].weight.detach().clone()
    step(*tiny_batch(), epoch=0)
    assert not torch.equal(model[-1].weight, before)


def test_an_optimizer_of_a_part_is_told_of_once(tiny_batch: BatchOf) -> None:
    model = net()
    step = step_of(model, optimizer=torch.optim.SGD(model[-1].parameters(), 0.1))
    with pytest.warns(
        UserWarning, match=r"lacks trainable parameters of the model \(1.weight and 1 more\), which never"
    ):
        step(*tiny_batch(), epoch=0)
    step(*tiny_batch(), epoch=1)
    model = net()
    model[1].requires_grad_(False)
    step_of(model, optimizer=torch.optim.SGD(model[-1].parameters(), 0.1))(*tiny_batch(), epoch=0)


def test_what_only_the_optimizer_has_is_finite_or_the_step_did_not_happen(tiny_batch: BatchOf) -> None:
    """A temperature of a loss of one's own, say, whose update overflows."""
    model, beside = net(), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([*model.parameters(), beside], 0.1, momentum=0.9)
    step = step_of(model, optimizer=optimizer)

    def overflows(*_: object) -> None:
        beside.grad = torch.full((2,), 3e38 if step.state.epoch else 1.0)

    optimizer.register_step_pre_hook(overflows)
    step(*tiny_batch(), epoch=0)
    moments = {parameter: values["momentum_buffer"] for parameter, values in optimizer.state.items()}
    held = [*model.parameters(), beside, *moments.values()]
    before = [tensor.detach().clone() for tensor in held]
    optimizer.param_groups[0]["lr"] = 1e3
    with pytest.raises(NonFinite, match="NaN or Inf in parameter 4 of the optimizer after the update of epoch 1"):
        step(*tiny_batch(), epoch=1)
    assert all(torch.equal(now, was) for now, was in zip(held, before, strict=True))
    assert all(optimizer.state[parameter]["momentum_buffer"] is moments[parameter] for parameter in moments)


def test_a_missing_library_is_no_matter_of_sizes() -> None:
    class Lazy(nn.Flatten):
        def forward(self, x: Tensor) -> Tensor:
            import advkit_needs_this  # type: ignore[import-not-found]  # noqa: F401

            return super().forward(x)

    model = nn.Sequential(Lazy(), nn.Linear(64, 10))
    step = Step(
        model, torch.optim.SGD(model.parameters(), lr=0.1), num_samples=8, eps=0.1, settings={"attack.steps": 1}
    )
    with pytest.raises(OptionError, match=r"No module named 'advkit_needs_this'\. Install what it needs"):
        step(torch.rand(8, 1, 8, 8), torch.arange(8), torch.arange(8), epoch=0)


@pytest.mark.parametrize("label", [-1, -100, 3])
def test_a_label_of_no_class_in_any_batch(label: int, tiny_batch: BatchOf) -> None:
    step, (x, y, index) = step_of(net()), tiny_batch()
    step(x, y, index, epoch=0)
    with pytest.raises(OptionError, match=r"y leaves 0\.\.2, the classes of the model's 3 logits"):
        step(x, torch.full_like(y, label), index, epoch=0)
