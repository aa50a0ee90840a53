"""Signals that end a command, and how a time is typed."""

from __future__ import annotations

import re
import signal
from types import FrameType

from ..errors import STOPPING, OptionError
from ..stopping import Signals


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
