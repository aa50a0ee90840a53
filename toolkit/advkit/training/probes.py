"""What plugins ask of the model within a hook, `run.probe` and `run.logits`: run in the attack's mode, and booked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arguments import a_whole_number
from ..ascent import NORMS, Ball, BoxFirstL2Ball, Init, pgd, start
from ..errors import HookContract, NonFinite
from ..generators import generators, put_back
from ..losses import soft_cross_entropy
from ..modules import frozen, mode, own_generator
from ..rng import Draws, derive_key
from ..run import RunState
from ..settings import AttackSettings
from ..types import AttackResult, Batch, Objective
from .accumulate import joined
from .auxiliary import auxiliary_logits
from .by_row import Rows, a_goal
from .ledger import Ledger
from .network import Network
from .pieces import pieces
from .values import ATTACK, REMEDY, Values

if TYPE_CHECKING:
    from .step import TrainingStep

T = TypeVar("T")


def ball_of(settings: AttackSettings, x: Tensor, radius: Tensor) -> Ball:
    """The points that an attack on x (B, C, H, W) within `radius` (B,) may reach."""
    return (BoxFirstL2Ball if settings.l2_projection == "box-ball" else NORMS[settings.norm])(x, radius)


@dataclass(frozen=True)
class Probes:
    """The services of one attack phase, or of the end of an epoch, where nothing `moves` BatchNorm's statistics."""

    state: RunState
    network: Network
    moves: bool
    parts: int = 1
    """In how many what is asked is computed, where the model is in eval mode: elsewhere BatchNorm takes its statistics
    of all."""
    between: bool = False
    """Whether they belong to no step: nobody waits there, so what is in them is looked at every time."""
    finite: list[Tensor] = field(default_factory=list)
    """Of each probe, () bool: whether all its input gradients were numbers."""

    def attack(
        self,
        plugin: str,
        batch: Batch,
        radius: Tensor | float,
        *,
        objective: Objective | None,
        steps: int | None,
        step_size: Tensor | float | None,
        init: str | None,
        purpose: str,
    ) -> AttackResult:
        """`Run.probe`, for `plugin`."""
        settings = self.state.attack
        count = settings.steps if steps is None else a_whole_number(f"Plugin {plugin}: steps", steps, 0, 9999)
        begin: Any = settings.init if init is None else init
        rows = Rows(batch, self.between or self.network.careful or batch.x.is_cpu)  # elsewhere a check waits
        rows.box(plugin, "run.probe")
        rows.labels(plugin, "run.probe", self.state.num_classes)
        length = rows.asked(plugin, "run.probe", "radius", radius)
        size = rows.asked(plugin, "run.probe", "step_size", settings.step_size if step_size is None else step_size)
        goal = None if objective is None else a_goal(plugin, "the objective of run.probe", objective)
        seen = self.network.ledger.values
        seen.answer(plugin, "run.probe", length, size)
        if begin not in get_args(Init):
            known = ", ".join(get_args(Init))
            raise HookContract(f"Plugin {plugin}: init of run.probe must be one of {known}, not {begin!r:.40}.")
        key = derive_key(self.state.seed, plugin, purpose, "probe", self.state.epoch)
        noted = goal and seen.objective(plugin, "objective of run.probe", goal)

        def climbed(network: Network, x: Tensor, y: Tensor, length: Tensor, size: Tensor, *ids: Tensor) -> AttackResult:
            ball, target = ball_of(settings, x, length), F.one_hot(y, self.state.num_classes).to(length.dtype)
            return pgd(
                network.attacked(plugin, self.moves, f"{purpose} of {plugin}"),
                ball,
                start(ball, begin, lambda: Draws(key, *ids)),
                noted or (lambda logits: soft_cross_entropy(logits, target)),
                steps=count,
                step_size=size,
            )

        rows_of = batch.x, batch.y, length, size, batch.index, batch.occurrence
        parts = 1 if goal else self._parts  # an objective is of the whole batch
        with frozen(self.network.model):
            result: AttackResult = self._ran(
                lambda: joined([climbed(at, *part) for at, part in pieces(self.network, parts, len(batch.y), *rows_of)])
            )
        if result.finite is not None:
            self.finite.append(result.finite)
            seen.add(ATTACK, result.finite)
        if self.between and not bool(result.finite):
            raise NonFinite(
                f"NaN or Inf in an input gradient of run.probe of {plugin}, after epoch "
                f"{self.state.epoch + self.state.first}; {REMEDY}."
            )
        return result

    def logits(self, plugin: str, x: Tensor) -> Tensor:
        """`Run.logits`, for `plugin`."""
        parts = pieces(self.network, self._parts, len(x), x)
        return self._ran(lambda: torch.cat([at.judge(f"logits of {plugin}", [plugin], *part) for at, part in parts]))

    def auxiliary(self, plugin: str, name: str, x: Tensor) -> Tensor:
        """A net of `Run.module`, for `plugin`."""
        return auxiliary_logits(self.state, self.network, self.network.phase, plugin, name, x, self.parts)

    @property
    def _parts(self) -> int:
        return self.parts if self.state.attack.mode == "eval" else 1

    def _ran(self, call: Callable[[], T]) -> T:
        """In the attack's mode. What the net draws is not the plugin's: the core seeds it anew for every forward."""
        before = generators()
        try:
            with mode(self.network.model, training=self.state.attack.mode != "eval"), torch.no_grad():
                return call()
        finally:
            put_back(before)

    def joined(self, attack: AttackResult) -> AttackResult:
        """The attack, whose gradients were finite where those of all probes were, too."""
        if not self.finite or attack.finite is None:
            return attack
        return replace(attack, finite=torch.stack([attack.finite, *self.finite]).all())


@contextmanager
def opened(state: RunState, network: Network, moves: bool, parts: int = 1, between: bool = False) -> Iterator[Probes]:
    """The scope in which plugins may probe."""
    probes = Probes(state, network, moves, parts, between)
    with answering(state, probes):
        yield probes


@contextmanager
def answering(state: RunState, probes: Probes) -> Iterator[None]:
    """The scope in which `probes` answer."""
    state.probing = probes
    try:
        yield
    finally:
        state.probing = None


@contextmanager
def between_steps(step: TrainingStep) -> Iterator[None]:
    """The scope of probes that belong to no step, at the end of an epoch: they move nothing, and no ledger has them."""
    state = step.state
    with own_generator(state.device) as seed, step.engine.numbers():
        ledger = Ledger(values=Values(kept=False))  # they may be of all images
        network = Network(
            step.model, step.engine, ledger, lambda label: seed(step.seed_of(label)), state.num_classes, careful=False
        )
        # Every process computes the whole of what is asked.
        with opened(state, network, moves=False, parts=step.accumulate * step.ranks.size, between=True):
            yield
