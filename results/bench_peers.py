"""A step of advkit beside attacks of other libraries, beside loops written by hand, and beside its passes alone.

    make bench-peers                   # installs the peers aside, then runs this; writes bench-peers.md and .json

PreAct ResNet-18 of width 16, 128 images of 3x32x32, ten attack steps of eps / 4 from the image itself in eval mode,
momentum SGD. All contestants of a table run in one process and take turns on the same batches. The hand-written
methods follow the official codes: one weight perturbation a step, its gradient by a pass of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import types
from collections.abc import Callable, Mapping
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from bench import PACE, STEPS, Contestant, Sample, Times, by_advkit, by_hand, machine, net, noise, sgd, take_turns
from torch import Tensor, nn
from torch.func import functional_call

HERE = Path(__file__).parent
EPS, BATCH, WIDTH = 8 / 255, 128, 16
GAMMA, ISEAT_GAMMA, LAM, BETA = 0.01, 0.007, 0.1, 6.0  # of AWP, ISEAT and TRADES: advkit's defaults
PEERS = {"torchattacks": "torchattacks", "ART": "adversarial-robustness-toolbox", "adv-lib": "adv-lib"}
RECOMPILE = {"dynamic": False, "recompile_limit": 64}

Attack = Callable[[Tensor, Tensor], Tensor]


# ---------------------------------------------------------------------- loops around an attack


def updated(optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def around(model: nn.Module, attack: Attack) -> Contestant:
    """PGD-AT with an attack that is called: in eval mode, then the update in train mode."""
    optimizer = sgd(model)

    def step(sample: Sample) -> Tensor:
        x, y, _ = sample
        model.eval()
        x_adv = attack(x, y)
        model.train()
        loss = F.cross_entropy(model(x_adv), y)
        return updated(optimizer, loss)

    return step


def torchattacks_loop(model: nn.Module) -> Contestant:
    import torchattacks

    return around(model, torchattacks.PGD(model, eps=EPS, alpha=PACE * EPS, steps=STEPS, random_start=False))


def art_loop(model: nn.Module) -> Contestant:
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    x_shape, limits = (3, 32, 32), (0.0, 1.0)
    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), x_shape, 10, clip_values=limits, device_type="cpu")
    pgd = ProjectedGradientDescent(
        classifier, np.inf, EPS, PACE * EPS, max_iter=STEPS, num_random_init=0, batch_size=BATCH, verbose=False
    )
    return around(model, lambda x, y: torch.from_numpy(pgd.generate(x=x.numpy(), y=y.numpy())))


def adv_lib_loop(model: nn.Module) -> Contestant:
    # Its logger imports visdom, whose source no longer builds; nothing here logs.
    sys.modules.setdefault("visdom", types.SimpleNamespace(Visdom=object))  # type: ignore[arg-type]
    from adv_lib.attacks import pgd_linf

    def attack(x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = pgd_linf(model, x, y, EPS, steps=STEPS, random_init=False, absolute_step_size=PACE * EPS)
        return found

    return around(model, attack)


def passes_alone(model: nn.Module) -> Contestant:
    """What PGD-AT can not do without: ten forwards and backwards to the input, one of each to the parameters."""
    parameters = list(model.parameters())

    def step(sample: Sample) -> Tensor:
        x, y, _ = sample
        model.eval()
        for parameter in parameters:
            parameter.requires_grad_(False)
        x = x.clone().requires_grad_()
        for _ in range(STEPS):
            torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)
        model.train()
        for parameter in parameters:
            parameter.requires_grad_()
        loss = F.cross_entropy(model(x.detach()), y)
        torch.autograd.grad(loss, parameters)
        return loss.detach()

    return step


# ---------------------------------------------------------------------- methods by hand


def pgd_by_hand(model: nn.Module, x: Tensor, y: Tensor, start: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    lower, upper = (x - EPS).clamp_(min=0), (x + EPS).clamp_(max=1)
    x_adv = start
    for _ in range(STEPS):
        x_adv.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(model(x_adv)), x_adv)
        x_adv = x_adv.detach()
        torch.clamp(x_adv.add_(gradient.sign_(), alpha=PACE * EPS), lower, upper, out=x_adv)
    model.train()
    for parameter in model.parameters():
        parameter.requires_grad_()
    return x_adv


def uphill(model: nn.Module, x_adv: Tensor, y: Tensor, gamma: float) -> dict[str, Tensor]:
    """theta + v of AWP, layer by layer, where v increases the cross-entropy on x'; running statistics stay."""
    names = [name for name, parameter in model.named_parameters() if parameter.dim() > 1]
    moved = [model.get_parameter(name) for name in names]
    logits = functional_call(model, {name: value.clone() for name, value in model.named_buffers()}, (x_adv,))
    gradients = torch.autograd.grad(F.cross_entropy(logits, y), moved)
    return {
        name: weight + (gamma * weight.detach().norm() / gradient.norm()) * gradient
        for name, weight, gradient in zip(names, moved, gradients, strict=True)
    }


def awp_by_hand(model: nn.Module) -> Contestant:
    optimizer = sgd(model)

    def step(sample: Sample) -> Tensor:
        x, y, _ = sample
        x_adv = pgd_by_hand(model, x, y, x.clone(), lambda z: F.cross_entropy(z, y, reduction="sum"))
        loss = F.cross_entropy(functional_call(model, uphill(model, x_adv, y, GAMMA), (x_adv,)), y)
        return updated(optimizer, loss)

    return step


def iseat_by_hand(model: nn.Module) -> Contestant:
    optimizer = sgd(model)

    def step(sample: Sample) -> Tensor:
        x, y, _ = sample
        x_adv = pgd_by_hand(model, x, y, x.clone(), lambda z: F.cross_entropy(z, y, reduction="sum"))
        adversarial = functional_call(model, uphill(model, x_adv, y, ISEAT_GAMMA), (x_adv,))
        clean = functional_call(model, {name: value.clone() for name, value in model.named_buffers()}, (x,))
        each = F.cross_entropy(adversarial, y, reduction="none")
        with torch.no_grad():
            av = each - F.cross_entropy(clean, y, reduction="none")
            rank = torch.empty(len(y), dtype=torch.int64)
            rank[torch.argsort(av, descending=True)] = torch.arange(len(y))
            weight = 1 - rank.to(av.dtype) / len(y)
        loss = (each + LAM * weight * (adversarial - clean).square().sum(1)).mean()
        return updated(optimizer, loss)

    return step


def trades_by_hand(model: nn.Module) -> Contestant:
    optimizer, generator = sgd(model), torch.Generator().manual_seed(0)

    def kl(clean: Tensor, logits: Tensor) -> Tensor:
        return F.kl_div(logits.log_softmax(1), clean.log_softmax(1), reduction="none", log_target=True).sum(1)

    def step(sample: Sample) -> Tensor:
        x, y, _ = sample
        model.eval()
        with torch.no_grad():
            clean = model(x)
        start = (x + 0.001 * torch.randn(x.shape, generator=generator)).clamp_(0, 1)
        x_adv = pgd_by_hand(model, x, y, start, lambda z: kl(clean, z).sum())
        adversarial, clean = model(x_adv), model(x)
        loss = (F.cross_entropy(clean, y, reduction="none") + BETA * kl(clean, adversarial)).mean()
        return updated(optimizer, loss)

    return step


BY_HAND = {"awp": awp_by_hand, "lsiw": iseat_by_hand, "trades": trades_by_hand}


# ---------------------------------------------------------------------- who takes part


def contestants(model: nn.Module, samples: int, table: str) -> dict[str, Callable[[nn.Module], Contestant]]:
    """Makers by name; each is given a copy of the model."""

    def ours(plugins: str) -> Callable[[nn.Module], Contestant]:
        return lambda own: by_advkit(own, EPS, samples, plugins)[0]

    def compiled(make: Callable[[nn.Module], Contestant]) -> Callable[[nn.Module], Contestant]:
        return lambda own: make(torch.compile(own, **RECOMPILE))  # type: ignore[call-overload]

    def hand(own: nn.Module) -> Contestant:
        return by_hand(own, EPS, checked=False)

    if table == "PGD-AT":
        return {
            "passes alone": passes_alone,
            "by hand": hand,
            "torchattacks": torchattacks_loop,
            "ART": art_loop,
            "adv-lib": adv_lib_loop,
            "advkit": ours(""),
            "by hand, compiled": compiled(hand),
            "advkit, compiled": compiled(ours("")),
        }
    own = {f"{table} by hand": BY_HAND[table], f"advkit {table}": ours(table)}
    return own | ({"advkit lsiw, compiled": compiled(ours("lsiw"))} if table == "lsiw" else {})


def check_equal(model: nn.Module, batches: list[Sample], samples: int, table: str) -> dict[str, Any]:
    """Largest relative distance of each contestant's weights from advkit's after three steps, and forwards a step."""
    ends: dict[str, Tensor] = {}
    forwards: dict[str, float] = {}
    for name, make in contestants(model, samples, table).items():
        if "compiled" in name:
            continue
        # ART hands its attack float32 images.
        own = deepcopy(model) if table == "PGD-AT" else deepcopy(model).double()
        dtype = next(own.parameters()).dtype
        seen: list[int] = []
        # Of the first layer, as ART calls the layers one by one.
        first = next(module for module in own.modules() if isinstance(module, nn.Conv2d))
        first.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        step = make(own)
        few = [(x[:16].to(dtype), y[:16], index[:16]) for x, y, index in batches[:3]]
        step(few[0])
        before = len(seen)
        for sample in few[1:]:
            step(sample)
        forwards[name] = (len(seen) - before) / 2
        ends[name] = torch.cat([parameter.detach().flatten() for parameter in own.parameters()])
    ours = ends[next(name for name in ends if name.startswith("advkit"))]
    apart = {name: float((end - ours).norm() / ours.norm()) for name, end in ends.items()}
    return {"forwards": forwards, "apart": apart}


def peak(table: str, name: str) -> int:
    """Bytes that a process of its own has for itself at most in two steps, above what it had before the first."""
    line = [sys.executable, __file__, "--memory", table, name]
    return int(subprocess.run(line, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_memory(table: str, name: str) -> int:
    model, batches = subject()
    step = contestants(model, 2 * BATCH, table)[name](model)
    step((batches[0][0][:2], batches[0][1][:2], batches[0][2][:2]))  # what is allocated once
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    for sample in batches[:2]:
        step(sample)
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":")]
    return 1024 * int(line.split()[1])


def subject() -> tuple[nn.Module, list[Sample]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return net("preact-resnet18", 3, 32, width=WIDTH), noise(BATCH, 3, 32)


# ---------------------------------------------------------------------- the page


def page(measured: Mapping[str, Any]) -> str:
    here = measured["machine"]
    peers = ", ".join(f"{name} {number}" for name, number in measured["peers"].items())
    lines = [
        "# A step beside other libraries",
        "",
        "Written by `make bench-peers` (`results/bench_peers.py`); the raw figures are in `bench-peers.json`.",
        "",
        f"{here['processor']}, threads: {here['threads']}, wall time, torch {here['torch']}, Python {here['python']}, "
        f"advkit {here['advkit']}, revision {here['revision']}; {peers}.",
        f"PreAct ResNet-18 of width {WIDTH}, {BATCH} images of 3x32x32, {STEPS} attack steps from x in eval mode, "
        "momentum SGD.",
        "A ratio is the median over turns of the ratio within a turn, with the least and the greatest. *Apart*: the",
        "relative distance of the weights from advkit's after three steps on 16 images (PGD-AT in float32, the others",
        "in float64). *Memory*: the peak of a separate process in two steps, above what it had before them.",
    ]
    for table in measured["tables"]:
        first = "by hand" if table["name"] == "PGD-AT" else f"{table['name']} by hand"
        lines += [
            "",
            f"## {table['name']}",
            "",
            f"{table['turns']} turns.",
            "",
            f"| loop | ms a step, median | against *{first}* | forwards a step | apart | memory, MB |",
            "|---|---|---|---|---|---|",
        ]
        for name, row in table["rows"].items():
            ratio, apart = row["ratio"], row["apart"]
            lines.append(
                f"| {name} | {1e3 * row['seconds']:.0f} | **{ratio['median']:.3f}** "
                f"({ratio['min']:.2f} to {ratio['max']:.2f}) | {'' if apart is None else format(row['forwards'], 'g')} "
                f"| {'' if apart is None else format(apart, '.0e')} "
                f"| {'' if row['memory'] is None else round(row['memory'] / 1e6)} |"
            )
    lines += ["", *measured["remarks"], ""]
    return "\n".join(lines)


REMARKS = [
    "`passes alone` does no update, so it has no weights to compare. TRADES starts from random noise, which each loop",
    "draws anew, so its weights differ. adv-lib returns the first adversarial iterate that it finds for an image, the",
    "others the last iterate. ART works on numpy arrays. advkit looks for NaN and Inf in every gradient, counts its",
    "passes and watches plugins in the first batch of a stage; the loops by hand do none of this. Compiling took place",
    "before the first turn and is not included.",
]


def rows_of(times: Times, equal: Mapping[str, Any], memory: Mapping[str, int], first: str) -> dict[str, Any]:
    return {
        name: {
            "seconds": times.median(name),
            "ratio": times.ratio(name, first),
            "forwards": equal["forwards"].get(name),
            "apart": None if name == "passes alone" else equal["apart"].get(name),
            "memory": memory.get(name),
        }
        for name in times.seconds
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="intra-op threads")
    parser.add_argument("--budget", type=float, default=1.0, help="1 is about eight minutes; 0.1 a quick look")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of bench-peers.md and bench-peers.json")
    parser.add_argument("--memory", nargs=2, metavar=("TABLE", "NAME"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.memory:
        print(measure_memory(*chosen.memory))
        return
    model, batches = subject()
    samples = sum(len(y) for _, y, _ in batches)
    tables = []
    for name, seconds in (("PGD-AT", 180.0), ("trades", 60.0), ("awp", 60.0), ("lsiw", 90.0)):
        first = "by hand" if name == "PGD-AT" else f"{name} by hand"
        equal = check_equal(model, batches, samples, name)
        made = {label: make(deepcopy(model)) for label, make in contestants(model, samples, name).items()}
        for step in made.values():  # compiles
            step(batches[0])
        times = take_turns(made, batches, chosen.budget * seconds, time.perf_counter)
        memory = {label: peak(name, label) for label in made if "compiled" not in label}
        rows = rows_of(times, equal, memory, first)
        tables.append({"name": name, "turns": times.as_dict()["turns"], "rows": rows, **times.as_dict()})
        print(name, {label: round(row["ratio"]["median"], 3) for label, row in rows.items()}, flush=True)
    measured = {
        "machine": machine("wall"),
        "peers": {name: version(package) for name, package in PEERS.items()},
        "tables": tables,
        "remarks": REMARKS,
    }
    (chosen.out / "bench-peers.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    (chosen.out / "bench-peers.md").write_text(page(measured), encoding="utf-8")


if __name__ == "__main__":
    main()
