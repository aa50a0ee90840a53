"""What people pass to `evaluate` from Python: refused with a sentence, or meant as it reads."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import advkit
from advkit import OptionError
from advkit.evaluation.attacks import Pgd
from advkit.numerals import VANISHES
from advkit.studies.evaluation_request import EvaluationRequest


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


DATA = advkit.load_data("digits", limit=40).test


@pytest.mark.parametrize(
    ("eps", "sentence"),
    [
        ({}, "eps is empty; give a number, or one by norm such as eps={'linf': 8/255}."),
        ({"l2": 0.5}, "pgd-2 attacks in linf, but eps has l2 alone; give eps={'linf': E}, or a number."),
        ({"Linf": 0.1}, "eps names the norm 'Linf'; known are linf, l2."),
        ({None: 0.1}, "eps names the norm None; known are linf, l2."),
        ({"linf": "a"}, "eps a must be a finite number >= 0, or a fraction such as 8/255."),
        (["a"] * 40, "eps must be a number, or one for each image: a tensor, an array or a list."),
        (torch.ones(3), "eps must be a finite number >= 0, or one for each of the 40 images."),
        (b"1", "eps b'1' must be a finite number >= 0, or a fraction such as 8/255."),
        (Decimal("1e-400"), f"eps Decimal('1E-400') {VANISHES}."),
        ({"linf": Decimal("-1e-400")}, f"eps Decimal('-1E-400') {VANISHES}."),
        (np.longdouble("1e-400"), f"eps np.longdouble('1e-400') {VANISHES}."),
        (True, "eps True must be a finite number >= 0, or a fraction such as 8/255."),
    ],
)
def test_an_eps_that_is_none_is_refused(eps: Any, sentence: str) -> None:
    with pytest.raises(OptionError) as refused:
        advkit.evaluate(net(), DATA, "clean,pgd-2", eps=eps, audit=False)
    assert str(refused.value) == sentence


@pytest.mark.parametrize("attacks", ["clean,pgd-2", "pgd-2,clean"])
def test_nothing_is_attacked_at_zero_because_its_norm_is_missing(attacks: str) -> None:
    """Whatever stands before it: clean has eps 0 in every norm, and no other attack inherits that."""
    with pytest.raises(OptionError, match="pgd-2 attacks in linf, but eps has l2 alone"):
        advkit.evaluate(net(), DATA, attacks, eps={"l2": 0.5}, audit=False)


@pytest.mark.parametrize(
    "eps",
    ["0.1", 0.1, np.float32(0.1), np.float64(0.1), torch.tensor(0.1), {"linf": "1/10"}, {"linf": np.float32(0.1)}],
)
def test_one_eps_may_be_written_in_many_ways(eps: Any) -> None:
    result = advkit.evaluate(net(), DATA, "pgd-2", eps=eps, audit=False)
    assert result["attacks"][0]["eps"] == pytest.approx(0.1) and result.eps == pytest.approx(0.1)
    assert result.notes == []


@pytest.mark.parametrize("kind", [list, torch.tensor, np.array])
@pytest.mark.parametrize("n", [None, 15])
def test_an_eps_of_each_image_goes_with_its_image(kind: Any, n: int | None) -> None:
    radii = [0.02 * (place % 4) for place in range(len(DATA))]
    model = net()
    result = advkit.evaluate(model, DATA, "pgd-2", eps=kind(radii), n=n, audit=False)
    robust = result["robust"]["pgd-2"]
    assert len(robust) == (n or 40) and result.eps is None
    assert result.notes == ["eps in linf differs by image, 0 to 0.06"]
    place = {int(index): number for number, index in enumerate(DATA.index)}
    for index, withstood in zip(result["index"], robust, strict=True):
        alone = DATA.take(torch.tensor([place[index]]))
        expected = advkit.evaluate(model, alone, "pgd-2", eps=radii[place[index]], audit=False)["robust"]["pgd-2"]
        assert [withstood] == expected


@pytest.mark.parametrize("attacks", [None, 3, b"clean", {"clean": 1}, 0.5])
def test_attacks_that_are_none_are_refused(attacks: Any) -> None:
    with pytest.raises(OptionError, match=r"^attacks = .* must be names such as 'clean,pgd-20', or a list of"):
        advkit.evaluate(net(), DATA, attacks, eps=0.1)


def test_one_attack_under_two_names_is_refused() -> None:
    for attacks in ("pgd-2,pgd-2-linf", "pgd-2-linf,clean,pgd-2x1"):
        with pytest.raises(
            OptionError, match=r"^pgd-2\S* and pgd-2\S* are one attack in linf; leave one of them out\."
        ):
            advkit.evaluate(net(), DATA, attacks, eps=0.1)
    both = "pgd-2,cw-2,pgd-2-l2"
    assert len(advkit.evaluate(net(), DATA, both, eps={"linf": 0.1, "l2": 0.5}, n=4, audit=False).attacks) == 3


@pytest.mark.parametrize("attacks", [[], "", (), " , "])
def test_no_attack_is_refused(attacks: Any) -> None:
    with pytest.raises(OptionError, match="must name one or more attacks, each once"):
        advkit.evaluate(net(), DATA, attacks, eps=0.1)


@pytest.mark.parametrize(
    ("attacks", "refused"),
    [
        ("clean,fgsm", True),
        (["square", Pgd("mine", 3)], True),  # whose pace is its own
        ("clean,pgd-2", False),
        (["cw-2", Pgd("mine", 3)], False),
    ],
)
def test_a_step_that_no_attack_takes_is_refused(attacks: Any, refused: bool) -> None:
    EvaluationRequest.of(attacks, step="0.2 eps")  # the default
    if not refused:
        EvaluationRequest.of(attacks, step="eps/2")
        return
    with pytest.raises(
        OptionError, match="No attack takes steps of a length that is said, so step would change nothing"
    ):
        EvaluationRequest.of(attacks, step="eps/2")


def test_a_name_that_no_file_can_hold_is_refused_before_anything_is_attacked() -> None:
    """As the name of transfer:RUN is, where RUN is no UTF-8."""
    said = r"^The attack 'mine\\udcff' has a name that is no UTF-8, so no verdicts\.csv can hold it; rename the attack"
    with pytest.raises(OptionError, match=said):
        EvaluationRequest.of(["clean", Pgd("mine\udcff", 3)])


def test_attacks_may_be_an_iterator() -> None:
    def some() -> Iterator[str]:
        yield from ("clean", "pgd-2")

    assert [attack.name for attack in EvaluationRequest.of(some()).attacks] == ["clean", "pgd-2"]  # type: ignore[arg-type]
    mixed = EvaluationRequest.of(iter(["clean", Pgd("mine", 3)]))  # type: ignore[arg-type]
    assert [attack.name for attack in mixed.attacks] == ["clean", "mine"]
