"""For each check a small plugin that this check catches, and no other one: the checks are checked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import BeforeValidator
from torch import Tensor, nn

from advkit import (
    AttackResult,
    Batch,
    Budget,
    Costs,
    Order,
    Passes,
    Plugin,
    PluginOptions,
    Real,
    Run,
    hookimpl,
    option,
    per_sample,
    registry,
)
from advkit.errors import OptionError
from advkit.testing import CHECKS, Misbehaves, NotRun, Subject, check_optimum, findings


class Weighs(Plugin):
    """Base of those that weigh the base loss."""

    terms = ("base_loss",)


class Unmarked(Plugin):
    """Has a method named like a hook, without its mark."""

    name = "unmarked"

    def base_loss(self, adv_logits: Tensor) -> Tensor: ...


class Assembled(Plugin):
    """Gets its hook from outside of its class."""

    name = "assembled"


Assembled.extra_regularizer = hookimpl(lambda self, adv_logits: adv_logits.square().sum(1))  # type: ignore[attr-defined]


class Halves(Plugin):
    """Halves an option whenever it is read."""

    name = "halves"

    class Options(PluginOptions):
        lam: Annotated[float, BeforeValidator(lambda value: value / 2)] = option(0.5, help="coefficient")

    options: Options

    @hookimpl
    def extra_regularizer(self, adv_logits: Tensor) -> Tensor:
        return self.options.lam * adv_logits.square().sum(1)


class Contradicts(Plugin):
    """Would come before and after the same neighbour."""

    name = "contradicts"
    order = {"target_label": Order(before=frozenset({"dirichlet-ls"}), after=frozenset({"dirichlet-ls"}))}

    @hookimpl
    def target_label(self, target: Tensor) -> Tensor:
        return 0.9 * target + 0.1 / target.shape[1]


class Sums(Plugin):
    """Returns one number for the whole batch."""

    name = "sums"

    @hookimpl
    def extra_regularizer(self, adv_logits: Tensor) -> Tensor:
        return adv_logits.square().mean()


class Scribbles(Plugin):
    """Writes into the images that it borrows."""

    name = "scribbles"

    @hookimpl
    def observe_update(self, x_train: Tensor) -> None:
        x_train.clamp_(0, 1)


class RunsALayer(Plugin):
    """Runs a part of the model, which no plan counts."""

    name = "runs-a-layer"

    @hookimpl
    def setup(self, model: nn.Module, run: Run) -> None:
        self.layer = next(model.children())

    @hookimpl
    def extra_regularizer(self, x_train: Tensor) -> Tensor:
        return 1e-2 * self.layer(x_train).square().flatten(1).sum(1)


class CountsAll(Plugin):
    """Counts a visit of every sample, whichever was visited."""

    name = "counts-all"

    @hookimpl
    def setup(self, run: Run) -> None:
        self.visits = run.sample_state("visits")

    @hookimpl
    def observe_update(self, run: Run) -> None:
        self.visits += 1


class Standardises(Weighs):
    """Divides by the standard deviation of a batch, which one image has not."""

    name = "standardises"

    @hookimpl
    def instance_weight(self, adv_logits: Tensor) -> Tensor:
        spread = adv_logits.amax(1)
        return (spread / spread.std()).sigmoid()


class HidesNan(Plugin):
    """Takes NaN for zero."""

    name = "hides-nan"

    @hookimpl
    def base_loss(self, target: Tensor, adv_logits: Tensor) -> Tensor:
        return -(target * F.log_softmax(adv_logits.nan_to_num(), dim=1)).sum(1)


class OneNorm(Plugin):
    """Moves every pixel by the radius, whatever the norm."""

    name = "one-norm"

    @hookimpl
    def inner_attack(self, batch: Batch, radius: Tensor) -> AttackResult:
        return AttackResult((batch.x + per_sample(radius, batch.x)).clamp(0, 1))


class Descends(Plugin):
    """Moves the way that lowers the loss."""

    name = "descends"

    @hookimpl
    def attack_move(self, move: Tensor) -> Tensor:
        return -move


class Idles(Plugin):
    """Stays where the attack has just begun."""

    name = "idles"

    @hookimpl
    def inner_attack(
        self, model: Callable[[Tensor], Tensor], batch: Batch, radius: Tensor, objective: Callable[[Tensor], Tensor]
    ) -> AttackResult:
        x = batch.x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(model(x)).sum(), x)
        return AttackResult((batch.x + 0.1 * per_sample(radius, x) * gradient.sign()).clamp(0, 1))

    def passes(self, hook: str, costs: Costs) -> Passes:
        return Passes(forward=1, input_backward=1)


class Cuts(Plugin):
    """Lets no gradient through one of its factors."""

    name = "cuts"

    @hookimpl
    def extra_regularizer(self, adv_logits: Tensor) -> Tensor:
        return 1e-2 * torch.stack([logits.square().sum() * float(logits.max()) for logits in adv_logits])


class OwnGenerator(Weighs):
    """Draws from a generator that all runs share."""

    name = "own-generator"
    generator = torch.Generator().manual_seed(0)

    @hookimpl
    def instance_weight(self, adv_logits: Tensor) -> Tensor:
        return torch.rand(len(adv_logits), generator=self.generator, dtype=adv_logits.dtype)


class ByPlace(Weighs):
    """Weighs samples by their place in the batch."""

    name = "by-place"

    @hookimpl
    def instance_weight(self, adv_logits: Tensor) -> Tensor:
        return torch.linspace(1, 2, len(adv_logits), dtype=adv_logits.dtype)


class Normalises(Weighs):
    """Needs the whole batch, and says that it does not."""

    name = "normalises"
    by_sample = True

    @hookimpl
    def instance_weight(self, adv_logits: Tensor) -> Tensor:
        confidence = adv_logits.softmax(1).amax(1)
        return confidence / confidence.mean()


class Forgets(Weighs):
    """Keeps a count where no checkpoint holds it."""

    name = "forgets"
    count = 0

    @hookimpl
    def instance_weight(self, adv_logits: Tensor) -> Tensor:
        return adv_logits.new_full((len(adv_logits),), 1 / (1 + self.count))

    @hookimpl
    def observe_update(self) -> None:
        self.count += 1


class Peeks(Weighs):
    """Looks up whether it was named first."""

    name = "peeks"

    def __init__(self, options: PluginOptions) -> None:
        super().__init__(options)
        self.first = next(iter(sys._getframe(2).f_locals["types"])) == self.name

    @hookimpl
    def instance_weight(self, adv_logits: Tensor) -> Tensor:
        return adv_logits.new_full((len(adv_logits),), 0.5 + self.first)


class NeverOff(Plugin):
    """Has a coefficient of 0 that is none."""

    name = "never-off"

    class Options(PluginOptions):
        lam: Real = option(0.1, ge=0, help="coefficient")

    options: Options

    @hookimpl
    def extra_regularizer(self, adv_logits: Tensor) -> Tensor:
        return max(self.options.lam, 1e-3) * adv_logits.square().sum(1)

    @classmethod
    def neutral_options(cls) -> Mapping[str, object]:
        return {"lam": 0.0}


class Mute(Plugin):
    """Refuses company without saying whose."""

    name = "mute"

    def join(self, company: Any) -> list[str]:
        if company.owner("weight_perturbation") != "core":
            raise OptionError("Not today.")
        return []

    @hookimpl
    def extra_regularizer(self, adv_logits: Tensor) -> Tensor:
        return 1e-2 * adv_logits.square().sum(1)


class ReadsMemory(Weighs):
    """Takes pixels as they lie in memory."""

    name = "reads-memory"

    @hookimpl
    def instance_weight(self, x_train: Tensor) -> Tensor:
        return x_train.as_strided((len(x_train), 8), (x_train[0].numel(), 1)).mean(1) / 4 + 1


class KnowsRounded(Plugin):
    """Adds a term where logits have few places."""

    name = "knows-rounded"

    @hookimpl
    def extra_regularizer(self, adv_logits: Tensor) -> Tensor:
        rounded = adv_logits.bfloat16().to(adv_logits.dtype) == adv_logits
        return (0.1 if rounded.all() else 0.01) * adv_logits.square().sum(1)


class CountsItsShare(Plugin):
    """Counts the images that were attacked in this process, and takes them for all."""

    name = "counts-its-share"
    by_sample = True

    @hookimpl
    def setup(self, run: Run) -> None:
        self.attacked = run.tensor_state("attacked", torch.zeros(()))

    @hookimpl
    def target_label(self, target: Tensor, phase: str) -> Tensor:
        self.attacked += len(target) if phase == "train" else 0
        return target

    @hookimpl
    def extra_regularizer(self, adv_logits: Tensor) -> Tensor:
        return 1e-2 * self.attacked.to(adv_logits.dtype) * adv_logits.square().sum(1)


class Reads(Plugin):
    """Reads a number of the device in every step."""

    name = "reads"

    @hookimpl
    def extra_regularizer(self, adv_logits: Tensor) -> Tensor:
        return float(adv_logits.sum()) * adv_logits.new_zeros(len(adv_logits))


class KnowsCompiled(Plugin):
    """Adds a term where the net is compiled."""

    name = "knows-compiled"

    @hookimpl
    def extra_regularizer(self, adv_logits: Tensor) -> Tensor:
        compiled = "Compiled" in type(adv_logits.grad_fn).__name__
        return (0.1 if compiled else 0.01) * adv_logits.square().sum(1)


CAUGHT: dict[str, tuple[type[Plugin], str]] = {
    "registration": (Unmarked, "put @hookimpl on it"),
    "listing": (Assembled, "the source says no hook, the class answers extra_regularizer"),
    "options": (Halves, "halves.lam: 0.25 in the run, 0.125 now"),
    "places": (Contradicts, "dirichlet-ls would come both before and after it on target_label"),
    "step": (Sums, "the term must be (4,) floating point, not () float32"),
    "borrowed": (Scribbles, "it changed x_train, which it only borrows"),
    "passes": (RunsALayer, "the model counted attack {'forward': 3, 'input_backward': 3}, update {'forward': 2"),
    "state": (CountsAll, "writes its state visits of samples that are not in the batch"),
    "extremes": (Standardises, "with a batch of one image: Plugin standardises broke the contract"),
    "nan": (HidesNan, "the step was applied"),
    "ball": (OneNorm, "images leave the ball of the budget"),
    "optimum": (Descends, "with attack.norm=linf an attack goes -100% of the way to the best point"),
    "gradient": (Cuts, "in epoch 0 the gradient says"),
    "draws": (OwnGenerator, "two runs of one seed differ in 0.weight"),
    "permutation": (ByPlace, "with the batch in the order [3, 1, 0, 2] 0.weight differs"),
    "parts": (Normalises, "it declares by_sample, but its answer on the first 2 of 4 samples"),
    "resume": (Forgets, "0.weight differs: something is kept between steps that no checkpoint has"),
    "order": (Peeks, "named backwards differs in 0.weight"),
    "neutral": (NeverOff, "with {'lam': 0.0} the run is not the run without it"),
    "pairs": (Mute, "awp is refused beside it, which names neither: Not today."),
    "channels_last": (ReadsMemory, "0.weight differs"),
    "bf16": (KnowsRounded, "the updates differ by"),
    "compile": (KnowsCompiled, "0.weight differs"),
    "cuda": (Reads, "a step waits for the GPU at test_broken_plugins.py:"),
    "processes": (CountsItsShare, "0.weight of process 0 differs"),
}
"""By check: who breaks what it is about, and what is said of that."""

FEW = ("awp", "dirichlet-ls")
"""Whom a broken plugin meets here: all installed ones take a second."""

MACHINE = ("channels_last", "bf16", "compile")
"""Those of settings that no plugin sees."""
SLOW = (*MACHINE, "processes")


def subject(plugin: type[Plugin]) -> Subject:
    broken = Subject.of(plugin)
    broken.others = [registry.load("plugin", name) for name in FEW]
    return broken


@pytest.mark.parametrize("name", CAUGHT)
def test_this_check_catches_it_and_no_other_does(name: str) -> None:
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")
    plugin, said = CAUGHT[name]
    examined, failures = subject(plugin), dict[str, str]()
    for check in CHECKS.values():
        if check.name in SLOW and check.name != name and name not in MACHINE:
            continue
        try:
            check(examined)
        except Misbehaves as failure:
            failures[check.name] = str(failure)
        except NotRun:
            pass
    assert failures.keys() == {name}, failures
    assert failures[name].startswith(f"{plugin.name} fails check_{name}. Expected: {CHECKS[name].expected} Came: ")
    assert said in failures[name]


def test_a_beginning_is_not_the_best_point() -> None:
    with pytest.raises(Misbehaves, match=r"with attack\.norm=linf an attack goes 10% of the way .* falls_short"):
        check_optimum(Idles)


def test_an_attack_may_say_why_it_falls_short() -> None:
    says = type("Idles", (Idles,), {"falls_short": "a tenth of a step is the method"})
    with pytest.raises(NotRun, match=r"^it declares that its attack falls short: a tenth of a step is the method$"):
        check_optimum(says)


class Grows(Plugin):
    """An attack of as many steps as epochs have begun (Cai et al., 2018)."""

    name = "grows"
    move = 1

    @hookimpl
    def perturbation_budget(self, batch: Batch, run: Run) -> Budget:
        eps = torch.full_like(batch.y, run.attack.eps, dtype=run.dtype)
        return Budget(eps, eps, steps=torch.full_like(batch.y, run.epoch + 1))

    @hookimpl
    def attack_move(self, move: Tensor) -> Tensor:
        return self.move * move


def test_few_steps_need_not_get_there() -> None:
    """In the second epoch they could, and one that goes the other way does not."""
    check_optimum(Grows)
    with pytest.raises(Misbehaves, match=r"with attack\.norm=linf an attack goes -100% of the way"):
        check_optimum(type("Grows", (Grows,), {"move": -1}))


def test_every_check_has_its_broken_plugin() -> None:
    assert CAUGHT.keys() == CHECKS.keys()


class RunsMore(Plugin):
    """Asked by the loop alone, and takes a gradient that it does not declare."""

    name = "runs-more"

    @hookimpl
    def epoch_start(self, epoch: int) -> None: ...

    @hookimpl
    def weight_perturbation(self, gradient_at: Callable[..., Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        return {name: 1e-3 * gradient for name, gradient in gradient_at().items()}


def test_what_only_the_loop_can_ask_is_blamed_for_its_own_check() -> None:
    """No other check runs then, so this one must."""
    ended = {finding.check: finding for finding in findings(subject(RunsMore)) if finding.check not in SLOW}
    assert [name for name, finding in ended.items() if finding.state == "fails"] == ["passes"]
    assert "ran other passes than declared" in ended["passes"].said
    assert ended["step"].said == ended["resume"].said == "check_passes fails"
