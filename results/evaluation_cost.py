"""What an evaluation costs beside plain loops of torchattacks and foolbox: the same attack, net and images, one run.

    python results/evaluation_cost.py

Needs `pip install --no-deps torchattacks`; its requirement of an old `requests` is not met, and not needed.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import foolbox
import torch
import torchattacks
from experiments import HERE, processor, revision
from torch import Tensor

import advkit
from advkit.evaluation.attacks import parse_attack
from advkit.evaluation.verdicts import verdicts

EPS, STEPS, REPEATS, IMAGES, BATCH = 0.15, 20, 7, 500, 100


def main() -> None:
    torch.set_num_threads(1)
    trained = advkit.train(settings={"attack.steps": 5}, epochs=3)
    model = trained.model.eval()
    data = advkit.load_data("digits").test
    data = data.take(slice(IMAGES))
    x, y = data.images.float() / 255, data.labels
    steps = EPS / 5

    def ours(name: str) -> Callable[[], Tensor]:
        return lambda: verdicts(model, data, [parse_attack(name)], eps=EPS, norm="linf")[name].robust

    def looped(attack: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            parts = []
            for rows in torch.arange(IMAGES).split(BATCH):
                adversarial = attack(x[rows], y[rows])
                with torch.no_grad():
                    parts.append(model(adversarial).argmax(1) == y[rows])
            return torch.cat(parts)

        return run

    theirs = torchattacks.PGD(model, eps=EPS, alpha=steps, steps=STEPS, random_start=False)
    target = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    walker = foolbox.attacks.LinfPGD(abs_stepsize=steps, steps=STEPS, random_start=False)
    ways = {
        "advkit pgd-20": ours("pgd-20"),
        "torchattacks PGD": looped(theirs),
        "foolbox LinfPGD": looped(lambda a, b: walker(target, a, b, epsilons=EPS)[0]),
        "advkit pgd-20x5": ours("pgd-20x5"),
        "foolbox LinfPGD, 5 repeats": looped(
            lambda a, b: foolbox.attacks.LinfPGD(abs_stepsize=steps, steps=STEPS).repeat(5)(target, a, b, epsilons=EPS)[
                0
            ]
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    robust = {}
    with torch.random.fork_rng():
        for _ in range(REPEATS):  # interleaved: a slow moment hits all
            for name, way in ways.items():
                began = time.perf_counter()
                robust[name] = way()
                seconds[name].append(time.perf_counter() - began)
    page(seconds, robust)


def page(seconds: dict[str, list[float]], robust: dict[str, Tensor]) -> None:
    """Ratios within a round, medians over rounds."""
    versions = {name: version(name) for name in ("advkit", "torch", "torchattacks", "foolbox")}
    versions["revision"] = revision()
    rows: list[dict[str, Any]] = []
    for name, times in seconds.items():
        base = "advkit pgd-20x5" if "5" in name.split("-20")[-1] else "advkit pgd-20"
        ratios = [mine / other for mine, other in zip(times, seconds[base], strict=True)]
        rows.append(
            {
                "attack": name,
                "ms_an_image": 1000 * statistics.median(times) / IMAGES,
                "ratio": statistics.median(ratios),
                "range": [min(ratios), max(ratios)],
                "to": base,
                "accuracy": float(robust[name].double().mean()),
            }
        )
    lines = [
        "# What an evaluation costs",
        "",
        f"Digits, small-cnn trained for three epochs, {IMAGES} test images, PGD-{STEPS} at eps {EPS}, step eps/5,",
        f"batches of {BATCH}, one thread; {REPEATS} interleaved rounds. Ratios are within a round: median (range).",
        "",
        "| attack | ms an image | time, against advkit's of the same attack | accuracy |",
        "|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["range"]
        ratio = "" if row["attack"] == row["to"] else f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})"
        lines.append(f"| {row['attack']} | {row['ms_an_image']:.2f} | {ratio} | {row['accuracy']:.3f} |")
    lines += [
        "",
        "advkit drops images that are misclassified without attack and, between restarts, those already broken, and",
        "computes no parameter gradients. Restarts of foolbox all start at random; advkit's first starts at the image.",
        "Passes by attack are in robustness-digits.md and robustness-fashion.md.",
        "",
        f"Measured with {', '.join(f'{name} {number}' for name, number in versions.items())}, Python "
        f"{platform.python_version()}, {processor()}, {os.cpu_count()} cores.",
    ]
    (HERE / "evaluation-cost.md").write_text("\n".join(lines) + "\n")
    (HERE / "evaluation-cost.json").write_text(json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
