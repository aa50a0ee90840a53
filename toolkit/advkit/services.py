"""What a plugin may ask of the run: an attack for what it tells, logits, gradients, nets beside the model, the end."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, overload

import torch
from torch import Tensor, nn

from .arguments import a_name, a_whole_batch, images
from .claims import claim
from .errors import HookContract, OptionError
from .escapes import one_line
from .types import AttackResult, Batch, Objective

Build = Callable[[nn.Module], nn.Module]
"""What makes a net that is trained beside the model, from a copy of the model as it begins."""

SHA256 = ".sha256"
"""What the name of the state ends in that tells one net beside the model from another."""


class Probing(Protocol):
    """What runs the model; `plugin` is who asks."""

    def attack(self, plugin: str, *what: Any, **how: Any) -> AttackResult: ...

    def logits(self, plugin: str, x: Tensor) -> Tensor: ...

    def auxiliary(self, plugin: str, name: str, x: Tensor) -> Tensor: ...


class Viewing(Protocol):
    """What looks at the net for a loss term; `plugin` is who asks."""

    def forward(self, plugin: str, x: Tensor, gradient: bool, statistics: bool) -> Tensor: ...

    def input_gradient(self, plugin: str, x: Tensor, loss: Objective, create_graph: bool) -> Tensor: ...

    def auxiliary(self, plugin: str, name: str, x: Tensor) -> Tensor: ...


class Trying(Protocol):
    """What serves `observe_update`; `plugin` is who asks."""

    def ahead(self, plugin: str) -> AbstractContextManager[None]: ...

    def learn(self, plugin: str, name: str, x: Tensor, loss: Callable[..., Tensor], rows: Sequence[Tensor]) -> None: ...


class Auxiliary(Protocol):
    """A net beside the model."""

    @property
    def source(self) -> str:
        """Whence it came, for people."""


class Frozen(Auxiliary, Protocol):
    """One that is never trained."""

    @property
    def sha256(self) -> str:
        """Of its weights as they were read."""


class Learning(Auxiliary, Protocol):
    """One that is trained."""

    @property
    def store(self) -> Mapping[str, Tensor]:
        """All of it that a checkpoint holds."""

    @property
    def values(self) -> Mapping[str, Tensor]:
        """Parameters and buffers."""


class Building(Protocol):
    """What makes nets beside the model; `name` is PLUGIN/NAME."""

    @property
    def notes(self) -> list[str]:
        """What results of the weights of these nets have to say."""

    def __call__(self, name: str, source: str | Path | nn.Module, model: str) -> Frozen: ...

    def trained(self, name: str, build: Build, optimizer: Mapping[str, object]) -> Learning: ...

    def refuse_left_out(self, computing: Container[object]) -> None: ...


class NoNet(Exception):
    """What `setup` asks depends on the model, which a plan has not."""


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
        radius: Tensor | float,
        *,
        objective: Objective | None = None,
        steps: int | None = None,
        step_size: Tensor | float | None = None,
        init: str | None = None,
        purpose: str = "probe",
    ) -> AttackResult:
        """Attack `batch` within `radius` (B,) as the core does, at theta and in the attack's mode; nobody observes it.

        What is left out is by the run's settings; the objective is the cross-entropy with y. `purpose` keeps random
        starts apart. A number as radius or step size is that of every sample.
        """
        return self._asked().attack(
            self._plugin,
            a_whole_batch(self._plugin, "run.probe", batch, self._state.dtype),
            radius,
            objective=objective,
            steps=steps,
            step_size=step_size,
            init=init,
            purpose=purpose,
        )

    def logits(self, x: Tensor) -> Tensor:
        """f(x; theta), (B, K), in the attack's mode, without gradient; BatchNorm's statistics stay."""
        return self._asked().logits(self._plugin, self._images("run.logits", x))

    def forward(self, x: Tensor, *, gradient: bool = True, statistics: bool = False) -> Tensor:
        """f(x; theta+v), (B, K), in train mode, for a loss term.

        With `gradient` it flows to the weights. BatchNorm's statistics stay, or with `statistics` they move where the
        loss is computed that is minimised, after those of the core's forwards.
        """
        return self._viewing().forward(self._plugin, self._images("run.forward", x), gradient, statistics)

    def input_gradient(self, x: Tensor, loss: Objective, *, create_graph: bool = False) -> Tensor:
        """The gradient by x, (B, C, H, W), of the sum of `loss` (B,) of f(x; theta+v), in train mode, for a loss term.

        With `create_graph` the loss term's own gradient flows through it to the weights, which needs second derivatives
        of the net.
        """
        own = self._images("run.input_gradient", x)
        return self._viewing().input_gradient(self._plugin, own, loss, create_graph)

    def ahead(self) -> AbstractContextManager[None]:
        """A scope, in `observe_update`, in which run.probe and run.logits are at theta - lr g: a trial step.

        g is the gradient of the step's loss, scaled down to optimizer.clip_norm where that is set; lr is the
        optimizer's rate. Momentum, weight decay and what a loop of one's own does to gradients are left out. Of several
        processes each runs its share of the batch, and all get the whole.
        """
        return self._trial("looks a step ahead").ahead(self._plugin)

    @overload
    def module(self, name: str, source: str | Path | nn.Module, *, model: str = "") -> Beside: ...

    @overload
    def module(self, name: str, source: Build, *, optimizer: Mapping[str, object]) -> Trained: ...

    def module(
        self,
        name: str,
        source: str | Path | nn.Module | Build,
        *,
        model: str = "",
        optimizer: Mapping[str, object] | None = None,
    ) -> Beside:
        """A net beside the model: called with images it gives what it makes of them, in eval mode, without gradient.

        Claim it in `setup`. It is on the run's device and in the model's type.

        Without an `optimizer` it is frozen, such as a teacher, and gives logits (B, K). `source` is the folder of a
        run, whose weights are those that `advkit evaluate` judges; a file of weights, of the registered net `model`, or
        where that is "" of one such as the run's own; or a module, of which a copy is taken. A checkpoint holds the
        SHA-256 of its weights: a resume with others is refused, one from another place is not.

        With an `optimizer`, settings `optimizer.*` by name, constant in `lr` unless they say more, it is trained:
        `source` builds it from a copy of the model as it begins, and what it draws is seeded by the run. It learns in
        `observe_update`, and is updated at the end of the hook on the gradient of all processes. A checkpoint holds its
        weights, its buffers and what its optimizer keeps.

        Call it in hooks of the attack phase, in base_loss or extra_regularizer, or in epoch_end. Each call is an
        `auxiliary_forward` in `Plugin.passes`; the very tensor that it was called with in this step costs none again.
        """
        state, full = self._state, f"{self._plugin}/{a_name(self._plugin, 'the name of a net', name)}"
        if state.settled:
            raise OptionError(f"Plugin {self._plugin} claims the net {name} after setup, where no resume finds it.")
        if full in state.modules:
            raise OptionError(f"Plugin {self._plugin} claims the net {name} twice; claim it once, in setup.")
        if state.building is None:  # a plan
            state.modules[full] = str(source) if optimizer is None else f"built by {self._plugin}, and trained"
            return Beside(self, full) if optimizer is None else Trained(self, full)
        if optimizer is not None:
            learning: Learning = state.building.trained(full, source, optimizer)
            claim(state.tensors, self._plugin, learning.store)
            state.modules[full] = learning
            return Trained(self, full)
        made: Frozen = state.building(full, source, model)
        held = f"{full}{SHA256}"
        sha256 = torch.tensor([*bytes.fromhex(made.sha256)], dtype=torch.uint8, device=state.device)
        claim(state.tensors, self._plugin, {held: sha256})
        state.modules[full] = made
        state.fixed[f"tensors/{held}"] = (
            f"The weights of {full}, {made.source}, are not those that the run began with; give it the net that it had."
        )
        return Beside(self, full)

    def stop(self, reason: str, *, keep: bool = True) -> None:
        """End the run with this epoch, in `epoch_end`, for a reason of one sentence.

        Unless `keep`, the epoch is never the best: `best` is the epoch that it was before. The first who stops is told.
        """
        told = a_name(self._plugin, "the reason of run.stop", one_line(str(reason)).strip())
        self._state.ending = self._state.ending or Ending(self._plugin, told, keep)

    def _images(self, service: str, x: object) -> Tensor:
        return images(self._plugin, service, x, self._state.dtype)

    def _auxiliary(self, name: str, x: Tensor) -> Tensor:
        where = self._state.viewing or self._state.probing
        if where is None:
            raise HookContract(
                f"Plugin {self._plugin} asks {name} where no pass is booked; call it in hooks of the attack phase, in "
                "base_loss or extra_regularizer, or in epoch_end."
            )
        answer: Tensor = where.auxiliary(self._plugin, name, self._images(f"run.module ({name})", x))
        return answer

    def _trial(self, does: str) -> Trying:
        trial: Trying | None = self._state.trial
        if trial is None:
            raise HookContract(f"Plugin {self._plugin} {does} where no step is tried; do so in observe_update.")
        return trial

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
                "hooks of the attack phase, in epoch_end, or in observe_update within `with run.ahead():`."
            )
        return probing


class Beside:
    """A net beside the model, as `Run.module` gives it: called with images (B, C, H, W) it returns logits (B, K)."""

    def __init__(self, run: Services, name: str) -> None:
        self._run, self._name = run, name

    def __call__(self, x: Tensor) -> Tensor:
        return self._run._auxiliary(self._name, x)


class Trained(Beside):
    """One that is trained: it returns (B, M), and learns in `observe_update`."""

    def learn(self, x: Tensor, loss: Callable[..., Tensor], *rows: Tensor) -> None:
        """Add the gradient of the mean of `loss`(output, *rows), (B,), to that by which it is updated after the hook.

        `x` and `rows` are of the whole batch; a process gets its share, part by part, so the loss takes its tensors
        as rows. The output (B, M) is in train mode. It costs an `auxiliary_forward` and an `auxiliary_backward`.
        """
        self._run._trial(f"teaches {self._name}").learn(self._run._plugin, self._name, x, loss, rows)

    def weights(self) -> Mapping[str, Tensor]:
        """Its parameters and buffers as they are, by name, detached: for averages or merges with the model's."""
        net: Learning | str = self._run._state.modules[self._name]
        if isinstance(net, str):
            raise NoNet
        values = net.values
        return {name: value.detach() for name, value in values.items()}
