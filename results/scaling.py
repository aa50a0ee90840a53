"""How training in several processes would scale: bytes that a step sends, counted; and a model of what follows.

    python results/scaling.py      # a minute; writes scaling.md and scaling.json

Nothing here is a time that was measured on several machines or GPUs. Counted are the calls and bytes of a step of two
gloo processes. The model is arithmetic from those counts and from figures that the page names as assumed.
"""

from __future__ import annotations

import json
import os
import socket
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from bench import machine, net, noise, sgd
from torch import Tensor

import advkit

PAGE = Path(__file__).parent / "scaling"
EPS, BATCH = 8 / 255, 8
CASES: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "PGD-AT": ("", {}),
    "TRADES": ("trades", {}),
    "AWP": ("awp", {}),
    "ISEAT": ("lsiw", {}),
    "PGD-AT, attack.mode=train": ("", {"attack.mode": "train"}),
    "PGD-AT, run.batchnorm=local": ("", {"run.batchnorm": "local"}),
}
EPOCH_SECONDS, IMAGES, LINKS = 10.0, 50_000, {"25 GB/s, 20 us a call": (25e9, 20e-6), "200 GB/s, 20 us": (200e9, 20e-6)}
"""Assumed: an epoch of PGD-AT on one GPU, and what joins them (a 200 Gbit/s network; a link within a machine)."""
SIZES = (1, 2, 4, 8, 16, 32, 64)


# ---------------------------------------------------------------------- counted


def count(rank: int, port: int, into: str) -> None:
    """In one of two processes: calls and bytes of a step, by case."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    tally = {"calls": 0, "bytes": 0}

    def counted(call: Callable[..., Any], place: int) -> Callable[..., Any]:
        def counting(*arguments: Any, **named: Any) -> Any:
            sent: Tensor = arguments[place]
            tally["calls"] += 1
            tally["bytes"] += sent.numel() * sent.element_size()
            return call(*arguments, **named)

        return counting

    for name, place in (("all_reduce", 0), ("all_gather", 1), ("broadcast", 0)):
        setattr(dist, name, counted(getattr(dist, name), place))
    counts = {}
    for case, (plugins, settings) in CASES.items():
        model = net("preact-resnet18", 3, 32, width=64)
        step = advkit.Step(
            model,
            sgd(model),
            plugins,
            num_samples=64,
            num_classes=10,
            eps=EPS,
            settings={"attack.steps": 10, **settings},
        )
        for x, y, index in noise(BATCH, 3, 32, count=3):
            tally |= {"calls": 0, "bytes": 0}  # the first steps of an epoch look at more than the others do
            own = slice(rank, None, 2)
            step(x[own], y[own], index[own], epoch=0)
        counts[case] = {**tally, "cost": step.composition.at(0).cost}
    if not rank:
        parameters = sum(value.numel() for value in model.parameters())
        Path(into).write_text(json.dumps({"parameters": parameters, "counts": counts}))
    dist.destroy_process_group()


# ---------------------------------------------------------------------- modelled


def seconds(row: Mapping[str, float], at: float, images: float, processes: int, link: tuple[float, float]) -> float:
    """Of a step in which each process has `images`: compute, and rings that do not overlap with it."""
    compute = EPOCH_SECONDS / IMAGES * images * row["cost"] / at
    width, latency = link
    wait = row["bytes"] * 2 * (processes - 1) / processes / width + row["calls"] * latency
    return compute + (wait if processes > 1 else 0)


def page(figures: Mapping[str, Any]) -> None:
    counts, here = figures["counts"], figures["machine"]
    lines = [
        "# Several processes: bytes counted, time modelled",
        "",
        *textwrap.wrap(
            f"PreAct ResNet-18 of width 64, {figures['parameters']:,} weights, images of 3x32x32. Counted in a step "
            "of two gloo processes, after the first two: calls of all_reduce, all_gather and broadcast, and the "
            "bytes that one process passes to them. With `run.batchnorm=synchronised`, the default, each BatchNorm "
            "sends two sums a forward in train mode.",
            120,
        ),
        "",
        "| a step of | calls | MB | cost in forwards |",
        "|---|---|---|---|",
        *(f"| {case} | {row['calls']} | {row['bytes'] / 1e6:.1f} | {row['cost']} |" for case, row in counts.items()),
        "",
        "## The model",
        "",
        *textwrap.wrap(
            "t(n) = c b + bytes 2 (n - 1) / (n w) + calls l: c seconds of compute an image, b images a process, a "
            "ring of width w, l seconds a call, nothing overlapped. **Not measured, assumed**: an epoch of PGD-AT "
            f"takes {EPOCH_SECONDS:.0f} s on one GPU (the others by their cost), c is the same for small batches, and "
            "the two links. Weak scaling: 128 images a process; the share kept of n times one process's images a "
            "second. Strong scaling: 512 images in all; times faster than one process.",
            120,
        ),
    ]
    for name, link in LINKS.items():
        for kind in ("weak, share kept", "strong, times faster"):
            lines += ["", f"| {name}; {kind} | {' | '.join(map(str, SIZES))} |", f"|{'---|' * (len(SIZES) + 1)}"]
            for case, row in counts.items():
                cells = []
                for n in SIZES:
                    images = 128 if kind.startswith("weak") else 512 / n
                    alone = 128 if kind.startswith("weak") else 512
                    gain = seconds(row, counts["PGD-AT"]["cost"], alone, 1, link) / seconds(
                        row, counts["PGD-AT"]["cost"], images, n, link
                    )
                    cells.append(f"{gain:.2f}" if kind.startswith("weak") else f"{gain:.1f}")
                lines.append(f"| {case} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Counted with torch {here['torch']}, advkit {here['advkit']}, revision {here['revision']}.",
        "`make results-scaling`.",
    ]
    PAGE.with_suffix(".md").write_text("\n".join(lines) + "\n")
    PAGE.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")


def main() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    into = PAGE.with_suffix(".json")
    mp.spawn(count, args=(port, str(into)), nprocs=2)
    page({**json.loads(into.read_text()), "machine": machine("no")})


if __name__ == "__main__":
    main()
