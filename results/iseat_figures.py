"""ISEAT's own analyses at mini size: Fig. 1 to 3 and Table 1. Fig. 4 and Tables 4 to 6 are in ablations.py.

    python results/iseat_figures.py --data-root FOLDER      # writes papers/iseat.md, papers/iseat.json and its pictures

FOLDER is where `advkit data prepare fashion-mnist --data-root FOLDER` put it. Nets are kept under runs/results/iseat.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments import HERE, RUNS, advkit as command, processor, revision
from matplotlib.figure import Figure
from overfit import small_fashion
from torch import Tensor, nn

import advkit
from advkit.evaluation.statistics import wilson
from advkit.studies.analysis.landscape import Landscape, loss_landscape
from advkit.studies.analysis.margin import Margins, margins
from advkit.studies.analysis.perturb import Ascent
from advkit.studies.analysis.pictures import margin_picture
from advkit.studies.analysis.plotting import DARK, MARK, PAGE, rendered
from advkit.studies.analysis.vulnerability import adversarial_vulnerability
from advkit.studies.subject import subject_of

KEPT = RUNS / "iseat"
INTO = HERE / "papers"
EPS, ATTACK = 0.1, "pgd-50"
IMAGES, EXTRA, EPOCHS, TUNED, WIDTH = 1500, 15_000, 60, 10, 12
MUS = (0.0, 1.4, 5.0, 10.0, 20.0, 50.0)
"""Lengths of Fig. 2's rows; 1.4 is eps sqrt(d) here, 1.5 in the paper."""


@dataclass(frozen=True)
class Net:
    """A row of Table 1, with the published robustness (PGD-50) and columns."""

    key: str
    name: str
    published: str
    plugins: tuple[str, ...] = ()
    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    alone: tuple[str, ...] = ()
    from_at: bool = False


NETS = (
    Net("at", "AT", "51.78: 0.467, 1.527, -0.010, 12.38, 12.14", ("vulnerability-log",)),
    Net("awp", "AWP", "54.68: 0.351, 1.120, -0.022, 5.52, 19.74", ("awp",)),
    Net(
        "rst",
        "RST (as many pseudo-labelled images a batch)",
        "57.68: 0.443, 1.378, -0.011, 9.96, 20.87",
        ("extra-data",),
        {"extra-data": {"share": 0.5, "root": str(KEPT / "extra" / "mapped")}},
    ),
    Net(
        "eq9",
        "Eq. 9, eta 4, from AT's best",
        "55.95: 0.196, 0.633, -0.047, 0.14, 12.00",
        ("lsiw",),
        {
            "lsiw": {"lam": 4.0, "adv_at": "theta", "clean_at": "theta"},
            "av-rank": {"scheme": "top-k", "share": 0.1},
        },
        ("weight_perturbation",),
        from_at=True,
    ),
)
COLUMNS = ("sd", "top_10", "bottom_10", "at_least_1", "at_most_0")

# ---------------------------------------------------------------------- nets


def data(root: str) -> tuple[advkit.Splits, advkit.Dataset]:
    """What the nets train and are judged on, and images whose labels nobody looks at."""
    whole = small_fashion(root)
    order = torch.randperm(len(whole.train), generator=torch.Generator().manual_seed(0))
    held = IMAGES + IMAGES // 5
    return advkit.Splits(whole.train.take(order[:held]), whole.test, transform="none"), whole.train.take(order[-EXTRA:])


def trained(folder: Path, splits: advkit.Splits, net: Net, steps: int = 10) -> advkit.TrainResult:
    """From its folder, or into it."""
    if (folder / "run.toml").exists():
        return advkit.train(None, splits, resume_from=folder)
    epochs, rate, milestones = (TUNED, 0.01, [0.5]) if net.from_at else (EPOCHS, 0.1, [0.5, 0.75])
    return advkit.train(
        "small-cnn",
        splits,
        net.plugins,
        options=net.options,
        settings={
            "run.threads": 1,
            "attack.steps": steps,
            "model.width": WIDTH,
            "optimizer.lr": rate,
            "optimizer.milestones": milestones,
            "validation.fraction": 1 / 6,
            "validation.every_epochs": 2,
        },
        eps=EPS,
        epochs=epochs,
        batch_size=64,
        seed=0,
        no_companion=net.alone,
        out=folder,
        init_from=KEPT / "at" if net.from_at else None,
    )


def pseudo_labelled(splits: advkit.Splits, images: advkit.Dataset) -> float:
    """Labels of a net without attacks on the images trained on, as RST's; the share that is right."""
    into = KEPT / "extra"
    net = trained(KEPT / "natural", splits, Net("natural", "", ""), steps=0).model.eval()
    with torch.no_grad():
        labels = torch.cat([net(part.float() / 255).argmax(1) for part in images.images.split(500)])
    if not (into / "mapped").exists():
        into.mkdir(exist_ok=True)
        np.savez(into / "extra.npz", image=images.images.permute(0, 2, 3, 1).numpy(), label=labels.numpy())
        command("data", "prepare", "mapped", "--from", str(into / "extra.npz"), "--data-root", str(into / "mapped"))
    return float((labels == images.labels).double().mean())


def row(net: nn.Module, test: advkit.Dataset, images: advkit.Dataset) -> dict[str, Any]:
    """PGD-50 on test images, and the spread of vulnerability over the images trained on."""
    robust = advkit.evaluate(net, test, (ATTACK,), eps=EPS, audit=False)["robust"][ATTACK]
    found = adversarial_vulnerability(net, images, Ascent(EPS))
    return {"robust": [sum(robust), len(robust)], **found.unevenness.as_dict()}


# ---------------------------------------------------------------------- pictures


def epochs_picture(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Fig. 1a: the log of the AT run."""
    figure = Figure(figsize=(PAGE, 2.4), layout="constrained")
    epochs = range(1, len(history) + 1)
    nats, shares = figure.subplots(1, 2)
    for name, said, style in (("top_10", "top 10 %", "-"), ("sd", "SD", "--"), ("bottom_10", "bottom 10 %", ":")):
        nats.plot(
            epochs, [row["figures"][f"vulnerability-log/{name}"] for row in history], style, color=DARK, label=said
        )
    for name, said, color in (("at_least_1", "AV >= 1", MARK), ("at_most_0", "AV <= 0", DARK)):
        shares.plot(epochs, [row["figures"][f"vulnerability-log/{name}"] for row in history], color=color, label=said)
    nats.set(xlabel="epoch", ylabel="AV (nats)")
    shares.set(xlabel="epoch", ylabel="share of the images trained on")
    for axes in (nats, shares):
        axes.legend()
    return figure


def rows_picture(images: Tensor, confidences: Tensor, names: Sequence[str]) -> Figure:
    """Fig. 2: images (M, N, H, W) by length and sample, with the confidence in the true class (M, N)."""
    figure = Figure(figsize=(PAGE, 1.0 * len(MUS)), layout="constrained")
    grid = figure.subplots(*images.shape[:2], squeeze=False)
    for i, mu in enumerate(MUS):
        for j, name in enumerate(names):
            axes = grid[i, j]
            axes.imshow(images[i, j].numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"{name}: {confidences[i, j]:.2f}", fontsize=6)
            if not j:
                axes.set_ylabel(f"{mu:g}")
    return figure


def landscapes_picture(shown: Sequence[tuple[str, Landscape]]) -> Figure:
    """Fig. 3: each with a scale of its own, as in the paper."""
    figure = Figure(figsize=(PAGE, 2.3), layout="constrained")
    for place, (name, found) in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), place + 1)
        mesh = axes.pcolormesh(
            found.first.numpy(), found.second.numpy(), found.loss.T.numpy(), cmap="cividis", rasterized=True
        )
        axes.set(title=name, xlabel="alpha", ylabel="" if place else "beta", aspect="equal")
        figure.colorbar(mesh, ax=axes, location="bottom")
    return figure


def disordered(net: nn.Module, dataset: advkit.Dataset, found: Margins) -> dict[str, Any]:
    """Fig. 2 and 3; which samples were taken. Disordered: never flips; where none is, the longest margins there are."""
    x, y = dataset.images.float() / 255, dataset.labels
    with torch.no_grad():
        right = net(x).argmax(1) == y
    mu = found.mu.nan_to_num(0.0) * right
    top = mu.argsort(descending=True, stable=True)[:6]
    delta = Ascent(EPS)(net, x[top], y[top]) - x[top]
    unit = delta / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    moved = torch.stack([(x[top] + length * unit).clamp(0, 1) for length in MUS])
    with torch.no_grad():
        confident = torch.stack([net(of).softmax(1)[range(len(top)), y[top]] for of in moved])
    names = [dataset.classes[int(label)] for label in y[top]]
    (INTO / "iseat-fig-2.svg").write_bytes(rendered(lambda: rows_picture(moved[:, :, 0], confident, names))["svg"])
    usual = (mu - 2 * found.length).abs().argmin()  # flips at twice its own budget
    weak = torch.where(right, mu, 1e9).argmin()
    chosen = {"disordered": top[:1], "robust": usual.view(1), "vulnerable": weak.view(1)}
    planes = [
        (f"{said}, margin {float(found.mu[of]):.1f}", loss_landscape(net, dataset, Ascent(EPS), kind="iseat", index=of))
        for said, of in chosen.items()
    ]
    (INTO / "iseat-fig-3.svg").write_bytes(rendered(lambda: landscapes_picture(planes))["svg"])
    return {
        "margins": [float(found.mu[of]) for of in top],
        "confidence": {
            f"{length:g}": [round(float(c), 3) for c in of] for length, of in zip(MUS, confident, strict=True)
        },
        "planes": {name: plane.as_dict() for name, plane in planes},
    }


# ---------------------------------------------------------------------- page


def paragraphs(*texts: str) -> Iterator[str]:
    for text in texts:
        yield from ("", *textwrap.wrap(text, 120, break_on_hyphens=False))


def page(figures: Mapping[str, Any]) -> None:
    lines = ["# ISEAT's own analyses at mini size"]
    lines += paragraphs(
        "Li and Spratling: Improved Adversarial Training Through Adaptive Instance-wise Loss Smoothing (2023), section "
        "3. Small nets on small images: this page looks for what the paper shows, not for its figures. Its Fig. 4 "
        "and Tables 4, 5 and 6 are in [ablations.md](ablations.md).",
        f"Fashion-MNIST, 14 x 14, {IMAGES:,} training images and {IMAGES // 5} to choose the best checkpoint on, "
        f"small-cnn of width {WIDTH}, Linf eps {EPS}, {EPOCHS} epochs, batch 64, learning rate 0.1, a tenth of it "
        f"after half and again after three quarters; one seed. The best checkpoints are judged by {ATTACK}, as in "
        "the paper.",
    )
    lines += ["", "## Table 1: how unevenly training methods leave vulnerability", ""]
    heads = ("training", "robust on 1,000 test images", "AV SD", "top 10 %", "bottom 10 %", "AV >= 1, %", "AV <= 0, %")
    lines += [f"| {' | '.join(heads)} | published |", f"|{'---|' * (len(heads) + 1)}"]
    for net in NETS:
        if mine := figures["table"].get(net.key):
            right, n = mine["robust"]
            low, high = wilson(right, n)
            cells = [f"{mine[name] * (100 if name.startswith('at_') else 1):.3f}" for name in COLUMNS]
            said = f"{right / n:.3f} ({low:.3f} to {high:.3f})"
            lines.append(f"| {net.name} | {said} | {' | '.join(cells)} | {net.published} |")
    lines += paragraphs(
        "Published: robustness in %, then the five columns, PRN-18 on CIFAR-10. The images are those trained on, "
        "without the extra ones. "
        f"RST's {EXTRA:,} extra images have the labels of a net that was trained on the same {IMAGES:,} without an "
        f"attack; {100 * figures['pseudo_labels']:.1f} % of them are right."
        if "pseudo_labels" in figures
        else ""
    )
    if "margin" in figures:
        of = figures["margin"]
        lines += ["", "## Fig. 1: uneven vulnerability, and how far predictions hold"]
        lines += paragraphs(
            "AT's run, epoch by epoch, under the attack of training (`vulnerability-log`); then the margin along the "
            "adversarial direction at its best checkpoint (Eq. 7).",
        )
        told = "; ".join(f"{name} {first:.3f} to {last:.3f}" for name, (first, last) in figures["over_epochs"].items())
        lines += paragraphs(
            f"From the second to the last epoch: {told}. In the paper SD, top 10 % and both shares rise and the bottom "
            "10 % fall, in a net that overfits."
        )
        lines += ["", "![AV over the epochs](iseat-fig-1a.svg)", "", "![margins](iseat-fig-1b.svg)"]
        lines += paragraphs(
            f"Within the budget flip {100 * of['within_eps']:.1f} % (paper: about 20 %), within a third of it "
            f"{100 * of['within_third_of_eps']:.1f} % (about 5 %); beyond twice the budget hold "
            f"{100 * of['beyond_twice_eps']:.1f} % (about half), and {100 * of['disordered']:.1f} % never flip (about "
            "14 %)."
        )
        lines += ["", "## Fig. 2 and 3: samples whose margin is excessive"]
        kept = ", ".join(f"{mu:.1f}" for mu in figures["samples"]["margins"])
        lines += paragraphs(
            "The six correctly classified samples with the longest margins along the adversarial direction: "
            f"{kept} (50: never flips). Rows: the length moved, in L2; titles: class and confidence in it.",
        )
        lines += ["", "![six samples at six lengths](iseat-fig-2.svg)"]
        lines += paragraphs(
            "The loss around the first of them, around one that flips at twice its budget and around the most "
            "vulnerable correct one (Eq. 8), each on its own scale."
        )
        lines += ["", "![three planes](iseat-fig-3.svg)"]
    made = ", ".join(f"{name} {version(name)}" for name in ("advkit", "torch"))
    lines += paragraphs(
        f"Measured with {made}, revision {figures['revision']}, Python {platform.python_version()}, {processor()}, "
        f"{os.cpu_count()} cores, one thread. `make results-papers DATA=FOLDER`."
    )
    (INTO / "iseat.md").write_text("\n".join(line for line in lines) + "\n")
    (INTO / "iseat.json").write_text(json.dumps(figures, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True, help="where Fashion-MNIST is")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    KEPT.mkdir(parents=True, exist_ok=True)
    INTO.mkdir(exist_ok=True)
    splits, unlabelled = data(chosen.data_root)
    figures: dict[str, Any] = {"revision": revision(), "table": {}}
    for net in NETS:
        if net.key == "rst":
            figures["pseudo_labels"] = pseudo_labelled(splits, unlabelled)
        result = trained(KEPT / net.key, splits, net)
        best = subject_of(KEPT / net.key, "best", dataset=splits)
        model, images = best.model.eval(), best.images("train")
        figures["table"][net.key] = row(model, splits.test, images)
        print(net.name, figures["table"][net.key], flush=True)
        if net.key == "at":
            (INTO / "iseat-fig-1a.svg").write_bytes(rendered(partial(epochs_picture, result.history))["svg"])
            figures["over_epochs"] = {
                name: [result.history[place]["figures"][f"vulnerability-log/{name}"] for place in (1, -1)]
                for name in COLUMNS
            }
            found = margins(model, images, Ascent(EPS))
            (INTO / "iseat-fig-1b.svg").write_bytes(rendered(partial(margin_picture, found))["svg"])
            figures["margin"] = found.as_dict()
            figures["samples"] = disordered(model, images, found)
        page(figures)


if __name__ == "__main__":
    main()
