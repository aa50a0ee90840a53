"""What is passed as an object is what is trained; a failed step leaves all as it was, whatever the model has."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from methods import pictures, tiny_net
from torch import Tensor, nn

import advkit
from advkit import NonFinite, OptionError, Plugin, Step, hookimpl
from advkit.judging import refuse_unjudgeable
from advkit.training.sums import finite, told

SETTINGS = {"attack.steps": 1, "validation.steps": 1}
BATCH = torch.rand(4, 2, 4, 4), torch.arange(4) % 3, torch.arange(4)


def net() -> nn.Sequential:
    return tiny_net(batch_norm=True, dropout=0.0, dtype=torch.float32)


def step_of(model: nn.Module, optimizer: torch.optim.Optimizer, *plugins: Any) -> Step:
    return Step(model, optimizer, plugins, num_samples=8, num_classes=3, eps=0.1, settings={"attack.steps": 1})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("data.limit", 5, "data.limit = 5 is of a data set that is named, and images were passed"),
        ("data.size", 16, "data.size = 16 is of a data set that is named"),
        ("data.root", "/nowhere", "data.root = /nowhere is of a data set that is named"),
        ("model.normalise", "none", "model.normalise is of a net that is named, and one was passed"),
        ("model.nonsense", 3, "model.nonsense is of a net that is named"),
    ],
)
def test_settings_of_names_are_refused_beside_objects(key: str, value: object, said: str) -> None:
    """They would be written down as done."""
    for call in (advkit.train, advkit.plan):
        with pytest.raises(OptionError, match=re.escape(said)):
            call(model=net(), dataset=pictures(24), plugins=(), settings={**SETTINGS, key: value}, epochs=1)
    result = advkit.train(net(), pictures(24), (), settings={**SETTINGS, "data.transform": "none"}, epochs=1)
    assert result.history[0]["samples"] > 0


def with_nan() -> nn.Module:
    model = net()
    next(model.parameters()).data.fill_(torch.nan)
    return model


class Cut(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


UNFIT: dict[str, tuple[Any, Any, str]] = {
    "a width": (net, lambda: four(), "returns 3 logits for each image, but the data has 4 classes"),
    "a width of a name": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)),
        lambda: "digits",
        "data has 10 classes",
    ),
    "a shape": (lambda: nn.Linear(3, 3), lambda: pictures(24), "can not be called on images"),
    "nothing to learn": (lambda: net().requires_grad_(False), lambda: pictures(24), "has no trainable parameter"),
    "no parameter": (nn.Flatten, lambda: pictures(24), "has no trainable parameter"),
    "half": (lambda: net().half(), lambda: pictures(24), "Weights in half precision are not supported"),
    "no gradient": (lambda: Cut(net()), lambda: pictures(24), "has no gradient"),
    "a wrapper": (lambda: nn.DataParallel(net()), lambda: pictures(24), "pass the module itself"),
    "no values": (lambda: net().to("meta"), lambda: pictures(24), "is a meta tensor"),
    "a part without values": (
        lambda: nn.Sequential(net(), nn.Linear(3, 3, device="meta")),
        lambda: pictures(24),
        "is a meta tensor",
    ),
    "no numbers": (with_nan, lambda: pictures(24), "NaN or Inf"),
}


def four() -> advkit.Dataset:
    images = torch.randint(0, 256, (24, 2, 4, 4), dtype=torch.uint8)
    return advkit.Dataset("four", images, torch.arange(24) % 3, (*"abcd",))


@pytest.mark.parametrize("kind", UNFIT)
def test_a_plan_refuses_the_nets_that_training_refuses(kind: str) -> None:
    """The control: a fit net has a plan, and is as it was."""
    build, data, said = UNFIT[kind]
    for call in (advkit.plan, advkit.train):
        with pytest.raises(advkit.AdvkitError, match=said):
            call(model=build(), dataset=data(), plugins=(), settings=SETTINGS, epochs=1)
    fit = net()
    before = {name: value.clone() for name, value in fit.state_dict().items()}
    advkit.plan(model=fit, dataset=pictures(24), plugins=(), settings=SETTINGS, epochs=1)
    assert fit.training and all(torch.equal(value, before[name]) for name, value in fit.state_dict().items())


class Breaks(Plugin):
    name = "breaks"

    @hookimpl
    def after_update(self) -> None:
        raise RuntimeError("of the plugin")


def test_a_failed_step_is_undone_beside_a_buffer_that_lies_on_itself() -> None:
    model = net()
    model.register_buffer("mask", torch.ones(1).expand(10))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="of the plugin"):
        step_of(model, optimizer, Breaks)(*BATCH, epoch=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not optimizer.state
    step = step_of(model, optimizer)
    loss = step.loss(*BATCH, epoch=0)
    assert torch.equal(step.again(), loss)


class Counting(torch.optim.SGD):
    """Keeps something of all parameters together."""

    kept = 0.1

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        self.state["all"] = torch.ones(()) * self.kept  # type: ignore[index]
        return super().step(closure)


def test_an_optimizer_may_keep_what_is_of_no_parameter() -> None:
    model = net()
    optimizer = Counting(model.parameters(), 0.1)
    step_of(model, optimizer)(*BATCH, epoch=0)
    optimizer.kept = torch.inf
    with pytest.raises(advkit.NonFinite):
        step_of(model, optimizer)(*BATCH, epoch=0)
    assert optimizer.state["all"] == 0.1  # type: ignore[index]


class Least(torch.optim.Optimizer):
    """Keeps the least negative gradient of each weight plus `bad`, from inf on, and counts."""

    def __init__(self, parameters: Any, bad: float = 0.0, born: str = "in a step") -> None:
        super().__init__(parameters, {"lr": 0.01})
        self.count, self.rows, self.total, self.bad = 0, [0], torch.zeros(2), bad
        self.own: list[Any] = [self.rows]
        self.own.append(self.own)  # whoever walks through it has to come to an end
        self.inner = torch.optim.SGD(self.param_groups[0]["params"], 0.01, momentum=0.9)
        if born == "before":
            for parameter in self.param_groups[0]["params"]:
                self._state_of(parameter)

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        begun = {"least": torch.full_like(parameter, torch.inf), "loss": torch.tensor(torch.inf)}
        return self.state.setdefault(parameter, begun)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.count += 1
        self.rows.append(self.count)
        self.total += 1
        self.inner.step()
        for parameter in self.param_groups[0]["params"]:
            kept = self._state_of(parameter)
            if self.count > 1 or self.bad:
                kept["least"] = torch.minimum(kept["least"], parameter.grad + self.bad)
                kept["least"][kept["least"] > 0] = torch.inf


@pytest.mark.parametrize("born", ["before", "in a step"])
def test_an_optimizers_state_may_begin_at_inf(born: str) -> None:
    """What was not finite before a step is no news. The control: NaN is, and an inf that is born among numbers."""
    model = net()
    optimizer = Least(model.parameters(), born=born)
    step = step_of(model, optimizer)
    for _ in range(2):
        step(*BATCH, epoch=0)
        step.close()
    first = next(iter(optimizer.state.values()))
    assert first["loss"].isinf() and first["least"].isinf().any() and first["least"].isfinite().any()
    optimizer.bad = torch.nan
    with pytest.raises(advkit.NonFinite, match="the optimizer's state after the update"):
        step(*BATCH, epoch=0)
    model = net()
    with pytest.raises(advkit.NonFinite, match="the optimizer's state after the update of epoch 0, step 0"):
        step_of(model, Least(model.parameters(), bad=1e-12))(*BATCH, epoch=0)


class Large(Plugin):
    """Gradients whose squares overflow, of every weight of a linear net."""

    name = "large"

    @hookimpl
    def extra_regularizer(self, adv_logits: Tensor) -> Tensor:
        return 1e27 * adv_logits.square().sum(1)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RMSprop])
def test_an_overflow_of_every_entry_is_no_beginning(kind: type[torch.optim.Optimizer]) -> None:
    """Of Adam's second moments, after which no weight would move. The control: no weight has another one."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(BATCH[0][0].numel(), 3))
    with torch.no_grad():
        model[1].weight.copy_(torch.linspace(0.01, 0.1, 96)[torch.arange(96) * 7 % 96].view(3, 32))
    optimizer = kind(model.parameters())  # type: ignore[call-arg]
    x, before = BATCH[0].clamp(0.2, 0.8), model[1].weight.detach().clone()
    refused = pytest.raises(NonFinite, match="the optimizer's state after the update of epoch 0, step 0")
    with refused, pytest.warns(match="changed no weight in its first step"):
        step_of(model, optimizer, Large)(x, *BATCH[1:], epoch=0)
    assert not optimizer.state and torch.equal(model[1].weight, before)
    (model(x).square().sum() * 1e27).backward()
    optimizer.step()
    assert all(value.isinf().all() for state in optimizer.state.values() for value in [*state.values()][-1:])


class Masked(nn.Module):
    """Its buffer is not finite from the beginning: a mask, or what a bound begins with."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.net, self.classes = net(), 4
        self.register_buffer("mask", torch.tensor([0.0, 0.0, 0.0, value]))

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.nn.functional.pad(self.net(x), (0, 1))
        return logits + self.mask if self.mask[3] == -torch.inf else logits


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_a_buffer_may_begin_so_too(value: float, tmp_path: Any) -> None:
    """In training, in an average of buffers, in validation and in a resume; but no statistic of a norm."""
    data = four()
    settings = {**SETTINGS, "validation.fraction": 0.3}
    given: Any = {"plugins": ["ema"], "options": {"ema": {"buffers": "averaged"}}, "settings": settings, "epochs": 1}
    run = advkit.train(Masked(value), data, out=tmp_path / "run", **given)
    assert torch.equal(run.model.mask.isfinite(), torch.tensor([True, True, True, False]))  # type: ignore[operator,union-attr]
    assert advkit.train(Masked(value), data, resume_from=tmp_path / "run").history == run.history
    broken = Masked(value)
    next(b for name, b in broken.named_buffers() if name.endswith("running_var"))[0] = torch.nan
    with pytest.raises(advkit.NonFinite, match="running_var"):
        refuse_unjudgeable(broken)


def test_all_that_an_optimizer_keeps_is_undone() -> None:
    """Attributes, lists and tensors in them, and what an optimizer inside it keeps."""
    model = net()
    optimizer = Least(model.parameters())
    step_of(model, optimizer)(*BATCH, epoch=0)
    rows, moment = optimizer.rows, next(iter(optimizer.inner.state.values()))["momentum_buffer"]
    before = moment.clone()
    with pytest.raises(RuntimeError, match="of the plugin"):
        step_of(model, optimizer, Breaks)(*BATCH, epoch=0)
    assert (optimizer.count, optimizer.rows, optimizer.total.tolist()) == (1, [0, 1], [1.0, 1.0])
    assert optimizer.rows is rows and torch.equal(moment, before)
    step_of(model, optimizer)(*BATCH, epoch=0)
    assert optimizer.count == 2 and optimizer.rows == [0, 1, 2] and not torch.equal(moment, before)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", ["sparse", "quantized"])
def test_tensors_of_other_layouts_are_refused(kind: str) -> None:
    model, dense = net(), torch.eye(3)
    other: Tensor = dense.to_sparse() if kind == "sparse" else torch.quantize_per_tensor(dense, 0.1, 0, torch.qint8)
    model.register_buffer("odd", other)
    with pytest.raises(OptionError, match=f"odd of the net is {kind}; keep it as a plain tensor"):
        step_of(model, torch.optim.SGD(model.parameters(), 0.1))


def test_a_loss_without_a_backward_is_refused() -> None:
    model = net()
    step = step_of(model, torch.optim.SGD(model.parameters(), 0.1))
    with torch.no_grad(), pytest.raises(OptionError, match=r"take it outside of torch\.no_grad"):
        step.loss(*BATCH, epoch=0)
    step.loss(*BATCH, epoch=0).backward()


def test_a_sum_that_overflows_is_not_taken_for_an_entry() -> None:
    large = torch.full((4,), 3e38)
    flags = told([large, torch.ones(3), torch.empty(0), torch.tensor([1.0, torch.nan]), torch.tensor([-torch.inf])])
    ((places, fine),) = flags.values()
    assert (places, fine.tolist()) == ([0, 1, 3, 4], [False, True, False, False])
    assert finite(large) and not finite(torch.tensor([torch.inf, -torch.inf]))
    model = net()
    model.register_buffer("large", large)
    step = step_of(model, torch.optim.SGD(model.parameters(), 0.1))
    step(*BATCH, epoch=0)

    def overflow(*_: object) -> None:
        model.get_buffer("large").mul_(2)

    model.register_forward_hook(overflow)
    with pytest.raises(NonFinite, match="NaN or Inf in large"):
        step(*BATCH, epoch=0)
