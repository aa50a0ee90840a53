"""Sets of plugins that users ask for, those of results/methods.py: each trains, and is more than its first alone."""

from __future__ import annotations

import re
from pathlib import Path

import methods
import pytest

SCRIPT = Path(__file__).parents[2] / "results" / "methods.py"
LISTED = SCRIPT.read_text(encoding="utf-8").split("\nSETS = (", 1)[1].split("\n)\n", 1)[0]
SETS = re.findall(r'"([a-z-]+(?:,[a-z-]+)+)"', LISTED)
OPTIONS = {"gairat": {"burn_in": 0}}  # from the first epoch on


def test_there_are_sets_of_what_is_installed() -> None:
    assert len(SETS) > 10 and {name for chosen in SETS for name in chosen.split(",")} <= {*methods.names()}


@pytest.mark.parametrize("chosen", SETS)
def test_it_trains_and_is_more_than_its_first(chosen: str) -> None:
    first, *others = [name for name in chosen.split(",") if name not in ("ema", "swa")]  # which average beside it
    options = {name: OPTIONS[name] for name in chosen.split(",") if name in OPTIONS}
    loop = methods.needs_the_loop(chosen.split(","))
    whole = methods.trained(chosen.split(","), options=options, by_the_loop=loop)
    assert all(bool(value.isfinite().all()) for value in whole.values())
    of_first = {name: values for name, values in options.items() if name == first}
    assert not methods.same(whole, methods.trained([first] if others else [], options=of_first, by_the_loop=loop))
