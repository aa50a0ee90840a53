"""advkit: adversarial training as composition.

Everything public is importable from here; torch is imported only when something that needs it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .analysis.unevenness import Unevenness
    from .attack import Ball, L2Ball, LinfBall, pgd
    from .attacks.base import EvaluationAttack, Victim
    from .compose import Composition
    from .data.base import Dataset, DataSource, Splits
    from .errors import AdvkitError, DataError, HookContract, NonFinite, OptionError
    from .evaluation import evaluate
    from .hookspec import Rule, hookimpl
    from .models.base import DataSpec, ModelBuilder, Normalize
    from .objective import kl_divergence, soft_cross_entropy
    from .options import Options, Real, Schedule, option
    from .options import Options as PluginOptions
    from .plugin import Budgets, Costs, Order, Plugin
    from .report import Report
    from .rng import Draws
    from .run import Run
    from .runs import load_data, load_weights, train
    from .step import Step
    from .types import AttackResult, Batch, Budget, BudgetScale, Mix, Passes

_HOME = {
    "analysis.unevenness": ("Unevenness",),
    "attack": ("Ball", "L2Ball", "LinfBall", "pgd"),
    "attacks.base": ("EvaluationAttack", "Victim"),
    "compose": ("Composition",),
    "data.base": ("DataSource", "Dataset", "Splits"),
    "errors": ("AdvkitError", "DataError", "HookContract", "NonFinite", "OptionError"),
    "evaluation": ("evaluate",),
    "hookspec": ("Rule", "hookimpl"),
    "models.base": ("DataSpec", "ModelBuilder", "Normalize"),
    "objective": ("kl_divergence", "soft_cross_entropy"),
    "options": ("Options", "Real", "Schedule", "option"),
    "plugin": ("Budgets", "Costs", "Order", "Plugin"),
    "rng": ("Draws",),
    "run": ("Run",),
    "report": ("Report",),
    "step": ("Step",),
    "runs": ("load_data", "load_weights", "train"),
    "types": ("AttackResult", "Batch", "Budget", "BudgetScale", "Mix", "Passes"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names} | {"PluginOptions": "options"}

__all__ = [
    "AdvkitError",
    "AttackResult",
    "Ball",
    "Batch",
    "Budget",
    "BudgetScale",
    "Budgets",
    "Composition",
    "Costs",
    "DataError",
    "DataSource",
    "DataSpec",
    "Dataset",
    "Draws",
    "EvaluationAttack",
    "HookContract",
    "L2Ball",
    "LinfBall",
    "Mix",
    "ModelBuilder",
    "NonFinite",
    "Normalize",
    "OptionError",
    "Options",
    "Order",
    "Passes",
    "Plugin",
    "PluginOptions",
    "Real",
    "Report",
    "Rule",
    "Run",
    "Schedule",
    "Splits",
    "Step",
    "Unevenness",
    "Victim",
    "evaluate",
    "hookimpl",
    "kl_divergence",
    "load_data",
    "load_weights",
    "option",
    "pgd",
    "soft_cross_entropy",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'advkit' has no attribute {name!r}")
    found = getattr(import_module(f".{_MODULE[name]}", __name__), "Options" if name == "PluginOptions" else name)
    globals()[name] = found  # a submodule of the same name must not come back in its place
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
