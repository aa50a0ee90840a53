"""What goes wrong in a plugin is blamed on it by name, wherever it arises; what it borrows it gives back as it was."""

from __future__ import annotations

import io
import itertools
import random
import signal
import sys
from collections.abc import Callable, Sequence
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
from advkit import DataError, Dataset, HookContract, NonFinite, OptionError, Passes, Splits, Step
from advkit.errors import AdvkitError, GateMissed, Stopped, UnknownHook
from advkit.global_state import switches

Net = Callable[..., nn.Sequential]
BatchOf = Callable[..., tuple[Tensor, Tensor, Tensor]]


def breaks(self: Any, *arguments: Any, **named: Any) -> Any:
    raise ZeroDivisionError("oops")


def watches(self: Any, batch: Any) -> None:
    """An answer, so that declarations are read."""


def step_of(net: nn.Module, *plugins: Any, **settings: Any) -> Step:
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    return Step(net, optimizer, plugins, num_samples=16, eps=0.1, settings={"attack.steps": 2, **settings})


def trained(net: nn.Module, *plugins: Any) -> advkit.TrainResult:
    drawn = torch.randint(0, 256, (12, 2, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    toy = Dataset("toy", drawn, torch.arange(12) % 3, ("a", "b", "c"))
    settings = {"attack.steps": 1, "validation.steps": 1, "validation.fraction": 0.25}
    return advkit.train(net, Splits(toy, toy, "none"), plugins, settings=settings, epochs=1, batch_size=4, eps=0.1)


# ---------------------------------------------------------------------- exceptions and declarations


@pytest.mark.parametrize(
    ("hook", "made", "complaint"),
    [
        ("extra_regularizer", lambda term: term.detach().to_sparse(), "it gives a sparse, nested or quantized tensor"),
        (
            "extra_regularizer",
            lambda term: torch.nested.nested_tensor([term.detach()], layout=torch.jagged),
            "it gives a sparse, nested or",
        ),
        ("extra_regularizer", lambda term: term.to("meta"), "it gives a tensor without memory"),
        ("extra_regularizer", lambda term: inferred(term), "it gives a tensor of torch.inference_mode"),
        ("extra_regularizer", lambda term: nn.Parameter(term.detach()), "the term does not depend on the net"),
        ("attack_objective", lambda loss: nn.Parameter(loss.detach()), "its values must depend on the logits"),
        ("attack_objective", lambda loss: loss.to(torch.complex64), "its values must be real numbers"),
        ("attack_objective", lambda loss: loss.to("meta"), "it gives a tensor without memory"),
    ],
)
def test_tensors_that_nobody_could_compute_with(
    tiny_net: Net, tiny_batch: BatchOf, hook: str, made: Any, complaint: str
) -> None:
    def extra_regularizer(self: Any, adv_logits: Tensor) -> Tensor:
        return made(adv_logits.sum(1))

    def attack_objective(self: Any) -> Any:
        return lambda logits: made(logits.sum(1))

    with pytest.raises(HookContract, match=f"Plugin bad broke the contract of {hook}: {complaint}"):
        step_of(tiny_net(), bad(**{hook: locals()[hook]}))(*tiny_batch(), epoch=0)


def inferred(tensor: Tensor) -> Tensor:
    with torch.inference_mode():
        return tensor.detach().clone()


def test_data_that_a_plugin_makes_wrong_are_its_own(tiny_net: Net) -> None:
    def train_dataset(self, dataset):
        return replace(dataset, images=dataset.images.half())

    with pytest.raises(DataError, match="images are float16") as failed:
        trained(tiny_net(), bad(train_dataset=train_dataset))
    assert "in plugin bad, hook train_dataset" in failed.value.__notes__[0]


@pytest.mark.parametrize("name", ["active", "demands", "detached", "passes", "join", "__init__"])
def test_an_exception_beside_the_hooks_names_its_plugin(tiny_net: Net, tiny_batch: BatchOf, name: str) -> None:
    def regularizer(self: Any, adv_logits: Tensor) -> Tensor:
        return adv_logits.sum(1)

    with pytest.raises(ZeroDivisionError) as raised:
        step_of(tiny_net(), bad(extra_regularizer=regularizer, **{name: breaks}))(*tiny_batch(), epoch=0)
    assert any(f"in plugin bad, {name}" in note for note in raised.value.__notes__)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("active", lambda self, hook, epoch: 1, "active must be True or False, not 1"),
        ("demands", lambda self, hook, epoch: "adv_logits", "demands must be names of arguments, or None, not 'adv_l"),
        ("detached", lambda self, hook, epoch: None, "detached must be names of logits, not None"),
        ("passes", lambda self, hook, costs: 3, "passes must be advkit.Passes, not 3"),
        ("join", lambda self, company: "a caution", "join must be a list of sentences, empty where there is none, not"),
        ("join", lambda self, company: None, "join must be a list of sentences, empty where there is none, not None"),
    ],
)
def test_declarations_of_a_wrong_type(
    tiny_net: Net, tiny_batch: BatchOf, name: str, value: Any, complaint: str
) -> None:
    def regularizer(self: Any, adv_logits: Tensor) -> Tensor:
        return adv_logits.sum(1)

    with pytest.raises(HookContract) as refused:
        step_of(tiny_net(), bad(extra_regularizer=regularizer, **{name: value}))(*tiny_batch(), epoch=0)
    assert str(refused.value).startswith(f"Plugin bad: {complaint}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prefers", ["attack.init"]),
        ("companions", {"weight_perturbation": "awp"}),
        ("companions", {"weight_perturbation": ()}),
        ("order", {"target_label": ("before", "dirichlet-ls")}),
        ("Options", dict),
    ],
)
def test_class_attributes_of_a_wrong_type_are_refused_at_registration(tiny_net: Net, name: str, value: Any) -> None:
    with pytest.raises(UnknownHook, match=f"Plugin bad: {name} must be"):
        step_of(tiny_net(), bad(observe_update=watches, **{name: value}))


def test_a_constructor_that_does_not_call_its_base(tiny_net: Net) -> None:
    with pytest.raises(HookContract, match=r"Plugin bad: __init__ must call super\(\).__init__\(options\)"):
        step_of(tiny_net(), bad(observe_update=watches, __init__=lambda self, options: None))


def test_teardown_never_replaces_the_true_error(tiny_net: Net) -> None:
    def fails(self: Any) -> None:
        raise KeyError("late")

    with pytest.raises(ZeroDivisionError) as raised:
        trained(tiny_net(), bad(observe_update=lambda self: breaks(self), teardown=fails))
    assert "and then teardown failed: KeyError: 'late'" in raised.value.__notes__[-1]
    with pytest.raises(KeyError) as late:
        trained(tiny_net(), bad(teardown=fails))
    assert "in plugin bad, hook teardown" in late.value.__notes__[0]


BEGINS = "an advkit.Dataset that begins with the samples of the given one is expected"


@pytest.mark.parametrize(
    ("hook", "answer", "complaint"),
    [
        ("train_transform", lambda self, x: x[:, :1], "images (4, 2, 4, 4) torch.float32 are expected, as they came"),
        ("train_transform", lambda self, x: x.double(), "images (4, 2, 4, 4) torch.float32 are expected, as they came"),
        ("train_transform", lambda self, x: None, "images (4, 2, 4, 4) torch.float32 are expected, as they came"),
        ("train_sampler", lambda self, indices: [indices.float()], "every batch must be an int64 tensor (b,) of"),
        ("train_sampler", lambda self, indices: [], "every batch must be an int64 tensor (b,) of `indices`"),
        ("train_sampler", lambda self, indices: itertools.count(), "every batch must be an int64 tensor (b,) of"),
        ("train_sampler", lambda self, indices: ({}[i] for i in indices), "every batch must be an int64 tensor (b,)"),
        ("train_sampler", lambda self, indices: indices[0], "every batch must be an int64 tensor (b,) of `indices`"),
        ("train_dataset", lambda self, dataset: None, BEGINS),
        ("train_dataset", lambda self, dataset: dataset.take(slice(3)), BEGINS),
        ("train_dataset", lambda self, dataset: replace(dataset, images=dataset.images.flip(0)), BEGINS),
        ("train_dataset", lambda self, dataset: replace(dataset, labels=dataset.labels.flip(0)), BEGINS),
        ("train_dataset", lambda self, dataset: replace(dataset, classes=dataset.classes[::-1]), BEGINS),
        ("evaluation_weights", lambda self: {"0.weigth": torch.zeros(1)}, "it has 0.weigth, which is no parameter"),
        ("evaluation_weights", lambda self: {"0.weight": torch.zeros(1)}, "it has 0.weight, which is no parameter"),
        ("evaluation_weights", lambda self: {"0.weight": 3}, "tensors by name are expected"),
        ("evaluation_weights", lambda self: None, "tensors by name are expected"),
    ],
)
def test_answers_to_the_loop_are_checked(tiny_net: Net, hook: str, answer: Any, complaint: str) -> None:
    with pytest.raises(HookContract) as refused:
        trained(tiny_net(), bad(**{hook: answer}))
    assert str(refused.value).startswith(f"Plugin bad broke the contract of {hook}: {complaint}")


def test_metrics_are_borrowed(tiny_net: Net) -> None:
    def edits(self: Any, metrics: Any) -> None:
        metrics["loss"] = 0.0

    with pytest.raises(TypeError) as raised:
        trained(tiny_net(), bad(epoch_end=edits))
    assert "in plugin bad, hook epoch_end" in raised.value.__notes__[0]

    def deep(self: Any, metrics: Any) -> None:
        metrics["validation"]["selected"] = 2.0

    result = trained(tiny_net(), bad(epoch_end=deep))
    assert result.history[0]["validation"]["selected"] <= 1.0


# ---------------------------------------------------------------------- what is borrowed


def edits(name: str) -> Callable[..., None]:
    def observe_update(self: Any, batch: Any, target: Any, radius: Any, attack: Any, adv_logits: Any) -> None:
        borrowed = {"batch.x": batch.x, "batch.y": batch.y, "target": target, "radius": radius}
        borrowed |= {"attack.x_adv": attack.x_adv, "adv_logits": adv_logits}
        borrowed[name].data.mul_(0)

    return observe_update


@pytest.mark.parametrize("name", ["batch.x", "batch.y", "target", "radius", "attack.x_adv", "adv_logits"])
def test_what_is_borrowed_is_not_changed(tiny_net: Net, tiny_batch: BatchOf, name: str) -> None:
    net, (x, y, index) = tiny_net(), tiny_batch()
    before = [tensor.clone() for tensor in (x, y, *net.parameters())]
    with pytest.raises(HookContract) as refused:
        step_of(net, bad(observe_update=edits(name)))(x, y, index, epoch=0)
    assert str(refused.value) == (
        f"Plugin bad broke the contract of observe_update: it changed {name}, which it only borrows; work on a copy. "
        "See docs/hooks.md."
    )
    assert all(torch.equal(now, was) for now, was in zip((x, y, *net.parameters()), before, strict=True))


def test_weights_are_borrowed(tiny_net: Net, tiny_batch: BatchOf) -> None:
    def perturb(self: Any, params: Any) -> Any:
        params["0.weight"].add_(1.0)
        return {}

    net = tiny_net()
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(HookContract, match=r"it changed params\[0.weight\], which it only borrows"):
        step_of(net, bad(weight_perturbation=perturb))(*tiny_batch(), epoch=0)
    assert all(torch.equal(now, was) for now, was in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("what", "deed"),
    [
        ("torch's global generator", lambda: torch.rand(1)),
        ("numpy's global generator", lambda: np.random.rand()),  # noqa: NPY002
        ("Python's global generator", random.random),
        ("the grad mode", lambda: torch.set_grad_enabled(not torch.is_grad_enabled())),
        ("the default dtype", lambda: torch.set_default_dtype(torch.float64)),
        ("the precision of products", lambda: setattr(torch.backends, "fp32_precision", "tf32")),
        ("the flags of mkldnn", lambda: setattr(torch.backends.mkldnn, "enabled", False)),
        ("the type of autocast", lambda: torch.set_autocast_dtype("cpu", torch.float16)),
        ("the modes of torch", lambda: HELD[0].__enter__()),
        ("torch.inference_mode", lambda: HELD[1].__enter__()),
        ("what numpy does at errors", lambda: np.seterr(all="raise")),
        ("what SIGTERM does", lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN)),
        ("sys.stdout or sys.stderr", lambda: setattr(sys, "stderr", io.StringIO())),
        ("torch.nn.functional.cross_entropy", lambda: setattr(F, "cross_entropy", lambda *_: 0)),
        ("torch.Tensor.sign", lambda: setattr(Tensor, "sign", lambda tensor: tensor)),
        ("torch.optim.SGD.step", lambda: setattr(torch.optim.SGD, "step", lambda optimizer: None)),
        ("forward of the class Linear", lambda: setattr(nn.Linear, "forward", lambda layer, x: x)),
        ("the hooks of all modules", lambda: nn.modules.module.register_module_forward_hook(lambda *_: None)),
    ],
)
def test_global_state_is_left_alone(tiny_net: Net, tiny_batch: BatchOf, what: str, deed: Callable[[], Any]) -> None:
    def observe_update(self: Any) -> None:
        deed()

    before, functions = switches(), (F.cross_entropy, Tensor.sign, torch.optim.SGD.step, nn.Linear.forward)
    with pytest.raises(HookContract, match=f"Plugin bad broke the contract of observe_update: it changed {what}"):
        step_of(tiny_net(), bad(observe_update=observe_update))(*tiny_batch(), epoch=0)
    assert before == switches() and not torch.is_inference_mode_enabled()
    assert functions == (F.cross_entropy, Tensor.sign, torch.optim.SGD.step, nn.Linear.forward)
    assert not nn.modules.module._global_forward_hooks


HELD = [torch.autograd.graph.saved_tensors_hooks(lambda value: value, lambda value: value), torch.inference_mode()]
"""Modes that are entered for good."""


def test_later_steps_are_watched_on_request(tiny_net: Net, tiny_batch: BatchOf) -> None:
    """The watch costs copies: the first step of a stage, and all with run.check_hooks."""

    def observe_update(self: Any, radius: Any, run: Any) -> None:
        if run.step == 1:
            radius.mul_(0)

    for watched in (False, True):
        step = step_of(tiny_net(), bad(observe_update=observe_update), **{"run.check_hooks": watched})
        step(*tiny_batch(), epoch=0)
        if watched:
            with pytest.raises(HookContract, match=r"it changed radius"):
                step(*tiny_batch(), epoch=0)
        else:
            step(*tiny_batch(), epoch=0)


def test_an_attack_of_a_plugin_on_broken_gradients_is_none(tiny_net: Net, tiny_batch: BatchOf) -> None:
    """The sign of NaN is 0: the images would stay where they are, and the net would look robust."""

    def inner_attack(self, model, batch, radius, objective):
        x = batch.x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(model(x)).sum(), x)
        moved = batch.x + radius.view(-1, 1, 1, 1) * gradient.sign().nan_to_num()
        return advkit.AttackResult(moved.clamp(0, 1))

    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = tiny_net()

        def forward(self, x: Tensor) -> Tensor:
            if x.requires_grad:
                x = x + 0 * (x.detach() - x).sqrt()  # 0 times the derivative of sqrt at 0
            return self.net(x)

    attack = bad(inner_attack=inner_attack, passes=lambda self, hook, costs: Passes(1, 1))
    with pytest.raises(NonFinite, match="NaN or Inf in an input gradient of the attack at epoch 0, step 0"):
        step_of(Breaks(), attack)(*tiny_batch(), epoch=0)
    step_of(tiny_net(), attack)(*tiny_batch(), epoch=0)


@pytest.mark.parametrize("hook", ["train_dataset", "train_sampler", "train_transform", "evaluation_weights"])
def test_what_the_loop_lends_is_given_back(tiny_net: Net, hook: str) -> None:
    def train_dataset(self, dataset):
        dataset.labels.fill_(1)
        return dataset

    def train_sampler(self, indices):
        indices.copy_(indices.flip(0))
        return [indices]

    def train_transform(self, x):
        return x.mul_(0.5)

    def evaluation_weights(self, model):
        for parameter in model.parameters():
            parameter.data.mul_(0)
        return {}

    answers = {f.__name__: f for f in (train_dataset, train_sampler, train_transform, evaluation_weights)}
    with pytest.raises(HookContract, match=f"Plugin bad broke the contract of {hook}: it changed .*, which it only"):
        trained(tiny_net(), bad(**{hook: answers[hook]}))


@pytest.mark.parametrize("kind", ["grad", "vmap", "jacrev"])
def test_a_net_that_is_called_inside_a_transform_is_blamed_on_its_caller(
    tiny_net: Net, tiny_batch: BatchOf, kind: str
) -> None:
    def inner_attack(self, model, batch):
        f = {
            "grad": lambda: torch.func.grad(lambda x: model(x).sum())(batch.x),
            "vmap": lambda: torch.func.vmap(lambda one: model(one[None]))(batch.x),
            "jacrev": lambda: torch.func.jacrev(lambda x: model(x).sum())(batch.x),
        }[kind]
        f()

    sentence = r"inside a transform of torch\.func .* take torch\.autograd\.grad"
    with pytest.raises(RuntimeError, match=sentence) as failed:
        step_of(tiny_net(), bad(inner_attack=inner_attack))(*tiny_batch(), epoch=0)
    assert failed.value.__notes__ == ["in plugin bad, hook inner_attack, epoch 0, step 0"]


@pytest.mark.parametrize("error", [DataError("mine"), NonFinite("mine"), Stopped("mine"), GateMissed("mine")])
def test_an_error_of_advkits_own_that_a_plugin_raises_is_the_plugins(
    tiny_net: Net, tiny_batch: BatchOf, error: AdvkitError
) -> None:
    """And none says that the run was saved, or a gate missed."""

    def breaks(self, batch):
        raise error

    with pytest.raises((AdvkitError, RuntimeError), match="mine") as failed:
        step_of(tiny_net(), bad(extra_regularizer=breaks))(*tiny_batch(), epoch=0)
    assert failed.value.__notes__ == ["in plugin bad, hook extra_regularizer, epoch 0, step 0"]
    assert isinstance(failed.value, RuntimeError) is isinstance(error, Stopped | GateMissed)


def test_what_torch_says_in_a_plugin_is_explained_with_its_name(tiny_net: Net, tiny_batch: BatchOf) -> None:
    """It may be the net's or the plugin's: the sentence is the net's, and says who asked."""

    def observe_update(self, batch):
        with torch.enable_grad():
            one, other = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
            torch.autograd.grad(one.sum(), other)

    with pytest.raises(OptionError, match="no gradient at its input") as failed:
        step_of(tiny_net(), bad(observe_update=observe_update))(*tiny_batch(), epoch=0)
    assert failed.value.__notes__ == ["in plugin bad, hook observe_update, epoch 0, step 0"]


def test_a_refusal_of_advkits_own_has_its_place_in_the_sentence(tiny_net: Net) -> None:
    def setup(self, run):
        run.sample_state("a", dtype="float32")

    with pytest.raises(OptionError, match=r"^Plugin bad: dtype of the state a is") as refused:
        step_of(tiny_net(), bad(setup=setup))
    assert not getattr(refused.value, "__notes__", ())


def test_batches_that_fail_when_they_are_read_are_blamed(tiny_net: Net) -> None:
    class Late(Sequence[Tensor]):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, place):
            raise RuntimeError("oops")

    with pytest.raises(RuntimeError, match="oops") as failed:
        trained(tiny_net(), bad(train_sampler=lambda self, indices: Late()))
    assert failed.value.__notes__ == ["in plugin bad, hook train_sampler, epoch 1, step 1"]


@pytest.mark.parametrize("failure", [StopIteration(), StopAsyncIteration("oops"), GeneratorExit("oops")])
@pytest.mark.parametrize("place", ["extra_regularizer", "active", "passes", "train_sampler"])
def test_what_ends_a_generator_is_blamed_too(tiny_net: Net, place: str, failure: BaseException) -> None:
    """Hooks and declarations are asked inside generators, which replace a StopIteration (PEP 479)."""

    def ends(self, hook=None, costs=None):
        raise failure

    def answers_and_ends(self):
        raise failure

    declares = place in ("active", "passes")
    answers = {
        "extra_regularizer": lambda self, batch: torch.zeros(len(batch.y)),
        place: ends if declares else answers_and_ends,
    }
    with pytest.raises(RuntimeError, match=type(failure).__name__) as raised:
        trained(tiny_net(), bad(**answers))
    assert f"in plugin bad, {'' if declares else 'hook '}{place}" in raised.value.__notes__[0]
    assert type(raised.value.__cause__) is type(failure)


@pytest.mark.parametrize("stated", [7, "x", None, ["awp"], {1: 2}])
def test_companions_of_a_wrong_type_are_the_plugins(tiny_net: Net, stated: Any) -> None:
    with pytest.raises(UnknownHook, match="Plugin bad: companions must be hooks and "):
        trained(tiny_net(), bad(companions=stated))


def test_a_property_that_raises_is_the_plugins(tiny_net: Net, tiny_batch: BatchOf) -> None:
    def weigh(self, batch):
        return torch.ones(len(batch.y))

    terms = property(lambda self: {}["missing"])
    with pytest.raises(KeyError, match="missing") as raised:
        step_of(tiny_net(), bad(instance_weight=weigh, terms=terms))(*tiny_batch(), epoch=0)
    assert "in plugin bad, terms" in raised.value.__notes__


def test_global_state_comes_back_when_a_hook_fails(tiny_net: Net, tiny_batch: BatchOf) -> None:
    def observe_update(self):
        torch.set_default_dtype(torch.float64)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        step_of(tiny_net(), bad(observe_update=observe_update))(*tiny_batch(), epoch=0)
    assert torch.get_default_dtype() == torch.float32


def test_mixed_images_stay_images(tiny_net: Net, tiny_batch: BatchOf) -> None:
    def mix_batch(self, batch):
        return replace(batch, x=batch.x * 3)

    with pytest.raises(HookContract, match=r"broke the contract of mix_batch: images leave \[0, 1\]"):
        step_of(tiny_net(), bad(mix_batch=mix_batch))(*tiny_batch(), epoch=0)


def test_a_shift_has_memory_of_its_own(tiny_net: Net, tiny_batch: BatchOf) -> None:
    def weight_perturbation(self, params):
        return dict(params)

    with pytest.raises(HookContract, match="is the weight itself; give a tensor of its own"):
        step_of(tiny_net(), bad(weight_perturbation=weight_perturbation, steps_at_shift=True))(*tiny_batch(), epoch=0)


def test_a_refused_step_does_not_take_the_plugin(tiny_net: Net) -> None:
    plugin = bad(observe_update=watches)(advkit.PluginOptions())
    with pytest.raises(advkit.OptionError, match="no trainable parameter"):
        step_of(tiny_net().requires_grad_(False), plugin)
    step_of(tiny_net().requires_grad_(), plugin)


def test_an_attack_may_use_the_net_and_its_draws(tiny_net: Net, tiny_batch: BatchOf) -> None:
    """Controls: dropout in an attack's forwards is the net's own, and writing into one's own copy is fine."""

    def inner_attack(self: Any, model: Any, batch: Any, radius: Any, objective: Any) -> advkit.AttackResult:
        x = batch.x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(model(x)).sum(), x)
        moved = batch.x.clone().add_(radius.view(-1, 1, 1, 1) * gradient.sign()).clamp_(0, 1)
        return advkit.AttackResult(moved)

    honest = bad(inner_attack=inner_attack, passes=lambda self, hook, costs: Passes(1, 1))
    step_of(tiny_net(True, dropout=0.5), honest, "awp", **{"run.check_hooks": True})(*tiny_batch(), epoch=0)


DRAWS = {
    "torch's global generator": lambda: torch.rand(1),
    "numpy's global generator": lambda: np.random.rand(),  # noqa: NPY002
    "Python's global generator": random.random,
}


@pytest.mark.parametrize("what", DRAWS)
@pytest.mark.parametrize("hook", ["inner_attack", "weight_perturbation", "attack_objective", "setup"])
def test_draws_that_no_address_has_are_the_plugins(tiny_net: Net, tiny_batch: BatchOf, hook: str, what: str) -> None:
    """Also of hooks that may call the net, which draws from torch's generator itself."""

    def inner_attack(self: Any, model: Any, batch: Any) -> advkit.AttackResult:
        model(batch.x)
        DRAWS[what]()
        return advkit.AttackResult(batch.x)

    def weight_perturbation(self: Any, params: Any, gradient_at: Any) -> dict[str, Tensor]:
        DRAWS[what]()
        gradient_at()
        return {}

    def attack_objective(self: Any) -> Callable[[Tensor], Tensor]:
        return lambda logits: logits.sum(1) * (1 if DRAWS[what]() is None else 2)

    def setup(self: Any, model: nn.Module) -> None:
        DRAWS[what]()

    passes = {"inner_attack": Passes(forward=1), "weight_perturbation": Passes(1, full_backward=1)}
    members = {hook: locals()[hook], "passes": lambda self, hook, costs: passes.get(hook, Passes())}
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    with pytest.raises(HookContract, match=f"Plugin bad broke the contract of {hook}: it changed {what}; draw from"):
        step_of(tiny_net(dropout=0.5), bad(**members))(*tiny_batch(), epoch=0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002


def test_a_net_that_draws_from_nobodys_generator(tiny_net: Net, tiny_batch: BatchOf) -> None:
    class Jitters(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.core = tiny_net()

        def forward(self, x: Tensor) -> Tensor:
            return self.core(x + 1e-3 * np.random.rand())  # noqa: NPY002

    with pytest.raises(advkit.OptionError, match="The model draws from numpy's global generator, which nobody seeds"):
        step_of(Jitters())(*tiny_batch(), epoch=0)


class Renormed(nn.Module):
    """Its weights have length 1, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.head.weight.div_(self.head.weight.norm(dim=1, keepdim=True))
        return self.head(x.flatten(1))


def asks(self: Any, run: Any, batch: Any, target: Tensor, phase: str) -> Tensor:
    run.logits(batch.x)
    return target


@pytest.mark.parametrize("plugin", ["awp", bad(target_label=asks, passes=lambda self, hook, costs: Passes(forward=1))])
def test_a_net_that_writes_into_its_weights_is_told_not_the_plugin_that_calls_it(
    tiny_batch: BatchOf, plugin: Any
) -> None:
    step = step_of(Renormed(), plugin)
    with pytest.raises(OptionError, match=r"^The model writes into head.weight in its forward"):
        step(*tiny_batch(), epoch=0)


@pytest.mark.parametrize(
    ("scale", "sentence"),
    [
        (float("nan"), r"^Plugin bad: evaluation_weights has NaN or Inf in .*, which the model has not\."),
        (3e38, r"^Validation of epoch 1, on the weights that bad gives: the net can not be judged: its logits"),
        (1.0, ""),
    ],
)
def test_weights_to_judge_that_compute_no_numbers_are_the_plugins(tiny_net: Net, scale: float, sentence: str) -> None:
    def evaluation_weights(self, model):
        return {name: torch.full_like(value, scale) for name, value in model.named_parameters()}

    with pytest.raises(NonFinite, match=sentence) if sentence else nullcontext():
        trained(tiny_net(), bad(evaluation_weights=evaluation_weights))
