"""What holds for every installed plugin, found by its name; see `methods.py` for what each declares."""

from __future__ import annotations

import itertools

import methods
import pytest

from advkit.testing import small


@pytest.mark.parametrize("name", methods.names())
def test_switched_off_it_moves_no_bit(name: str) -> None:
    method = methods.declared(name)
    assert method.neutral, f"{name} has to say with which options a run is the run without it"
    for one, other in method.neutral:
        assert methods.both(one, other), (one, other)


@pytest.mark.parametrize("name", methods.names())
def test_switched_on_it_does(name: str) -> None:
    """The control to the test above."""
    for one, other in methods.declared(name).changes:
        assert not methods.both(one, other), (one, other)


@pytest.mark.parametrize("name", methods.names())
def test_it_runs_alone_or_beside_whom_it_needs(name: str) -> None:
    assert name in methods.alone(name)


@pytest.mark.parametrize("chosen", methods.crowds(), ids=",".join)
def test_a_crowd_is_one_run_in_any_order(chosen: tuple[str, ...]) -> None:
    loop = methods.needs_the_loop(chosen)
    one, other = (small.trained(order, by_the_loop=loop) for order in (chosen, chosen[::-1]))
    assert methods.same(one.everything, other.everything) and one.everything.keys() > one.weights.keys()
    figures = [[(float(report.loss), report.radius.tolist()) for report in ran.reports] for ran in (one, other)]
    assert figures[0] == figures[1] and len(figures[0]) >= 4


def test_the_crowds_hold_every_plugin_and_no_other_fits() -> None:
    assert set(itertools.chain(*methods.crowds())) == {*methods.names()}
    for chosen in methods.crowds():
        assert all(methods.refusal((*chosen, other)) for other in methods.names() if other not in chosen)
