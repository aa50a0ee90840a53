"""ISEAT's Table 4, what its parts cost beside PGD-AT: on a lean attack, and on one that computes what it throws away.

    python results/overheads.py      # about five minutes on an idle machine; writes papers/overheads.md and .json

The codes that the paper builds on take the attack's gradient with `loss.backward()`, so that each of its K steps also
computes the gradient of every weight, which nobody uses: a step costs 3 forwards instead of 2, and whatever is added
weighs less beside it.
"""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from bench import PACE, STEPS, Contestant, Sample, machine, net, noise, sgd, take_turns
from bench_peers import EPS, ISEAT_GAMMA, LAM, updated, uphill
from torch import Tensor, nn
from torch.func import functional_call

import advkit

BATCH, WIDTH = 64, 16
PAGE = Path(__file__).parent / "papers" / "overheads"
INPUT, WEIGHT, BOTH = "+ input loss smoothing", "+ weight loss smoothing (AWP)", "+ both (ISEAT)"
ROWS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "AT": ("", {}),
    INPUT: (
        "lsiw",
        {
            "options": {"lsiw": {"adv_at": "theta", "clean_at": "theta"}},
            "no_companion": ("weight_perturbation",),
        },
    ),
    WEIGHT: ("awp", {"options": {"awp": {"gamma": ISEAT_GAMMA}}}),
    BOTH: ("lsiw", {}),
}
PUBLISHED = {"AT": 1.0, INPUT: 1.06, WEIGHT: 1.09, BOTH: 1.18}


def perturbed(model: nn.Module, x: Tensor, y: Tensor, full: bool) -> Tensor:
    """PGD as advkit's; `full`: with the gradient of every weight in every step, thrown away."""
    model.eval()
    weights = list(model.parameters())
    for weight in weights:
        weight.requires_grad_(full)
    lower, upper = (x - EPS).clamp_(min=0), (x + EPS).clamp_(max=1)
    x_adv = x.clone()
    for _ in range(STEPS):
        x_adv.requires_grad_()
        loss = F.cross_entropy(model(x_adv), y, reduction="sum")
        gradient, *_ = torch.autograd.grad(loss, [x_adv, *(weights if full else [])])
        x_adv = x_adv.detach()
        torch.clamp(x_adv.add_(gradient.sign_(), alpha=PACE * EPS), lower, upper, out=x_adv)
    model.train()
    for weight in weights:
        weight.requires_grad_()
    return x_adv


def by_hand(model: nn.Module, name: str) -> Contestant:
    """A row with the full attack, as one would write it."""
    optimizer = sgd(model)
    smooths, moves = name in (INPUT, BOTH), name in (WEIGHT, BOTH)

    def step(sample: Sample, full: bool = True) -> Tensor:
        x, y, _ = sample
        x_adv = perturbed(model, x, y, full)
        moved = uphill(model, x_adv, y, ISEAT_GAMMA) if moves else {}
        adversarial = functional_call(model, moved, (x_adv,))
        losses = F.cross_entropy(adversarial, y, reduction="none")
        if smooths:
            clean = functional_call(model, {name: value.clone() for name, value in model.named_buffers()}, (x,))
            with torch.no_grad():
                av = losses - F.cross_entropy(clean, y, reduction="none")
                rank = torch.empty(len(y), dtype=torch.int64)
                rank[torch.argsort(av, descending=True)] = torch.arange(len(y))
                share = 1 - rank.to(av.dtype) / len(y)
            losses = losses + LAM * share * (adversarial - clean).square().sum(1)
        return updated(optimizer, losses.mean())

    return step


# ---------------------------------------------------------------------- measuring


def by_advkit(model: nn.Module, samples: int, name: str) -> advkit.Step:
    plugins, given = ROWS[name]
    return advkit.Step(model, sgd(model), plugins, num_samples=samples, num_classes=10, eps=EPS, **given)


def refuse_unequal(model: nn.Module) -> None:
    """SystemExit unless both lead to the same weights, in float64."""
    for name in ROWS:
        ours, theirs = deepcopy(model).double(), deepcopy(model).double()
        x, y, index = noise(8, 3, 32, count=1)[0]
        by_advkit(ours, 8, name)(x.double(), y, index, epoch=0)
        by_hand(theirs, name)((x.double(), y, index))
        other = theirs.state_dict()
        apart = [key for key, value in ours.state_dict().items() if not torch.allclose(value, other[key], 1e-9, 1e-11)]
        if apart:
            raise SystemExit(f"{name}: advkit and the loop by hand end in different weights ({apart[0]}); no figures.")


def measured(model: nn.Module, full: bool, budget: float) -> dict[str, Any]:
    """Ratios to AT's step; with `full` those of the loops by hand, else advkit's."""
    batches = noise(BATCH, 3, 32)
    samples = BATCH * len(batches)

    def contestant(name: str) -> Contestant:
        own = by_advkit(deepcopy(model), samples, name)
        return by_hand(deepcopy(model), name) if full else lambda sample: own(*sample, epoch=0)

    times = take_turns({name: contestant(name) for name in ROWS}, batches, budget, time.perf_counter)
    # The attack's backwards to the input cost 1 each, those to the weights as well 2.
    costs = {name: by_advkit(model, samples, name).composition.at(0).cost + STEPS * full for name in ROWS}
    rows = {
        name: {
            "predicted": costs[name] / costs["AT"],
            "measured": times.ratio(name, "AT"),
            "milliseconds": 1000 * times.median(name),
        }
        for name in ROWS
    }
    return {"rows": rows, "turns": len(times.seconds["AT"])}


def page(figures: Mapping[str, Any]) -> None:
    here = figures["machine"]
    lines = [
        "# ISEAT's Table 4: what its parts cost",
        "",
        *textwrap.wrap(
            f"A step beside PGD-AT's, PreAct ResNet-18 of width {WIDTH}, {BATCH} images of 3x32x32, {STEPS} attack "
            "steps; medians over turns of the ratio within a turn, and their range. *Predicted*: from the passes, a "
            "forward 1, a backward to the input 1, a full backward 2. *Lean*: advkit. *Full*: loops by hand whose "
            "attack also computes the gradient of every weight in each step, as in the codes that the paper builds "
            "on. Both lead to the same weights, which is checked before anything is measured. Published: seconds on "
            "an RTX 3080 Ti beside AT's, WRN-34-10.",
            120,
        ),
        "",
        "| | lean: predicted | lean: measured | full: predicted | full: measured | published |",
        "|---|---|---|---|---|---|",
    ]
    for name in ROWS:
        cells = []
        for attack in ("lean", "full"):
            row = figures[attack]["rows"][name]
            ratio = row["measured"]
            cells += [
                f"{row['predicted']:.2f}",
                f"**{ratio['median']:.2f}** ({ratio['min']:.2f} to {ratio['max']:.2f})",
            ]
        lines.append(f"| {name} | {' | '.join(cells)} | {PUBLISHED[name]:.2f} |")
    at = {attack: figures[attack]["rows"]["AT"]["milliseconds"] for attack in ("lean", "full")}
    lines += [
        "",
        *textwrap.wrap(
            f"PGD-AT takes {at['lean']:.0f} ms a step lean and {at['full']:.0f} ms full, of two tables, one after the "
            f"other; {figures['lean']['turns']} and {figures['full']['turns']} turns. {here['processor']}, threads: "
            f"{here['threads']}, torch {here['torch']}, Python {here['python']}, advkit {here['advkit']}, revision "
            f"{here['revision']}. `make results-overheads`.",
            120,
        ),
    ]
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.with_suffix(".md").write_text("\n".join(lines) + "\n")
    PAGE.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")


def main() -> None:
    model = net("preact-resnet18", 3, 32, width=WIDTH)
    refuse_unequal(model)
    figures = {attack: measured(model, attack == "full", 90) for attack in ("lean", "full")}
    page(figures | {"machine": machine("wall")})


if __name__ == "__main__":
    main()
