"""Signals that stop a run, and the time after which it stops by itself."""

from __future__ import annotations

import os
import re
import signal
import time
from threading import current_thread, main_thread
from types import FrameType

from .. import torchrun
from ..errors import STOPPING, Interrupted, OptionError, Stopped


class Signals:
    """The first of `STOPPING` stops a run after its step, with a checkpoint; so do `seconds`, where they are given.

    So does the death of torchrun, whose processes nobody else would tell: signals that it does not know end it at once.
    A second Ctrl-C, or a second SIGTERM, stops it at once. A hang-up is sent twice by some shells, and a scheduler
    sends SIGTERM after SIGUSR1, so other pairs are one request.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._requested: type[Stopped] | None = None
        self._first = 0
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
        chosen = [
            number
            for number in STOPPING
            if current_thread() is main_thread() and signal.getsignal(number) != signal.SIG_IGN
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


class Signalled(KeyboardInterrupt):
    """What `AtOnce` raises: it passes whoever catches failures of strangers' code. It may get a sentence on its way.

    A type of its own, as Python ends itself by SIGINT after a KeyboardInterrupt that left an `exec`, caught or not.
    """


class AtOnce(Signals):
    """Around every command: the first signal ends it where it is, unless a `Signals` within waits for its step."""

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)
        if isinstance(raised[1], Signalled) and self._requested is not None:
            raise self._requested(str(raised[1]) or "Stopped; give the same command again to go on.") from None

    def _note(self, number: int, frame: FrameType | None) -> None:
        first = self._requested is None
        super()._note(number, frame)
        if first:
            raise Signalled


def over() -> None:
    """The work is done, and how it ended stands: while Python leaves, which takes torch a while, nothing kills it."""
    for number in STOPPING:
        if number != signal.SIGINT:
            signal.signal(number, signal.SIG_IGN)


_UNITS = {"h": 3600, "m": 60, "s": 1}


def duration(name: str, typed: str) -> float:
    """Seconds of "90", "90s", "30m", "2h" or "1h30m"."""
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", typed.replace(" ", ""), re.ASCII)
    seconds = sum(int(n or 0) * size for n, size in zip(parts.groups(), _UNITS.values(), strict=True)) if parts else 0
    if not 0 < seconds < 1e9:
        raise OptionError(
            f"{name} {typed} must be a time above 0 in whole seconds, minutes or hours, such as 90s, 30m or 2h."
        )
    return float(seconds)
