"""Evaluates the runs of digits.md and fashion.md with stronger attacks, and writes what was measured.

    python results/robustness.py digits [--jobs N]
    python results/robustness.py fashion [--jobs N] [--data-root DIR]

Takes the runs that experiments.py left under runs/results. Verdicts are kept in the runs: a stopped evaluation goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
from collections import Counter
from math import sqrt
from pathlib import Path
from typing import Any

from experiments import DIGITS, FASHION, HERE, RUNS, advkit, chosen_methods, in_parallel, write
from matplotlib.figure import Figure

from advkit.evaluation.statistics import image_interval, student
from advkit.studies.analysis.plotting import rendered

WEAK = ("clean", "pgd-20", "cw-20")
STRONG = ("apgd-t", "square", "autoattack")
FEW = {"digits": 200, "fashion": 200}
"""Test images of the strong attacks."""
GRID = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
"""Of the curve, in eps of the training."""
L2_SHARE = 0.5 / (8 / 255 * sqrt(3 * 32 * 32))
"""RobustBench's eps in l2 on CIFAR-10, 0.5, as a share of the longest perturbation within 8/255 in linf."""
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#882255", "#777777")
"""Okabe and Ito's, which the colour-blind tell apart, then wine and gray."""
DASHES, MARKERS = ("-", "--", ":", "-."), "os^vDPX*<"
TABLE_1 = {
    "pgd-at": ("AT", 0.467, 1.527, -0.010, 12.38, 12.14),
    "awp": ("AWP", 0.351, 1.120, -0.022, 5.52, 19.74),
    "iseat": ("Eq. 9", 0.196, 0.633, -0.047, 0.14, 12.00),
}
"""ISEAT, Table 1 (PreAct ResNet-18, CIFAR-10): SD, mean of the top and bottom 10 %, % of AV >= 1 and <= 0."""


def measure(run: Path, eps: float, dimension: int, root: list[str], few: int, tabled: bool) -> dict[str, Any]:
    """All evaluations of one run; its vulnerability where it is `tabled`, in ISEAT's Table 1."""
    commands: list[str] = []

    def evaluate(*arguments: str) -> dict[str, Any]:
        commands.append(" ".join(["advkit evaluate RUN", *arguments]))
        evaluation: dict[str, Any] = json.loads(advkit("evaluate", str(run), *root, "--json", *arguments))
        del evaluation["run"]
        return evaluation

    l2 = round(L2_SHARE * eps * sqrt(dimension), 3)
    part = ["--n", str(few)]
    figures = {
        "run": run.name,
        "weak": evaluate("--attacks", ",".join(WEAK)),
        "strong": evaluate("--attacks", ",".join((*WEAK, *STRONG)), *part),
        "l2": evaluate("--attacks", "clean,pgd-50-l2", "--eps-l2", str(l2)),
        "curve": {share: evaluate("--attacks", "pgd-20,cw-20", "--eps", f"{share * eps:.6g}", *part) for share in GRID},
        "commands": commands,
    }
    figures["white_box_only"] = pgd_only(Path(figures["strong"]["folder"]))
    figures["withstands"] = column(Path(figures["strong"]["folder"]), "autoattack")
    figures["audit"] = audit(run, root, few)
    if tabled:
        figures["vulnerability"] = vulnerability(run, root)
    return figures


def audit(run: Path, root: list[str], few: int) -> dict[str, Any]:
    """The audit of a run, kept in its folder by the command; an alarm (exit code 3) is a finding, not a failure."""
    kept = run / "audit.json"
    known: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    if (known.get("n"), known.get("checkpoint")) != (few, "best"):
        known = json.loads(advkit("audit", str(run), *root, "--n", str(few), "--json", expected=(0, 3)))
    return known


def vulnerability(run: Path, root: list[str]) -> dict[str, Any]:
    """AV statistics of a run, kept in its folder by the command."""
    kept = run / "analysis" / "vulnerability.json"
    known: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    if known.get("checkpoint") != "best":
        known = json.loads(advkit("analyze", "vulnerability", str(run), *root, "--json"))
    return known


def pgd_only(folder: Path) -> dict[str, int]:
    """How many images each strong attack breaks that PGD-20 and CW-20 both left standing, and the other way round."""
    with open(folder / "verdicts.csv") as stream:
        rows = list(csv.DictReader(stream))
    stands = [row["pgd-20"] == row["cw-20"] == "1" for row in rows]
    return {name: sum(stood and row[name] == "0" for stood, row in zip(stands, rows, strict=True)) for name in STRONG}


def column(folder: Path, attack: str) -> str:
    """An attack's verdicts, a character an image: 1 withstood."""
    with open(folder / "verdicts.csv") as stream:
        return "".join(row[attack] for row in csv.DictReader(stream))


def paired(runs: list[dict[str, Any]], base: list[dict[str, Any]]) -> str:
    """Differences of the shares that withstand AutoAttack, run by run, with intervals over images."""
    said = []
    for run, other in zip(runs, base, strict=True):
        values = [int(a) - int(b) for a, b in zip(run["withstands"], other["withstands"], strict=True)]
        low, high = image_interval(values)
        said.append(f"{statistics.fmean(values):+.3f} ({low:+.3f} to {high:+.3f})")
    return "; ".join(said)


def accuracy(evaluation: dict[str, Any], attack: str) -> float:
    """One figure."""
    return next(float(row["accuracy"]) for row in evaluation["attacks"] if row["name"] == attack)


def cell(evaluation: dict[str, Any], attack: str) -> str:
    """A figure with its interval."""
    row = next(row for row in evaluation["attacks"] if row["name"] == attack)
    low, high = row["interval"]
    return f"{row['accuracy']:.3f} ({low:.3f} to {high:.3f})"


def page(name: str, title: str, eps: float, groups: dict[str, list[dict[str, Any]]], labels: dict[str, str]) -> None:
    """Tables from what was measured; `groups` has a method's runs, a seed each."""
    first = next(iter(groups.values()))[0]
    few = FEW[name]
    half = 1 / sqrt(few)  # of a Wilson interval at 0.5, nearly
    n, l2 = first["weak"]["n"], next(r["eps"] for r in first["l2"]["attacks"] if r["norm"] == "l2")
    seeds = max(len(runs) for runs in groups.values())
    together = ", all seeds together" if seeds > 1 else ""
    of = (
        f"Each cell: mean over {seeds} seeds; brackets: the seeds"
        if seeds > 1
        else "Brackets: 95 % interval over images (Wilson)"
    )
    lines = [
        f"# {title}: strong attacks",
        "",
        f"Linf, eps {eps:g}, the best checkpoints of the runs in {name}.md (the last for standard training). Weak: PGD",
        f"from x with step eps/5, on {n} test images. Strong: on {few} of them, chosen at random, by pyautoattack's",
        f"standard version; `square` is advkit's own, 5,000 queries. {few} images leave an interval of about",
        f"+-{half:.2f}. {of}.",
        "",
        "| training | clean | pgd-20 | cw-20 "
        f"| apgd-t, {few} | square, {few} | autoattack, {few} | pgd-20 minus it, {few} |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, runs in groups.items():
        cells = [_cells(runs, "weak", attack) for attack in WEAK] + [_cells(runs, "strong", a) for a in STRONG]
        gaps = [accuracy(run["strong"], "pgd-20") - accuracy(run["strong"], "autoattack") for run in runs]
        lines.append(f"| {labels[key]} | {' | '.join(cells)} | {_several(gaps, '{:+.3f}')} |")
    lines += [
        "",
        "AutoAttack and apgd-t on its own start at different random points, so either may be ahead by an image or two.",
        "",
        f"Images that withstand both pgd-20 and cw-20 and are broken by a strong attack{together}:",
        "",
        "| training | apgd-t | square | autoattack |",
        "|---|---|---|---|",
    ]
    for key, runs in groups.items():
        counts = [sum(run["white_box_only"][attack] for run in runs) for attack in STRONG]
        total = few * len(runs)
        lines.append(f"| {labels[key]} | " + " | ".join(f"{count} of {total}" for count in counts) + " |")
    curves = {
        labels[key]: [statistics.fmean(run["curve"][share]["worst_case"]["accuracy"] for run in runs) for share in GRID]
        for key, runs in groups.items()
    }
    if "pgd-at" in groups:
        lines += [
            "",
            f"AutoAttack, difference to PGD-AT on the same {few} images, each seed with its 95 % interval over",
        ]
        lines += ["images (Bonett and Price):", "", "| training | difference |", "|---|---|"]
        for key, runs in groups.items():
            if key != "pgd-at":
                lines.append(f"| {labels[key]} | {paired(runs, groups['pgd-at'])} |")
    lines += [
        "",
        f"## Another eps, another norm ({few} images; l2 on {n})",
        "",
        "Each cell: the share that withstands both pgd-20 and cw-20, at a multiple of the training's eps. The last",
        f"column is a norm that was not trained for: pgd-50 in l2 with radius {l2:g}, which is to eps as 0.5 is to",
        "8/255 on CIFAR-10.",
        "",
        "| training | " + " | ".join(f"{share:g} eps" for share in GRID) + " | l2 |",
        "|---|" + "---|" * (len(GRID) + 1),
    ]
    for key, runs in groups.items():
        other = statistics.fmean(accuracy(run["l2"], "pgd-50-l2") for run in runs)
        cells = " | ".join(f"{value:.3f}" for value in curves[labels[key]])
        lines.append(f"| {labels[key]} | {cells} | {other:.3f} |")
    (HERE / f"robustness-{name}.svg").write_bytes(rendered(lambda: picture(curves))["svg"])
    lines += ["", f"![accuracy against eps](robustness-{name}.svg)"]
    lines += ["", f"## Audit ({few} images)", ""]
    lines += ["*Nearest*: the check whose figure is the largest share of its threshold, over the runs of the line.", ""]
    lines += ["| training | alarms | nearest | figure | alarm above |", "|---|---|---|---|---|"]
    lines += [f"| {labels[key]} | {_audited([run['audit'] for run in runs])} |" for key, runs in groups.items()]
    lines += ["", "## Adversarial vulnerability (ISEAT, Eq. 3 and 6), training set", ""]
    lines += ["Table 1 has no row of ISEAT itself; its row of Eq. 9, the regularizer for the top 10 %, stands in.", ""]
    lines += _vulnerability(groups)
    lines += ["", "## Cost", "", "Median over the runs, per image; images already broken are dropped:", ""]
    lines += ["| attack | forwards | input backwards | ms |", "|---|---|---|---|"]
    for strength, attacks in (("weak", WEAK), ("strong", STRONG)):
        for attack in attacks:
            rows = [
                r for runs in groups.values() for run in runs for r in run[strength]["attacks"] if r["name"] == attack
            ]
            passes = [statistics.median(row["passes"][way] for row in rows) for way in ("forward", "input_backward")]
            count = n if strength == "weak" else few
            ms = statistics.median(1000 * row["seconds"] / count for row in rows)
            lines.append(f"| {attack} | {passes[0]:.0f} | {passes[1]:.0f} | {ms:.1f} |")
    runs = [run for group in groups.values() for run in group]
    for run in runs:
        for part in (run["weak"], run["strong"], run["l2"], *run["curve"].values()):
            for key in ("folder", "audit", "robustbench", "versions"):  # of the machine, or said elsewhere
                part.pop(key, None)
        for check in run["audit"]["checks"]:
            check.pop("sentence", None)
    how = "1 thread each; seconds on a machine with other work; RUN is each run's folder"
    write(f"robustness-{name}", lines, runs, how)


def _vulnerability(groups: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Table 1's columns, measured and published, and the directions."""
    heads = ("SD", "top 10 %", "bottom 10 %", "AV >= 1, %", "AV <= 0, %")
    lines = [
        "| training | " + " | ".join(heads) + " | paper's Table 1, CIFAR-10 |",
        "|---|" + "---|" * (len(heads) + 1),
    ]
    measured: dict[str, list[list[float]]] = {}
    for key, (label, *paper) in TABLE_1.items():
        if key not in groups:
            continue
        measured[key] = [_columns(run["vulnerability"]) for run in groups[key]]
        ours = " | ".join(f"{statistics.fmean(column):.3f}" for column in zip(*measured[key], strict=True))
        lines.append(f"| {key} | {ours} | {label}: {', '.join(f'{value:g}' for value in paper)} |")
    several = len(next(iter(measured.values()))) > 1
    how = "with 95 % t intervals over the seeds" if several else "of one seed, which says nothing about the methods"
    lines += ["", f"Differences, {how}; the paper's beside them:", ""]
    for key in ("awp", "iseat"):
        if key not in measured or "pgd-at" not in measured:
            continue
        said = []
        for place, head in enumerate(heads):
            pairs = zip(measured[key], measured["pgd-at"], strict=True)
            here = [one[place] - other[place] for one, other in pairs]
            there = float(TABLE_1[key][place + 1]) - float(TABLE_1["pgd-at"][place + 1])
            said.append(f"{head} {_with_ends(here)} (paper {there:+.3f})")
        lines.append(f"- {key} minus pgd-at: {'; '.join(said)}.")
    return lines


def _with_ends(values: list[float]) -> str:
    """Mean, and its t interval over the seeds where there are several."""
    mean = f"{statistics.fmean(values):+.3f}"
    if len(values) < 2:
        return mean
    half = student(len(values) - 1) * statistics.stdev(values) / sqrt(len(values))
    return f"{mean} [{statistics.fmean(values) - half:+.3f}, {statistics.fmean(values) + half:+.3f}]"


def picture(curves: dict[str, list[float]]) -> Figure:
    """Accuracy against eps, told apart by colour, dashes and marker."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for place, (label, values) in enumerate(curves.items()):
        color, dash, marker = COLOURS[place], DASHES[place % 4], MARKERS[place]
        axes.plot(GRID, values, color=color, linestyle=dash, marker=marker, markersize=3, linewidth=1, label=label)
    axes.axvline(1, color="0.6", linewidth=0.6, zorder=0)
    axes.set(xlabel="eps of the attack, in eps of the training", ylabel="accuracy, pgd-20 and cw-20", ylim=(0, 1))
    axes.legend(loc="upper right", labelspacing=0.2, borderaxespad=0)
    return figure


def _audited(audits: list[dict[str, Any]]) -> str:
    """Alarms with the number of runs that raise them, and the figure that is nearest to its threshold."""
    counts = Counter(alarm for run in audits for alarm in run["alarms"])
    alarms = ", ".join(f"{name} in {count} of {len(audits)}" for name, count in counts.items()) or "none"
    checks = [check for run in audits for check in run["checks"] if check["figure"] is not None]
    nearest = max(checks, key=lambda check: float(check["figure"] / check["threshold"]))
    return f"{alarms} | {nearest['name']} | {nearest['figure']:.3g} | {nearest['threshold']:g}"


def _columns(analysis: dict[str, Any]) -> list[float]:
    figures = analysis["figures"]
    shares = [100 * figures[name] for name in ("at_least_1", "at_most_0")]
    return [figures["sd"], figures["top_10"], figures["bottom_10"], *shares]


def _cells(runs: list[dict[str, Any]], strength: str, attack: str) -> str:
    if len(runs) == 1:
        return cell(runs[0][strength], attack)
    return _several([accuracy(run[strength], attack) for run in runs], "{:.3f}")


def _several(values: list[float], form: str) -> str:
    mean = form.format(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ({', '.join(form.format(value) for value in values)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["digits", "fashion"])
    parser.add_argument("--data-root", help="fashion: where the data lies, if not where it was at training")
    parser.add_argument("--methods", help="only these of the page's, comma-separated")
    parser.add_argument("--seeds", default="0,1,2", help="digits: of which runs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time, one thread each")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    digits = given.what == "digits"
    keys = tuple(given.methods.split(",")) if given.methods else DIGITS if digits else FASHION
    seeds = [int(seed) for seed in given.seeds.split(",")] if digits else [None]
    eps, dimension = (0.15, 64) if digits else (0.1, 196)
    labels = {key: method.name for key, method in chosen_methods(keys, 10 if digits else 5).items()}
    tasks = [(key, seed) for seed in seeds for key in keys]
    root = ["--data-root", given.data_root] if given.data_root else []

    def work(task: tuple[str, int | None]) -> dict[str, Any]:
        key, seed = task
        run = RUNS / given.what / (key if seed is None else f"{key}-{seed}")
        return measure(run, eps, dimension, root, FEW[given.what], key in TABLE_1)

    measured = in_parallel(work, tasks, given.jobs)
    groups: dict[str, list[dict[str, Any]]] = {key: [] for key in keys}
    for (key, _), figures in zip(tasks, measured, strict=True):
        groups[key].append(figures)
    page(given.what, "Digits" if digits else "Fashion-MNIST", eps, groups, labels)


if __name__ == "__main__":
    main()
