"""NaN stops a step, and the sentence names the hook and the plugin whose answer was the first that had it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from methods import names, needs_the_loop, pictures, refusal, tiny_net
from torch import Tensor, nn

from advkit import Budget, BudgetScale, HookContract, NonFinite, Passes, Plugin, Step, hookimpl
from advkit.errors import AdvkitError

ATTACK, LOSS = "NaN or Inf in an input gradient of the attack", "NaN or Inf in the loss"


class Late(Plugin):
    """Values are what they are until `after` of them have been: the first step of a stage is looked at closer."""

    name = "late"
    terms = ("base_loss",)
    after, given = 1, 0

    def value(self, value: Any) -> Any:
        self.given += 1
        return value * (float("nan") if self.given > self.after else 1)


def late(after: int = 1, **methods: Any) -> type[Plugin]:
    return type("Bad", (Late,), {"after": after} | {name: hookimpl(method) for name, method in methods.items()})


def budget(self, batch):
    eps = self.value(batch.x.new_full((len(batch.y),), 0.1))
    return Budget(attack=eps, label=eps)


def scale(self, batch):
    return BudgetScale(radius=self.value(1.0))


def target(self, target):
    return self.value(target)


def objective(self, batch):
    factor = self.value(1.0)
    return lambda logits: factor * F.cross_entropy(logits, batch.y, reduction="none")


def start(self, batch):
    return self.value(batch.x)


def move(self, move):
    return self.value(move)


def plain(self, batch):
    eps = batch.x.new_full((len(batch.y),), 0.1)
    return Budget(attack=eps, label=eps)


def commit(self, budget, attack):
    return budget, self.value(attack.x_adv)


def weight(self, batch):
    return self.value(batch.x.new_ones(len(batch.y)))


def term(self, adv_logits):
    return self.value(adv_logits.square().sum(1))


def root(self, adv_logits):
    return (adv_logits - adv_logits.detach()).square().sum(1).sqrt()


def base(self, adv_logits, batch):
    return F.cross_entropy(adv_logits, batch.y, reduction="none") + root(self, adv_logits)


def shift(self, params):
    return {name: self.value(0.01 * value) for name, value in params.items()}


def update(self, model):
    with torch.no_grad():
        next(model.parameters())[0] *= self.value(1.0)


def take(plugin: type[Plugin], parts: int = 1) -> None:
    net = tiny_net(batch_norm=False, dropout=0.0, dtype=torch.float64)
    settings: dict[str, Any] = {"attack.steps": 2, "run.accumulate": parts}
    step = Step(net, torch.optim.SGD(net.parameters(), 0.1), [plugin], num_samples=8, eps=0.1, settings=settings)
    for _ in range(3):
        step(pictures(8).images.double() / 255, torch.arange(8) % 3, torch.arange(8), epoch=0)


@pytest.mark.filterwarnings("ignore:Plugin late changes self.given")
@pytest.mark.parametrize(
    ("plugin", "said"),
    [
        (late(perturbation_budget=budget), f"{ATTACK} (perturbation_budget of late)"),
        (late(budget_scale=scale), f"{ATTACK} (budget_scale of late)"),
        (late(after=2, target_label=target), f"{ATTACK} (target_label of late)"),
        (late(attack_objective=objective), f"{ATTACK} (objective of late)"),
        (late(attack_start=start), f"{ATTACK} (attack_start of late)"),
        (late(after=2, attack_move=move), f"{ATTACK} (attack_move of late)"),
        (late(perturbation_budget=plain, commit_attack=commit), f"{LOSS} (term base_loss) (commit_attack of late)"),
        (late(instance_weight=weight), f"{LOSS} (instance_weight of late)"),
        (late(extra_regularizer=term), f"{LOSS} (term late)"),
        (late(after=6, weight_perturbation=shift), f"{LOSS} (term base_loss) (weight_perturbation of late)"),
        (late(extra_regularizer=root), "(gradient of extra_regularizer of late)"),
        (late(base_loss=base), "(gradient of base_loss of late)"),
        (late(after=0, after_update=update), "Plugin late broke the contract of after_update: it leaves NaN or Inf in"),
    ],
)
def test_it_is_named(plugin: type[Plugin], said: str) -> None:
    with pytest.raises(AdvkitError) as refused:
        take(plugin)
    assert isinstance(refused.value, NonFinite | HookContract) and said in str(refused.value)


class Normed(nn.Module):
    """Features of length 1, which are 0/0 of an image that is 0 everywhere, whose input gradient is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Linear(32, 4), nn.Linear(4, 3)
        draws = torch.Generator().manual_seed(0)
        for p in self.parameters():
            p.data = torch.rand(p.shape, generator=draws) / 10
        self.features.bias.data.fill_(-0.5)

    def forward(self, x: Tensor) -> Tensor:
        found = self.features(x.flatten(1)).relu()
        logits: Tensor = self.head(found / found.norm(dim=1, keepdim=True))
        return logits


def blames(plugin: str | type[Plugin], careful: bool, **settings: Any) -> str:
    """What is said of `Normed` where the last image of a batch is 0, in the first step or, not `careful`, a later."""
    net, settings = Normed(), {"attack.steps": 1, "run.epochs": 2, "run.check_hooks": careful, **settings}
    made = {"num_samples": 8, "eps": 0.01, "num_classes": 3, "image_shape": (2, 4, 4), "settings": settings}
    step = Step(net, torch.optim.SGD(net.parameters(), 0.01), [plugin], **made)
    x, rows = 1 - torch.arange(8 * 32).reshape(8, 2, 4, 4) / 512, torch.arange(8)
    if not careful:
        step(x, rows % 3, rows, epoch=0)
    with pytest.raises(NonFinite) as failed:
        step(torch.cat([x[:-1], x[-1:] * 0]), rows % 3, rows, epoch=0)
    assert all(torch.isfinite(p).all() for p in net.parameters())
    return str(failed.value)


alone = [name for name in names() if not needs_the_loop([name]) and not refusal((name,))]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", alone)
def test_no_built_in_has_made_what_the_net_has(name: str) -> None:
    said = blames(name, careful=True)
    assert f"of {name}" not in said and "no update was made yet, so look at what the model returns" in said


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["awp", "rwp", "lsiw", "bilateral", "mlcat"])
def test_nor_in_a_step_that_nobody_looks_at(name: str) -> None:
    said = blames(name, careful=False)
    assert said.startswith(LOSS) and " of " not in said.partition(". ")[0]


class Top(nn.Module):
    """Answers with the best two of its three classes: another is masked with -Inf on each image."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(32, 3)
        nn.init.orthogonal_(self.head.weight, generator=torch.Generator().manual_seed(0))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(x.flatten(1))
        return logits.masked_fill(logits == logits.min(1, keepdim=True).values, -torch.inf)


class OwnError(Exception):
    pass


def of_another_shape(self, batch):
    return batch.x.new_ones(3)


def failing(self, batch):
    raise OwnError("a file is gone")


@pytest.mark.parametrize(
    ("net", "weighs", "kind", "said"),
    [
        (Top, of_another_shape, HookContract, "Plugin late broke the contract of instance_weight"),
        (Top, failing, OwnError, "a file is gone"),
        (Normed, of_another_shape, NonFinite, "NaN or Inf in the logits of the model"),
        (Normed, failing, OwnError, "a file is gone"),
    ],
)
def test_what_else_fails_is_what_it_is(net: type[nn.Module], weighs: Any, kind: type[Exception], said: str) -> None:
    """Classes masked on some images are no NaN of the net, and what a user's code raises is his."""
    model, rows = net(), torch.arange(8)
    step = Step(
        model, torch.optim.SGD(model.parameters(), 0.01), [late(instance_weight=weighs)], num_samples=8, eps=0.01
    )
    x = torch.rand(8, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    x[-1] = 0
    y = model(x).detach().nan_to_num(0).argmax(1)
    with pytest.raises(kind, match=said):
        step(x, y, rows, epoch=0)


def by_logits(self, batch, run):
    eps = 0 * run.logits(batch.x).sum(1)
    return Budget(attack=eps, label=eps)


def by_clean(self, target, clean_logits):
    return target + 0 * clean_logits.sum(1, keepdim=True)


def whole(self, batch, clean_logits):
    """As Python has it: ValueError of NaN."""
    return BudgetScale(radius=int(clean_logits.sum()) ** 0)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("hook", "method", "careful"),
    [
        ("perturbation_budget", by_logits, True),
        ("perturbation_budget", by_logits, False),
        ("target_label", by_clean, True),
        ("target_label", by_clean, False),
        ("budget_scale", whole, True),
    ],
)
def test_what_a_plugin_makes_of_it_is_not_its_own(hook: str, method: Any, careful: bool) -> None:
    asked = Passes(forward=1) if method is by_logits else Passes()
    plugin = late(**{hook: method})
    plugin.passes = lambda self, hook, costs: asked  # type: ignore[method-assign]
    assert "late" not in blames(plugin, careful)


def by_probe(self, batch, run):
    """What follows from an objective that breaks the gradient is its plugin's, as where it attacks."""
    moved = run.probe(batch, 0.1, objective=lambda logits: (logits - logits.detach()).sum(1).sqrt()).x_adv
    return BudgetScale(radius=moved.sum() * float("nan"))


def test_what_an_objective_of_its_own_breaks_is() -> None:
    with pytest.raises(HookContract, match="Plugin late broke the contract of budget_scale: radius must be finite"):
        take(late(budget_scale=by_probe))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_net_is_nobodys_plugin(norm: str) -> None:
    """A gradient that the net breaks makes broken images, which a plugin has then looked at."""

    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = tiny_net(batch_norm=False, dropout=0.0, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net(x + 0 * (x.detach() - x).sqrt() if x.requires_grad else x)
            return logits

    net = Breaks()
    settings: dict[str, Any] = {"attack.steps": 2, "attack.norm": norm}
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for plugin in ("cat-eps", late(after=9, attack_move=move), late(after=9, attack_objective=objective)):
        step = Step(net, optimizer, [plugin], num_samples=8, eps=0.1, settings=settings)
        with pytest.raises(NonFinite, match="NaN or Inf in an input gradient of the attack at epoch 0, step 0"):
            step(pictures(8).images.double() / 255, torch.arange(8) % 3, torch.arange(8), epoch=0)


@pytest.mark.parametrize("parts", [2, 3])
def test_it_is_named_in_parts(parts: int) -> None:
    plugin = late(extra_regularizer=root)
    plugin.by_sample = True  # type: ignore[method-assign, assignment]
    with pytest.raises(NonFinite, match=r"\(gradient of extra_regularizer of late\) at epoch 0, step 0\."):
        take(plugin, parts)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_statistics_that_were_none_before_are_no_mask(value: float) -> None:
    """Train mode does not look at BatchNorm's, and they stay what they are; a mask that the net adds is meant so."""
    x, rows = pictures(8).images.double() / 255, torch.arange(8)
    for name in ("mask", "running_mean"):
        net = tiny_net(batch_norm=True, dropout=0.0, dtype=torch.float64)
        net.register_buffer("mask", torch.zeros(2, dtype=torch.float64))
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        step = Step(net, optimizer, (), num_samples=8, eps=0.1, settings={"attack.steps": 0})
        next(buffer for own, buffer in net.named_buffers() if own.endswith(name)).fill_(value)
        if name == "mask":
            assert step(x, rows % 3, rows, epoch=0).count == 8
        else:
            with pytest.raises(NonFinite, match=r"NaN or Inf in .*running_mean after the update of epoch 0, step 0"):
                step(x, rows % 3, rows, epoch=0)
