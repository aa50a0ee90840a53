"""What a GPU makes of it: seconds a step by precision, layout and compiling, what it may not do, and a real net.

    make gpu                                          # writes gpu.md and gpu.json; ends with a sentence without CUDA
    python results/gpu.py --pictures FOLDER_OR_ZIP    # trains PRN-18 on a folder or zip of train|test/CLASS/* too

Every figure is written as soon as it is measured; what the time limit leaves out is named.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import textwrap
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from bench import STEPS, by_hand, machine, net, noise, sgd
from torch import nn

import advkit
from advkit.training.progress import Silent

PAGE = Path(__file__).parent / "gpu"
EPS, IMAGES = 8 / 255, 50_000
METHODS = {"PGD-AT": "", "TRADES": "trades", "AWP": "awp", "ISEAT": "lsiw"}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "float32": {},
    "TF32": {"run.matmul": "high"},
    "bf16": {"run.precision": "bf16", "run.matmul": "high"},
    "bf16, channels_last": {"run.precision": "bf16", "run.matmul": "high"},
    "bf16, channels_last, compiled": {"run.precision": "bf16", "run.matmul": "high"},
}
HEADS = (
    *("batch", "method", "variant", "ms a step", "first step, s", "s an epoch"),
    *("beside the bound", "beside float32", "peak MiB"),
)
ALL_COMPILED = ("PGD-AT", "ISEAT")
"""Each has to be compiled for itself, which takes most of the time there is."""


class OutOfTime(Exception):
    """The limit is near."""


class Clock:
    """Seconds left of a limit."""

    def __init__(self, limit: float) -> None:
        self.end = time.monotonic() + limit

    def need(self, seconds: float) -> None:
        if time.monotonic() + seconds > self.end:
            raise OutOfTime


# ---------------------------------------------------------------------- steps


def seconds(contestant: Any, batches: Any, device: torch.device, turns: int) -> tuple[float, float]:
    """Median of a step, and the first one's, which compiles."""
    spent = []
    for turn in range(turns + 3):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        contestant(batches[turn % len(batches)])
        if device.type == "cuda":
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - began)
    return statistics.median(spent[3:]), spent[0]


def steps(device: torch.device, width: int, batch: int, turns: int, clock: Clock) -> Iterator[dict[str, Any]]:
    """A row for each method and variant; `bound` is PGD-AT's passes by hand in float32."""
    batches = [tuple(part.to(device) for part in sample) for sample in noise(batch, 3, 32)]
    clock.need(10)
    loop = by_hand(net("preact-resnet18", 3, 32, width=width).to(device), EPS, checked=False)
    took, first = seconds(loop, batches, device, turns)
    yield {"method": "PGD-AT by hand", "variant": "float32", "batch": batch, "seconds": took, "first": first}
    for variant, settings in VARIANTS.items():
        for method, plugins in METHODS.items():
            if "compiled" in variant and method not in ALL_COMPILED:
                continue
            clock.need(60 if "compiled" in variant else 10)
            model = net("preact-resnet18", 3, 32, width=width).to(device)
            if "channels_last" in variant:
                model = model.to(memory_format=torch.channels_last)
            wrapped: nn.Module = torch.compile(model) if "compiled" in variant else model
            step = advkit.Step(
                wrapped, sgd(model), plugins, num_samples=4 * batch, num_classes=10, eps=EPS, settings=settings
            )
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            took, first = seconds(lambda sample, step=step: step(*sample, epoch=0), batches, device, turns)
            peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None
            yield {
                "method": method,
                "variant": variant,
                "batch": batch,
                "seconds": took,
                "first": first,
                "epoch": took * IMAGES / batch,
                "peak_mib": peak,
                "cost": step.composition.at(0).cost,
            }


def synchronisations(device: torch.device) -> int:
    """How often a step of PGD-AT waits for the device, after the first; the checks want one."""
    model = net("preact-resnet18", 3, 32, width=16).to(device)
    step = advkit.Step(model, sgd(model), "", num_samples=64, num_classes=10, eps=EPS)
    (x, y, index), *_ = noise(16, 3, 32)
    sample = x.to(device), y.to(device), index.to(device)
    for epoch in range(2):
        step(*sample, epoch=epoch)
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step(*sample, epoch=2)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(one.message) for one in waits)


class StopAfter(Silent):
    """Stops a run after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def stop_requested(self) -> type[advkit.Stopped] | None:
        self.left -= 1
        return None if self.left else advkit.Stopped


def resumes(device: torch.device) -> bool:
    """Whether a run that was stopped within an epoch ends in the bits of one that was not."""
    torch.use_deterministic_algorithms(True)
    images = advkit.load_data("digits", limit=256)
    given: dict[str, Any] = {"settings": {"run.device": device.type}, "eps": 0.15, "epochs": 2, "seed": 0}
    try:
        whole = advkit.train("small-cnn", images, "lsiw", **given).model.state_dict()
        with tempfile.TemporaryDirectory() as place:
            with suppress(advkit.Stopped):
                advkit.train("small-cnn", images, "lsiw", out=Path(place) / "run", progress=StopAfter(5), **given)
            again = advkit.train(None, images, resume_from=Path(place) / "run").model.state_dict()
    finally:
        torch.use_deterministic_algorithms(False)
    return all(torch.equal(value, again[key]) for key, value in whole.items())


# ---------------------------------------------------------------------- a real net


def on_pictures(device: torch.device, source: str, epochs: int, clock: Clock) -> Iterator[dict[str, Any]]:
    """PGD-AT and ISEAT on pictures, bf16 beside float32 from one seed, with the settings of their papers."""
    splits = advkit.load_data("image-folder", source)
    for plugins in ("", "lsiw"):
        for precision in ("float32", "bf16"):
            clock.need(60)
            began = time.perf_counter()
            result = advkit.train(
                "preact-resnet18",
                splits,
                plugins,
                settings={
                    "run.device": device.type,
                    "run.precision": precision,
                    "run.matmul": "high",
                    "run.memory_format": "channels_last",
                    "data.transform": "crop-flip",
                    "optimizer.schedule": "one-cycle",
                    "validation.every_epochs": epochs,
                },
                eps=EPS,
                epochs=epochs,
                batch_size=128,
                seed=0,
            )
            seconds = time.perf_counter() - began
            record = advkit.evaluate(result.model, splits.test.sample(1000), ("clean", "pgd-20"), eps=EPS, audit=False)
            shares = {name: sum(values) / len(values) for name, values in record["robust"].items()}
            yield {
                "plugins": plugins or "PGD-AT",
                "precision": precision,
                "seconds": seconds,
                "epochs": epochs,
                **shares,
            }


# ---------------------------------------------------------------------- page


def page(figures: Mapping[str, Any]) -> None:
    here = figures["machine"]
    lines = [
        "# On a GPU",
        "",
        *textwrap.wrap(
            f"{figures['device']}, torch {here['torch']}, Python {here['python']}, advkit {here['advkit']}, revision "
            f"{here['revision']}. PreAct ResNet-18 of width {figures['width']}, images of 3x32x32 made of noise, "
            f"{STEPS} attack steps in eval mode; medians of steps after three. An epoch is 50,000 images. *Bound*: "
            "the loop by hand of PGD-AT in float32, times what `advkit plan` says the method costs beside PGD-AT.",
            120,
        ),
        "",
        f"| {' | '.join(HEADS)} |",
        f"|{'---|' * len(HEADS)}",
    ]
    rows = figures["steps"]
    for row in rows:
        same = [one for one in rows if one["batch"] == row["batch"]]
        hand = next((one["seconds"] for one in same if one["method"] == "PGD-AT by hand"), None)
        at = next((one.get("cost") for one in same if one["method"] == "PGD-AT"), None)
        slow = next((o["seconds"] for o in same if o["method"] == row["method"] and o["variant"] == "float32"), None)
        bound = f"{row['seconds'] / (hand * row['cost'] / at):.2f}" if hand and at and "cost" in row else ""
        faster = f"{slow / row['seconds']:.2f} x" if slow else ""
        epoch = f"{row['epoch']:.1f}" if "epoch" in row else ""
        peak = f"{row['peak_mib']:.0f}" if row.get("peak_mib") else ""
        cells = [row["batch"], row["method"], row["variant"], f"{1000 * row['seconds']:.1f}", f"{row['first']:.1f}"]
        lines.append(f"| {' | '.join(map(str, [*cells, epoch, bound, faster, peak]))} |")
    lines += ["", *(f"- {name}: {said}." for name, said in figures["checks"].items())]
    if figures["pictures"]:
        lines += ["", "| pictures | precision | epochs | s | clean | pgd-20 on 1,000 |", "|---|---|---|---|---|---|"]
    for row in figures["pictures"]:
        cells = [row["plugins"], row["precision"], row["epochs"], f"{row['seconds']:.0f}"]
        lines.append(f"| {' | '.join(map(str, cells))} | {row['clean']:.3f} | {row['pgd-20']:.3f} |")
    if figures["left_out"]:
        lines += ["", f"Left out for want of time: {', '.join(figures['left_out'])}."]
    PAGE.with_suffix(".md").write_text("\n".join(lines) + "\n")
    PAGE.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", help="a folder or zip of train|test/CLASS/*")
    parser.add_argument("--epochs", type=int, default=6, help="on the pictures")
    parser.add_argument("--limit", type=float, default=400, help="seconds in all")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batches", default="128,512")
    parser.add_argument("--device", default="cuda", help="cpu tries the script out")
    chosen = parser.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        print("No CUDA device here: nothing was measured. Run `make gpu` on a machine that has one.")
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic settings ask for
    device, clock = torch.device(chosen.device), Clock(chosen.limit)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, to try the script out"
    figures: dict[str, Any] = {"device": name, "width": chosen.width, "machine": machine("wall")}
    figures |= {"steps": [], "checks": {}, "pictures": [], "left_out": []}
    turns = 10 if device.type == "cuda" else 2
    figures["checks"]["a run stopped within an epoch ends in the bits of one that was not"] = (
        "yes" if resumes(device) else "no"
    )
    if device.type == "cuda":
        figures["checks"]["waits of a step of PGD-AT for the device (the check for NaN is one)"] = synchronisations(
            device
        )
    works: list[tuple[str, str, Iterator[dict[str, Any]]]] = [
        ("steps", f"steps of {batch}", steps(device, chosen.width, int(batch), turns, clock))
        for batch in chosen.batches.split(",")
    ]
    if chosen.pictures:
        works.insert(1, ("pictures", "the pictures", on_pictures(device, chosen.pictures, chosen.epochs, clock)))
    for kind, said, rows in works:
        try:
            for row in rows:
                figures[kind].append(row)
                print(row, flush=True)
                page(figures)
        except OutOfTime:
            figures["left_out"].append(f"the rest of {said}")
    page(figures)


if __name__ == "__main__":
    main()
