"""What is global in a process and decides what a run computes: read, told by name, and put back."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import starmap
from threading import current_thread, main_thread
from typing import Any

import torch

from .generators import drawn_from, generators, put_back
from .own_file import back_to, working_folder

_TINY = torch.tensor(1e-40, device="cpu", dtype=torch.float32)
"""Below the smallest normal number; 0 where those are flushed, which torch does not tell."""

_SWITCHES: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "the grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the default device": (
        torch.get_default_device,
        lambda device: torch.set_default_device(None if device == torch.device("cpu") else device),
    ),
    "the precision of products": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "whether numbers below the normal ones are 0": (lambda: not bool(_TINY * 1), torch.set_flush_denormal),
    "anomaly detection": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "whether algorithms are deterministic": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    "the flags of cuDNN": (
        lambda: {flag: getattr(torch.backends.cudnn, flag) for flag in ("enabled", "benchmark", "deterministic")},
        lambda flags: [*starmap(partial(setattr, torch.backends.cudnn), flags.items())],
    ),
    "autocast": (
        lambda: {device: torch.is_autocast_enabled(device) for device in ("cpu", "cuda")},
        lambda states: [torch.set_autocast_enabled(*one) for one in states.items()],
    ),
    "the working folder": (working_folder, back_to),
}


def switches() -> dict[str, Any]:
    """What is global and decides what a forward is or where files lie, by what it is called in a sentence."""
    return {name: read() for name, (read, _) in _SWITCHES.items()}


def switch_back(states: dict[str, Any]) -> None:
    """The switches as they were."""
    for name, (read, write) in _SWITCHES.items():
        if read() != states[name]:
            write(states[name])


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
