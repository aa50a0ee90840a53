"""One image by itself, of which BatchNorm takes no statistics: a plan says what a run says, before its first step."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import pictures
from torch import Tensor, nn

import advkit
from advkit import OptionError, Plugin, hookimpl
from advkit.cli.main import run
from advkit.config.layer import Layer
from advkit.config.resolve import resolve
from advkit.explained import LONE
from advkit.training import care
from advkit.training.lone import lone
from advkit.training.plan import plan

FEW = {"attack.steps": 1, "validation.steps": 1, "validation.fraction": 0.0}


def net(norm: bool = True, tracked: bool = True) -> nn.Sequential:
    """With one value a channel, or with no norm at all."""
    torch.manual_seed(0)
    middle = nn.BatchNorm1d(8, track_running_stats=tracked) if norm else nn.ReLU()
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 8), middle, nn.Linear(8, 3))


def said(call: Any, model: nn.Module, images: int, plugins: Any = (), **given: Any) -> str:
    """What a plan or a run refuses, "" where it does not."""
    try:
        call(model=model, dataset=pictures(images), plugins=plugins, epochs=1, **given)
    except OptionError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("images", "batch", "settings", "remedy"),
    [
        (9, 1, {}, "raise run.batch_size to two images at least."),
        (9, 4, {"run.lone_image": "keep"}, "an epoch's last batch has one (run.lone_image=keep): take merge or drop"),
        (9, 3, {"run.accumulate": 2}, ""),
        (9, 3, {"run.accumulate": 3}, "run.accumulate=3 makes such parts of a batch of 3: lower it, or take another"),
        (11, 8, {"run.accumulate": 3}, "run.accumulate=3 makes such parts of a batch of 3"),  # of the last one
        (9, 4, {}, ""),
        (9, 4, {"run.lone_image": "drop"}, ""),
        (9, 2, {"run.lone_image": "drop"}, ""),
        (2, 2, {"validation.fraction": 0.5}, "give two images at least to train on."),
        (9, 4, {"validation.fraction": 0.1}, ""),  # judged by one, with running statistics
    ],
)
def test_a_plan_refuses_a_lone_image_as_the_run_does(
    images: int, batch: int, settings: dict[str, object], remedy: str, tmp_path: Path
) -> None:
    """Before anything is written. The controls: neighbouring settings, and a net that takes an image by itself."""
    given = {"batch_size": batch, "settings": FEW | settings}
    planned, trained = (
        said(advkit.plan, net(), images, **given),
        said(advkit.train, net(), images, **given, out=tmp_path / "run"),
    )
    assert planned == trained and planned.startswith(LONE if remedy else "") and remedy in planned
    assert (tmp_path / "run").exists() == (not remedy)
    assert said(advkit.plan, net(norm=False), images, **given) == ""


def test_one_image_to_judge_by_is_refused_where_its_batch_is_measured(tmp_path: Path) -> None:
    given = {"batch_size": 4, "settings": FEW | {"validation.fraction": 0.1}}
    sentence = f"{LONE}best is chosen by one: raise validation.fraction to two images at least, or set it to 0."
    for call in (advkit.plan, advkit.train):
        assert said(call, net(tracked=False), 9, **given) == sentence
        assert said(call, net(), 9, **given) == ""
    of_the_test = {"batch_size": 4, "settings": FEW | {"validation.split": "test"}}
    data = advkit.Splits(pictures(9), pictures(1), "none")
    for call in (advkit.plan, advkit.train):
        with pytest.raises(OptionError, match="give two test images at least"):
            call(model=net(tracked=False), dataset=data, plugins=(), epochs=1, **of_the_test)


def test_an_image_left_over_is_judged_beside_others() -> None:
    """The last of 5 in batches of 4; under attack whatever is left. Its logits are those beside the first two."""
    model, given = net(tracked=False), {"batch_size": 4, "settings": FEW | {"validation.fraction": 0.5}}
    assert said(advkit.plan, model, 10, **given) == said(advkit.train, model, 10, **given) == ""
    data = pictures(9)
    x = data.images.float() / 255
    expected = torch.cat([model(x[:8]), model(torch.cat([x[8:], x[:2]]))[:1]]).argmax(1) == data.labels
    record = advkit.evaluate(model, data, "clean,pgd-2x2,cw-2", eps=0.3, batch_size=8)
    assert record.robust["clean"] == expected.tolist()
    assert any("is shown beside two others" in note for row in record.attacks for note in row.notes)
    with pytest.raises(OptionError, match=re.escape(f"{LONE}give two images at least.")):
        advkit.evaluate(model, data.take(slice(1)), "clean", eps=0.3, audit=False)


def sampled(size: int) -> type[Plugin]:
    class Sampled(Plugin):
        name = "sampled"

        @hookimpl
        def train_sampler(self, indices: Tensor) -> Sequence[Tensor]:
            return [indices[:4], indices[:size]]

    return Sampled


def test_a_batch_of_one_from_a_sampler_names_it() -> None:
    for call, size in itertools.product((advkit.plan, advkit.train), (1, 2)):
        told = said(call, net(), 9, [sampled(size)], batch_size=4, settings=FEW | {"run.lone_image": "keep"})
        assert told == (size == 1) * (
            f"{LONE}let the plugin sampled, whose train_sampler gives such a batch, give two images at least."
        )


def test_a_share_of_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three images in two processes, where each takes its own statistics; a plan says how many processes fit."""
    local, together = ({"run.batchnorm": norm, "validation.fraction": 0.0} for norm in ("local", "synchronised"))
    asked = resolve((), [Layer("test", local)])
    (sentence,) = lone(asked, [3, 2, 0], None, 2).values()
    assert "one of 2 processes has one image of a batch of 3: take run.batchnorm=synchronised" in sentence
    assert lone(asked, [4], None, 2) == lone(asked, [3], None, 1) == {}
    asked = resolve((), [Layer("test", together)])
    assert lone(asked, [3, 2], None, 2) == {} != lone(asked, [3, 1], None, 2)

    def cautions(model: nn.Module) -> list[str]:
        return advkit.plan((), model=model, dataset=pictures(12), batch_size=6, settings=local)["cautions"]

    told = "run.batchnorm=local: BatchNorm takes no statistics of one image; start at most 3 processes"
    assert told in cautions(net()) and told not in cautions(net(norm=False))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert said(advkit.plan, net(), 9, batch_size=3, settings=local) == f"{LONE}{sentence}."
    assert said(advkit.plan, net(), 9, batch_size=3, settings=together) == ""


def test_a_share_of_one_is_probed_beside_its_mirror_image(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(1, 1, 2, 2)
    assert care._several(x) is x
    monkeypatch.setattr(care, "here", lambda: type("Two", (), {"size": 2}))
    assert care._several(x).tolist() == torch.cat([x, x.flip(-1)]).tolist()


NET = "from torch import nn\ndef net(spec, width=3):\n    n = spec.height * spec.width * spec.channels\n" + (
    "    layers = nn.Linear(n, width), nn.BatchNorm1d(width), nn.Linear(width, spec.classes - short)\n"
    "    return nn.Sequential(nn.Flatten(), *layers)\nshort = "
)


@pytest.mark.parametrize(
    ("short", "line", "sentence"),
    [
        (0, ["--batch-size", "1"], "raise run.batch_size"),
        (1, [], "returns 9 logits for each image, but the data has 10 classes"),
        (0, ["--set", "model.height=3"], "takes no argument height"),
        (0, [], ""),
    ],
)
def test_a_plan_asks_the_net_of_a_file(
    short: int, line: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which a run builds; the report of one does not."""
    (tmp_path / "net.py").write_text(f"{NET}{short}\n")
    code = run(["plan", "--model", f"{tmp_path}/net.py:net", *line])
    assert code == (2 if sentence else 0) and sentence in capsys.readouterr().err


def test_a_run_that_was_is_planned_whatever_it_shows() -> None:
    asked = resolve((), [Layer("test", {"model.name": "vgg16-bn", "run.batch_size": 1})])
    assert plan(asked, past=True)["plugins"] == []
    with pytest.raises(OptionError, match=r"raise run\.batch_size"):
        plan(asked)
