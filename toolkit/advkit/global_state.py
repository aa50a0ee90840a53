"""What is global in a process and decides what a run computes: read, told by name, and put back."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial, wraps
from itertools import starmap
from threading import RLock, current_thread, main_thread
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch.utils._python_dispatch import _pop_mode

from .errors import STOPPING, OptionError
from .generators import drawn_from, generators, put_back
from .own_file import back_to, working_folder

P = ParamSpec("P")
R = TypeVar("R")

_TINY = torch.tensor(1e-40, device="cpu", dtype=torch.float32)
"""Below the smallest normal number; 0 where those are flushed, which torch does not tell."""

DEVICES = ("cpu", "cuda")

_MKLDNN: Any = torch.backends.mkldnn
_CUDNN: Any = torch.backends.cudnn

BACKENDS: Sequence[Any] = (
    *(torch.backends, _MKLDNN, _MKLDNN.matmul, _MKLDNN.conv, _MKLDNN.rnn),
    *(_CUDNN.conv, _CUDNN.rnn, torch.backends.cuda.matmul),
)
"""Where torch has a precision of products, the general ones first, which set those within."""


def _handled(number: signal.Signals, handler: Any) -> None:
    if handler is not None and current_thread() is main_thread():  # None is of C, which Python can not set
        signal.signal(number, handler)


def _precisions() -> tuple[str | None, list[str]]:
    """By torch's older way, which fails where somebody has used the newer one, and by that."""
    older = None
    with suppress(RuntimeError):
        older = torch.get_float32_matmul_precision()
    return older, [backend.fp32_precision for backend in BACKENDS]


def _precise_as(older: str | None, newer: Sequence[str]) -> None:
    def as_newer() -> None:
        for backend, precision in zip(BACKENDS, newer, strict=True):
            if backend.fp32_precision != precision:
                backend.fp32_precision = precision

    as_newer()
    if older is not None:
        torch.set_float32_matmul_precision(older)  # which fails where the newer ones differ, and changes some
        as_newer()


@contextmanager
def products(precision: str) -> Iterator[None]:
    """A scope in which products and convolutions of float32 are exact, "highest", or take TF32, "high".

    Afterwards they are what they were; torch's own have TF32 in convolutions on a GPU.
    """
    before = _precisions()
    try:
        torch.set_float32_matmul_precision(precision)
        for backend in (_MKLDNN.conv, _MKLDNN.rnn, _CUDNN.conv, _CUDNN.rnn):
            backend.fp32_precision = "tf32" if precision == "high" else "ieee"
        yield
    finally:
        _precise_as(*before)


def _modes() -> list[Any]:
    """How many modes see every call of torch's functions and operators, and who sees what is saved for a backward."""
    depths = torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()
    return [*depths, torch._C._autograd._top_saved_tensors_default_hooks(True)]


def _leave_modes(functions: int, operators: int, saved: object) -> None:
    while torch._C._len_torch_function_stack() > functions:
        torch._C._pop_torch_function_stack()
    while torch._C._len_torch_dispatch_stack() > operators:
        _pop_mode()
    while torch._C._autograd._top_saved_tensors_default_hooks(True) not in (saved, None):
        torch._C._autograd._pop_saved_tensors_default_hooks()


_SWITCHES: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "the grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the default device": (
        torch.get_default_device,
        lambda device: torch.set_default_device(None if device == torch.device("cpu") else device),
    ),
    "the precision of products": (_precisions, lambda states: _precise_as(*states)),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "whether numbers below the normal ones are 0": (lambda: not bool(_TINY * 1), torch.set_flush_denormal),
    "anomaly detection": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "whether algorithms are deterministic": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    "the flags of cuDNN": (
        lambda: {flag: getattr(torch.backends.cudnn, flag) for flag in ("enabled", "benchmark", "deterministic")},
        lambda flags: [*starmap(partial(setattr, torch.backends.cudnn), flags.items())],
    ),
    "the flags of mkldnn": (
        lambda: [_MKLDNN.enabled, _MKLDNN.deterministic],
        lambda flags: _MKLDNN.set_flags(*flags, _fp32_precision=None),
    ),
    "autocast": (
        lambda: {device: torch.is_autocast_enabled(device) for device in DEVICES},
        lambda states: [torch.set_autocast_enabled(*one) for one in states.items()],
    ),
    "the type of autocast": (
        lambda: {device: torch.get_autocast_dtype(device) for device in DEVICES},
        lambda states: [*starmap(torch.set_autocast_dtype, states.items())],
    ),
    "the modes of torch": (_modes, lambda states: _leave_modes(*states)),
    "what numpy does at errors": (
        lambda: (np.geterr(), np.geterrcall()),
        lambda states: (np.seterr(**states[0]), np.seterrcall(states[1])),
    ),
    "sys.stdout or sys.stderr": (
        lambda: [sys.stdout, sys.stderr],
        lambda streams: [*map(partial(setattr, sys), ("stdout", "stderr"), streams)],
    ),
    "the working folder": (working_folder, back_to),
    **{
        f"what {number.name} does": (partial(signal.getsignal, number), partial(_handled, number))
        for number in STOPPING
    },
}


def switches() -> dict[str, Any]:
    """What is global and decides what a forward is or where files lie, by what it is called in a sentence."""
    return {name: read() for name, (read, _) in _SWITCHES.items()}


def switch_back(states: dict[str, Any]) -> None:
    """The switches as they were."""
    for name, (read, write) in _SWITCHES.items():
        if read() != states[name]:
            write(states[name])


_AT_WORK = RLock()


def _nobody_at_work() -> None:
    global _AT_WORK
    _AT_WORK = RLock()


if hasattr(os, "register_at_fork"):  # the thread that holds the lock may be none of the child's
    os.register_at_fork(after_in_child=_nobody_at_work)


def one_at_a_time(function: Callable[P, R]) -> Callable[P, R]:
    """For what sets generators, precision or the number of threads, which a process has once.

    That number is as before afterwards. OptionError while another thread is in such a function; within one it may be
    called again.
    """

    @wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        lock = _AT_WORK
        if not lock.acquire(blocking=False):
            raise OptionError(
                "Another thread of this process is in a call of advkit, and both would set the generators and the "
                "number of threads of the whole process; call one after the other, or in two processes."
            )
        threads = torch.get_num_threads()
        try:
            return function(*args, **kwargs)
        finally:
            torch.set_num_threads(threads)
            lock.release()

    return alone


@contextmanager
def undone(told: Callable[[Sequence[str]], object]) -> Iterator[None]:
    """A scope for code that is no part of a run. What it leaves otherwise is put back, and `told` by name, if anything.

    Beside switches and generators that is inference mode and, where a thread may set them, who handles signals.
    """
    switched, drawn, handlers = switches(), generators(), _handlers()
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    left = list[str]()
    try:
        # Leaving it is the one way out of an inference mode that somebody has entered for good.
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            try:
                yield
            finally:
                left += ["torch.inference_mode"] * (torch.is_inference_mode_enabled() != inference)
                left += [name for name, value in switches().items() if value != switched[name]]
    finally:
        switch_back(switched)
        if moved := drawn_from(drawn):
            put_back(drawn)
            left += moved
        for number, handler in _handlers().items():
            if handler != handlers[number] and handlers[number] is not None:  # of C, which Python can not set
                signal.signal(number, handlers[number])
                left.append(f"what {number.name} does")
        if left:
            told(left)


def _handlers() -> dict[signal.Signals, Any]:
    """Who handles each signal; {} in a thread that may choose nobody."""
    return {one: signal.getsignal(one) for one in signal.Signals} if current_thread() is main_thread() else {}
