"""What a plugin has kept from an earlier hook, and the net itself, are watched in every hook; so is what is global."""

from __future__ import annotations

import inspect
import os
import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from broken import bad
from torch import Tensor, nn

import advkit
from advkit import HookContract, OptionError, Plugin, Step
from advkit.spaces import Patched
from advkit.training import probe
from advkit.training.guard import hooked_nodes
from advkit.training.probe import refuse_other_weights

Net = Callable[..., nn.Sequential]
BatchOf = Callable[..., tuple[Tensor, Tensor, Tensor]]


def step_of(net: nn.Module, *plugins: Any, **settings: Any) -> Step:
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    return Step(net, optimizer, plugins, num_samples=16, eps=0.1, settings={"attack.steps": 2, **settings})


def keeps(self: Any, target: Tensor, batch: Any) -> Tensor:
    self.batch, self.target = batch, target
    return target


def takes(self: Any, model: nn.Module) -> None:
    self.model = model


def ones(values: Tensor) -> Tensor:
    return torch.ones(len(values))


def later(deed: Callable[[Any], object]) -> Callable[..., Tensor]:
    def instance_weight(self: Any, adv_logits: Tensor) -> Tensor:
        deed(self)
        return ones(adv_logits)

    return instance_weight


def weigher(**members: Any) -> type[Plugin]:
    return bad(terms=("base_loss",), **members)


@pytest.mark.parametrize(
    ("name", "deed"),
    [
        ("batch.x", lambda self: self.batch.x.mul_(0.5)),
        ("batch.x", lambda self: self.batch.x.data.mul_(0.5)),
        ("batch.y", lambda self: self.batch.y.zero_()),
        ("target", lambda self: self.target.fill_(0.1)),
    ],
)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.filterwarnings("ignore:Plugin bad changes self.steps")
def test_what_was_kept_is_borrowed_still(
    tiny_net: Net, tiny_batch: BatchOf, name: str, deed: Callable[[Any], object], first: bool
) -> None:
    """At the first step, and at later ones with run.check_hooks."""

    def once(self: Any) -> None:
        self.steps = getattr(self, "steps", 0) + 1
        if first or self.steps > 1:
            deed(self)

    x, y, index = tiny_batch()
    kept = x.clone(), y.clone()
    step = step_of(tiny_net(), weigher(target_label=keeps, instance_weight=later(once)), **{"run.check_hooks": True})
    if not first:
        step(x, y, index, epoch=0)
    with pytest.raises(HookContract) as refused:
        step(x, y, index, epoch=0)
    assert str(refused.value).startswith(
        f"Plugin bad broke the contract of instance_weight: it changed {name}, which it only borrows"
    )
    assert torch.equal(x, kept[0]) and torch.equal(y, kept[1]), "and it is put back"


def backwards(self: Any) -> None:
    with torch.enable_grad():
        self.model[0].weight.sum().backward()


@pytest.mark.parametrize(
    ("what", "deed"),
    [
        ("0.weight", lambda self: self.model[0].weight.data.mul_(0.5)),
        ("1.running_mean", lambda self: self.model[:2](self.batch.x)),
        ("requires_grad of 0.weight", lambda self: self.model[0].weight.requires_grad_(False)),
        ("the mode", lambda self: self.model.eval()),
        ("the mode of 1", lambda self: self.model[1].eval()),
        ("the gradient of 0.weight", backwards),
        (
            "0.weight",
            lambda self: setattr(self.model[0], "weight", nn.Parameter(torch.ones_like(self.model[0].weight))),
        ),
        ("a hook", lambda self: self.model.register_forward_hook(lambda module, given, output: output * 0.5)),
        ("4", lambda self: self.model.__setitem__(4, nn.Linear(4, 3))),
    ],
)
def test_the_net_is_nobodys(tiny_net: Net, tiny_batch: BatchOf, what: str, deed: Callable[[Any], object]) -> None:
    net = tiny_net(batch_norm=True)
    kept, modules = {name: value.clone() for name, value in net.state_dict().items()}, [*net]
    step = step_of(net, weigher(setup=takes, target_label=keeps, instance_weight=later(deed)))
    with pytest.raises(
        HookContract, match=f"of instance_weight: it changed {what}( of the model|, which it only borr)"
    ):
        step(*tiny_batch(), epoch=0)
    assert [*net] == modules and not net._forward_hooks and net[0].weight.requires_grad
    assert all(torch.equal(value, kept[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("zeroes", [True, False])
def test_gradients_are_whole_when_they_are_shown(tiny_net: Net, tiny_batch: BatchOf, zeroes: bool) -> None:
    def observe_update(self: Any, batch: Any) -> None:
        if zeroes:
            self.model[0].weight.grad.zero_()
        else:
            with torch.enable_grad():
                F.cross_entropy(self.model(batch.x), batch.y).backward()

    what = "changed the gradient of 0.weight, which it only borr" if zeroes else "calls the model itself, at other weig"
    with pytest.raises(HookContract, match=f"of observe_update: it {what}"):
        step_of(tiny_net(), bad(setup=takes, observe_update=observe_update))(*tiny_batch(), epoch=0)


@pytest.mark.parametrize(
    ("what", "deed"),
    [
        ("requires_grad of 0.weight", lambda model: model[0].weight.requires_grad_(False)),
        ("0.weight", lambda model: setattr(model[0], "weight", nn.Parameter(torch.ones_like(model[0].weight)))),
        ("a hook", lambda model: model.register_forward_hook(lambda module, given, output: output * 0.5)),
        ("a hook", lambda model: model.register_state_dict_post_hook(lambda *_: None)),
        ("the gradient of 0.weight by a hook", lambda model: model[0].weight.register_hook(lambda gradient: 0)),
    ],
)
def test_after_an_update_values_may_move_and_nothing_else(
    tiny_net: Net, tiny_batch: BatchOf, what: str, deed: Callable[[Any], object]
) -> None:
    def after_update(self: Any, model: nn.Module) -> None:
        deed(model)

    with pytest.raises(HookContract, match=f"of after_update: it changed {what} of the model; leave it as it was"):
        step_of(tiny_net(), bad(after_update=after_update))(*tiny_batch(), epoch=0)

    def halves(self: Any, model: nn.Module) -> None:
        with torch.no_grad():
            model[0].weight.mul_(0.5)

    step_of(tiny_net(), bad(after_update=halves))(*tiny_batch(), epoch=0)


def test_setup_may_read_features_and_freeze_nothing(tiny_net: Net, tiny_batch: BatchOf) -> None:
    def reads(self: Any, model: nn.Module) -> None:
        model[0].register_forward_hook(lambda module, given, output: setattr(self, "features", output.detach()))

    step_of(tiny_net(), bad(setup=reads))(*tiny_batch(), epoch=0)

    def freezes(self: Any, model: nn.Module) -> None:
        model[0].weight.requires_grad_(False)

    with pytest.raises(HookContract, match=r"of setup: it changed requires_grad of 0.weight of the model"):
        step_of(tiny_net(), bad(setup=freezes))


@pytest.mark.parametrize(
    ("bend", "what"),
    [
        (lambda logits: logits.register_hook(lambda gradient: gradient * 0), "the gradient of adv_logits by a hook"),
        (lambda logits: logits.grad_fn.register_hook(lambda *_: None), "a gradient by a hook on a node of its graph"),
        (lambda logits: logits.grad_fn.register_prehook(lambda _: None), "a gradient by a hook on a node of its graph"),
        (
            lambda logits: logits.grad_fn.next_functions[0][0].register_hook(lambda *_: None),
            "a gradient by a hook on a node of its graph",
        ),
    ],
)
def test_nobody_bends_anothers_gradient(tiny_net: Net, tiny_batch: BatchOf, bend: Any, what: str) -> None:
    """The control: a module of the net may register such a hook in its forward, and torch does for its own."""

    def extra_regularizer(self: Any, adv_logits: Tensor) -> Tensor:
        bend(adv_logits)
        return 0 * adv_logits.sum(1)

    with pytest.raises(HookContract, match=f"of extra_regularizer: it changed {what}"):
        step_of(tiny_net(), bad(extra_regularizer=extra_regularizer))(*tiny_batch(), epoch=0)
    with hooked_nodes() as found:
        Hooked()(torch.ones(1, requires_grad=True))
    assert not found


class Hooked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = 2 * x
        assert y.grad_fn is not None
        y.grad_fn.register_hook(lambda *_: None)
        return y


@pytest.mark.parametrize(
    ("name", "deed"),
    [
        ("batch.x", lambda batch, target: batch.x.mul_(0.5)),
        ("batch.y", lambda batch, target: batch.y.zero_()),
        ("target", lambda batch, target: target.fill_(0.1)),
    ],
)
def test_an_objective_keeps_what_it_captured(tiny_net: Net, tiny_batch: BatchOf, name: str, deed: Any) -> None:
    def attack_objective(self: Any, batch: Any, target: Tensor) -> Any:
        def goal(logits: Tensor) -> Tensor:
            deed(batch, target)
            return F.cross_entropy(logits, batch.y, reduction="none")

        return goal

    with pytest.raises(HookContract, match=f"of attack_objective: it changed {name}, which it only borrows"):
        step_of(tiny_net(), bad(attack_objective=attack_objective))(*tiny_batch(), epoch=0)


@pytest.mark.parametrize("name", ["x", "y", "index"])
def test_no_later_step_writes_into_what_it_was_called_with(tiny_net: Net, tiny_batch: BatchOf, name: str) -> None:
    """Where nobody watches plugins any more: the step is refused, and the caller keeps images, labels and places."""

    def instance_weight(self: Any, batch: advkit.Batch, run: advkit.Run) -> Tensor:
        if run.step:
            getattr(batch, name).zero_()
        return torch.ones(len(batch.y))

    given, net = tiny_batch(), tiny_net()
    before, step = (
        [value.clone() for value in given],
        step_of(net, bad(instance_weight=instance_weight, terms=("base_loss",))),
    )
    step(*given, epoch=0)
    weights = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(HookContract, match=f"wrote into batch.{name}, which it only borrows"):
        step(*given, epoch=0)
    assert all(torch.equal(now, was) for now, was in zip(net.parameters(), weights, strict=True))
    assert all(torch.equal(now, was) for now, was in zip(given, before, strict=True))


def test_a_selection_changes_no_labels(tiny_net: Net, tiny_batch: BatchOf) -> None:
    def weight_perturbation(self: Any, params: Any, gradient_at: Any) -> Any:
        def select(logits: Tensor, y: Tensor) -> Tensor:
            y.zero_()
            return torch.ones(len(y))

        return {name: 0 * value for name, value in gradient_at(select=select).items()}

    def passes(self: Any, hook: str, costs: Any) -> Any:
        return costs.adv_ce if hook == "weight_perturbation" else advkit.Passes()

    with pytest.raises(HookContract, match=r"of weight_perturbation: it changed batch.y, which it only borrows"):
        step_of(tiny_net(), bad(weight_perturbation=weight_perturbation, passes=passes))(*tiny_batch(), epoch=0)


class Scheduled(nn.Module):
    """Sets the rate of its dropout, keeps an output and caches a function, in every forward."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.dropout, self.calls = net, nn.Dropout(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.dropout.p = 1 / (2 + self.calls)
        self.cached = lambda values: values
        return self.dropout(self.net(x))  # type: ignore[no-any-return]


def doubled(net: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: type(net).forward(net, x) * 2


@pytest.mark.parametrize(
    ("what", "deed"),
    [
        ("momentum of 1 of the model", lambda net: setattr(net[1], "momentum", 0.9)),
        ("p of 3 of the model", lambda net: setattr(net[3], "p", 0.5)),
        ("padding of 0 of the model", lambda net: setattr(net[0], "padding", (0, 0))),
        ("forward of the model", lambda net: setattr(net, "forward", doubled(net))),
        ("forward of 5 of the model", lambda net: setattr(net[5], "forward", doubled(net[5]))),
        ("the class of 2 of the model", lambda net: setattr(net[2], "__class__", nn.Tanh)),
    ],
)
@pytest.mark.parametrize("hook", ["setup", "observe_update", "after_update"])
def test_functions_of_a_net_and_settings_of_its_layers_are_left_alone(
    tiny_net: Net, tiny_batch: BatchOf, what: str, deed: Callable[[Any], object], hook: str
) -> None:
    def does(self: Any, model: nn.Module) -> None:
        self.model = model
        if hook == "setup":
            deed(model)

    net = tiny_net(True, dropout=0.1)
    before = [dict(vars(module)) for module in net.modules()], [type(module) for module in net.modules()]
    later = {} if hook == "setup" else {hook: lambda self: deed(self.model)}
    with pytest.raises(HookContract, match=f"Plugin bad .* {hook}: it changed {what}; leave it as it was"):
        step_of(net, bad(setup=does, **later))(*tiny_batch(), epoch=0)
    assert before == ([dict(vars(module)) for module in net.modules()], [type(module) for module in net.modules()])


@pytest.mark.parametrize("checks", [False, True])
def test_what_a_net_sets_by_itself_is_its_own(tiny_net: Net, tiny_batch: BatchOf, checks: bool) -> None:
    """While plugins ask for its forwards; attributes of its own class anybody may set."""

    def weight_perturbation(self: Any, params: Any, gradient_at: Any) -> Any:
        return {name: 0 * value for name, value in gradient_at().items()}

    def passes(self: Any, hook: str, costs: Any) -> Any:
        return costs.adv_ce if hook == "weight_perturbation" else advkit.Passes()

    def counts(self: Any) -> None:
        self.model.calls += 1

    net = Scheduled(tiny_net())
    plugin = bad(setup=takes, weight_perturbation=weight_perturbation, passes=passes, observe_update=counts)
    step = step_of(net, plugin, **{"run.check_hooks": checks})
    with pytest.warns(UserWarning, match="depend on what it has seen"):  # which is true of it
        step(*tiny_batch(), epoch=0)
    step(*tiny_batch(), epoch=0)


@pytest.mark.parametrize(
    ("what", "deed", "read"),
    [
        ("the number of threads", lambda: torch.set_num_threads(3), torch.get_num_threads),
        ("the working folder", lambda: os.chdir("/"), os.getcwd),
        ("the default device", lambda: torch.set_default_device("meta"), torch.get_default_device),
        ("anomaly detection", lambda: torch.autograd.set_detect_anomaly(True), torch.is_anomaly_enabled),
        (
            "whether numbers below the normal ones are 0",
            lambda: torch.set_flush_denormal(True),
            lambda: bool((torch.tensor(1e-40) * 1) == 0),
        ),
        (
            "whether algorithms are deterministic",
            lambda: torch.use_deterministic_algorithms(True),
            torch.are_deterministic_algorithms_enabled,
        ),
    ],
)
def test_global_switches_are_left_alone(
    tiny_net: Net, tiny_batch: BatchOf, what: str, deed: Callable[[], Any], read: Callable[[], Any]
) -> None:
    before = read()
    with pytest.raises(HookContract, match=f"it changed {what}; leave it as it was"):
        step_of(tiny_net(), bad(observe_update=lambda self: (deed(), None)[1]))(*tiny_batch(), epoch=0)
    assert read() == before


def test_draws_are_for_a_batch(tiny_net: Net, tiny_batch: BatchOf) -> None:
    def observe_update(self: Any, run: Any) -> None:
        run.draws("noise", None)

    with pytest.raises(advkit.OptionError, match=r"Plugin bad: run.draws takes an advkit.Batch, not NoneType"):
        step_of(tiny_net(), bad(observe_update=observe_update))(*tiny_batch(), epoch=0)


@pytest.mark.parametrize("generator", [torch.Generator, lambda: np.random.default_rng(0), lambda: random.Random(0)])
def test_a_generator_of_its_own_is_told_of(tiny_net: Net, tiny_batch: BatchOf, generator: Callable[[], Any]) -> None:
    def setup(self: Any, model: nn.Module) -> None:
        self.model, self.kept = model, {"inside": generator()}

    def draws(self: Any) -> None:
        kept = self.kept["inside"]
        torch.rand(1, generator=kept) if isinstance(kept, torch.Generator) else kept.random()

    step = step_of(tiny_net(), bad(setup=setup, observe_update=draws))
    with pytest.warns(UserWarning, match=r"Plugin bad draws from a generator of its own \(kept.inside\), which no"):
        step(*tiny_batch(), epoch=0)
    step(*tiny_batch(), epoch=0)
    step_of(tiny_net(), bad(setup=setup, observe_update=lambda self: None))(*tiny_batch(), epoch=0)


def rebinds(self: Any) -> None:
    self.mean = 0.9 * self.mean + 0.1


@pytest.mark.parametrize(
    ("name", "kept", "deed"),
    [
        ("count", 0, lambda self: setattr(self, "count", self.count + 1)),
        ("fresh", None, lambda self: setattr(self, "fresh", 1.5)),
        ("table.seen", {"seen": 0}, lambda self: self.table.update(seen=1)),
        ("total", torch.zeros(3), lambda self: self.total.add_(1)),
        ("mean", torch.zeros(()), rebinds),
        ("", {}, lambda self: setattr(self, "scratch", self.batch.x.clone())),
        ("", torch.zeros(()), lambda self: setattr(self, "result", self.batch)),
        ("claimed", None, lambda self: self.claimed.add_(1)),
    ],
)
def test_numbers_that_no_checkpoint_holds_are_told_of(
    tiny_net: Net, tiny_batch: BatchOf, name: str, kept: Any, deed: Callable[[Any], object]
) -> None:
    """What it has claimed, and a view of it, is in the checkpoint; what has a row an image is scratch."""

    def setup(self: Any, run: Any) -> None:
        self.claimed = run.tensor_state("claimed", torch.zeros(()))
        self.view = self.claimed.view(1)
        if kept is not None and name:
            setattr(self, name.partition(".")[0], kept)

    step = step_of(tiny_net(), weigher(setup=setup, target_label=keeps, instance_weight=later(deed)))
    if name in ("", "claimed"):
        step(*tiny_batch(), epoch=0)
    else:
        with pytest.warns(
            UserWarning, match=rf"Plugin bad changes self\.{name} in a step, and no checkpoint holds that"
        ):
            step(*tiny_batch(), epoch=0)
    step(*tiny_batch(), epoch=0)


@pytest.mark.parametrize("plugins", [(), ("awp",)])
def test_a_forward_that_no_plan_counts_is_refused(tiny_net: Net, tiny_batch: BatchOf, plugins: tuple[str, ...]) -> None:
    def regularizer(self: Any, adv_logits: Tensor, batch: Any) -> Tensor:
        return (self.model(batch.x) - adv_logits).square().sum(1)

    said = r"Plugin bad broke the contract of extra_regularizer: it calls the model itself, .* take clean_logits"
    with pytest.raises(HookContract, match=said):
        step_of(tiny_net(), bad(setup=takes, extra_regularizer=regularizer), *plugins)(*tiny_batch(), epoch=0)


@pytest.mark.parametrize("where", ["the first rows", "all rows"])
def test_state_of_other_samples_is_left_alone(tiny_net: Net, tiny_batch: BatchOf, where: str) -> None:
    def setup(self: Any, run: Any) -> None:
        self.claimed = run.sample_state("seen", 1.0)

    def weight(self: Any, adv_logits: Tensor) -> Tensor:
        rows = slice(len(adv_logits)) if where == "the first rows" else slice(None)
        self.claimed[rows] = 2.0
        return ones(adv_logits)

    step = step_of(tiny_net(), weigher(setup=setup, instance_weight=weight))
    x, y, _ = tiny_batch()
    with pytest.raises(HookContract, match=r"Plugin bad writes its state seen of samples that are not in the batch"):
        step(x, y, torch.arange(8, 8 + len(y)), epoch=0)
    assert step.state.samples["bad/seen"].eq(1.0).all(), "and it is put back"


@pytest.mark.parametrize(
    ("partner", "ratio", "said"),
    [
        (torch.full((4,), 99), torch.ones(4), "partner is no place"),
        (torch.zeros(3, dtype=torch.int64), torch.ones(4), r"partner must be \(4,\) int64"),
        (torch.zeros(4, dtype=torch.int64), torch.full((4,), 7.0), r"ratio leaves \[0, 1\]"),
        (0, "a", r"ratio must be \(4,\) floating point, not str"),
    ],
)
def test_a_mix_is_of_the_batch(tiny_net: Net, tiny_batch: BatchOf, partner: Any, ratio: Any, said: str) -> None:
    def mix_batch(self: Any, batch: advkit.Batch) -> advkit.Batch:
        return replace(batch, mix=advkit.Mix(partner, ratio))

    with pytest.raises(HookContract, match=rf"Plugin bad broke the contract of mix_batch: {said}"):
        step_of(tiny_net(), bad(mix_batch=mix_batch))(*tiny_batch(), epoch=0)


def test_an_edit_that_changes_no_value_is_one(tiny_net: Net, tiny_batch: BatchOf) -> None:
    def attack_objective(self: Any, batch: Any, target: Tensor) -> Any:
        def goal(logits: Tensor) -> Tensor:
            target.clamp_(0, 1)
            return F.cross_entropy(logits, target, reduction="none")

        return goal

    with pytest.raises(HookContract, match=r"of attack_objective: it changed target, which it only borrows"):
        step_of(tiny_net(), bad(attack_objective=attack_objective))(*tiny_batch(), epoch=0)


def test_what_torch_wraps_by_itself_is_nobodys_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = torch.optim.Adadelta
    bare = inspect.unwrap(vars(kind)["step"])
    monkeypatch.setattr(kind, "step", bare)  # as in a process that has made none yet
    patched = Patched(None)
    kind([nn.Parameter(torch.ones(1))])
    assert kind.step is not bare and patched.put_back() == [] and kind.step is not bare
    monkeypatch.setattr(kind, "step", lambda self, closure=None: None)
    assert patched.put_back() == ["torch.optim.Adadelta.step"] and kind.step is bare


class Merges(nn.Linear):
    """Computes in eval mode with what its `train` has made of its weight, and perhaps of its bias."""

    whole, merged = True, None

    def train(self, training: bool = True) -> Merges:
        self.merged = None if training else (self.weight.detach(), self.bias.detach() if self.whole else self.bias)
        return super().train(training)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), *(self.merged or (self.weight, self.bias)))


@pytest.mark.parametrize("whole", [True, False])
def test_who_looks_a_step_ahead_sees_the_weights_that_are_trained(whole: bool, tiny_batch: BatchOf) -> None:
    x, y, index = tiny_batch()
    model = Merges(x[0].numel(), 3)
    model.whole = whole
    more: dict[str, Any] = {"num_classes": 3, "image_shape": tuple(x.shape[1:]), "num_samples": 8, "eps": 0.1}
    for mode in ("train", "eval"):
        settings = {"attack.steps": 2, "attack.mode": mode, "run.epochs": 1}
        step = Step(model, torch.optim.SGD(model.parameters(), 0.1), "las-at", settings=settings, **more)
        said = r"^In eval mode the model computes without (bias|weight), .* or leave out the plugin las-at"
        with pytest.raises(OptionError, match=said) if mode == "eval" else nullcontext():
            step(x, y, index, epoch=0)


def test_nan_at_perturbed_weights_is_none_of_the_models_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        model[1].weight.fill_(1e30)
    x, target = torch.rand(4, 1, 4, 4), torch.eye(3)[[0, 1, 2, 0]]
    shift = {name: 1e38 * torch.ones_like(value) for name, value in model.named_parameters()}
    refuse_other_weights(model, x, target, shift, ())
    monkeypatch.setattr(probe, "finite", lambda values: True)  # control: what it would be taken for
    with pytest.raises(OptionError, match="answers differently from one call to the next"):
        refuse_other_weights(model, x, target, shift, ())
