"""Nets whose `train` does more than set modes: it is called whenever a mode changes, as a loop by hand calls it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from methods import pictures
from torch import Tensor, nn

import advkit
from advkit import OptionError, Splits
from advkit.errors import Caution
from advkit.modes import begin_training, modes_back
from advkit.modules import mode
from advkit.testing.small import Watch

FEATURES, CLASSES, ROWS = 2 * 4 * 4, 3, 12


def waves(*shape: int) -> Tensor:
    return (torch.arange(math.prod(shape)) * 1.7).sin().view(shape)


class FrozenNorm(nn.Module):
    """Keeps its BatchNorm's statistics, as one fine-tunes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(FEATURES), nn.Linear(FEATURES, CLASSES)

    def train(self, mode: bool = True) -> FrozenNorm:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(x.flatten(1)))
        return logits


class Merging(nn.Module):
    """W + BA, merged into W in eval mode, where A and B get no gradient (LoRA)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(waves(CLASSES, FEATURES), requires_grad=False)
        self.a, self.b = nn.Parameter(waves(2, FEATURES)), nn.Parameter(waves(CLASSES, 2))
        self.merged = False

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        if mode == self.merged:
            self.w.data += (-1 if mode else 1) * self.b.detach() @ self.a.detach()
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.w if self.merged else self.w + self.b @ self.a)


class Caching(nn.Module):
    """Computes its weights once for eval mode, and forgets them in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.kept = nn.Parameter(waves(CLASSES, FEATURES)), None

    def train(self, mode: bool = True) -> Caching:
        super().train(mode)
        self.kept: Tensor | None = None if mode else self.w.detach().tanh()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.w.tanh() if self.kept is None else self.kept)


def by_hand(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """Gradients of PGD-1 as a loop by hand has them."""
    model.eval()
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(point), y, reduction="sum"), point)
    x_adv = torch.clamp(x + 0.1 * gradient.sign(), 0, 1)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    return list(torch.autograd.grad(F.cross_entropy(model(x_adv), y), trained))


@pytest.mark.parametrize("make", [FrozenNorm, Merging, Caching])
@pytest.mark.parametrize("built", [True, False], ids=["as built", "in train mode"])
def test_a_step_is_that_of_a_loop_by_hand(
    make: Callable[[], nn.Module], built: bool, tiny_batch: Callable[..., tuple[Tensor, Tensor, Tensor]]
) -> None:
    x, y, index = tiny_batch(ROWS, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, other = make().double(), make().double()
    other.load_state_dict(model.state_dict())
    if not built:
        model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    settings = {"attack.steps": 1, "attack.step_size": 0.1}
    step = advkit.Step(model, torch.optim.SGD(trained, lr=1.0), num_samples=ROWS, eps=0.1, settings=settings)
    step(x, y, index, epoch=0)
    for was, now, gradient in zip(before, trained, by_hand(other, x, y), strict=True):
        assert float(gradient.norm()) > 1e-3  # a control
        torch.testing.assert_close(was - now.detach(), gradient, rtol=1e-9, atol=1e-12)
    if isinstance(model, FrozenNorm):
        assert not bool(model.norm.running_mean.any())
    assert not getattr(model, "merged", False)


def test_a_run_holds_what_the_net_holds_and_evaluating_changes_nothing() -> None:
    short = {"attack.steps": 1, "validation.fraction": 0, "run.batch_size": 8}
    frozen, merging = FrozenNorm(), Merging()
    b = merging.b.detach().clone()
    for net in (frozen, merging):
        advkit.train(net, Splits(pictures(24), pictures(8), "none"), epochs=1, eps=0.1, settings=short)
    assert not bool(frozen.norm.running_mean.any()) and not merging.merged
    assert float((merging.b.detach() - b).abs().amax()) > 1e-4
    advkit.evaluate(merging, pictures(8), ["clean"], eps=0.1)
    assert merging.training and not merging.merged


@pytest.mark.parametrize("mode_before", [True, False])
def test_modes_are_back_and_so_is_what_comes_with_them(mode_before: bool) -> None:
    model = Merging()
    model.train(mode_before)
    weights = model.w.detach().clone()
    with mode(model, not mode_before):
        assert model.merged == mode_before
    assert (model.training, model.merged) == (mode_before, not mode_before)
    torch.testing.assert_close(model.w.detach(), weights)


def test_what_an_owner_keeps_in_eval_mode_stays_there() -> None:
    model: Any = nn.Sequential(FrozenNorm(), nn.BatchNorm1d(CLASSES))
    model[1].eval()
    begin_training(model)
    assert (model[0].norm.training, model[0].training, model[1].training) == (False, True, False)
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    modes_back(before)
    assert [module.training for module, _ in before] == [was for _, was in before]


def test_a_run_from_python_says_what_is_to_be_known_of_it() -> None:
    """As a `Step` does; whoever passes `progress` is told there instead."""
    x = torch.randint(0, 256, (12, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data, watch = (x, torch.arange(12) % 3), Watch()

    def run(**how: Any) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Softmax(dim=1))
        advkit.train(model, data, epochs=1, eps=0.1, settings={"attack.steps": 4, "validation.steps": 4}, **how)

    with pytest.warns(Caution, match="The model returns probabilities"):
        run()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(progress=watch)
    assert any(sentence.startswith("The model returns probabilities") for sentence in watch.cautions)


def test_what_a_plan_says_of_settings_is_a_warning_too() -> None:
    x = torch.randint(0, 256, (12, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    settings = {"attack.steps": 1, "attack.step_size": "eps/2", "validation.fraction": 0, "run.timeout": 5}

    def run(**how: Any) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        advkit.train(model, (x, torch.arange(12) % 3), epochs=1, eps=0.1, settings=settings, **how)

    with pytest.warns(Caution) as said:
        run()
    cautions = [str(one.message) for one in said]
    assert cautions == advkit.plan(settings=settings, eps=0.1)["cautions"] and len(cautions) == 2
    watch = Watch()
    run(progress=watch)
    assert not watch.cautions  # the command line shows the plan


@pytest.mark.parametrize("plugin", ["awp", "rwp"])
def test_a_net_in_which_nothing_would_be_perturbed_is_refused(plugin: str) -> None:
    """Nets whose norms and biases alone are trained, say."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    model[1].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    batch = torch.rand(4, 1, 2, 2), torch.arange(4) % 3, torch.arange(4)
    with pytest.raises(OptionError, match=rf"^{plugin} perturbs parameters of 2 dimensions or more"):
        advkit.Step(model, optimizer, [plugin], num_samples=4, eps=0.1)(*batch, epoch=0)
    advkit.Step(model, optimizer, [plugin], num_samples=4, eps=0.1, options={plugin: {"min_dim": 1}})(*batch, epoch=0)


def test_a_step_updates_in_train_mode_wherever_its_owner_left_the_net(
    tiny_batch: Callable[..., tuple[Tensor, Tensor, Tensor]],
) -> None:
    """A mode between backward and update would merge the old b @ a into w, and the next take the new one away."""
    x, y, index = tiny_batch(ROWS)
    ends = []
    for training in (True, False):
        model = Merging().train(training)
        step = advkit.Step(model, torch.optim.SGD([model.a, model.b], lr=1.0), num_samples=ROWS, eps=0.1)
        for epoch in range(3):
            step(x, y, index, epoch=epoch)
        assert model.training is training
        ends.append(model.train().state_dict())
        torch.testing.assert_close(model.w.detach(), waves(CLASSES, FEATURES), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)
    assert float((ends[0]["b"] - waves(CLASSES, 2)).abs().max()) > 1e-2, "a control"
    with pytest.raises(OptionError, match=r"call model\.train\(\) before step\.loss"):
        advkit.Step(Merging().eval(), None, num_samples=ROWS, eps=0.1).loss(x, y, index, epoch=0)
