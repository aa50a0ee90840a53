"""Whether a robust accuracy can be believed: the checks for gradient masking that the literature asks for.

Athalye et al. (ICML 2018), Carlini et al. (2019, "On evaluating adversarial robustness"), Croce and Hein (ICML 2020,
AutoAttack's flags) and Pintor et al. (NeurIPS 2022, indicators of attack failures). An audit that stays silent proves
nothing; one that trips says that the accuracies under attack are too high, and which attack to try.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from ...data.base import Dataset
from ..attacks.base import EvaluationAttack
from ..team import Team
from . import figures
from .bench import Bench, bench
from .brief import short
from .checks import RULES, Check, told
from .figures import Answer

__all__ = ["RULES", "AuditResult", "Check", "audit", "short"]

_FIGURES: dict[str, Callable[[Bench], Answer]] = {
    "zero-gradient": figures.blind,
    "false-gradient": figures.false_gradient,
    "grad-mode": figures.grad_mode,
    "batch": figures.by_batch,
    "steps-accuracy": figures.steps_accuracy,
    "steps-loss": figures.steps_loss,
    "eps-accuracy": figures.eps_accuracy,
    "eps-loss": figures.eps_loss,
    "large-eps": figures.large_eps,
    "restarts": figures.restarts,
    "black-box": figures.square,
    "random-search": figures.random_search,
    "loss-gap": figures.losses,
    "apgd-t-gap": figures.apgd_t,
    "incomplete-optimisation": figures.incomplete,
    "silent-success": figures.silent,
    "unstable-loss": figures.unstable,
    "one-step": figures.one_step,
    "useless-gradient": figures.useless,
    "non-determinism": figures.varying,
    "probabilities": figures.probabilities,
}


@dataclass(frozen=True)
class AuditResult:
    """The checks in the order of `RULES`, and what they cost, counted in images."""

    checks: tuple[Check, ...]
    withstood: dict[str, float]
    """The share of all images that withstands each attack of the audit."""
    hopeless: str | None
    """Why nothing was attacked, such as that the net is at chance; None where something was."""
    forwards: int
    backwards: int
    notes: tuple[str, ...] = ()
    """What is to be known of its images."""

    @property
    def alarms(self) -> list[str]:
        """Names of the checks that tripped."""
        return [check.name for check in self.checks if check.alarm]


def audit(
    model: nn.Module,
    dataset: Dataset,
    *,
    eps: float,
    norm: str = "linf",
    seed: int = 0,
    transfer: EvaluationAttack | None = None,
    examples: Dataset | None = None,
    batch_size: int | None = None,
    team: Team | None = None,
    tick: Callable[[int], None] = lambda done: None,
) -> AuditResult:
    """Every check of `RULES` on all of `dataset`. Changes nothing in the model and no global generator.

    `transfer` makes examples on another net; without one a small net is trained to imitate this one on `examples`,
    training images if there are any, else on those under audit. `tick` is called with 1 after each check; `batch_size`
    images at most are computed at once; the processes of a `team` share the images, and all say the same. Only images
    that are classified correctly as they are attacked; shares are of all images where they are differences of
    accuracies. A net at chance is said to be, and nothing else is.
    """
    chosen = _FIGURES | {"transfer": partial(figures.transfer, attack=transfer, examples=examples)}
    with bench(model, dataset, eps=eps, norm=norm, seed=seed, batch_size=batch_size, team=team) as table:
        outcomes = []
        for name, rule in RULES.items():
            outcomes.append(rule.judge(table.answer(name, chosen[name])))
            tick(1)
        stood = {} if table.hopeless else table.withstood()
        edges = "" if table.hopeless else table.net.look_at_edges(table.x, table.y)
        notes = (*table.notes, *filter(None, [edges]))
        checks = tuple(told(outcomes, stood))
        return AuditResult(checks, stood, table.hopeless, table.net.forwards, table.net.backwards, notes)
