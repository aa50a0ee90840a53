"""A plugin that declares `by_sample` and looks at the whole batch is named at the first step, whoever asks in parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from methods import pictures, tiny_net
from torch import Tensor

from advkit import Batch, Budget, BudgetScale, HookContract, Plugin, Run, Step, hookimpl

ASKED = ("instance_weight", "base_loss", "extra_regularizer", "target_label", "attack_objective", "budget_scale")


class BySample(Plugin):
    terms = ("base_loss",)
    by_sample = True


def ce(logits: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(logits, batch.y, reduction="none")


class Share(BySample):
    """A weight relative to the batch."""

    name = "share"

    @hookimpl
    def instance_weight(self, adv_logits: Tensor, batch: Batch) -> Tensor:
        losses = ce(adv_logits, batch)
        return (losses / losses.mean()).detach()


class Centred(BySample):
    """A loss less its mean."""

    name = "centred"

    @hookimpl
    def base_loss(self, adv_logits: Tensor, batch: Batch) -> Tensor:
        return ce(adv_logits, batch) - ce(adv_logits, batch).mean() / 2


class Apart(BySample):
    """A term that knows no batch, but its mean."""

    name = "apart"

    @hookimpl
    def extra_regularizer(self, adv_logits: Tensor) -> Tensor:
        return (adv_logits - adv_logits.mean(0)).square().sum(1)


class Prior(BySample):
    """Labels smoothed by the batch's frequencies."""

    name = "prior"

    @hookimpl
    def target_label(self, target: Tensor) -> Tensor:
        return 0.9 * target + 0.1 * target.mean(0)


class Goal(BySample):
    """An objective less its mean."""

    name = "goal"

    @hookimpl
    def attack_objective(self, batch: Batch) -> Callable[[Tensor], Tensor]:
        return lambda logits: ce(logits, batch) - logits.mean()


class Bright(BySample):
    """One factor, by how bright the batch is."""

    name = "bright"

    @hookimpl
    def budget_scale(self, batch: Batch) -> BudgetScale:
        return BudgetScale(radius=float(batch.x.mean()))


class Shrinking(BySample):
    """Honest, with state of the samples and of its own."""

    name = "shrinking"
    asked = 0

    @hookimpl
    def setup(self, run: Run) -> None:
        self.eps = run.sample_state("eps", fill=0.1)
        self.counts = run.tensor_state("counts", torch.zeros(()))

    @hookimpl
    def perturbation_budget(self, batch: Batch) -> Budget:
        self.eps[batch.index] *= 0.9
        self.counts += 1
        self.asked += 1
        return Budget(attack=self.eps[batch.index], label=self.eps[batch.index])


class Kept(BySample):
    """Honest: what it keeps of the batch from one hook to the next is of the same part."""

    name = "kept"

    @hookimpl
    def perturbation_budget(self, batch: Batch) -> Budget:
        self.size = torch.full((len(batch.y),), 0.1, dtype=batch.x.dtype)
        return Budget(attack=self.size, label=self.size)

    @hookimpl
    def budget_scale(self, batch: Batch) -> BudgetScale:
        return BudgetScale(radius=self.size * 10 * batch.x.new_ones(len(batch.y)))


def step_of(plugin: type[Plugin] | Plugin, accumulate: int = 1) -> Step:
    net = tiny_net(batch_norm=False, dropout=0.0, dtype=torch.float64)
    settings: dict[str, Any] = {"attack.steps": 1, "run.accumulate": accumulate}
    return Step(net, torch.optim.SGD(net.parameters(), 0.1), [plugin], num_samples=9, eps=0.1, settings=settings)


def take(step: Step) -> None:
    rows = torch.arange(9)
    step(pictures(9).images.double() / 255, torch.tensor([0, 0, 0, 1, 2, 1, 2, 1, 2]), rows, epoch=0)


@pytest.mark.parametrize("plugin", [Share, Centred, Apart, Prior, Goal, Bright], ids=lambda plugin: plugin.name)
def test_who_looks_at_the_whole_batch_is_named(plugin: type[Plugin], monkeypatch: pytest.MonkeyPatch) -> None:
    hook = next(name for name in vars(plugin) if name in ASKED)
    said = f"Plugin {plugin.name} broke the contract of {hook}: it declares by_sample, but its answer on the first "
    for parts, how in ((1, "4 of 9 samples is not that part of its answer on all"), (2, "2 of 5 samples is not")):
        with pytest.raises(HookContract, match=said + how):
            take(step_of(plugin, parts))
    monkeypatch.setattr(plugin, "by_sample", False)
    take(step_of(plugin))  # nothing is wrong with it where nobody relies on parts


def test_what_is_kept_of_a_sample_that_comes_twice_is_no_look_at_the_batch() -> None:
    net = tiny_net(batch_norm=False, dropout=0.0, dtype=torch.float64)
    known: dict[str, Any] = {"num_samples": 9, "num_classes": 3, "image_shape": (2, 4, 4), "eps": 0.1}
    known |= {"options": {"te": {"start": 0.0}}, "settings": {"attack.steps": 1, "run.epochs": 2}}
    step = Step(net, torch.optim.SGD(net.parameters(), 0.1), "te", **known)
    images, rows = pictures(9).images.double() / 255, torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3])
    labels, occurrence = torch.tensor([0, 0, 0, 1, 2, 0, 0, 0, 1]), torch.tensor([0] * 5 + [1] * 4)
    with pytest.warns(UserWarning, match="Samples come more than once in a batch: te/average is then of one of these"):
        step(images, labels, rows, epoch=1, occurrence=occurrence)


@pytest.mark.filterwarnings("ignore:Plugin .* changes self")
@pytest.mark.parametrize("parts", [1, 2])
def test_asking_twice_leaves_no_trace(parts: int) -> None:
    plugin = Shrinking(Shrinking.Options())
    step = step_of(plugin, parts)
    for count in (1, 2):
        take(step)
        assert plugin.eps.tolist() == pytest.approx([0.1 * 0.9**count] * 9)
        assert plugin.counts == plugin.asked == count * parts
    take(step_of(Kept, parts))
