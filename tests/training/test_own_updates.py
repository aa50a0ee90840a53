"""`Step.loss`: attack and objective are advkit's, backward and update the loop's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import advkit
from advkit import Batch, Costs, HookConflict, NonFinite, OptionError, Passes, Plugin, Run, Step, hookimpl

SPLITS = advkit.load_data("digits", limit=48)
X, Y = SPLITS.train.images.float() / 255, SPLITS.train.labels
SETTINGS = {"attack.steps": 2, "attack.init": "uniform"}


def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.2), nn.Flatten())
        return nn.Sequential(*layers, nn.Linear(192, 10))


def built(plugins: Any = (), optimizer: Any = True, **settings: Any) -> tuple[nn.Sequential, Any, Step]:
    model = net()
    steps = torch.optim.AdamW(model.parameters(), lr=1e-2)
    given = SETTINGS | {key.replace("__", "."): value for key, value in settings.items()}
    own = steps if optimizer else None
    return model, steps, Step(model, own, plugins, num_samples=len(Y), eps=0.1, settings=given, seed=1)


def state(model: nn.Module, step: Step) -> dict[str, Tensor]:
    return {**model.state_dict(), **step.state_dict()}


@pytest.mark.parametrize("plugins", ["", "cat-eps,dirichlet-ls,lsiw", "trades,awp"])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_loss_is_that_of_the_step_bit_for_bit(plugins: str, scaled: bool) -> None:
    """Also where a scaler multiplies it by a power of 2, and where the Step has no optimizer."""
    whole, lent = built(plugins), built(plugins, optimizer=not scaled)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    for epoch in range(2):
        for index in torch.arange(48).split(16):
            report = whole[2](X[index], Y[index], index, epoch=epoch)
            lent[1].zero_grad()
            loss = lent[2].loss(X[index], Y[index], index, epoch=epoch)
            scaler.scale(loss).backward()
            scaler.step(lent[1])
            scaler.update()
            lent[2].updated()
            assert torch.equal(loss.detach(), report.loss) and lent[2].report.passes == report.passes
    ours, theirs = state(whole[0], whole[2]), state(lent[0], lent[2])
    assert all(torch.equal(ours[name], value) for name, value in theirs.items()) and ours.keys() == theirs.keys()


def test_gradients_add_up_and_those_of_others_stay() -> None:
    model, optimizer, step = built(attack__init="zero")
    foreign = nn.Parameter(torch.ones(2))
    foreign.grad = torch.ones(2)
    optimizer.add_param_group({"params": [foreign]})
    halves = [step.loss(X[i], Y[i], i, epoch=0) for i in torch.arange(32).split(16)]
    assert all(p.grad is None for p in model.parameters()) and torch.equal(foreign.grad, torch.ones(2))
    alone = []
    for loss in halves:
        (loss / 2).backward(retain_graph=True)
        alone.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
    for loss in halves:
        (loss / 2).backward()
    for parameter, *parts in zip(model.parameters(), *alone, strict=True):
        assert torch.equal(parameter.grad, parts[0] + parts[1])


def test_a_second_backward_of_one_loss_is_refused_and_adds_nothing() -> None:
    model, _, step = built()
    loss = step.loss(X[:4], Y[:4], torch.arange(4), epoch=0)
    loss.backward()
    once = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    with pytest.raises(OptionError, match=r"^backward\(\) was called a second time on one loss"):
        loss.backward()
    assert all(map(torch.equal, once, (p.grad for p in model.parameters() if p.grad is not None)))
    step.again().backward(retain_graph=False)
    loss = step.again()
    loss.backward(retain_graph=True)
    loss.backward()  # it was said that the graph is kept, as of any loss of torch


def test_a_closure_evaluates_the_same_images_again() -> None:
    model, _, step = built("cat-eps", optimizer=False)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    index = torch.arange(32)
    first = step.loss(X[index], Y[index], index, epoch=0)
    before = {name: value.clone() for name, value in state(model, step).items()}
    drawn = torch.get_rng_state()
    assert torch.equal(step.again(), first) and torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(before[name], value) for name, value in state(model, step).items())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = step.again()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert float(step.again().detach()) < float(first.detach())
    assert all(torch.equal(before[name], value) for name, value in step.state_dict().items())


class Remembers(Plugin):
    """Pulls logits to their running average and to a net that learns beside; writes the average where it reads it."""

    name = "remembers"

    def passes(self, hook: str, costs: Costs) -> Passes:
        if hook == "extra_regularizer":
            return Passes(auxiliary_forward=1)
        return Passes(auxiliary_forward=1, auxiliary_backward=1) if hook == "observe_update" else Passes()

    @hookimpl
    def setup(self, run: Run) -> None:
        self.average = run.sample_state("average", shape=(10,))
        self.count = run.tensor_state("count", torch.zeros(()))
        self.twin = run.module("net", lambda model: model, optimizer={"lr": 0.1})

    @hookimpl
    def extra_regularizer(self, batch: Batch, adv_logits: Tensor) -> Tensor:
        average = self.average[batch.index]
        self.average[batch.index] = average.lerp(adv_logits.detach(), 0.5)
        self.count.add_(1)
        pulled = adv_logits - average - self.twin(batch.x.flip(3))
        return self.count * pulled.square().sum(1)

    @hookimpl
    def observe_update(self, batch: Batch) -> None:
        self.twin.learn(batch.x, lambda z, y: nn.functional.cross_entropy(z, y, reduction="none"), batch.y)


def test_again_sees_what_the_loss_saw_and_moves_nothing() -> None:
    model, _, step = built([Remembers], optimizer=False)
    index = torch.arange(16)
    for epoch in range(2):
        loss = step.loss(X[index], Y[index], index, epoch=epoch).detach()
        before = {name: value.clone() for name, value in state(model, step).items()}
        assert torch.equal(step.again().detach(), loss) and torch.equal(step.again().detach(), loss)
        assert all(torch.equal(before[name], value) for name, value in state(model, step).items())
    assert before["tensors/remembers/count"] == 2 and before["tensors/remembers/net/updates"] == 2
    with pytest.raises(NonFinite):
        step.loss(X[index] * torch.nan, Y[index], index, epoch=1)
    with pytest.raises(OptionError, match=r"step\.again\(\) is the loss of the last step\.loss"):
        step.again()


def test_a_call_keeps_nothing_of_the_loss_before_it() -> None:
    """Neither its figures, which would live a step longer, nor what `again` would take with another step's draws."""
    _, _, step = built("cat-eps")
    index = torch.arange(16)
    step.loss(X[index], Y[index], index, epoch=0)
    assert step.report is not None
    assert step(X[index], Y[index], index, epoch=1).epoch == 1 and step.report is None
    with pytest.raises(OptionError, match=r"step\.again\(\) is the loss of the last step\.loss"):
        step.again()


class Counts(Plugin):
    """Counts updates."""

    name = "counts"
    told = 0

    @hookimpl
    def after_update(self) -> None:
        type(self).told += 1


def test_who_waits_for_updates_is_told_or_the_loop_is() -> None:
    index = torch.arange(16)
    _, _, step = built([Counts])
    step.loss(X[index], Y[index], index, epoch=0)
    step.updated()
    assert Counts.told == 1
    step.loss(X[index], Y[index], index, epoch=1)
    sentence = r"Plugin counts waits for every update \(after_update\), and epoch 1 ended without step\.updated\(\)"
    with pytest.raises(OptionError, match=sentence):
        step.loss(X[index], Y[index], index, epoch=2)
    step.loss(X[index], Y[index], index, epoch=2)
    with pytest.raises(OptionError, match="epoch 2 ended without"):
        step.close()


def test_what_a_loss_can_not_be_is_refused() -> None:
    index = torch.arange(16)
    with pytest.raises(OptionError, match=r"This Step has no optimizer; pass one, or take step\.loss"):
        built(optimizer=False)[2](X[index], Y[index], index, epoch=0)
    with pytest.raises(OptionError, match=r"step\.again\(\) is the loss of the last step\.loss"):
        built()[2].again()
    model = net()
    step = Step(
        *(model, None, "awp"), num_samples=48, options={"awp": {"step_at": "theta+v"}}, settings=SETTINGS, eps=0.1
    )
    with pytest.raises(HookConflict, match=r"Plugin awp lets the optimizer step at theta\+v, and step\.loss leaves"):
        step.loss(X[index], Y[index], index, epoch=0)
    broken = built()
    with torch.no_grad():
        broken[0][5].weight.fill_(torch.nan)
    with pytest.raises(advkit.NonFinite):
        broken[2].loss(X[index], Y[index], index, epoch=0)
    assert all(p.grad is None for p in broken[0].parameters())


def test_cautions_point_at_the_loop() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(1))
    for method in ("loss", "__call__"):
        step = Step(model, torch.optim.SGD(model.parameters(), lr=0.1), num_samples=48, settings=SETTINGS, eps=0.1)
        with pytest.warns(UserWarning, match="probabilities|softmax") as told:
            getattr(step, method)(X[:16], Y[:16], torch.arange(16), epoch=0)
        assert {warning.filename for warning in told} == {__file__}


def test_a_hook_of_the_optimizer_stands_between_backward_and_step() -> None:
    model, optimizer, step = built("lsiw")
    norms: list[Tensor] = []
    optimizer.register_step_pre_hook(lambda *_: norms.append(nn.utils.clip_grad_norm_(model.parameters(), 1e-3)))
    for index in torch.arange(32).split(16):
        step(X[index], Y[index], index, epoch=0)
        assert float(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])) < 1.01e-3
    assert len(norms) == 2 and min(norms) > 1e-2


@pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_on_gradients_are_refused_where_they_would_run_twice(kind: str) -> None:
    model, _, step = built()
    handle = getattr(model[0].weight, kind)(lambda given: None)
    with pytest.raises(OptionError, match=rf"0\.weight of the model has a gradient hook \({kind}\)"):
        step.loss(X[:8], Y[:8], torch.arange(8), epoch=0)
    handle.remove()
    step.loss(X[:8], Y[:8], torch.arange(8), epoch=0)


@pytest.mark.parametrize("plugins", ["", "awp"])
def test_a_gradient_hook_runs_once_in_a_whole_step(plugins: str) -> None:
    """Also where weights are perturbed, whose gradient is probed without it."""
    moves = []
    for hooked in (False, True):
        model = net()
        step = Step(
            model, torch.optim.SGD(model.parameters(), lr=0.1), plugins, num_samples=48, eps=0.1, settings=SETTINGS
        )
        before = model[5].weight.detach().clone()
        if hooked:
            model[5].weight.register_hook(lambda gradient: gradient / 2)
        step(X[:16], Y[:16], torch.arange(16), epoch=0)
        moves.append(model[5].weight.detach() - before)
    assert torch.allclose(moves[1], moves[0] / 2, rtol=1e-4, atol=1e-8) and bool(moves[0].any())


def test_images_that_want_a_gradient_or_are_sparse_are_refused() -> None:
    _, _, step = built()
    index = torch.arange(8)
    with pytest.raises(OptionError, match=r"x requires a gradient, and step\.loss\(\.\.\.\) gives none"):
        step.loss(X[:8].clone().requires_grad_(), Y[:8], index, epoch=0)
    with pytest.raises(OptionError, match=r"x is a sparse tensor; pass a dense one"):
        step.loss(X[:8].to_sparse(), Y[:8], index, epoch=0)
