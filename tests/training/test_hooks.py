"""Every hook by its name: it is asked where its page says, and its answer is what the run then uses."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import advkit
from advkit import (
    AttackResult,
    Budget,
    BudgetScale,
    Dataset,
    HookContract,
    Mix,
    Plugin,
    PluginOptions,
    Report,
    Splits,
    Step,
    hookimpl,
)
from advkit.compose.registration import HOOKS
from advkit.hookspec import Rule

Net = Callable[..., nn.Sequential]
BatchOf = Callable[..., tuple[Tensor, Tensor, Tensor]]
EPS = 0.1


def answering(**answers: Callable[..., Any]) -> Plugin:
    """A plugin whose hooks are functions of what they list, without `self`."""

    def method(function: Callable[..., Any]) -> Callable[..., Any]:
        names = ", ".join(inspect.signature(function).parameters)
        scope: dict[str, Any] = {"function": function}
        exec(f"def method(self{', ' + names if names else ''}): return function({names})", scope)
        return hookimpl(scope["method"])

    hooks = {name: method(function) for name, function in answers.items()}
    return type("Answering", (Plugin,), {"name": "answering", **hooks})(PluginOptions())


@pytest.fixture
def stepped(tiny_net: Net, tiny_batch: BatchOf) -> Callable[..., tuple[Report, nn.Module]]:
    """One step of four images with some answers, and the net after it."""

    def stepped(
        *, with_plugins: tuple[Any, ...] = (), epochs: int = 1, lr: float = 0.1, **answers: Any
    ) -> tuple[Report, nn.Module]:
        net = tiny_net()
        plugins = [*with_plugins, *([answering(**answers)] if answers else [])]
        step = Step(
            net,
            torch.optim.SGD(net.parameters(), lr),
            plugins,
            num_samples=4,
            eps=EPS,
            settings={"attack.steps": 3},
        )
        return [step(*tiny_batch(), epoch=epoch) for epoch in range(epochs)][-1], net

    return stepped


@pytest.fixture
def trained(tiny_net: Net) -> Callable[..., advkit.TrainResult]:
    """Two epochs of two steps on eight of ten images, with some answers."""
    drawn = torch.randint(0, 256, (10, 2, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    toy = Dataset("toy", drawn, torch.arange(10) % 3, ("a", "b", "c"))

    def trained(**answers: Any) -> advkit.TrainResult:
        settings = {"attack.steps": 1, "validation.steps": 1, "validation.fraction": 0.2}
        plugins = [answering(**answers)] if answers else []
        return advkit.train(
            tiny_net(), Splits(toy, toy, "none"), plugins, epochs=2, batch_size=4, eps=EPS, settings=settings
        )

    return trained


def test_every_hook_has_a_test_of_its_name() -> None:
    written = {name.removeprefix("test_hook_") for name in globals() if name.startswith("test_hook_")}
    missing = HOOKS.keys() - written
    assert not missing, f"write test_hook_{min(missing)} in tests/training/test_hooks.py"
    assert written == HOOKS.keys(), f"there is no hook {min(written - HOOKS.keys())}"


def moved(report: Report, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """How far each image was moved, (B,) in linf."""
    return (report.x_train - batch[0]).flatten(1).abs().amax(1)


# ---------------------------------------------------------------------- data


def test_hook_train_dataset(trained: Any) -> None:
    """Samples that are added at the end are trained on."""
    seen: set[int] = set()

    def train_dataset(dataset: Dataset) -> Dataset:
        more = torch.cat([dataset.images, dataset.images[:2]])
        return Dataset("more", more, torch.cat([dataset.labels, dataset.labels[:2]]), dataset.classes)

    result = trained(train_dataset=train_dataset, observe_update=lambda batch: seen.update(batch.index.tolist()))
    assert {10, 11} <= seen and len(seen) == 10 and result.history


def test_hook_train_sampler(trained: Any) -> None:
    """The batches are the answer's, in its order, an epoch at a time."""
    asked, seen = [], []

    def train_sampler(indices: Tensor, batch_size: int, epoch: int) -> list[Tensor]:
        asked.append((indices.tolist(), batch_size, epoch))
        return list(indices.flip(0)[:6].split(3))

    trained(train_sampler=train_sampler, observe_update=lambda batch: seen.append(batch.index.tolist()))
    (indices, size, _), _ = asked
    assert size == 4 and [epoch for *_, epoch in asked] == [0, 1]
    assert seen == [indices[::-1][:3], indices[::-1][3:6]] * 2


def test_hook_train_transform(trained: Any) -> None:
    """Every training image goes through it, with draws addressed by sample."""
    seen: list[Tensor] = []

    def train_transform(x: Tensor, draws: Any) -> Tensor:
        return (x * 0 + draws.uniform(dtype=x.dtype).view(-1, 1, 1, 1)).clamp(0, 1)

    trained(train_transform=train_transform, observe_update=lambda batch: seen.append(batch.x))
    assert len(seen) == 4
    for x in seen:
        assert torch.equal(x, x[:, :1, :1, :1].expand_as(x)) and len(x[:, 0, 0, 0].unique()) == 4


def test_hook_mix_batch(stepped: Any, tiny_batch: BatchOf) -> None:
    """The mixed images are what is attacked; labels and index stay."""
    x, y, index = tiny_batch()

    def mix_batch(batch: Any) -> Any:
        partner = torch.arange(4).roll(1)
        mixed = (batch.x + batch.x[partner]) / 2
        return advkit.Batch(mixed, batch.y, batch.index, batch.occurrence, Mix(partner, torch.full((4,), 0.5)))

    kept: list[Any] = []
    report, _ = stepped(mix_batch=mix_batch, observe_update=lambda batch: kept.append(batch))
    middle = (x + x[torch.arange(4).roll(1)]) / 2
    assert moved(report, (middle, y, index)).max() <= EPS + 1e-6 < moved(report, (x, y, index)).max()
    assert kept[0].mix is not None and torch.equal(kept[0].y, y) and torch.equal(kept[0].index, index)


# ---------------------------------------------------------------------- attack


def test_hook_perturbation_budget(stepped: Any, tiny_batch: BatchOf) -> None:
    """Each image stays in its own ball."""
    radius = torch.tensor([0.0, 0.01, 0.05, 0.1])
    report, _ = stepped(perturbation_budget=lambda: Budget(radius, radius))
    reached = moved(report, tiny_batch())
    assert (reached <= radius + 1e-6).all() and reached[0] == 0 and (reached[1:] > 0).all()


def test_hook_budget_scale(stepped: Any, tiny_batch: BatchOf) -> None:
    """Radius and step size are multiplied, each by its own factor."""
    whole, _ = stepped()
    half, _ = stepped(budget_scale=lambda: BudgetScale(radius=0.5))
    slow, _ = stepped(budget_scale=lambda: BudgetScale(step_size=0.1))
    batch = tiny_batch()
    assert moved(half, batch).max() <= EPS / 2 + 1e-6 < moved(whole, batch).max()
    assert moved(slow, batch).max() <= 3 * 0.1 * EPS / 4 + 1e-6


def test_hook_target_label(stepped: Any, tiny_batch: BatchOf) -> None:
    """Asked once a phase; the loss is that of its answer."""
    phases: list[str] = []

    def target_label(target: Tensor, phase: str) -> Tensor:
        phases.append(phase)
        return torch.full_like(target, 1 / 3)

    report, _ = stepped(target_label=target_label, lr=0.0)
    _, net = stepped(lr=0.0)
    expected = -net(report.x_train).log_softmax(1).mean()
    assert phases == ["attack", "train"]
    torch.testing.assert_close(report.loss, expected.detach())


def test_hook_attack_objective(stepped: Any) -> None:
    """What the attack increases: here the first logit, up or down."""
    _, net = stepped(lr=0.0)

    def reached(objective: Callable[[Tensor], Tensor]) -> Tensor:
        report, _ = stepped(attack_objective=lambda: objective, lr=0.0)
        return net(report.x_train)[:, 0]

    assert (reached(lambda logits: logits[:, 0]) > reached(lambda logits: -logits[:, 0])).all()


def test_hook_inner_attack(stepped: Any, tiny_batch: BatchOf) -> None:
    """Its images are the adversarial ones."""
    x, *_ = tiny_batch()

    def inner_attack(batch: Any, radius: Tensor) -> AttackResult:
        return AttackResult((batch.x + radius.view(-1, 1, 1, 1)).clamp(0, 1))

    report, _ = stepped(inner_attack=inner_attack)
    torch.testing.assert_close(report.x_train, (x + EPS).clamp(0, 1))


def test_hook_attack_start(stepped: Any, tiny_batch: BatchOf) -> None:
    """The attack begins at its images, which stay as they are."""
    begin = (tiny_batch()[0] + EPS / 2).clamp(0, 1)
    before = begin.clone()
    report, _ = stepped(attack_start=lambda: begin, attack_step=lambda batch: torch.zeros_like(batch.y).bool())
    assert torch.equal(report.x_train, before)
    stepped(attack_start=lambda: begin)
    assert torch.equal(begin, before)


def test_hook_attack_move(stepped: Any, tiny_batch: BatchOf) -> None:
    """Its move is made in place of the step, and projected; who is stopped makes none."""
    x, *_ = tiny_batch()
    going = torch.tensor([True, True, False, True])
    report, _ = stepped(attack_move=lambda move: torch.ones_like(move), attack_step=lambda: going)
    torch.testing.assert_close(report.x_train[going], (x + EPS).clamp(0, 1)[going])
    assert torch.equal(report.x_train[2], x[2])
    same, _ = stepped(attack_move=lambda move: move)
    plain, _ = stepped()
    assert torch.equal(same.x_train, plain.x_train)


def test_hook_attack_step(stepped: Any, tiny_batch: BatchOf) -> None:
    """Asked before each move; who is stopped stays where it is."""
    asked: list[int] = []

    def attack_step(x_adv: Tensor, step: int) -> Tensor:
        asked.append(step)
        return torch.tensor([True, True, False, step < 1])

    report, _ = stepped(attack_step=attack_step)
    reached = moved(report, tiny_batch())
    assert asked == [0, 1, 2] and reached[2] == 0
    torch.testing.assert_close(reached[3], torch.tensor(EPS / 4))
    assert (reached[:2] > EPS / 2).all()


def test_hook_commit_attack(stepped: Any, tiny_batch: BatchOf) -> None:
    """Its images are trained on, and its budget is what labels depend on afterwards."""
    labels: list[Tensor] = []
    x, *_ = tiny_batch()
    row = torch.full((4,), EPS)

    def target_label(target: Tensor, budget: Budget) -> Tensor:
        labels.append(budget.label)
        return target

    report, _ = stepped(
        perturbation_budget=lambda: Budget(row, row),
        commit_attack=lambda batch, budget: (Budget(budget.attack, budget.label / 2), batch.x),
        target_label=target_label,
    )
    assert torch.equal(report.x_train, x)
    assert torch.equal(labels[0], row) and torch.equal(labels[1], row / 2)


# ---------------------------------------------------------------------- update


def test_hook_weight_perturbation(stepped: Any, tiny_net: Net, tiny_batch: BatchOf) -> None:
    """The loss is taken at theta+v, and the optimizer steps at theta."""
    report, net = stepped(weight_perturbation=lambda params: {"5.bias": torch.tensor([3.0, 0.0, 0.0])}, lr=0.0)
    plain = tiny_net()
    assert torch.equal(net[5].bias, plain[5].bias)
    expected = F.cross_entropy(plain(report.x_train) + torch.tensor([3.0, 0.0, 0.0]), tiny_batch()[1])
    torch.testing.assert_close(report.loss, expected.detach())


def test_hook_base_loss(stepped: Any) -> None:
    """It is minimised in the mean."""
    report, net = stepped(base_loss=lambda adv_logits: adv_logits[:, 0], lr=0.0)
    torch.testing.assert_close(report.loss, net(report.x_train)[:, 0].mean().detach())
    assert report.raw.keys() == {"base_loss"}


def test_hook_extra_regularizer(stepped: Any) -> None:
    """Added to the base loss in the mean, under its plugin's name."""
    plain, net = stepped(lr=0.0)
    report, _ = stepped(extra_regularizer=lambda adv_logits: 0.5 * adv_logits.square().sum(1), lr=0.0)
    term = 0.5 * net(report.x_train).square().sum(1).mean().detach()
    torch.testing.assert_close(report.raw["answering"] / report.count, term)
    torch.testing.assert_close(report.loss, plain.loss + term)


def test_hook_instance_weight(stepped: Any, tiny_batch: BatchOf) -> None:
    """Weights of the terms that `terms` names, and of no other; they are not renormalised."""
    asked: list[str] = []

    class Weighing(Plugin):
        name = "weighing"
        terms = ("base_loss",)

        @hookimpl
        def instance_weight(self, term, adv_logits):
            asked.append(term)
            assert not adv_logits.requires_grad
            return torch.tensor([2.0, 0.0, 0.0, 0.0])

    report, net = stepped(with_plugins=(Weighing,), extra_regularizer=lambda adv_logits: adv_logits[:, 0], lr=0.0)
    losses = F.cross_entropy(net(report.x_train), tiny_batch()[1], reduction="none").detach()
    assert asked == ["base_loss"]
    torch.testing.assert_close(report.weighted["base_loss"] / report.count, 2 * losses[0] / 4)


def test_hook_observe_update(stepped: Any, tiny_net: Net) -> None:
    """Told what the update computed, without gradient, and before the optimizer's step."""
    told: list[Tensor] = []
    report, net = stepped(observe_update=lambda adv_logits: told.append(adv_logits))
    (logits,) = told
    torch.testing.assert_close(logits, tiny_net()(report.x_train).detach())
    assert not logits.requires_grad and not torch.allclose(logits, net(report.x_train).detach())


def test_hook_after_update(stepped: Any, tiny_net: Net) -> None:
    """Told after the optimizer's step."""
    told: list[Tensor] = []
    _, net = stepped(after_update=lambda model: told.append(model[5].bias.detach().clone()), epochs=2)
    assert len(told) == 2 and torch.equal(told[1], net[5].bias)
    assert not torch.equal(told[0], tiny_net()[5].bias) and not torch.equal(*told)


# ---------------------------------------------------------------------- run


def test_hook_setup(stepped: Any, trained: Any) -> None:
    """Told once, before the first step; what it claims is the run's state."""
    told: list[int] = []

    def setup(model: nn.Module, run: advkit.Run) -> None:
        run.sample_state("seen", fill=0.5)
        told.append(run.num_samples)

    stepped(setup=setup, epochs=2)
    trained(setup=setup)
    assert told == [4, 10]


def test_hook_epoch_start(trained: Any) -> None:
    """Before the first step of each epoch."""
    order: list[Any] = []
    trained(epoch_start=lambda epoch: order.append(epoch), observe_update=lambda batch: order.append("step"))
    assert order == [0, "step", "step", 1, "step", "step"]


def test_hook_epoch_end(trained: Any) -> None:
    """With the epoch's line, to which `run.figure` adds."""
    lines: list[Any] = []

    def epoch_end(epoch: int, metrics: Any, run: advkit.Run) -> None:
        lines.append((epoch, metrics["epoch"], metrics["validation"] is not None))
        run.figure("squared", epoch**2)

    result = trained(epoch_end=epoch_end)
    assert lines == [(0, 0, True), (1, 1, True)]
    assert [row["figures"] for row in result.history] == [{"answering/squared": 0.0}, {"answering/squared": 1.0}]


def test_hook_teardown(trained: Any) -> None:
    """Once, after the run, also when it failed."""
    told: list[str] = []
    trained(teardown=lambda: told.append("ended"))

    def fails(batch: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trained(teardown=lambda: told.append("failed"), observe_update=fails)
    assert told == ["ended", "failed"]


@pytest.mark.parametrize("hook", [name for name, spec in HOOKS.items() if spec.rule is Rule.NOTIFY])
def test_what_a_told_plugin_returns_is_not_dropped(trained: Any, hook: str) -> None:
    with pytest.raises(
        HookContract, match=rf"Plugin answering broke .* {hook}: it returns \(3,\) float32, which nobody"
    ):
        trained(**{hook: lambda: torch.ones(3)})


def test_hook_evaluation_weights(trained: Any, tiny_net: Net) -> None:
    """Validation uses them, and training goes on with the model's own."""
    plain = trained()
    weights = {name: torch.zeros_like(p) for name, p in tiny_net().named_parameters()}

    def right(bias: Tensor) -> float:
        """What a net that answers one class, whatever it sees, gets right."""
        result = trained(evaluation_weights=lambda: weights | {"5.bias": bias})
        assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), result.model.parameters(), strict=True))
        (share,) = {row["validation"]["clean"] for row in result.history}
        return share

    assert sum(map(right, torch.eye(3))) == 1
