"""Checks of settings that no plugin sees: precision, memory format, compiled nets."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from ..training import engine
from .small import Trained, close, copies, tiny_net
from .subject import Came, Subject, check

BF16 = 3e-2
"""Relative difference of an epoch's update that bfloat16 may leave: eight steps of its rounding, 2 ** -8. An attack
flips signs of small gradients, and its images are others then. Measured: 0.0007 (eps-ramp) to 0.013 (awp)."""


@check()
def check_channels_last(subject: Subject) -> None:
    """With images and weights in channels_last, the run is that of contiguous ones but for rounding."""
    subject.repeatable()
    one, other = (_by_the_loop(subject, **{"run.memory_format": layout}) for layout in ("contiguous", "channels_last"))
    if name := close(other.weights, one.weights, rtol=1e-9, atol=1e-11):
        raise Came(f"{name} differs")


def _by_the_loop(subject: Subject, **settings: object) -> Trained:
    return subject.trained(dtype=torch.float64, dropout=0.0, by_the_loop=True, settings=settings)


@check()
def check_bf16(subject: Subject) -> None:
    """In bfloat16 an epoch's update is that of float32 within 3 percent."""
    subject.repeatable()
    start = copies(tiny_net(batch_norm=True, dropout=0.0, dtype=torch.float32).state_dict())
    one, other = (
        subject.trained(
            dropout=0.0, lr=0.01, epochs=(0,), by_the_loop=True,
            settings={"attack.mode": "eval", "run.precision": precision},
        ).weights
        for precision in ("float32", "bf16")
    )  # fmt: skip
    apart = float(_flat(other, one).norm() / _flat(one, start).norm())
    if not 0 < apart < BF16:
        raise Came(f"the updates differ by {apart:.2g}")


def _flat(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([(one[key] - other[key]).flatten() for key in one if one[key].is_floating_point()])


@check()
def check_compile(subject: Subject) -> None:
    """With a compiled net the run is the eager one but for rounding, and runs the same passes."""
    subject.repeatable()
    backend, engine.BACKEND = engine.BACKEND, "aot_eager"  # seconds in place of a minute, and no compiler
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # dynamo looks at .grad of what a plugin differentiates by
            one, other = (_by_the_loop(subject, **{"run.compile": how}) for how in ("off", "default"))
    finally:
        engine.BACKEND = backend
    if name := close(other.weights, one.weights, rtol=1e-9, atol=1e-11):
        raise Came(f"{name} differs")
    if [report.passes for report in one.reports] != [report.passes for report in other.reports]:
        raise Came("the steps ran other passes")
