"""What an attack is lent it gives back as it was, and it leaves no trace in global state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...errors import AdvkitError, HookContract
from ...judging import drawn_from, generators, put_back, same_bits, switch_back, switches
from ...modules import own_generator, placement


@contextmanager
def lent(attack: str, model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """HookContract where the scope changes one of `tensors`, the net, or global state; all is put back.

    torch's global generator belongs to the net and to libraries in here: the evaluation seeds it, and gives it back.
    An exception passes, with the attack's name.
    """
    before = _State(model, tensors)
    try:
        yield
    except BaseException as error:
        before.restore()
        if isinstance(error, Exception) and not isinstance(error, AdvkitError):
            error.add_note(f"in the attack {attack}")
        raise
    changed = before.changed()
    before.restore()
    if changed is not None and not before.moves_by_itself(changed):
        raise HookContract(
            f"The attack {attack} changed {changed}; its accuracy would mean nothing. What it is given is lent: work "
            "on copies, and draw from net.draws(...)."
        )


class _State:
    """The tensors lent, the net's weights and modes, and what is global, as they were."""

    def __init__(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        self.model = model
        self.images = tensors["x"]
        self.weights = {f"the net's {name}": value for name, value in model.named_parameters()}
        self.buffers = {f"the net's {name}": value for name, value in model.named_buffers()}
        lent_ones = {f"its {name}": value for name, value in tensors.items()}
        self.copies = [
            (name, value, value.detach().clone()) for name, value in (lent_ones | self.weights | self.buffers).items()
        ]
        self.modes = [(module, module.training) for module in model.modules()]
        self.asked = [(value, value.requires_grad) for value in self.weights.values()]
        self.switches = switches()
        self.generators = generators()

    def changed(self) -> str | None:
        """What differs now, in words; None for nothing."""
        for name, value, copy in self.copies:
            if not same_bits(value.detach(), copy):
                return name
        if any(module.training != was for module, was in self.modes):
            return "the net's mode"
        if any(value.requires_grad != was for value, was in self.asked):
            return "which weights of the net ask for a gradient"
        for name, value in switches().items():
            if value != self.switches[name]:
                return name
        return next((name for name in drawn_from(self.generators) if not name.startswith("torch")), None)

    def restore(self) -> None:
        switch_back(self.switches)
        drawn = generators()
        put_back(self.generators | {name: state for name, state in drawn.items() if name.startswith("torch")})
        with torch.no_grad():
            for _, value, copy in self.copies:
                if value.shape == copy.shape and value.dtype == copy.dtype:
                    if not same_bits(value.detach(), copy):
                        value.detach().copy_(copy)
                else:
                    value.data = copy  # the attack bound other data to it, which no copy_ undoes
        for module, was in self.modes:
            module.training = was
        for value, asks in self.asked:
            value.requires_grad_(asks)

    def moves_by_itself(self, name: str) -> bool:
        """Whether a forward of the net alone changes this too: that is the net's doing, and it has been put back."""
        if name not in self.buffers and name not in self.generators:
            return False
        with own_generator(placement(self.model)[0]), torch.no_grad():
            self.model(self.images[:2].detach().clone())
        moved = self.changed() == name
        self.restore()
        return moved
