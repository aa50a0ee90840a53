"""AutoAttack and its parts by pyautoattack, DeepFool by foolbox: optional packages, wrapped so that they harm nothing.

pyautoattack seeds torch's global generator, switches the interpreter's trace function off, and breaks with fewer
than ten or four classes; foolbox looks for a git executable. None of this leaves here.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from ...ascent import per_sample
from ...errors import HookContract, OptionError
from ...modules import own_generator, placement
from .base import EvaluationAttack, Victim, shared_radius

TINY, LEAST = 1e-30, 1e-4
"""Logits whose largest difference lies between these are multiplied until it is LEAST: constants of libraries, 1e-8 and
1e-12, would eat it. Below TINY, gradients of such multiples overflow float32."""

ITERATIONS, QUERIES, TARGETS = 100, 5000, 9
"""AutoAttack's standard version (Croce and Hein, ICML 2020): steps of APGD and FAB, queries of Square, targets."""


def library(package: str, attack: str, extra: str) -> Any:
    """The imported package; OptionError says how to install it."""
    try:
        return import_module(package)
    except ImportError as error:
        raise OptionError(
            f"The attack {attack} needs {package} ({error}); install it with `pip install 'advkit[{extra}]'`, or leave "
            f"{attack} out."
        ) from None


@dataclass(frozen=True)
class FromAutoAttack(EvaluationAttack):
    """Parts of AutoAttack's standard version, run one after the other on the images still standing."""

    name: str = ""
    parts: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        library("pyautoattack", self.name, "autoattack")

    def perturb(self, net: Victim, x: Tensor, y: Tensor, radius: Tensor, index: Tensor) -> Tensor:
        parts, few = list(self.parts), net.classes < 4
        if few and "apgd-t" in parts:
            parts.remove("apgd-t")
            if not parts:
                raise OptionError(f"{self.name} needs four classes or more (its loss has three rivals); leave it out.")
            net.note(f"without apgd-t, whose loss needs four classes, not {net.classes}")
        if "square" in parts and net.norm == "l2" and not all(_tiled(x.shape[2], side) for side in x.shape[2:]):
            parts.remove("square")
            net.note(f"without square, whose L2 start pyautoattack can not lay out on {x.shape[2]}x{x.shape[3]} pixels")
        if not len(x):
            return x
        with _quiet(net, x.device), torch.enable_grad():
            attack = self.build(net, shared_radius(self.name, radius), x.device)
            attack.attacks_to_run = parts
            running = {"apgd-ce": attack.apgd, "apgd-t": attack.apgd_targeted, "fab-t": attack.fab}
            for name, part in (running | {"square": attack.square}).items():
                part.perturb = _announced(net, name, part.perturb)
            with _by_default(torch.float32):
                x_adv, _ = attack.run_standard_evaluation(x.float(), y, batch_size=len(x))
        return torch.as_tensor(x_adv).to(x.dtype)

    @staticmethod
    def build(net: Victim, eps: float, device: torch.device) -> Any:
        """pyautoattack's AutoAttack in its standard version, its numbers of steps verified."""
        standard: Any = import_module("pyautoattack").AutoAttack
        norm = {"linf": "Linf", "l2": "L2"}[net.norm]
        attack = standard(_Module(net), norm=norm, eps=eps, seed=net.seed, version="standard", device=str(device))
        targets = min(TARGETS, net.classes - 1)
        attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = targets
        numbers = {
            "steps of apgd-ce": (attack.apgd.n_iter, ITERATIONS),
            "steps of apgd-t": (attack.apgd_targeted.n_iter, ITERATIONS),
            "steps of fab-t": (attack.fab.n_iter, ITERATIONS),
            "queries of square": (attack.square.n_queries, QUERIES),
            "restarts": ((attack.apgd.n_restarts, attack.apgd_targeted.n_restarts, attack.fab.n_restarts), (1, 1, 1)),
        }
        for what, (now, published) in numbers.items():
            if now != published:
                raise HookContract(
                    f"pyautoattack {version('pyautoattack')} has {now} {what}, not AutoAttack's {published}; "
                    "install the release that advkit[autoattack] names."
                )
        return attack

    def settings(self, eps: float | None) -> Mapping[str, object]:
        return {
            "parts": list(self.parts),
            "steps": ITERATIONS,
            **({"queries": QUERIES} if "square" in self.parts else {}),
            "targets": f"{TARGETS}, or all other classes",
            "restarts": 1,
            "library": f"pyautoattack {version('pyautoattack')}",
        }


@final
@dataclass(frozen=True)
class AutoAttack(FromAutoAttack):
    """apgd-ce, apgd-t, fab-t and square, each on the images still standing (Croce and Hein, ICML 2020)."""

    name: str = "autoattack"
    place: ClassVar[int] = 90
    parts: ClassVar[tuple[str, ...]] = ("apgd-ce", "apgd-t", "fab-t", "square")


@final
@dataclass(frozen=True)
class ApgdCe(FromAutoAttack):
    """Auto-PGD on cross-entropy, 100 steps, the first part of AutoAttack."""

    name: str = "apgd-ce"
    place: ClassVar[int] = 80
    parts: ClassVar[tuple[str, ...]] = ("apgd-ce",)


@final
@dataclass(frozen=True)
class ApgdT(FromAutoAttack):
    """Auto-PGD on the difference of logits ratio against nine target classes, the strongest part of AutoAttack."""

    name: str = "apgd-t"
    place: ClassVar[int] = 81
    parts: ClassVar[tuple[str, ...]] = ("apgd-t",)


@final
@dataclass(frozen=True)
class FabT(FromAutoAttack):
    """Fast adaptive boundary attack against nine target classes: looks for the nearest change of class."""

    name: str = "fab-t"
    place: ClassVar[int] = 75
    parts: ClassVar[tuple[str, ...]] = ("fab-t",)


@final
@dataclass(frozen=True)
class DeepFool(EvaluationAttack):
    """DeepFool in linf by foolbox, counted where its change is within eps; weak (Moosavi-Dezfooli et al. 2016)."""

    name: str = "deepfool"
    place: ClassVar[int] = 70
    norm: str | None = "linf"
    steps: int = 50
    overshoot: float = 0.02

    def __post_init__(self) -> None:
        # foolbox imports GitPython, which demands a git executable unless told not to.
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        library("foolbox", self.name, "foolbox")

    def perturb(self, net: Victim, x: Tensor, y: Tensor, radius: Tensor, index: Tensor) -> Tensor:
        if not len(x):
            return x
        ends = self.closest(net, x, y)
        near = (ends - x).flatten(1).abs().amax(1) <= radius
        return torch.where(per_sample(near, x), ends, x)

    def closest(self, net: Victim, x: Tensor, y: Tensor) -> Tensor:
        """The images DeepFool ends at, however far from x (B, C, H, W)."""
        foolbox: Any = import_module("foolbox")
        with own_generator(x.device), torch.enable_grad():
            target = foolbox.PyTorchModel(_Module(net), bounds=(0, 1), device=x.device)
            attack = foolbox.attacks.LinfDeepFoolAttack(
                steps=self.steps, overshoot=self.overshoot, candidates=min(10, net.classes)
            )
            with _by_default(torch.float32):
                raw, _, _ = attack(target, x.float(), y, epsilons=None)
        return torch.as_tensor(raw).detach().to(x.dtype)

    def settings(self, eps: float | None) -> Mapping[str, object]:
        return {"steps": self.steps, "overshoot": self.overshoot, "library": f"foolbox {version('foolbox')}"}


def _tiled(height: int, side: int) -> bool:
    """Whether the tiles of pyautoattack's L2 start, a fifth of the height wide, end within a side; of 1 all do."""
    tile = height // 5
    return tile == 1 or (tile > 1 and (height - 5 * tile) // 2 + side // tile * tile <= side)


@contextmanager
def _by_default(dtype: torch.dtype) -> Iterator[None]:
    """A scope whose new tensors are of a type: libraries put theirs beside images in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class _Module(nn.Module):
    """The victim as the module, in eval mode, that libraries ask for; they compute in float32, whatever the net.

    Of wider logits they get the differences to each row's highest, on which no loss of theirs depends otherwise: what
    all classes have in common, such as 1e7, would leave float32 no digit for what tells them apart. Of logits that
    differ by less than LEAST on all images shown first they get multiples: losses are linear there.
    """

    unit: float | None = None

    def __init__(self, net: Victim) -> None:
        super().__init__()
        self.net = [net]  # not registered: a library's train() or to() must not reach the user's model
        self.dtype, self.default = placement(net.model)[1], torch.get_default_dtype()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        with _by_default(self.default):
            logits = self.net[0](x.to(self.dtype))
        if self.unit is None:
            widest = float((logits.detach().amax(1) - logits.detach().amin(1)).max())
            self.unit = widest / LEAST if TINY < widest < LEAST else 1.0
        if logits.dtype != x.dtype or self.unit != 1:
            logits = ((logits - logits.detach().amax(1, keepdim=True)) / self.unit).to(x.dtype)
        return logits


def _announced(net: Victim, name: str, perturb: Callable[..., Any]) -> Callable[..., Any]:
    """A part of AutoAttack that says that it runs."""

    def announced(*images: Any, **more: Any) -> Any:
        net.part = name
        return perturb(*images, **more)

    return announced


class _Flags(logging.Handler):
    """AutoAttack's warnings, as notes of the victim."""

    def __init__(self, net: Victim) -> None:
        super().__init__(logging.WARNING)
        self.net = net

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage().split(" See flags_doc")[0]
        # Said of one batch: how much Square wins is only meaningful over all images, where the audit looks.
        if not text.startswith("Square Attack has decreased"):
            self.net.note(f"AutoAttack: {text}")


@contextmanager
def _quiet(net: Victim, device: torch.device) -> Iterator[None]:
    """Global generators, the trace function and the logger come back as they were."""
    logger, handler, trace = logging.getLogger("auto-attack"), _Flags(net), sys.gettrace()
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        with own_generator(device):
            yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        sys.settrace(trace)
