"""The built-ins pass the conformance checks, and `conformance` makes a test of them."""

from __future__ import annotations

from typing import Any

import methods
import pytest
from torch import Tensor

from advkit import OptionError, Plugin, PluginLoad, hookimpl, testing
from advkit.testing import CHECKS, Misbehaves, NotRun, Subject, check_options, check_step, conformance

ELSEWHERE = {
    "resume": "tests/training/test_resume.py, from checkpoints after crashes too",
    "order": "tests/training/test_methods.py, a crowd once",
    "neutral": "tests/training/test_methods.py, with settings and in company",
    "pairs": "tests/training/test_passes.py, every two once",
    "compile": "tests/training/test_compiled.py, with batches of two sizes and dropout",
    "processes": "tests/training/test_processes.py, with more images",
}
"""What tests of the built-ins hold already, and more of it."""


@pytest.fixture(scope="module")
def subjects() -> dict[str, Subject]:
    """One for all checks of a plugin: what it was found to do is kept."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("check", [name for name in CHECKS if name not in ELSEWHERE])
@pytest.mark.parametrize("name", methods.names())
def test_built_ins_conform(name: str, check: str, subjects: dict[str, Subject]) -> None:
    """Under options that change from step to step."""
    subject = subjects.setdefault(name, Subject.of(name, methods.declared(name).moving.get(name, {})))
    finding = CHECKS[check].outcome(subject)
    assert finding.state != "fails" and "fails" not in finding.said, finding


class Sums(Plugin):
    """Returns one number for the whole batch."""

    name = "sums"

    @hookimpl
    def extra_regularizer(self, adv_logits: Tensor) -> Tensor:
        return adv_logits.square().mean()


def cases(test: Any) -> dict[str, Any]:
    """The parameters of a test by their ids."""
    (parametrized,) = test.pytestmark
    return {case.id: case for case in parametrized.args[1]}


def test_conformance_has_a_case_with_a_readable_id_for_every_check() -> None:
    test = conformance("label-smoothing")
    assert list(cases(test)) == list(CHECKS)
    test(check="step")
    with pytest.raises(pytest.skip.Exception, match="it keeps no state per sample"):
        test(check="state")
    with pytest.raises(Misbehaves) as failure:
        conformance(Sums)(check="step")
    assert str(failure.value) == (
        "sums fails check_step. Expected: Two epochs of steps on ordinary images run, and every answer is what its "
        "hook says. Came: Plugin sums broke the contract of extra_regularizer: the term must be (4,) floating point, "
        "not () float32. See docs/hooks.md."
    )


def test_expected_failures_are_strict_and_have_reasons() -> None:
    known = cases(conformance(Sums, expected_failures={"step": "it is one number"}))
    (mark,) = known["step"].marks
    assert mark.name == "xfail" and not known["order"].marks
    assert mark.kwargs == {"reason": "it is one number", "raises": Misbehaves, "strict": True}
    with pytest.raises(OptionError) as refused:
        conformance(Sums, expected_failures={"ordr": ""})
    assert str(refused.value).startswith("There is no check ordr. Did you mean order? Known: registration, listing,")


def test_a_plugin_is_loaded_by_the_first_case() -> None:
    test = conformance("never-written")
    with pytest.raises(PluginLoad, match="Unknown plugin never-written"):
        test(check="step")


def test_a_check_takes_a_name_or_a_class_and_options_that_exist() -> None:
    check_options("label-smoothing", options={"alpha": 0.5})
    with pytest.raises(Misbehaves):
        check_step(Sums)
    with pytest.raises(OptionError, match=r"Unknown option label-smoothing\.alpa\. Did you mean alpha\?"):
        check_options("label-smoothing", options={"alpa": 0.5})
    with pytest.raises(NotRun, match="it declares no place"):
        CHECKS["places"](Subject.of("trades"))


def test_every_check_is_a_public_function() -> None:
    assert {name.removeprefix("check_") for name in dir(testing) if name.startswith("check_")} == CHECKS.keys()
    assert all(check.expected.endswith(".") for check in CHECKS.values())
