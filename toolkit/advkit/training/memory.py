"""Whether a net remembers what no state_dict holds, so that no resume could go on as it was."""

from __future__ import annotations

from collections.abc import Container, Mapping

import torch
from torch import Tensor, nn
from torch.jit import ScriptModule

from ..bits import same_bits
from ..hidden import Hidden, without_trace
from ..judging import far_apart
from ..modules import mode, own_generator, placement
from ..substituted import call_at
from .by_itself import by_itself
from .compiled import eagerly

IMAGES = 8
"""On how many its logits are compared."""


class Memory:
    """What a net had beside its state_dict before the first step of a run."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self._said = model, any(isinstance(module, ScriptModule) for module in model.modules())
        self.remembers = False
        """Whether it was found to."""
        stored = [m for m in model.modules() if type(m).get_extra_state is not nn.Module.get_extra_state]
        self._before = Hidden(model, but=stored)
        self._x: Tensor | None = None
        self._computing: Container[object] = ()

    def first(self, x: Tensor, computing: Container[object]) -> str:
        """After the first step, on images x (B, C, H, W); of the model's hooks those run that are in `computing`."""
        self._x, self._computing = x[:IMAGES].detach().clone(), computing
        return self.caution() or self._lost()

    def _lost(self) -> str:
        """A sentence where weights have a gradient in a forward of their own, and none after one without gradients.

        A net that keeps what it has computed of its weights, as a product of them, does not learn those.
        """
        if self._x is None or any(isinstance(module, ScriptModule) for module in self.model.modules()):
            return ""
        kept = self._before.changed()
        if not kept:
            return ""
        with by_itself(self.model, self._computing), eagerly(self.model):
            now = self._learning(self._x)
            self._before.put_back()
            lost = sorted(self._learning(self._x) - now)
        if not lost:
            return ""
        return (
            f"{lost[0]} of the model gets no gradient: the model keeps what an earlier forward without gradients has "
            f"computed from its weights ({kept[0]}), so these do not learn. Compute it anew in every forward."
        )

    def _learning(self, x: Tensor) -> set[str]:
        """The parameters that have a gradient, in train mode."""
        own = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        with own_generator(placement(self.model)[0]) as seed, without_trace(self.model, hooks=True):
            seed(0)
            with torch.enable_grad(), mode(self.model, training=True):
                total = call_at(self.model, buffers, x).sum()
            gradients = torch.autograd.grad(total, [*own.values()], allow_unused=True)
        return {name for name, gradient in zip(own, gradients, strict=True) if gradient is not None}

    def caution(self) -> str:
        """A sentence, once, where what the net has moved since decides its logits, "" elsewhere. It stays as it is."""
        if self._said or self._x is None:
            return ""
        stored = self.model.state_dict()
        with by_itself(self.model, self._computing), eagerly(self.model):
            logits = self._logits(self._x, stored)
            names = [name for name in self._before.changed() if name not in stored]
            if names:
                self._before.put_back()
            self._said = not _alike(logits, self._logits(self._x, stored))
        if not self._said:
            return ""
        self.remembers = True
        where = f" ({', '.join(names[:3])})" if names else ""
        moved = (
            "" if names else ". Nor can it be put back after a look, as an iterator can not, so this look has moved it"
        )
        return (
            f"The model's logits depend on what it has seen before{where}, and no state_dict holds that: a resumed run "
            f"goes on without it, and its bits differ{moved}. Keep it in buffers (register_buffer), and draw from "
            "torch's generator, which is seeded for the model."
        )

    def _logits(self, x: Tensor, stored: Mapping[str, Tensor]) -> Tensor:
        """As updates and attacks see them, with those buffers that are `stored` as they are there."""
        seen = []
        for training in (True, False):
            buffers = {name: stored.get(name, buffer).clone() for name, buffer in self.model.named_buffers()}
            with own_generator(placement(self.model)[0]) as seed, without_trace(self.model, hooks=True):
                seed(0)
                with torch.no_grad(), mode(self.model, training):
                    seen.append(call_at(self.model, buffers, x))
        return torch.cat(seen)


def by_batch(model: nn.Module, x: Tensor, computing: Container[object]) -> tuple[str, Tensor]:
    """A sentence where the logits of an image depend on the other images of its batch x, as a net is evaluated.

    Its last images are compared, which are elsewhere in a smaller batch: some nets number their images. Beside it their
    logits (b, K), of none where x has too few.
    """
    few = min(IMAGES // 2, len(x) // 2)
    if few < 2:
        return "", x.new_empty(0, 0)

    def logits(images: Tensor, times: int = 1) -> list[Tensor]:
        with own_generator(placement(model)[0]) as seed, without_trace(model, hooks=True):
            outputs = list[Tensor]()
            for label in range(times):
                seed(label)
                with torch.no_grad(), mode(model, training=False):
                    outputs.append(model(images.detach().clone())[-few:])
        return outputs

    with by_itself(model, computing), eagerly(model):
        alone, again = logits(x[-few:], times=2)
        if not far_apart(alone, *logits(x)) or far_apart(alone, again):  # or one that draws
            return "", alone
    return (
        "The model's logits of an image depend on the other images of its batch (BatchNorm without running statistics, "
        "or attention over the batch), so accuracies depend on how images are batched; normalise each by itself, or "
        "keep running statistics."
    ), alone


def _alike(one: Tensor, other: Tensor) -> bool:
    """Bit for bit; on accelerators, where sums have no fixed order, nearly."""
    if one.device.type == "cpu":
        return same_bits(one, other)
    return torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max()), equal_nan=True)
