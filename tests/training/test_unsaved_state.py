"""State of a net that no checkpoint holds is refused or told of, before a resume would go on without it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from heard import Heard, StopAfter
from torch import Tensor, nn

import advkit
from advkit import OptionError
from advkit.data.own import as_splits, as_wide_as
from advkit.errors import Stopped

Net = Callable[..., nn.Sequential]


class Around(nn.Module):
    """Subtracts a buffer that is in no state_dict, and moves it in training if told to."""

    def __init__(self, core: nn.Module, pace: float) -> None:
        super().__init__()
        self.core, self.pace = core, pace
        self.register_buffer("mean", torch.full((2, 1, 1), 0.25), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.pace:
            with torch.no_grad():
                self.mean.lerp_(x.mean((0, 2, 3)).view(2, 1, 1), self.pace)
        return self.core(x - self.mean)


class Extra(Around):
    """Has more state than tensors, or a tensor of it."""

    def __init__(self, core: nn.Module, state: Any) -> None:
        super().__init__(core, 0.0)
        self.more = state

    def get_extra_state(self) -> Any:
        return self.more

    def set_extra_state(self, state: Any) -> None:
        self.more = state


def trained(net: nn.Module, **arguments: Any) -> advkit.TrainResult:
    drawn = torch.randint(0, 256, (12, 2, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    toy = advkit.Dataset("toy", drawn, torch.arange(12) % 3, ("a", "b", "c"))
    settings = {"attack.steps": 1, "validation.fraction": 0.0}
    splits, plugins = advkit.Splits(toy, toy, "none"), arguments.pop("plugins", ())
    return advkit.train(net, splits, plugins, settings=settings, epochs=1, batch_size=4, eps=0.1, **arguments)


def test_a_buffer_that_moves_is_persistent(tiny_net: Net, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"The model's buffer mean moves in training, but .* persistent=False"):
        trained(Around(tiny_net(), 0.1), out=tmp_path / "moving")
    trained(Around(tiny_net(), 0.1))  # nothing is to be saved
    trained(Around(tiny_net(), 0.0), out=tmp_path / "constant")


def test_extra_state_is_tensors(tiny_net: Net, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="_extra_state of the model's state_dict is a dict, which no checkpoint"):
        trained(Extra(tiny_net(), {"count": 3}), out=tmp_path / "dict")
    assert not (tmp_path / "dict").exists()
    trained(Extra(tiny_net(), {"count": 3}))
    trained(Extra(tiny_net(), torch.tensor(3)), out=tmp_path / "tensor")
    fresh = Extra(tiny_net(), torch.tensor(0))
    advkit.load_weights(fresh, tmp_path / "tensor", "last")
    assert fresh.more == 3


# ---------------------------------------------------------------------- what is no buffer


class Remembers(nn.Module):
    """Its logits depend on what it keeps; `moves` changes that in every training forward."""

    def __init__(self, kept: Any, moves: Callable[[Any, Tensor], None], reads: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.core = nn.Sequential(nn.Flatten(), nn.Linear(32, 3))
        self.kept, self.moves, self.reads = kept, moves, reads

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.moves(self, x)
        return self.core(x) * (1 + self.reads(self, x))


def rebinds(net: Any, x: Tensor) -> None:
    net.kept = 0.9 * net.kept + 0.1 * x.detach().mean()


def counts(net: Any, x: Tensor) -> None:
    net.kept += 1


def counts_inside(net: Any, x: Tensor) -> None:
    net.kept["calls"][0] += 1


def counts_in_an_object(net: Any, x: Tensor) -> None:
    net.kept.calls += 1


def stays(net: Any, x: Tensor) -> None: ...


REMEMBERS: dict[str, tuple[Callable[[], Any], Callable[..., None], Callable[..., Any]]] = {
    "a tensor that is bound anew": (lambda: torch.zeros(()), rebinds, lambda net, x: net.kept),
    "a tensor that is written into": (
        lambda: torch.zeros(()),
        lambda net, x: net.kept.add_(1),
        lambda net, x: net.kept,
    ),
    "a number": (lambda: 0, counts, lambda net, x: 0.1 * net.kept),
    "a number in a dict": (lambda: {"calls": [0]}, counts_inside, lambda net, x: 0.1 * net.kept["calls"][0]),
    "a number in an object": (
        lambda: SimpleNamespace(calls=0),
        counts_in_an_object,
        lambda net, x: 0.1 * net.kept.calls,
    ),
    "a generator of torch": (
        lambda: torch.Generator().manual_seed(1),
        stays,
        lambda net, x: torch.rand((), generator=net.kept),
    ),
    "a generator of numpy": (lambda: np.random.default_rng(1), stays, lambda net, x: float(net.kept.random())),
    "a generator of Python": (lambda: random.Random(1), stays, lambda net, x: net.kept.random()),
}


@pytest.mark.parametrize("name", REMEMBERS)
def test_what_no_state_dict_holds_is_told_of_once(name: str, tmp_path: Path) -> None:
    build, moves, reads = REMEMBERS[name]
    heard = Heard()
    trained(Remembers(build(), moves, reads), out=tmp_path / "run", progress=heard)
    (said,) = heard.said
    assert said.startswith("The model's logits depend on what it has seen before (kept") and "register_buffer" in said
    assert "this look has moved it" not in said


def in_a_closure() -> nn.Module:
    kept: list[Tensor] = []

    class Closing(Remembers):
        def forward(self, x: Tensor) -> Tensor:
            if not kept:
                kept.append(x.detach().mean())
            return self.core(x - kept[0])

    return Closing(None, stays, stays)


def in_its_class() -> nn.Module:
    class Sharing(Remembers):
        means: dict[str, Tensor] = {}

        def forward(self, x: Tensor) -> Tensor:
            return self.core(x - self.means.setdefault("first", x.detach().mean()))

    return Sharing(None, stays, stays)


@pytest.mark.parametrize(("build", "where"), [(in_a_closure, "forward"), (in_its_class, "means.first")])
def test_what_is_kept_once_beside_the_net_is_told_of(build: Callable[[], nn.Module], where: str) -> None:
    """Called twice it answers alike; after another first batch it would not."""
    heard, x = Heard(), torch.rand(12, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    net = build()
    step = advkit.Step(net, torch.optim.SGD(net.parameters(), 0.1), num_samples=12, settings={"attack.steps": 1})
    step.warn = heard.warn
    step(x, torch.arange(12) % 3, torch.arange(12), epoch=0)
    assert f"what it has seen before ({where})" in heard.said[0]


def test_a_resume_is_told_again(tmp_path: Path) -> None:
    heard = Heard()
    with pytest.raises(Stopped):
        trained(Remembers(0, counts, lambda net, x: 0.1 * net.kept), out=tmp_path / "run", progress=StopAfter(1))
    net = Remembers(0, counts, lambda net, x: 0.1 * net.kept)
    trained(net, resume_from=tmp_path / "run", progress=heard)
    assert [said for said in heard.said if said.startswith("The model's logits depend on what it has seen")]


def test_what_is_in_no_attribute_is_seen_by_calling_twice() -> None:
    numbers, heard = iter(range(10**6)), Heard()
    trained(Remembers(None, stays, lambda net, x: 0.1 * next(numbers)), progress=heard)
    assert heard.said[0].startswith("The model's logits depend on what it has seen before, and no state_dict")
    assert "as an iterator can not, so this look has moved it" in heard.said[0]


def test_what_decides_nothing_is_no_matter() -> None:
    """Many nets keep their features, or count their calls; and what is kept later than it matters is told then."""
    heard = Heard()
    for moves in (rebinds, counts):
        trained(Remembers(torch.zeros(()), moves, lambda net, x: 0), progress=heard)
    assert not heard.said
    net = Remembers(0, counts, lambda net, x: float(net.kept > 2))
    step = advkit.Step(net, torch.optim.SGD(net.parameters(), 0.1), num_samples=4, settings={"attack.steps": 1})
    step(torch.rand(4, 2, 4, 4), torch.arange(4) % 3, torch.arange(4), epoch=0)
    assert not step.care.memory.caution()
    for _ in range(4):
        step(torch.rand(4, 2, 4, 4), torch.arange(4) % 3, torch.arange(4), epoch=0)
    kept = net.kept
    assert "(kept)" in step.care.memory.caution() and net.kept == kept and not step.care.memory.caution()


def test_a_net_is_as_it_was_after_the_look() -> None:
    """Bit for bit: twins, of which one is looked at more often, train alike."""
    weights = []
    for looks in (0, 3):
        net = Remembers(torch.Generator().manual_seed(1), stays, lambda net, x: torch.rand((), generator=net.kept))
        step = advkit.Step(net, torch.optim.SGD(net.parameters(), 0.1), num_samples=4, settings={"attack.steps": 1})
        step.warn = lambda sentence: None
        for k in range(3):
            x = torch.rand(4, 2, 4, 4, generator=torch.Generator().manual_seed(k))
            step(x, torch.arange(4) % 3, torch.arange(4), epoch=k)
            for _ in range(looks):
                step.care.memory._said = False
                assert step.care.memory.caution()
        weights.append([p.detach() for p in net.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


# ---------------------------------------------------------------------- what a look must not write


class Aliased(nn.Module):
    """Keeps its weights by another name, as one does to log them; `keep` says how."""

    def __init__(self, keep: Callable[[Tensor], Any]) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.core = nn.Linear(32, 3)
        self.kept = keep(self.core.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.core(x.flatten(1))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "keep", [lambda w: w.data, lambda w: {"first": [w.detach()[0]]}, lambda w: w.detach().numpy()[1:]]
)
def test_a_weight_by_another_name_is_the_weight(keep: Callable[[Tensor], Any], tmp_path: Path) -> None:
    """No memory of its own, and no way past a perturbation while the forward does not read it."""
    heard = Heard()
    kept = trained(Aliased(keep), plugins=("awp",), out=tmp_path / "run", progress=heard)
    plain = trained(Aliased(lambda w: None), plugins=("awp",), progress=Heard())
    assert not heard.said and torch.equal(kept.model.core.weight, plain.model.core.weight)  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore:.*spectral_norm:FutureWarning")
def test_spectral_norm_by_hooks_trains_to_the_same_weights_with_a_folder(tmp_path: Path) -> None:
    """Its `weight` is that of `weight_orig` until the first forward binds another."""

    def normed() -> nn.Module:
        net = Aliased(lambda w: None)
        nn.utils.spectral_norm(net.core)
        return net

    with torch.random.fork_rng():
        torch.manual_seed(0)
        one = normed()
        torch.manual_seed(0)
        other = normed()
    heard = Heard()
    trained(one, out=tmp_path / "run", progress=heard)
    trained(other)
    assert not heard.said
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


class ActNorm(nn.Module):
    """Initialises itself by the first batch (Kingma & Dhariwal 2018), and knows it by a number or a buffer."""

    def __init__(self, buffer: bool, always: bool) -> None:
        super().__init__()
        self.bias, self.always = nn.Parameter(torch.zeros(32)), always
        if buffer:
            self.register_buffer("done", torch.tensor(0))
        else:
            self.done: Any = 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.done and (self.training or self.always):
            self.bias.data.copy_(-x.detach().mean(0))
            self.done += 1
        return x + self.bias


@pytest.mark.parametrize("buffer", [False, True])
@pytest.mark.parametrize("always", [False, True])
def test_what_the_first_batch_initialises_it_initialises_once(buffer: bool, always: bool) -> None:
    """By the batch that is trained on; by no look at one image, by none at what the net remembers."""
    actnorm = ActNorm(buffer, always)
    net = nn.Sequential(nn.Flatten(), actnorm, nn.Linear(32, 3))
    step = advkit.Step(net, torch.optim.SGD(net.parameters(), 0.0), num_samples=6, settings={"attack.steps": 0})
    step.warn = lambda sentence: None
    report = step(torch.rand(6, 2, 4, 4), torch.arange(6) % 3, torch.arange(6), epoch=0)
    assert torch.equal(actnorm.bias, -report.x_train.flatten(1).mean(0)) and actnorm.done == 1


def test_the_width_of_a_net_is_asked_without_a_trace() -> None:
    net = nn.Sequential(nn.Flatten(), ActNorm(buffer=False, always=True), nn.Linear(32, 5))
    images = torch.randint(0, 256, (4, 2, 4, 4), dtype=torch.uint8)
    splits = as_wide_as(as_splits((images, torch.tensor([0, 1, 2, 0]))), net)
    assert len(splits.test.classes) == 5 and not net[1].done and not net[1].bias.any()


class Registers(nn.Module):
    """Registers what it needs in its first forward, of training or of any mode."""

    def __init__(self, register: Callable[[nn.Module], None], training: bool) -> None:
        super().__init__()
        self.core, self.register, self.late = nn.Sequential(nn.Flatten(), nn.Linear(32, 3)), register, training

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "mean") and (self.training or not self.late):
            self.register(self)
        return self.core(x - self.mean) if hasattr(self, "mean") else self.core(x)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "register",
    [
        lambda net: net.register_buffer("mean", torch.zeros(2, 1, 1)),
        lambda net: net.register_buffer("mean", torch.zeros(2, 1, 1), persistent=False),
        lambda net: net.register_parameter("mean", nn.Parameter(torch.zeros(2, 1, 1))),
    ],
)
def test_what_a_forward_registers_is_refused(register: Any, training: bool) -> None:
    net = Registers(register, training)
    with pytest.raises(OptionError, match="The model registers mean in a forward, where no optimizer and no resumed"):
        trained(net)
    built = Registers(register, training)
    built(torch.rand(2, 2, 4, 4))
    trained(built)


class Centred(nn.Module):
    """Subtracts a running mean that is a buffer, bound anew in training; in evaluation too, if `always`."""

    def __init__(self, core: nn.Module, always: bool = False) -> None:
        super().__init__()
        self.core, self.always = core, always
        self.register_buffer("mean", torch.full((2, 1, 1), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.always:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 2, 3)).view(2, 1, 1)
        logits: Tensor = self.core(x - self.mean)
        return logits


@pytest.mark.filterwarnings("error")
def test_a_buffer_may_be_bound_anew(tiny_net: Net, tmp_path: Path) -> None:
    heard = Heard()
    trained(Centred(tiny_net()), out=tmp_path / "run", progress=heard)
    assert not heard.said
    fresh = Centred(tiny_net())
    advkit.load_weights(fresh, tmp_path / "run", "last")
    assert not fresh.mean.eq(0.25).any()


def test_a_buffer_that_moves_in_the_attack_is_told_as_such(tiny_net: Net) -> None:
    with pytest.raises(OptionError, match=r"^mean moved in the attack, where nothing may: the model writes to it"):
        trained(Centred(tiny_net(), always=True))
