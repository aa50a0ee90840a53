"""What an epoch leaves in metrics.jsonl: sums of the steps' reports, kept on the device until the epoch ends."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from .engine import Engine
from .step_report import Report

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


class Meter:
    """Adds up one epoch. `tensors` and `counts` are all its state, so that a resumed epoch ends with the same line."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._compiled = engine, engine.compile_seconds or 0.0
        self.tensors: dict[str, Tensor] = {}
        self.counts: Counter[str] = Counter()
        self.seconds = {"wall": 0.0, "cpu": 0.0}
        self._lap = (time.perf_counter(), time.process_time())

    def add(self, report: Report) -> None:
        """One step; no synchronisation."""
        self.counts["samples"] += report.count
        self.counts["steps"] += 1
        sums: dict[str, Tensor | None] = {
            "loss": report.loss * report.count,
            "adv_correct": report.adv_correct,
            "clean_correct": report.clean_correct,
            "success": report.success,
            "zero_gradients": report.zero_gradients,
            "radius": report.radius,
            "shift_ratio": report.shift_ratio,
        }
        sums |= {f"raw {name}": value for name, value in report.raw.items()}
        sums |= {f"weighted {name}": value for name, value in report.weighted.items()}
        for name, value in sums.items():
            if value is not None:
                wide = value.to(torch.float64)
                self.tensors[name] = self.tensors[name] + wide if name in self.tensors else wide
                self.counts[f"n {name}"] += report.count
        for phase, passes in report.passes.items():
            for kind, count in passes.as_dict().items():
                self.counts[f"passes {phase} {kind}"] += count

    def lap(self) -> None:
        """Count the time since the last lap."""
        now = (time.perf_counter(), time.process_time())
        self.seconds["wall"] += now[0] - self._lap[0]
        self.seconds["cpu"] += now[1] - self._lap[1]
        self._lap = now
        if (compiled := self._engine.compile_seconds) is not None:
            self.seconds["compile"] = self.seconds.get("compile", 0.0) + compiled - self._compiled
            self._compiled = compiled

    def row(self, attack_steps: int) -> dict[str, object]:
        """The epoch's figures. A quantity that nothing demanded is None, never computed on the side."""

        def mean(name: str) -> float | None:
            return float(self.tensors[name]) / self.counts[f"n {name}"] if name in self.tensors else None

        zero = mean("zero_gradients")
        shift = self.tensors.get("shift_ratio")
        passes: dict[str, dict[str, int]] = {}
        for key, count in self.counts.items():
            if key.startswith("passes "):
                _, phase, kind = key.split()
                passes.setdefault(phase, {})[kind] = count
        return {
            "samples": self.counts["samples"],
            "steps": self.counts["steps"],
            "loss": mean("loss"),
            "terms": {
                name.removeprefix("raw "): {"raw": mean(name), "weighted": mean(f"weighted {name[4:]}")}
                for name in self.tensors
                if name.startswith("raw ")
            },
            "train_adversarial_accuracy": mean("adv_correct"),
            "train_clean_accuracy": mean("clean_correct"),
            "attack_success": mean("success"),
            "zero_gradient_share": None if zero is None else zero / max(1, attack_steps),
            "mean_radius": mean("radius"),
            "shift_ratio": None if shift is None else float(shift) / self.counts["steps"],
            "passes": passes,
        }

    def state(self) -> dict[str, object]:
        """Counts and seconds, for JSON; `tensors` are stored as such."""
        return {"counts": dict(self.counts), "seconds": dict(self.seconds)}

    def restore(
        self, state: Mapping[str, dict[str, float]], tensors: Mapping[str, Tensor], device: torch.device
    ) -> None:
        """Go on from a checkpoint."""
        self.counts = Counter({key: int(value) for key, value in state["counts"].items()})
        self.seconds = dict(state["seconds"])
        self.tensors = {name: value.to(device) for name, value in tensors.items()}


def quantiles_of(samples: Mapping[str, Tensor], rows: Tensor) -> dict[str, dict[str, float]]:
    """Those of each state by name at `rows` (n,), as far as it is one number a sample."""
    return {name: quantiles(values[rows]) for name, values in samples.items() if values.dim() == 1}


def quantiles(values: Tensor) -> dict[str, float]:
    """Minimum, quartiles and maximum of per-sample state (n,), of its finite values."""
    ranked = values[values.isfinite()].double().sort().values
    last = len(ranked) - 1
    # Lower quantiles: figures that samples really have, and torch.quantile refuses more than 2**24 values.
    return {f"q{int(100 * q):02d}": float(ranked[int(q * last)]) for q in QUANTILES} if last >= 0 else {}
