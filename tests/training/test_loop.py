"""The loop: its samplers, what it validates and keeps as `best`, and averages of the weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from heard import StopAfter
from torch import Tensor, nn

import advkit
from advkit import Dataset, Plugin, Run, Splits, hookimpl
from advkit.errors import HookContract, Interrupted, OptionError, Stopped, shown
from advkit.storage import checkpoint
from advkit.training.progress import Silent
from advkit.training.ranks import urgency

Net = Callable[..., nn.Sequential]


def bits(net: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in net.state_dict().items()}


def pictures(count: int, seed: int = 0) -> Dataset:
    drawn = torch.randint(0, 256, (count, 2, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Dataset("toy", drawn, torch.arange(count) % 3, ("a", "b", "c"))


SPLITS = Splits(pictures(40), pictures(20, seed=1), "none")


@pytest.fixture
def train(tiny_net: Net) -> Callable[..., Any]:
    """A run on forty pictures, ten of them held out: four steps an epoch."""

    def train(plugins: Any = (), net: nn.Module | None = None, **arguments: Any) -> Any:
        settings = {"attack.steps": 1, "validation.steps": 1, "validation.fraction": 0.25}
        arguments = {"epochs": 3, "batch_size": 8, "eps": 0.1, "settings": settings, **arguments}
        return advkit.train(tiny_net() if net is None else net, SPLITS, plugins, **arguments)

    return train


class Asked(Silent):
    """Says what it is told to when it is asked whether to stop."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def stop_requested(self) -> Any:
        return self.answer


class Own(Interrupted):
    """A way to stop of a script's own."""


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("answer", [True, 0, "stop", KeyboardInterrupt, ValueError("x"), Interrupted("x")])
def test_a_progress_says_how_to_stop_by_a_class(answer: Any, kept: bool, train: Any, tmp_path: Path) -> None:
    said = f"stop_requested of the run's progress returned {shown(answer)}; return None to go on, and advkit.errors"
    with pytest.raises(HookContract, match=f"^{re.escape(said)}"):
        train(progress=Asked(answer), epochs=1, out=tmp_path / "run" if kept else None)


def test_a_progress_may_stop_in_a_way_of_its_own(train: Any) -> None:
    assert len(train(progress=Asked(False), epochs=1).history) == 1
    with pytest.raises(Own):
        train(progress=Asked(Own))
    assert [urgency(request) for request in (None, Stopped, type("Mine", (Stopped,), {}), Interrupted, Own)] == [
        *(0, 1, 1, 2, 2)
    ]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"progress": Silent()}, "progress must be a function of 0 arguments, not a Silent."),
        ({"progress": lambda trainer: Silent()}, "progress must be a function of 0 arguments, not a function."),
        ({"tell": lambda: None}, "tell must be a function of 1 argument or None, not a function."),
    ],
)
def test_functions_that_take_other_arguments(given: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=f"^{re.escape(sentence)}$"):
        advkit.ablate("awp", out=tmp_path, **given)


def test_the_class_of_a_progress_is_none(train: Any, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"^progress must be an advkit\.Progress or None, not the class Silent\.$"):
        train(progress=Silent)
    made = r"^progress made the class Silent; let it make an advkit\.Progress for each run"
    with pytest.raises(OptionError, match=made):
        advkit.ablate("awp", out=tmp_path, settings={"data.limit": 40}, progress=lambda: Silent)


class Noisy(nn.Module):
    """Draws in eval mode too."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + 0.5 * torch.randn_like(x))


def test_a_run_of_a_model_that_draws_is_the_same_whatever_the_global_seed(tiny_net: Net, train: Any) -> None:
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        runs.append(train(net=Noisy(tiny_net()), epochs=1))
        assert torch.equal(torch.get_rng_state(), before)
    assert bits(runs[0].model) == bits(runs[1].model)
    assert runs[0].history[0]["validation"] == runs[1].history[0]["validation"]


class Rolling(Plugin):
    """Orders an epoch by `run.epoch`."""

    name = "rolling"
    seen: ClassVar[list[tuple[int, int]]] = []

    @hookimpl
    def train_sampler(self, indices: Tensor, batch_size: int, epoch: int, run: Run) -> Sequence[Tensor]:
        self.seen.append((epoch, run.epoch))
        return indices.roll(5 * run.epoch).split(batch_size)


def test_a_sampler_sees_the_epoch_and_resumes_exactly(train: Any, tmp_path: Path) -> None:
    Rolling.seen.clear()
    whole = train([Rolling])
    assert Rolling.seen == [(0, 0), (1, 1), (2, 2)]
    with pytest.raises(Stopped):
        train([Rolling], out=tmp_path / "run", progress=StopAfter(6))  # in the middle of epoch 1
    Rolling.seen.clear()
    resumed = train([Rolling], resume_from=tmp_path / "run")
    assert Rolling.seen == [(1, 1), (2, 2)]
    assert bits(resumed.model) == bits(whole.model)


@pytest.mark.parametrize(
    "batches",
    [lambda indices: [torch.arange(40)], lambda indices: [[0, 1]], lambda indices: [indices.int()]],
    ids=["held-out", "lists", "int32"],
)
def test_a_sampler_may_only_draw_from_what_it_is_given(train: Any, batches: Any) -> None:
    sampler = hookimpl(lambda self, indices, batch_size, epoch: batches(indices))
    # pluggy reads argument names, so a lambda is as good as a method.
    sampling = type("Sampling", (Plugin,), {"name": "sampling", "train_sampler": sampler})
    with pytest.raises(HookContract, match="sampling broke the contract of train_sampler: every batch"):
        train([sampling])


class Zeros(Plugin):
    """Evaluates zeros in epoch 0, and the model's own weights afterwards."""

    name = "zeros"

    def active(self, hook: str, epoch: int) -> bool:
        return epoch == 0

    @hookimpl
    def evaluation_weights(self, model: nn.Module) -> Mapping[str, Tensor]:
        return {name: torch.zeros_like(p) for name, p in model.named_parameters()}


def test_best_holds_the_weights_that_were_validated(train: Any, tmp_path: Path, tiny_net: Net) -> None:
    result = train([Zeros], epochs=1, out=tmp_path / "run")
    stored, _ = checkpoint.load(checkpoint.resolve(tmp_path / "run" / "checkpoints", "best"))
    evaluated = {name: value for name, value in stored.items() if name.startswith("evaluated/")}
    assert len(evaluated) == len(list(result.model.parameters()))
    assert not any(bool(value.any()) for value in evaluated.values())
    assert all(bool(p.any()) for p in result.model.parameters())
    net = tiny_net()
    advkit.load_weights(net, tmp_path / "run")
    assert not any(bool(p.any()) for p in net.parameters())


def test_load_weights_puts_the_runs_weights_into_a_model(train: Any, tmp_path: Path, tiny_net: Net) -> None:
    result = train(epochs=1, out=tmp_path / "run")
    net = tiny_net()
    assert bits(net) != bits(result.model)
    advkit.load_weights(net, tmp_path / "run", "last")
    assert bits(net) == bits(result.model)
    inner = tiny_net()
    advkit.load_weights(nn.DataParallel(inner), tmp_path / "run", "last")
    assert bits(inner) == bits(result.model)
    averaged = torch.optim.swa_utils.AveragedModel(nn.DataParallel(tiny_net()))
    averaged.n_averaged += 3
    advkit.load_weights(averaged, tmp_path / "run", "last")
    assert bits(averaged.module.module) == bits(result.model) and averaged.n_averaged == 3
    with pytest.raises(advkit.AdvkitError):
        advkit.load_weights(nn.Linear(2, 2), tmp_path / "run")


class Ema(Plugin):
    """The average is claimed where the model is known, and evaluated."""

    name = "ema"

    @hookimpl
    def setup(self, model: nn.Module, run: Run) -> None:
        self.average = {name: run.tensor_state(name, p) for name, p in model.named_parameters()}

    @hookimpl
    def after_update(self, model: nn.Module) -> None:
        for name, p in model.named_parameters():
            self.average[name].lerp_(p.detach(), 0.2)

    @hookimpl
    def evaluation_weights(self) -> Mapping[str, Tensor]:
        return self.average


def test_an_average_of_the_weights_stops_and_resumes_exactly(train: Any, tmp_path: Path) -> None:
    whole = train([Ema], out=tmp_path / "whole")
    with pytest.raises(Stopped):
        train([Ema], out=tmp_path / "part", progress=StopAfter(6))
    resumed = train([Ema], resume_from=tmp_path / "part")
    assert bits(resumed.model) == bits(whole.model)
    last = [checkpoint.load(checkpoint.resolve(tmp_path / run / "checkpoints", "last"))[0] for run in ("whole", "part")]
    averages = [name for name in last[0] if name.startswith(("tensors/ema/", "evaluated/"))]
    assert len(averages) == 2 * len(list(whole.model.parameters()))
    assert all(torch.equal(last[0][name], last[1][name]) for name in averages)
    assert not torch.equal(last[0]["evaluated/0.weight"], last[0]["model/0.weight"])
    assert [row["validation"] for row in resumed.history] == [row["validation"] for row in whole.history]


class Infinite(Plugin):
    """Per-sample state that is not finite, for all samples or for some."""

    name = "infinite"

    @hookimpl
    def setup(self, run: Run) -> None:
        run.sample_state("all", fill=float("inf"))
        run.sample_state("some", fill=2.0)[:20] = float("nan")


def test_state_that_is_not_finite_does_not_end_the_run(train: Any, tmp_path: Path) -> None:
    result = train([Infinite], epochs=1, out=tmp_path / "run")
    assert result.history[0]["state"] == {
        "infinite/all": {},
        "infinite/some": dict.fromkeys(("q00", "q25", "q50", "q75", "q100"), 2.0),
    }


def test_a_share_that_holds_no_image_out_is_said() -> None:
    settings = {"attack.steps": 1, "validation.fraction": 0.001, "data.limit": 40, "model.width": 2}
    with pytest.warns(UserWarning, match=r"^validation\.fraction = 0\.001 of 40 images is none: nothing is validated"):
        advkit.train(epochs=1, eps=0.1, settings=settings)


def test_images_held_out_while_others_choose_are_said() -> None:
    settings = {"attack.steps": 1, "validation.split": "test", "data.limit": 40, "model.width": 2}
    with pytest.warns(UserWarning, match=r"^validation\.fraction = 0\.1 holds 4 of 40 training images out, and valid"):
        advkit.train(epochs=1, eps=0.1, settings=settings)
