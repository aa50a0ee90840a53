"""Who wants to see a run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ..errors import Caution, HookContract, Stopped, shown
from ..stopping import Signals
from .ranks import Alone
from .step_report import Report

if TYPE_CHECKING:
    from .loop import Trainer


@runtime_checkable
class Progress(Protocol):
    """Is told what happens in a run, to show it. Every method may do nothing."""

    def begin(self, trainer: Trainer) -> None: ...
    def stepped(self, trainer: Trainer, report: Report) -> None: ...
    def finished_epoch(self, row: Mapping[str, Any]) -> None: ...
    def warn(self, sentence: str) -> None: ...

    def stop_requested(self) -> type[Stopped] | None:
        """Asked after every step; an answer stops the run after a checkpoint."""


def asked_to_stop(progress: Progress) -> type[Stopped] | None:
    """What `stop_requested` answers; HookContract where that says nothing of how to end."""
    answer: object = progress.stop_requested()
    if answer is None or answer is False:
        return None
    if isinstance(answer, type) and issubclass(answer, Stopped):
        return answer
    raise HookContract(
        f"stop_requested of the run's progress returned {shown(answer)}; return None to go on, and "
        "advkit.errors.Stopped or a subclass of it, the class itself, to stop."
    )


def voice(ranks: Alone, progress: Progress) -> Progress:
    """The first of several processes speaks for all; each can be asked to stop."""
    return Mute(progress) if ranks.rank else progress


class Silent:
    """Shows nothing and never stops."""

    def begin(self, trainer: Trainer) -> None: ...
    def stepped(self, trainer: Trainer, report: Report) -> None: ...
    def finished_epoch(self, row: Mapping[str, Any]) -> None: ...
    def warn(self, sentence: str) -> None: ...
    def stop_requested(self) -> type[Stopped] | None:
        return None


class Aloud(Silent):
    """Shows nothing and never stops; what is to be known of the run is a Python warning, a `Caution`."""

    def warn(self, sentence: str) -> None:
        warnings.warn(sentence, Caution, stacklevel=2)


class Stoppable:
    """Shows by another, and stops on signals too."""

    def __init__(self, shown_by: Progress, signals: Signals) -> None:
        self._shown_by, self._signals = shown_by, signals
        self.begin, self.stepped = shown_by.begin, shown_by.stepped
        self.finished_epoch, self.warn = shown_by.finished_epoch, shown_by.warn

    def stop_requested(self) -> type[Stopped] | None:
        return asked_to_stop(self._shown_by) or self._signals.requested


class Mute(Silent):
    """Shows nothing, and stops when another would."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def stop_requested(self) -> type[Stopped] | None:
        return self._progress.stop_requested()
