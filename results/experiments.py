"""Trains and evaluates the runs of the results pages through the command line, and writes what was measured.

    python results/experiments.py digits
    python results/experiments.py digits-long
    python results/experiments.py fashion --data-root FOLDER_OR_ZIP
    python results/experiments.py pictures --data-root FOLDER_OR_ZIP

Finished runs are kept under runs/results and not trained again; a stopped one is resumed.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torchvision.io import write_png

from advkit import Dataset, load_data
from advkit.evaluation.statistics import image_interval, seed_interval

HERE = Path(__file__).parent
RUNS = Path("runs/results")
ATTACKS = ("clean", "pgd-20", "cw-20")
ROBUST, CHECKPOINTS = ATTACKS[1:], ("best", "last")


@dataclass(frozen=True)
class Method:
    """A line of a table: its name, and what it adds to the command."""

    name: str
    arguments: tuple[str, ...]


def methods(first_decay: int) -> dict[str, Method]:
    """By key. ISEAT's lambda is 0 until the first decay of the learning rate."""
    ramp = f"lsiw.lam=[[0, 0.0], [{first_decay}, 0.1]]"
    return {
        "standard": Method("standard training", ("--set", "attack.steps=0")),
        "pgd-at": Method("PGD-AT", ()),
        "cat-eps": Method("cat-eps", ("--plugins", "cat-eps")),
        "awp": Method("awp", ("--plugins", "awp")),
        "iseat": Method("ISEAT (lsiw, lambda from the first decay on)", ("--plugins", "lsiw", "-o", ramp)),
        "trades": Method("TRADES", ("--plugins", "trades")),
        "mart": Method("MART", ("--plugins", "mart")),
        "trades-awp": Method("TRADES-AWP", ("--plugins", "trades,awp")),
        "cat": Method("CAT (cat-eps,dirichlet-ls)", ("--plugins", "cat-eps,dirichlet-ls")),
        "cat-margin": Method("CAT with the margin loss", ("--plugins", "cat-eps,dirichlet-ls,cat-margin")),
        "sentence": Method("cat-eps,dirichlet-ls,lsiw", ("--plugins", "cat-eps,dirichlet-ls,lsiw")),
    }


DIGITS = ("standard", "pgd-at", "cat-eps", "awp", "iseat", "sentence")
FASHION = ("pgd-at", "trades", "mart", "awp", "trades-awp", "iseat", "cat", "cat-margin", "sentence")
PICTURES = ("pgd-at", "sentence")


def chosen_methods(keys: Sequence[str], first_decay: int) -> dict[str, Method]:
    """Those of `keys`, in that order."""
    every = methods(first_decay)
    return {key: every[key] for key in keys}


def advkit(*arguments: str, expected: Sequence[int] = (0,)) -> str:
    """Standard output of one command; an exit code that is not expected ends us too."""
    done = subprocess.run([sys.executable, "-m", "advkit", *arguments], check=False, text=True, stdout=subprocess.PIPE)
    if done.returncode not in expected:
        sys.exit(f"`advkit {' '.join(arguments)}` ended with exit code {done.returncode}")
    return done.stdout


def measure(folder: Path, method: Method, common: list[str], seed: int) -> dict[str, Any]:
    """Train one run (or take up where it was), evaluate its best and last checkpoints."""
    command = ["train", *method.arguments, *common, "--seed", str(seed)]
    if (folder / "run.toml").exists():
        advkit("train", "--resume", str(folder), "--progress", "plain")
    else:
        advkit(*command, "--out", str(folder), "--progress", "plain")
    measured: dict[str, Any] = {"method": method.name, "seed": seed, "commands": ["advkit " + _quoted(command)]}
    measured["verdicts"] = {}
    for which in CHECKPOINTS:
        text = advkit("evaluate", str(folder), "--attacks", ",".join(ATTACKS), "--checkpoint", which, "--json")
        result = json.loads(text)
        del result["run"]
        with open(Path(result.pop("folder")) / "verdicts.csv") as stream:
            table = list(csv.DictReader(stream))
        measured["verdicts"][which] = {attack: "".join(row[attack] for row in table) for attack in ATTACKS}
        measured[which] = result
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    measured["seconds_per_epoch"] = statistics.median(row["seconds"]["wall"] for row in rows)
    measured["cpu_seconds_per_epoch"] = statistics.median(row["seconds"]["cpu"] for row in rows)
    measured["mean_radius"] = rows[-1]["mean_radius"]
    return measured


def accuracy(run: dict[str, Any], attack: str, which: str = "best") -> float:
    """One figure of a measured run."""
    return next(float(row["accuracy"]) for row in run[which]["attacks"] if row["name"] == attack)


def interval(run: dict[str, Any], attack: str) -> str:
    """Its 95 % interval over images."""
    low, high = next(row["interval"] for row in run["best"]["attacks"] if row["name"] == attack)
    return f"{low:.3f} to {high:.3f}"


def suspect(runs: list[dict[str, Any]]) -> str:
    """The mark of a line whose PGD and margin accuracies differ by more than 0.06 in any run."""
    marked = [str(run["seed"]) for run in runs if run["best"]["suspect"]]
    return f"**suspect** (seed {', '.join(marked)})" if marked else ""


def digits(jobs: int) -> None:
    """The table of digits.md: six ways of training, three paired seeds."""
    seeds = (0, 1, 2)
    chosen = chosen_methods(DIGITS, first_decay=10)
    common = ["--dataset", "digits", "--model", "small-cnn", "--epochs", "20", "--batch-size", "64", "--eps", "0.15"]
    common += ["--set", "run.threads=1"]
    tasks = [(key, seed) for seed in seeds for key in chosen]

    def work(task: tuple[str, int]) -> dict[str, Any]:
        key, seed = task
        return measure(RUNS / "digits" / f"{key}-{seed}", chosen[key], common, seed)

    runs = in_parallel(work, tasks, jobs)
    digits_page(runs, jobs)


DIGITS_LONG = ("pgd-at", "cat-eps")


def digits_long(jobs: int) -> None:
    """The table of digits-long.md: PGD-AT and CAT's budgets for three times as many epochs."""
    chosen = chosen_methods(DIGITS_LONG, first_decay=30)
    common = ["--dataset", "digits", "--model", "small-cnn", "--epochs", "60", "--batch-size", "64", "--eps", "0.15"]
    common += ["--set", "run.threads=1"]
    tasks = [(key, seed) for seed in (0, 1, 2) for key in chosen]

    def work(task: tuple[str, int]) -> dict[str, Any]:
        key, seed = task
        return measure(RUNS / "digits-long" / f"{key}-{seed}", chosen[key], common, seed)

    digits_long_page(in_parallel(work, tasks, jobs), jobs)


def digits_long_page(runs: list[dict[str, Any]], jobs: int) -> None:
    """The page of the longer runs from what was measured."""
    lines = [
        "# Digits, 60 epochs: how much of CAT's shortfall is due to short runs",
        "",
        "As in digits.md, but for 60 epochs instead of 20. Each cell: mean over three paired seeds, and the seeds.",
        "",
        "| training | checkpoint | clean | pgd-20 | cw-20 | cw-20, paired difference to PGD-AT | mean radius |",
        "|---|---|---|---|---|---|---|",
    ]
    chosen = chosen_methods(DIGITS_LONG, first_decay=30)
    by_key = {key: [run for run in runs if run["method"] == method.name] for key, method in chosen.items()}
    for key, method in chosen.items():
        for which in CHECKPOINTS:
            cells = [_mean([accuracy(run, attack, which) for run in by_key[key]]) for attack in ATTACKS]
            pairs = zip(by_key[key], by_key["pgd-at"], strict=True)
            paired = [accuracy(one, "cw-20", which) - accuracy(other, "cw-20", which) for one, other in pairs]
            told = "" if key == "pgd-at" else difference(paired)
            lines.append(f"| {method.name} | {which} | {' | '.join(cells)} | {told} | {_radius(key, by_key[key])} |")
    lines += [
        "",
        "CAT's budgets start at 0 and need seven visits without a successful attack to reach eps, so 20 epochs are",
        "few. At the end their mean is above eps, so PGD-AT at that radius is the fair control; it is in overfit.md.",
        *SEEDS_SAID,
        "An accuracy of 0.84 on 539 images has a 95 % interval of about +-0.031 (Wilson).",
    ]
    write("digits-long", lines, runs, f"{jobs} run(s) at a time, 1 thread each")


def digits_page(runs: list[dict[str, Any]], jobs: int) -> None:
    """The page of the digits from what was measured."""
    lines = [
        "# Digits: six ways of training the same net",
        "",
        "UCI digits (8x8, embedded), small-cnn, Linf eps 0.15, 10 attack steps of eps/4 from x, 20 epochs, batch 64;",
        "the best checkpoint by the validation split; all 539 test images. `pgd-20` and `cw-20` are PGD from x with",
        "step eps/5 on cross-entropy and on the margin. Each cell: mean over three paired seeds, and the seeds.",
        "The seconds are medians over epochs, then over seeds.",
        "",
        "| training | clean | pgd-20 | cw-20 | cw-20, paired difference to PGD-AT | mean radius | CPU s an epoch | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    chosen = chosen_methods(DIGITS, first_decay=10)
    by_key = {key: [run for run in runs if run["method"] == method.name] for key, method in chosen.items()}
    for key, method in chosen.items():
        mine, base = by_key[key], by_key["pgd-at"]
        paired = [accuracy(a, "cw-20") - accuracy(b, "cw-20") for a, b in zip(mine, base, strict=True)]
        cells = [_mean([accuracy(run, attack) for run in mine]) for attack in ATTACKS]
        seconds = statistics.median(run["cpu_seconds_per_epoch"] for run in mine)
        told = "" if key == "pgd-at" else difference(paired)
        figures = f"{' | '.join(cells)} | {told} | {_radius(key, mine)} | {seconds:.2f}"
        lines.append(f"| {method.name} | {figures} | {suspect(mine)} |")
    lines += [
        "",
        "An accuracy of 0.8 on 539 images has a 95 % interval of about +-0.034 (Wilson). *Mean radius*: of the",
        "training attacks of the last epoch; CAT's budgets grow by eta a visit and restart at 0 after a success.",
        "Part of the shortfall of cat-eps is due to short runs: digits-long.md has 60 epochs. Runs that are long",
        "enough for AWP and ISEAT are in overfit.md.",
        *SEEDS_SAID,
        "",
    ]
    lines += _bars(by_key)
    write("digits", lines, runs, f"{jobs} run(s) at a time, 1 thread each")


def _bars(by_key: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Whether the figures that a correct PGD-AT must reach on this net are reached, seed by seed."""
    at, standard = by_key["pgd-at"], by_key["standard"]
    worst = {attack: min(accuracy(run, attack) for run in at) for attack in ATTACKS}
    top = max(accuracy(run, "pgd-20") for run in standard)
    return [
        "What must hold for the worst seed, and what was measured:",
        "",
        f"- PGD-AT, clean >= 0.95: {worst['clean']:.3f}; pgd-20 >= 0.70: {worst['pgd-20']:.3f}; "
        f"cw-20 >= 0.70: {worst['cw-20']:.3f}",
        f"- standard training, pgd-20 <= 0.40: {top:.3f}",
    ]


def halved(images: Dataset) -> Dataset:
    """Means of 2 x 2 pixels."""
    pixels = F.avg_pool2d(images.images.float(), 2).round().to(torch.uint8)
    return Dataset(f"{images.name}-halved", pixels, images.labels, images.classes)


def as_pictures(root: str, folder: Path) -> None:
    """Fashion-MNIST with half the pixels each way as a class folder: 6,000 and 1,000 images, chosen at random."""
    if folder.exists():
        return
    splits = load_data("fashion-mnist", root)
    unfinished = folder.with_name(f"{folder.name}-unfinished")
    for part, images in (("train", splits.train.sample(6000)), ("test", splits.test.sample(1000))):
        small = halved(images)
        for place, (pixels, label) in enumerate(zip(small.images, small.labels.tolist(), strict=True)):
            path = unfinished / part / small.classes[label].replace("/", "-") / f"{place:05}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_png(pixels, str(path))
    unfinished.rename(folder)


def fashion(root: str, jobs: int) -> None:
    """Nine methods on 6,000 small images of Fashion-MNIST."""
    chosen = chosen_methods(FASHION, first_decay=5)
    as_pictures(root, RUNS / "fashion-14x14")
    common = ["--dataset", "image-folder", "--data-root", str(RUNS / "fashion-14x14"), "--set", "data.transform=none"]
    common += ["--model", "small-cnn"]
    common += ["--eps", "0.1", "--epochs", "10", "--batch-size", "64", "--set", "run.threads=1"]
    common += ["--set", "optimizer.lr=0.01"]  # at 0.1 PGD-AT, and at 0.02 MART, stay at chance on this net and data

    def work(key: str) -> dict[str, Any]:
        return measure(RUNS / "fashion" / key, chosen[key], common, 0)

    fashion_page(in_parallel(work, list(chosen), jobs), jobs)


SEEDS_SAID = (
    "Square brackets: 95 % t interval over the seeds. If it contains 0, no difference is shown; a mean closer to 0",
    "than half its width could not have been detected.",
)
CLAIMS = (
    ("awp", "pgd-at", "AT-AWP 54.04 against AT 53.42, AutoAttack (ISEAT, Table 2)"),
    ("iseat", "pgd-at", "ISEAT 56.54 against AT 53.42, AutoAttack (ISEAT, Table 2)"),
    ("iseat", "awp", "ISEAT 56.54 against AT-AWP 54.04, AutoAttack (ISEAT, Table 2)"),
    ("mart", "pgd-at", "MART 51.10 against AT 53.42, AutoAttack (ISEAT, Table 2)"),
    ("trades-awp", "trades", "TRADES-AWP 56.17 against TRADES 53.08, AutoAttack (RobustBench)"),
    ("trades", "pgd-at", "TRADES 38.81 and 39.49 against AT 36.36 and 37.89, PGD and C&W, VGG-16 (CAT, Table 2)"),
    ("cat-margin", "pgd-at", "CAT 75.54 and 51.81 against AT 36.36 and 37.89, PGD and C&W, VGG-16 (CAT, Table 2)"),
    (
        "cat-margin",
        "trades",
        "CAT 75.54 and 51.81 against TRADES 38.81 and 39.49, PGD and C&W, VGG-16 (CAT, Table 2)",
    ),
)
"""Two methods, and what a paper measured of them."""


def fashion_page(runs: list[dict[str, Any]], jobs: int) -> None:
    """The page of Fashion-MNIST from what was measured."""
    lines = [
        "# Fashion-MNIST: nine methods on the same net",
        "",
        "Means of 2 x 2 pixels (14 x 14), 6,000 training images chosen at random (600 of them held out to choose the",
        "checkpoint), small-cnn, Linf eps 0.1, 10 attack steps, 10 epochs, batch 64, learning rate 0.01 with drops",
        "after 5 and 8 epochs, seed 0, otherwise each method's defaults; 1,000 test images chosen at random.",
        "Brackets: 95 % interval (Wilson).",
        "",
        "| training | clean | pgd-20 | cw-20 | mean radius | CPU s, all epochs | |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        cells = [f"{accuracy(run, attack):.3f} ({interval(run, attack)})" for attack in ATTACKS]
        seconds = run["cpu_seconds_per_epoch"] * 10
        lines.append(
            f"| {run['method']} | {' | '.join(cells)} | {run['mean_radius']:.3f} | {seconds:.0f} | {suspect([run])} |"
        )
    lines += [
        "",
        "*Mean radius*: of the training attacks of the last epoch; CAT's budgets grow by eta = 0.016 a visit and",
        "restart at 0 after a success. CPU seconds were taken with other work on the machine. Accuracies under",
        "AutoAttack are in robustness-fashion.md.",
        "",
        "## The papers' orderings",
        "",
        "Paired differences of these nets on the same 1,000 images, with 95 % intervals over images (Bonett and",
        "Price). They apply to these nets only: one seed says nothing about the methods, and the best checkpoints are",
        "of different epochs (the last ones are not). Several seeds, and nets that overfit, are in overfit.md.",
        "",
        f"| pair | published | {' | '.join(f'{attack}, {which}' for attack in ROBUST for which in CHECKPOINTS)} |",
        "|---|---|---|---|---|---|",
    ]
    methods = chosen_methods(FASHION, first_decay=5)
    by_key = {key: next(run for run in runs if run["method"] == method.name) for key, method in methods.items()}
    for one, other, source in CLAIMS:
        pairs = [paired(by_key[one], by_key[other], attack, which) for attack in ROBUST for which in CHECKPOINTS]
        cells = [f"{gap:+.3f} ({low:+.3f} to {high:+.3f})" for gap, low, high in pairs]
        lines.append(f"| {one} - {other} | {source} | {' | '.join(cells)} |")
    write("fashion", lines, runs, f"{jobs} run(s) at a time, 1 thread each")


def paired(one: dict[str, Any], other: dict[str, Any], attack: str, which: str) -> tuple[float, float, float]:
    """Difference of two runs' accuracies on the same images, and its interval."""
    verdicts = (run["verdicts"][which][attack] for run in (one, other))
    values = [int(a) - int(b) for a, b in zip(*verdicts, strict=True)]
    low, high = image_interval(values)
    return statistics.fmean(values), low, high


def pictures(root: str, jobs: int) -> None:
    """Two methods on 5,000 real pictures."""
    chosen = chosen_methods(PICTURES, first_decay=2)
    common = ["--dataset", "image-folder", "--data-root", root, "--limit", "5000", "--model", "preact-resnet18"]
    common += ["--set", "model.width=16", "--eps", "8/255", "--epochs", "3", "--batch-size", "128"]
    common += ["--set", "run.threads=1"]

    def work(key: str) -> dict[str, Any]:
        return measure(RUNS / "pictures" / key, chosen[key], common, 0)

    runs = in_parallel(work, list(chosen), jobs)
    for run in runs:
        run["commands"] = [command.replace(root, "FOLDER_OR_ZIP") for command in run["commands"]]
    pictures_page(runs, jobs)


def pictures_page(runs: list[dict[str, Any]], jobs: int) -> None:
    """The page of the pictures from what was measured."""
    lines = [
        "# Real pictures: 5,000 images of a class folder",
        "",
        "CIFAR-10 as JPEG files, 5,000 training images, chosen at random (500 held out to choose the checkpoint),",
        "preact-resnet18 of width 16, Linf eps 8/255, 10 attack steps of 2/255 from x, 3 epochs, batch 128, seed 0;",
        "1,000 of the test images, chosen at random, seed 0.",
        "Three epochs are a check that everything works on real pictures, not a result about the methods.",
        "",
        "| training | clean | pgd-20 | cw-20 | mean radius x 255 | CPU s an epoch | |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        cells = [f"{accuracy(run, attack):.3f} ({interval(run, attack)})" for attack in ATTACKS]
        seconds = f"{run['cpu_seconds_per_epoch']:.0f}"
        radius = f"{255 * run['mean_radius']:.1f}"
        lines.append(f"| {run['method']} | {' | '.join(cells)} | {radius} | {seconds} | {suspect([run])} |")
    lines += [
        "",
        "Brackets: 95 % interval over the 1,000 images (Wilson). One seed, so nothing is said between seeds.",
        "*Mean radius*: of the training attacks of the last epoch. CAT's budgets start at 0 and grow by eta = 1.3/255",
        "a visit, so in three epochs they stay below 4/255: that net is tested at a larger eps than it was trained at.",
    ]
    write("pictures", lines, runs, f"{jobs} run(s) at a time, 1 thread each")


def in_parallel(work: Callable[[Any], Any], tasks: list[Any], jobs: int) -> list[Any]:
    """Results in the order of the tasks."""
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(work, tasks))


def write(name: str, lines: list[str], runs: list[dict[str, Any]], how: str) -> None:
    """NAME.md for people, NAME.json with everything."""
    versions = {package: version(package) for package in ("advkit", "torch", "numpy")}
    versions["revision"] = ", ".join(sorted({run.get("revision") or revision() for run in runs}))
    made = ", ".join(f"{package} {number}" for package, number in versions.items())
    lines += [
        "",
        f"Measured with {made}, Python {platform.python_version()}, {processor()}, {os.cpu_count()} cores; {how}.",
        "",
        "Commands:",
        "",
    ]
    lines += [f"    {command}" for command in dict.fromkeys(command for run in runs for command in run["commands"])]
    (HERE / f"{name}.md").write_text("\n".join(lines) + "\n")
    (HERE / f"{name}.json").write_text(json.dumps({"versions": versions, "runs": runs}, indent=1) + "\n")
    print("\n".join(lines))


def revision() -> str:
    """The commit of the library that measures."""

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", str(HERE), *arguments], check=False, text=True, capture_output=True)

    commit = git("rev-parse", "--short", "HEAD").stdout.strip() or "unknown"
    root = HERE.parent
    changed = git("diff", "--quiet", "HEAD", "--", str(root / "toolkit"), str(root / "plugins")).returncode
    return f"{commit} with changes" if changed else commit


def processor() -> str:
    """Its name, as Linux gives it."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return name or platform.processor() or platform.machine()


def _mean(values: list[float]) -> str:
    form = "{:.3f}"
    return f"{form.format(statistics.fmean(values))} ({', '.join(form.format(v) for v in values)})"


def difference(values: list[float]) -> str:
    """Mean of shares' differences, its t interval over the seeds, and the seeds."""
    low, high = seed_interval(values) or (-1.0, 1.0)
    form = "{:+.3f}".format
    return f"{form(statistics.fmean(values))} [{form(low)}, {form(high)}] ({', '.join(map(form, values))})"


def _radius(key: str, runs: list[dict[str, Any]]) -> str:
    return "no attack" if key == "standard" else f"{statistics.fmean(run['mean_radius'] for run in runs):.3f}"


def _quoted(command: list[str]) -> str:
    return " ".join(f"'{part}'" if " " in part else part for part in command)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["digits", "digits-long", "fashion", "pictures"])
    parser.add_argument("--data-root", help="fashion, pictures: folder or zip of the data")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time, one thread each")
    given = parser.parse_args()
    if given.what == "digits":
        digits(given.jobs)
    elif given.what == "digits-long":
        digits_long(given.jobs)
    elif not given.data_root:
        parser.error(f"{given.what} needs --data-root FOLDER_OR_ZIP")
    elif given.what == "fashion":
        fashion(given.data_root, given.jobs)
    else:
        pictures(given.data_root, given.jobs)
