"""Trains every method on the digits and looks whether PGD overstates it; trains sets that users ask for.

    python results/methods.py audits [--n 200] [--epochs 5] [--only mma,fat]
    python results/methods.py compositions

Both write what was measured, audits to methods.md and compositions to compositions.md. Runs stay under runs/results: a
stopped program goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from experiments import RUNS, advkit, in_parallel, write
from robustness import accuracy, cell

METHODS = (
    *("", "iaat", "mma", "fat", "gairat", "fosc", "fgsm-rs", "bilateral", "ccat", "alp", "lsr", "score"),
    *("trades", "mart", "cat-eps,dirichlet-ls"),
)
"""Plugins of one run each; the first is PGD-AT."""
OVERSTATED = {
    "mma": (47.18, 41.44),
    "bilateral": (58.6, 29.35),
    "fgsm-rs": (46.06, 43.21),
}
"""In percent, CIFAR-10, 8/255: as reported, and under AutoAttack (the table of its README)."""
SETS = (
    *("gairat,fat", "fat,trades", "iaat,awp", "mma,lsiw", "fgsm-rs,lsiw", "bilateral,awp", "gairat,trades"),
    "cat-eps,dirichlet-ls,lsiw,fosc",
)
SEED = 0


def trained(plugins: str, folder: Path, *arguments: str) -> list[str]:
    """Train one run, or take up where it was; the command."""
    command = ["train", *(["--plugins", plugins] if plugins else []), *arguments, "--seed", str(SEED)]
    if (folder / "run.toml").exists():
        advkit("train", "--resume", str(folder), "--progress", "plain")
    else:
        advkit(*command, "--out", str(folder), "--progress", "plain")
    return command


def judged(plugins: str, n: int, epochs: int) -> dict[str, Any]:
    """One run, judged by its last checkpoint: best is chosen by the PGD that is on trial."""
    folder = RUNS / f"methods-{plugins.replace(',', '+') or 'pgd-at'}-{epochs}"
    # The ten epochs of its warm-up would be all.
    shorter = ["-o", "iaat.warm_up=1"] if plugins == "iaat" else []
    command = trained(plugins, folder, "--epochs", str(epochs), *shorter)
    which = ["--checkpoint", "last", "--n", str(n)]
    attacks = ["--attacks", "clean,pgd-20,cw-20,autoattack"]
    return {
        "plugins": plugins,
        "commands": [f"advkit {' '.join(command)}", f"advkit evaluate RUN {' '.join([*attacks, *which])}"],
        "evaluation": json.loads(advkit("evaluate", str(folder), *attacks, *which, "--json")),
        "audit": json.loads(advkit("audit", str(folder), *which, "--json", expected=(0, 3))),
    }


def audits(n: int, epochs: int, only: tuple[str, ...]) -> None:
    runs = in_parallel(lambda plugins: judged(plugins, n, epochs), list(only), 1)
    lines = [
        "# The methods on the digits: does PGD overstate them?",
        "",
        f"One run each of {epochs} epochs, its last checkpoint, {n} test images chosen at random; brackets: 95 % "
        "interval",
        "over images (Wilson). A method whose figure under PGD-20 is above that under AutoAttack by more than the",
        "intervals is overstated here. Nets this small say nothing of CIFAR-10; what is published stands beside.",
        "",
        "| plugins | clean | pgd-20 | cw-20 | autoattack | pgd-20 minus it | alarms of the audit | published |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        evaluation = run["evaluation"]
        gap = accuracy(evaluation, "pgd-20") - accuracy(evaluation, "autoattack")
        published = OVERSTATED.get(run["plugins"])
        cells = [
            run["plugins"] or "none (PGD-AT)",
            *(cell(evaluation, attack) for attack in ("clean", "pgd-20", "cw-20", "autoattack")),
            f"{gap:+.3f}",
            ", ".join(run["audit"]["alarms"]) or "none",
            f"{published[0]} %, AutoAttack {published[1]} %" if published else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    write("methods", lines, runs, f"one thread a process, seed {SEED}")


def composed(plugins: str) -> dict[str, Any]:
    """Two epochs on the digits; every figure of metrics.jsonl has to be a number."""
    folder = RUNS / f"composition-{plugins.replace(',', '+')}"
    command = trained(plugins, folder, "--epochs", "2")
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
        "That they train, not how well: two epochs, one seed, the last checkpoint on all test images; brackets: 95 %",
        "interval over images (Wilson). No loss of any step was NaN.",
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
    parser.add_argument("--n", type=int, default=200, help="test images of the audits")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--only", default=None, help="sets of plugins, between semicolons")
    chosen = parser.parse_args()
    if chosen.what == "compositions":
        compositions()
    else:
        audits(chosen.n, chosen.epochs, METHODS if chosen.only is None else tuple(chosen.only.split(";")))


if __name__ == "__main__":
    main()
