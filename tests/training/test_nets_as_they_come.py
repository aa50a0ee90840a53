"""Nets as people have them: what they do wrong in any pass is one sentence, and nothing of it stays behind."""

from __future__ import annotations

import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import advkit
from advkit import AdvkitError, L2Ball, LinfBall, OptionError, Plugin, Step, hookimpl
from advkit.errors import blames

X, Y, INDEX = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(4) % 3, torch.arange(4)


class Net(nn.Module):
    """A core, and a forward that is a function of net and images."""

    def __init__(self, forward: Callable[[Any, Tensor], Any] = lambda net, x: net.core(x)) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.core = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
        self.function, self.kept = forward, None

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def step_of(net: nn.Module, plugins: Any = ()) -> Step:
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    return Step(net, optimizer, plugins, num_samples=4, eps=0.1, settings={"attack.steps": 2, "attack.step_size": 0.1})


def train(net: nn.Module, plugins: Any = ()) -> None:
    step = step_of(net, plugins)
    for epoch in range(2):
        step(X, Y, INDEX, epoch=epoch)


def judge(net: nn.Module) -> None:
    advkit.evaluate(net, (X, Y), "clean,pgd-2", eps=0.1, step="eps/2")


class Broken(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise KeyError("no gradient today")


def raises(net: Any, x: Tensor) -> Any:
    if x.requires_grad:
        raise KeyError("no images today")
    return net.core(x)


def sums_up(net: Any, x: Tensor) -> Tensor:
    logits: Tensor = net.core(x)
    before, net.kept = net.kept, logits.mean()
    return logits if before is None else logits + before


def sets(switch: Callable[[], object]) -> Callable[[Any, Tensor], Tensor]:
    def forward(net: Any, x: Tensor) -> Tensor:
        logits: Tensor = net.core(x)
        switch()
        return logits

    return forward


EVERYWHERE: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "sparse logits": (lambda net, x: net.core(x).to_sparse(), "sparse logits"),
    "an error where there is a gradient": (raises, "can not be called on images .*no images today.*line"),
    "an error in a backward": (lambda net, x: net.core(Broken.apply(x)), r"backward .* fails: KeyError.*line"),
    "an end of the program": (lambda net, x: exit(3), "SystemExit: 3"),
    "no gradients": (sets(lambda: torch.set_grad_enabled(False)), "changes the grad mode of the whole program"),
    "a default type": (sets(lambda: torch.set_default_dtype(torch.float64)), "changes the default dtype"),
}


@pytest.mark.parametrize("use", [train, judge])
@pytest.mark.parametrize("kind", EVERYWHERE)
def test_what_a_net_does_wrong_is_one_sentence(kind: str, use: Callable[[nn.Module], None]) -> None:
    forward, sentence = EVERYWHERE[kind]
    with pytest.raises(OptionError, match=sentence):
        use(Net(forward))
    assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32
    assert not _get_current_dispatch_mode_stack(), "later forwards are watched still"
    use(Net())


def doubles(net: Any, x: Tensor) -> Any:
    net.core[1].weight.mul_(1)
    return net.core(x)


def backward_inside(net: Any, x: Tensor) -> Any:
    with torch.enable_grad():
        net.core(x.detach().requires_grad_()).sum().backward()
    return net.core(x)


def in_train_mode_late(net: Any, x: Tensor) -> Any:
    net.kept = (net.kept or 0) + net.training
    if net.kept > 1 and net.training:
        raise ValueError("late")
    return net.core(x)


IN_TRAINING: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "an error later": (in_train_mode_late, "can not be called on images .*ValueError: late"),
    "a tensor kept with its graph": (sums_up, "is used again with its graph"),
    "a weight in place": (doubles, "changes a weight in place"),
    "a backward of its own": (backward_inside, "adds to the gradient of core.1.weight"),
}


@pytest.mark.parametrize("kind", IN_TRAINING)
def test_what_only_training_meets(kind: str) -> None:
    forward, sentence = IN_TRAINING[kind]
    with pytest.raises(OptionError, match=sentence):
        train(Net(forward))


def test_a_product_that_is_kept_is_told_or_refused() -> None:
    """Kept until torch counts another version of its weight: of the attack's forward, in which nothing learns."""

    def forward(net: Any, x: Tensor) -> Tensor:
        weight = net.core[-1].weight
        if net.kept is None or net.kept[0] != weight._version:
            net.kept = weight._version, weight * 1
        return F.linear(net.core[:-1](x), net.kept[1], net.core[-1].bias)

    with pytest.warns(UserWarning, match=r"core.3.weight of the model gets no gradient: .*\(kept\)"):
        step_of(Net(forward))(X, Y, INDEX, epoch=0)
    for plugin in ("awp", "rwp", "lsiw", "trades,awp"):
        with pytest.raises(AdvkitError, match=r"used again with its graph|at perturbed weights is off"):
            train(Net(forward), plugin)


class Again(torch.autograd.Function):
    """Computes its forward again in its backward and calls backward() there, as some reversible nets do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: nn.Module) -> Tensor:
        ctx.block = block
        ctx.save_for_backward(x)
        output: Tensor = block(x)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            output = ctx.block(x)
        output.backward(*gradients)
        return x.grad, None


def recomputing() -> Net:
    return Net(lambda net, x: Again.apply(net.core[:2](x), net.core[2:]))


@pytest.mark.parametrize("plugins", ["", "trades"])
def test_looks_add_to_no_gradient(plugins: str) -> None:
    """Those of the first step: at other weights, at pixels at the edges, at what the net keeps; nor an attack by hand.

    A step beside them, whose gradients lie in `.grad` already.
    """
    x, found = X.round(), []
    for net in (recomputing(), Net()):
        step_of(net, plugins)(x, Y, INDEX, epoch=0)
        other = type(net)(net.function)
        lent = step_of(other, plugins).loss(x, Y, INDEX, epoch=0)
        assert all(p.grad is None for p in other.parameters())
        lent.backward()  # type: ignore[no-untyped-call]
        ball = L2Ball(x, torch.ones(4))
        advkit.pgd(net, ball, x, lambda logits: logits.sum(1), steps=1, step_size=torch.ones(4))
        found.append([p.grad for model in (net, other) for p in model.parameters()])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("plugin", ["awp", "rwp", "lsiw", "gradalign"])
def test_who_asks_for_a_gradient_that_goes_elsewhere_blames_the_net(plugin: str) -> None:
    with pytest.raises(OptionError, match=r"calls backward\(\) in a backward.* core\.3\.weight and tells the plugin"):
        train(recomputing(), plugin)


def functional(net: Any, x: Tensor) -> Tensor:
    own = {name: nn.Parameter(value.detach()) for name, value in net.core.named_parameters()}
    logits: Tensor = torch.func.functional_call(net.core, own, (x,))
    return logits


def stacked(net: Any, x: Tensor) -> Tensor:
    own, _ = torch.func.stack_module_state([net.core, net.core])
    both = [torch.func.functional_call(net.core, {n: p[k] for n, p in own.items()}, (x,)) for k in (0, 1)]
    return both[0] + both[1]


CUT: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "new parameters": functional,
    "stacked": stacked,
    "a copy": lambda net, x: deepcopy(net.core)(x),
}


@pytest.mark.parametrize("kind", CUT)
@pytest.mark.parametrize("plugins", ["", "trades", "awp"])
def test_a_net_that_trains_copies_of_its_weights_is_refused(kind: str, plugins: str) -> None:
    sentence = "None of the weights that the optimizer has gets a gradient|graph leaves. support the deepcopy"
    with pytest.raises(OptionError, match=sentence if plugins == "awp" else sentence[:50]):
        train(Net(CUT[kind]), plugins)


def test_a_part_that_gets_no_gradient_is_told_once() -> None:
    net = Net(lambda net, x: net.core[3](deepcopy(net.core[:3])(x)))
    said = r"no gradient in the first step: core\.1\.weight, core\.1\.bias\. That is right where"
    with pytest.warns(UserWarning, match=said) as told:
        train(net)
    assert len(told) == 1
    held = Net(net.function)
    held.core[1].requires_grad_(False)
    train(held)  # warnings are errors in these tests


def test_a_parameter_that_is_asked_for_by_name_is_told_where_others_stand_in_its_place() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return F.linear(net.core[:-1](x), net.get_parameter("core.3.weight"), net.get_submodule("core.3").bias)

    train(Net(forward))
    with pytest.raises(OptionError, match=r"not an nn.Parameter .* as plain tensors: read them as attributes"):
        train(Net(forward), "awp")


@pytest.mark.parametrize("place", ["attribute", "buffer"])
def test_what_asks_for_a_gradient_and_is_no_parameter_is_told(place: str) -> None:
    net, scale = Net(lambda net, x: net.core(x) * net.scale), torch.ones(3, requires_grad=True)
    if place == "buffer":
        net.register_buffer("scale", scale)
    else:
        net.scale = scale
    with pytest.warns(UserWarning, match=r"self.scale of the model asks for a gradient"):
        step_of(net)(X, Y, INDEX, epoch=0)


def test_a_model_of_another_type_in_the_middle_of_a_loop() -> None:
    net = Net()
    step = step_of(net)
    step(X, Y, INDEX, epoch=0)
    for x in (X, X.double()):
        net.double()
        with pytest.raises(OptionError, match=r"The model is float64 now, and was float32"):
            step(x, Y, INDEX, epoch=1)
    net.float()
    step(X, Y, INDEX, epoch=1)


class Stubborn(Net):
    def train(self, mode: bool = True) -> Any:
        raise NotImplementedError("one mode only")


class Secret(Net):
    def state_dict(self, *given: Any, **named: Any) -> Any:
        raise NotImplementedError("nothing to see")


def test_methods_of_the_net_itself_that_raise() -> None:
    with pytest.raises(OptionError, match=r"own train\(False\) raises NotImplementedError: one mode only"):
        judge(Stubborn())
    with pytest.raises(OptionError, match=r"own state_dict\(\) raises NotImplementedError"):
        train(Secret())
    judge(Secret())


def test_whole_numbers_as_parameters() -> None:
    net = Net()
    net.count = nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)
    with pytest.raises(OptionError, match="count of the model is a parameter of int64"):
        train(net)
    judge(net)


def test_a_net_that_looks_at_its_own_gradient_is_judged() -> None:
    """It asks for the gradient of the very images that it was given."""
    judge(Net(lambda net, x: net.core(x.requires_grad_() if x.is_leaf else x)))


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is:FutureWarning")
def test_a_jitted_net_is_judged_in_parts() -> None:
    eager, scripted = Net().core, torch.jit.script(Net().core)
    for size in (1, 3):
        one, other = (
            advkit.evaluate(net, (X, Y), "clean,pgd-3", eps=0.3, batch_size=size, audit=False).attacks
            for net in (eager, scripted)
        )
        assert [each.accuracy for each in one] == [each.accuracy for each in other]


UNFIT: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "raises": (raises, r"^The model can not be called on images \(4, 1, 4, 4\): KeyError: 'no images today'"),
    "leaves": (lambda net, x: sys.exit(3), r"can not be called on images \(4, 1, 4, 4\): SystemExit: 3"),
    "has no gradient": (lambda net, x: net.core(x.detach()), "^The net has no gradient at its input"),
    "has none at all": (lambda net, x: net.core(x).detach(), "^The net has no gradient at its input"),
    "gives no logits": (lambda net, x: net.core(x)[0], r"^The model must return logits of shape .*it returned \(3,\)"),
    "gives a pair": (lambda net, x: (net.core(x), x), "^The model must return logits of shape .*it returned tuple"),
    "fails in its backward": (lambda net, x: net.core(Broken.apply(x)), "^A backward through the model fails: KeyErr"),
}


@pytest.mark.parametrize("how", UNFIT)
def test_an_attack_by_hand_says_what_is_wrong_with_its_net(how: str) -> None:
    forward, sentence = UNFIT[how]
    size = torch.full((4,), 0.2)
    with pytest.raises(OptionError, match=sentence):
        advkit.pgd(Net(forward), L2Ball(X, size), X, advkit.margin(Y), steps=1, step_size=size)
    with pytest.raises(OptionError, match=r"^steps must be a whole number, not 1\.5"):
        advkit.pgd(Net(), L2Ball(X, size), X, advkit.margin(Y), steps=1.5, step_size=size)  # type: ignore[arg-type]


ODD = torch.full((4,), 0.2).where(torch.arange(4) != 1, torch.nan)
BY_HAND: list[tuple[dict[str, Any], str]] = [
    ({"x": "x"}, r"x must be images \(B, C, H, W\), floats in \[0, 1\], not str"),
    ({"x": X.byte()}, r"x must be images .*, not \(4, 1, 4, 4\) uint8"),
    ({"x": 255 * X}, r"x leaves \[0, 1\]; pass images in \[0, 1\] and normalise them inside the model"),
    ({"x": X - 0.5}, r"x leaves \[0, 1\]"),
    ({"x": X * torch.nan}, r"x leaves \[0, 1\]"),
    *(({name: -0.1}, f"{name} must be finite and not negative") for name in ("radius", "step_size")),
    *(({name: ODD}, f"{name} must be finite and not negative") for name in ("radius", "step_size")),
    *(({name: torch.inf}, f"{name} must be finite and not negative") for name in ("radius", "step_size")),
    *(({name: ODD[:3]}, rf"{name} must be .* \(4,\) .*, not \(3,\) float32") for name in ("radius", "step_size")),
    *(({name: ODD.long()}, rf"{name} must be .*, not \(4,\) int64") for name in ("radius", "step_size")),
    ({"radius": "far"}, "radius is 'far'; pass a number"),
    ({"step_size": True}, "step_size must be a tensor or a number, not True"),
    ({"steps": -1}, "steps = -1 must be an integer from 0"),
    ({"begin": X[:2]}, r"begin must be \(4, 1, 4, 4\) float32, as the images of the ball, not \(2, 1, 4, 4\) float32"),
    ({"begin": X.double()}, r"begin must be .*, not \(4, 1, 4, 4\) float64"),
    ({"begin": X / 0}, "begin holds NaN or Inf"),
    ({"limit": -torch.ones(4).long()}, "limit is negative"),
    ({"limit": torch.ones(4)}, r"limit must be \(4,\) int64, moves of each image, not \(4,\) float32"),
    ({"limit": torch.ones(1).long()}, r"limit must be \(4,\) int64, moves of each image, not \(1,\) int64"),
    ({"objective": lambda logits: logits.sum()}, r"objective must return \(4,\), one value for each image"),
    *(
        ({"observe": lambda given=given, **at: given}, rf"observe must return \(4,\) bool, whether .*, not {what}\.$")
        for given, what in (
            (None, "NoneType"),
            ([True] * 4, "list"),
            (np.ones(4, bool), "ndarray"),
            (torch.ones(4).byte(), r"\(4,\) uint8"),
            (torch.ones(4).long(), r"\(4,\) int64"),
            (torch.ones(4), r"\(4,\) float32"),
            (torch.ones(1).bool(), r"\(1,\) bool"),
            (torch.ones(4, 1).bool(), r"\(4, 1\) bool"),
        )
    ),
    *(
        (
            {"transform": lambda given=given, **at: given},
            rf"transform must return a move \(4, 1, 4, 4\) .*, not {what}\.$",
        )
        for given, what in (
            (None, "NoneType"),
            (X[0, 0, 0], r"\(4,\) float32"),
            (X.double(), r"\(4, 1, 4, 4\) float64"),
        )
    ),
    *(({name: 3}, f"{name} must be a function or None, not int") for name in ("observe", "transform")),
]


@pytest.mark.parametrize("ball", [LinfBall, L2Ball])
@pytest.mark.parametrize(("given", "sentence"), BY_HAND, ids=lambda value: ", ".join(value))
def test_what_an_attack_by_hand_can_not_be(ball: type[LinfBall | L2Ball], given: dict[str, Any], sentence: str) -> None:
    how: dict[str, Any] = {"x": X, "radius": 0.2, "step_size": 0.1, "steps": 1, "objective": advkit.margin(Y), **given}
    x, radius = how.pop("x"), how.pop("radius")
    with pytest.raises(OptionError, match=f"^{sentence}"):
        advkit.pgd(Net(), ball(x, radius), begin=how.pop("begin", x), **how)


@pytest.mark.parametrize("ball", [LinfBall, L2Ball])
def test_a_number_is_that_of_every_image(ball: type[LinfBall | L2Ball]) -> None:
    whole = torch.full((4,), 0.2)
    first, *others = (
        advkit.pgd(Net(), ball(X, radius), X, advkit.margin(Y), steps=3, step_size=size).x_adv
        for radius, size in ((whole, whole / 2), (0.2, np.float64(0.1)), (torch.tensor(0.2), 0.1))
    )
    assert not torch.equal(first, X) and all(torch.equal(first, other) for other in others)


def test_an_attack_leaves_its_start_where_it_is() -> None:
    """From x itself, which the ball is around."""
    net, x = Net(), X.clone()
    found = advkit.pgd(
        net, L2Ball(x, torch.full((4,), 0.2)), x, advkit.margin(Y), steps=5, step_size=torch.full((4,), 0.1)
    )
    assert torch.equal(x, X) and not x.requires_grad
    assert 0.1 < float((found.x_adv - X).flatten(1).norm(dim=1).max()) < 0.2001


@pytest.mark.parametrize(("broken", "finite"), [(0, False), (2, False), (3, True)])
def test_a_move_that_is_nan_is_told_in_the_last_step_too(broken: int, finite: bool) -> None:
    def transform(*, move: torch.Tensor, step: int, **_: Any) -> torch.Tensor:
        return move * torch.nan if step == broken else move

    found = advkit.pgd(Net(), LinfBall(X, 0.2), X, advkit.margin(Y), steps=3, step_size=0.1, transform=transform)
    assert bool(found.finite) == finite == bool(found.x_adv.isfinite().all())


class Enough(Exception):
    """Of somebody's own."""


class Unmarked(Enough):
    """One that takes no notes."""

    __notes__ = property(lambda self: ())  # type: ignore[assignment]

    def add_note(self, note: str) -> None:
        raise TypeError


def test_a_group_of_exceptions_is_what_one_in_it_is() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        raise ExceptionGroup("of workers", [ValueError("early"), ExceptionGroup("again", [raised("now")])])

    raised: type[Exception] = Enough
    with pytest.raises(ExceptionGroup, match="of workers") as error:
        fitted(Net(forward))
    assert blames(error.value)[0].startswith("the model raised it, on images (")
    raised = KeyError
    with pytest.raises(OptionError, match="of workers"):
        fitted(Net(forward))


def fitted(net: nn.Module) -> None:
    advkit.train(net, (X, Y), epochs=1, eps=0.1, batch_size=4, settings={"attack.steps": 1, "validation.fraction": 0})


@pytest.mark.parametrize("kind", [Enough, Unmarked])
@pytest.mark.parametrize("run", [train, fitted, judge])
def test_an_exception_of_somebodys_own_stays_what_it_is(
    run: Callable[[nn.Module], None], kind: type[Exception]
) -> None:
    """In whichever forward: who wrote it may wait for it around a run. The control: a KeyError is one sentence."""
    calls, last, raised = 0, 0, kind

    def forward(net: Any, x: Tensor) -> Any:
        nonlocal calls
        calls += 1
        if calls == last:
            raise raised("now")
        return net.core(x)

    run(Net(forward))
    for last in (*range(1, min(calls, 12)), calls):  # noqa: B007  # the forward reads it
        calls = 0
        with pytest.raises(kind, match="now") as error:
            run(Net(forward))
        assert blames(error.value)[0].startswith("the model raised it, on images (")
    calls, last, raised = 0, 1, KeyError
    with pytest.raises(OptionError, match="now"):
        run(Net(forward))


class Leaves(SystemExit):
    """Of somebody's own, who waits for it around a run."""


class Done(StopIteration):
    """Which no generator lets pass."""


@dataclass(frozen=True)
class Fixed(Exception):
    """In which nothing can be noted, as contextlib does."""

    why: str = "now"


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError


class Demanding(Exception):
    def __init__(self, text: str = "", *, why: str) -> None:
        super().__init__(why)


class Odd(Plugin):
    name = "odd"

    @hookimpl
    def after_update(self) -> None:
        raising()


def raising(*given: Any) -> Any:
    raise KIND[0]


KIND: list[BaseException] = []
ODD: dict[str, Callable[[], BaseException]] = {
    "an end of the program": lambda: Leaves("now"),
    "an end of a generator": lambda: Done("now"),
    "a frozen dataclass": Fixed,
    "one without a text": Mute,
    "one that needs arguments": lambda: Demanding(why="now"),
}


@pytest.mark.parametrize("place", ["forward", "later forward", "judged", "data", "hook"])
@pytest.mark.parametrize("kind", ODD)
def test_an_exception_of_any_class_passes_and_says_whose_it_is(
    kind: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEP 479: a StopIteration would end the generators that it passes, so it is another error's cause."""
    raised, calls = ODD[kind](), iter(range(99))
    monkeypatch.setattr(sys.modules[__name__], "KIND", [raised])
    images = torch.utils.data.TensorDataset(X, Y)
    images.__class__ = type("Own", (type(images),), {"__getitem__": raising} if place == "data" else {})
    after = {"forward": 0, "judged": 0, "later forward": 4}.get(place, 99)
    net = Net(lambda net, x: raising() if next(calls) >= after else net.core(x))
    settings = {"attack.steps": 1, "validation.fraction": 0}
    use = partial(advkit.train, net, images, [Odd], epochs=1, eps=0.1, batch_size=2, settings=settings)
    with pytest.raises(RuntimeError if isinstance(raised, Done) else type(raised)) as error:
        judge(net) if place == "judged" else use()
    whose = {"data": "the data set Own raised it", "hook": "in plugin odd, hook after_update, epoch 1, step 1"}
    assert blames(error.value)[0].startswith(whose.get(place, "the model raised it, on images ("))
    assert isinstance(error.value.__cause__, Done) or error.value is raised


@pytest.mark.parametrize("method", ["train", "state_dict", "load_state_dict", "__getitem__"])
@pytest.mark.parametrize("kind", [Enough, KeyError])
def test_so_does_one_of_its_other_methods_and_of_a_data_set(method: str, kind: type[Exception], tmp_path: Path) -> None:
    def raising(*given: Any, **named: Any) -> Any:
        raise kind("now")

    net, data = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.utils.data.TensorDataset(X, Y)
    given, begin = (data, None) if method == "__getitem__" else (net, tmp_path / "weights.pt")
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    given.__class__ = type("Own", (type(given),), {method: raising})
    with pytest.raises(Enough if kind is Enough else AdvkitError, match="now") as error:
        advkit.train(net, data, epochs=1, eps=0.1, settings={"attack.steps": 1}, init_from=begin)
    assert len(blames(error.value)) == (kind is Enough)
