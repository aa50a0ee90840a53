"""Nets that are no function of an image in float32: half precision inside is refused, what moves is said."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import advkit
from advkit import Dataset, OptionError, load_data
from advkit.errors import Caution
from advkit.evaluation.attacks import Square
from advkit.evaluation.soundness import BY_BATCH, BY_CALL, BY_DRAW, doubt
from advkit.studies.analysis.margin import margins
from advkit.studies.analysis.perturb import Ascent


class Wrapped(nn.Module):
    """A net whose forward is `call`, of the net within and the images."""

    def __init__(self, core: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.core, self.call = core, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.core, x)


def cast(dtype: torch.dtype) -> Callable[[nn.Module, Tensor], Tensor]:
    def call(core: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=dtype):
            logits: Tensor = core(x).float()
        return logits

    return call


def rounded(core: nn.Module, x: Tensor) -> Tensor:
    logits: Tensor = core(x.half().float())
    return logits


HALVES = {
    "float16": (cast(torch.float16), r"float16 in aten\._to_copy"),
    "bfloat16": (cast(torch.bfloat16), r"bfloat16 in aten\._to_copy"),
    "cast images": (rounded, r"float16 in aten\._to_copy"),
}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data("digits", limit=60).test


@pytest.fixture(scope="module")
def sure(digits: Dataset) -> nn.Module:
    """A confident net: in half precision its input gradients are 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    x, y = digits.images / 255, digits.labels
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        net[3].weight.mul_(4), net[3].bias.mul_(4)
    return net


@pytest.mark.parametrize("case", HALVES)
def test_half_precision_inside_a_net_is_refused_by_all_who_judge(case: str, sure: nn.Module, digits: Dataset) -> None:
    call, where = HALVES[case]
    model = Wrapped(sure, call)
    sentence = (
        rf"^The model computes in half precision inside its forward \({where}\); small input gradients round to 0 "
        r"there, and no attack moves\. Take autocast and casts to half precision out of its forward\.$"
    )
    with pytest.raises(OptionError, match=sentence):
        advkit.evaluate(model, digits, "clean", eps=0.1, audit=False)
    with pytest.raises(OptionError, match=sentence):
        advkit.audit(model, digits, eps=0.1)
    with pytest.raises(OptionError, match=sentence):
        margins(model, digits, Ascent(0.1, 2))
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_an_autocast_around_an_evaluation_is_none_in_it(sure: nn.Module, digits: Dataset) -> None:
    truth = advkit.evaluate(sure, digits, "clean,pgd-5", eps=0.1, audit=False)["robust"]
    with torch.autocast("cpu", dtype=torch.float16):
        assert advkit.evaluate(sure, digits, "clean,pgd-5", eps=0.1, audit=False)["robust"] == truth
        assert torch.is_autocast_enabled("cpu")
    assert sum(truth["pgd-5"]) < sum(truth["clean"])


class Follows(nn.Module):
    """Subtracts a mean of what it has seen, which it moves in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.linear = nn.Linear(64, 10)
        self.register_buffer("mean", torch.zeros(64))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        self.mean.mul_(0.5).add_(0.5 * x.detach().mean(0))
        logits: Tensor = self.linear(4 * (x - self.mean))
        return logits


class Rebinds(Follows):
    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.99 * self.mean + 0.01 * x.detach().flatten(1).mean(0)
        logits: Tensor = self.linear(x.flatten(1) - self.mean)
        return logits


def by_turns(period: int) -> Callable[[nn.Module, Tensor], Tensor]:
    calls = 0

    def call(core: nn.Module, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        logits: Tensor = core(x)
        return logits if calls // period % 2 else -logits

    return call


def noisy(core: nn.Module, x: Tensor) -> Tensor:
    logits: Tensor = core(x + torch.from_numpy(np.random.normal(0, 0.2, x.shape)).float())  # noqa: NPY002
    return logits


def test_a_net_that_moves_its_buffers_is_told_and_gets_them_back(digits: Dataset) -> None:
    for model in (Follows(), Rebinds()):
        before = copy.deepcopy(model.state_dict())
        results = [advkit.evaluate(model, digits, "clean,pgd-2", eps=0.05, audit=False) for _ in range(2)]
        for row in results[0]["attacks"]:
            assert f"{BY_CALL} (it moves mean in eval mode)" in row["notes"]
        assert results[0]["robust"] == results[1]["robust"]
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("call", [by_turns(1), by_turns(2), by_turns(3), noisy])
def test_a_net_that_answers_by_turns_is_not_blamed_on_the_batch(
    call: Callable[[nn.Module, Tensor], Tensor], sure: nn.Module, digits: Dataset
) -> None:
    notes = advkit.evaluate(Wrapped(sure, call), digits, "clean", eps=0.05, audit=False)["attacks"][0]["notes"]
    assert BY_CALL in notes and BY_BATCH not in notes


def dropping(core: nn.Module, x: Tensor) -> Tensor:
    logits: Tensor = core(F.dropout(x, 0.3, training=True))
    return logits


def test_what_is_computed_of_a_net_that_draws_says_so(sure: nn.Module, digits: Dataset) -> None:
    said = BY_DRAW.replace("verdicts", "figures")
    with pytest.warns(Caution, match=said):
        margins(Wrapped(sure, dropping), digits.take(slice(8)), Ascent(eps=0.05, steps=1), cap=1.0)
    x = digits.images / 255
    assert doubt(Wrapped(sure, dropping), x, "figures") == said and not doubt(sure, x, "figures")  # labels ask this too


def scripted(net: nn.Module) -> nn.Module:
    return torch.jit.script(net)  # type: ignore[no-any-return]


def frozen(net: nn.Module) -> nn.Module:
    return torch.jit.freeze(torch.jit.script(net))  # type: ignore[no-any-return]


def frozen_inside(net: nn.Module) -> nn.Module:
    return nn.Sequential(frozen(net))


def traced(net: nn.Module) -> nn.Module:
    return torch.jit.trace(net, torch.zeros(2, 1, 8, 8))  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("made", [scripted, traced, frozen, frozen_inside])
def test_nets_of_torchs_compiler_are_judged_as_any(made: Callable[[nn.Module], nn.Module], digits: Dataset) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).eval()
    attacks = ("clean", "pgd-3", Square(queries=50))
    truth = advkit.evaluate(net, digits, attacks, eps=0.1, audit=False)["robust"]
    assert advkit.evaluate(made(net), digits, attacks, eps=0.1, audit=False)["robust"] == truth


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_half_precision_is_seen_in_a_scripted_net(digits: Dataset) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.half().float().flatten(1))  # type: ignore[no-any-return]

    with pytest.raises(OptionError, match=r"computes in half precision inside its forward \(float16 in aten"):
        advkit.evaluate(scripted(Half()), digits, "clean", eps=0.1, audit=False)
