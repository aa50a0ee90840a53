"""What a plugin may ask of the model within a hook: an attack for what it tells, and logits."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from .errors import HookContract
from .types import AttackResult, Batch, Objective


class Probing(Protocol):
    """What runs the model; `plugin` is who asks."""

    def attack(self, plugin: str, *what: Any, **how: Any) -> AttackResult: ...

    def logits(self, plugin: str, x: Tensor) -> Tensor: ...


class Prober:
    """The part of a `Run` that asks: in hooks of the attack phase, whose plugin declares the passes; `epoch_end`."""

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

    def _asked(self) -> Probing:
        probing: Probing | None = self._state.probing
        if probing is None:
            raise HookContract(
                f"Plugin {self._plugin} probes the model where no probe is booked; call run.probe and run.logits in "
                "hooks of the attack phase or in epoch_end."
            )
        return probing
