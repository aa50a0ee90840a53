"""What advkit costs: its step beside a hand-written PGD-AT loop, and methods beside the price their passes predict.

    python results/bench.py            # under four minutes; writes bench.md and bench.json beside itself

All contestants of a table run in one process and take turns on the same batch, so that a slow second hits each of
them alike; ratios are medians of the ratios within a turn. Contestants that are said to do the same work are first
run in float64, and no figure is printed unless their weights, buffers and forwards agree.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from experiments import processor, revision
from torch import Tensor, nn

import advkit
from advkit.training import engine, network, step as training_step
from advkit.training.ledger import Ledger
from advkit.training.step import TrainingStep
from advkit.training.undo import Undo

STEPS, PACE = 10, 0.25  # attack steps, and their size as a share of eps: advkit's defaults
TARGET, LONG_STEP = 1.03, 0.1  # the ratio to stay under where a step takes so many seconds
METHODS = ("awp", "lsiw", "cat-eps,dirichlet-ls", "cat-eps,dirichlet-ls,lsiw")

Sample = tuple[Tensor, Tensor, Tensor]  # x (B, C, H, W) in [0, 1], y (B,), index (B,)
Contestant = Callable[[Sample], object]


# ---------------------------------------------------------------------- contestants


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


def by_hand(model: nn.Module, eps: float, *, checked: bool) -> Contestant:
    """PGD-AT as one would write it for speed. `checked` stops at NaN and Inf, as advkit's step does."""
    optimizer, parameters = sgd(model), list(model.parameters())

    def step(sample: Sample) -> Tensor:
        x, y, _ = sample
        model.eval()
        for parameter in parameters:
            parameter.requires_grad_(False)
        lower, upper = (x - eps).clamp_(min=0), (x + eps).clamp_(max=1)
        x_adv, finite = x.clone(), torch.ones((), dtype=torch.bool)
        for _ in range(STEPS):
            x_adv.requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y, reduction="sum"), x_adv)
            x_adv = x_adv.detach()
            if checked:
                finite &= gradient.isfinite().all()
            torch.clamp(x_adv.add_(gradient.sign_(), alpha=PACE * eps), lower, upper, out=x_adv)
        model.train()
        for parameter in parameters:
            parameter.requires_grad_()
        loss = F.cross_entropy(model(x_adv), y)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if checked:
            gradients = [p.grad for p in parameters if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients, torch.inf)
            if not bool(finite & loss.isfinite() & norm.isfinite()):
                raise FloatingPointError("NaN or Inf")
        optimizer.step()
        return loss.detach()

    return step


def by_advkit(model: nn.Module, eps: float, samples: int, plugins: str = "") -> tuple[Contestant, advkit.Step]:
    """advkit's step with plugins, as a loop of one's own would call it."""
    step = advkit.Step(model, sgd(model), plugins.split(",") if plugins else [], num_samples=samples, eps=eps)
    return lambda sample: step(*sample, epoch=0), step


# ---------------------------------------------------------------------- cases


@dataclass(frozen=True)
class Case:
    """A net and the batches that every contestant sees."""

    name: str
    model: nn.Module
    batches: Sequence[Sample]
    eps: float
    samples: int


def net(name: str, channels: int, side: int, **options: object) -> nn.Module:
    (point,) = entry_points(group="advkit.models", name=name)
    builder = point.load()
    spec = advkit.DataSpec(channels, side, side, 10, (0.5,) * channels, (0.25,) * channels)
    built: nn.Module = builder(builder.Options(**options)).build(spec)
    return built


def noise(batch: int, channels: int, side: int, count: int = 4) -> list[Sample]:
    """Time does not depend on what the images show."""
    generator = torch.Generator().manual_seed(0)
    n = batch * count
    images = torch.rand(n, channels, side, side, generator=generator)
    labels = torch.randint(10, (n,), generator=generator)
    return list(zip(*(torch.split(part, batch) for part in (images, labels, torch.arange(n))), strict=True))


def digits(batch: int, count: int = 4) -> list[Sample]:
    train = advkit.load_data("digits").train
    rows = torch.arange(batch * count)
    x = train.images[rows].float() / 255
    return list(zip(*(torch.split(part, batch) for part in (x, train.labels[rows], rows)), strict=True))


def cases() -> list[Case]:
    def case(name: str, model: nn.Module, batches: list[Sample], eps: float) -> Case:
        return Case(name, model, batches, eps, sum(len(y) for _, y, _ in batches))

    resnet, linear = net("preact-resnet18", 3, 32, width=16), nn.Sequential(nn.Flatten(), nn.Linear(4, 10))
    small = net("preact-resnet18", 3, 8, width=4)
    return [
        case("preact-resnet18, width 16, 64 x 3x32x32", resnet, noise(64, 3, 32), 8 / 255),
        case("preact-resnet18, width 16, 128 x 3x32x32", resnet, noise(128, 3, 32), 8 / 255),
        case("small-cnn, digits, 64 x 1x8x8", net("small-cnn", 1, 8), digits(64), 0.15),
        case("preact-resnet18, width 4, 2 x 3x8x8 (next to no compute)", small, noise(2, 3, 8), 8 / 255),
        case("linear, 8 x 1x2x2 (next to no compute)", linear, noise(8, 1, 2), 0.15),
    ]


def refuse_unequal(case: Case) -> None:
    """Exit unless both loops make the same weights, buffers and number of forwards, in float64 on small batches."""
    results, forwards = [], []
    for contestant in ("advkit", "by hand", "by hand, checked"):
        model = deepcopy(case.model).double()
        seen: list[int] = []
        model.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        step = (
            by_advkit(model, case.eps, case.samples)[0]
            if contestant == "advkit"
            else by_hand(model, case.eps, checked=contestant != "by hand")
        )
        few = [(x[:16].double(), y[:16], index[:16]) for x, y, index in case.batches[:3]]
        step(few[0])
        before = len(seen)
        for sample in few[1:]:
            step(sample)
        forwards.append((len(seen) - before) / (len(few) - 1))
        results.append({name: value.double() for name, value in model.state_dict().items()})
    moved = max(float((value - case.model.state_dict()[name]).abs().max()) for name, value in results[0].items())
    for result, ran in zip(results[1:], forwards[1:], strict=True):
        apart = [n for n, value in results[0].items() if not torch.allclose(value, result[n], rtol=1e-7, atol=1e-9)]
        if apart or ran != forwards[0] or not moved:
            sys.exit(
                f"{case.name}: the contestants do not do the same work (first difference: "
                f"{apart[0] if apart else f'{forwards[0]} and {ran} forwards a step'}); no figures."
            )


# ---------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Times:
    """Seconds a step of each contestant, turn by turn."""

    seconds: Mapping[str, Sequence[float]]
    block: int

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, to: str) -> dict[str, float]:
        ratios = [a / b for a, b in zip(self.seconds[name], self.seconds[to], strict=True)]
        return {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)}

    def microseconds_above(self, name: str, to: str) -> float:
        return 1e6 * (self.median(name) - self.median(to))

    def as_dict(self) -> dict[str, Any]:
        rows = {
            name: {"min": min(values), "median": statistics.median(values), "max": max(values)}
            for name, values in self.seconds.items()
        }
        return {"seconds_per_step": rows, "turns": len(next(iter(self.seconds.values()))), "steps_per_turn": self.block}


def take_turns(
    contestants: Mapping[str, Contestant], batches: Sequence[Sample], budget: float, clock: Callable[[], float]
) -> Times:
    """`budget` seconds of turns, five at least; in each, every contestant runs once on the same batches.

    A turn's measurement is a block of steps that takes about 30 ms or more, so that the clock does not matter. Who
    was first is last in the next turn.
    """
    for contestant in contestants.values():
        contestant(batches[0])
    gc.collect()
    shortest = min(_timed(contestant, batches[:1], time.perf_counter) for contestant in contestants.values())
    block = max(1, round(0.03 / shortest))
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    order, turn, began = list(contestants), 0, time.perf_counter()
    while turn < 5 or time.perf_counter() - began < budget:
        chosen = [batches[(turn * block + place) % len(batches)] for place in range(block)]
        for name in order:
            seconds[name].append(_timed(contestants[name], chosen, clock) / block)
        order.append(order.pop(0))
        turn += 1
    return Times(seconds, block)


def _timed(contestant: Contestant, samples: Sequence[Sample], clock: Callable[[], float]) -> float:
    began = clock()
    for sample in samples:
        contestant(sample)
    return clock() - began


def against_hand(case: Case, budget: float, clock: Callable[[], float]) -> dict[str, Any]:
    refuse_unequal(case)
    contestants = {
        "advkit": by_advkit(deepcopy(case.model), case.eps, case.samples)[0],
        "by hand": by_hand(deepcopy(case.model), case.eps, checked=False),
        "by hand, checked": by_hand(deepcopy(case.model), case.eps, checked=True),
    }
    times = take_turns(contestants, case.batches, budget, clock)
    return {
        "case": case.name,
        "ratio": times.ratio("advkit", "by hand"),
        "ratio_checked": times.ratio("advkit", "by hand, checked"),
        "overhead_us": times.microseconds_above("advkit", "by hand"),
        "overhead_us_checked": times.microseconds_above("advkit", "by hand, checked"),
        **times.as_dict(),
    }


@contextmanager
def _as_it_comes(*_: object) -> Iterator[None]:
    yield


LEFT_OUT: Mapping[str, Callable[[], AbstractContextManager[object]]] = {
    "undoing a step that fails, and finite weights after it": lambda: patch.object(
        Undo, "all_or_nothing", _as_it_comes
    ),
    "finite gradients before it": lambda: patch.object(training_step, "stop_if_not_finite", lambda *_: None),
    "addressed draws of the net itself": lambda: patch.object(TrainingStep, "_seed", lambda *_: None),
    "counting passes": lambda: patch.object(
        Ledger, "forward", lambda _self, _phase, _label, _by, logits, _kind: logits
    ),
    "whether the net writes into its images": lambda: patch.object(engine, "untouched", lambda _x, **_: nullcontext()),
    "whether it returns logits": lambda: patch.object(network, "an_answer", lambda logits, *_: logits),
}
"""What a step does beside a loop by hand, each with a scope in which it does not."""


def host(case: Case, budget: float, clock: Callable[[], float]) -> dict[str, Any]:
    """Microseconds that a step takes less without each of its cares: medians of the differences within a turn."""
    whole = by_advkit(deepcopy(case.model), case.eps, case.samples)[0]

    def without(scope: Callable[[], AbstractContextManager[object]]) -> Contestant:
        def step(sample: Sample) -> object:
            with scope():
                return whole(sample)

        return step

    for sample in case.batches:  # the first steps are looked at closely
        whole(sample)
    contestants = {"advkit": without(nullcontext), **{what: without(scope) for what, scope in LEFT_OUT.items()}}
    contestants["by hand"] = by_hand(deepcopy(case.model), case.eps, checked=False)
    times = take_turns(contestants, case.batches, budget, clock)
    saved = {
        what: 1e6 * statistics.median(a - b for a, b in zip(times.seconds["advkit"], seconds, strict=True))
        for what, seconds in times.seconds.items()
        if what != "advkit"
    }
    return {"case": case.name, "overhead_us": saved.pop("by hand"), "without_us": saved, **times.as_dict()}


def methods(case: Case, budget: float, clock: Callable[[], float]) -> dict[str, Any]:
    contestants: dict[str, Contestant] = {}
    costs: dict[str, int] = {}
    passes: dict[str, dict[str, dict[str, int]]] = {}
    for plugins in ("", *METHODS):
        name = plugins or "PGD-AT"
        contestants[name], step = by_advkit(deepcopy(case.model), case.eps, case.samples, plugins)
        stage = step.composition.at(0)
        costs[name] = stage.cost
        passes[name] = {phase: spent.as_dict() for phase, spent in stage.passes.items()}
    times = take_turns(contestants, case.batches, budget, clock)
    rows = {
        name: {
            "passes": passes[name],
            "predicted": costs[name] / costs["PGD-AT"],
            "measured": times.ratio(name, "PGD-AT"),
        }
        for name in METHODS
    }
    return {"case": case.name, "methods": rows, **times.as_dict()}


# ---------------------------------------------------------------------- reporting


def machine(clock: str) -> dict[str, Any]:
    return {
        "processor": processor(),
        "revision": revision(),
        "threads": torch.get_num_threads(),
        "clock": clock,
        "advkit": advkit.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def markdown(measured: Mapping[str, Any]) -> str:
    here = measured["machine"]
    lines = [
        "# What advkit costs",
        "",
        "Written by `make bench` (`results/bench.py`); the raw figures are in `bench.json`.",
        "",
        f"{here['processor']}, threads: {here['threads']}, {here['clock']} time, torch {here['torch']}, "
        f"Python {here['python']}, advkit {here['advkit']}, revision {here['revision']}.",
        f"{STEPS} attack steps from x, in eval mode; momentum SGD.",
        "",
        "## A step beside a hand-written PGD-AT loop",
        "",
        "Both make the same weights; the script checks that before it measures. The hand-written loop freezes the",
        "parameters, computes its bounds once and works in place. It does not look for NaN and Inf, which advkit",
        "always does (in every input gradient, the loss and the parameter gradients); *checked* is the same loop with",
        "that check, and so the like-for-like figure. advkit's step also counts its passes, correct predictions and",
        f"vanished gradients. Ratios are medians over turns of the ratio within a turn; the target is at most {TARGET}",
        "against the unchecked loop where a step takes 100 ms or more.",
        "",
        "| net, batch | turns x steps | advkit ms, median (min to max) | by hand ms, median (min to max) | ratio "
        "| ratio, checked | overhead, µs a step | overhead, checked |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in measured["step"]:
        seconds = row["seconds_per_step"]
        lines.append(
            f"| {row['case']} | {row['turns']} x {row['steps_per_turn']} | {_ms(seconds['advkit'])} "
            f"| {_ms(seconds['by hand'])} | **{row['ratio']['median']:.3f}** | {row['ratio_checked']['median']:.3f} "
            f"| {row['overhead_us']:.0f} | {row['overhead_us_checked']:.0f} |"
        )
    lines += [
        "",
        "The overhead is the difference of the medians. For long steps it is mostly noise; the last two rows, nets",
        "with next to no compute, show the work of the host.",
        "",
        "## Where the host's time goes",
        "",
        "Microseconds that a step saves without each of its checks, beside the whole overhead above the unchecked",
        "loop: medians over turns of the difference within a turn. The rest is arguments, hooks that no plugin",
        "answers, figures and labels. Negative figures are noise, which for the ResNet exceeds the cost of the checks.",
        "",
        f"| what | {' | '.join(row['case'] for row in measured['host'])} |",
        f"|---|{'---|' * len(measured['host'])}",
        f"| total | {' | '.join(str(round(row['overhead_us'])) for row in measured['host'])} |",
        *(
            f"| {what} | {' | '.join(str(round(row['without_us'][what])) for row in measured['host'])} |"
            for what in LEFT_OUT
        ),
        "",
        "## Methods beside PGD-AT",
        "",
        "*Predicted* is what `advkit plan` says from the pass counts: a forward costs 1, a backward to the input 1, a",
        "full backward 2. Companions are included: `lsiw` adds `awp` and `av-rank`.",
    ]
    for table in measured["methods"]:
        lines += [
            "",
            f"{table['case']}; {table['turns']} turns x {table['steps_per_turn']} steps; PGD-AT takes "
            f"{_ms(table['seconds_per_step']['PGD-AT'])} ms:",
            "",
            "| plugins | forwards / input backwards / full backwards | predicted | measured, median (min to max) "
            "| ms a step, median (min to max) |",
            "|---|---|---|---|---|",
        ]
        for name, row in table["methods"].items():
            total = [
                sum(phase.get(passes, 0) for phase in row["passes"].values())
                for passes in ("forward", "input_backward", "full_backward")
            ]
            measured = row["measured"]
            lines.append(
                f"| {name} | {' / '.join(map(str, total))} | {row['predicted']:.2f} | **{measured['median']:.2f}** "
                f"({measured['min']:.2f} to {measured['max']:.2f}) | {_ms(table['seconds_per_step'][name])} |"
            )
    return "\n".join(lines) + "\n"


def _ms(seconds: Mapping[str, float]) -> str:
    digits = 1 if seconds["median"] >= LONG_STEP else 2
    low, mid, high = (f"{1e3 * seconds[share]:.{digits}f}" for share in ("min", "median", "max"))
    return f"{mid} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="intra-op threads")
    parser.add_argument("--budget", type=float, default=1.0, help="1 is about three minutes; 0.2 a quick look")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu, with one thread: for busy machines"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of bench.md and bench.json")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        every = cases()
    scale, clock = chosen.budget, time.process_time if chosen.clock == "cpu" else time.perf_counter
    seconds = (45.0, 50.0, 10.0, 8.0, 8.0)
    step = [against_hand(case, scale * budget, clock) for case, budget in zip(every, seconds, strict=True)]
    beside = [methods(every[which], scale * budget, clock) for which, budget in ((0, 60.0), (2, 10.0))]
    cares = [host(case, scale * 12.0, clock) for case in every[3:]]
    measured = {"machine": machine(chosen.clock), "step": step, "host": cares, "methods": beside}
    text = markdown(measured)
    (chosen.out / "bench.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    (chosen.out / "bench.md").write_text(text, encoding="utf-8")
    print(text)
    for row in step:
        long = row["seconds_per_step"]["by hand"]["median"] >= LONG_STEP
        if long and row["ratio"]["median"] > TARGET:
            print(f"Above the target of {TARGET}: {row['case']}, {row['ratio']['median']:.3f}.", file=sys.stderr)


if __name__ == "__main__":
    main()
