"""What a refactor must keep: the last weights of eight short runs, bit for bit.

`bits.json` holds their SHA-256 and the machine they were computed on. Another processor or another torch rounds
differently, so there the norms of the weights are compared instead. After a change of semantics, which the message of
its commit then names: `python tests/test_bits.py` writes the file anew.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import advkit
from advkit.registry import names

RECORD = Path(__file__).with_name("bits.json")
SHORT = {
    "run.epochs": 3,
    "run.batch_size": 32,
    "run.threads": 1,
    "data.limit": 120,
    "data.balance": True,
    "attack.steps": 3,
    "attack.eps": 0.15,
    "model.width": 4,
    "validation.steps": 2,
    "optimizer.lr": 0.05,
}
RUNS: dict[str, tuple[str, dict[str, Any], dict[str, dict[str, Any]]]] = {
    "pgd-at": ("", {"attack.init": "uniform", "attack.mode": "train", "optimizer.schedule": "cosine"}, {}),
    "pgd-at-l2": (
        "",
        {"attack.norm": "l2", "attack.eps": 1.0, "attack.step_size": "eps/2", "attack.init": "uniform"},
        {},
    ),
    "cat": ("cat-eps,dirichlet-ls,cat-margin", {}, {"cat-eps": {"eta": "eps/8"}}),
    "iseat": ("lsiw,vulnerability-log", {"model.name": "preact-resnet18", "data.limit": 64, "run.epochs": 2}, {}),
    "sentence": ("cat-eps,dirichlet-ls,lsiw", {}, {"lsiw": {"lam": [[0, 0.0], [1, 0.1]]}}),
    "trades-awp": ("trades,awp", {}, {"awp": {"step_at": "theta+v", "gamma": 0.005}}),
    "mart": ("mart,eps-ramp", {"optimizer.nesterov": True}, {"eps-ramp": {"epochs": 2}}),
    "everything": (
        "av-rank,awp,cat-eps,dirichlet-ls,eps-ramp,lsiw,trades,vulnerability-log",
        {"order.target_label": "dirichlet-ls"},
        {"lsiw": {"distance": "kl"}, "awp": {"loss": "objective"}},
    ),
}
"""Plugins, settings beside `SHORT`, and options."""


def trained(name: str) -> nn.Module:
    plugins, settings, options = RUNS[name]
    before = torch.get_num_threads()
    try:
        return advkit.train(
            settings.get("model.name", "small-cnn"),
            "digits",
            [each for each in plugins.split(",") if each],
            settings=SHORT | settings,
            options=options,
            seed=3,
        ).model
    finally:
        torch.set_num_threads(before)


def digest(model: nn.Module) -> str:
    """Of names and bytes of all parameters and buffers."""
    seen = hashlib.sha256()
    for name, values in sorted(model.state_dict().items()):
        seen.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        seen.update(values.contiguous().numpy().tobytes())
    return seen.hexdigest()


def norms(model: nn.Module) -> list[float]:
    return [float(p.detach().double().norm()) for _, p in sorted(model.named_parameters())]


def machine() -> dict[str, str]:
    """What bits depend on: kernels are chosen by the processor's model, flags and caches."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        first = platform.processor()
    kept = [
        line for line in first.splitlines() if re.match(r"vendor_id|cpu family|model|stepping|cache size|flags", line)
    ]
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "processor": hashlib.sha256("\n".join(kept).encode()).hexdigest()[:16],
    }


@pytest.mark.parametrize("name", RUNS)
def test_a_refactor_moves_no_bit(name: str) -> None:
    record = json.loads(RECORD.read_text())
    model = trained(name)
    if record["machine"] == machine():
        assert digest(model) == record["runs"][name]["sha256"]
    else:
        assert norms(model) == pytest.approx(record["runs"][name]["norms"], rel=0.02, abs=0.02)


def test_the_runs_are_of_plugins_that_are_there() -> None:
    """Of those of the first version all; a later one is held by its parity test, and this file is never rewritten."""
    held = {name for plugins, _, _ in RUNS.values() for name in plugins.split(",") if name}
    assert len(held) == 10 and held <= set(names("plugin"))


def test_the_runs_differ() -> None:
    assert len({run["sha256"] for run in json.loads(RECORD.read_text())["runs"].values()}) == len(RUNS)


if __name__ == "__main__":
    runs = {name: trained(name) for name in RUNS}
    rows = {name: {"sha256": digest(model), "norms": norms(model)} for name, model in runs.items()}
    RECORD.write_text(json.dumps({"machine": machine(), "runs": rows}, indent=1) + "\n")
