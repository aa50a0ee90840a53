"""What a loop of one's own and plugins pass to the core: one sentence where it is of a wrong kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import advkit
from advkit import AttackResult, Budget, HookContract, OptionError, Order, Passes, Plugin, Step, hookimpl
from advkit.errors import NonFinite, ResumeMismatch, UnknownHook
from advkit.hooks import Hooks

Net = Callable[..., nn.Sequential]
BatchOf = Callable[..., tuple[Tensor, Tensor, Tensor]]


def plugin(**members: Any) -> type[Plugin]:
    """A plugin called "odd"; functions named like a hook are marked."""
    for name in members.keys() & vars(Hooks).keys():
        members[name].__annotations__ = {}
    marked = {name: hookimpl(value) if name in vars(Hooks) else value for name, value in members.items()}
    return type("Odd", (Plugin,), {"name": "odd", **marked})


def step_of(net: Any, *plugins: Any, optimizer: Any = None, num_samples: Any = 16, **settings: Any) -> Step:
    optimizer = optimizer or torch.optim.SGD(net.parameters(), 0.1)
    settings = {"attack.steps": 2, **settings}
    return Step(net, optimizer, plugins, num_samples=num_samples, eps=0.1, settings=settings)


def trained(net: nn.Module, *plugins: Any, **arguments: Any) -> advkit.TrainResult:
    drawn = torch.randint(0, 256, (12, 2, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    toy = advkit.Dataset("toy", drawn, torch.arange(12) % 3, ("a", "b", "c"))
    settings = {"attack.steps": 1, "validation.steps": 1, "validation.fraction": 0.25}
    settings |= arguments.pop("settings", {})
    arguments = {"epochs": 1, "batch_size": 4, "eps": 0.1, **arguments}
    return advkit.train(net, advkit.Splits(toy, toy, "none"), plugins, settings=settings, **arguments)


# ---------------------------------------------------------------------- a Step


@pytest.mark.parametrize("number", [0, -5, 3.5, "10", True, None, 10**30, float("nan")])
def test_the_number_of_samples(tiny_net: Net, number: Any) -> None:
    with pytest.raises(OptionError, match=r"^num_samples = .* must be an integer from 1 to 2147483647"):
        step_of(tiny_net(), num_samples=number)
    step_of(tiny_net(), num_samples=np.int64(16))


@pytest.mark.parametrize("rate", ["fast", -0.1, float("nan"), float("inf"), True, [0.1]])
def test_a_rate_that_is_none(tiny_net: Net, tiny_batch: BatchOf, rate: Any) -> None:
    """Of whichever group, when the step is built and when a loop has set it."""
    sentence = r"^The optimizer's lr is .*; give each of its param_groups a number from 0\.$"
    net = tiny_net()
    groups = [{"params": [parameter]} for parameter in net.parameters()]
    step = step_of(net, optimizer=(optimizer := torch.optim.SGD(groups, 0.1)))
    optimizer.param_groups[-1]["lr"], before = rate, [p.detach().clone() for p in net.parameters()]
    expected = NonFinite if isinstance(rate, float) and not math.isfinite(rate) else OptionError
    with pytest.raises(expected, match=sentence):
        step(*tiny_batch(4), epoch=0)
    assert all(map(torch.equal, before, net.parameters()))
    with pytest.raises(expected, match=sentence):
        step_of(net, optimizer=optimizer)
    for fine in (0, np.float64(0.1), torch.tensor(0.1)):
        optimizer.param_groups[-1]["lr"] = fine
        step_of(net, optimizer=optimizer)(*tiny_batch(4), epoch=0)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"x": np.zeros((4, 2, 4, 4))}, "x is a ndarray; pass a tensor"),
        ({"y": [0, 1, 2, 0]}, "y is a list; pass a tensor"),
        ({"index": range(4)}, "index is a range; pass a tensor"),
        ({"index": None}, "index is a NoneType; pass a tensor"),
        ({"x": torch.tensor(0.5)}, r"A step takes x \(B, C, H, W\)"),
        ({"occurrence": 1}, "occurrence is a int; pass a tensor"),
        ({"occurrence": torch.zeros(4)}, r"occurrence counts earlier visits of each index, \(4,\) int64; got"),
        ({"occurrence": torch.zeros(3, dtype=torch.int64)}, r"occurrence counts .* got \(3,\)"),
        ({"occurrence": -torch.ones(4, dtype=torch.int64)}, "occurrence is negative"),
        ({"epoch": None}, "epoch = None must be an integer from 0"),
        ({"epoch": "1"}, "epoch = '1' must be an integer from 0"),
        ({"epoch": 0.5}, r"epoch = 0\.5 must be an integer from 0"),
        ({"epoch": 2**63}, r"epoch = \d+ must be an integer from 0"),
    ],
)
def test_what_a_step_is_called_with(tiny_net: Net, tiny_batch: BatchOf, given: Any, sentence: str) -> None:
    x, y, index = tiny_batch()
    with pytest.raises(OptionError, match=sentence):
        step_of(tiny_net(), "cat-eps")(**{"x": x, "y": y, "index": index, "epoch": 0, **given})


def test_integers_of_numpy_and_torch_are_epochs(tiny_net: Net, tiny_batch: BatchOf) -> None:
    step = step_of(tiny_net())
    for epoch in (np.int64(0), torch.tensor(1)):
        assert type(step(*tiny_batch(), epoch=epoch).epoch) is int


class CallsWhatItIsNotGiven(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        closure()


def test_models_and_optimizers(tiny_net: Net, tiny_batch: BatchOf) -> None:
    net = tiny_net()
    with pytest.raises(OptionError, match=r"The model is function; pass a torch Module"):
        step_of(lambda x: x, optimizer=torch.optim.SGD(net.parameters(), 0.1))
    with pytest.raises(OptionError, match=r"The optimizer is str; pass a torch Optimizer"):
        step_of(net, optimizer="sgd")
    with pytest.raises(OptionError, match="The optimizer CallsWhatItIsNotGiven steps with a closure"):
        step_of(net, optimizer=CallsWhatItIsNotGiven(net.parameters(), 0.1))(*tiny_batch(), epoch=0)


@pytest.mark.parametrize("stored", [None, [], {"position": 3}])
def test_a_stored_state_that_is_none(tiny_net: Net, stored: Any) -> None:
    with pytest.raises(ResumeMismatch, match="The stored state is no mapping of tensors"):
        step_of(tiny_net(), "cat-eps").load_state_dict(stored)


# ---------------------------------------------------------------------- what a plugin claims and reports


@pytest.mark.parametrize(
    ("claim", "sentence"),
    [
        (lambda run: run.sample_state("a", fill="x"), "fill of the state a is 'x'; pass a number"),
        (lambda run: run.sample_state("a", fill=None), "fill of the state a is None; pass a number"),
        (lambda run: run.tensor_state("a", 3.0), "initial of the state a is a float; pass a tensor"),
        (lambda run: run.tensor_state("a", torch.zeros(2) + 0j), "initial of the state a is torch.complex64"),
        (lambda run: run.tensor_state("a", torch.zeros(3).to_sparse()), "torch.sparse_coo; pass a dense tensor"),
        (
            lambda run: run.tensor_state("a", torch.nested.nested_tensor([torch.zeros(3)])),
            "torch.float32, nested; pass a dense tensor",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_claims(tiny_net: Net, claim: Callable[[advkit.Run], Any], sentence: str) -> None:
    def setup(self: Any, run: advkit.Run) -> None:
        claim(run)

    with pytest.raises(OptionError, match=f"Plugin odd: .*{sentence}"):
        step_of(tiny_net(), plugin(setup=setup))


@pytest.mark.parametrize("value", ["3", torch.ones(2), None, 10**400])
def test_figures(tiny_net: Net, value: Any) -> None:
    def epoch_end(self: Any, run: advkit.Run) -> None:
        run.figure("a", value)

    with pytest.raises(OptionError, match=r"Plugin odd: the figure a is .*; pass a number"):
        trained(tiny_net(), plugin(epoch_end=epoch_end))


@pytest.mark.parametrize("text", ["", "\x1b[31mred", "two\nlines", 5])
def test_names_are_text(tiny_net: Net, text: Any) -> None:
    """Of state and nets, which checkpoints hold, and of figures, which screens show."""
    claims: tuple[tuple[str, Callable[[Any], Any]], ...] = (
        ("a state", lambda run: run.sample_state(text)),
        ("a state", lambda run: run.tensor_state(text, torch.ones(1))),
        ("a net", lambda run: run.module(text, tiny_net())),
        ("a figure", lambda run: run.figure(text, 1.0)),
    )
    for what, claim in claims:

        def setup(self: Any, run: advkit.Run) -> None:
            claim(run)  # noqa: B023

        with pytest.raises(OptionError) as refused:
            step_of(tiny_net(), plugin(setup=setup))
        assert str(refused.value) == f"Plugin odd: the name of {what} is {text!r}; pass a text that can be printed."


def test_reasons_to_stop(tiny_net: Net) -> None:
    def stops(reason: str) -> type[Plugin]:
        def epoch_end(self: Any, run: advkit.Run) -> None:
            run.stop(reason)

        return plugin(epoch_end=epoch_end)

    with pytest.raises(OptionError, match=r"Plugin odd: the reason of run\.stop is ''; pass a text"):
        trained(tiny_net(), stops(" "))
    assert r": enough\x1b[31m\nred; take" in trained(tiny_net(), stops("enough\x1b[31m\nred")).stopped


def test_nets_are_called_with_images(tiny_net: Net) -> None:
    def setup(self: Any, run: advkit.Run) -> None:
        self.net = run.module("net", tiny_net())

    for what, ask in (
        (r"run\.logits", lambda self, run: run.logits("x")),
        (r"run\.module \(odd/net\)", lambda self, run: self.net(torch.ones(4, 2, 4, 4).byte())),
    ):

        def epoch_end(self: Any, run: advkit.Run) -> None:
            ask(self, run)  # noqa: B023

        said = rf"^Plugin odd broke the contract of {what}: images \(B, C, H, W\) float32 are expected, not "
        with pytest.raises(HookContract, match=said):
            trained(tiny_net(), plugin(setup=setup, epoch_end=epoch_end))


@pytest.mark.parametrize("service", ["forward", "input_gradient", "learn"])
def test_nothing_takes_gradients_in_inference_mode(tiny_net: Net, tiny_batch: BatchOf, service: str) -> None:
    """The plugin is named, not the net."""

    def setup(self: Any, run: advkit.Run) -> None:
        self.net = run.module("net", lambda model: tiny_net(), optimizer={"name": "sgd", "lr": 0.1})

    @torch.inference_mode()
    def ask(self: Any, batch: advkit.Batch, run: advkit.Run) -> Any:
        if service == "learn":
            return self.net.learn(batch.x, lambda output: output.sum(1))
        return run.forward(batch.x) if service == "forward" else run.input_gradient(batch.x, lambda z: z.sum(1))

    hook = "observe_update" if service == "learn" else "extra_regularizer"
    members = {"setup": setup, hook: lambda self, batch, run: ask(self, batch, run)}
    what = r"run\.module \(odd/net\)" if service == "learn" else rf"run\.{service}"
    with pytest.raises(HookContract, match=rf"^Plugin odd broke the contract of {what}: it is called in torch\.inf"):
        step_of(tiny_net(), plugin(**members))(*tiny_batch(), epoch=0)


def test_a_probe_after_the_epoch(tiny_net: Net) -> None:
    """What is wrong there is told whether hooks are checked or not, and so is a gradient that is no number."""

    def probes(radius: float, objective: Any = None, brighter: float = 0) -> type[Plugin]:
        def epoch_end(self: Any, batch: advkit.Batch, run: advkit.Run) -> None:
            run.probe(replace(batch, x=batch.x + brighter), radius, objective=objective)

        return plugin(epoch_end=epoch_end)

    for odd in (probes(-0.1), probes(float("nan")), probes(0.1, brighter=1)):
        with pytest.raises(HookContract, match=r"Plugin odd broke the contract of run\.probe: (radius|images leave) "):
            trained(tiny_net(), odd)
    said = r"^NaN or Inf in an input gradient of run\.probe of odd, after epoch 1; lower optimizer\.lr"
    with pytest.raises(NonFinite, match=said):
        trained(tiny_net(), probes(0.1, lambda logits: logits[:, 0] * torch.nan))


@pytest.mark.parametrize("hook", ["epoch_start", "after_update"])
def test_state_is_claimed_in_setup(tiny_net: Net, hook: str) -> None:
    """Claimed later it would train, and the resume would refuse."""

    def late(self: Any, run: advkit.Run) -> None:
        run.sample_state("a")

    with pytest.raises(OptionError, match="Plugin odd claims the state a after setup, where no resume finds it"):
        trained(tiny_net(), plugin(**{hook: late}))


@pytest.mark.parametrize("hook", ["after_update", "epoch_end"])
def test_state_is_written_in_place(tiny_net: Net, hook: str) -> None:
    def setup(self: Any, run: advkit.Run) -> None:
        self.kept = run.tensor_state("count", torch.zeros(()))
        self.also = self.kept

    def anew(self: Any) -> None:
        self.kept = self.also = self.kept + 1

    def in_place(self: Any) -> None:
        self.also = self.kept.add_(1)

    with pytest.raises(HookContract, match=r"Plugin odd binds its state odd/count anew \(self\.\w+ = \.\.\.\)"):
        trained(tiny_net(), plugin(setup=setup, **{hook: anew}))
    trained(tiny_net(), plugin(setup=setup, **{hook: in_place}))


# ---------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"steps": "a"}, r"steps must be \(4,\) int64 or None, not str"),
        ({"zero_gradients": 3}, r"zero_gradients must be \(4,\) int64 or None, not int"),
        ({"zero_gradients": torch.zeros(3)}, r"zero_gradients must be \(4,\) int64 or None, not \(3,\) float32"),
        ({"finite": False}, r"finite must be \(\) bool or None, not bool"),
        ({"start": torch.zeros(2)}, r"start must be \(4, 2, 4, 4\) float32 or None"),
        ({"traces": None}, "traces must be tensors by name"),
    ],
)
def test_what_an_attack_reports(tiny_net: Net, tiny_batch: BatchOf, fields: Any, sentence: str) -> None:
    def inner_attack(self: Any, batch: advkit.Batch) -> AttackResult:
        return AttackResult(batch.x, **fields)

    with pytest.raises(HookContract, match=f"Plugin odd broke the contract of inner_attack: {sentence}"):
        step_of(tiny_net(), plugin(inner_attack=inner_attack))(*tiny_batch(), epoch=0)


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ({"loss": "ce"}, 'gradient_at knows the losses "adv_ce" and "objective", not \'ce\''),
        ({"shift": {"foo": torch.zeros(1)}}, "there is no trainable parameter foo"),
        ({"shift": {"0.weight": torch.zeros(1)}}, r"the shift of 0\.weight must be"),
        ({"shift": [1]}, "a mapping is expected, not list"),
        ({"select": lambda logits, y: None}, r"select must return a mask \(4,\), not NoneType"),
        ({"select": lambda logits, y: y[:1] > 0}, r"select must return a mask \(4,\), not \(1,\) bool"),
    ],
)
def test_what_gradient_at_is_asked(tiny_net: Net, tiny_batch: BatchOf, question: Any, sentence: str) -> None:
    def weight_perturbation(self: Any, gradient_at: Any) -> dict[str, Tensor]:
        gradient_at(**question)
        return {}

    odd = plugin(weight_perturbation=weight_perturbation, passes=lambda self, hook, costs: Passes(1, full_backward=1))
    with pytest.raises(HookContract, match=f"Plugin odd broke the contract of weight_perturbation: {sentence}"):
        step_of(tiny_net(), odd)(*tiny_batch(), epoch=0)


def test_no_batches(tiny_net: Net) -> None:
    def train_sampler(self: Any, indices: Tensor) -> None:
        return None

    with pytest.raises(HookContract, match="Plugin odd broke the contract of train_sampler: every batch must be an"):
        trained(tiny_net(), plugin(train_sampler=train_sampler))


@pytest.mark.parametrize(
    "changed",
    [lambda b: {"occurrence": b.occurrence + 1}, lambda b: {"mix": "half"}],
)
def test_mixing_keeps_what_draws_are_addressed_by(tiny_net: Net, tiny_batch: BatchOf, changed: Any) -> None:
    def mix_batch(self: Any, batch: advkit.Batch) -> advkit.Batch:
        return replace(batch, **changed(batch))

    with pytest.raises(HookContract, match="occurrence must stay that of the batch, and mix be an"):
        step_of(tiny_net(), plugin(mix_batch=mix_batch))(*tiny_batch(), epoch=0)


def generous(**members: Any) -> type[Plugin]:
    def perturbation_budget(self: Any, batch: advkit.Batch) -> Budget:
        budget = torch.full_like(batch.x[:, 0, 0, 0], 0.5)
        return Budget(attack=budget, label=budget)

    return plugin(perturbation_budget=perturbation_budget, **members)


def test_a_budget_above_its_word_is_its_owners_fault(tiny_net: Net, tiny_batch: BatchOf) -> None:
    """Not that of who made a label of it, as far as it was promised to reach."""
    said = r"Plugin odd broke the contract of perturbation_budget: attack is above 0\.1, which Plugin\.largest_budget"
    promised = generous(largest_budget=lambda self, eps: advkit.Budgets(eps, eps))
    for others in ((generous(), "dirichlet-ls"), (generous(),), (promised,)):
        with pytest.raises(HookContract, match=said):
            step_of(tiny_net(), *others)(*tiny_batch(), epoch=0)
    honest = generous(largest_budget=lambda self, eps: advkit.Budgets(0.5, 0.5))
    step_of(tiny_net(), honest)(*tiny_batch(), epoch=0)


# ---------------------------------------------------------------------- declarations that nobody would read


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"name": "core"}, "is called core, as what no plugin owns; rename it"),
        (
            {"companions": {"weight_perturbaton": ("awp", {})}},
            r"companions has weight_perturbaton, which is no hook\. Did you mean weight_perturbation\?",
        ),
        ({"order": {"target_labels": Order()}}, r"order has target_labels, .*\. Did you mean target_label\?"),
        (
            {"order": {"base_loss": Order()}},
            r"order has base_loss, which is no chained hook\. Those are train_dataset, ",
        ),
        ({"order": {"target_label": Order(after="lsiw")}}, "order must be hooks and"),
    ],
)
def test_unused_class_attributes(tiny_net: Net, members: Any, sentence: str) -> None:
    def watches(self: Any, batch: advkit.Batch) -> None: ...

    with pytest.raises(UnknownHook, match=sentence):
        step_of(tiny_net(), plugin(observe_update=watches, **members))


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"demands": lambda self, hook, epoch: {"adv_logit"}}, "demands must be names of arguments"),
        ({"detached": lambda self, hook, epoch: {"logits"}}, "detached must be names of logits"),
        ({"passes": lambda self, hook, costs: Passes(-1)}, r"passes must be advkit\.Passes"),
        ({"passes": lambda self, hook, costs: Passes(0.5)}, r"passes must be advkit\.Passes"),
    ],
)
def test_declarations_of_what_is_none(tiny_net: Net, tiny_batch: BatchOf, members: Any, sentence: str) -> None:
    def extra_regularizer(self: Any, adv_logits: Tensor) -> Tensor:
        return adv_logits.sum(1)

    with pytest.raises(HookContract, match=f"Plugin odd: {sentence}"):
        step_of(tiny_net(), plugin(extra_regularizer=extra_regularizer, **members))(*tiny_batch(), epoch=0)


@pytest.mark.parametrize("budget", [float("nan"), -1.0, torch.tensor(0.1)])
def test_largest_budgets_are_numbers(tiny_net: Net, tiny_batch: BatchOf, budget: Any) -> None:
    odd = generous(largest_budget=lambda self, eps: advkit.Budgets(0.5, budget))
    with pytest.raises(HookContract, match=r"Plugin odd: largest_budget must be advkit\.Budgets, not Budgets"):
        step_of(tiny_net(), odd)(*tiny_batch(), epoch=0)
