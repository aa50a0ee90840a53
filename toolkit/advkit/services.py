"""What a plugin may ask of the run within a hook: an attack for what it tells, logits, and the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from .errors import HookContract
from .types import AttackResult, Batch, Objective


class Probing(Protocol):
    """What runs the model; `plugin` is who asks."""

    def attack(self, plugin: str, *what: Any, **how: Any) -> AttackResult: ...

    def logits(self, plugin: str, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Ending:
    """That a run ends with this epoch: who says so and why, and whether the epoch may be the `best` one."""

    plugin: str
    reason: str
    keep: bool


class Services:
    """The part of a `Run` that asks. Probes run in hooks of the attack phase, as declared, and in `epoch_end`."""

    _plugin: str
    _state: Any

    def probe(
        self,
        batch: Batch,
        radius: Tensor,
        *,
        objective: Objective | None = None,
        steps: int | None = None,
        step_size: Tensor | float | None = None,
        init: str | None = None,
        purpose: str = "probe",
    ) -> AttackResult:
        """Attack `batch` within `radius` (B,) as the core does, at theta and in the attack's mode; nobody observes it.

        What is left out is by the run's settings; the objective is the cross-entropy with y. `purpose` keeps random
        starts apart.
        """
        return self._asked().attack(
            self._plugin,
            batch,
            radius,
            objective=objective,
            steps=steps,
            step_size=step_size,
            init=init,
            purpose=purpose,
        )

    def logits(self, x: Tensor) -> Tensor:
        """f(x; theta), (B, K), in the attack's mode, without gradient; BatchNorm's statistics stay."""
        return self._asked().logits(self._plugin, x)

    def stop(self, reason: str, *, keep: bool = True) -> None:
        """End the run with this epoch, in `epoch_end`, for a reason of one sentence.

        Unless `keep`, the epoch is never the best: `best` is the epoch that it was before. The first who stops is told.
        """
        self._state.ending = self._state.ending or Ending(self._plugin, str(reason), keep)

    def _asked(self) -> Probing:
        probing: Probing | None = self._state.probing
        if probing is None:
            raise HookContract(
                f"Plugin {self._plugin} probes the model where no probe is booked; call run.probe and run.logits in "
                "hooks of the attack phase or in epoch_end."
            )
        return probing
