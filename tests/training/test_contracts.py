"""An answer that breaks a hook's contract is refused, naming the plugin and the hook; nothing is applied."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advkit import AttackResult, Batch, Budget, BudgetScale, Mix, Plugin, Step, hookimpl
from advkit.errors import HookContract

Net = Callable[..., nn.Sequential]
BatchOf = Callable[..., tuple[Tensor, Tensor, Tensor]]

N = 16


def step_of(net: nn.Module, plugins: Iterable[Any], *, lr: float = 0.1, **arguments: Any) -> Step:
    return Step(net, torch.optim.SGD(net.parameters(), lr), plugins, num_samples=N, **arguments)


def answering(hook: str, answer: Callable[..., Any], **attributes: Any) -> type[Plugin]:
    """A plugin called "bad" whose answer to `hook` is `answer`."""
    return type("Bad", (Plugin,), {"name": "bad", hook: hookimpl(answer), **attributes})


ROWS = torch.full((4,), 0.02)


def budget(**changes: Any) -> Callable[[Any], Budget]:
    return lambda self: Budget(**{"attack": ROWS, "label": ROWS, **changes})


def spoilt(value: float, row: int = 2) -> Tensor:
    rows = ROWS.clone()
    rows[row] = value
    return rows


def at(position: Any) -> Callable[..., AttackResult]:
    """An inner attack that ends at `position`(x)."""
    return lambda self, batch: AttackResult(position(batch.x))


@hookimpl
def _owns_the_budget(self, batch):
    return Budget(ROWS, ROWS)


def committing(answer: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, batch, budget: answer(batch, budget)


WRONG = {
    "perturbation_budget": [
        (lambda self: 0.1, "an advkit.Budget is expected, not float"),
        (budget(attack=ROWS[:3]), "attack must be (4,) floating point, not (3,) float32"),
        (budget(label=ROWS[:, None]), "label must be (4,) floating point, not (4, 1) float32"),
        (budget(attack=0.1), "attack must be (4,) floating point, not float"),
        (budget(attack=torch.ones(4, dtype=torch.int64)), "attack must be (4,) floating point, not (4,) int64"),
        (budget(attack=spoilt(-1e-6)), "attack must not be negative (dataset index 7)"),
        (budget(label=spoilt(-1.0, row=0)), "label must not be negative (dataset index 5)"),
        (budget(step_size=spoilt(-1.0)), "step_size must not be negative (dataset index 7)"),
        (budget(attack=spoilt(math.nan)), "attack is not finite (dataset index 7)"),
        (budget(attack=spoilt(math.inf)), "attack is not finite (dataset index 7)"),
        (budget(steps=torch.ones(4)), "steps must be (4,) int64, not (4,) float32"),
        (budget(steps=[1, 1, 1, 1]), "steps must be (4,) int64, not list"),
        (
            budget(steps=torch.tensor([10, 0, 11, 5])),
            "steps must lie in 0..10 (attack.steps), so that the cost is known (dataset index 7)",
        ),
    ],
    "budget_scale": [
        (lambda self: 0.5, "an advkit.BudgetScale is expected, not float"),
        (lambda self: BudgetScale(radius=ROWS[:2]), "radius must be () or (4,), not (2,) float32"),
        (lambda self: BudgetScale(radius="half"), "radius must be () or (4,), not str"),
        (lambda self: BudgetScale(radius=-0.5), "radius must be finite and not negative"),
        (lambda self: BudgetScale(step_size=math.nan), "step_size must be finite and not negative"),
        (lambda self: BudgetScale(radius=spoilt(-1)), "radius must be finite and not negative (dataset index 7)"),
    ],
    "target_label": [
        (lambda self: None, "(4, 3) is expected, not NoneType"),
        (lambda self, target: target[:, :2], "(4, 3) is expected, not (4, 2) float32"),
        (lambda self, target: target.argmax(1), "(4, 3) is expected, not (4,) int64"),
        (lambda self, target: target.clone().requires_grad_(), "the target must be detached"),
        (lambda self, target: 2 * target, "a row does not sum to 1 (dataset index 5)"),
        (lambda self, target: 1.5 * target - 0.5 / 3, "a row has a negative entry (dataset index 5)"),
        (lambda self, target: target * math.nan, "a row is not finite (dataset index 5)"),
    ],
    "attack_objective": [
        (lambda self: torch.ones(4), "a callable is expected, not Tensor"),
        (lambda self: lambda logits: logits.sum(), "it must return (4,), not () float32"),
        (lambda self: lambda logits: logits, "it must return (4,), not (4, 3) float32"),
        (lambda self: lambda logits: None, "it must return (4,), not NoneType"),
        (lambda self: lambda logits: logits.detach().sum(1), "its values must depend on the logits, undetached"),
    ],
    "inner_attack": [
        (lambda self, batch: batch.x, "an advkit.AttackResult is expected, not Tensor"),
        (at(lambda x: x[:2]), "images (4, 2, 4, 4) float32 are expected, not (2, 2, 4, 4) float32"),
        (at(lambda x: x.double()), "images (4, 2, 4, 4) float32 are expected, not (4, 2, 4, 4) float64"),
        (at(lambda x: None), "images (4, 2, 4, 4) float32 are expected, not NoneType"),
        (at(lambda x: x.clone().requires_grad_()), "the images must be detached"),
        (at(lambda x: x * math.nan), "images are not finite (dataset index 5)"),
        (at(lambda x: -x), "images leave [0, 1] (dataset index 5)"),
        (at(lambda x: 1 - x), "images leave the ball of the budget (dataset index 5)"),
    ],
    "attack_step": [
        (lambda self: None, "(4,) bool is expected, not NoneType"),
        (lambda self: torch.ones(3, dtype=torch.bool), "(4,) bool is expected, not (3,) bool"),
        (lambda self: torch.ones(4), "(4,) bool is expected, not (4,) float32"),
    ],
    "commit_attack": [
        (committing(lambda batch, budget: budget), "(Budget, images or None) is expected, not Budget"),
        (committing(lambda batch, budget: (None, None)), "an advkit.Budget is expected, not NoneType"),
        (
            committing(lambda batch, budget: (Budget(ROWS, spoilt(-1.0)), None)),
            "label must not be negative (dataset index 7)",
        ),
        (
            committing(lambda batch, budget: (budget, 1 - batch.x)),
            "images leave the ball of the budget (dataset index 5)",
        ),
        (committing(lambda batch, budget: (budget, batch.x.clone().requires_grad_())), "the images must be detached"),
        (
            committing(lambda batch, budget: (budget, 0.5)),
            "images (4, 2, 4, 4) float32 are expected, not float",
        ),
    ],
    "weight_perturbation": [
        (lambda self: None, "a mapping is expected, not NoneType"),
        (lambda self: {"0.wieght": torch.ones(1)}, "there is no trainable parameter 0.wieght"),
        (lambda self: {"0.bias": torch.ones(3)}, "the shift of 0.bias must be (4,) float32 like it, not (3,) float32"),
        (
            lambda self: {"0.bias": torch.ones(4).double()},
            "the shift of 0.bias must be (4,) float32 like it, not (4,) float64",
        ),
        (lambda self: {"0.bias": 0.1}, "the shift of 0.bias must be (4,) float32 like it, not float"),
        (
            lambda self: {"0.bias": torch.ones(4, requires_grad=True)},
            "the shift of 0.bias requires grad, which would corrupt the gradient; detach it",
        ),
        (lambda self: {"0.bias": torch.full((4,), math.nan)}, "the shift of 0.bias is not finite"),
    ],
    "base_loss": [
        (lambda self, adv_logits: adv_logits.sum(), "the term must be (4,) floating point, not () float32"),
        (lambda self, adv_logits: adv_logits, "the term must be (4,) floating point, not (4, 3) float32"),
        (lambda self, adv_logits: None, "the term must be (4,) floating point, not NoneType"),
    ],
    "extra_regularizer": [
        (lambda self, adv_logits: adv_logits.mean(), "the term must be (4,) floating point, not () float32"),
        (lambda self, adv_logits: adv_logits.argmax(1), "the term must be (4,) floating point, not (4,) int64"),
        (lambda self: 0.0, "the term must be (4,) floating point, not float"),
    ],
    "instance_weight": [
        (lambda self: None, "the weight must be (4,) floating point, not NoneType"),
        (lambda self: torch.ones(4, 1), "the weight must be (4,) floating point, not (4, 1) float32"),
        (lambda self: spoilt(math.nan), "the weight is not finite (dataset index 7)"),
        (lambda self: spoilt(-1.0), "weights must not be negative (dataset index 7)"),
        (lambda self: torch.ones(4, requires_grad=True), "weights must be detached"),
    ],
}
ALSO: dict[str, dict[str, Any]] = {
    "commit_attack": {"perturbation_budget": _owns_the_budget},
    "instance_weight": {"terms": ("base_loss",)},
}


@pytest.mark.parametrize(
    ("hook", "answer", "complaint"), [(hook, *case) for hook, cases in WRONG.items() for case in cases]
)
def test_broken_contracts_name_the_plugin_and_the_hook(
    tiny_net: Net, tiny_batch: BatchOf, hook: str, answer: Callable[..., Any], complaint: str
) -> None:
    net, (x, y, index) = tiny_net(), tiny_batch()
    step = step_of(net, [answering(hook, answer, **ALSO.get(hook, {}))], eps=0.02)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(HookContract) as refused:
        step(x, y, index + 5, epoch=0)
    assert str(refused.value) == f"Plugin bad broke the contract of {hook}: {complaint}. See docs/hooks.md."
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert net.training


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (lambda self, batch: batch.x, "an advkit.Batch is expected, not Tensor"),
        (
            lambda self, batch: Batch(batch.x[:2], batch.y, batch.index, batch.occurrence),
            "images (4, 2, 4, 4) float32 are expected, not (2, 2, 4, 4) float32",
        ),
        (
            lambda self, batch: Batch(batch.x, batch.y.flip(0), batch.index, batch.occurrence),
            "y and index must stay those of the batch",
        ),
    ],
)
def test_mix_batch_may_only_change_the_images(
    tiny_net: Net, tiny_batch: BatchOf, answer: Callable[..., Any], complaint: str
) -> None:
    step = step_of(tiny_net(), [answering("mix_batch", answer)])
    with pytest.raises(HookContract) as refused:
        step(*tiny_batch(), epoch=0)
    assert str(refused.value) == f"Plugin bad broke the contract of mix_batch: {complaint}. See docs/hooks.md."


def test_images_are_checked_against_the_mixed_batch(tiny_net: Net, tiny_batch: BatchOf) -> None:
    class Mixes(Plugin):
        name = "mixes"

        @hookimpl
        def mix_batch(self, batch):
            partner, ratio = torch.arange(4).flip(0), torch.full((4,), 0.5)
            return replace(batch, x=(batch.x + batch.x[partner]) / 2, mix=Mix(partner, ratio))

        @hookimpl
        def inner_attack(self, batch):
            return AttackResult(batch.x.clone())

    x, y, index = tiny_batch()
    report = step_of(tiny_net(), [Mixes], eps=0.02)(x, y, index, epoch=0)
    assert torch.equal(report.x_train, (x + x.flip(0)) / 2)


def test_a_loss_without_a_gradient_is_refused(tiny_net: Net, tiny_batch: BatchOf) -> None:
    step = step_of(tiny_net(), [answering("base_loss", lambda self, adv_logits: adv_logits.detach().sum(1))])
    with pytest.raises(HookContract) as refused:
        step(*tiny_batch(), epoch=0)
    assert str(refused.value) == (
        "The loss (base_loss of bad) has no gradient, so nothing would be learnt; "
        "return terms that depend on the logits, undetached."
    )


def test_values_are_checked_at_the_first_step_of_an_interval_or_always(tiny_net: Net, tiny_batch: BatchOf) -> None:
    def negative_later(self, term, run):
        return torch.full((4,), 1.0 if run.step == 0 else -1.0)

    plugin = answering("instance_weight", negative_later, terms=("base_loss",))
    step = step_of(tiny_net(), [plugin])
    for _ in range(2):
        step(*tiny_batch(), epoch=0)
    strict = step_of(tiny_net(), [plugin], settings={"run.check_hooks": True})
    strict(*tiny_batch(), epoch=0)
    with pytest.raises(HookContract, match="weights must not be negative"):
        strict(*tiny_batch(), epoch=0)


# --- exceptions keep their type and say where -----------------------------------------------------


def raising(hook: str) -> type[Plugin]:
    """Raises in `hook` in epoch 1."""

    def answer(self):
        raise ZeroDivisionError("by the plugin")

    return answering(hook, answer, active=lambda self, hook, epoch: epoch == 1, **ALSO.get(hook, {}))


@pytest.mark.parametrize("hook", [*WRONG, "mix_batch", "after_update"])
def test_an_exception_in_a_hook_says_where(tiny_net: Net, tiny_batch: BatchOf, hook: str) -> None:
    step = step_of(tiny_net(), [raising(hook)], lr=0.0)
    for epoch in (0, 0, 2):
        step(*tiny_batch(), epoch=epoch)
    with pytest.raises(ZeroDivisionError, match="by the plugin") as raised:
        step(*tiny_batch(), epoch=1)
    assert raised.value.__notes__ == [f"in plugin bad, hook {hook}, epoch 1, step 0"]


def test_an_exception_in_setup_says_where(tiny_net: Net) -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        step_of(tiny_net(), [raising("setup")])
    assert raised.value.__notes__ == ["in plugin bad, hook setup, epoch 0, step 0"]


def test_a_failed_step_puts_back_the_batch_in_per_sample_state(tiny_net: Net, tiny_batch: BatchOf) -> None:
    class Counts(Plugin):
        name = "counts"

        @hookimpl
        def setup(self, run):
            self.visits = run.sample_state("visits")

        @hookimpl
        def extra_regularizer(self, batch, adv_logits, run):
            self.visits[batch.index] += 1
            if run.epoch == 1:
                raise ZeroDivisionError
            return 0 * adv_logits.sum(1)

    step, (x, y, index) = step_of(tiny_net(), [Counts]), tiny_batch()
    step(x, y, index, epoch=0)
    with pytest.raises(ZeroDivisionError):
        step(x, y, index + 2, epoch=1)
    assert step.state.samples["counts/visits"].tolist() == [1.0] * 4 + [0.0] * (N - 4)


def test_a_regularizer_without_a_gradient_is_refused_unless_it_is_zero(tiny_net: Net, tiny_batch: BatchOf) -> None:
    detached = answering("extra_regularizer", lambda self, adv_logits: adv_logits.detach().sum(1))
    with pytest.raises(HookContract, match=r"the term has no gradient, so it trains nothing; drop its .detach\(\)"):
        step_of(tiny_net(), [detached])(*tiny_batch(), epoch=0)
    nothing = answering("extra_regularizer", lambda self, adv_logits: adv_logits.detach().sum(1) * 0)
    step_of(tiny_net(), [nothing])(*tiny_batch(), epoch=0)
