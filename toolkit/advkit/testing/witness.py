"""Passes as the model itself counts them."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields

import torch
from torch import Tensor, nn

from ..run import RunState
from ..torch_func import at_once
from ..training.auxiliary import FrozenNet
from ..training.trained import TrainedNet
from ..types import Passes


class Witness:
    """Counts at the first layer: its forwards, gradients at its output, and gradients at the images.

    It knows nothing of advkit's own bookkeeping. Phases are told apart by the layer's mode, so the attack has to run in
    eval mode; where a step is tried it is the update. `probes` counts forwards of a single image, which advkit runs
    once to learn the number of classes.
    """

    def __init__(self, net: nn.Sequential) -> None:
        self.probes = 0
        self._state: RunState | None = None
        self._seen: Counter[tuple[str, str]] = Counter()
        net[0].register_forward_hook(self._forward)

    def take(self) -> dict[str, Passes]:
        """Since the last call, by phase."""
        kinds = [kind.name for kind in fields(Passes)]
        taken = {phase: Passes(*(self._seen[phase, kind] for kind in kinds)) for phase in ("attack", "update")}
        self._seen.clear()
        return taken

    def beside(self, state: RunState) -> None:
        """Count the forwards of nets beside the model too, in the phase in which the model is asked where they are."""
        self._state = state
        for net in state.modules.values():
            if isinstance(net, FrozenNet | TrainedNet):
                net.engine.model.register_forward_hook(lambda _, __, output: self._asked(state, output))

    def _asked(self, state: RunState, output: Tensor) -> None:
        phase = "update" if state.viewing or state.trial else "attack"
        self._seen[phase, "auxiliary_forward"] += 1
        if output.requires_grad:
            kind = (phase, "auxiliary_backward")
            output.register_hook(lambda gradient: self._seen.update({kind: at_once(gradient)}))  # type: ignore[no-untyped-call]

    def _forward(self, layer: nn.Module, images: tuple[Tensor], output: Tensor) -> None:
        (x,) = images
        if len(x) == 1:
            self.probes += 1
            return
        phase = "update" if layer.training or (self._state and self._state.trial) else "attack"
        self._seen[phase, "forward"] += 1
        to_weights = output.requires_grad and layer.weight.requires_grad

        def at_images(gradient: Tensor | None) -> None:
            # On to the images alone, or for a gradient that is differentiated itself, in a backward after it.
            if not to_weights or torch.is_grad_enabled():
                self._seen[phase, "input_backward"] += at_once(gradient)

        def at_weights(gradient: Tensor | None) -> None:
            if not torch.is_grad_enabled():
                self._seen[phase, "full_backward"] += at_once(gradient)

        if x.requires_grad:
            x.register_hook(at_images)  # type: ignore[no-untyped-call]
        if to_weights:
            output.register_hook(at_weights)  # type: ignore[no-untyped-call]
