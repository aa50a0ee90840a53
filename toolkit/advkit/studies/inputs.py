"""Numbers, names and shares as people write them, the same from the command line and from Python.

`name` is what the sentence calls the argument: "--eps" there, "eps" here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite
from operator import index

from ..arguments import a_number
from ..errors import OptionError, shown
from ..evaluation.results import BATCH
from ..numerals import VANISHES, parse_number
from ..settings import RunSettings
from ..storage.run_folder import RunFolder


def amount(name: str, given: float | str) -> float:
    """A finite number >= 0: 0.15, "0.15" or "8/255"."""
    try:
        value = parse_number(given) if isinstance(given, str) else a_number(name, given)
    except (ValueError, OptionError) as error:
        if VANISHES in str(error):
            raise OptionError(f"{name} {_said(given)} {VANISHES}.") from None
        value = -1.0
    if not isfinite(value) or value < 0:
        raise OptionError(f"{name} {_said(given)} must be a finite number >= 0, or a fraction such as 8/255.")
    return value


def optional(name: str, given: float | str | None) -> float | None:
    """As `amount`; None where nothing was given."""
    return None if given is None else amount(name, given)


def pace(name: str, given: str) -> float:
    """A step as a share of eps: `eps/5`, `0.2 eps` or `eps`."""
    plain = str(given).replace(" ", "")
    try:
        if plain.startswith("eps/"):
            value = 1 / parse_number(plain.removeprefix("eps/"))
        else:
            value = parse_number(plain.removesuffix("eps") or "1") if plain.endswith("eps") else -1.0
    except (ValueError, ZeroDivisionError):
        value = -1.0
    if not isfinite(value) or value <= 0:
        raise OptionError(f"{name} {_said(given)} must be a share of eps, such as eps/5 or 0.2 eps.")
    return value


def whole(name: str, given: int | str) -> int:
    """A whole number >= 0; as a number of images, 0 means all."""
    try:
        value = int(given) if isinstance(given, str) and given.isascii() else index(given)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = -1
    if isinstance(given, bool) or value < 0:
        raise OptionError(f"{name} {_said(given)} must be a whole number >= 0.")
    return value


def at_once(given: int | str | None, own: int = BATCH) -> int:
    """How many images are computed at once: `given`, 0 for no bound; unless said `own`, of a run's training, or BATCH.

    A run's never are more than BATCH, as in its validation.
    """
    return min(BATCH, own) if given is None else min(whole("batch_size", given), 2**31)


def of_training(folder: RunFolder, run: RunSettings) -> int:
    """How many images each process computed at once where a run began, of as many as environment.json says."""
    processes = (folder.environment() or {}).get("processes")
    return run.at_once(max(1, processes) if isinstance(processes, int) else 1)


def listed(given: str | Iterable[str]) -> tuple[str, ...]:
    """Names: "a,b" or a sequence of them. A folder behind a colon, as in transfer:RUN, may end with a blank."""
    parts = given.split(",") if isinstance(given, str) else given
    return tuple(part.lstrip() if ":" in part else part.strip() for part in parts if part.strip())


MOST_SEEDS = 100
"""That a number stands for: a larger one is meant as a seed."""


def seeds(name: str, given: int | str | Sequence[int]) -> list[int]:
    """How many seeds, 3 for 0, 1 and 2; or which, each once: "0,2" or a sequence of them, "4," for 4 alone."""
    listing = listed(given) if isinstance(given, str) and "," in given else given
    try:
        if isinstance(listing, Sequence) and not isinstance(listing, str):
            values = [whole(name, part) for part in listing]
        else:
            count = whole(name, listing)
            values = list(range(count)) if count <= MOST_SEEDS else []
    except OptionError:
        values = []
    if not values or len(set(values)) != len(values):
        raise OptionError(
            f"{name} {_said(given)} must be how many seeds (3: 0, 1 and 2; at most {MOST_SEEDS}), or which, each once "
            "(0,2; of one alone 4, with the comma)."
        )
    return values


def _said(given: object) -> str:
    return given if isinstance(given, str) and given.strip() and len(given) <= 80 else shown(given)
