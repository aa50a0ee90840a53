"""Trains every method on two data sets and looks whether PGD overstates it; trains sets that users ask for.

    python results/methods.py audits --data-root FOLDER [--only 'mma;fat'] [--data digits]
    python results/methods.py compositions

Both write what was measured, audits to methods.md and compositions to compositions.md. What is finished lies under
runs/results: a stopped program goes on where it was, and the page is written anew after each net.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import RUNS, advkit, as_pictures, in_parallel, revision, write
from robustness import cell, column

from advkit.evaluation.statistics import image_interval

METHODS = {
    "": (),
    "bilateral": (),
    "mma": (),
    "gairat": (),
    "fgsm-rs": (),
    "ccat": (),
    "iaat": ("-o", "iaat.warm_up=1"),
    "fat": (),
    "fosc": (),
    "cat-eps": (),
    "dirichlet-ls": (),
    "cat-margin": (),
    "cat-eps,dirichlet-ls,cat-margin": (),
    "label-smoothing": (),
    "trades": (),
    "mart": (),
    "alp": (),
    "lsr": (),
    "score": (),
    "awp": (),
    "lsiw": (),
    "av-rank": ("-o", "av-rank.term=base_loss"),
    "eps-ramp": ("-o", "eps-ramp.epochs=2"),
    "rwp": (),
    "cutmix": (),
    "fgsm-rs,gradalign": (),
    "cure": (),
    "mlcat": (),
    "hat": (),
    "rslad": (),
    "te": ("-o", "te.start=0.2", "-o", "te.full=0.6"),
    "ikl": (),
    "idbh": (),
    "las-at": (),
}
"""Sets of plugins, and the options that five epochs ask for; the first is PGD-AT, then those that are said to mask."""
PUBLISHED = {
    "mma": (47.18, 41.44),
    "bilateral": (58.6, 29.35),
    "fgsm-rs": (46.06, 43.21),
    "gairat": (57.81, 40.30),
}
"""In percent, CIFAR-10, 8/255: as reported, and under AutoAttack (its README; gairat: another net, ISEAT's Table 2)."""
SETS = (
    *("gairat,fat", "fat,trades", "iaat,awp", "mma,lsiw", "fgsm-rs,lsiw", "bilateral,awp", "gairat,trades"),
    "cat-eps,dirichlet-ls,lsiw,fosc",
    *("trades,awp", "mart,awp", "lsiw,swa", "rwp,lsiw", "fgsm-rs,gradalign", "cutmix,ema,trades", "mlcat,rwp"),
    *("lsiw,idbh", "ikl,awp,ema", "te,awp", "hat,ema", "hat,awp", "trades,extra-data,lsiw"),
    *("las-at,awp", "las-at,trades"),
)
BESIDE = {
    "hat": ("-o", "hat.helper={standard}"),
    "rslad": ("-o", "rslad.teacher={robust}"),
    "extra-data": ("-o", "extra-data.root={extra}", "-o", "extra-data.share=0.5"),
}
"""What a plugin needs beside its own net, wherever it is in a set.

{standard} is the folder of a net of standard training on the same images, {robust} that of PGD-AT's, {extra} the
training images of the digits once more, as images of their own.
"""
SEED, IMAGES, ATTACKS = 0, 200, ("clean", "pgd-20", "cw-20", "autoattack")


@dataclass(frozen=True)
class Data:
    """What the methods are trained and judged on."""

    title: str
    arguments: tuple[str, ...]


SHARED = ("--epochs", "5", "--set", "model.width=12", "--set", "run.threads=1")
DATA = {
    "digits": Data("Digits, eps 0.15", SHARED),
    "fashion": Data(
        "Fashion-MNIST, eps 0.1",
        (
            *("--dataset", "image-folder", "--data-root", str(RUNS / "fashion-14x14"), "--set", "data.transform=none"),
            *("--limit", "3000", "--eps", "0.1", "--batch-size", "64", "--set", "optimizer.lr=0.01", *SHARED),
        ),
    ),
}


def trained(plugins: str, folder: Path, *arguments: str) -> list[str]:
    """Train one run, or take up where it was; the command."""
    command = ["train", *(["--plugins", plugins] if plugins else []), *arguments, "--seed", str(SEED)]
    if (folder / "run.toml").exists():
        advkit("train", "--resume", str(folder), "--progress", "plain")
    else:
        advkit(*command, "--out", str(folder), "--progress", "plain")
    return command


def beside(plugins: str, data: str) -> list[str]:
    """The options of BESIDE, with the folders in their place; what is not there is made."""
    options = [option for name in plugins.split(",") for option in BESIDE.get(name, ())]
    robust, standard, extra = (RUNS / "methods" / data / name for name in ("pgd-at", "standard", "extra"))
    if any("{standard}" in option for option in options):
        trained("", standard, *DATA[data].arguments, "--set", "attack.steps=0")
    if any("{extra}" in option for option in options) and not extra.exists():
        advkit("data", "prepare", "mapped", "--from", "digits", "--data-root", str(extra))
    return [option.format(robust=robust, standard=standard, extra=extra) for option in options]


def judged(plugins: str, data: str) -> dict[str, Any]:
    """One run, judged by its last checkpoint: best is chosen by the PGD that is on trial."""
    folder = RUNS / "methods" / data / (plugins.replace(",", "+") or "pgd-at")
    kept = folder.with_suffix(".json")
    if kept.exists():
        known: dict[str, Any] = json.loads(kept.read_text())
        return known
    command = trained(plugins, folder, *DATA[data].arguments, *METHODS[plugins], *beside(plugins, data))
    which = ["--checkpoint", "last", "--n", str(IMAGES)]
    attacks = ["--attacks", ",".join(ATTACKS)]
    evaluation = json.loads(advkit("evaluate", str(folder), *attacks, *which, "--json"))
    audit = json.loads(advkit("audit", str(folder), *which, "--json", expected=(0, 3)))
    raised = [check for check in audit["checks"] if check["name"] in audit["alarms"]]
    run = {
        "plugins": plugins,
        "data": data,
        "revision": revision(),
        "commands": [
            f"advkit {' '.join(command)}",
            *(f"advkit {' '.join(said)}" for said in (("evaluate", "RUN", *attacks, *which), ("audit", "RUN", *which))),
        ],
        "attacks": evaluation["attacks"],
        "withstands": {attack: column(Path(evaluation["folder"]), attack) for attack in ("pgd-20", "autoattack")},
        "alarms": {check["name"]: check["figure"] for check in raised},
    }
    kept.write_text(json.dumps(run, indent=1))
    return run


def overstated(run: dict[str, Any], base: dict[str, Any]) -> None:
    """Write into a run how far PGD-20 is above AutoAttack, alone and beyond PGD-AT's, with intervals over images."""
    gaps, base_gaps = ([int(a) - int(b) for a, b in zip(*of["withstands"].values(), strict=True)] for of in (run, base))
    run["gap"] = statistics.fmean(gaps), image_interval(gaps)
    beyond = [one - other for one, other in zip(gaps, base_gaps, strict=True)]
    run["beyond"] = statistics.fmean(beyond), image_interval(beyond)
    run["overstated"] = run["beyond"][1][0] > 0


def audits(names: Sequence[str], chosen: Sequence[str]) -> None:
    """Both data sets method by method; the page anew after each net."""
    runs: list[dict[str, Any]] = []
    for plugins in names:
        for data in chosen:
            runs.append(judged(plugins, data))
            overstated(runs[-1], next(run for run in runs if run["data"] == data))
            page(runs)


def page(runs: Sequence[dict[str, Any]]) -> None:
    lines = [
        "# The methods: does PGD overstate them?",
        "",
        "One net of each method and data set: small-cnn of width 12, five epochs, seed 0, otherwise the method's",
        "defaults except for the options in its command; Fashion-MNIST is 14 x 14, 3,000 images. The last checkpoint",
        f"is judged on {IMAGES} test images chosen at random. Brackets: 95 % intervals over images, Wilson's for",
        "accuracies, Bonett and Price's for paired differences. *Beyond PGD-AT's*: how much more PGD-20 overstates",
        "this net than that of PGD-AT, on the same images. **Overstated**: that interval is above 0. If it is not, the",
        "method may still mask gradients, of which such a small net with such short training shows no sign. One in",
        "forty of these intervals lies above 0 by chance, one or two on this page. CAT's budgets have not grown to eps",
        "after five epochs; the figures of `ccat` include images that it would reject. The helper of `hat` is a net of",
        "standard training and the teacher of `rslad` that of PGD-AT, of the same size and trained for as long.",
        "",
        "Not here: `ema`, `swa`, `collapse-guard`, `vulnerability-log` and `extra-data` leave the steps of training as",
        "they are.",
    ]
    for data in dict.fromkeys(run["data"] for run in runs):
        lines += [
            "",
            f"## {DATA[data].title}",
            "",
            f"| plugins | {' | '.join(ATTACKS)} | pgd-20 minus it | beyond PGD-AT's | | alarms | published |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for run in runs:
            if run["data"] == data:
                lines.append(f"| {' | '.join(row(run))} |")
        done = {run["plugins"] for run in runs if run["data"] == data}
        if left := [f"`{plugins}`" for plugins in METHODS if plugins not in done]:
            lines += ["", f"Not measured here yet: {'; '.join(left)}."]
    write("methods", lines, list(runs), f"one thread a process, seed {SEED}")


def row(run: dict[str, Any]) -> list[str]:
    published = PUBLISHED.get(run["plugins"])
    gap, beyond = (f"{mean:+.3f} ({low:+.3f} to {high:+.3f})" for mean, (low, high) in (run["gap"], run["beyond"]))
    return [
        run["plugins"] or "none (PGD-AT)",
        *(cell(run, attack) for attack in ATTACKS),
        gap,
        beyond if run["plugins"] else "",
        "**overstated**" if run["overstated"] else "no sign of it" if run["plugins"] else "",
        ", ".join(f"{name} ({figure:.3g})" for name, figure in run["alarms"].items()) or "none",
        f"{published[0]} %, AutoAttack {published[1]} %" if published else "",
    ]


def composed(plugins: str) -> dict[str, Any]:
    """Two epochs on the digits; every figure of metrics.jsonl has to be a number."""
    folder = RUNS / f"composition-{plugins.replace(',', '+')}"
    command = trained(plugins, folder, "--epochs", "2", *beside(plugins, "digits"))
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [epoch["loss"] for epoch in epochs]
    if len(epochs) != 2 or not all(math.isfinite(loss) for loss in losses):
        raise SystemExit(f"{plugins}: {len(epochs)} epochs with the losses {losses}")
    attacks = ["--attacks", "clean,pgd-20,cw-20", "--n", "0", "--checkpoint", "last"]
    return {
        "plugins": plugins,
        "losses": losses,
        "commands": [f"advkit {' '.join(command)}", f"advkit evaluate RUN {' '.join(attacks)}"],
        "evaluation": json.loads(advkit("evaluate", str(folder), *attacks, "--json")),
    }


def compositions() -> None:
    runs = in_parallel(composed, ["", *SETS], 1)
    lines = [
        "# Sets of plugins: two epochs on the digits",
        "",
        "This shows that they train, not how well: two epochs, one seed, the last checkpoint on all test images;",
        "brackets: 95 % interval over images (Wilson). No loss of any step was NaN.",
        "",
        "| plugins | loss of each epoch | clean | pgd-20 | cw-20 |",
        "|---|---|---|---|---|",
    ]
    for run in runs:
        figures = " | ".join(cell(run["evaluation"], attack) for attack in ("clean", "pgd-20", "cw-20"))
        losses = ", ".join(f"{loss:.3f}" for loss in run["losses"])
        lines.append(f"| {run['plugins'] or 'none (PGD-AT)'} | {losses} | {figures} |")
    write("compositions", lines, runs, f"one thread a process, seed {SEED}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("audits", "compositions"))
    parser.add_argument("--data-root", help="audits: folder of Fashion-MNIST, if it was not read before")
    parser.add_argument("--data", default="digits,fashion", help="audits: which of the two, between commas")
    parser.add_argument("--only", help="audits: sets of plugins, between semicolons; PGD-AT always")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    if given.what == "compositions":
        compositions()
        return
    if "fashion" in given.data:
        if not given.data_root and not (RUNS / "fashion-14x14").exists():
            parser.error("audits need --data-root FOLDER, or --data digits")
        as_pictures(given.data_root, RUNS / "fashion-14x14")
    audits(list(METHODS) if given.only is None else ["", *given.only.split(";")], given.data.split(","))


if __name__ == "__main__":
    main()
