"""The net under attack: every gradient is watched, batches are told apart from images, memory is bounded."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import advkit
from advkit.errors import Caution, NonFinite, OptionError
from advkit.evaluation import audit as auditing
from advkit.evaluation.attacks import EvaluationAttack, Square, Victim, parse_attacks
from advkit.evaluation.attacks.libraries import ApgdCe
from advkit.evaluation.soundness import BY_BATCH
from advkit.evaluation.verdicts import verdicts
from advkit.studies.analysis import Ascent, adversarial_vulnerability


def images(count: int = 12, classes: int = 3) -> advkit.Dataset:
    pixels = torch.randint(40, 200, (count, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return advkit.Dataset("grey", pixels, torch.arange(count) % classes, tuple("abcdefghij"[:classes]))


def net(classes: int = 3) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Softplus(), nn.Flatten(), nn.Linear(64, classes))
    with torch.no_grad():  # grey lies on the boundary
        model[3].bias.sub_(model(torch.full((1, 1, 4, 4), 0.47))[0])
    return model


def labelled(model: nn.Module, data: advkit.Dataset) -> advkit.Dataset:
    with torch.no_grad():
        return advkit.Dataset(data.name, data.images, model(data.images / 255).argmax(1), data.classes)


class SignStep(EvaluationAttack):
    """A stranger's: one step along the sign of the gradient, which is 0 where the gradient is NaN."""

    name = "sign-step"

    def perturb(self, net: Victim, x: Tensor, y: Tensor, radius: Tensor, index: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        loss = nn.functional.cross_entropy(net(x), y)
        (gradient,) = torch.autograd.grad(loss, x)
        return (x + radius.view(-1, 1, 1, 1) * gradient.sign()).detach().clamp(0, 1)


class Root(nn.Module):
    """sqrt of 0 has an infinite slope, times 0 is NaN: right logits and no gradient."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x) + (0 * x).sqrt().sum()
        return logits


@pytest.mark.parametrize("attack", ["pgd-3", "cw-3", "fgsm", "apgd-ce", SignStep()])
def test_broken_gradients_are_never_robustness(attack: str | EvaluationAttack) -> None:
    data = labelled(net(), images())
    name = attack if isinstance(attack, str) else attack.name
    assert advkit.evaluate(net(), data, ("clean", attack), eps=0.5)["attacks"][1]["accuracy"] < 1  # the control
    with pytest.raises(NonFinite, match=f"{name} met an input gradient that is NaN or Inf"):
        advkit.evaluate(Root(net()), data, ("clean", attack), eps=0.5)


def test_one_broken_gradient_among_many_calls_is_seen() -> None:
    victim = Victim(Root(net()), classes=3, norm="linf")
    for scale in (1.0, 0.0):
        x = torch.full((2, 1, 4, 4), 0.5, requires_grad=True)
        (scale * net()(x) if scale else victim(x)).sum().backward()
    with pytest.raises(NonFinite, match="mine met an input gradient"):
        victim.refuse_broken_gradients("mine")


def test_gradients_of_zero_are_said() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            rounded = (x * 10).round() / 10
            logits: Tensor = net()(rounded)
            return logits

    found = advkit.evaluate(Flat(), labelled(Flat(), images()), ("clean", "pgd-3", "square"), eps=0.1)
    notes = {row["name"]: row.get("notes", []) for row in found["attacks"]}
    assert "many input gradients are zero" in notes["pgd-3"][0] and not notes["square"] and not notes["clean"]
    quiet = advkit.evaluate(net(), labelled(net(), images()), ("clean", "pgd-3"), eps=0.1)
    assert not any("gradients are zero" in note for row in quiet["attacks"] for note in row.get("notes", []))


def test_a_net_that_clips_its_images_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same function on [0, 1], so the figures are believed unless something says why they are not."""

    class Clips(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = core(x.clamp(0, 1))
            return logits

    core, few = net(), images()
    few = labelled(core, advkit.Dataset("edges", few.images // 128 * 255, few.labels, few.classes))
    monkeypatch.setattr(auditing, "RULES", {})
    said = "pixels at exactly 0 or 1 have no input gradient"
    for model in (Clips(), core):
        found = advkit.evaluate(model, few, ("clean", "pgd-2", "cw-2", Square(queries=5)), eps=0.1, audit=False)
        notes = [any(said in note for note in row.get("notes", [])) for row in found["attacks"]]
        assert notes == [False, model is not core, model is not core, False]
        assert sum(said in note for note in found.of_net) == (model is not core)
        assert any(said in note for note in auditing.audit(model, few, eps=0.1).notes) == (model is not core)
        with pytest.warns(Caution, match=said) if model is not core else nullcontext():
            adversarial_vulnerability(model, few, Ascent(eps=0.1, steps=1))
    spent = [verdicts(one, few, parse_attacks(("pgd-2",)), eps=1e-6, norm="linf")["pgd-2"] for one in (Clips(), core)]
    assert spent[0].forwards == spent[1].forwards and spent[0].backwards == spent[1].backwards


def test_an_attack_that_asks_for_no_gradient_may_keep_one() -> None:
    victim = Victim(net(), classes=3, norm="linf")
    x = torch.full((2, 1, 4, 4), 0.5, requires_grad=True)
    with torch.no_grad():
        assert not victim(x).requires_grad
    victim.refuse_broken_gradients("mine")


class ByBatch(nn.Module):
    """Normalises by the batch, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()
        self.norm = nn.BatchNorm1d(3, affine=False, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.inner(x)) if len(x) > 1 else self.inner(x)
        return out


class Drawing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = net()(x + 0.1 * torch.randn_like(x))
        return out


class Against(nn.Module):
    """Measures all images by one of the batch: `place` of them."""

    def __init__(self, place: Callable[[int], int]) -> None:
        super().__init__()
        self.inner, self.place = net(), place

    def forward(self, x: Tensor) -> Tensor:
        at = self.place(len(x))
        out: Tensor = self.inner(x - 0.5 * x[at : at + 1].detach())
        return out


class Alters(nn.Module):
    """Only one image of a large batch depends on it."""

    def __init__(self, place: Callable[[int], int]) -> None:
        super().__init__()
        self.inner, self.place = net(), place

    def forward(self, x: Tensor) -> Tensor:
        at = torch.arange(len(x)) == (self.place(len(x)) if len(x) > 3 else -1)
        out: Tensor = self.inner(x) * torch.where(at, -1.0, 1.0)[:, None]
        return out


PLACES: dict[str, Callable[[int], int]] = {"first": lambda n: 0, "middle": lambda n: n // 2, "last": lambda n: n - 1}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("kind", [Against, Alters])
def test_the_batch_is_asked_at_both_ends_and_in_the_middle(kind: Callable[..., nn.Module], place: Any) -> None:
    for count in (2, 3, 12) if kind is Against else (12,):
        rows = advkit.evaluate(kind(place), images(count), ("clean",), eps=0.1)["attacks"]
        assert BY_BATCH in rows[0].get("notes", []), count


def test_few_images_are_no_batch() -> None:
    for count in (1, 2, 3):
        rows = advkit.evaluate(net(), images(count), ("clean",), eps=0.1)["attacks"]
        assert BY_BATCH not in rows[0].get("notes", [])


@pytest.mark.parametrize(("model", "said"), [(ByBatch(), True), (net(), False), (Drawing(), False)])
def test_a_net_that_looks_at_the_batch_is_told(model: nn.Module, said: bool) -> None:
    rows = advkit.evaluate(model, images(), ("clean", "pgd-2"), eps=0.1)["attacks"]
    assert [BY_BATCH in row.get("notes", []) for row in rows] == [said, said]


@pytest.mark.parametrize(("width", "sentence"), [(1, "returns one logit"), (2, "returns 2 logits"), (5, "5 logits")])
def test_logits_of_another_width_are_refused_before_anything_is_attacked(width: int, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        advkit.evaluate(net(width), images(), ("clean", "pgd-2"), eps=0.1)


def test_masked_classes_are_judged_and_all_masked_is_broken() -> None:
    model = net(4)
    data = advkit.Dataset("grey", images().images, labelled(model, images(classes=4)).labels, tuple("abcd"))
    with torch.no_grad():
        model[3].bias[3] = -torch.inf
    rows = advkit.evaluate(model, labelled(model, data), ("clean", "pgd-3", "cw-3"), eps=0.0)["attacks"]
    assert [row["accuracy"] for row in rows] == [1, 1, 1] and not any("notes" in row for row in rows)
    with torch.no_grad():
        model[3].bias[:] = -torch.inf
    with pytest.raises(NonFinite, match="its logits are NaN or Inf on all"):
        advkit.evaluate(model, data, ("clean",), eps=0.0)


class Largest(nn.Module):
    """Remembers how many images came at once."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.most = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        self.most = max(self.most, len(x))
        out: Tensor = self.inner(x)
        return out


@pytest.mark.parametrize("size", [1, 5, 100])
def test_images_at_once_are_bounded_and_verdicts_the_same(size: int) -> None:
    model = Largest(net().double())
    data = labelled(net(), images(30))
    attacks = [*parse_attacks(["clean", "pgd-3x3", "cw-3"]), Square(queries=100), ApgdCe()]
    whole = verdicts(model, data, attacks, eps=0.03, norm="linf")
    assert model.most == 30 and any(0 < one.robust.sum() < 30 for one in whole.values())
    model.most = 0
    parted = verdicts(model, data, attacks, eps=0.03, norm="linf", batch_size=size)
    assert model.most == min(size, 30)
    for name, one in whole.items():
        assert torch.equal(one.robust, parted[name].robust), name
        assert (one.forwards, one.backwards) == (parted[name].forwards, parted[name].backwards)


def test_the_gradient_of_parts_is_that_of_the_whole() -> None:
    model = net().double()
    x = torch.rand(7, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    both = []
    for size in (None, 3):
        logits = Victim(model, classes=3, norm="linf", batch_size=size)(x)
        both.append(torch.autograd.grad((logits**2).sum(), x)[0])
    torch.testing.assert_close(*both, rtol=1e-12, atol=0)
