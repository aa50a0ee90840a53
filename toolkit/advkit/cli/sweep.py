"""`advkit sweep`: which values of options and settings are best, on images that the runs hold out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import click

from ..errors import OptionError
from .ablate import carry_out, study_options
from .main import parse_value
from .run_options import run_options


@click.command("sweep")
@run_options
@study_options
@click.option("--trials", metavar="N", help="Try N combinations that Optuna proposes, also of ranges: 0.01..0.3 log.")
def command(
    seeds: str,
    task: str | None,
    trials: str | None,
    as_json: bool,
    options: tuple[str, ...],
    settings: tuple[str, ...],
    **typed: Any,
) -> None:
    """Train every combination of the values that -o and --set give, and compare them on held-out images.

    \b
    advkit sweep --plugins lsiw -o lsiw.lam=0.03,0.1,0.3 --out sweep

    Values are separated by commas; a list is written in brackets, a text with commas in quotes. Runs are paired: the
    same seeds, images and random numbers. The test images are never used. A stopped sweep continues when the same
    command is given again. The table is also written to DIR/table.json and table.md.

    \b
    advkit sweep --plugins lsiw -o 'lsiw.lam=0.01..0.3 log' --trials 20 --out search

    With --trials, values are proposed one after the other, from those of the best runs so far. Ranges are of integers
    where the option is an integer, and uniform in the logarithm with `log`.
    """
    from ..studies.inputs import seeds as parse_seeds, whole
    from ..studies.paired_tables import SWEEP
    from ..studies.sweep import sweep_request

    fixed_options, by_option = apart(options)
    fixed_settings, by_setting = apart(settings)
    if twice := by_option.keys() & by_setting.keys():
        raise OptionError(f"-o and --set both give {min(twice)}; give it once.")
    numbers, grid = parse_seeds("--seeds", seeds), by_option | by_setting
    count = None if trials is None else whole("--trials", trials)
    typed |= {"options": fixed_options, "settings": fixed_settings}
    carry_out(SWEEP, as_json, task, typed, lambda asked, study, k: sweep_request(asked, grid, numbers, study, k, count))


def apart(pairs: Iterable[str]) -> tuple[tuple[str, ...], dict[str, Sequence[object]]]:
    """`a.b=value` as it is typed; and the values of those that have several, or their range as it is typed."""
    from ..studies.search import Range

    fixed: list[str] = []
    several: dict[str, Sequence[object]] = {}
    for pair in pairs:
        key, _, text = pair.partition("=")
        parts, ranged = _parts(text), Range.written(text)
        if len(parts) == 1 and not ranged:
            fixed.append(pair)
        elif key.strip() in several or not all(parts):
            raise OptionError(f"{pair!r} is not of the form plugin.key=value,value, each key once.")
        else:
            several[key.strip()] = text.strip() if ranged else [parse_value(part) for part in parts]
    return tuple(fixed), several


def _parts(text: str) -> list[str]:
    """What stands between commas, those within brackets, however deep, and within quotes left alone."""
    parts, depth, quoted = [""], 0, False
    for char in text:
        quoted ^= char == '"'
        if not quoted:
            depth = max(0, depth + (char == "[") - (char == "]"))
        if char == "," and not depth and not quoted:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]
