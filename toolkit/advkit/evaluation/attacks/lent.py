"""An attack returns what it is lent unchanged, and leaves no trace in the net or in global state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...bits import same_bits, write_back
from ...errors import HookContract, blamed
from ...explained import calling
from ...generators import drawn_from, generators, put_back
from ...global_state import switch_back, switches
from ...judging import far_apart
from ...modes import modes_back
from ...modules import own_generator, placement
from ...spaces import Space

FEW = 8
"""Images that the net is asked before and after a stranger's attack."""

OPEN = frozenset({"forwards", "backwards", "notes", "part"})
"""What an attack may change of a Victim."""


@contextmanager
def lent(attack: str, net: Any, tensors: Mapping[str, Tensor], strange: bool = True) -> Iterator[None]:
    """HookContract where the scope changes one of `tensors`, the Victim `net`, its net, or global state.

    All of it is put back, plain attributes of modules without a word: nets keep their own there. A stranger's attack
    may reach what is in none of these, so the net is asked a few images before and after it. torch's global generator
    belongs to the net and to libraries in here: the evaluation seeds it, and gives it back. An exception passes, with
    the attack's name.
    """
    before = _State(net, tensors)
    answer = before.answer() if strange else None
    try:
        with blamed(f"in the attack {attack}"):
            yield
    except BaseException:
        before.restore()
        raise
    changed = before.changes()
    before.restore()
    guilty = next(iter(before.not_by_itself(changed)), None)
    if guilty is None and answer is not None and before.answers_otherwise_than(answer):
        guilty = "what the net answers"
    if guilty is not None:
        raise HookContract(
            f"The attack {attack} changed {guilty}; its accuracy would mean nothing. What it is given is lent: work "
            "on copies, and draw from net.draws(...)."
        )


class _State:
    """The tensors lent, the Victim, its net with all that makes it, and what is global, as they were."""

    def __init__(self, net: Any, tensors: Mapping[str, Tensor]) -> None:
        self.model: nn.Module = net.model
        self.images = tensors["x"][: min(FEW, net.batch_size or FEW)]
        weights = dict(self.model.named_parameters())
        named = {f"its {name}": value for name, value in tensors.items()}
        named |= {f"the net's {name}": value for name, value in (weights | dict(self.model.named_buffers())).items()}
        places = {module: name for name, module in self.model.named_modules()}
        classes = {one for module in places for one in type(module).__mro__ if issubclass(one, nn.Module)}
        classes |= {*type(net).__mro__} - {object}
        self.copies = [(name, value, value.detach().clone()) for name, value in named.items()]
        self.asking = [(value, value.requires_grad) for value in weights.values()]
        self.spaces = [
            Space(net, "net", lambda name, _: name not in OPEN, whole=True),
            *(Space(module, f"the net's {name}".removesuffix("'s ")) for module, name in places.items()),
            *(Space(one, f"the class {one.__name__}", lambda name, _: name[:2] != "__") for one in classes),
            Space(nn.modules.module, "torch", lambda name, _: name.startswith("_global_")),
            Space(nn.functional, "torch.nn.functional", lambda name, _: name[:1] != "_"),
        ]
        self.modes = [(module, getattr(module, "training", None)) for module in places]
        own = [value for space in self.spaces for value, _ in space.held.values() if isinstance(value, Tensor)]
        self.unnamed = [(value, value.detach().clone()) for value in own]
        self.switches = switches()
        self.generators = generators()

    def changes(self) -> list[str]:
        """What differs now, in words."""
        words = [name for name, value, was in self.copies if not same_bits(value.detach(), was)]
        if any(getattr(module, "training", None) != was for module, was in self.modes):
            words.append("the net's mode")
        if any(value.requires_grad != was for value, was in self.asking):
            words.append("which weights of the net ask for a gradient")
        words += [name for space in self.spaces for name in space.changes()]
        words += [name for name, value in switches().items() if value != self.switches[name]]
        return [*words, *(name for name in drawn_from(self.generators) if not name.startswith("torch"))]

    def restore(self) -> None:
        switch_back(self.switches)
        drawn = generators()
        put_back(self.generators | {name: state for name, state in drawn.items() if name.startswith("torch")})
        for space in self.spaces:
            space.restore()
        with torch.no_grad():
            for value, was in (*((value, was) for _, value, was in self.copies), *self.unnamed):
                if value.shape == was.shape and value.dtype == was.dtype:
                    write_back(value.detach(), was)
                else:
                    value.data = was  # the attack bound other data to it, which no copy_ undoes
        for value, asks in self.asking:
            value.requires_grad_(asks)
        # torch.jit's modules have theirs elsewhere.
        modes_back([(module, mode) for module, mode in self.modes if mode is not None])

    def not_by_itself(self, changed: Iterable[str]) -> list[str]:
        """Those that forwards of the net alone do not change: what they do is the net's doing, and is put back."""
        if not (changed := list(changed)):
            return []
        for followed in (False, True):
            with torch.set_grad_enabled(followed):
                self._forward(self.images[:2].detach().clone().requires_grad_(followed))
        own = self.changes()
        self.restore()
        return [name for name in changed if name not in own]

    def answer(self) -> Tensor:
        """Logits (B, K) of a few of the images; nothing of it stays."""
        with torch.no_grad():
            logits = self._forward(self.images.detach().clone())
        self.restore()
        return logits

    def answers_otherwise_than(self, answer: Tensor) -> bool:
        """Whether it does for sure: of a net that never answers the same twice nobody knows."""
        now = self.answer()
        return far_apart(now, answer) and not far_apart(now, self.answer())

    def _forward(self, x: Tensor) -> Tensor:
        with own_generator(placement(self.model)[0]) as seed, calling(x.shape):
            seed(0)
            logits: Tensor = self.model(x)
        return logits.detach()
