"""The checks: above which figure each raises the alarm, and what it then says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite

from ...by_key import ByKey
from ..figure import Figure, above, least
from ..results import SUSPECT_GAP

FEWEST = 10
"""Images that the mean of a figure needs."""
UNASKED = "Not checked: "
"""Before the reason why a check has no figure."""


@dataclass(frozen=True)
class Check(ByKey):
    """One check's outcome. `alarm` is None where it could not be run; then `sentence` says why."""

    name: str
    figure: float | None
    threshold: float
    alarm: bool | None
    sentence: str
    interval: tuple[float, float] | None = None
    """95 %, over images."""
    count: int | None = None
    """Images behind a share; None where the figure is a mean."""
    of: int | None = None
    """Images that were looked at."""
    alarm_from: int | None = None
    """The fewest of them that raise the alarm; None where the figure is no share, or so few images can raise none."""

    @property
    def images(self) -> str:
        """Of how many images the figure is, and how many of them are behind it; "" where nobody looked."""
        return "" if self.of is None else f"{self.of}" if self.count is None else f"{self.count} of {self.of}"

    @property
    def bound(self) -> str:
        """What raises the alarm: a figure, or a number of images."""
        return f"above {self.threshold:g}" if self.alarm_from is None else f"from {self.alarm_from}"

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Rule:
    """A check before it is run: the alarm is raised where the whole interval is above `threshold`."""

    name: str
    threshold: float
    fact: str
    """With {0} for the figure."""
    meaning: str
    """What an alarm says."""

    def judge(self, figure: Figure | str) -> Check:
        """The outcome for a figure, or for the reason why there is none."""
        if isinstance(figure, Figure):
            if not (isfinite(figure.value) and isfinite(figure.low)):
                figure = "the net's outputs are not finite"
            elif figure.count is None and figure.of < FEWEST:
                figure = f"of {figure.of} images no mean can be judged; {FEWEST} are needed"
        if isinstance(figure, str):
            return Check(self.name, None, self.threshold, None, f"{UNASKED}{figure}.")
        alarm = above(figure, self.threshold)
        sentence = self.fact.format(figure.value) + (f": {self.meaning}." if alarm else ".")
        ends = figure.low, figure.high
        fewest = None if figure.count is None or figure.paired else least(self.threshold, figure.of)
        return Check(self.name, figure.value, self.threshold, alarm, sentence, ends, figure.count, figure.of, fewest)


_RULES = (
    Rule(
        "zero-gradient",
        0.02,
        "{0:.1%} of the attacked images met an input gradient that is zero or not finite",
        "gradient attacks stand still there, and no figure of theirs means anything",
    ),
    Rule(
        "false-gradient",
        0.02,
        "On {0:.1%} of the images differences of the outputs do not fit the gradient",
        "the net reports another function's gradient, so gradient attacks follow it astray",
    ),
    Rule(
        "grad-mode",
        0.02,
        "On {0:.1%} of the images logits differ with and without gradients",
        "the net that is attacked is not the net that is used",
    ),
    Rule(
        "batch",
        0.02,
        "On {0:.1%} of the images logits depend on the other images of the batch",
        "its accuracies depend on which images share a batch",
    ),
    Rule(
        "steps-accuracy",
        0.02,
        "With more steps of PGD the accuracy rises by at most {0:.3f}",
        "more steps must never help the net",
    ),
    Rule(
        "steps-loss",
        0.05,
        "With more steps of PGD the mean loss falls by at most {0:.1%} of its range",
        "the attack does not climb",
    ),
    Rule(
        "eps-accuracy",
        0.02,
        "With a larger eps the accuracy rises by at most {0:.3f}",
        "a larger ball holds the smaller one, so this is the attack's failure",
    ),
    Rule(
        "eps-loss",
        0.05,
        "With a larger eps the mean loss falls by at most {0:.1%} of its range",
        "the attack does not climb",
    ),
    Rule(
        "large-eps",
        0.02,
        "With the whole box as the ball the accuracy is {0:.3f}",
        "no net can withstand that, so the attack fails",
    ),
    Rule(
        "restarts",
        0.04,
        "Random restarts of PGD break {0:.1%} of all images more",
        "where PGD ends depends on where it began; one start says little",
    ),
    Rule(
        "black-box",
        0.01,
        "Square, which sees no gradient, breaks {0:.1%} of all images although PGD on neither loss did",
        "gradients do not lead to the adversarial examples that exist",
    ),
    Rule(
        "random-search",
        0.01,
        "Random points of the ball break {0:.1%} of all images although PGD on neither loss did",
        "gradients do not lead to the adversarial examples that exist",
    ),
    Rule(
        "transfer",
        0.01,
        "Examples made on another net break {0:.1%} of all images although PGD on this one does on neither loss",
        "this net's gradients hide adversarial examples that exist",
    ),
    Rule(
        "loss-gap",
        SUSPECT_GAP,
        "Accuracies under PGD on cross-entropy and on the margin differ by {0:.3f}",
        "on one of the two losses PGD misses what it finds on the other; believe the lower figure at most",
    ),
    Rule(
        "apgd-t-gap",
        0.12,
        "APGD-T breaks {0:.1%} of all images although PGD did not",
        "PGD's accuracy is too high; report AutoAttack's",
    ),
    Rule(
        "incomplete-optimisation",
        0.05,
        "The last ten of fifty steps bring {0:.1%} of the loss that PGD gains",
        "PGD was still climbing; give it more steps",
    ),
    Rule(
        "silent-success",
        0.01,
        "On {0:.1%} of all images PGD passed an adversarial example and ended at none",
        "its accuracy counts them as withstood",
    ),
    Rule(
        "unstable-loss",
        0.35,
        "Around the end of PGD the loss changes by {0:.1%} on average",
        "its gradient describes a point and not its neighbourhood",
    ),
    Rule(
        "one-step",
        0.01,
        "One step of eps breaks {0:.1%} of all images although many steps do not",
        "many steps must do at least as well",
    ),
    Rule(
        "useless-gradient",
        0.1,
        "On {0:.1%} of the attacked images one of eight random steps does more than the gradient's",
        "the gradient does not point to where the net is weak",
    ),
    Rule(
        "non-determinism",
        0.02,
        "On {0:.1%} of the images two forwards differ",
        "the net draws in eval mode; average its gradients (EOT) before believing any attack",
    ),
    Rule(
        "probabilities",
        0.5,
        "{0:.1%} of the outputs are probabilities",
        "losses expect logits; take the softmax or the sigmoid off",
    ),
)
RULES = {rule.name: rule for rule in _RULES}
"""By name, in the order of the report."""


def hopeless(checks: Sequence[Check]) -> str | None:
    """Why a net was not attacked; None where it was, or nothing was checked. Any image has its gradient looked at."""
    asked = next((one for one in checks if one.name == "zero-gradient"), None)
    return None if asked is None or asked.alarm is not None else asked.sentence.removeprefix(UNASKED).rstrip(".")


def told(outcomes: Sequence[Check], withstood: Mapping[str, float]) -> list[Check]:
    """Every alarm with the attack that leaves the fewest images standing, of shares that withstand by attack."""
    if not withstood:
        return list(outcomes)
    attack = min(withstood, key=lambda name: withstood[name])
    by = f" Of the attacks tried {attack} breaks the net most, {withstood[attack]:.3f} withstand."
    return [replace(one, sentence=one.sentence + by) if one.alarm else one for one in outcomes]
