# The public names and where they live: type checkers read this file, and so does `advkit.__getattr__`.
from .api_version import API_VERSION as API_VERSION
from .ascent import (
    Ball as Ball,
    L2Ball as L2Ball,
    LinfBall as LinfBall,
    Observer as Observer,
    per_sample as per_sample,
)
from .by_hand import pgd as pgd
from .data.base import Dataset as Dataset, DataSource as DataSource, Splits as Splits
from .data.mapped import mapped_images as mapped_images
from .errors import (
    AdvkitError as AdvkitError,
    AmbiguousOrder as AmbiguousOrder,
    CheckpointError as CheckpointError,
    DataError as DataError,
    GateMissed as GateMissed,
    HookConflict as HookConflict,
    HookContract as HookContract,
    Interrupted as Interrupted,
    NonFinite as NonFinite,
    OptionError as OptionError,
    PluginImport as PluginImport,
    PluginLoad as PluginLoad,
    ResumeMismatch as ResumeMismatch,
    Stopped as Stopped,
    UnknownHook as UnknownHook,
)
from .evaluation.attacks.base import EvaluationAttack as EvaluationAttack, Victim as Victim
from .hookspec import Rule as Rule, hookimpl as hookimpl
from .losses import (
    kl_divergence as kl_divergence,
    margin as margin,
    soft_cross_entropy as soft_cross_entropy,
)
from .models.base import DataSpec as DataSpec, ModelBuilder as ModelBuilder, Normalize as Normalize
from .options import Place as Place, Real as Real, Schedule as Schedule, option as option
from .plugin import (
    Budgets as Budgets,
    Company as Company,
    Costs as Costs,
    Order as Order,
    Plugin as Plugin,
    PluginOptions as PluginOptions,
)
from .rng import Draws as Draws
from .run import Run as Run
from .settings import AttackSettings as AttackSettings
from .studies.ablation import ablate as ablate
from .studies.analysis.unevenness import Unevenness as Unevenness
from .studies.audit import audit as audit
from .studies.compare import compare as compare
from .studies.evaluate import evaluate as evaluate
from .studies.export import export as export
from .studies.paired_records import AblationRow as AblationRow, Comparison as Comparison
from .studies.plan import plan as plan
from .studies.records import AuditRecord as AuditRecord, Evaluation as Evaluation, ExportRecord as ExportRecord
from .studies.report import Page as Page, report as report
from .studies.runs import LoadedRun as LoadedRun, load_run as load_run
from .studies.sweep import sweep as sweep
from .substituted import call_at as call_at
from .training.launch import train as train
from .training.own_loop import Step as Step
from .training.parts import load_data as load_data, load_weights as load_weights
from .training.progress import Progress as Progress
from .training.result import TrainResult as TrainResult
from .training.step_report import Report as Report
from .training.tracking import Tracker as Tracker
from .types import (
    AttackResult as AttackResult,
    Batch as Batch,
    Budget as Budget,
    BudgetScale as BudgetScale,
    Mix as Mix,
    Objective as Objective,
    Passes as Passes,
)

__version__: str
