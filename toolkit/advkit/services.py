"""What a plugin may ask of the run within a hook: an attack for what it tells, logits, gradients, and the end."""

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


class Viewing(Protocol):
    """What looks at the net for a loss term; `plugin` is who asks."""

    def forward(self, plugin: str, x: Tensor, gradient: bool) -> Tensor: ...

    def input_gradient(self, plugin: str, x: Tensor, loss: Objective, create_graph: bool) -> Tensor: ...


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

    def forward(self, x: Tensor, *, gradient: bool = True) -> Tensor:
        """f(x; theta+v), (B, K), in train mode, for a loss term; BatchNorm's statistics stay.

        With `gradient` it flows to the weights.
        """
        return self._viewing().forward(self._plugin, x, gradient)

    def input_gradient(self, x: Tensor, loss: Objective, *, create_graph: bool = False) -> Tensor:
        """The gradient by x, (B, C, H, W), of the sum of `loss` (B,) of f(x; theta+v), in train mode, for a loss term.

        With `create_graph` the loss term's own gradient flows through it to the weights, which needs second derivatives
        of the net.
        """
        return self._viewing().input_gradient(self._plugin, x, loss, create_graph)

    def stop(self, reason: str, *, keep: bool = True) -> None:
        """End the run with this epoch, in `epoch_end`, for a reason of one sentence.

        Unless `keep`, the epoch is never the best: `best` is the epoch that it was before. The first who stops is told.
        """
        self._state.ending = self._state.ending or Ending(self._plugin, str(reason), keep)

    def _viewing(self) -> Viewing:
        viewing: Viewing | None = self._state.viewing
        if viewing is None:
            raise HookContract(
                f"Plugin {self._plugin} looks at the net where no view is booked; call run.forward and "
                "run.input_gradient in base_loss or extra_regularizer."
            )
        return viewing

    def _asked(self) -> Probing:
        probing: Probing | None = self._state.probing
        if probing is None:
            raise HookContract(
                f"Plugin {self._plugin} probes the model where no probe is booked; call run.probe and run.logits in "
                "hooks of the attack phase or in epoch_end."
            )
        return probing
