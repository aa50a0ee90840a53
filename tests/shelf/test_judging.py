"""What is asked of a net before it is judged, and of what it returns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advkit import NonFinite, OptionError
from advkit.judging import checked_logits, judged


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))


@pytest.mark.parametrize(
    ("logits", "classes", "sentence"),
    [
        (torch.zeros(2, 3, 1), None, r"logits of shape \(batch, classes\), but it returned \(2, 3, 1\)"),
        ({"logits": 1}, None, "but it returned dict; wrap it"),
        (torch.zeros(2, 1), 2, "returns one logit for each image"),
        (torch.zeros(2, 1), None, "Give it two outputs, one a class"),
        (torch.zeros(2, 5), 3, "returns 5 logits for each image, but the data has 3 classes"),
        (torch.zeros(2, 2), 3, "returns 2 logits for each image, but the data has 3 classes"),
        (torch.zeros(2, 3, dtype=torch.float16), 3, "returns logits in float16"),
        (torch.zeros(2, 3, dtype=torch.int64), 3, "returns logits in int64; let it return real floats"),
        (torch.zeros(2, 3, dtype=torch.bfloat16), 3, "Take autocast and casts to half precision out"),
    ],
)
def test_what_is_no_logits_is_one_sentence(logits: object, classes: int | None, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        checked_logits(logits, 2, classes)


def test_logits_of_either_type_pass() -> None:
    for dtype in (torch.float32, torch.float64):
        assert checked_logits(torch.zeros(2, 3, dtype=dtype), 2, 3).shape == (2, 3)


def test_a_net_is_judged_in_eval_mode_and_comes_back_as_it_was() -> None:
    model = net().train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    state = torch.get_rng_state()
    with judged(model) as seed:
        seed(3)
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        torch.rand(4)
    assert [module.training for module in model] == [True, False, True]
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, True, True, True]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype: torch.dtype) -> None:
    model = net()
    model[0].to(dtype)
    with pytest.raises(OptionError, match=r"computes in b?float16 \(0.weight\); attacks need float32"), judged(model):
        pass


@pytest.mark.parametrize(("place", "value"), [("0.bias", torch.nan), ("1.running_var", torch.inf)])
def test_weights_that_are_no_numbers_are_not_judged(place: str, value: float) -> None:
    model = net()
    model.state_dict()[place][1] = value
    with pytest.raises(NonFinite, match=f"{place} holds NaN or Inf"), judged(model):
        pass


def test_a_masked_class_is_judged() -> None:
    model = net()
    with torch.no_grad():
        model[0].bias[1] = -torch.inf
    with judged(model):
        logits: Tensor = model[0](torch.zeros(2, 4))
    assert checked_logits(logits, 2, 3) is logits
