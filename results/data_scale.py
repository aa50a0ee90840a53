"""What data cost by their number: seconds and bytes a step, with images that stay in their file.

    python results/data_scale.py            # all rows, then results/data-scale.json and .md
    python results/data_scale.py --most 1e6

Each row is a process of its own. The files of most rows are made of holes: they have the length and the layout of N
images of 3x32x32 and no content on the disk, so what is measured is the engine and the memory map, not a disk. One row
has real bytes, read once after the system was told to forget them (posix_fadvise), and once more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments import processor, revision

import advkit
from advkit import Dataset, Splits, mapped_images
from advkit.data.convert import convert
from advkit.training.progress import Silent

HERE = Path(__file__).parent
SHAPE, LABELLED, BATCH, SHARE, STEPS = (3, 32, 32), 50_000, 512, 0.7, 40
BYTES = 3 * 32 * 32
SIZES = (10_000, 100_000, 1_000_000, 5_000_000, 50_000_000)
REAL = 1_000_000


class DoneMeasuring(Exception):
    """All is measured."""


def memory() -> dict[str, int]:
    """Bytes that the process has for itself, and of files, as Linux counts them."""
    told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(told[key].split()[0]) * 1024 for name, key in (("own", "RssAnon"), ("peak", "VmHWM"))}


def holes(folder: Path, n: int) -> None:
    """A folder of n images without content, all of class 0."""
    np.savez(folder / "one.npz", image=np.zeros((2, 32, 32, 3), np.uint8), label=np.array([0, 9]))
    convert(str(folder / "one.npz"), folder / "m", tell=lambda note: None)
    for name, dtype, shape in (("images", np.uint8, (n, *SHAPE)), ("labels", np.int64, (n,))):
        with open(folder / "m" / f"train-{name}.npy", "wb") as out:
            descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
            header = {"descr": descr, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(out, header)
            out.truncate(out.tell() + int(np.prod(shape)) * np.dtype(dtype).itemsize)
    path = folder / "m" / "manifest.json"
    told = json.loads(path.read_text())
    told["splits"]["train"] |= {"shape": [n, *SHAPE], "levels": [[n * 1024] + [0] * 255] * 3}
    path.write_text(json.dumps(told))


def real(folder: Path, n: int) -> float:
    """A folder of n images of random bytes, converted from an npz; the seconds that took."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "g.npz", image=images, label=rng.integers(0, 10, n))
    del images
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom advkit.data.convert import convert\n"
        "before = time.perf_counter()\nconvert(sys.argv[1], Path(sys.argv[2]))\n"
        "spent = time.perf_counter() - before\n"
        "peak = [line for line in open('/proc/self/status') if line.startswith('VmHWM')][0].split()[1]\n"
        "print(spent, peak)"
    )
    line = [sys.executable, "-c", program, str(folder / "g.npz"), str(folder / "m")]
    seconds, peak = subprocess.run(line, check=True, capture_output=True, text=True).stdout.split()
    print(json.dumps({"conversion": {"n": n, "seconds": float(seconds), "peak": int(peak) * 1024}}))
    (folder / "g.npz").unlink()
    return float(seconds)


def labelled() -> Splits:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (LABELLED, *SHAPE), dtype=torch.uint8, generator=generator)
    whole = Dataset("labelled", images, torch.arange(LABELLED) % 10, tuple("0123456789"))
    return Splits(whole, whole.take(slice(100)), "crop-flip")


class Measured(Silent):
    """Times the feed of a run that is about to begin, and ends it."""

    def __init__(self, began: float, folder: Path | None) -> None:
        self.began, self.folder = began, folder
        self.row: dict[str, Any] = {}

    def begin(self, trainer: Any) -> None:
        self.row["begin_s"] = time.perf_counter() - self.began
        before = time.perf_counter()
        batches = trainer.feed.batches(0)
        self.row["order_s"] = time.perf_counter() - before
        taken = trainer.feed.train_set.images
        self.row["take_ms"] = timed(taken.__getitem__, batches[:STEPS])
        self.row["images_ms"] = timed(
            lambda index: trainer.feed.images(index, torch.zeros_like(index)), batches[:STEPS]
        )
        if self.folder is not None:
            forget(self.folder)
            self.row["cold_ms"] = timed(taken.__getitem__, batches[STEPS : 2 * STEPS])
            self.row["warm_ms"] = timed(taken.__getitem__, batches[STEPS : 2 * STEPS])
        self.row["state_bytes"] = sum(v.numel() * v.element_size() for v in trainer.panel.state.samples.values())
        self.row["memory"] = memory()
        raise DoneMeasuring


def timed(take: Callable[[torch.Tensor], Any], batches: list[torch.Tensor]) -> float:
    """Milliseconds, median."""
    spent = []
    for index in batches:
        before = time.perf_counter()
        take(index)
        spent.append(time.perf_counter() - before)
    return 1000 * statistics.median(spent)


def forget(folder: Path) -> None:
    """Let the system drop what it keeps of the images."""
    with open(folder / "m" / "train-images.npy", "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def row(layout: str, n: int) -> dict[str, Any]:
    """One row: `extra`, or `real`, of labelled images in memory and n mapped ones; `alone` of n mapped ones."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        if layout == "real":
            real(folder, n)
        else:
            holes(folder, n)
        settings = {
            "model.name": "small-cnn",
            "run.batch_size": BATCH,
            "validation.fraction": 0.02048,
            "run.threads": 1,
        }
        plugins, options = ["cat-eps"], {}
        if layout in ("extra", "real"):
            data, plugins = labelled(), ["cat-eps", "extra-data"]
            options = {"extra-data": {"root": str(folder / "m"), "share": SHARE}}
        before = memory()["own"]
        began = time.perf_counter()
        if layout == "alone":
            mapped = mapped_images(folder / "m")
            data = Splits(mapped, mapped, "crop-flip")
        told = Measured(began, folder if layout == "real" else None)
        with contextlib.suppress(DoneMeasuring):
            advkit.train(None, data, plugins, options=options, settings=settings, progress=told)
        told.row["own_bytes"] = told.row["memory"]["own"] - before
        return {"layout": layout, "n": n, **told.row}


def page(rows: list[dict[str, Any]], conversion: dict[str, Any] | None) -> str:
    """The table, and how to read it."""
    names = {"extra": "extra, holes", "alone": "alone, holes", "real": "extra, real bytes"}
    lines = [
        "# Cost by number of images",
        "",
        f"Images of 3x32x32, batches of {BATCH}, CAT's budgets as per-sample state. `extra`: {LABELLED:,} labelled",
        f"images in memory and N mapped ones, {SHARE:.0%} of a batch. `alone`: N mapped images are the training set.",
        "Holes: files of the right length without content, so no disk is measured.",
        "",
        "| images | N | s to begin | s an epoch's order | ms to take a batch | ms with augmentation | state, MB | "
        "memory, MB | peak, MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in rows:
        own = one["own_bytes"]
        lines.append(
            f"| {names[one['layout']]} | {one['n']:,} | {one['begin_s']:.2f} | {one['order_s']:.2f} | "
            f"{one['take_ms']:.2f} | {one['images_ms']:.0f} | {one['state_bytes'] / 1e6:.1f} | {own / 1e6:.0f} | "
            f"{'' if one['layout'] == 'real' else round(one['memory']['peak'] / 1e6)} |"  # it made the images, too
        )
    lines += [
        "",
        "Memory is the process's own (RssAnon) after some batches, above what it had before the run; the peak is that",
        "of the whole process including the pages of files that it read (VmHWM).",
        "A mapped image costs no memory of its own: its pages are in the system's cache.",
    ]
    for one in rows:
        if "cold_ms" in one:
            lines += [
                "",
                f"With {one['n']:,} images of real bytes a batch takes {one['cold_ms']:.1f} ms after the system was",
                "told to drop the file from its cache (a host below it may have kept it), and",
                f"{one['warm_ms']:.1f} ms when it is taken again.",
            ]
    if conversion:
        lines += [
            "",
            f"`advkit data prepare mapped` made that folder of an npz in {conversion['seconds']:.0f} s, "
            f"{conversion['n'] * BYTES / conversion['seconds'] / 1e6:.0f} MB/s, with at most",
            f"{conversion['peak'] / 1e6:.0f} MB of memory in the whole process, torch included.",
        ]
    lines += [
        "",
        f"Measured with advkit {advkit.__version__}, torch {torch.__version__}, revision {revision()}, Python "
        f"{platform.python_version()}, {processor()}, one thread of {os.cpu_count()} cores.",
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=float, default=max(SIZES))
    parser.add_argument("--row", nargs=2, metavar=("LAYOUT", "N"))
    given = parser.parse_args()
    if given.row:
        print(json.dumps(row(given.row[0], int(given.row[1]))))
        return
    wanted = [("extra", n) for n in SIZES] + [("alone", n) for n in SIZES[1:]] + [("real", REAL)]
    rows, conversion = [], None
    for layout, n in wanted:
        if n > given.most:
            continue
        line = [sys.executable, __file__, "--row", layout, str(n)]
        ran = subprocess.run(line, capture_output=True, text=True)
        if ran.returncode:
            print(f"{layout} {n}: failed, {ran.stderr.splitlines()[-1] if ran.stderr else ran.returncode}", flush=True)
            continue
        for told in map(json.loads, ran.stdout.splitlines()):
            conversion = told.get("conversion", conversion)
            if "layout" in told:
                rows.append(told)
                print(json.dumps(told), flush=True)
    (HERE / "data-scale.json").write_text(json.dumps({"rows": rows, "conversion": conversion}, indent=1) + "\n")
    (HERE / "data-scale.md").write_text(page(rows, conversion))


if __name__ == "__main__":
    main()
