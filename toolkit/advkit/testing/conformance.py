"""All checks as one test of pytest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import OptionError, did_you_mean
from .company import Choice
from .subject import CHECKS, Misbehaves, NotRun, Subject


def conformance(
    plugin: Choice,
    *,
    options: Mapping[str, object] | None = None,
    neutral: Mapping[str, object] | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> Callable[..., None]:
    """A test of pytest with a case for each check: `test_my_plugin = conformance("acme-margin")`.

    Args:
        plugin: the name of an installed plugin, or a class.
        options: of the plugin; under them a few steps show what it does. None: its own `example_options()`, if any.
        neutral: those under which it does nothing. None: its own `neutral_options()`, if any.
        expected_failures: {"parts": "why"}: checks that it is known to fail. One that holds is a failure, too.

    Raises OptionError where pytest is not installed, or a check is unknown.
    """
    try:
        import pytest
    except ImportError:
        raise OptionError("advkit.testing.conformance needs pytest; pip install pytest.") from None
    known = dict(expected_failures or {})
    for name in known:
        if name not in CHECKS:
            raise OptionError(f"There is no check {name}.{did_you_mean(name, CHECKS)} Known: {', '.join(CHECKS)}.")
    subjects: list[Subject] = []

    def case(name: str) -> Any:
        expected = [pytest.mark.xfail(reason=known[name], raises=Misbehaves, strict=True)] if name in known else []
        return pytest.param(name, id=name, marks=expected)

    @pytest.mark.parametrize("check", [case(name) for name in CHECKS])
    def test(check: str) -> None:
        if not subjects:  # loaded by the first case: an import that fails is a test that fails
            subjects.append(Subject.of(plugin, options, neutral))
        try:
            CHECKS[check](subjects[0])
        except NotRun as reason:
            pytest.skip(str(reason))

    return test
