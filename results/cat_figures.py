"""CAT's own analyses at mini size: Fig. 1 (the toy), Table 1, section 3.3's product of weight norms, Fig. 2.

    python results/cat_figures.py --data-root FOLDER      # writes papers/cat.md, papers/cat.json and its pictures

FOLDER is where `advkit data prepare fashion-mnist --data-root FOLDER` put it. Nets are kept under runs/results/cat.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from experiments import HERE, RUNS, processor, revision
from matplotlib.figure import Figure
from overfit import small_fashion
from torch import Tensor, nn

import advkit
from advkit.evaluation.statistics import wilson
from advkit.studies.analysis.landscape import Landscape, loss_landscape
from advkit.studies.analysis.plotting import DARK, FILL, MARK, PAGE, rendered

KEPT = RUNS / "cat"
INTO = HERE / "papers"

# ---------------------------------------------------------------------- Fig. 1

HALF = 10.0
"""The plane is [-10, 10] x [-10, 10], and [0, 1] x [0, 1] for advkit: lengths are divided by 20."""
MARGIN, POINTS, TOY_SEEDS = 1.75, 100, (0, 1, 2)


class Toy(nn.Module):
    """From points as images (B, 1, 1, 2) to two logits; the paper does not say which net it drew."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 2)) if width else nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net((2 * x.flatten(1) - 1) * HALF)
        return logits


def points(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two classes on both sides of x_1 = 0, each with a distance of MARGIN from it: (2 count, 1, 1, 2) and labels."""
    generator = torch.Generator().manual_seed(seed)
    along = MARGIN + (5 - MARGIN) * torch.rand(2 * count, generator=generator)
    across = 10 * torch.rand(2 * count, generator=generator) - 5
    labels = torch.arange(2 * count) % 2
    plane = torch.stack([torch.where(labels == 1, along, -along), across], dim=1)
    return (plane / (2 * HALF) + 0.5).view(-1, 1, 1, 2), labels


@dataclass(frozen=True)
class Way:
    """One way of training the toy."""

    name: str
    eps: float
    plugins: tuple[str, ...] = ()


WAYS = (
    Way("standard training", 0.0),
    Way("PGD-AT, eps 1", 1.0),
    Way("PGD-AT, eps 4", 4.0),
    Way("CAT, eps_max 4 (not in the paper)", 4.0, ("cat-eps", "dirichlet-ls")),
)


def toy(way: Way, width: int, seed: int) -> tuple[Toy, dict[str, float]]:
    """A net, and what it does with 10,000 fresh points: clean, and moved by 1 in Linf; `within` of the two sides."""
    torch.manual_seed(seed)
    net = Toy(width)
    options = {"dirichlet-ls": {"c": 10 * (8 / 255) / (way.eps / (2 * HALF))}} if way.plugins else {}
    advkit.train(
        net,
        points(POINTS, seed),
        way.plugins,
        options=options,
        settings={
            "run.threads": 1,
            "attack.steps": 10 if way.eps else 0,
            "validation.fraction": 0,
            "optimizer.lr": 0.1,
        },
        eps=way.eps / (2 * HALF),
        epochs=100,
        batch_size=20,
        seed=seed,
    )
    images, labels = points(5000, 1000 + seed)
    with torch.no_grad():
        clean = float((net(images).argmax(1) == labels).double().mean())
    moved = advkit.evaluate(net, (images, labels), ("pgd-20",), eps=1 / (2 * HALF), audit=False)["robust"]["pgd-20"]
    return net, {"clean": clean, "robust": sum(moved) / len(moved)}


def toys() -> dict[str, Any]:
    """Figures by net, way and seed; the picture is of linear nets and the first seed."""
    drawn, figures = [], {}
    for width in (0, 100):
        for way in WAYS:
            for seed in TOY_SEEDS:
                net, figures[f"{width} {way.name} {seed}"] = toy(way, width, seed)
                if not width and seed == TOY_SEEDS[0]:
                    drawn.append((way.name, net))
    (INTO / "cat-fig-1.svg").write_bytes(rendered(lambda: toy_picture(drawn))["svg"])
    return figures


def toy_picture(nets: Sequence[tuple[str, Toy]]) -> Figure:
    figure = Figure(figsize=(PAGE, 2.1), layout="constrained")
    grid = torch.linspace(-6, 6, 201)
    first, second = torch.meshgrid(grid, grid, indexing="xy")
    plane = (torch.stack([first, second], dim=-1) / (2 * HALF) + 0.5).view(-1, 1, 1, 2)
    images, labels = points(POINTS, TOY_SEEDS[0])
    shown = (2 * images.flatten(1) - 1) * HALF
    for place, (name, net) in enumerate(nets):
        axes = figure.add_subplot(1, len(nets), place + 1)
        with torch.no_grad():
            side = net(plane).diff(dim=1).view(first.shape)
        axes.contourf(first.numpy(), second.numpy(), side.numpy(), levels=[-1e9, 0, 1e9], colors=["white", FILL])
        axes.axvline(0, color=DARK, linewidth=0.8, linestyle="--")
        for label, mark in ((0, "o"), (1, "^")):
            of = shown[labels == label]
            axes.scatter(of[:, 0], of[:, 1], s=5, marker=mark, color=DARK if label else MARK, linewidths=0)
        axes.set(title=textwrap.fill(name, 22), aspect="equal", xticks=[-5, 0, 5], yticks=[-5, 0, 5])
    return figure


# ---------------------------------------------------------------------- nets on images


@dataclass(frozen=True)
class Net:
    """A net of Table 1, of the product of norms or of Fig. 2."""

    key: str
    name: str
    eps: float
    plugins: tuple[str, ...] = ()
    steps: int = 10


TESTED = 0.05
"""The paper's 0.01: CIFAR-10 gives way to five times smaller perturbations."""
NETS = (
    Net("at-1", "PGD-AT, eps 0.05", 0.05),
    Net("at-2", "PGD-AT, eps 0.10", 0.10),
    Net("at-3", "PGD-AT, eps 0.15", 0.15),
    Net("cat", "CAT (cat-eps,dirichlet-ls), eps_max 0.15", 0.15, ("cat-eps", "dirichlet-ls")),
    Net("natural", "natural training", 0.15, steps=0),
    Net("trades", "TRADES, eps 0.15", 0.15, ("trades",)),
)
PUBLISHED = {"at-1": ("99.96", "69.79", "2.54"), "at-2": ("99.99", "69.06", "3.53"), "at-3": ("99.16", "66.04", "1.39")}
"""Training and testing accuracy in % at eps 0.01 (Table 1), and the product of norms beside CAT's (section 3.3)."""
IMAGES, EPOCHS, WIDTH = 1500, 40, 12


def trained(net: Net, splits: advkit.Splits) -> nn.Module:
    """From its folder, or into it."""
    folder = KEPT / net.key
    begun = (folder / "run.toml").exists()
    settings = {"run.threads": 1, "attack.steps": net.steps, "validation.fraction": 0, "optimizer.lr": 0.05}
    new: dict[str, Any] = {
        "settings": {**settings, "model.width": WIDTH},
        "eps": net.eps,
        "epochs": EPOCHS,
        "batch_size": 64,
        "seed": 0,
        "out": folder,
    }
    result = advkit.train("small-cnn", splits, net.plugins, **({"resume_from": folder} if begun else new))
    result.model.eval()
    return result.model


def of_net(net: Net, model: nn.Module, splits: advkit.Splits) -> dict[str, Any]:
    """Robust accuracy at TESTED on training and test images, and the products of the norms of its weights."""
    robust = {
        split: advkit.evaluate(model, images, ("pgd-20",), eps=TESTED, audit=False)["robust"]["pgd-20"]
        for split, images in (("train", splits.train), ("test", splits.test))
    }
    weights = [module.weight.detach() for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return {
        **{split: [sum(values), len(values)] for split, values in robust.items()},
        "frobenius": math.prod(float(weight.norm()) for weight in weights),
        "spectral": math.prod(float(torch.linalg.matrix_norm(weight.flatten(1), 2)) for weight in weights),
    }


SHOWN = {"natural": "natural training", "at-3": "PGD-AT", "trades": "TRADES", "cat": "CAT"}


def landscape_pictures(shown: Mapping[str, Landscape]) -> Figure:
    """CAT's Fig. 2: surfaces, those of the robust nets on one axis of losses."""
    figure = Figure(figsize=(PAGE, 2.2))
    robust = max(float(found.loss.max()) for key, found in shown.items() if key != "natural")
    for place, (key, found) in enumerate(shown.items()):
        left, top = 0.01 + place / len(shown), float(found.loss.max()) if key == "natural" else robust
        axes: Any = figure.add_axes((left, 0.05, 0.86 / len(shown), 0.85), projection="3d")
        along, across = torch.meshgrid(found.first, found.second, indexing="ij")
        axes.plot_surface(
            along.numpy(),
            across.numpy(),
            found.loss.numpy(),
            cmap="cividis",
            vmin=0,
            vmax=top,
            linewidth=0,
            rasterized=True,
        )
        axes.set(zlim=(0, top), xticks=[-0.1, 0, 0.1], yticks=[-0.1, 0, 0.1])
        axes.set_title(SHOWN[key], y=1.0, fontsize=7)
        axes.tick_params(labelsize=6, pad=-2)
    return figure


# ---------------------------------------------------------------------- page


def paragraphs(*texts: str) -> Iterator[str]:
    for text in texts:
        yield from ("", *textwrap.wrap(text, 120, break_on_hyphens=False))


def toy_lines(figures: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    yield from ("", "## Fig. 1: a budget beyond the margin")
    yield from paragraphs(
        "200 points in the plane, of two classes, each at a distance of 1.75 or more from the line x_1 = 0; Linf "
        "attacks of 10 steps, 100 epochs, batch 20, learning rate 0.1. *Clean* and *robust* are the shares of "
        "10,000 fresh points that are classified correctly, unmoved and moved by 1 (pgd-20), so 1.000 is possible; "
        "three seeds. The paper states neither net nor norm nor number of points, and gives no figure: with eps 1 "
        "the boundary is near the best one, with eps 4 it is significantly worse."
    )
    yield from ("", "| training | linear: clean | robust | 100 hidden units: clean | robust |", "|---|---|---|---|---|")
    for way in WAYS:
        cells = [
            ", ".join(f"{figures[f'{width} {way.name} {seed}'][kind]:.3f}" for seed in TOY_SEEDS)
            for width in (0, 100)
            for kind in ("clean", "robust")
        ]
        yield f"| {way.name} | {' | '.join(cells)} |"
    yield from (
        "",
        "![the plane, linear nets, seed 0](cat-fig-1.svg)",
        "",
        "Linear nets, seed 0; dashed: the best boundary.",
    )


def net_lines(figures: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield from ("", "## Table 1 and section 3.3: a budget for all")
    yield from paragraphs(
        f"Fashion-MNIST, 14 x 14, {IMAGES:,} training images, small-cnn of width {WIDTH}, {EPOCHS} epochs, batch 64, "
        f"learning rate 0.05, one seed, the last weights; robust accuracy under pgd-20 at eps {TESTED} (the paper: "
        "CIFAR-10 at 0.01, trained at 0.01, 0.02 and 0.03). Brackets: Wilson's 95 % interval over images. "
        "*Product*: of the norms of the weights of all convolutions and linear layers, relative to CAT's; the "
        "paper does not say which norm, nor how it treats BatchNorm's scales, which are left out here."
    )
    heads = ("training", "on training images", "on test images", "product, Frobenius", "product, spectral")
    yield from ("", f"| {' | '.join(heads)} | published: training, test, product |", "|---|---|---|---|---|---|")
    for net in NETS:
        if net.key in figures:
            mine, cat = figures[net.key], figures.get("cat", {})
            cells = []
            for split in ("train", "test"):
                low, high = wilson(*mine[split])
                cells.append(f"{mine[split][0] / mine[split][1]:.3f} ({low:.3f} to {high:.3f})")
            cells += [f"{mine[norm] / cat[norm]:.2f}" if cat else "" for norm in ("frobenius", "spectral")]
            yield f"| {net.name} | {' | '.join(cells)} | {', '.join(PUBLISHED.get(net.key, ()))} |"


def beside_the_paper(figures: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What of Table 1 and section 3.3 is seen here."""
    test = {key: figures[key]["test"][0] / figures[key]["test"][1] for key in PUBLISHED}
    here, there = 100 * (test["at-3"] - test["at-1"]), float(PUBLISHED["at-3"][1]) - float(PUBLISHED["at-1"][1])
    norms = ("frobenius", "spectral")
    larger = [norm for norm in norms if all(figures[key][norm] > figures["cat"][norm] for key in PUBLISHED)]
    products = f"by the {' and the '.join(larger)} norm" if larger else "by neither norm"
    yield from paragraphs(
        f"Trained at three times the tested budget instead of at the tested one, accuracy on test images changes by "
        f"{here:+.1f} points (the paper: {there:+.2f}). CAT's product is smaller than that of every constant budget "
        f"{products} (the paper: of every one)."
    )


def page(figures: Mapping[str, Any]) -> None:
    made = ", ".join(f"{name} {version(name)}" for name in ("advkit", "torch"))
    lines = ["# CAT's own analyses at mini size"]
    lines += paragraphs(
        "Cheng, Lei, Chen, Dhillon, Hsieh: CAT: Customized Adversarial Training for Improved Robustness (IJCAI 2022). "
        "Small nets on small images: this page looks for what the paper shows, not for its figures. Its Table 5 is in "
        "[ablations.md](ablations.md)."
    )
    lines += toy_lines(figures["toy"])
    lines += net_lines(figures["nets"])
    if PUBLISHED.keys() | {"cat"} <= figures["nets"].keys():
        lines += beside_the_paper(figures["nets"])
    if "landscape" in figures:
        lines += ["", "## Fig. 2: the loss around images"]
        lines += paragraphs(
            "Mean cross-entropy of 64 test images on x + a sign(gradient) + b r, r random signs, not clipped, a and b "
            "from -0.1 to 0.1; the nets of the table. Highest loss on the plane: "
            + ", ".join(f"{name} {top:.2f}" for name, top in figures["landscape"].items())
            + ". The paper shows CAT's surface as the lowest and smoothest. Natural training has a scale of its own."
        )
        lines += ["", "![four surfaces](cat-fig-2.svg)"]
    lines += paragraphs(
        f"Measured with {made}, revision {figures['revision']}, Python {platform.python_version()}, {processor()}, "
        f"{os.cpu_count()} cores, one thread. `make results-papers DATA=FOLDER`."
    )
    (INTO / "cat.md").write_text("\n".join(lines) + "\n")
    (INTO / "cat.json").write_text(json.dumps(figures, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True, help="where Fashion-MNIST is")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    KEPT.mkdir(parents=True, exist_ok=True)
    INTO.mkdir(exist_ok=True)
    figures: dict[str, Any] = {"revision": revision(), "nets": {}, "toy": toys()}
    page(figures)
    splits = small_fashion(chosen.data_root)
    splits = advkit.Splits(splits.train.sample(IMAGES), splits.test, transform="none")
    models = {}
    for net in NETS:
        models[net.key] = trained(net, splits)
        figures["nets"][net.key] = of_net(net, models[net.key], splits)
        print(net.name, figures["nets"][net.key], flush=True)
        page(figures)
    of = splits.test.sample(64)
    planes = {key: loss_landscape(models[key], of) for key in SHOWN}
    (INTO / "cat-fig-2.svg").write_bytes(rendered(lambda: landscape_pictures(planes))["svg"])
    figures["landscape"] = {SHOWN[key]: float(found.loss.max()) for key, found in planes.items()}
    page(figures)


if __name__ == "__main__":
    main()
