"""How the cost of a step grows: with batch, classes, samples and plugins.

    python results/growth.py             # two minutes on an idle core; writes growth.md and growth.json
    python results/growth.py --most 1e6  # fewer samples

A step of PGD-AT on a net of one convolution, whose own cost is small beside what is asked. Each row of samples is a
process of its own. Seconds are the processor's, of one thread. The bytes of a step are those of all tensors that it
makes, freed again or not, so they are the same on a busy machine. What mapped images cost by their number is measured
by data_scale.py; its figures are taken from data-scale.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import machine
from data_scale import memory
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import advkit

HERE = Path(__file__).parent
SHAPE, WIDTH, STEPS = (3, 32, 32), 8, 3
BATCH, CLASSES, SAMPLES = 32, 10, 50_000
BATCHES, KINDS = (16, 32, 64, 128, 256, 512), (10, 30, 100, 300, 1000)
NUMBERS = (10_000, 100_000, 1_000_000, 10_000_000, 50_000_000)
PLUGINS = (
    *("cat-eps", "dirichlet-ls", "lsiw", "label-smoothing", "cat-margin", "mlcat"),
    *("alp", "fat", "lsr", "cure", "gradalign", "rwp"),
)
"""In whose order plugins are added; each brings its companions, and `rwp` comes in the place of lsiw's `awp`."""


class Made(TorchDispatchMode):
    """Counts the bytes of the tensors that are made, not of views of others."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        given = {one.untyped_storage().data_ptr() for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        for one in tree_leaves(answer):
            if isinstance(one, Tensor) and one.untyped_storage().data_ptr() not in given:
                self.bytes += one.untyped_storage().nbytes()
        return answer


def measured(
    plugins: Sequence[str] = (), batch: int = BATCH, classes: int = CLASSES, samples: int = SAMPLES
) -> dict[str, Any]:
    """Milliseconds and bytes a step, and what the process holds for its state."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, WIDTH, 3, padding=1), nn.ReLU(), nn.AvgPool2d(8), nn.Flatten()
    net = nn.Sequential(*layers, nn.Linear(WIDTH * 16, classes))
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    x, y = torch.rand(batch, *SHAPE), torch.randint(0, classes, (batch,))
    before = memory()["own"]
    settings = {"attack.steps": STEPS}
    step = advkit.Step(net, optimizer, plugins, num_samples=samples, eps=8 / 255, settings=settings)
    index = torch.arange(batch) * (samples // batch)  # all over the state
    spent = list(seconds(lambda: step(x, y, index, epoch=0, occurrence=torch.full_like(index, step.state.step))))
    held = memory()["own"] - before
    with Made() as made:
        report = step(x, y, index, epoch=0, occurrence=torch.full_like(index, step.state.step))
    state = sum(value.numel() * value.element_size() for value in step.state.samples.values())
    passes = {phase: vars(count) for phase, count in report.passes.items()}
    return {"ms": 1000 * statistics.median(spent), "bytes": made.bytes, "state": state, "own": held, "passes": passes}


def seconds(step: Any, warm: int = 1, least: int = 5, budget: float = 0.5) -> Iterator[float]:
    """Seconds of the processor, `least` of them and more until the `budget` is spent."""
    began = time.process_time()
    for number in range(40):
        before = time.process_time()
        step()
        if number >= warm:
            yield time.process_time() - before
        if number >= warm + least and time.process_time() - began > budget:
            return


def with_state(samples: int) -> dict[str, Any]:
    return measured(["cat-eps"], samples=samples)


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Of log y over log x, by least squares: 1 is as much, 0 is nothing."""
    return float(np.polyfit(np.log(xs), np.log(ys), 1)[0])


def table(what: str, xs: Sequence[int], rows: Sequence[dict[str, Any]], *, own: bool = False) -> list[str]:
    """A row a size, and the slopes over all and over the two largest."""
    columns = {"ms a step": ("ms", 1.0), "MB made a step": ("bytes", 1e6)}
    if own:
        columns |= {"state, MB": ("state", 1e6), "memory of the process, MB": ("own", 1e6)}
    lines = [f"| {what} | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    values = {key: [max(row[key], 1) / unit for row in rows] for key, unit in columns.values()}
    for place, x in enumerate(xs):
        lines.append(f"| {x:,} | " + " | ".join(f"{values[key][place]:.4g}" for key, _ in columns.values()) + " |")
    for name, part in (("slope", slice(None)), ("slope of the last two", slice(-2, None))):
        cells = (f"{slope(xs[part], values[key][part]):.2f}" for key, _ in columns.values())
        lines.append(f"| *{name}* | " + " | ".join(cells) + " |")
    return lines


def page(told: dict[str, Any]) -> str:
    here, mapped = told["machine"], json.loads((HERE / "data-scale.json").read_text())["rows"]
    began, ended = told["load"]
    busy = "It was under load while times were taken, so they are too long. " * (max(began, ended) > told["cores"])
    lines = [
        "# How the cost of a step grows",
        "",
        f"A step of PGD-AT, {STEPS} attack steps, on a net of one convolution of {WIDTH} channels and a linear layer,",
        f"images of 3x32x32; unless stated otherwise {BATCH} images, {CLASSES} classes, {SAMPLES:,} samples.",
        "*ms* are medians of processor time. *Made* are the bytes of all tensors that a step makes, freed again or",
        "not. Slopes are between logarithms: 1 is proportional growth, 0 none.",
        "",
        f"Load of the machine of {told['cores']} cores: {began:.1f} when this began, {ended:.1f} when it ended.",
        f"{busy}Bytes are counted, so they do not depend on load.",
        "",
        "## Batch",
        "",
        *table("images", BATCHES, told["batch"]),
        "",
        "## Classes",
        "",
        *table("classes", KINDS, told["classes"]),
        "",
        "## Samples of per-sample state",
        "",
        "CAT's budgets, 4 bytes a sample; each row is a process of its own. A `Step` counts visits in 4 more.",
        "",
        *table("samples", told["numbers"], told["samples"], own=True),
        "",
        "## Samples of mapped images",
        "",
        "By [data_scale.py](data-scale.md), on its machine: milliseconds to take a batch of 512 images.",
        "",
    ]
    for layout, name in (("extra", "extra images, holes"), ("alone", "the training set, holes")):
        rows = [row for row in mapped if row["layout"] == layout]
        xs, ys = [row["n"] for row in rows], [row["take_ms"] for row in rows]
        lines.append(
            f"- {name}: {ys[0]:.2f} ms of {xs[0]:,}, {ys[-1]:.2f} ms of {xs[-1]:,}; slope {slope(xs, ys):.2f}; "
            f"memory of the process, slope {slope(xs, [row['own_bytes'] for row in rows]):.2f}"
        )
    lines += [
        "",
        "## Plugins",
        "",
        "Each row adds a plugin with its companions. A step costs as much as its passes; the last column is per pass.",
        "",
        "| plugins | with | passes | ms a step | MB made a step | ms a pass |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for number, (name, row) in enumerate(zip(["none", *told["plugins"]], told["added"], strict=True)):
        passes = sum(sum(count.values()) for count in row["passes"].values())
        lines.append(
            f"| {number} | {name} | {passes} | {row['ms']:.1f} | {row['bytes'] / 1e6:.1f} | {row['ms'] / passes:.2f} |"
        )
    lines += [
        "",
        f"Measured with advkit {here['advkit']}, torch {here['torch']}, revision {here['revision']}, Python "
        f"{here['python']}, {here['processor']}, {here['threads']} thread; `make bench-growth`.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=float, default=max(NUMBERS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    began = os.getloadavg()[0]
    numbers = [n for n in NUMBERS if n <= given.most]
    # Before anything else is measured: each row is a process of its own, a copy of one that has computed nothing.
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        samples = pool.map(with_state, numbers, chunksize=1)
    told = {
        "batch": [measured(batch=n) for n in BATCHES],
        "classes": [measured(classes=n) for n in KINDS],
        "numbers": numbers,
        "samples": samples,
        "plugins": PLUGINS,
        "added": [measured(PLUGINS[:n]) for n in range(len(PLUGINS) + 1)],
        "load": [began, os.getloadavg()[0]],
        "cores": os.cpu_count(),
        "machine": machine("processor"),
    }
    (HERE / "growth.json").write_text(json.dumps(told, indent=1) + "\n")
    (HERE / "growth.md").write_text(page(told))


if __name__ == "__main__":
    main()
