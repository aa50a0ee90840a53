"""`run.module(..., optimizer=...)` and `run.ahead`: a net that learns beside the model, and a trial step."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import advkit
from advkit import (
    Batch,
    Costs,
    HookContract,
    NonFinite,
    OptionError,
    Passes,
    Plugin,
    PluginOptions,
    Run,
    Splits,
    hookimpl,
)
from advkit.errors import Stopped
from advkit.optimizers import OptimizerSettings
from advkit.storage.run_folder import RunFolder
from advkit.testing.runs import _StopAfter as StopAfter
from advkit.testing.small import batches, copies, pictures, same, step_of, tiny_net

ADAM = {"name": "adam", "lr": 0.01, "clip_norm": 0.5}
WATCHED = {"attack.steps": 1, "run.check_hooks": True}


class Twin(Plugin):
    """A twin of the model learns clean images beside it, and the model is pulled to what the twin says at x."""

    name = "twin"
    build: Callable[[nn.Module], Any] = staticmethod(lambda model: model)
    optimizer: Any = ADAM
    seldom, times = 1, 1.0

    @property
    def by_sample(self) -> bool:
        return True

    def every(self, hook: str) -> int:
        return self.seldom

    def passes(self, hook: str, costs: Costs) -> Passes:
        if hook == "observe_update":
            return Passes(1, auxiliary_forward=1, auxiliary_backward=1)
        return Passes(auxiliary_forward=1) if hook == "extra_regularizer" else Passes()

    @hookimpl
    def setup(self, run: Run) -> None:
        self.twin = run.module("net", self.build, optimizer=self.optimizer)

    @hookimpl
    def extra_regularizer(self, batch: Batch, adv_logits: Tensor) -> Tensor:
        return 0.1 * (adv_logits - self.twin(batch.x)).square().sum(1)

    @hookimpl
    def observe_update(self, batch: Batch, run: Run) -> None:
        self.twin.learn(batch.x, lambda z, y: self.times * F.cross_entropy(z, y, reduction="none"), batch.y)
        with run.ahead():
            self.tried = run.logits(batch.x)


def twin(**members: Any) -> Twin:
    made: Twin = type("Twin", (Twin,), members)(PluginOptions())
    return made


def model(batch_norm: bool = False) -> nn.Sequential:
    return tiny_net(batch_norm, 0.0, torch.float64)


def visit(step: advkit.Step, *numbers: int) -> list[advkit.Report]:
    return [step(*batches(torch.float64)[number % 2], epoch=number // 2) for number in numbers]


def test_a_twin_is_trained_as_torch_trains_it() -> None:
    """Adam with clipping, in float64, from the model as it begins; and the model, pulled to it, moves with it."""
    learner, plugin = model(), twin()
    alone = deepcopy(learner)
    optimizer = torch.optim.Adam(alone.parameters(), 0.01)
    visit(step_of(learner, [plugin], settings=WATCHED), 0, 1, 2)
    for number in range(3):
        x, y, _ = batches(torch.float64)[number % 2]
        optimizer.zero_grad()
        F.cross_entropy(alone(x), y).backward()
        nn.utils.clip_grad_norm_(alone.parameters(), 0.5)
        optimizer.step()
    for name, value in plugin.twin.weights().items():
        torch.testing.assert_close(value, alone.get_parameter(name).detach(), rtol=0, atol=1e-12)
    assert not same(copies(learner.state_dict()), copies(alone.state_dict()))


def test_the_weights_one_step_ahead() -> None:
    """theta - lr g, without the momentum that the step itself has."""
    learner, plugin = model(), twin()
    step = step_of(learner, [plugin], settings=WATCHED)
    for number in range(2):
        before = deepcopy(learner)
        visit(step, number)
        x = batches(torch.float64)[number][0]
        with torch.no_grad():
            for own, now in zip(before.parameters(), learner.parameters(), strict=True):
                assert now.grad is not None
                own -= 0.1 * now.grad
            torch.testing.assert_close(plugin.tried, before.eval()(x), rtol=0, atol=1e-12)
    assert not torch.equal(plugin.tried, learner(x))


def clipping(optimizer: torch.optim.Optimizer, *_: object) -> None:
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 0.05)


@pytest.mark.parametrize("limit", [0.05, 1e9])
def test_a_step_ahead_is_clipped_as_the_step_is(limit: float) -> None:
    learner, plugin = model(), twin()
    optimizer = OptimizerSettings(lr=0.1, momentum=0.0, weight_decay=0.0, clip_norm=limit).build(learner)
    step = advkit.Step(learner, optimizer, [plugin], num_samples=16, eps=0.1, settings=WATCHED)
    for number in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # no caution: it is known how the step clips
            visit(step, number)
        clipped = nn.utils.get_total_norm([p.grad for p in learner.parameters() if p.grad is not None])
        assert (float(clipped) < 0.0501) == (limit < 1)
        with torch.no_grad():
            reached = deepcopy(learner).eval()(batches(torch.float64)[number][0])
        torch.testing.assert_close(plugin.tried, reached, rtol=0, atol=1e-12)


def test_who_looks_ahead_without_a_hook_of_the_optimizer_is_named_once() -> None:
    learner, plugin = model(), twin()
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(clipping)
    step = advkit.Step(learner, optimizer, [plugin], num_samples=16, eps=0.1, settings=WATCHED)
    said = r"^Plugin twin looks a step ahead without what the optimizer calls before its step \(clipping\)\. "
    with pytest.warns(UserWarning, match=said):
        visit(step, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        visit(step, 1, 2)


def test_its_passes_are_apart_and_at_the_steps_that_are_planned() -> None:
    plugin = twin(seldom=2)
    step = step_of(model(), [plugin], settings=WATCHED)
    reports = visit(step, 0, 1)
    attack, update = Passes(1, 1), Passes(1, 0, 1, auxiliary_forward=1)
    both = update + Passes(1, auxiliary_forward=1, auxiliary_backward=1)
    assert [report.passes for report in reports] == [
        {"attack": attack, "update": both},
        {"attack": attack, "update": update},
    ]
    assert reports[0].demanded_by["update.twin/net"] == ["twin"] == reports[0].demanded_by["update.logits of twin"]
    stage = step.composition.at(0)
    assert stage.passes["update"] == both and stage.cost == attack.cost + update.cost + 0.5
    quiet = twin(
        passes=lambda self, hook, costs: Passes(auxiliary_forward=1) if hook == "extra_regularizer" else Passes()
    )
    with pytest.raises(HookContract, match=r"'auxiliary_backward': 1\} in the update phase, where the plan says"):
        visit(step_of(model(), [quiet], settings=WATCHED), 0)
    with pytest.raises(HookContract, match="Plugin twin: every must be a whole number from 1, not 0"):
        step_of(model(), [twin(seldom=0)])


def test_parts_of_a_batch_teach_as_the_whole() -> None:
    def after(parts: int) -> dict[str, Tensor]:
        plugin = twin()
        visit(step_of(model(), [plugin], settings={**WATCHED, "run.accumulate": parts}), 0, 1)
        return copies(plugin.twin.weights())

    whole, parts = after(1), after(2)
    assert all(torch.allclose(value, whole[name], rtol=0, atol=1e-12) for name, value in parts.items())


TOY = Splits(pictures(), pictures(), "none")


def trained(plugin: Plugin, **arguments: Any) -> advkit.TrainResult:
    given = {} if "resume_from" in arguments else {
        "epochs": 2, "batch_size": 4, "eps": 0.1,
        "settings": {**WATCHED, "optimizer.lr": 0.01, "validation.fraction": 0.25, **arguments.pop("settings", {})},
    }  # fmt: skip
    return advkit.train(tiny_net(True, 0.0, torch.float32), TOY, [plugin], **given, **arguments)


def test_it_is_resumed_bit_for_bit_within_an_epoch(tmp_path: Path) -> None:
    """With BatchNorm's statistics and the moments of its optimizer; `every` counts from the epoch's first step."""
    whole = trained(twin(seldom=2), out=tmp_path / "whole")
    with pytest.raises(Stopped):
        trained(twin(seldom=2), out=tmp_path / "cut", progress=StopAfter(2))
    resumed = trained(twin(seldom=2), resume_from=tmp_path / "cut")
    assert same(copies(resumed.model.state_dict()), copies(whole.model.state_dict()))
    one, other = (RunFolder.open(tmp_path / name).load("last")[0] for name in ("whole", "cut"))
    assert same(one, other) and one["tensors/twin/net/updates"] == 4
    moments = [name for name in one if name.startswith("tensors/twin/net/optimizer/") and name.endswith("exp_avg")]
    assert len(moments) == 6 and all(one[name].any() for name in moments)
    begun = tiny_net(True, 0.0, torch.float32).state_dict()
    assert not torch.equal(one["tensors/twin/net/weights/1.running_mean"], begun["1.running_mean"])


@pytest.mark.parametrize("settings", [{"run.precision": "bf16"}, {"run.memory_format": "channels_last"}], ids=str)
def test_it_computes_as_the_model_does(settings: dict[str, object]) -> None:
    plain, other = twin(optimizer={"lr": 0.05}), twin(optimizer={"lr": 0.05})
    trained(plain)
    trained(other, settings=settings)
    one, another = (torch.cat([v.double().flatten() for v in p.twin.weights().values()]) for p in (plain, other))
    assert float((one - another).norm() / one.norm()) < 0.05


def test_a_step_that_leaves_it_not_finite_did_not_happen() -> None:
    learner, plugin = model(True), twin(optimizer={"lr": 3e38}, times=1e300)
    step = step_of(learner, [plugin], settings=WATCHED)
    before, kept = copies(learner.state_dict()), copies(step.state.stored())
    with pytest.raises(NonFinite, match=r"^NaN or Inf in twin/net/weights/.* after the update of epoch 0, step 0"):
        visit(step, 0)
    assert same(copies(learner.state_dict()), before) and same(copies(step.state.stored()), kept)


def test_what_it_draws_is_seeded_by_the_run() -> None:
    """At its birth; and the program's own generator is left alone."""

    def born(seed: int) -> Tensor:
        plugin = twin(build=staticmethod(lambda model: nn.Sequential(nn.Flatten(), nn.Linear(32, 3))))
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        step_of(model(), [plugin], seed=seed % 2)
        assert torch.equal(torch.get_rng_state(), before)
        return plugin.twin.weights()["1.weight"].clone()

    first, again, other = born(2), born(4), born(3)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_another_net_is_not_resumed() -> None:
    saved = step_of(model(), [twin()]).state_dict()
    narrow = twin(build=staticmethod(lambda model: nn.Sequential(nn.Flatten(), nn.Linear(32, 3))))
    with pytest.raises(
        advkit.ResumeMismatch, match="The stored state and that of the plugins differ in tensors/twin/net"
    ):
        step_of(model(), [narrow]).load_state_dict(saved)


def flat(width: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(32, width))


class Rebinds(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(*flat())
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)
        self.mean = y.detach().mean(0)
        return y


class Copies(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = deepcopy(self[1])(self[0](x))
        return logits


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"build": staticmethod(lambda model: 3)}, r"twin/net, built by twin, is 3; return a torch Module\."),
        ({"build": "vgg"}, "twin/net: 'vgg' builds no net; give a function of a copy of the model."),
        ({"build": flat()}, "twin/net: a Sequential builds no net; give a function of a copy of the model."),
        (
            {"build": staticmethod(lambda model: model.requires_grad_(False))},
            "twin/net, built by twin, has no trainable parameter; claim it without an optimizer.",
        ),
        (
            {"build": staticmethod(lambda model: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)))},
            r"twin/net, built by twin: 1\.weight of the model has no shape yet \(a lazy module\)",
        ),
        ({"optimizer": {"lr": -1}}, r"twin/net: optimizer\.lr = -1 must be greater than 0\."),
        ({"optimizer": {"rate": 1}}, r"twin/net: optimizer\.rate is no option of sgd\."),
        ({"optimizer": "sdg"}, r"twin/net: optimizer\.name = 'sdg' is unknown\. Did you mean sgd\?"),
        (
            {"build": staticmethod(lambda model: Deep())},
            r"twin/net, built by twin: it must return \(B, M\), a row for each image, and it returned \(4, 2, 3\)\.",
        ),
        (
            {"build": staticmethod(lambda model: nn.Sequential(nn.Flatten(), nn.Linear(33, 3)))},
            r"twin/net, built by twin, can not be called on images \(4, 2, 4, 4\): RuntimeError",
        ),
        (
            {"build": staticmethod(lambda model: Rebinds())},
            "twin/net, built by twin, binds its buffer mean anew in its forward, which no checkpoint would hold",
        ),
        (
            {"build": staticmethod(lambda model: Copies(*flat()))},
            "twin/net, built by twin, gets no gradient, so it would learn nothing",
        ),
    ],
    ids=range(12),
)
def test_what_can_not_be_trained_beside(members: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=f"^{sentence}"):
        visit(step_of(model(), [twin(**members)], settings=WATCHED), 0)


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.flatten(2))
        return y


def test_it_takes_no_weights_of_the_model_itself() -> None:
    class Shares(Twin):
        @hookimpl
        def setup(self, model: nn.Module, run: Run) -> None:  # type: ignore[override]
            self.twin = run.module("net", lambda copy: model, optimizer=ADAM)

    with pytest.raises(
        OptionError, match=r"^twin/net, built by twin, has weights of the model itself; take those of the copy"
    ):
        step_of(model(), [Shares(PluginOptions())])


@pytest.mark.parametrize(
    ("teach", "sentence"),
    [
        (
            lambda net, x, y: net.learn(x[:2], lambda z: z.sum(1)),
            "Plugin twin teaches twin/net by other rows than those",
        ),
        (lambda net, x, y: net.learn(x, lambda z, y: z.sum(1), y[:2]), "Plugin twin teaches twin/net by other rows"),
        (lambda net, x, y: net.learn(y, lambda z: z.sum(1)), r"Plugin twin broke .* run\.module \(twin/net\): images "),
        (lambda net, x, y: net.learn(x, "ce"), r"Plugin twin broke .* run\.module \(twin/net\): a callable is expect"),
        (lambda net, x, y: net.learn(x, lambda z: z.sum()), r"The loss of twin/net must be \(4,\), one value a sample"),
        (
            lambda net, x, y: net.learn(x, lambda z: z.detach().sum(1)),
            r"The loss of twin/net must be \(4,\), one value",
        ),
    ],
)
def test_what_can_not_be_taught(teach: Callable[..., None], sentence: str) -> None:
    class Teaches(Twin):
        @hookimpl
        def observe_update(self, batch: Batch) -> None:  # type: ignore[override]
            teach(self.twin, batch.x, batch.y)

    with pytest.raises(HookContract, match=f"^{sentence}"):
        visit(step_of(model(), [Teaches(PluginOptions())], settings=WATCHED), 0)


def test_a_loss_that_raises_is_its_plugins() -> None:
    """Only what the net itself raises on the images is told as a net that does not fit them."""

    class Teaches(Twin):
        @hookimpl
        def extra_regularizer(self, adv_logits: Tensor) -> Tensor:  # type: ignore[override]
            return 0 * adv_logits.sum(1)

        @hookimpl
        def observe_update(self, batch: Batch) -> None:  # type: ignore[override]
            self.twin.learn(batch.x, lambda z: 1 / 0)

    with pytest.raises(ZeroDivisionError) as raised:
        visit(step_of(model(), [Teaches(PluginOptions())], settings=WATCHED), 0)
    assert "plugin twin, hook observe_update" in str(raised.value.__notes__)
    unfit = type(
        "Unfit", (Teaches,), {"build": staticmethod(lambda model: nn.Sequential(nn.Flatten(), nn.Linear(7, 3)))}
    )
    with pytest.raises(OptionError, match=r"^twin/net, .*, can not be called on images"):
        visit(step_of(model(), [unfit(PluginOptions())], settings=WATCHED), 0)


def test_nothing_is_tried_elsewhere() -> None:
    class Early(Twin):
        @hookimpl
        def extra_regularizer(self, batch: Batch, run: Run) -> Tensor:  # type: ignore[override]
            return self.early(batch, run)

    for early, does in (
        (lambda self, batch, run: self.twin.learn(batch.x, lambda z: z.sum(1)), "teaches twin/net"),
        (lambda self, batch, run: run.ahead(), "looks a step ahead"),
    ):
        plugin = type("Early", (Early,), {"early": early})(PluginOptions())
        with pytest.raises(HookContract) as refused:
            visit(step_of(model(), [plugin], settings=WATCHED), 0)
        assert str(refused.value) == f"Plugin twin {does} where no step is tried; do so in observe_update."
    step = advkit.Step(model(), None, [twin()], num_samples=16)
    with pytest.raises(
        OptionError, match="Plugin twin looks a step ahead, and this Step has no optimizer; pass it one"
    ):
        step.loss(*batches(torch.float64)[0], epoch=0)


def test_an_optimizer_without_a_rate_has_no_step_ahead() -> None:
    class Rateless(torch.optim.SGD):
        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, 0.1)
            for group in self.param_groups:
                group["pace"] = group.pop("lr")

    net = model()
    step = advkit.Step(net, Rateless(net.parameters()), [twin()], num_samples=16)
    with pytest.raises(OptionError, match=r"^Plugin twin looks a step ahead, and Rateless has no lr in its groups;"):
        step(*batches(torch.float64)[0], epoch=0)


def test_the_plan_tells_of_it() -> None:
    planned = advkit.plan([Twin], dataset="digits")
    assert planned["modules"] == {"twin/net": "built by twin, and trained"}
    assert planned["passes"]["update"] == {
        "forward": 2, "full_backward": 1, "auxiliary_forward": 2, "auxiliary_backward": 1,
    }  # fmt: skip


def test_the_plan_of_what_follows_its_weights_says_so() -> None:
    class Averages(Twin):
        @hookimpl
        def setup(self, run: Run) -> None:
            super().setup(run)
            self.mean = run.tensor_state("mean", self.twin.weights()["4.weight"])

    planned = advkit.plan([Averages], dataset="digits")
    assert planned["state_bytes"] == {"twin/(depends on the model)": {"per_sample": None, "total": None}}
    assert planned["modules"] == {"twin/net": "built by twin, and trained"}


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("taken", ["net/updates", "net/weights/4.bias", "teacher.sha256"])
def test_a_name_of_a_net_is_no_other_states(taken: str, first: int) -> None:
    class Clashes(Twin):
        @hookimpl
        def setup(self, run: Run) -> None:
            def nets() -> None:
                super(Clashes, self).setup(run)
                run.module("teacher", model())

            def count() -> None:
                run.tensor_state(taken, torch.zeros(()))

            for claim in ((nets, count), (count, nets))[first]:
                claim()

    with pytest.raises(OptionError, match=f"^Plugin twin claims the state {taken} twice; claim it once, in setup\\.$"):
        step_of(model(), [Clashes(PluginOptions())])


class Feature(Plugin):
    """Weighs a term by what a hook on the model saw last."""

    name = "a-feature"
    answers: Callable[[Tensor], Tensor | None] = staticmethod(lambda output: None)

    @property
    def by_sample(self) -> bool:
        return True

    @hookimpl
    def setup(self, model: nn.Module, run: Run) -> None:
        def read(module: nn.Module, given: Any, output: Tensor) -> Tensor | None:
            self.seen = output.detach()
            return self.answers(output)

        model[4].register_forward_hook(read)  # type: ignore[index]

    @hookimpl
    def extra_regularizer(self, batch: Batch, adv_logits: Tensor) -> Tensor:
        return self.seen.norm(dim=1) * adv_logits.square().sum(1)


@pytest.mark.parametrize("order", [1, -1])
def test_a_hook_on_the_model_reads_the_model_alone(order: int) -> None:
    def after(build: Callable[[nn.Module], nn.Module]) -> dict[str, Tensor]:
        learner, beside = model(), deepcopy(model())
        plugins = [Feature, twin(build=staticmethod(lambda copy: build(copy) or beside), optimizer={"lr": 0.1})][
            ::order
        ]
        visit(step_of(learner, plugins, settings=WATCHED), 0, 1)
        return copies(learner.state_dict())

    assert same(after(lambda copy: copy), after(lambda copy: None))  # type: ignore[arg-type, return-value]


def test_a_copy_does_without_no_hook_that_computes() -> None:
    doubles = type("Feature", (Feature,), {"answers": staticmethod(lambda output: 2 * output)})
    with pytest.raises(
        OptionError, match=r"^twin/net is a copy of the model without the hooks on it, and read of them computes; put"
    ):
        visit(step_of(model(), [doubles, twin()], settings=WATCHED), 0)
    visit(step_of(model(), [doubles, twin(build=staticmethod(lambda copy: flat().double()))], settings=WATCHED), 0)


@pytest.mark.parametrize(
    ("optimizer", "epochs", "sentence"),
    [
        ({"schedule": "cosine", "per": "step"}, 3, r"(schedule=cosine, per=step, warmup=0), and a Step is not told"),
        ({"warmup": 2}, 3, r"(schedule=constant, per=schedule, warmup=2), and a Step is not told how many steps"),
        ({"schedule": "one-cycle"}, 3, r"within an epoch (schedule=one-cycle, per=schedule, warmup=0)"),
        ({"schedule": "piecewise"}, None, r"optimizer.schedule=piecewise depends on the length of the run, and a Step"),
        ({"milestones": [1, 2]}, 3, r"optimizer.milestones is of schedule=piecewise, and the schedule is constant;"),
        (
            {"schedule": "cosine", "peak": 0.5},
            3,
            r"optimizer.peak is of schedule=one-cycle, and the schedule is cosine",
        ),
    ],
)
def test_a_rate_that_a_step_does_not_know(optimizer: dict[str, object], epochs: int | None, sentence: str) -> None:
    settings = {} if epochs is None else {"run.epochs": epochs}
    with pytest.raises(OptionError) as refused:
        advkit.Step(model(), None, [twin(optimizer=optimizer)], num_samples=16, settings=settings)
    assert sentence in str(refused.value)


def test_a_rate_that_a_step_knows() -> None:
    for optimizer in (
        {"schedule": "piecewise", "milestones": [1]},
        {"schedule": "cosine", "warmup": 2, "per": "epoch"},
    ):
        known = step_of(model(), [twin(optimizer=optimizer)], settings={"run.epochs": 3})
        rates = known.state.modules["twin/net"].settings  # type: ignore[union-attr]
        assert not rates.within_epochs and rates.lr_at(1, 3) < 0.1
    whole = {"schedule": "piecewise", "milestones": [1]}
    advkit.Step(model(), None, [twin(optimizer=whole)], num_samples=16)


class Later(nn.Module):
    """Its second part has a gradient from the second forward on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Linear(32, 3, dtype=torch.float64) for _ in range(2))
        for number, parameter in enumerate(self.parameters()):
            nn.init.constant_(parameter, 0.1 * number)
        self.register_buffer("forwards", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += self.training
        y: Tensor = (self.first if self.forwards <= 1 else self.second)(x.flatten(1))
        return y


@pytest.mark.parametrize("cut", [None, 1, 2])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.Rprop, {"lr": 0.01}),
        (torch.optim.NAdam, {"lr": 0.01}),
        (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.0}),
    ],
)
def test_the_optimizer_begins_with_the_first_gradient_of_each(
    kind: type[torch.optim.Optimizer], options: dict[str, Any], cut: int | None
) -> None:
    alone, plugin = Later(), silent(optimizer={"name": kind.__name__.lower(), **options})
    step, optimizer = step_of(model(), [plugin], settings=WATCHED), kind(alone.parameters(), **options)
    for number in range(3):
        if number == cut:
            kept, plugin = copies(step.state_dict()), silent(optimizer={"name": kind.__name__.lower(), **options})
            step = step_of(model(), [plugin], settings=WATCHED)
            step.load_state_dict(kept)
        visit(step, number)
        x, y, _ = batches(torch.float64)[number % 2]
        optimizer.zero_grad()
        F.cross_entropy(alone(x), y).backward()
        optimizer.step()
    for name, value in plugin.twin.weights().items():
        torch.testing.assert_close(value, alone.state_dict()[name], rtol=0, atol=1e-12)


def silent(**members: Any) -> Twin:
    """One whose net says nothing to the model."""

    class Silent(Plugin):
        name = "twin"

        def passes(self, hook: str, costs: Costs) -> Passes:
            return Passes(auxiliary_forward=1, auxiliary_backward=1) if hook == "observe_update" else Passes()

        @hookimpl
        def setup(self, run: Run) -> None:
            self.twin = run.module("net", lambda model: Later(), optimizer=members["optimizer"])

        @hookimpl
        def observe_update(self, batch: Batch) -> None:
            self.twin.learn(batch.x, lambda z, y: F.cross_entropy(z, y, reduction="none"), batch.y)

    made: Any = Silent(PluginOptions())
    return made
