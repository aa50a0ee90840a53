"""Searches: values that Optuna proposes, one set after the other, each judged by what those before it have shown."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from ..errors import OptionError
from ..numerals import parse_number
from .arms import Arm, Outcome, Study, data_for, distinct
from .paired_records import AblationRow

FIRST = 10
"""Trials that are drawn at random; from then on a tree-structured Parzen estimator proposes (Bergstra et al. 2011)."""

_RANGE = re.compile(r"\s*(\S+?)\s*\.\.\s*(\S+?)(\s+log)?\s*")
_MEANT = re.compile(
    r"\s*[-+]?(\d|\.\d|inf\b|nan\b|eps\b)[^/\s]*(/[^/\s]+)?\s*\.\.\s*[^/\s].*", re.ASCII | re.IGNORECASE
)
"""A number, or what some take for one, and two dots: a range that is meant, and no folder such as a/../b."""


class Range(NamedTuple):
    """Numbers from `low` to `high`, both included; whole ones if both are int, even in their logarithm if `log`."""

    low: float
    high: float
    log: bool

    @classmethod
    def written(cls, text: object) -> Range | None:
        """`0.01..0.3`, `0.01..0.3 log`, `1/255..8/255`; None for what is none. OptionError for an impossible one."""
        if not isinstance(text, str) or not _MEANT.fullmatch(text):
            return None
        try:
            if not (match := _RANGE.fullmatch(text)):
                raise ValueError
            ends = [parse_number(match[1]), parse_number(match[2])]
        except ValueError:
            raise OptionError(
                f"{text} can not be read as a range; write two finite numbers, 0.01..0.3 or 0.01..0.3 log."
            ) from None
        if not ends[0] < ends[1] or (match[3] and ends[0] <= 0):
            raise OptionError(f"{text} is no range; write the lower number first, above 0 if it is log: 0.01..0.3 log.")
        if all(re.fullmatch(r"-?\d+", end) for end in match.groups()[:2]):
            return cls(int(match[1]), int(match[2]), bool(match[3]))
        return cls(ends[0], ends[1], bool(match[3]))

    def of(self, value: object) -> Range:
        """For what has this value: of real numbers unless it is whole, however the ends are written."""
        return self if isinstance(value, int) else Range(float(self.low), float(self.high), self.log)

    def proposed(self, trial: Any, name: str) -> float:
        """A number that the trial proposes, of four digits, so that what is shown is what was run."""
        if isinstance(self.low, int):
            return int(trial.suggest_int(name, self.low, self.high, log=self.log))
        value = trial.suggest_float(name, self.low, self.high, log=self.log)
        return min(max(float(f"{value:.4g}"), self.low), self.high)


def search(
    study: Study,
    space: Mapping[str, Range | Sequence[object]],
    trials: int,
    arm_of: Callable[[Mapping[str, object]], Arm],
) -> list[AblationRow]:
    """A row for each set of values that is proposed in `trials`, in that order; the best has the highest worst case.

    `space` has a `Range` or a list by option or setting; `arm_of` makes the arm of a set of values, or refuses it. What
    is proposed follows from the worst cases before alone: asked again, a search finds its runs in the folder and goes
    on, also to more trials. A set that is proposed twice is one row.
    """
    try:
        optuna: Any = import_module("optuna")
    except ImportError:
        raise OptionError("Searching needs optuna: pip install 'advkit[sweep]'; or give lists, 0.03,0.1.") from None
    tried = {name: values[:2] if isinstance(values, Range) else values for name, values in space.items()}
    first, last = ({name: values[end] for name, values in tried.items()} for end in (0, -1))
    seen = [arm_of(last)]
    for name, values in tried.items():  # whatever is refused there is refused before anything is trained
        seen += distinct(arm_of(first | {name: value}) for value in values)
    splits = data_for(seen)
    known = next(iter(arm_of(first).resolved.values())).values()
    space = {name: one.of(known.get(name, one.low)) if isinstance(one, Range) else one for name, one in space.items()}
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    arms: dict[str, Arm] = {}
    found: dict[str, dict[int, Outcome | str]] = {}
    try:
        sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=FIRST)
        asked = optuna.create_study(direction="maximize", sampler=sampler)
        with study.kept():
            for _ in range(trials):
                trial = asked.ask()
                arm = arm_of({name: _proposed(trial, name, values) for name, values in space.items()})
                if arm.name not in arms:
                    found[arm.name] = {at: study.outcome(arm, at, splits) for at in arm.resolved}
                    arms[arm.name] = arm
                outcomes = [one for one in found[arm.name].values() if isinstance(one, Outcome)]
                if len(outcomes) == len(found[arm.name]):
                    asked.tell(trial, sum(map(_withstood, outcomes)) / len(outcomes))
                else:  # ended in NaN or Inf
                    asked.tell(trial, state=optuna.trial.TrialState.FAIL)
            return study.written(list(arms.values()), found)
    finally:
        optuna.logging.set_verbosity(verbosity)


def _proposed(trial: Any, name: str, values: Range | Sequence[object]) -> object:
    if isinstance(values, Range):
        return values.proposed(trial, name)
    place: int = trial.suggest_categorical(name, list(range(len(values))))  # Optuna takes plain values alone
    return values[place]


def _withstood(outcome: Outcome) -> float:
    return outcome.worst_case.count("1") / len(outcome.worst_case)
