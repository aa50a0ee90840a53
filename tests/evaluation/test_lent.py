"""What an attack is lent: nothing it changes is believed, all of it is put back, and its failures bear its name."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import advkit
from advkit import Dataset, EvaluationAttack, HookContract, OptionError, Victim

LENT = {"x": "its x", "y": "its y", "radius": "its radius", "index": "its index"}


def world() -> tuple[Any, ...]:
    """What is global and torch's generator is no part of."""
    numpys = np.random.get_state()[1]  # noqa: NPY002
    return torch.is_grad_enabled(), torch.get_default_dtype(), random.getstate(), bytes(np.asarray(numpys).data)


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


def images(model: nn.Module, n: int = 12) -> Dataset:
    """Images that the net gets right, so that all are attacked."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        pixels = torch.randint(0, 256, (n, 1, 4, 4), dtype=torch.uint8)
    model.eval()
    labels = model(pixels / 255).argmax(1)
    model.train()
    return Dataset("own", pixels, labels, ("a", "b", "c"))


class Does(EvaluationAttack):
    """Changes something, and returns the images as they are."""

    name = "meddler"

    def __init__(self, act: Callable[..., Any]) -> None:
        self.act = act

    def perturb(self, net: Victim, x: Tensor, y: Tensor, radius: Tensor, index: Tensor) -> Tensor:
        answer = self.act(net.model, {"x": x, "y": y, "radius": radius, "index": index})
        return answer if isinstance(answer, Tensor) and answer.dim() == 4 else x


class Told(Does):
    """Says of itself what it is told to."""

    name = "told"

    def __init__(self, act: Callable[..., Any], says: Callable[[], Any]) -> None:
        super().__init__(act)
        self.says = says

    def settings(self, eps: float | None) -> Any:
        return self.says()


def freed(model: nn.Module, _: object) -> None:
    model[1].weight.requires_grad_(True)  # type: ignore[index, union-attr]


ACTS: dict[str, tuple[Callable[..., Any], str]] = {
    "x": (lambda _, lent: lent["x"].add_(0.5).clamp_(0, 1), "its x"),
    "x, past torch's count": (lambda _, lent: lent["x"].numpy().fill(0), "its x"),
    "y": (lambda _, lent: lent["y"].fill_(0), "its y"),
    "radius": (lambda _, lent: lent["radius"].fill_(1), "its radius"),
    "index": (lambda _, lent: lent["index"].zero_(), "its index"),
    "weights": (lambda model, _: model[1].weight.data.mul_(2), "the net's 1.weight"),
    "new weights": (lambda model, _: setattr(model[1].weight, "data", torch.zeros(8, 16)), "the net's 1.weight"),
    "statistics": (lambda model, _: model[2].running_mean.add_(1), "the net's 2.running_mean"),
    "mode": (lambda model, _: model.train(), "the net's mode"),
    "asking": (freed, "which weights of the net ask for a gradient"),
    "grad mode": (lambda *_: torch.set_grad_enabled(False), "the grad mode"),
    "dtype": (lambda *_: torch.set_default_dtype(torch.float64), "the default dtype"),
    "numpy": (lambda *_: np.random.rand(), "numpy's global generator"),  # noqa: NPY002
    "Python": (lambda *_: random.random(), "Python's global generator"),
}


@pytest.mark.parametrize("case", ACTS)
@pytest.mark.parametrize("ends", ["returns", "raises"])
def test_what_an_attack_changes_is_said_and_put_back(case: str, ends: str) -> None:
    act, what = ACTS[case]
    model = net()
    data = images(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    there = world()
    pixels, labels = data.images.clone(), data.labels.clone()

    def acting(module: nn.Module, lent: dict[str, Tensor]) -> object:
        answer = act(module, lent)
        if ends == "raises":
            raise ValueError("my own")
        return answer

    if ends == "raises":
        with pytest.raises(ValueError, match="my own") as failed:
            advkit.evaluate(model, data, ["clean", Does(acting)], eps=0.05, audit=False)
        assert failed.value.__notes__ == ["in the attack meddler"]
    else:
        with pytest.raises(HookContract) as refused:
            advkit.evaluate(model, data, ["clean", Does(acting)], eps=0.05, audit=False)
        assert str(refused.value) == (
            f"The attack meddler changed {what}; its accuracy would mean nothing. What it is given is lent: work on "
            "copies, and draw from net.draws(...)."
        )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and all(value.requires_grad for value in model.parameters())
    assert torch.equal(data.images, pixels) and torch.equal(data.labels, labels)
    assert there == world()


class Counts(nn.Module):
    """Moves a buffer and its weights, and draws from numpy, at every forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        with torch.no_grad():
            for weight in self.inner.parameters():
                weight.div_(weight.norm().clamp(min=0.1))
        np.random.rand()  # noqa: NPY002
        logits: Tensor = self.inner(x)
        return logits


def test_what_the_net_does_by_itself_is_not_the_attacks_doing() -> None:
    model = Counts()
    result = advkit.evaluate(model, images(model), "clean,pgd-2", eps=0.05, audit=False)
    assert result["attacks"][1]["passes"]["forward"] > 0


def test_weights_and_buffers_are_left_as_they_came_whatever_the_net_does_to_them() -> None:
    model, data = Counts(), images(net())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    advkit.evaluate(model, data, "clean,pgd-2", eps=0.05, audit=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_torchs_generator_is_seeded_for_attacks_and_given_back() -> None:
    model, state = net(), torch.get_rng_state()

    def noise(_: object, lent: dict[str, Tensor]) -> Tensor:
        return (lent["x"] + lent["radius"].view(-1, 1, 1, 1) * torch.rand_like(lent["x"])).clamp(0, 1)

    one, two = (advkit.evaluate(model, images(model), [Does(noise)], eps=0.3, audit=False) for _ in range(2))
    assert one["robust"] == two["robust"] and torch.equal(torch.get_rng_state(), state)


def test_an_answer_is_cut_from_its_graph_and_judged_where_the_net_is() -> None:
    model = net()
    data = images(model)
    followed = advkit.evaluate(
        model, data, [Does(lambda _, lent: lent["x"].requires_grad_() * 1)], eps=0.1, audit=False
    )
    assert followed["worst_case"]["accuracy"] == 1
    with pytest.raises(
        HookContract, match=r"returned torch\.float32 \(12, 1, 4, 4\) on meta; it must return images as"
    ):
        advkit.evaluate(model, data, [Does(lambda _, lent: lent["x"].to("meta"))], eps=0.1, audit=False)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (lambda: {"tries": torch.ones(2)}, "settings of the attack told are no JSON values (Object of type Tensor"),
        (lambda: {"tries": float("nan")}, "settings of the attack told are no JSON values (Out of range float"),
        (lambda: {"tries": "\ud800"}, "settings of the attack told are no JSON values ('utf-8' codec"),
        (lambda: {1: 2}, "settings of the attack told are no JSON values (the key 1 is no text)"),
        (lambda: {"tries": [{None: 2, "a": 1}]}, "settings of the attack told are no JSON values (the key None is no"),
        (lambda: ["tries"], "settings of the attack told are a list; return a mapping"),
        (lambda: {"seed": 0}, "settings of the attack told have seed, which its row of results has already; name it"),
        (lambda: {"passes": 3}, "settings of the attack told have passes, which its row of results has already"),
        (lambda: {"eps": 0.2}, "settings of the attack told have eps, which its row of results has already"),
        (lambda: {"steps": 0.5}, "settings of the attack told have steps = 0.5, which must be a whole number; name"),
        (lambda: {"restarts": True}, "settings of the attack told have restarts = True, which must be a whole number"),
        (lambda: {"step_size": [1]}, "settings of the attack told have step_size = [1], which must be a number or a"),
        (lambda: {"notes": "B"}, "settings of the attack told have notes = 'B', which must be a list of texts; name"),
    ],
)
def test_settings_that_no_file_can_hold_are_refused(settings: Callable[[], Any], sentence: str) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("it was attacked")

    model = net()
    attack, data = Told(refused, settings), images(model)
    for judge in (
        lambda: advkit.evaluate(model, data, [attack], eps=0.1, audit=False),
        lambda: advkit.audit(model, data, eps=0.1, transfer=attack),
    ):
        with pytest.raises(HookContract) as caught:
            judge()
        assert sentence in str(caught.value)


def test_settings_under_the_keys_of_a_row_are_kept_where_they_are_of_its_kind() -> None:
    own = {"eps": 0.1, "steps": 9, "step_size": 0.1, "restarts": None, "notes": ["B"], "loss": ["mine"], "parts": 3}
    model = net()
    for said in (own, own | {"step_size": "wide"}):
        row = advkit.evaluate(model, images(model), [Told(lambda *_: None, lambda s=said: s)], eps=0.1).attacks[0]
        assert {key: row[key] for key in said} == said


def test_clean_is_a_name_of_the_images_as_they_are() -> None:
    class Clean(Does):
        name = "clean"

    model = net()
    with pytest.raises(
        OptionError, match=r"^clean is the name of the images as they are; give the attack Clean another"
    ):
        advkit.evaluate(model, images(model), [Clean(lambda *_: None)], eps=0.1, audit=False)
