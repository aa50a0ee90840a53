"""What a GPU makes of it: tests, seconds a step by precision, layout and compiling, epochs, and a real net.

    make gpu                                          # writes gpu.md and gpu.json; ends with a sentence without CUDA
    python results/gpu.py --pictures FOLDER_OR_ZIP    # trains PRN-18 on a folder or zip of train|test/CLASS/* too

What is not timed runs first, together; then what is timed, alone (`gpu_parts.py`). Every figure is written as soon as
it is measured, and what the time limit leaves out is named.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from bench import STEPS, machine
from gpu_parts import FAST, IMAGES, METHODS, VARIANTS

HERE = Path(__file__).parent
PAGE, TESTS = HERE / "gpu", HERE.parent / "tests"
COMPILED = next(name for name, settings in VARIANTS.items() if settings is FAST)
SEEDS = (0, 1, 2)


class Work:
    """A process that measures, with what it prints in a file."""

    def __init__(self, name: str, arguments: Sequence[str], place: Path, **environment: str) -> None:
        self.name, self.log, self.failed = name, place / f"{name}.log", ""
        command = [sys.executable, *map(str, arguments)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environment})

    def end(self, seconds: float) -> None:
        """Wait for it so long, then end it."""
        try:
            code = self.process.wait(max(1, seconds))
            self.failed = f"exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            self.failed = "out of time"

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What it has measured so far."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith('{"part"')]


def part(*arguments: object) -> list[str]:
    return [str(HERE / "gpu_parts.py"), *map(str, arguments)]


def together(pictures: str, images: int, epochs: int, batches: Sequence[str]) -> dict[str, list[str]]:
    """Command lines of what is not timed, by name, the longest first."""
    works: dict[str, list[str]] = {}
    runs = [("float32", 0), *(("fast", seed) for seed in SEEDS)] if pictures else []
    for how, seed in runs:
        for plugins in ("", "lsiw"):
            given = ["--source", pictures, "--how", how, "--seed", seed, "--images", images, "--epochs", epochs]
            works[f"pictures-{plugins or 'at'}-{how}-{seed}"] = part("pictures", "--plugins", plugins, *given)
    files = ("testing/test_conformance.py", "testing/test_broken_plugins.py", "training/test_cuda.py")
    works["tests"] = [
        "-m",
        "pytest",
        "-q",
        "-n4",
        "-kcuda",
        "-pno:cacheprovider",
        "-pxdist.plugin",
        "-ppytest_timeout",
        *(str(TESTS / file) for file in files),
    ]
    for plugins in ("", "lsiw", "ema,awp", "las-at"):
        for how in ("float32", "fast"):
            works[f"resumes-{plugins or 'at'}-{how}"] = part("resumes", "--plugins", plugins, "--how", how)
    for batch in batches:
        for method in ("by hand", *METHODS):
            # Compiles for the timed steps, in several processes at once.
            given = ["--batch", batch, "--methods", method, "--variants", COMPILED, "--turns", 0]
            works[f"compile-{method.replace(' ', '-')}-{batch}"] = part("steps", *given)
    return works


def run_together(works: Mapping[str, list[str]], place: Path, until: float, figures: dict[str, Any]) -> list[Work]:
    """All of them, as many at once as there are cores; what is not done in time is ended."""
    waiting, running, done = list(works.items()), list[Work](), list[Work]()
    most = max(2, (os.cpu_count() or 2) - 2)
    while waiting or running:
        while waiting and len(running) < most and time.monotonic() < until:
            name, arguments = waiting.pop(0)
            # Without pytest's other plugins: one that warns beside xdist ends a run in which warnings are errors.
            running.append(Work(name, arguments, place, OMP_NUM_THREADS="1", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"))
        if time.monotonic() > until:
            for work in running:
                work.end(0)
            figures["left_out"] += [name for name, _ in waiting]
            done, running, waiting = done + running, [], []
        for work in [work for work in running if work.process.poll() is not None]:
            work.end(0)
            running.remove(work)
            done.append(work)
            print(work.name, work.failed or "done", flush=True)
        time.sleep(0.2)
    return done


def take(figures: dict[str, Any], work: Work) -> None:
    """What a process has measured, into the figures."""
    if work.failed:
        figures["left_out"].append(f"{work.name} ({work.failed})")
    for row in work.rows:
        kind = row.pop("part")
        figures["compiling" if work.name.startswith("compile-") else kind].append(row)
    if work.name == "tests":
        lines = [line for line in work.log.read_text().splitlines() if line.strip()]
        counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|skipped|error)", lines[-1])}
        figures["tests"] = counts
        figures["failures"] = [line for line in lines if line.startswith(("FAILED", "ERROR"))]


# ---------------------------------------------------------------------- page


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = ["", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return lines + [f"| {' | '.join(map(str, row))} |" for row in rows]


def said(text: str) -> list[str]:
    return ["", *textwrap.wrap(text, 120, break_on_hyphens=False, break_long_words=False)]


def steps_table(figures: Mapping[str, Any]) -> list[str]:
    rows = figures["steps"]
    compiling = {(row["batch"], row["method"]): row["first"] for row in figures["compiling"]}

    def of(batch: int, method: str, variant: str, key: str) -> Any:
        wanted = (batch, method, variant)
        return next((row.get(key) for row in rows if (row["batch"], row["method"], row["variant"]) == wanted), None)

    cells = []
    for row in rows:
        batch, method, variant, took = row["batch"], row["method"], row["variant"], row["seconds"]
        by_hand, at = of(batch, "by hand", variant, "seconds"), of(batch, "PGD-AT", variant, "cost")
        slow = of(batch, method, "float32", "seconds")
        bound = f"{took / (by_hand * row['cost'] / at):.2f}" if by_hand and at and "cost" in row else ""
        compiled = f"{compiling[batch, method]:.0f}" if variant == COMPILED and (batch, method) in compiling else ""
        times = f"{1000 * took:.1f}", f"{took * IMAGES / batch:.1f}", bound, f"{slow / took:.2f} x" if slow else ""
        cells.append([batch, method, variant, *times, f"{row['peak_mib']:.0f}", compiled])
    heads = ["batch", "method", "variant", "ms a step", "s an epoch", "of the bound", "to float32", "peak MiB"]
    return table([*heads, "s to compile"], cells)


def page(figures: Mapping[str, Any]) -> None:
    """gpu.md and gpu.json, of what is known."""
    here, counts = figures["machine"], figures["tests"]
    lines = ["# On a GPU", "", "Written by `make gpu` (`results/gpu.py`). The raw figures: [gpu.json](gpu.json)."]
    lines += said(
        f"{figures['device']}, torch {here['torch']}, Python {here['python']}, advkit {here['advkit']}, revision "
        f"{here['revision']}. One session on one card."
    )
    lines += ["", "## Tests"]
    tests = ", ".join(f"{count} {word}" for word, count in counts.items()) or "not run"
    lines += said(
        "Conformance of every built-in (the check `cuda`: float64 as on the CPU to 1e-9, reproducible bits, no wait "
        f"for the GPU beyond those of PGD-AT) and `tests/training/test_cuda.py`: {tests}."
    )
    lines += ["", *(f"- {failure}" for failure in figures["failures"])]
    same = [
        f"{row['plugins']} ({row['how']}): {'same bits' if row['same'] else 'OTHER BITS'}" for row in figures["resumes"]
    ]
    lines += said(f"Stopped within an epoch and resumed, with torch.use_deterministic_algorithms: {'; '.join(same)}.")
    for note in figures.get("notes", ()):  # written by hand into gpu.json
        lines += said(note)
    lines += ["", "## Steps"]
    lines += said(
        f"PreAct ResNet-18 of width {figures['width']}, images of 3x32x32 made of noise, {STEPS} attack steps in eval "
        f"mode; medians of {figures['turns']} steps after three. An epoch is {IMAGES:,} images, by its steps. *Of the "
        "bound*: beside PGD-AT by hand in the same variant, times what `advkit plan` says that the method costs beside "
        "PGD-AT. *To compile*: the first step, with several processes compiling at once; the timed ones found "
        "that in the cache. float32 is exact: torch's own default has TF32 in convolutions."
    )
    lines += steps_table(figures)
    if figures["epochs"]:
        lines += ["", "## Epochs"]
        lines += said(
            "The second epoch of `advkit.train` with a run folder on images of noise, cropped and mirrored, in bf16, "
            "channels_last and compiled: seconds of its parts as metrics.jsonl has them."
        )
        rows = [
            [row["method"], row["batch"], row["images"], row["second"]["wall"], row["first"].get("compile", "")]
            for row in figures["epochs"]
        ]
        lines += table(["method", "batch", "images", "s", "s to compile, first epoch"], rows)
    if figures["pictures"]:
        lines += pictures_part(figures["pictures"])
    for row in figures["autoattack"]:
        lines += said(
            f"The standard AutoAttack on {row['images']} pictures against a net of three epochs: "
            f"{row['seconds']:.0f} s, in float32 (clean {row['clean']:.3f}, withstood {row['autoattack']:.3f})."
        )
    if figures["left_out"]:
        lines += said(f"Left out or ended: {', '.join(figures['left_out'])}.")
    PAGE.with_suffix(".md").write_text("\n".join(lines) + "\n")
    PAGE.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")


def pictures_part(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    first = rows[0]
    lines = ["", "## Pictures"]
    lines += said(
        f"{first['images']:,} pictures of CIFAR-10's size, {first['epochs']} epochs, batch 128, one-cycle; judged on "
        f"{first['judged']:,} test pictures, last epoch. *fast*: bf16, channels_last, TF32 and compiled. All ran at "
        "once, so no seconds are shown."
    )
    ordered = sorted(rows, key=lambda row: (row["plugins"] != "PGD-AT", row["how"] == "fast", row["seed"]))
    cells = [[r["plugins"], r["how"], r["seed"], f"{r['clean']:.3f}", f"{r['pgd-20']:.3f}"] for r in ordered]
    lines += table(["plugins", "how", "seed", "clean", "pgd-20"], cells)
    for plugins in dict.fromkeys(row["plugins"] for row in ordered):
        own = [row for row in ordered if row["plugins"] == plugins]
        exact = [row["pgd-20"] for row in own if row["how"] == "float32"]
        fast = [row["pgd-20"] for row in own if row["how"] == "fast"]
        if exact and len(fast) > 1:
            lines += said(
                f"{plugins}, pgd-20: float32 {exact[0]:.3f}; fast {min(fast):.3f} to {max(fast):.3f} over {len(fast)} "
                f"seeds, mean {statistics.mean(fast):.3f}, of one seed {fast[0] - exact[0]:+.3f}."
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", default="", help="a folder or zip of train|test/CLASS/*")
    parser.add_argument("--images", type=int, default=4000, help="pictures to train on")
    parser.add_argument("--epochs", type=int, default=10, help="on the pictures")
    parser.add_argument("--limit", type=float, default=400, help="seconds in all")
    parser.add_argument("--together", type=float, default=0.45, help="share of it for what is not timed, at most")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batches", default="128,512")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--revision", default="", help="of the library, where it is no clone")
    parser.add_argument("--without-cuda", action="store_true", help="tries the script out on a CPU")
    chosen = parser.parse_args()
    if not torch.cuda.is_available() and not chosen.without_cuda:
        print("No CUDA device here: nothing was measured. Run `make gpu` on a machine that has one.")
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic settings ask for
    began = time.monotonic()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, to try the script out"
    figures: dict[str, Any] = {"device": name, "width": chosen.width, "turns": chosen.turns, "machine": machine("wall")}
    figures["machine"]["revision"] = chosen.revision or figures["machine"]["revision"]
    kinds = ("steps", "compiling", "epochs", "pictures", "autoattack", "resumes", "left_out", "failures")
    figures |= {kind: [] for kind in kinds} | {"tests": {}}
    batches = chosen.batches.split(",")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        works = together(chosen.pictures, chosen.images, chosen.epochs, batches)
        for work in run_together(works, place, began + chosen.together * chosen.limit, figures):
            take(figures, work)
        page(figures)
        print(f"{time.monotonic() - began:.0f} s: alone from here on", flush=True)
        width = ("--width", chosen.width, "--turns", chosen.turns)
        alone: dict[str, list[str]] = {}
        for batch in batches:
            alone[f"steps-{batch}"] = part("steps", "--batch", batch, *width)
            alone[f"epochs-PGD-AT-{batch}"] = part("epochs", "--batch", batch, "--methods", "PGD-AT")
        if chosen.pictures:
            alone["autoattack"] = part("autoattack", "--source", chosen.pictures, "--images", 500)
        alone[f"epochs-ISEAT-{batches[0]}"] = part("epochs", "--batch", batches[0], "--methods", "ISEAT")
        for title, arguments in alone.items():
            left = began + chosen.limit - time.monotonic()
            if left < 10:
                figures["left_out"].append(title)
                continue
            work = Work(title, arguments, place)
            work.end(left)
            take(figures, work)
            page(figures)
            print(f"{time.monotonic() - began:.0f} s: {title} {work.failed or 'done'}", flush=True)
            if work.failed:
                print(work.log.read_text()[-2000:])


if __name__ == "__main__":
    main()
