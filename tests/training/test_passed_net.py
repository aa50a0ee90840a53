"""A net that was passed as an object is told from another whose weights have the same names and shapes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from heard import Heard, StopAfter
from torch import Tensor, nn

import advkit
from advkit.errors import ResumeMismatch, Stopped
from advkit.storage import checkpoint, schema
from advkit.training.passed_net import PassedNet
from advkit_plugins.hat import Hat

IMAGES = torch.rand(12, 1, 2, 2, generator=torch.Generator().manual_seed(0))
DATA = advkit.Dataset("own", (IMAGES * 255).to(torch.uint8), torch.arange(12) % 3, ("a", "b", "c"))
BOTH = advkit.Splits(DATA, DATA, "none")
HOW: dict[str, Any] = {"epochs": 2, "batch_size": 4, "eps": 0.1, "settings": {"attack.steps": 1, "run.threads": 1}}


class Hears(Heard):
    """Has a length, which is 0 at first, as of a list that watches."""

    def __len__(self) -> int:
        return len(self.said)


class Empty(nn.Sequential):
    """Has a length, of something else than its layers."""

    def __len__(self) -> int:
        return 0


class Scaled(nn.Module):
    """Of somebody's own class: with a plain attribute."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale, self.seen = scale, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return x * self.scale


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.1), nn.Linear(6, 3), Scaled()
        )


def changed(how: Callable[[Any], object]) -> nn.Sequential:
    made = net()
    how(made)
    return made


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("passed") / "run"
    with pytest.raises(Stopped):
        advkit.train(net(), BOTH, **HOW, out=folder, progress=StopAfter(2))
    return folder


def resumed(folder: Path, model: nn.Module, to: Path) -> list[str]:
    """What is said where a copy of the run goes on with that net."""
    heard = Hears()
    advkit.train(model, BOTH, resume_from=shutil.copytree(folder, to / "copy", symlinks=True), progress=heard)
    return heard.said


OTHERS: dict[str, tuple[Callable[[Any], object], str]] = {
    "gelu": (lambda net: net.__setitem__(3, nn.GELU()), "3 is nn.GELU(approximate='none'), and was nn.ReLU("),
    "dropout": (lambda net: setattr(net[4], "p", 0.5), "4 is nn.Dropout(p=0.5, inplace=False), and was nn.Dropout(p=0"),
    "momentum": (lambda net: setattr(net[2], "momentum", 0.9), "2 is nn.BatchNorm1d("),
    "frozen": (
        lambda net: net[1].requires_grad_(False),
        "1 is nn.Linear(in_features=4, out_features=6) with weight, bias frozen, and was",
    ),
    "held": (lambda net: net[2].eval(), "=True) in eval mode, and was nn.BatchNorm1d("),
    "scale": (lambda net: setattr(net[6], "scale", 0.5), "its logits of two images differ, by "),
    "hook": (lambda net: net.register_forward_pre_hook(lambda _, x: (1 - x[0],)), "its logits of two images differ"),
    "forward": (lambda net: setattr(net[1], "forward", lambda x: nn.Linear.forward(net[1], x) * 2), "its logits of"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_run_goes_on_with_its_own_net_alone(stopped: Path, tmp_path: Path, other: str) -> None:
    how, said = OTHERS[other]
    model = changed(how)
    before = [value.clone() for value in model.state_dict().values()]
    with pytest.raises(ResumeMismatch) as refused:
        resumed(stopped, model, tmp_path)
    assert said in str(refused.value) and "Pass it as it was, or start a new run." in str(refused.value)
    assert all(map(torch.equal, before, model.state_dict().values()))


def watched(model: nn.Module) -> None:
    """By somebody who counts, and in eval mode, as its owner left it."""
    model.register_forward_hook(lambda *_: None)
    model.eval()


@pytest.mark.parametrize("how", [lambda net: None, watched], ids=["the same", "watched"])
def test_control_the_same_net_goes_on_without_a_word(
    stopped: Path, tmp_path: Path, how: Callable[[nn.Module], None]
) -> None:
    assert resumed(stopped, changed(how), tmp_path) == []


def rewritten(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    newest = checkpoint.newest(folder / "checkpoints")
    assert newest is not None
    tensors, state = checkpoint.load(newest)
    change(state)
    checkpoint.save(newest.parent, int(newest.name[5:]), tensors, state)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("net"), []),  # of an advkit that did not know
        (lambda state: state["net"].update(torch="1.0"), ["The net is built", "The net answers"]),
        (lambda state: state["net"].update(code="edited"), ["The net is built", "The net answers"]),
    ],
    ids=["before", "another torch", "edited code"],
)
def test_what_its_owner_may_not_have_done_is_a_caution(
    stopped: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], said: list[str]
) -> None:
    folder = shutil.copytree(stopped, tmp_path / "run", symlinks=True)
    rewritten(folder, change)
    heard = resumed(folder, changed(OTHERS["gelu"][0]), tmp_path)
    assert [one[: len(two)] for one, two in zip(heard, said, strict=True)] == said


def test_an_answer_that_cannot_be_is_refused(stopped: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(stopped, tmp_path / "run", symlinks=True)
    rewritten(folder, lambda state: state["net"].update(logits=[[0.0]]))
    with pytest.raises(advkit.AdvkitError, match=r"net\.logits of its state is \[\[0\.0\]\]: list should"):
        resumed(folder, net(), tmp_path)


@pytest.mark.parametrize(
    ("plugins", "weights", "others"),
    [([], "raw", {"gelu": 1, "dropout": 0, "forward": 1}), (["ema"], "averaged", {"gelu": 1})],
)
def test_an_evaluation_says_where_a_net_answers_otherwise(
    tmp_path: Path, plugins: list[str], weights: str, others: dict[str, int]
) -> None:
    """A net may be smoothed on purpose, so it is judged all the same."""
    advkit.train(net(), BOTH, plugins, **HOW, out=tmp_path / "run")
    said = {}
    for name in others:
        with_it = changed(OTHERS[name][0])
        result = advkit.evaluate(tmp_path / "run", BOTH, "clean", model=with_it, audit=False)
        assert result["weights"] == weights
        said[name] = [note for note in result.notes if "answers otherwise" in note]
    assert {name: len(notes) for name, notes in said.items()} == others and "3 is nn.GELU(" in said["gelu"][0]
    same = advkit.evaluate(tmp_path / "run", BOTH, "clean", model=Empty(*net()), audit=False)
    assert not [note for note in same.notes if "otherwise" in note]
    with pytest.warns(UserWarning, match="The net answers otherwise") as told:
        advkit.load_weights(changed(OTHERS["scale"][0]), tmp_path / "run")
    assert told[0].filename == __file__
    advkit.load_weights(net(), tmp_path / "run")  # warnings are errors here


class Drawing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Masking(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tensor([0.0, 0.0, -torch.inf])


@pytest.mark.parametrize("kind", [nn.Identity, Drawing, Masking])
def test_an_answer_is_one_that_a_net_gives_again(kind: type[nn.Module]) -> None:
    model, drawn = nn.Sequential(net(), kind()), torch.get_rng_state()
    before = [value.clone() for value in model.state_dict().values()]
    passed = PassedNet(model, (1, 2, 2))
    known = schema.Net.model_validate(passed.record(remembers=False))
    assert (known.logits is None) == (kind is Drawing)
    assert passed.record(remembers=True)["logits"] is None
    if known.logits is not None:
        assert [row[2] is None for row in known.logits] == [kind is Masking] * 2
        passed.refuse_other_answer(known, pytest.fail)
    assert torch.equal(drawn, torch.get_rng_state()) and model.training and model[0][6].seen == 0
    assert all(map(torch.equal, before, model.state_dict().values()))


def test_a_helper_of_length_0_is_one() -> None:
    model, plugin = net(), Hat(Hat.Options(), Empty(*net()))
    step = advkit.Step(model, torch.optim.SGD(model.parameters(), 0.1), [plugin], num_samples=4, eps=0.1)
    assert "hat" in step(IMAGES[:4], DATA.labels[:4], torch.arange(4), epoch=0).raw


class Barred(nn.Sequential):
    """Classes that it never answers."""

    def __init__(self, *barred: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(4, 4))
        self.barred = list(barred)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = super().forward(x)
        return logits.index_fill(1, torch.tensor(self.barred, dtype=torch.int64), -torch.inf)


def test_classes_that_are_barred_tell_nets_apart(tmp_path: Path) -> None:
    four = advkit.Dataset("own", DATA.images, DATA.labels, ("a", "b", "c", "d"))
    data = advkit.Splits(four, four, "none")
    with pytest.raises(Stopped):
        advkit.train(Barred(3), data, **HOW, out=tmp_path / "run", progress=StopAfter(1))
    with pytest.raises(ResumeMismatch, match=r"its logits of two images differ"):
        advkit.train(Barred(), data, resume_from=tmp_path / "run")
    assert len(advkit.train(Barred(3), data, resume_from=tmp_path / "run").history) == HOW["epochs"]
