"""The ways in which plugins are broken, a few lines each, and the check that says so, as `plugins check` would."""

from __future__ import annotations

import itertools
import random
import time
from typing import Any

import numpy as np
import pytest
import torch
from broken import bad
from torch import Tensor, nn

from advkit import AttackResult, Budget, Passes, Plugin, PluginOptions, hookimpl, option
from advkit.testing import CHECKS, Misbehaves, Subject


def term(self: Any, adv_logits: Tensor) -> Tensor:
    return 1e-2 * adv_logits.square().sum(1)


def watching(deed: Any) -> type[Plugin]:
    """Does something beside what it is asked."""
    return bad(extra_regularizer=term, observe_update=lambda self, x_train: (deed(x_train), None)[1])


def keeping(name: str, **claimed: Any) -> dict[str, Any]:
    def setup(self: Any, run: Any) -> None:
        self.kept = run.sample_state(name, **claimed)

    return {"setup": setup}


def of_model(deed: Any) -> type[Plugin]:
    """Keeps the net that `setup` is shown, and does something to it in a step."""

    def setup(self: Any, model: nn.Module, run: Any) -> None:
        self.net = model

    return bad(setup=setup, extra_regularizer=term, observe_update=lambda self: (deed(self.net), None)[1])


def ending(position: Any, **more: Any) -> type[Plugin]:
    return bad(inner_attack=lambda self, batch, radius: AttackResult(position(batch.x, radius)), **more)


def weighing(weight: Any, **more: Any) -> type[Plugin]:
    return bad(
        terms=("base_loss",), instance_weight=lambda self, adv_logits, batch: weight(self, adv_logits, batch), **more
    )


class NoHelp(PluginOptions):
    lam: float = 0.1


class Takes(PluginOptions):
    model_config = {"extra": "ignore"}
    lam: float = option(0.1, help="coefficient")


def unequal(self: Any, *_: Any) -> bool:
    self.calls = getattr(self, "calls", 0) + 1
    return self.calls % 2 == 0


KINDS: dict[str, tuple[str, Any, str]] = {
    # what it says of itself
    "no hook": ("registration", bad(), "it answers no hook"),
    "no docstring": (
        "registration",
        type("B", (Plugin,), {"name": "bad", "extra_regularizer": hookimpl(term)}),
        "its class has no docstring",
    ),
    "a misspelt hook": (
        "registration",
        type("B", (Plugin,), {"name": "bad", "base_los": hookimpl(term)}),
        "Did you mean base_loss?",
    ),
    "a misspelt argument": (
        "registration",
        bad(extra_regularizer=lambda self, adv_logit: adv_logit),
        "Did you mean adv_logits?",
    ),
    "an argument with a default": (
        "registration",
        bad(extra_regularizer=lambda self, adv_logits=None: 0),
        "has a default, and pluggy would never fill it in",
    ),
    "a name that no command line takes": (
        "registration",
        bad(name="My Plugin", extra_regularizer=term),
        "needs a kebab-case class attribute `name`",
    ),
    "a companion without options": (
        "registration",
        bad(extra_regularizer=term, companions={"weight_perturbation": "awp"}),
        "companions must be",
    ),
    "a preference of nobody's setting": (
        "registration",
        bad(base_loss=term, prefers={"attack.stepps": 3}),
        "bad runs neither alone nor beside another one: Unknown setting attack.stepps.",
    ),
    "another api": (
        "registration",
        bad(extra_regularizer=term, api_version="99.0"),
        "is written for API 99.0 of advkit",
    ),
    "a constructor of its own": (
        "registration",
        bad(extra_regularizer=term, __init__=lambda self, options: None),
        "super().__init__(options)",
    ),
    "activity by chance": ("registration", bad(extra_regularizer=term, active=unequal), "when asked again"),
    "a property that raises": (
        "registration",
        bad(extra_regularizer=term, by_sample=property(lambda self: 1 // 0)),
        "(in plugin bad, by_sample)",
    ),
    "an option without help": ("options", bad(extra_regularizer=term, Options=NoHelp), "has no help"),
    "options that take anything": (
        "options",
        bad(extra_regularizer=term, Options=Takes),
        "no-such-option = 1 was accepted",
    ),
    # what it answers
    "an exception": (
        "step",
        bad(extra_regularizer=lambda self: 1 // 0),
        "(in plugin bad, hook extra_regularizer, epoch 0, step 0)",
    ),
    "nothing": ("step", bad(extra_regularizer=lambda self: None), "not NoneType"),
    "another type": ("step", bad(extra_regularizer=lambda self, adv_logits: adv_logits.argmax(1)), "not (4,) int64"),
    "another device": (
        "step",
        bad(extra_regularizer=lambda self, adv_logits: term(self, adv_logits).to("meta")),
        "a tensor without memory, of the device meta",
    ),
    "NaN": (
        "step",
        bad(extra_regularizer=lambda self, adv_logits: term(self, adv_logits) * float("nan")),
        "NaN or Inf in the loss (term bad)",
    ),
    "no gradient": (
        "step",
        bad(base_loss=lambda self, adv_logits: term(self, adv_logits).detach()),
        "The loss (base_loss of bad) has no gradient",
    ),
    "labels that are no distribution": (
        "step",
        bad(target_label=lambda self, target: 2 * target),
        "a row does not sum to 1",
    ),
    "a negative weight": (
        "step",
        weighing(lambda self, logits, batch: -logits.detach()[:, 0].abs() - 1),
        "weights must not be negative",
    ),
    "a negative budget": (
        "step",
        bad(perturbation_budget=lambda self, batch: Budget(-batch.x[:, 0, 0, 0], batch.x[:, 0, 0, 0])),
        "attack must not be negative",
    ),
    "images that are none": ("step", ending(lambda x, radius: x + 2), "images leave [0, 1]"),
    "images beyond the ball": ("step", ending(lambda x, radius: 1 - x), "images leave the ball"),
    "a shift of no parameter": (
        "step",
        bad(weight_perturbation=lambda self: {"no.weight": torch.ones(1)}),
        "no trainable parameter",
    ),
    "logits of no pass": (
        "step",
        bad(
            extra_regularizer=lambda self, clean_logits: term(self, clean_logits), demands=lambda self, hook, epoch: ()
        ),
        "(in plugin bad, hook extra_regularizer, epoch 0, step 0)",
    ),
    # what it leaves behind
    "labels written over": (
        "borrowed",
        bad(target_label=lambda self, target: target.mul_(0.9).add_(0.1 / 3)),
        "it changed target, which it only borrows",
    ),
    "weights written over": (
        "borrowed",
        of_model(lambda net: next(net.parameters()).data.add_(1.0)),
        "it changed 0.weight, which it only borrows",
    ),
    "statistics written over": (
        "borrowed",
        of_model(lambda net: next(net.buffers()).add_(1.0)),
        "it changed 1.running_mean",
    ),
    "the mode": ("borrowed", of_model(lambda net: net.eval()), "it changed the mode of the model"),
    "frozen weights": (
        "borrowed",
        of_model(lambda net: net.requires_grad_(False)),
        "it changed requires_grad of 0.weight",
    ),
    "a forward hook": (
        "borrowed",
        of_model(lambda net: net.register_forward_hook(lambda *_: None)),
        "it changed a hook of the model",
    ),
    "gradients cleared": (
        "borrowed",
        of_model(lambda net: [setattr(p, "grad", torch.ones_like(p)) for p in net.parameters()]),
        "it changed the gradient of 0.weight",
    ),
    "torch's generator": ("borrowed", watching(lambda x: torch.rand(1)), "torch's global generator"),
    "numpy's generator": ("borrowed", watching(lambda x: np.random.rand()), "numpy's global generator"),  # noqa: NPY002
    "Python's generator": ("borrowed", watching(lambda x: random.random()), "Python's global generator"),
    "a seed of torch's": ("borrowed", watching(lambda x: torch.manual_seed(0)), "torch's global generator"),
    "the grad mode": (
        "borrowed",
        watching(lambda x: torch.set_grad_enabled(not torch.is_grad_enabled())),
        "the grad mode",
    ),
    "another default type": (
        "borrowed",
        watching(lambda x: torch.set_default_dtype(torch.float64)),
        "the default dtype",
    ),
    "the number of threads": (
        "borrowed",
        watching(lambda x: torch.set_num_threads(2)),
        "it changed the number of threads",
    ),
    "deterministic kernels": (
        "borrowed",
        watching(lambda x: torch.use_deterministic_algorithms(True)),
        "it changed whether algorithms are deterministic",
    ),
    # what it costs, keeps and depends on
    "a forward of its own": (
        "passes",
        bad(
            setup=lambda self, model: setattr(self, "net", model),
            extra_regularizer=lambda self, x_train: term(self, self.net(x_train)),
        ),
        "calls the model itself",
    ),
    "a pass that it declares and leaves out": (
        "passes",
        bad(inner_attack=lambda self, batch: AttackResult(batch.x), passes=lambda self, hook, costs: Passes(forward=3)),
        "other passes than declared",
    ),
    "state bound anew": (
        "state",
        bad(**keeping("count"), observe_update=lambda self: setattr(self, "kept", self.kept + 1)),
        "binds its state",
    ),
    "a mean of the batch taken for a sample's": (
        "parts",
        weighing(
            lambda self, logits, batch: torch.full_like(logits[:, 0], float(logits.detach().mean().exp())),
            by_sample=True,
        ),
        "it declares by_sample, but its answer on the first 2 of 4",
    ),
    "a division by the budget": (
        "extremes",
        bad(extra_regularizer=lambda self, adv_logits, radius: term(self, adv_logits) / radius),
        "with eps 0: NaN or Inf in the loss (term bad)",
    ),
    "a logarithm of a probability": (
        "extremes",
        bad(base_loss=lambda self, adv_logits, target: -(target * adv_logits.softmax(1).log()).sum(1)),
        "with saturated logits: NaN or Inf",
    ),
    "half the way": (
        "optimum",
        bad(attack_move=lambda self, move: 0.01 * move),
        "goes 2% of the way to the best point",
    ),
    "a loss that hides its slope": (
        "gradient",
        bad(extra_regularizer=lambda self, adv_logits: term(self, adv_logits) * adv_logits.detach().abs().sum(1)),
        "the gradient says",
    ),
    "the clock": (
        "draws",
        weighing(lambda self, logits, batch: torch.full_like(logits[:, 0], 1 + time.perf_counter_ns() % 997 / 997)),
        "two runs of one seed differ",
    ),
    "a generator of its own": (
        "draws",
        weighing(lambda self, logits, batch: torch.as_tensor(np.random.default_rng().random(len(logits))).to(logits)),
        "two runs of one seed differ",
    ),
    "an address of memory": (
        "draws",
        weighing(lambda self, logits, batch: torch.full_like(logits[:, 0], 1 + id(logits) % 9973 / 9973)),
        "two runs of one seed differ",
    ),
    "the first of a batch": (
        "permutation",
        weighing(lambda self, logits, batch: torch.ones_like(logits[:, 0]).index_fill(0, torch.tensor([0]), 3.0)),
        "with the batch in the order",
    ),
    "the state of a neighbour": (
        "permutation",
        weighing(
            lambda self, logits, batch: (
                self.seen[batch.index.roll(1)].to(logits),
                self.seen.index_copy_(0, batch.index, logits.detach().square().sum(1).to(self.seen)),
            )[0],
            setup=lambda self, run: setattr(self, "seen", run.sample_state("seen", fill=1.0)),
        ),
        "with the batch in the order",
    ),
    "a count of steps": (
        "resume",
        weighing(
            lambda self, logits, batch: torch.full_like(
                logits[:, 0], 1 + next(self.__dict__.setdefault("count", itertools.count()))
            )
        ),
        "no checkpoint has",
    ),
    "the images of the step before": (
        "resume",
        weighing(
            lambda self, logits, batch: torch.full_like(logits[:, 0], 1 + float(self.__dict__.get("last", 0.0))),
            observe_update=lambda self, x_train: setattr(self, "last", float(x_train.mean())),
        ),
        "no checkpoint has",
    ),
    "examples that do nothing": (
        "neutral",
        bad(
            extra_regularizer=lambda self, adv_logits: 0 * term(self, adv_logits),
            example_options=classmethod(lambda cls: {}),
            neutral_options=classmethod(lambda cls: {}),
        ),
        "with its example options the run is the run without it, too",
    ),
}
for _, plugin, _ in KINDS.values():
    plugin.__doc__ = plugin.__doc__ or "Is broken."
KINDS["no docstring"][1].__doc__ = ""


@pytest.mark.parametrize("kind", KINDS)
def test_the_check_for_it_catches_it(kind: str) -> None:
    check, plugin, sentence = KINDS[kind]
    subject = Subject.of(plugin)
    subject.others = []
    with pytest.raises(Misbehaves) as caught:
        CHECKS[check](subject)
    assert sentence in caught.value.came, caught.value.came


def test_no_fault_hides_the_others() -> None:
    """Whatever breaks a contract is said in one go, also of hooks that are asked after the first that fails."""
    several = bad(
        terms=("base_loss",),
        target_label=lambda self, target: 2 * target,
        extra_regularizer=lambda self, adv_logits: adv_logits.mean(),
        instance_weight=lambda self, adv_logits: (torch.rand(1), torch.ones(4))[1],
    )
    several.__doc__ = "Is broken three times."
    subject = Subject.of(several)
    subject.others = []
    step, borrowed, draws = (CHECKS[name].outcome(subject) for name in ("step", "borrowed", "draws"))
    assert step.state == borrowed.state == "fails" and step.said.count("Plugin bad broke the contract of") == 2
    assert "a row does not sum to 1" in step.said and "And: Plugin bad broke the contract of extra_regular" in step.said
    assert "it changed torch's global generator" in borrowed.said and draws.said == "check_step fails"
