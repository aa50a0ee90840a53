"""What a method is: a class with options, and methods marked `@hookimpl`. It declares no hook methods itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from .errors import OptionError
from .options import OptionModel
from .settings import AttackSettings
from .types import Passes

CORE = "core"
"""Who owns what no plugin answers."""


@dataclass(frozen=True)
class Order:
    """Which plugins come later (`before` them) and earlier (`after` them) on a chained hook."""

    before: frozenset[str] = frozenset()
    after: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Costs:
    """What a plugin's own passes are made of: the attack's steps, one `gradient_at` call by its loss, the epoch."""

    steps: int
    adv_ce: Passes
    objective: Passes
    epoch: int = 0


@dataclass(frozen=True)
class Budgets:
    """Upper bounds of `Budget.attack` and `Budget.label`, in pixels in [0, 1]."""

    attack: float
    label: float


@dataclass(frozen=True)
class Company:
    """The plugins and the facts of a run, as `Plugin.join` and `Run.company` tell a plugin. Nothing here changes."""

    answering: Mapping[str, tuple[str, ...]]
    """Plugins by hook, in the order in which they answer."""
    attack: AttackSettings
    epochs: int
    """`run.epochs`; 20 in a Step whose settings do not say it, where `epochs_known` is false."""
    attacks_from_x: bool
    """Whether in some epoch the attack begins at x itself, where distances to the clean output are flat."""
    _largest_budget: Callable[[], Budgets] = field(repr=False)
    _loss_views: Callable[[str], frozenset[str]] = field(repr=False)
    epochs_known: bool = True
    """Whether anybody has said how long the run is, so that cautions may be of its length, and shares of it known."""
    parts: int = 1  # `run.accumulate`, in which a batch is computed

    @property
    def largest_budget(self) -> Budgets:
        """The largest budgets that any sample can get."""
        return self._largest_budget()

    def loss_views(self, plugin: str) -> frozenset[str]:
        """The logits that the plugin's loss terms, weights and logs demand in any epoch."""
        return self._loss_views(plugin)

    def share_of_run(self, option: str, share: float) -> float:
        """As many epochs as the share of the run that an option says; OptionError in a Step that knows no length."""
        if share and not self.epochs_known:
            raise OptionError(
                f"{option} is a share of the run, and a Step is not told how long your loop is; pass "
                'settings={"run.epochs": N}.'
            )
        return share * self.epochs

    def owner(self, hook: str) -> str:
        """Who owns an exclusive hook, "core" where no plugin does."""
        return next(iter(self.answering[hook]), CORE)

    def owners(self, hook: str) -> tuple[str, ...]:
        """All who answer a hook, in order."""
        return self.answering[hook]

    @property
    def terms(self) -> tuple[str, ...]:
        """The loss terms, in the order they are added: "base_loss" and the plugins that add one."""
        return ("base_loss", *self.answering["extra_regularizer"])


class PluginOptions(OptionModel):
    """Base of a plugin's options: `class Options(PluginOptions)` in the plugin's class."""


class Plugin:
    """Base of all plugins. Class attributes are declarations; instances hold validated options.

    The first line of the subclass's docstring is its summary in `advkit plugins list`.
    """

    name: ClassVar[str]
    """Kebab-case, equal to the entry point's name."""

    api_version: ClassVar[str] = ""
    """The `advkit.API_VERSION` that it is written for; "": it does not say."""

    class Options(PluginOptions):
        """None by default."""

    prefers: ClassVar[Mapping[str, object]] = {}
    """Settings the method is defined with, such as {"attack.init": "normal"}. Only owners of
    perturbation_budget, attack_objective, inner_attack, attack_start or base_loss may state any."""

    companions: ClassVar[Mapping[str, tuple[str, Mapping[str, object]]]] = {}
    """Who shall answer a hook ("weight_perturbation", "instance_weight:TERM") if no chosen plugin does, and with
    which options: {"weight_perturbation": ("awp", {"gamma": 0.007})}."""

    order: ClassVar[Mapping[str, Order]] = {}
    """Places on chained hooks, by hook."""

    replaces: ClassVar[Mapping[str, Collection[str]]] = {}
    """Settings that an answer stands in for, by hook, such as {"perturbation_budget": ("attack.step_size",)}: whoever
    gives one is told that it plays no part."""

    def __init__(self, options: PluginOptions) -> None:
        self.options: PluginOptions = options
        self.taken = False
        """Whether the object is part of a run: it holds that run's state, and can not be in a second one."""

    @property
    def terms(self) -> tuple[str, ...]:
        """The loss terms that `instance_weight` weighs: "base_loss" or names of plugins that add one."""
        return ()

    @property
    def steps_at_shift(self) -> bool:
        """For an owner of `weight_perturbation`: whether the optimizer steps at theta+v, v being taken off after."""
        return False

    @property
    def by_sample(self) -> bool:
        """Whether answers on a part of a batch are that part of those on the whole: what `run.accumulate` needs.

        All parts are attacked before the first is updated, so nothing is kept of a batch from one to the other.
        """
        return False

    def active(self, hook: str, epoch: int) -> bool:
        """Whether the plugin answers `hook` in `epoch`. An inactive answer demands nothing."""
        return True

    def demands(self, hook: str, epoch: int) -> Collection[str] | None:
        """Which of the demanding arguments it lists the method needs under its options; None: all.

        Those left out arrive as None.
        """
        return None

    def detached(self, hook: str, epoch: int) -> Collection[str]:
        """Which of the logits it demands the method takes without gradient; the core detaches them."""
        return ()

    def passes(self, hook: str, costs: Costs) -> Passes:
        """Passes that the hook runs by itself, through `gradient_at`, the attacked `model`, or a service of `run`."""
        return Passes()

    def every(self, hook: str) -> int:
        """For `observe_update`: asked at the first step of an epoch and at every so many after it."""
        return 1

    def largest_budget(self, eps: float) -> Budgets:
        """The largest budgets that `perturbation_budget` can return, for plans and checks."""
        return Budgets(attack=eps, label=eps)

    def largest_scale(self, attack: AttackSettings) -> float:
        """The largest factor that `budget_scale` can put on the radius; above 1 the attack leaves the budget."""
        return 1.0

    def join(self, company: Company) -> Sequence[str]:
        """Called once, when it is known who else is there: settle what an option leaves to the company.

        Returns cautions, sentences on what this combination means. May raise OptionError to refuse it.
        """
        return ()
