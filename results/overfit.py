"""Runs that are long enough: AWP and ISEAT where PGD-AT overfits robustly, CAT where its budgets have converged.

    python results/overfit.py --data-root FOLDER      # writes overfit.md and overfit.json beside itself

FOLDER is where `advkit data prepare fashion-mnist --data-root FOLDER` put it. What a run showed is kept under
runs/results/overfit as soon as it is measured, and not measured again; the page is written anew after every run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from experiments import HERE, RUNS, halved, processor, revision

import advkit
from advkit.evaluation.statistics import bits, seed_interval, share

KEPT = RUNS / "overfit"
SEEDS = (0, 1, 2)
WEAK, STRONG = ("clean", "pgd-20", "cw-20"), "autoattack"
CHECKPOINTS = ("best", "last")
TRAINED, HELD_OUT = 300, 100
OF_TRAINING = ("train_adversarial_accuracy", "mean_radius")
"""In the last epoch."""


@dataclass(frozen=True)
class Arm:
    """A way of training, a line of a table."""

    key: str
    name: str
    plugins: tuple[str, ...] = ()
    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    radius_of: str | None = None
    """The arm whose mean radius in the last epoch, of the same seed, is this one's eps in training."""


@dataclass(frozen=True)
class Regime:
    """Runs that are compared with each other; all are attacked within `eps`."""

    key: str
    title: str
    said: str
    eps: float
    epochs: int
    batch_size: int
    few: int
    """Test images of AutoAttack."""
    settings: Mapping[str, object]
    data: Callable[[int], advkit.Splits]
    """By seed."""
    arms: tuple[Arm, ...]
    pairs: tuple[tuple[str, str], ...]


PGD_AT = Arm("pgd-at", "PGD-AT")
ISEAT = Arm(
    "iseat", "ISEAT (lsiw, lambda 0.1 after the first decay)", ("lsiw",), {"lsiw": {"lam": "0.1 after decay 1"}}
)


@cache
def small_fashion(root: str) -> advkit.Splits:
    """Fashion-MNIST, means of 2 x 2 pixels: 14 x 14."""
    splits = advkit.load_data("fashion-mnist", root)
    return advkit.Splits(halved(splits.train), halved(splits.test).sample(1000), transform="none")


def few_of_fashion(root: str, seed: int) -> advkit.Splits:
    """Other training images for every seed, the same test images."""
    splits, generator = small_fashion(root), torch.Generator().manual_seed(seed)
    places = torch.randperm(len(splits.train), generator=generator)[: TRAINED + HELD_OUT]
    return advkit.Splits(splits.train.take(places), splits.test, transform="none")


def digits(seed: int) -> advkit.Splits:
    """All of them, whatever the seed."""
    return advkit.load_data("digits")


def regimes(root: str) -> tuple[Regime, Regime]:
    return (
        Regime(
            "fashion",
            "Few images, many epochs: AWP and ISEAT",
            f"Fashion-MNIST, means of 2 x 2 pixels (14 x 14), {TRAINED} training images and {HELD_OUT} to choose the "
            "best checkpoint on, drawn anew for every seed and shared by the methods; small-cnn, Linf eps 0.1, 10 "
            "attack steps, 100 epochs, batch 32, learning rate 0.05, a tenth of it after 50 and again after 75 "
            "epochs; the best checkpoint of every fourth epoch. pgd-20 and cw-20 on 1,000 test images, AutoAttack on "
            "100 of them.",
            eps=0.1,
            epochs=100,
            batch_size=32,
            few=100,
            settings={
                "optimizer.lr": 0.05,
                "validation.fraction": HELD_OUT / (TRAINED + HELD_OUT),
                "validation.every_epochs": 4,
            },
            data=partial(few_of_fashion, root),
            arms=(PGD_AT, Arm("awp", "AWP", ("awp",)), ISEAT),
            pairs=(("awp", "pgd-at"), ("iseat", "pgd-at"), ("iseat", "awp")),
        ),
        Regime(
            "digits",
            "CAT when its budgets have converged",
            "UCI digits, small-cnn, 60 epochs, batch 64, default learning rate (0.1), all trained at eps 0.15 but the "
            "control, which is PGD-AT at CAT's mean radius in its last epoch, seed by seed; all are attacked within "
            "0.15; the best checkpoint of every second epoch. pgd-20 and cw-20 on all 539 test images, AutoAttack on "
            "100 of them. CAT's budgets alone are in digits-long.md.",
            eps=0.15,
            epochs=60,
            batch_size=64,
            few=100,
            settings={"validation.every_epochs": 2},
            data=digits,
            arms=(
                PGD_AT,
                Arm("cat", "CAT (cat-eps,dirichlet-ls)", ("cat-eps", "dirichlet-ls")),
                Arm("control", "PGD-AT at CAT's mean radius", radius_of="cat"),
            ),
            pairs=(("cat", "pgd-at"), ("cat", "control"), ("control", "pgd-at")),
        ),
    )


# ---------------------------------------------------------------------- runs


def record_of(regime: Regime, arm: Arm, seed: int) -> Path:
    return KEPT / f"{regime.key}-{arm.key}-{seed}.json"


def measured(regime: Regime, arm: Arm, seed: int, attacks: tuple[str, ...] = WEAK) -> dict[str, Any]:
    """What one run showed under `attacks` at least; what is on disk already is not measured again."""
    file = record_of(regime, arm, seed)
    figures = dict(json.loads(file.read_text())) if file.exists() else {}
    if figures and set(attacks) <= figures["last"].keys():
        return figures
    splits = regime.data(seed)
    result, eps = trained(regime, arm, seed, splits)
    if not figures:
        assert result.best is not None
        last = result.history[-1]
        figures = {"arm": arm.key, "seed": seed, "eps": eps, "best_epoch": result.best["epoch"] + 1}
        figures |= {key: last[key] for key in OF_TRAINING} | {checkpoint: {} for checkpoint in CHECKPOINTS}
        figures["cpu_seconds"] = sum(row["seconds"]["cpu"] for row in result.history)
    figures["revision"] = revision()
    images = splits.test.sample(regime.few) if STRONG in attacks else splits.test
    for checkpoint in CHECKPOINTS:
        advkit.load_weights(result.model, file.with_suffix(""), checkpoint)
        robust = advkit.evaluate(result.model, images, attacks, eps=regime.eps, audit=False)["robust"]
        figures[checkpoint] |= {name: bits(torch.tensor(values)) for name, values in robust.items()}
    file.write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def trained(regime: Regime, arm: Arm, seed: int, splits: advkit.Splits) -> tuple[advkit.TrainResult, float]:
    """The run, taken up where it was, and the eps that it trains at."""
    folder = record_of(regime, arm, seed).with_suffix("")
    begun = (folder / "run.toml").exists()
    eps = regime.eps
    if arm.radius_of:
        other = next(one for one in regime.arms if one.key == arm.radius_of)
        eps = round(measured(regime, other, seed)["mean_radius"], 4)
    result = advkit.train(
        "small-cnn",
        splits,
        arm.plugins,
        options=arm.options,
        settings={"run.threads": 1, **regime.settings},
        eps=eps,
        epochs=regime.epochs,
        batch_size=regime.batch_size,
        seed=seed,
        out=None if begun else folder,
        resume_from=folder if begun else None,
    )
    return result, eps


# ---------------------------------------------------------------------- page


def several(values: Sequence[float], form: str = "{:.3f}") -> str:
    return f"{form.format(statistics.fmean(values))} ({', '.join(form.format(value) for value in values)})"


def difference(values: Sequence[float]) -> str:
    """Mean, t interval over seeds, and what it says."""
    low, high = seed_interval(values) or (-1.0, 1.0)
    half = (high - low) / 2
    word = "higher" if low > 0 else "lower" if high < 0 else "not shown"
    return f"{statistics.fmean(values):+.3f} [{low:+.3f}, {high:+.3f}] | {half:.3f} | {word}"


def section(regime: Regime, runs: Mapping[tuple[str, int], dict[str, Any]]) -> Iterator[str]:
    """The tables of one regime, under each attack of the seeds that all its arms have."""
    seeds = common(regime, runs, "pgd-20")
    yield from ("", f"## {regime.title}", "", *textwrap.wrap(regime.said, 120), "")
    if len(seeds) < 2:
        yield "Fewer than two seeds are measured."
        return

    def shares(arm: str, checkpoint: str, attack: str) -> list[float]:
        return [share(runs[arm, seed][checkpoint][attack]) for seed in common(regime, runs, attack)]

    strong = common(regime, runs, STRONG)
    few = f" AutoAttack was run on nets of these seeds: {', '.join(map(str, strong)) or 'none'}."
    of = "" if strong == seeds else few
    yield f"Each cell: mean over the seeds {', '.join(map(str, seeds))}, and the seeds.{of}"
    yield ""
    heads = ("training", "checkpoint", "epoch", *WEAK, STRONG, "training attack", "mean radius")
    yield f"| {' | '.join(heads)} |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for arm in regime.arms:
        mine = [runs[arm.key, seed] for seed in seeds]
        trained, radius = (several([run[key] for run in mine]) for key in OF_TRAINING)
        for checkpoint in CHECKPOINTS:
            epochs = ", ".join(str(run["best_epoch"] if checkpoint == "best" else regime.epochs) for run in mine)
            figures = [shares(arm.key, checkpoint, attack) for attack in (*WEAK, STRONG)]
            cells = " | ".join(several(values) if values else "" for values in figures)
            yield f"| {arm.name} | {checkpoint} | {epochs} | {cells} | {trained} | {radius} |"
    yield from (
        "",
        "Paired differences, seed by seed; *half width*: a smaller mean could not have been distinguished from 0.",
        "",
    )
    yield "| difference | checkpoint | attack | mean [95 % t interval over seeds] | half width | |"
    yield "|---|---|---|---|---|---|"
    for attack in [name for name in ("pgd-20", "cw-20", STRONG) if len(common(regime, runs, name)) > 1]:
        for arm in regime.arms:
            pairs = zip(shares(arm.key, "last", attack), shares(arm.key, "best", attack), strict=True)
            yield f"| {arm.key}, last - best | | {attack} | {difference([one - other for one, other in pairs])} |"
        for left, right in regime.pairs:
            for checkpoint in CHECKPOINTS:
                pairs = zip(shares(left, checkpoint, attack), shares(right, checkpoint, attack), strict=True)
                told = difference([one - other for one, other in pairs])
                yield f"| {left} - {right} | {checkpoint} | {attack} | {told} |"


def common(regime: Regime, runs: Mapping[tuple[str, int], dict[str, Any]], attack: str) -> list[int]:
    """The seeds of which every arm is measured under `attack`."""
    return [
        seed for seed in SEEDS if all(attack in runs.get((arm.key, seed), {}).get("last", ()) for arm in regime.arms)
    ]


def kept(regime: Regime) -> dict[tuple[str, int], dict[str, Any]]:
    """What lies on disk, by arm and seed."""
    places = {(arm.key, seed): record_of(regime, arm, seed) for seed in SEEDS for arm in regime.arms}
    return {key: json.loads(file.read_text()) for key, file in places.items() if file.exists()}


def page(every: Sequence[Regime]) -> None:
    known = {regime.key: kept(regime) for regime in every}
    versions = {name: version(name) for name in ("advkit", "torch", "pyautoattack")}
    versions["revision"] = ", ".join(sorted({run["revision"] for runs in known.values() for run in runs.values()}))
    made = ", ".join(f"{name} {number}" for name, number in versions.items())
    lines = [
        "# Long enough: many epochs on few images, and CAT with converged budgets",
        "",
        "On the other pages nets train for so few epochs that there is hardly any robust overfitting for AWP and",
        "ISEAT to reduce. Here they train long: compare *training attack*, the share of training images that",
        "withstand it in the last epoch, with pgd-20 on test images. Seeds are paired. A difference is *higher* or",
        "*lower* if the t interval over the seeds excludes 0, which with three seeds needs a mean of 2.5 times the",
        "standard deviation between seeds; otherwise it is *not shown*. Each interval is for one comparison: one in",
        "twenty excludes 0 though nothing differs. These are small nets on small images: nothing here says how large",
        "a gain is elsewhere.",
    ]
    for regime in every:
        lines += section(regime, known[regime.key])
    lines += [
        "",
        f"Measured with {made}, Python {platform.python_version()}, {processor()}, {os.cpu_count()} cores; one thread",
        f"a run, seeds {', '.join(map(str, SEEDS))}, other work on the machine. `make results-overfit DATA=FOLDER`.",
    ]
    (HERE / "overfit.md").write_text("\n".join(lines) + "\n")
    runs = {regime.key: list(known[regime.key].values()) for regime in every}
    (HERE / "overfit.json").write_text(json.dumps({"versions": versions, "runs": runs}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True, help="where Fashion-MNIST is")
    parser.add_argument("--seeds", default="0,1,2", help="measure these only")
    parser.add_argument("--page", action="store_true", help="measure nothing: write the page of what is kept")
    parser.add_argument("--regimes", default="fashion,digits", help="measure these only")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    KEPT.mkdir(parents=True, exist_ok=True)
    every = regimes(chosen.data_root)
    seeds, keys = map(int, chosen.seeds.split(",")), chosen.regimes.split(",")
    tasks = [(seed, regime, arm) for seed in seeds for regime in every if regime.key in keys for arm in regime.arms]
    for attacks in (
        () if chosen.page else (WEAK, (STRONG,))
    ):  # the strong attack last, since it takes as long as the training
        for seed, regime, arm in tasks:
            measured(regime, arm, seed, attacks)
            print(f"{regime.key}, {arm.key}, seed {seed}: {', '.join(attacks)}", flush=True)
            page(every)
    page(every)


if __name__ == "__main__":
    main()
