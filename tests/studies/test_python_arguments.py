"""What a program may pass to the public functions by mistake: each ends in an error of advkit's own, one sentence.

The functions are called as somebody would, with one argument exchanged for a value of another kind.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import advkit
from advkit import AdvkitError, Dataset, Splits
from advkit_plugins.lsiw import Lsiw

QUICK = {"attack.steps": 1, "validation.steps": 1, "data.limit": 40, "model.width": 2}
IMAGES = torch.randint(0, 256, (12, 2, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LABELS = torch.arange(12) % 3
TOY = Dataset("toy", IMAGES, LABELS, ("a", "b", "c"))


class Odd:
    """Neither its text nor its members can be had."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")

    def __iter__(self) -> Iterator[object]:
        raise RuntimeError("no members")


ODD: dict[str, Callable[[], object]] = {
    "None": lambda: None,
    "3": lambda: 3,
    "-1": lambda: -1,
    "NaN": lambda: math.nan,
    "numpy's True": lambda: np.bool_(True),
    "text": lambda: "text",
    "no text": lambda: "",
    "a NUL": lambda: "a\0b",
    "bytes": lambda: b"text",
    "a path": lambda: Path("/nowhere/at/all"),
    "nothing": list,
    "a mixture": lambda: ["a", 3, None],
    "flat options": lambda: {"awp.gamma": 0.1},
    "numbers as names": lambda: {3: 4},
    "options that are none": lambda: {"awp": {"gamma": Odd()}},
    "an object": Odd,
    "a class": lambda: Odd,
    "a function": lambda: lambda x: x,
    "a tensor": lambda: torch.zeros(2, 2),
    "a tensor without values": lambda: torch.zeros((), device="meta"),
    "a generator": lambda: (part for part in ("a", 3)),
}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 3))


def a_step(**arguments: Any) -> advkit.Step:
    model = arguments.setdefault("model", net())
    of = model if isinstance(model, nn.Module) else net()
    arguments.setdefault("optimizer", torch.optim.SGD(of.parameters(), 0.1))
    return advkit.Step(**{"num_samples": 16, "eps": 0.1, "settings": {"attack.steps": 1}, **arguments})


def stepped(**arguments: Any) -> object:
    batch = {"x": torch.rand(4, 2, 4, 4), "y": torch.arange(4) % 3, "index": torch.arange(4), "epoch": 0}
    return a_step()(**{**batch, **arguments})


CALLS: dict[str, tuple[Callable[..., object], dict[str, Any]]] = {
    "train": (
        advkit.train,
        {"dataset": Splits(TOY, TOY, "none"), "plugins": (), "epochs": 1, "batch_size": 4, "eps": 0.1},
    ),
    "plan": (advkit.plan, {"plugins": (), "settings": QUICK}),
    "evaluate": (advkit.evaluate, {"subject": net, "dataset": TOY, "attacks": "clean", "eps": 0.1, "audit": False}),
    "evaluate a run": (advkit.evaluate, {"subject": "RUN", "attacks": "clean", "n": 3, "audit": False}),
    "audit": (advkit.audit, {"subject": net, "dataset": TOY, "eps": 0.1, "n": 1}),
    "compare": (advkit.compare, {"runs": ["RUN", "absent"], "attacks": "clean"}),
    "ablate": (
        advkit.ablate,
        {
            "plugins": "lsiw",
            "out": "out",
            "seeds": "0",
            "dataset": "image-folder",
            "attacks": "clean",
            "n": 5,
            "epochs": 1,
            "settings": QUICK,
        },
    ),
    "report": (advkit.report, {"runs": "RUN", "samples": 1}),
    "export": (advkit.export, {"run": "RUN", "out": "RUN"}),
    "load_data": (advkit.load_data, {"name": "digits"}),
    "load_weights": (advkit.load_weights, {"model": net, "run": "RUN"}),
    "Dataset": (Dataset, {"name": "toy", "images": IMAGES, "labels": LABELS, "classes": ("a", "b", "c")}),
    "Dataset.take": (lambda rows: TOY.take(rows), {}),
    "Dataset.sample": (lambda count: TOY.sample(count), {}),
    "Splits": (Splits, {"train": TOY, "test": TOY, "transform": "none"}),
    "Step": (a_step, {}),
    "a step": (stepped, {}),
    "Step.load_state_dict": (lambda stored: a_step(plugins="cat-eps").load_state_dict(stored), {}),
    "Normalize": (advkit.Normalize, {"mean": (0.5,), "std": (0.5,)}),
    "Schedule": (lambda points: advkit.Schedule(points), {}),
}
"""By name, a function and what it is called with beside; "RUN" stands for the folder of one."""

PARAMETERS = {"Step": inspect.signature(advkit.Step), "a step": inspect.signature(advkit.Step.__call__)}


def parameters() -> Iterator[tuple[str, str]]:
    for called, (function, _) in CALLS.items():
        for name in PARAMETERS.get(called, inspect.signature(function)).parameters:
            if name != "self":
                yield called, name


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    advkit.train(epochs=1, settings=QUICK, out=folder)
    return folder


@pytest.mark.parametrize(("called", "name"), [*parameters()], ids=str)
def test_an_argument_of_another_kind(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, called: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    function, beside = CALLS[called]
    right = {
        key: run if value == "RUN" else [run, "absent"] if key == "runs" else value() if value is net else value
        for key, value in beside.items()
    }
    if called == "train":
        right |= {"model": net(), "settings": {"attack.steps": 1, "validation.steps": 1}}
    sentences: list[str] = []
    for what, value in ODD.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                function(**{**right, name: value()})
        except AdvkitError as error:
            sentences.append(str(error))
        except Exception as error:
            raise AssertionError(f"{called}({name}={what}) ends in {type(error).__name__}: {error}") from error
    assert len(sentences) >= 10, sentences
    assert not [sentence for sentence in sentences if "\n" in sentence or sentence[-1] not in ".?)"]


AS_IT_IS = ": a module is evaluated as it is; leave it out."
ITSELF = "runs/r names its data and norm itself; pass a module to evaluate it on other images."


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: advkit.audit("runs/r", norm="l2", eps=0.5), ITSELF),
        (lambda: advkit.audit("runs/r", norm="banana"), ITSELF),
        (lambda: advkit.audit(net(), TOY, eps=0.1, checkpoint="last", split="train"), f"checkpoint, split{AS_IT_IS}"),
        (lambda: advkit.audit(net(), TOY, eps=0.1, model="small-cnn"), f"model{AS_IT_IS}"),
        (lambda: advkit.audit(net(), TOY, eps=0.1, data_root="/nowhere"), f"data_root{AS_IT_IS}"),
        (lambda: advkit.audit(net(), TOY, eps=0.1, settings={"model.width": 9}), f"settings{AS_IT_IS}"),
        (
            lambda: advkit.evaluate("net.pt", TOY, model=net()),
            'net.pt is a file of weights; say which net and data: model="NAME" dataset="NAME", or load it into your '
            "module and pass that in its place.",
        ),
        (
            lambda: advkit.evaluate("net.pt", "digits", model="small-cnn", checkpoint="best"),
            "net.pt is a file of weights, which has no checkpoints; leave checkpoint out.",
        ),
        (
            lambda: advkit.ablate([Lsiw], out="ab"),
            'plugins must be names of installed plugins, such as ["cat-eps", "lsiw"], as each run is started by them, '
            "not [<class 'advkit_plugins.lsiw.Lsiw'>].",
        ),
        (
            lambda: advkit.train(resume_from="runs/r", out="runs/s", init_from="runs/t"),
            "out, init_from: resume_from continues a run as it is; leave it out.",
        ),
    ],
)
def test_what_nothing_would_use_is_refused(
    call: Callable[[], object], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is read: none of these runs exists, and the file of weights is empty."""
    monkeypatch.chdir(tmp_path)
    Path("net.pt").touch()
    with pytest.raises(advkit.OptionError) as refusal:
        call()
    assert str(refusal.value) == sentence


@pytest.mark.parametrize("place", [Path("a\0b"), Path("\ud800"), "a\0b", ""])
@pytest.mark.parametrize(
    "call",
    [
        lambda place: advkit.evaluate("run", out=place),
        lambda place: advkit.compare(["run", place]),
        lambda place: advkit.export("run", place),
        lambda place: advkit.train(out=place),
        lambda place: advkit.load_run(place),
        lambda place: advkit.mapped_images(place),
        lambda place: advkit.Evaluation.read(place),
    ],
)
def test_a_path_is_one_that_a_disk_could_hold(call: Any, place: Any) -> None:
    with pytest.raises(advkit.OptionError, match="is no path that a disk could hold; name a file or folder"):
        call(place)
