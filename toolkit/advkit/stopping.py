"""Signals that stop a run, and the time after which it stops by itself."""

from __future__ import annotations

import os
import signal
import time
from threading import current_thread, main_thread
from types import FrameType

from . import torchrun
from .errors import STOPPING, Interrupted, Stopped


class Signals:
    """The first of `STOPPING` stops a run after its step, with a checkpoint; so do `seconds`, where they are given.

    So does the death of torchrun, whose processes nobody else would tell: signals that it does not know end it at once.
    A second Ctrl-C, or a second SIGTERM, stops it at once. A hang-up is sent twice by some shells, and a scheduler
    sends SIGTERM after SIGUSR1, so other pairs are one request. `unheard`: only signals that nobody else has taken.
    """

    def __init__(self, seconds: float | None = None, *, unheard: bool = False) -> None:
        self._requested: type[Stopped] | None = None
        self._first = 0
        self._unheard = unheard
        self._end = None if seconds is None else time.monotonic() + seconds
        self._torchrun = os.getppid() if torchrun.several() else None

    @property
    def requested(self) -> type[Stopped] | None:
        """How the run is to end; None while it may go on."""
        over = self._end is not None and time.monotonic() >= self._end
        orphaned = self._torchrun is not None and os.getppid() != self._torchrun
        return Stopped if self._requested is None and (over or orphaned) else self._requested

    def __enter__(self) -> Signals:
        # Whoever started us may have ignored some: nohup hang-ups, a script Ctrl-C for what it runs in the background.
        # So do we then. Only the main thread may choose.
        by_default = (signal.SIG_DFL, signal.default_int_handler)
        chosen = [
            number
            for number in STOPPING
            if current_thread() is main_thread() and (handler := signal.getsignal(number)) != signal.SIG_IGN
            if handler in by_default or not self._unheard
        ]
        self._before = {number: signal.signal(number, self._note) for number in chosen}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._requested is None:
            self._requested, self._first = Interrupted if number == signal.SIGINT else Stopped, number
        elif {number, self._first} <= {signal.SIGINT, signal.SIGTERM}:
            raise KeyboardInterrupt
