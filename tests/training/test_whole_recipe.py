"""All that one recipe asks of the engine at once: one-cycle rates, an average, smoothed labels, generated images at a
share of 0.7, channels_last and compiling; each switched on alone is neutral where it has to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import advkit
from advkit.data.convert import convert
from advkit.training import engine

RECIPE = "dm-improves-at-mini"
FAST = {"attack.steps": 2, "validation.steps": 1, "update.batch_norm": "clean_logits,adv_logits"}
"""The views that move BatchNorm are the recipe's, which those of other plugins would not be."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits, as extra images."""
    folder = tmp_path_factory.mktemp("extra")
    convert("digits", folder / "mapped", tell=lambda sentence: None)
    return folder / "mapped"


def trained(images: Path | None, *, plugins: Any = None, share: float = 0.7, **settings: object) -> advkit.TrainResult:
    options = {"extra-data": {"root": str(images), "share": share}} if images else {}
    return advkit.train(
        None,
        "digits",
        plugins,
        recipe=RECIPE,
        options=options,
        settings={**FAST, "data.limit": 60, **settings},
        epochs=2,
        batch_size=20,
        seed=0,
    )


def weights(result: advkit.TrainResult) -> dict[str, Tensor]:
    return {name: value.double() for name, value in result.model.state_dict().items()}


def apart(one: advkit.TrainResult, other: advkit.TrainResult) -> float:
    pairs = [(value, weights(other)[name]) for name, value in weights(one).items()]
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-9)) for a, b in pairs)


def test_all_at_once_trains_as_the_parts_that_are_layout_do_not_show(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BACKEND", "aot_eager")
    plain = trained(images)
    whole = trained(images, **{"run.memory_format": "channels_last", "run.compile": "default"})
    assert whole.history[-1]["lr"] != whole.history[0]["lr"] and whole.history[0]["seconds"]["compile"] > 0
    assert all(bool(value.isfinite().all()) for value in weights(whole).values())
    assert apart(whole, plain) < 2e-4  # of float32, after six steps of an attack's signs
    rates = [row["lr"] for row in plain.history]
    assert [row["lr"] for row in whole.history] == rates


def test_an_average_changes_nothing_of_the_training(images: Path) -> None:
    others = ("trades", "label-smoothing", "extra-data")
    average, plain = trained(images), trained(images, plugins=others)
    assert apart(average, plain) == 0.0 and [row["loss"] for row in average.history] == [
        row["loss"] for row in plain.history
    ]


def test_a_share_of_none_is_the_recipe_without_extra_images(images: Path) -> None:
    without = trained(None, plugins=("trades", "label-smoothing", "ema"))
    assert apart(trained(images, share=0.0), without) == 0.0
    assert apart(trained(images), without) > 0.0, "the control"


def test_a_warm_up_of_none_is_none(images: Path) -> None:
    assert apart(trained(images, **{"optimizer.warmup": 0}), trained(images)) == 0.0
    assert apart(trained(images, **{"optimizer.warmup": 1}), trained(images)) > 0.0, "the control"
