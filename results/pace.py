"""What decoding pictures takes, and what a run takes while other programs use the cores.

    python results/pace.py            # about five minutes; writes pace.md and pace.json beside itself

Decoding: JPEGs of noise that was smoothed, made here, through the data that `data.size` makes, on one core. Waiting:
the README's line for three epochs, with one busy process a core and with none, with threads that wait as advkit has
them wait, asleep at once, and as torch does by itself, in turns. Each run is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments import processor, revision
from PIL import Image, ImageFilter

import advkit
from advkit.rng import derive_key

HERE = Path(__file__).parent
SETS = (("80 to 200 pixels a side", (80, 200), None, 64, 400), ("500x375", None, (500, 375), 224, 120))
"""What they are called; the least and the greatest side, or the size; the side of the parts; how many."""
LINE = ("train", "--plugins", "cat-eps,dirichlet-ls,lsiw", "--eps", "0.15", "--epochs", "3", "--progress", "none")
HOW: dict[str, tuple[str, dict[str, str]]] = {
    "advkit's": ("import advkit, torch", {}),
    "asleep": ("import advkit, torch", {"OMP_WAIT_POLICY": "passive"}),
    "spinning": ("import torch, advkit", {}),
}
"""Who is imported first decides how threads wait for each other, unless the environment says so."""
TURNS = 3


def pictures(folder: Path, sides: tuple[int, int] | None, size: tuple[int, int] | None, count: int) -> None:
    """JPEGs of quality 90 in two classes for training, and one of each for the test."""
    dice = np.random.default_rng(0)
    for split, number in (("train", count), ("test", 2)):
        for place in range(number):
            width, height = size or (int(side) for side in dice.integers(*sides, size=2, endpoint=True))  # type: ignore[misc]
            noise = Image.fromarray(dice.integers(0, 256, (height, width, 3), dtype=np.uint8))
            path = folder / split / f"class-{place % 2}" / f"{place}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise.filter(ImageFilter.GaussianBlur(2)).save(path, quality=90)


def decoding(
    name: str, sides: tuple[int, int] | None, size: tuple[int, int] | None, side: int, count: int, turns: int
) -> dict[str, Any]:
    """Parts that a core makes in a second, drawn as in training, in batches of 40."""
    with tempfile.TemporaryDirectory() as folder:
        pictures(Path(folder), sides, size, count)
        train = advkit.load_data("image-folder", root=folder, size=side).train
        key = derive_key(0, "pace", "parts")
        rates, files = [], sum(path.stat().st_size for path in Path(folder).glob("train/*/*.jpg"))
        for _ in range(turns + 1):
            began = time.perf_counter()
            for places in torch.arange(count).split(40):
                train.images.drawn(places, advkit.Draws(key, places))  # type: ignore[attr-defined]
            rates.append(count / (time.perf_counter() - began))
    return {"pictures": name, "kilobytes": files / count / 1e3, "parts": side, "a_second": spread(rates[1:])}


def waiting(first: str, said: dict[str, str], busy: int) -> float:
    """Seconds of the README's line, three epochs, beside `busy` processes that never rest."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        with tempfile.TemporaryDirectory() as folder:
            program = f"{first}, runpy; runpy.run_module('advkit', run_name='__main__', alter_sys=True)"
            own = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
            environment = {name: value for name, value in os.environ.items() if name not in own} | said
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, "-c", program, *LINE, "--out", f"{folder}/run"],
                env=environment,
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            return time.perf_counter() - began
    finally:
        for other in others:
            other.kill()
            other.wait()


def spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def markdown(measured: dict[str, Any]) -> str:
    here = measured["machine"]

    def told(values: dict[str, float], digits: int) -> str:
        low, mid, high = (f"{values[share]:,.{digits}f}" for share in ("min", "median", "max"))
        return f"**{mid}** ({low} to {high})"

    lines = [
        "# Decoding, and busy cores",
        "",
        "Written by `make bench-pace` (`results/pace.py`); the raw figures are in `pace.json`.",
        "",
        f"{here['processor']}, cores: {here['cores']}, torch {here['torch']}, Python {here['python']}, advkit "
        f"{here['advkit']}, revision {here['revision']}. Median, least and greatest of {measured['turns']} turns.",
        "",
        "## Pictures that one core decodes",
        "",
        "JPEGs of smoothed noise, quality 90, made into parts drawn at random, as `data.size` has it.",
        "",
        "| pictures | kilobytes each | parts of | a second |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['pictures']} | {row['kilobytes']:.0f} | {row['parts']} | {told(row['a_second'], 0)} |"
        for row in measured["decoding"]
    ]
    lines += [
        "",
        "## A run beside other programs",
        "",
        "Seconds of the command below, beside busy processes. Threads wait for each other in three ways, which take",
        "turns: as advkit's do, which spin for some microseconds and then sleep; by sleeping at once; and by spinning,",
        "as torch's do if it is imported before advkit.",
        "",
        f"    advkit {' '.join(LINE)}",
        "",
        f"| busy processes | {' | '.join(HOW)} |",
        "|---|---|---|---|",
    ]
    lines += [f"| {row['busy']} | {' | '.join(told(row[how], 1) for how in HOW)} |" for row in measured["waiting"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=TURNS, help="of everything")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of pace.md and pace.json")
    chosen = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])
    decoded = [decoding(*row, chosen.turns) for row in SETS]
    os.sched_setaffinity(0, cores)
    waited = []
    for busy in (0, len(cores)):
        seconds: dict[str, list[float]] = {how: [] for how in HOW}
        for _ in range(chosen.turns):
            for how, (first, said) in HOW.items():
                seconds[how].append(waiting(first, said, busy))
        waited.append({"busy": busy, **{how: spread(values) for how, values in seconds.items()}})
    machine = {
        "processor": processor(),
        "cores": len(cores),
        "revision": revision(),
        "advkit": advkit.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    measured = {"machine": machine, "turns": chosen.turns, "decoding": decoded, "waiting": waited}
    (chosen.out / "pace.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    (chosen.out / "pace.md").write_text(markdown(measured), encoding="utf-8")
    print(markdown(measured))


if __name__ == "__main__":
    main()
