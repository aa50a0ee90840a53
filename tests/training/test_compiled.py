"""torch.compile: the run is that of eager mode to rounding, compiles once, is resumed bit for bit, and may fail."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import methods
import pytest
import torch
from methods import pictures, tiny_net
from torch import Tensor, nn
from torch._inductor import config as inductor

import advkit
from advkit import AttackResult, Batch, Costs, Dataset, OptionError, Passes, Plugin, Splits, Step, hookimpl
from advkit.config.layer import Layer
from advkit.config.resolve import resolve
from advkit.errors import Stopped
from advkit.precision import HalfPrecision
from advkit.training import engine
from advkit.training.compiled import Compiled
from advkit.training.plan import plan
from advkit.training.progress import Silent

OTHERS = Dataset("toy", 255 - pictures().images, pictures().labels, ("a", "b", "c"))
TOY = Splits(pictures(18), OTHERS, "none")
"""Eighteen images, all to train on: in batches of four, the last has two."""

QUICK = ("", "trades", "awp", "lsiw")


class Heard(Silent):
    """Keeps what it was told; may stop after so many steps."""

    def __init__(self, stop_after: int = -1) -> None:
        self.left, self.sentences = stop_after, list[str]()

    def warn(self, sentence: str) -> None:
        self.sentences.append(sentence)

    def stop_requested(self) -> type[Stopped] | None:
        self.left -= 1
        return Stopped if self.left == 0 else None


@pytest.fixture(autouse=True)
def _without_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """dynamo and autograd's tracing with torch's own kernels: seconds in place of a minute."""
    monkeypatch.setattr(engine, "BACKEND", "aot_eager")


def train(*plugins: Any, dtype: torch.dtype = torch.float64, **arguments: Any) -> advkit.TrainResult:
    net = arguments.pop("net", None) or tiny_net(batch_norm=True, dropout=0.3, dtype=dtype)
    given = {"attack.steps": 2, "validation.steps": 1, "validation.fraction": 0, **arguments.pop("settings", {})}
    return advkit.train(net, TOY, plugins, **{"epochs": 2, "batch_size": 4, "eps": 0.1, "settings": given} | arguments)


def apart(one: nn.Module, other: nn.Module) -> float:
    """The largest difference of two nets' weights and buffers, relative to the largest of each."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-9)) for a, b in pairs)


FROM_THE_START = {"te": {"start": 0.0}}
"""So that the second epoch has no new stage, whose forwards would be compiled in it."""


def like_eager(plugins: tuple[str, ...], mode: str, tolerance: float, dtype: torch.dtype) -> advkit.TrainResult:
    """The compiled run, after both were compared."""
    heard, both = Heard(), []
    for how in ("off", "default"):
        settings = {"attack.mode": mode, "run.compile": how}
        options = {name: FROM_THE_START[name] for name in plugins if name in FROM_THE_START}
        both.append(train(*plugins, dtype=dtype, settings=settings, options=options, progress=heard))
    eager, compiled = both
    assert apart(compiled.model, eager.model) <= tolerance
    assert [row["passes"] for row in compiled.history] == [row["passes"] for row in eager.history]
    assert not any("compile" in sentence for sentence in heard.sentences)
    assert "compile" not in eager.history[0]["seconds"] and compiled.history[0]["seconds"]["compile"] > 0
    assert compiled.history[1]["seconds"]["compile"] == 0  # all modes and the last batch are known
    return compiled


@pytest.mark.parametrize("mode", ["eval", "train", "train-frozen"])
@pytest.mark.parametrize("plugin", QUICK)
def test_compiled_is_eager_to_rounding(plugin: str, mode: str) -> None:
    like_eager((plugin,) if plugin else (), mode, 1e-12, torch.float64)


# Dynamo looks at .grad of what ccat differentiates by, and torch warns of that; nothing depends on it.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.slow
@pytest.mark.parametrize("plugins", methods.parties(), ids=",".join)
def test_compiled_is_eager_to_rounding_for_every_method(plugins: tuple[str, ...]) -> None:
    like_eager(plugins, "train", 1e-12, torch.float64)


def test_only_batches_of_the_usual_size_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    call = Compiled.__call__
    monkeypatch.setattr(Compiled, "__call__", lambda own, kept, x: (sizes.append(len(x)), call(own, kept, x))[1])
    train(settings={"run.compile": "default"})
    assert set(sizes) == {4} and len(sizes) == 2 + 2 * 4 * 3  # to try it; then four batches an epoch, two steps and one


@pytest.mark.parametrize("stop_after", [3, 4])
def test_stopped_in_the_middle_of_an_epoch_it_goes_on_to_the_same_bits(stop_after: int, tmp_path: Path) -> None:
    """The fifth batch of an epoch is a short one, which a run that is resumed before it sees first."""
    how: dict[str, Any] = {"settings": {"run.compile": "default", "attack.mode": "train"}}
    stopped_and_resumed(("lsiw", "ema"), how, stop_after, train("lsiw", "ema", **how), tmp_path)


def stopped_and_resumed(
    plugins: tuple[str, ...], how: dict[str, Any], stop_after: int, whole: advkit.TrainResult, home: Path
) -> None:
    with pytest.raises(Stopped):
        train(*plugins, **how, out=home / "run", progress=Heard(stop_after))
    rest = train(*plugins, **how, resume_from=home / "run")
    assert methods.same(rest.model.state_dict(), whole.model.state_dict())
    assert rest.history[0]["seconds"]["compile"] > 0
    nets = [deepcopy(rest.model) for _ in range(2)]
    for net in (nets[0], torch.compile(nets[1])):
        advkit.load_weights(net, home / "run")
    assert methods.same(*(net.state_dict() for net in nets))
    assert not methods.same(nets[1].state_dict(), rest.model.state_dict()), "the average is judged"


@pytest.mark.slow
def test_real_code_is_eager_to_rounding_and_resumed_to_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One run for both: a compiler takes a second for each kernel. Measured in float32: 8e-7."""
    monkeypatch.setattr(engine, "BACKEND", "inductor")
    plugins, how = ("lsiw", "ema"), {"settings": {"run.compile": "default", "attack.mode": "eval"}}
    whole = like_eager(plugins, "eval", 1e-5, torch.float32)
    stopped_and_resumed(plugins, how | {"dtype": torch.float32}, 3, whole, tmp_path)


def broken(graph: object, examples: object) -> None:
    raise RuntimeError("no such kernel.\nMore.")


def test_what_can_not_be_compiled_runs_in_eager_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BACKEND", broken)
    heard = Heard()
    result = train("awp", settings={"run.compile": "default"}, progress=heard)
    (sentence,) = heard.sentences
    assert sentence.startswith("run.compile=default: the model can not be compiled here (") and "kernel" in sentence
    assert sentence.endswith("it trains in eager mode, which computes the same, slower.")
    assert methods.same(result.model.state_dict(), train("awp").model.state_dict())
    assert "compile" not in result.history[0]["seconds"]


def test_without_a_c_compiler_it_runs_in_eager_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BACKEND", "inductor")
    heard = Heard()
    with inductor.patch({"force_disable_caches": True, "cpp.cxx": ("no-such-compiler",)}):
        result = train(settings={"run.compile": "default"}, progress=heard)
    (sentence,) = heard.sentences
    assert "the model can not be compiled here (" in sentence and "ompiler" in sentence
    assert methods.same(result.model.state_dict(), train().model.state_dict())


def test_a_run_does_not_leave_its_model_compiled() -> None:
    net = tiny_net(batch_norm=True, dropout=0.3, dtype=torch.float64)
    train(net=net, settings={"run.compile": "default"})
    assert all(module._compiled_call_impl is None for module in net.modules()) and "0.weight" in net.state_dict()


# ---------------------------------------------------------------------- a module that its owner compiled


def stepped(how: str, *plugins: str, steps: int = 2, stored: Any = None) -> tuple[nn.Module, Step]:
    # Dropout draws in the order of memory.
    net: Any = tiny_net(batch_norm=True, dropout=0.0, dtype=torch.float64)
    if stored is not None:
        net.load_state_dict(stored[0])
    passed: Any = torch.compile(net, backend="aot_eager") if how == "wrapped" else net
    if how == "in place":
        net.compile(backend="aot_eager")
    if how == "a part in place":
        net[0].compile(backend="aot_eager")
    if how == "channels_last":
        net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(passed.parameters(), 0.1)
    settings = {
        "run.epochs": 20,
        "attack.steps": 2,
        "attack.init": "uniform",
    }  # at x the gradient of TRADES is rounding
    step = Step(passed, optimizer, plugins, num_samples=16, eps=0.1, settings=settings)
    if stored is not None:
        step.load_state_dict(stored[1])
    x = pictures().images.double() / 255
    begin = 0 if stored is None else step.state.step
    for rows in torch.arange(16).split(4)[begin : begin + steps]:
        step(x[rows], rows % 3, rows, epoch=0)
    return net, step


@pytest.mark.parametrize("how", ["wrapped", "in place", "a part in place", "channels_last"])
def test_a_step_takes_a_module_as_its_owner_made_it(how: str) -> None:
    plugins = ("trades", "awp", "cat-eps")
    (eager, reference), (net, step) = stepped("as it is", *plugins), stepped(how, *plugins)
    assert apart(net, eager) < 1e-12 and net.state_dict().keys() == eager.state_dict().keys()
    assert step.state_dict().keys() == reference.state_dict().keys()
    # And on from one to the other, both ways.
    whole = stepped("as it is", *plugins, steps=4)[0]
    assert apart(stepped("as it is", *plugins, stored=(net.state_dict(), step.state_dict()))[0], whole) < 1e-9
    assert apart(stepped(how, *plugins, stored=(eager.state_dict(), reference.state_dict()))[0], whole) < 1e-9


def test_a_wrapped_module_is_called_compiled_in_a_step() -> None:
    torch._dynamo.reset()  # nets of one class share torch's limit of recompilations
    seen: list[int] = []

    def counting(graph: Any, examples: object) -> Any:
        def run(*inputs: Any) -> Any:
            seen.append(1)
            return graph(*inputs)

        return run

    net = tiny_net(batch_norm=False, dropout=0.0, dtype=torch.float32)
    step = Step(
        torch.compile(net, backend=counting),  # type: ignore[arg-type]
        torch.optim.SGD(net.parameters(), 0.1), num_samples=4, eps=0.1, settings={"attack.steps": 3},
    )  # fmt: skip
    rows = torch.arange(4)
    step(pictures(4).images / 255, rows % 3, rows, epoch=0)
    assert len(seen) == 4 + 2  # before, what is compiled is held against the net in both modes


def test_the_watch_for_half_precision_is_not_compiled() -> None:
    torch._dynamo.reset()
    graphs: list[Any] = []

    def counting(graph: Any, examples: object) -> Any:
        graphs.append(graph)
        return graph

    inside = torch.compile(lambda x: (2 * x.half()).float(), backend=counting)
    with torch.no_grad(), HalfPrecision() as watch:
        inside(torch.ones(2))
    assert not graphs and "float16" in watch.seen
    inside(torch.ones(2))
    assert len(graphs) == 1


class Moves(nn.Module):
    """Its logits depend on a buffer that every forward in train mode moves, as u and v of spectral_norm."""

    def __init__(self) -> None:
        super().__init__()
        self.core = tiny_net(batch_norm=False, dropout=0.0, dtype=torch.float64)
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.mean.lerp_(x.mean(), 0.5)
        return self.core(x - self.mean)


def test_a_look_at_a_compiled_step_moves_nothing() -> None:
    """The watched forward is an eager one beside the compiled."""
    x, rows, nets = pictures(4).images.double() / 255, torch.arange(4), []
    for passed in (lambda net: net, lambda net: torch.compile(net, backend="aot_eager")):
        nets.append(Moves())
        step = Step(
            passed(nets[-1]), torch.optim.SGD(nets[-1].parameters(), 0.1), ("awp",), num_samples=4, eps=0.1,
            settings={"attack.steps": 1}, options={"awp": {"gamma": 0.05}},
        )  # fmt: skip
        step(x, rows % 3, rows, epoch=0)
    assert apart(*nets) < 1e-12


def test_what_is_refused() -> None:
    net: Any = tiny_net(batch_norm=False, dropout=0.0, dtype=torch.float32)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with pytest.raises(OptionError, match=r"takes the model as it is; pass torch\.compile\(model\), without"):
        Step(net, optimizer, num_samples=4, settings={"run.compile": "default"})
    with pytest.raises(OptionError, match=r"pass the module that torch\.compile was given, with run\.compile=default"):
        train(net=torch.compile(net, backend="eager"))
    inner = nn.Sequential(torch.compile(nn.Flatten(), backend="eager"), nn.Linear(32, 3))  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"^0 of the model is what torch\.compile returned.* with 0\.compile\(\)"):
        Step(inner, torch.optim.SGD(inner.parameters(), 0.1), num_samples=4)
    net.compile(backend="eager")
    with pytest.raises(OptionError, match=r"pass a module that is not compiled, with run\.compile=default"):
        train(net=net)


class Twice(Plugin):
    """Differentiates one forward twice."""

    name = "twice"
    again: dict[str, bool]

    @hookimpl
    def inner_attack(
        self, model: Callable[[Tensor], Tensor], batch: Batch, objective: Callable[[Tensor], Tensor]
    ) -> AttackResult:
        x = batch.x.clone().requires_grad_()
        loss = objective(model(x)).sum()
        for _ in range(2):
            torch.autograd.grad(loss, x, **self.again)
        return AttackResult(batch.x)

    def passes(self, hook: str, costs: Costs) -> Passes:
        return Passes(1, 2) if hook == "inner_attack" else Passes()


@pytest.mark.parametrize("again", [{"create_graph": True}, {"retain_graph": True}])
def test_what_is_differentiated_twice_gets_a_sentence(again: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Twice, "again", again, raising=False)
    with pytest.raises(OptionError, match=r"differentiated twice then, as a plugin does here; set run\.compile=off"):
        train(Twice, settings={"run.compile": "default"})
    train(Twice)  # the control


def test_a_choice_by_the_clock_is_a_caution() -> None:
    for how, told in (("default", False), ("max-autotune", True)):
        cautions = plan(resolve((), [Layer("test", {"run.compile": how})]))["cautions"]
        assert told == any("chooses kernels by their time" in caution for caution in cautions)


@pytest.mark.parametrize("older", [False, True])
def test_a_torch_without_a_limit_for_one_net_gets_it_for_all(older: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 2.14 `torch.compile` takes none, and a run has more graphs than the 8 that there are by default."""
    real, seen = torch.compile, list[int]()

    def as_before(model: Any, *, backend: Any, dynamic: bool, options: Any = None) -> Any:
        return real(model, backend=backend, dynamic=dynamic, options=options)

    if older:
        monkeypatch.setattr(torch, "compile", as_before)

    class Looks(Plugin):
        name = "looks"

        @hookimpl
        def extra_regularizer(self, adv_logits: Tensor) -> Tensor:
            seen.append(torch._dynamo.config.recompile_limit)
            return adv_logits.new_zeros(len(adv_logits))

    train(Looks, settings={"run.compile": "default"})
    assert {*seen} == {64 if older else 8} and torch._dynamo.config.recompile_limit == 8


class Counting(nn.Module):
    """Its logits grow with the batches that it has seen: torch gives the backward the count after the forward."""

    def __init__(self, moving: bool) -> None:
        super().__init__()
        self.head, self.moving = nn.Linear(32, 3).double(), moving
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.moving:
            self.seen += 1
        return self.head(x.flatten(1)) * (1 + 0.1 * self.seen)


@pytest.mark.parametrize("moving", [True, False])
def test_a_net_whose_gradient_torch_compiles_wrongly_is_eager(moving: bool) -> None:
    heard, both = Heard(), []
    for how in ("off", "default"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = Counting(moving)
        both.append(train(net=net, settings={"run.compile": how}, progress=heard).model)
    wrong = [sentence for sentence in heard.sentences if "its gradient in train mode is not that of eager" in sentence]
    assert len(wrong) == moving
    assert apart(*both) < 1e-12


@pytest.mark.parametrize("moving", [True, False])
def test_a_step_refuses_what_its_owner_compiled_into_another_net(moving: bool) -> None:
    x, rows, net = pictures(4).images.double() / 255, torch.arange(4), Counting(moving)
    compiled: Any = torch.compile(net, backend="aot_eager")
    step = Step(compiled, torch.optim.SGD(net.parameters(), 0.1), num_samples=4, eps=0.1, settings={"attack.steps": 1})
    before = {name: value.clone() for name, value in net.state_dict().items()}
    if not moving:
        assert step(x, rows % 3, rows, epoch=0).loss.isfinite()
        return
    with pytest.raises(OptionError, match=r"The compiled model's gradient in train mode is not that of eager mode"):
        step(x, rows % 3, rows, epoch=0)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
