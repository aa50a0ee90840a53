"""What gpu.py measures, part by part, a line of JSON a figure: `python results/gpu_parts.py steps --batch 128`."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from bench import Contestant, Sample, by_hand, net, noise, sgd
from torch import nn

import advkit
from advkit.data.base import Dataset, Splits
from advkit.training.compiled import own_limits
from advkit.training.engine import Engine
from advkit.training.progress import Silent

EPS, IMAGES, MODEL = 8 / 255, 50_000, "preact-resnet18"
METHODS = {"PGD-AT": "", "TRADES": "trades", "AWP": "awp", "ISEAT": "lsiw"}
FAST: Mapping[str, Any] = {
    "run.precision": "bf16",
    "run.matmul": "high",
    "run.memory_format": "channels_last",
    "run.compile": "default",
}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "float32": {},
    "TF32": {"run.matmul": "high"},
    "bf16": {key: FAST[key] for key in ("run.precision", "run.matmul")},
    "bf16, channels_last": {key: FAST[key] for key in ("run.precision", "run.matmul", "run.memory_format")},
    "bf16, channels_last, compiled": FAST,
}
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
"""The CPU tries the script out."""


def wait() -> float:
    """The time when the device has done what it was given."""
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(contestant: Contestant, batches: list[Sample], turns: int) -> tuple[float, float]:
    """Median of a step after three, and the first one's, which compiles; of no turns, the first alone."""
    spent = []
    for turn in range(turns + 3 if turns else 1):
        began = wait()
        contestant(batches[turn % len(batches)])
        spent.append(wait() - began)
    return statistics.median(spent[3:] or spent), spent[0]


def prepared(settings: Mapping[str, Any], width: int) -> tuple[nn.Module, nn.Module]:
    """A net, and what a loop calls: it, or it compiled."""
    model = net(MODEL, 3, 32, width=width).to(DEVICE)
    if settings.get("run.memory_format"):
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if not settings.get("run.compile"):
        return model, model
    called: Any = torch.compile(model, dynamic=False, **own_limits())
    return model, called


def hand(settings: Mapping[str, Any], width: int) -> Contestant:
    """PGD-AT by hand, in the same precision and layout, compiled or not."""
    model, called = prepared(settings, width)
    engine = Engine(advkit.config.resolve.resolve("", []).run.model_copy(update=_run(settings)), model)
    step = by_hand(called, EPS, checked=False)

    def in_precision(sample: Sample) -> object:
        half: AbstractContextManager[object] = nullcontext()
        if engine.half:
            half = torch.autocast(DEVICE.type, torch.bfloat16)
        with engine.numbers(), half:
            return step(sample)

    return in_precision


def _run(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix("run."): value for key, value in settings.items()}


def steps(batch: int, width: int, turns: int, methods: list[str], variants: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each method and variant, PGD-AT by hand among them."""
    batches = [(x.to(DEVICE), y.to(DEVICE), index.to(DEVICE)) for x, y, index in noise(batch, 3, 32)]
    for variant in variants:
        settings = VARIANTS[variant]
        laid = batches
        if settings.get("run.memory_format"):
            laid = [(x.contiguous(memory_format=torch.channels_last), y, index) for x, y, index in batches]
        for method in methods:
            row: dict[str, Any] = {"method": method, "variant": variant, "batch": batch}
            if CUDA:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            if method == "by hand":
                contestant = hand(settings, width)
            else:
                model, called = prepared(settings, width)
                own = {key: value for key, value in settings.items() if key in ("run.precision", "run.matmul")}
                given = {"num_samples": 4 * batch, "num_classes": 10, "eps": EPS, "settings": own}
                step = advkit.Step(called, sgd(model), METHODS[method], **given)  # type: ignore[arg-type]
                row["cost"] = step.composition.at(0).cost
                contestant = lambda sample, step=step: step(*sample, epoch=0)  # noqa: E731
            row["seconds"], row["first"] = seconds(contestant, laid, turns)
            row["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20 if CUDA else 0
            yield row


def epochs(batch: int, images: int, method: str) -> Iterator[dict[str, Any]]:
    """Seconds of the second epoch of `advkit.train` on images of noise, cropped and mirrored, with all that is fast."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (images, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (images,), generator=generator)
    data = Dataset("noise", noise, labels, tuple("abcdefghij"))
    settings = {**FAST, "run.device": DEVICE.type, "validation.fraction": 0, "optimizer.lr": 1e-3}
    splits = Splits(data, data.take(slice(0, 100)), "crop-flip")
    with tempfile.TemporaryDirectory() as place:
        given: dict[str, Any] = {"eps": EPS, "epochs": 2, "batch_size": batch, "settings": settings}
        result = advkit.train(MODEL, splits, METHODS[method], out=Path(place) / "run", **given)
    first, second = (row["seconds"] for row in result.history)
    yield {"method": method, "batch": batch, "images": images, "first": first, "second": second}


def pictures(source: str, plugins: str, how: str, seed: int, count: int, epochs: int) -> Iterator[dict[str, Any]]:
    """A run on pictures from a folder or zip, in float32 or with all that is fast, and what it withstands."""
    splits = advkit.load_data("image-folder", source)
    train = splits.train.sample(count)
    settings = {"run.device": DEVICE.type, "data.transform": "crop-flip", "optimizer.schedule": "one-cycle"}
    settings |= {"validation.fraction": 0, **(FAST if how == "fast" else {})}
    given: dict[str, Any] = {"eps": EPS, "epochs": epochs, "batch_size": 128, "seed": seed, "settings": settings}
    began = wait()
    result = advkit.train(MODEL, Splits(train, splits.test, "crop-flip"), plugins, **given)
    took = wait() - began
    judged = advkit.evaluate(result.model, splits.test, ("clean", "pgd-20"), eps=EPS, audit=False, n=0)
    shares = {name: sum(values) / len(values) for name, values in judged["robust"].items()}
    row = {"plugins": plugins or "PGD-AT", "how": how, "seed": seed, "images": len(train), "epochs": epochs}
    yield {**row, "seconds": took, "judged": len(splits.test), **shares}


def autoattack(source: str, count: int, images: int) -> Iterator[dict[str, Any]]:
    """Seconds of the standard AutoAttack against a net of three epochs."""
    splits = advkit.load_data("image-folder", source)
    settings = {"run.device": DEVICE.type, "validation.fraction": 0, "optimizer.schedule": "one-cycle", **FAST}
    given: dict[str, Any] = {"eps": EPS, "epochs": 3, "batch_size": 128, "settings": settings}
    result = advkit.train(MODEL, Splits(splits.train.sample(count), splits.test, "crop-flip"), (), **given)
    began = wait()
    judged = advkit.evaluate(result.model, splits.test, ("clean", "autoattack"), eps=EPS, audit=False, n=images)
    shares = {name: sum(values) / len(values) for name, values in judged["robust"].items()}
    yield {"seconds": wait() - began, "images": images, **shares}


class StopAfter(Silent):
    """Stops a run after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def stop_requested(self) -> type[advkit.Stopped] | None:
        self.left -= 1
        return None if self.left else advkit.Stopped


def resumes(plugins: str, how: str) -> Iterator[dict[str, Any]]:
    """Whether a run that was stopped within an epoch ends in the bits of one that was not."""
    torch.use_deterministic_algorithms(True)
    images = advkit.load_data("digits", limit=256)
    settings = {"run.device": DEVICE.type, **(FAST if how == "fast" else {})}
    given: dict[str, Any] = {"settings": settings, "eps": 0.15, "epochs": 2, "seed": 0}
    whole = advkit.train("small-cnn", images, plugins, **given).model.state_dict()
    with tempfile.TemporaryDirectory() as place:
        with suppress(advkit.Stopped):
            advkit.train("small-cnn", images, plugins, out=Path(place) / "run", progress=StopAfter(5), **given)
        again = advkit.train(None, images, resume_from=Path(place) / "run").model.state_dict()
    same = all(torch.equal(value, again[key]) for key, value in whole.items())
    yield {"plugins": plugins or "PGD-AT", "how": how, "same": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("steps", "epochs", "pictures", "autoattack", "resumes"))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--methods", default="by hand,PGD-AT,TRADES,AWP,ISEAT")
    parser.add_argument("--variants", default=";".join(VARIANTS))
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--source", default="")
    parser.add_argument("--plugins", default="")
    parser.add_argument("--how", default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=12)
    given = parser.parse_args()
    variants, methods = given.variants.split(";"), given.methods.split(",")
    rows = {
        "steps": lambda: steps(given.batch, given.width, given.turns, methods, variants),
        "epochs": lambda: epochs(given.batch, given.images, methods[-1]),
        "pictures": lambda: pictures(given.source, given.plugins, given.how, given.seed, given.images, given.epochs),
        "autoattack": lambda: autoattack(given.source, 5000, given.images),
        "resumes": lambda: resumes(given.plugins, given.how),
    }[given.part]()
    for row in rows:
        print(json.dumps({"part": given.part, **row}), flush=True)


if __name__ == "__main__":
    main()
