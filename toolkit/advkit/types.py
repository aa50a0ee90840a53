"""The values that flow down one step. All are frozen; B is the batch, K the number of classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import add

from torch import Tensor

Objective = Callable[[Tensor], Tensor]
"""From logits (B, K) to per-sample values (B,)."""


@dataclass(frozen=True)
class Mix:
    """How two images were mixed: `partner` (B,) positions in the batch, `ratio` (B,) share of the own image."""

    partner: Tensor
    ratio: Tensor


@dataclass(frozen=True)
class Batch:
    """Images x (B, C, H, W) in [0, 1], hard labels y (B,), stable dataset index (B,).

    `occurrence` (B,) counts how often an index came before in this epoch; 0 without replacement.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    occurrence: Tensor
    mix: Mix | None = None


@dataclass(frozen=True)
class Budget:
    """Per-sample perturbation budgets, each (B,), in pixels in [0, 1].

    `attack` bounds the attack; `label` is what soft labels depend on. `step_size` and `steps` (int64) are None
    where the run's settings hold.
    """

    attack: Tensor
    label: Tensor
    step_size: Tensor | None = None
    steps: Tensor | None = None


@dataclass(frozen=True)
class BudgetScale:
    """Factors () or (B,) on the attack's radius and on its step size."""

    radius: Tensor | float = 1.0
    step_size: Tensor | float = 1.0


@dataclass(frozen=True)
class AttackResult:
    """What an attack returns: x_adv, detached, and any `traces` (B, ...) for later hooks.

    advkit's own attack also reports the moves it made per sample, `steps` (B,); whether every input gradient was
    finite, `finite` (); how many iterates had no gradient at all, `zero_gradients` (B,); and the restart that each
    sample keeps of several, `restart` (B,). `start` (B, C, H, W) is where it began, which `update.clean=start` needs.
    Whether it succeeded is not its word: the core judges that at the final iterate, where somebody demands `success`.
    """

    x_adv: Tensor
    traces: Mapping[str, Tensor] = field(default_factory=dict)
    steps: Tensor | None = None
    finite: Tensor | None = None
    zero_gradients: Tensor | None = None
    start: Tensor | None = None
    restart: Tensor | None = None


@dataclass(frozen=True)
class Passes:
    """Passes through the model. A full backward is one forward's graph traversed to the parameters.

    Auxiliary ones are of a net beside the model (`run.module`), of whatever size: `cost` leaves them out.
    """

    forward: int = 0
    input_backward: int = 0
    full_backward: int = 0
    auxiliary_forward: int = 0
    auxiliary_backward: int = 0

    def __add__(self, other: Passes) -> Passes:
        return Passes(*map(add, vars(self).values(), vars(other).values()))

    def __mul__(self, times: int) -> Passes:
        return Passes(*(count * times for count in vars(self).values()))

    def as_dict(self) -> dict[str, int]:
        """Without the kinds that do not occur, except forwards."""
        return {kind: count for kind, count in vars(self).items() if count or kind == "forward"}

    @property
    def cost(self) -> int:
        """In forwards: an input backward counts 1, a full backward 2."""
        return self.forward + self.input_backward + 2 * self.full_backward
