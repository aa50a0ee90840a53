"""The ablations of both papers in miniature, with the controls that they lack: fine-tuned from one PGD-AT net a seed.

    python results/ablations.py --data-root FOLDER      # writes papers/ablations.md and papers/ablations.json

FOLDER is where `advkit data prepare fashion-mnist --data-root FOLDER` put it. What a run showed is kept under
runs/results/ablations as soon as it is measured, and not measured again; the page is written anew after every run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from experiments import HERE, RUNS, halved, processor, revision
from overfit import OF_TRAINING, difference, several

import advkit
from advkit.evaluation.statistics import bits, share, wilson
from advkit.studies.analysis.perturb import Ascent
from advkit.studies.analysis.vulnerability import adversarial_vulnerability

KEPT = RUNS / "ablations"
PAGE = HERE / "papers" / "ablations"
SEEDS = (0, 1, 2)
WEAK, STRONG = ("clean", "pgd-20", "cw-20"), "apgd-t"
EPS, C = 0.1, 10 * (8 / 255) / 0.1
"""CAT's c is 10 at 8/255: the same share of smoothing at this eps."""


@dataclass(frozen=True)
class Arm:
    """One way of going on from the base."""

    key: str
    name: str
    plugins: tuple[str, ...] = ()
    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    alone: tuple[str, ...] = ()
    """Companions that stay away."""
    cat_radius: bool = False
    """Trained at the mean radius that CAT's run of the same seed ended with."""
    cat_smoothing: bool = False
    """Labels smoothed by c times that radius, the same share for all."""


LSI = {"adv_at": "theta", "clean_at": "theta"}


def lsiw(key: str, name: str, rank: Mapping[str, object] | None = None, **options: object) -> Arm:
    return Arm(key, name, ("lsiw",), {"lsiw": options, **({"av-rank": rank} if rank else {})})


def eq9(eta: float) -> Arm:
    """Eq. 9: the squared distance of logits, at theta, of the tenth with the highest vulnerability."""
    options = {"lsiw": {"lam": eta, **LSI}, "av-rank": {"scheme": "top-k", "share": 0.1}}
    return Arm(f"eq9-{eta:g}", f"Eq. 9, eta {eta:g}", ("lsiw",), options, alone=("weight_perturbation",))


AT = Arm("at", "AT, fine-tuned as the others")
INPUT = Arm("input", "+ input loss smoothing", ("lsiw",), {"lsiw": LSI}, alone=("weight_perturbation",))
WEIGHT = Arm("weight", "+ weight loss smoothing (AWP)", ("awp",), {"awp": {"gamma": 0.007}})
ISEAT = lsiw("iseat", "+ both (ISEAT)")
HALF = lsiw("half", "squared L2, unweighted, lambda/2 (control)", {"scheme": "uniform"}, lam=0.05)
UNWEIGHTED = lsiw("l2", "squared L2, unweighted", {"scheme": "uniform"})
KL = lsiw("kl", "KL divergence, unweighted", {"scheme": "uniform"}, distance="kl")
TOP = lsiw("top", "squared L2, top-10 %", {"scheme": "top-k", "share": 0.1})
LSI_AWP = lsiw("lsi", "+ LSI: f(x'; theta) - f(x; theta)", **LSI)
TRADE_AWP = lsiw("trade-awp", "+ TRADE-AWP: f(x'; theta+v) - f(x; theta+v)", clean_at="theta+v")
ETAS = (0.5, 1.0, 2.0, 4.0)
BUDGET = {"eta": EPS / 2}
SMOOTHED = {"dirichlet-ls": {"c": C}}
CAT = Arm("cat", "CAT (both)", ("cat-eps", "dirichlet-ls"), {"cat-eps": BUDGET, **SMOOTHED})
ARMS = (
    *(AT, INPUT, WEIGHT, ISEAT, HALF, UNWEIGHTED, KL, TOP, LSI_AWP, TRADE_AWP),
    *(eq9(eta) for eta in ETAS),
    CAT,
    Arm("adv-ls", "Adv+LS", ("dirichlet-ls",), SMOOTHED),
    Arm("adp-adv", "Adp-Adv", ("cat-eps",), {"cat-eps": BUDGET}),
    Arm("cat-eps-control", "AT at CAT's mean eps (control)", cat_radius=True),
    Arm("cat-ls-control", "AT, labels smoothed by CAT's mean c eps (control)", cat_smoothing=True),
    Arm("cat-both-control", "both of these (control)", cat_radius=True, cat_smoothing=True),
)


@dataclass(frozen=True)
class Table:
    """A table of a paper: its rows here, with the published accuracy and robustness in %, and what is compared."""

    title: str
    rows: tuple[tuple[str, str], ...]
    pairs: tuple[tuple[str, str], ...]
    said: str = ""


TABLES = (
    Table(
        "ISEAT, Table 4: the parts",
        (("at", "85.90, 53.42"), ("input", "84.10, 54.50"), ("weight", "86.04, 55.26"), ("iseat", "85.63, 56.46")),
        (("input", "at"), ("weight", "at"), ("iseat", "at"), ("iseat", "input"), ("iseat", "weight")),
    ),
    Table(
        "ISEAT, Table 5: distances and weights",
        (
            *(("at", "85.90, 53.42"), ("kl", "85.07, 56.08"), ("l2", "85.15, 56.20"), ("half", "")),
            *(("top", "85.53, 56.36"), ("iseat", "85.63, 56.46")),
        ),
        (("l2", "kl"), ("top", "l2"), ("iseat", "l2"), ("iseat", "half"), ("iseat", "top")),
        "The linear weights are 1/2 on average: a gain that unweighted at lambda/2 has too is not due to the ranking.",
    ),
    Table(
        "ISEAT, Table 6: where the logits are taken",
        (("at", "85.90, 53.42"), ("lsi", "85.49, 55.38"), ("trade-awp", "85.52, 55.82"), ("iseat", "85.63, 56.46")),
        (("lsi", "at"), ("trade-awp", "lsi"), ("iseat", "lsi"), ("iseat", "trade-awp")),
        "All rows but AT are with AWP and weighted by rank.",
    ),
    Table(
        "CAT, Table 5",
        (
            *(("at", "80.32, 36.63"), ("adv-ls", "80.25, 43.0"), ("adp-adv", "87.91, 38.59"), ("cat", "84.22, 75.54")),
            *(("cat-eps-control", ""), ("cat-ls-control", ""), ("cat-both-control", "")),
        ),
        (
            *(("adv-ls", "at"), ("adp-adv", "at"), ("cat", "at"), ("cat", "cat-eps-control")),
            *(("cat", "cat-ls-control"), ("cat", "cat-both-control"), ("adp-adv", "cat-eps-control")),
        ),
        "The published figures are accuracies under PGD, from training from scratch. eta is eps/2 here, where the "
        "paper's is 0.16 eps, so that the budgets have grown within the few epochs.",
    ),
    Table(
        "ISEAT, Fig. 4: regularizing the most vulnerable tenth",
        (("at", ""), *((f"eq9-{eta:g}", "") for eta in ETAS)),
        tuple((f"eq9-{eta:g}", "at") for eta in ETAS),
        "Without AWP (Eq. 9), unlike the row top-10 % of Table 5. The paper's curves: accuracy and AV SD fall with "
        "eta, robustness rises.",
    ),
)


@dataclass(frozen=True)
class Regime:
    """Nets that are compared with each other."""

    key: str
    title: str
    said: str
    images: int
    held_out: int
    width: int
    batch_size: int
    base_epochs: int
    epochs: int
    every: int
    """Epochs between two validations."""
    rate: float
    """The learning rate of the base."""
    tuned: float
    """That of the arms, a tenth of it after half of their epochs."""
    decay: float
    """Of weights."""
    few: int
    """Test images under APGD-T."""
    arms: tuple[str, ...]
    checkpoints: tuple[str, ...]

    def splits(self, root: str, seed: int) -> advkit.Splits:
        """Other training images for every seed, the same test images."""
        whole = advkit.load_data("fashion-mnist", root)
        generator = torch.Generator().manual_seed(seed)
        places = torch.randperm(len(whole.train), generator=generator)[: self.images + self.held_out]
        train, test = whole.train.take(places), whole.test.sample(1000)
        return advkit.Splits(halved(train), halved(test), transform="none")


REGIMES = (
    Regime(
        "many",
        "10,000 images",
        "Fashion-MNIST, means of 2 x 2 pixels (14 x 14), 10,000 training images and 1,000 to choose the best "
        "checkpoint on, drawn anew for every seed and shared by all arms; small-cnn of width 12, Linf eps 0.1, 10 "
        "attack steps, batch 128. The base is PGD-AT for 14 epochs (learning rate 0.1, a tenth of it after 7 and after "
        "11), its best checkpoint; every arm goes on from it for 4 epochs at 0.01, at 0.001 after two, and its last "
        "checkpoint is judged. pgd-20 and cw-20 on 1,000 test images, APGD-T on 500 of them.",
        images=10_000,
        held_out=1_000,
        width=12,
        batch_size=128,
        base_epochs=14,
        epochs=4,
        every=2,
        rate=0.1,
        tuned=0.01,
        decay=5e-4,
        few=500,
        arms=tuple(arm.key for arm in ARMS),
        checkpoints=("last",),
    ),
    Regime(
        "few",
        "300 images, on which PGD-AT overfits robustly",
        "As above with 300 training images and 500 to choose the best checkpoint on, width 24, batch 32 and no weight "
        "decay. The base is PGD-AT for 24 epochs at 0.02, its best checkpoint; every arm goes on from it for 80 epochs "
        "at 0.02, at 0.002 for the second half, and its best and its last checkpoint are judged, APGD-T on 250 test "
        "images.",
        images=300,
        held_out=500,
        width=24,
        batch_size=32,
        base_epochs=24,
        epochs=80,
        every=4,
        rate=0.02,
        tuned=0.02,
        decay=0.0,
        few=250,
        arms=("at", "input", "weight", "iseat", "half", "l2"),
        checkpoints=("best", "last"),
    ),
)


# ---------------------------------------------------------------------- runs


def record_of(regime: Regime, key: str, seed: int) -> Path:
    return KEPT / f"{regime.key}-{key}-{seed}.json"


def settings(regime: Regime, base: bool) -> dict[str, object]:
    """Of the base, whose rate falls twice in the first regime, or of an arm."""
    epochs = regime.base_epochs if base else regime.epochs
    return {
        "run.threads": 1,
        "model.width": regime.width,
        "optimizer.lr": regime.rate if base else regime.tuned,
        "optimizer.milestones": ([0.5, 0.75] if regime.rate != regime.tuned else []) if base else [0.5],
        "optimizer.weight_decay": regime.decay,
        "validation.fraction": regime.held_out / (regime.images + regime.held_out),
        "validation.every_epochs": min(regime.every, epochs),
    }


def run(
    folder: Path, regime: Regime, splits: advkit.Splits, seed: int, arm: Arm, base: Path | None
) -> advkit.TrainResult:
    """A run, taken up where it was: the base, or an arm that goes on from it."""
    if (folder / "run.toml").exists():
        return advkit.train(None, splits, resume_from=folder)
    options = {name: dict(values) for name, values in arm.options.items()}
    plugins, eps = list(arm.plugins), EPS
    if arm.cat_radius or arm.cat_smoothing:
        radius = json.loads(record_of(regime, "cat", seed).read_text())["mean_radius"]
        if arm.cat_radius:
            eps = round(radius, 4)
        if arm.cat_smoothing:
            plugins.append("label-smoothing")
            options["label-smoothing"] = {"alpha": round(C * radius, 4), "attack": True}
    return advkit.train(
        "small-cnn",
        splits,
        plugins,
        options=options,
        settings=settings(regime, base is None),
        eps=eps,
        epochs=regime.epochs if base else regime.base_epochs,
        batch_size=regime.batch_size,
        seed=seed,
        no_companion=arm.alone,
        out=folder,
        init_from=base,
    )


def measured(regime: Regime, arm: Arm, seed: int, root: str) -> dict[str, Any]:
    """What one arm showed; what is on disk already is not measured again."""
    file = record_of(regime, arm.key, seed)
    if file.exists():
        return dict(json.loads(file.read_text()))
    splits = regime.splits(root, seed)
    base = KEPT / f"{regime.key}-base-{seed}"
    first = run(base, regime, splits, seed, AT, None)
    if arm.key == "base":
        result, folder = first, base
    else:
        folder = file.with_suffix("")
        result = run(folder, regime, splits, seed, arm, base)
    last = result.history[-1]
    figures: dict[str, Any] = {"arm": arm.key, "seed": seed, "regime": regime.key, "revision": revision()}
    figures |= {key: last[key] for key in OF_TRAINING}
    figures["cpu_seconds"] = sum(row["seconds"]["cpu"] for row in result.history)
    figures["history"] = [row["validation"] and row["validation"]["pgd-10"] for row in result.history]
    for checkpoint in regime.checkpoints if arm.key != "base" else ("best", "last"):
        advkit.load_weights(result.model, folder, checkpoint)
        robust = advkit.evaluate(result.model, splits.test, WEAK, eps=EPS, audit=False)["robust"]
        few = splits.test.sample(regime.few)
        robust |= advkit.evaluate(result.model, few, (STRONG,), eps=EPS, audit=False)["robust"]
        figures[checkpoint] = {name: bits(torch.tensor(values)) for name, values in robust.items()}
        figures[checkpoint]["av"] = unevenness(result.model, splits.train, seed)
    file.write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def unevenness(model: torch.nn.Module, dataset: advkit.Dataset, seed: int) -> dict[str, float | None]:
    """The columns of ISEAT's Table 1 on 1,000 of the images trained on, under PGD-50."""
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:1000].sort().values
    return adversarial_vulnerability(model, dataset, Ascent(EPS), index=chosen).unevenness.as_dict()


# ---------------------------------------------------------------------- page

INTRODUCTION = (
    "This page has the rows of ISEAT's Tables 4, 5 and 6 and Fig. 4 and of CAT's Table 5, fine-tuned from one "
    "PGD-AT net per seed, and rows that neither paper has, marked as controls. Published figures are for CIFAR-10 "
    "(WRN-34-10 under AutoAttack in ISEAT, VGG-16 under PGD in CAT), so only their order can be compared. Seeds "
    "are paired. A difference is *higher* or *lower* if the t interval over the seeds excludes 0, else *not "
    "shown*; a mean smaller than the *half width* could not have been distinguished from 0. Each interval is for "
    "one comparison: one in twenty excludes 0 though nothing differs. *Its interval*: Wilson's, of the mean over "
    "seeds, over the test images, "
    "which the seeds share. *Training attack*: the share of training images that withstands it in the last epoch; *AV "
    "SD*: of 1,000 of them under PGD-50 (ISEAT, Eq. 6)."
)


def kept(regime: Regime) -> dict[tuple[str, int], dict[str, Any]]:
    """What lies on disk, by arm and seed."""
    places = {(key, seed): record_of(regime, key, seed) for seed in SEEDS for key in ("base", *regime.arms)}
    return {place: json.loads(file.read_text()) for place, file in places.items() if file.exists()}


def section(regime: Regime, runs: Mapping[tuple[str, int], dict[str, Any]]) -> Iterator[str]:
    """The tables of one regime, of the seeds that all arms of a table have."""
    yield from ("", f"## {regime.title}", "", *textwrap.wrap(regime.said, 120))
    names = {arm.key: arm.name for arm in ARMS}
    base = [runs["base", seed] for seed in SEEDS if ("base", seed) in runs]
    if base:
        said = ", ".join(
            f"{which} {several([share(one[which][STRONG]) for one in base])}" for which in ("best", "last")
        )
        yield from ("", *textwrap.wrap(f"The base under APGD-T, mean over seeds and the seeds: {said}.", 120))
    for table in TABLES:
        rows = [(key, published) for key, published in table.rows if key in regime.arms]
        seeds = [seed for seed in SEEDS if all((key, seed) in runs for key, _ in rows)]
        if len(rows) < 3 or len(seeds) < 2:
            continue
        yield from ("", f"### {table.title}", "", *([*textwrap.wrap(table.said, 120), ""] if table.said else []))
        for checkpoint in regime.checkpoints:
            yield from rows_of(
                checkpoint, [(names[key], [runs[key, seed] for seed in seeds], said) for key, said in rows]
            )
            heads = ("difference", "attack", "mean [95 % t interval over seeds]", "half width", "", "published, points")
            yield from ("", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}")
            for pair in compared(regime, table, runs, checkpoint):
                yield f"| {pair.name} | {STRONG} | {difference(pair.robust)} | {pair.published} |"
                yield f"| {pair.name} | clean | {difference(pair.clean)} | |"
            yield ""


@dataclass(frozen=True)
class Pair:
    """Two arms, seed by seed, and how far the published robustness of the two is apart."""

    name: str
    robust: tuple[float, ...]
    clean: tuple[float, ...]
    published: str

    @property
    def verdict(self) -> str:
        """Whether what is shown here has the sign of what is published."""
        word = difference(self.robust).rsplit("| ", 1)[1]
        if word == "not shown":
            return word
        return "agrees" if (word == "higher") == self.published.startswith("+") else "the opposite"


def compared(
    regime: Regime, table: Table, runs: Mapping[tuple[str, int], dict[str, Any]], checkpoint: str
) -> Iterator[Pair]:
    """The pairs of a table whose arms are in the regime, of the seeds that all its arms have."""
    keys = [key for key, _ in table.rows if key in regime.arms]
    seeds = [seed for seed in SEEDS if all((key, seed) in runs for key in keys)]
    said = {key: float(published.split(", ")[1]) for key, published in table.rows if published}
    for left, right in table.pairs:
        if {left, right} <= {*keys}:
            robust, clean = (
                tuple(
                    share(runs[left, seed][checkpoint][attack]) - share(runs[right, seed][checkpoint][attack])
                    for seed in seeds
                )
                for attack in (STRONG, "clean")
            )
            published = f"{said[left] - said[right]:+.2f}" if {left, right} <= said.keys() else ""
            yield Pair(f"{left} - {right}", robust, clean, published)


def summary(known: Mapping[str, Mapping[tuple[str, int], dict[str, Any]]]) -> Iterator[str]:
    """Which published orders are seen here, which are not, and which are the other way round."""
    heads = ("images", "checkpoint", "agrees", "the opposite", "not shown")
    yield from ("", "## What agrees, under APGD-T", "")
    yield from textwrap.wrap(
        "The published differences: *agrees* if the interval here excludes 0 on the published side.", 120
    )
    yield from ("", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}")
    for regime in REGIMES:
        runs = known[regime.key]
        if all((key, seed) in runs for key in regime.arms for seed in SEEDS):
            for checkpoint in regime.checkpoints:
                pairs = {pair.name: pair for table in TABLES for pair in compared(regime, table, runs, checkpoint)}
                sorted_out: dict[str, list[str]] = {word: [] for word in heads[2:]}
                for pair in pairs.values():
                    if pair.published:
                        sorted_out[pair.verdict].append(pair.name)
                cells = [f"{len(names)}: {', '.join(names)}" if names else "0" for names in sorted_out.values()]
                yield f"| {regime.images:,} | {checkpoint} | {' | '.join(cells)} |"


def rows_of(checkpoint: str, rows: Sequence[tuple[str, Sequence[dict[str, Any]], str]]) -> Iterator[str]:
    heads = ("arm", "clean", "pgd-20", "apgd-t", "its interval over images", "training attack", "mean radius", "AV SD")
    yield f"| {checkpoint} checkpoint: {' | '.join(heads)} | published: accuracy, robustness, % |"
    yield f"|{'---|' * (len(heads) + 1)}"
    for name, runs, published in rows:
        figures = [several([share(run[checkpoint][attack]) for run in runs]) for attack in ("clean", "pgd-20", STRONG)]
        of_images = statistics.fmean(run[checkpoint][STRONG].count("1") for run in runs)
        low, high = wilson(of_images, len(runs[0][checkpoint][STRONG]))
        trained, radius = (several([run[key] for run in runs]) for key in OF_TRAINING)
        spread = several([run[checkpoint]["av"]["sd"] for run in runs])
        cells = [name, *figures, f"{low:.3f} to {high:.3f}", trained, radius, spread, published]
        yield f"| {' | '.join(cells)} |"


def page() -> None:
    known = {regime.key: kept(regime) for regime in REGIMES}
    versions = {name: version(name) for name in ("advkit", "torch", "pyautoattack")}
    versions["revision"] = ", ".join(sorted({run["revision"] for runs in known.values() for run in runs.values()}))
    made = ", ".join(f"{name} {number}" for name, number in versions.items())
    lines = [
        "# The ablations of CAT and ISEAT in miniature, with controls",
        "",
        *textwrap.wrap(INTRODUCTION, 120),
    ]
    lines += summary(known)
    for regime in REGIMES:
        lines += section(regime, known[regime.key])
    lines += [
        "",
        f"Measured with {made}, Python {platform.python_version()}, {processor()}, {os.cpu_count()} cores; one thread",
        f"a run, seeds {', '.join(map(str, SEEDS))}, other work on the machine. `make results-papers DATA=FOLDER`.",
    ]
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.with_suffix(".md").write_text("\n".join(lines).replace("\n\n\n", "\n\n") + "\n")
    runs = {key: list(of_regime.values()) for key, of_regime in known.items()}
    PAGE.with_suffix(".json").write_text(json.dumps({"versions": versions, "runs": runs}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True, help="where Fashion-MNIST is")
    parser.add_argument("--seeds", default="0,1,2", help="measure these only")
    parser.add_argument("--regimes", default=",".join(regime.key for regime in REGIMES), help="measure these only")
    parser.add_argument("--page", action="store_true", help="measure nothing: write the page of what is kept")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    KEPT.mkdir(parents=True, exist_ok=True)
    by_key = {arm.key: arm for arm in (Arm("base", "the base"), *ARMS)}
    for seed in () if chosen.page else map(int, chosen.seeds.split(",")):
        for regime in REGIMES:
            for key in ("base", *regime.arms) if regime.key in chosen.regimes.split(",") else ():
                figures = measured(regime, by_key[key], seed, chosen.data_root)
                shown = share(figures["last"][STRONG])
                print(
                    f"{regime.key}, {key}, seed {seed}: {STRONG} {shown:.3f}, {figures['cpu_seconds']:.0f} s",
                    flush=True,
                )
                page()
    page()


if __name__ == "__main__":
    main()
