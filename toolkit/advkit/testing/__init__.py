"""Is a plugin sound? Checks as plain functions, for its author's tests and for `advkit plugins check`.

    from advkit.testing import conformance

    test_my_plugin = conformance("acme-margin")

Every `check_NAME` takes the name of an installed plugin, or its class. It raises `Misbehaves` with what was expected
and what came, or `NotRun` where there is nothing to look at. `CHECKS` holds all of them, in order.
"""

from .conformance import conformance as conformance
from .declared import (
    check_listing as check_listing,
    check_options as check_options,
    check_places as check_places,
    check_registration as check_registration,
)

from .steps import (  # isort: skip
    check_step as check_step,
    check_borrowed as check_borrowed,
    check_passes as check_passes,
    check_state as check_state,
    check_extremes as check_extremes,
    check_nan as check_nan,
    check_ball as check_ball,
)
from .calculus import (  # isort: skip
    check_optimum as check_optimum,
    check_gradient as check_gradient,
)
from .runs import (  # isort: skip
    check_draws as check_draws,
    check_permutation as check_permutation,
    check_parts as check_parts,
    check_resume as check_resume,
    check_order as check_order,
    check_neutral as check_neutral,
    check_pairs as check_pairs,
)
from .machine import (  # isort: skip
    check_bf16 as check_bf16,
    check_channels_last as check_channels_last,
    check_compile as check_compile,
    check_cuda as check_cuda,
    check_processes as check_processes,
)
from .subject import (
    CHECKS as CHECKS,
    Check as Check,
    Finding as Finding,
    Misbehaves as Misbehaves,
    NotRun as NotRun,
    Subject as Subject,
    findings as findings,
)
