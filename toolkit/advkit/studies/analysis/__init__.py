"""Analyses of one model, sample by sample: functions that take a module and a data set and return figures and arrays.

`advkit analyze` calls them; a notebook can, too. Nothing here changes the model or draws a picture unasked; the
pictures are in `advkit.studies.analysis.pictures`, which needs matplotlib.
"""

from __future__ import annotations

from .budget import SampleBudgets, sample_budgets
from .landscape import Landscape, loss_landscape
from .margin import Margins, margins
from .of_run import Study
from .perturb import Ascent
from .unevenness import Unevenness
from .vulnerability import Vulnerability, adversarial_vulnerability

__all__ = [
    "Ascent",
    "Landscape",
    "Margins",
    "SampleBudgets",
    "Study",
    "Unevenness",
    "Vulnerability",
    "adversarial_vulnerability",
    "loss_landscape",
    "margins",
    "sample_budgets",
]
