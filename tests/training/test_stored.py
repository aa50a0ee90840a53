"""A net that is trained has all of it in its state_dict(), and takes that back: else it is refused before a step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import advkit
from advkit import CheckpointError, OptionError, Step
from advkit.studies.export import _copy

DRAWN = torch.randint(0, 256, (8, 1, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
DATA = advkit.Dataset("own", DRAWN, torch.arange(8) % 2, ("a", "b"))
BOTH = advkit.Splits(DATA, DATA, "none")
HOW: dict[str, Any] = {"epochs": 1, "batch_size": 4, "eps": 0.1}
SETTINGS: dict[str, Any] = {"attack.steps": 1, "validation.fraction": 0.0}


def core() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


class Stores(nn.Module):
    """Gives and takes what it is told to of its state."""

    def __init__(self, gives: Callable[[Any], Any] = dict, takes: Callable[[Any], Any] = dict) -> None:
        super().__init__()
        self.net, self.gives, self.takes = core(), gives, takes

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.gives(super().state_dict(*args, **kwargs))

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(self.takes(state_dict), strict=strict)


class Lenient(Stores):
    """Takes what there is."""

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state_dict, strict=False)


class Simple(Stores):
    """Takes all, and knows no other argument."""

    def load_state_dict(self, state_dict: Any) -> Any:  # type: ignore[override]
        return super().load_state_dict(state_dict)


def without(word: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {name: value for name, value in state.items() if word not in name}


def renamed(old: str, new: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {new + name.removeprefix(old): value for name, value in state.items()}


def each(how: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {name: how(value) for name, value in state.items()}


def frozen(net: Stores) -> Stores:
    net.net[1].requires_grad_(False)
    return net


LEFT = r"state_dict\(\) leaves out net\.1\.weight, .*; let it give all parameters, trained or not"
NOT_TAKEN = r"load_state_dict\(\) does not take what its state_dict\(\) gives"
UNSTORED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "trained": (lambda: Lenient(without("net.1")), LEFT),
    "frozen": (lambda: frozen(Lenient(without("net.1"))), LEFT),
    "rounded": (lambda: Stores(each(Tensor.half)), r"gives net\.1\.weight in float16"),
    "other": (lambda: Stores(each(lambda value: value + 1)), "gives net.1.weight with other values"),
    "statistics": (lambda: Stores(without("running")), NOT_TAKEN + r", so .*Missing key.*running_mean"),
    "more": (lambda: Stores(lambda state: {**state, "more": torch.ones(1)}), NOT_TAKEN + r", so .*Unexpected key"),
    "some loaded": (
        lambda: Lenient(takes=without("net.3")),
        NOT_TAKEN + r", so .*net\.3\.weight is not what was given",
    ),
    "no statistics": (lambda: Lenient(takes=without("running")), r"net\.2\.running_mean is not what was given"),
    "half loaded": (lambda: Stores(takes=each(Tensor.half)), r"net\.\d\.\w+ is not what was given"),
    "renamed": (lambda: Stores(renamed("", "module.")), NOT_TAKEN + r", net\.1\.weight as module\.net\.1\.weight,"),
    "renamed copies": (
        lambda: Stores(lambda state: renamed("", "module.")(each(torch.clone)(state))),
        r"gives module\.net\.1\.weight in place of net\.1\.weight, a copy by another name",
    ),
    "renamed and rounded": (
        lambda: Stores(lambda state: renamed("", "module.")(each(Tensor.half)(state))),
        r"gives module\.net\.1\.weight in place of",
    ),
    "not put": (lambda: Lenient(renamed("", "module.")), r"read \(net\.1\.weight is not what was given\); let"),
}


@pytest.mark.parametrize(("make", "said"), UNSTORED.values(), ids=[*UNSTORED])
def test_what_no_checkpoint_holds_is_refused_before_the_first_step(
    make: Callable[[], nn.Module], said: str, tmp_path: Path
) -> None:
    """But by a loop of one's own, which stores what it wants."""
    model = make()
    before = [value.clone() for value in (*model.parameters(), *model.buffers())]
    starts: list[Callable[[], object]] = [
        lambda: advkit.plan(model=model, dataset=BOTH, plugins=(), settings=SETTINGS, **HOW),
        lambda: advkit.train(model, BOTH, (), settings=SETTINGS, **HOW, out=tmp_path / "run"),
    ]
    for start in starts:
        with pytest.raises(OptionError, match=said):
            start()
    assert not (tmp_path / "run").exists()
    assert all(map(torch.equal, before, (*model.parameters(), *model.buffers())))
    Step(model, torch.optim.SGD(model.parameters(), 0.1), (), num_samples=8)


def test_a_net_that_knows_no_lenient_way_trains_and_is_averaged() -> None:
    """The control: as one that has torch's."""
    ours, torchs = (advkit.train(net, BOTH, "ema", settings=SETTINGS, **HOW) for net in (Simple(), Stores()))
    assert ours.averaged and all(torch.equal(value, torchs.averaged[name]) for name, value in ours.averaged.items())


def test_a_wrapper_may_give_what_it_wraps_under_the_names_of_that(tmp_path: Path) -> None:
    def wrapped() -> Stores:
        return Stores(renamed("net.", ""), renamed("", "net."))

    model = wrapped()
    advkit.train(model, BOTH, (), settings=SETTINGS, **HOW, out=tmp_path / "run")
    fresh, inner = wrapped(), core()
    for one in (fresh, inner):
        advkit.load_weights(one, tmp_path / "run", "last")
    for loaded in (fresh.net, inner):
        torch.testing.assert_close(loaded.state_dict(), model.net.state_dict(), rtol=0, atol=0)
    with pytest.raises(CheckpointError, match=r"its load_state_dict\(\) does not take them \(.*Missing key"):
        advkit.load_weights(Stores(renamed("net.", "")), tmp_path / "run", "last")
    for start in ({"resume_from": tmp_path / "run"}, {"init_from": tmp_path / "run", "settings": SETTINGS, **HOW}):
        with pytest.raises(OptionError, match=r"state_dict\(\) leaves out net\.1\.weight"):
            advkit.train(Stores(without("net.1")), BOTH, (), **start)


def test_a_buffer_that_moves_and_is_left_out_is_said_to_be_that(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"buffer net\.2\.running_mean moves .* state_dict\(\) leaves it out, so"):
        advkit.train(Lenient(without("running")), BOTH, (), settings=SETTINGS, **HOW, out=tmp_path / "run")


# ---------------------------------------------------------------------- what torch writes nothing into


def with_buffer(buffer: Tensor, **how: Any) -> nn.Sequential:
    made = core()
    made.register_buffer("mean", buffer, **how)
    return made


HALF = torch.tensor(0.5).expand(3, 1, 1)


def test_what_lies_on_itself_is_judged_and_not_loaded_into() -> None:
    how: dict[str, Any] = {"attacks": "clean,pgd-1", "eps": 0.1, "audit": False}
    found, same = (advkit.evaluate(with_buffer(mean), DATA, **how) for mean in (HALF, HALF.clone()))
    assert [row["accuracy"] for row in found["attacks"]] == [row["accuracy"] for row in same["attacks"]]
    weight = core()
    weight[3].weight = nn.Parameter(torch.zeros(1).expand(2, 3))
    for model, name in ((with_buffer(HALF), "mean"), (weight, r"3\.weight")):
        with pytest.raises(OptionError, match=rf"^{name} of the model is one number in several places .*\.clone\(\)"):
            advkit.train(model, BOTH, (), settings=SETTINGS, **HOW)
    with pytest.raises(OptionError, match=r"^3\.weight of the model is one number"):
        Step(weight, torch.optim.SGD(weight.parameters(), 0.1), (), num_samples=8)
    advkit.train(with_buffer(HALF, persistent=False), BOTH, (), settings=SETTINGS, **HOW)


@pytest.mark.parametrize("view", [lambda z: z.conj(), lambda z: z.conj().imag], ids=["conjugated", "negated"])
def test_what_conjugates_or_negates_is_stored_as_what_it_is(view: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    held = view(torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64))
    advkit.train(with_buffer(held), BOTH, (), settings=SETTINGS, **HOW, out=tmp_path / "run")
    fresh = with_buffer(view(torch.zeros(2, dtype=torch.complex64)))
    advkit.load_weights(fresh, tmp_path / "run", "last")
    assert torch.equal(fresh.mean, held) and fresh.mean.is_conj() == held.is_conj()
    assert torch.equal(_copy(held), held) and not _copy(held).is_conj() and not _copy(held).is_neg()
